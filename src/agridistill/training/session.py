"""One pass through a run: builds the parts, fits, evaluates, and completes the run folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import closing, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from timm.layers.norm_act import convert_sync_batchnorm

from agridistill.data.cache import KeptViews
from agridistill.data.likeness import write_learnt
from agridistill.data.loader import PhotoDataModule, default_workers
from agridistill.data.prepare import PreparedData
from agridistill.data.split import write_split
from agridistill.distillation.methods import get_method
from agridistill.distillation.objective import DistillationObjective, StagePair
from agridistill.errors import ConfigError
from agridistill.evaluation.answering import fit_answering
from agridistill.evaluation.evaluate import evaluate, predict_logits
from agridistill.evaluation.familiar import familiarity_of
from agridistill.evaluation.learning import read_learning
from agridistill.evaluation.verdict import judge
from agridistill.manifest import (
    ModelManifest,
    Preprocessing,
    read_manifest,
    require_same_classes,
    sha256_of,
)
from agridistill.models.attention import StageTap
from agridistill.models.complexity import complexity
from agridistill.models.factory import create_model
from agridistill.models.saved import TorchBackend, network_of
from agridistill.models.teacher import LiveTeacher
from agridistill.models.weights import describe_start
from agridistill.processes import is_first_process
from agridistill.storage import only_one, write_json
from agridistill.training.cached_teacher import DISTILLATION_VIEWS, CachedTeacher, Viewing
from agridistill.training.callbacks import BestWeights, BuildCache, EpochLog, SameEverywhere
from agridistill.training.hardware import choose_precision, keep_freed_memory
from agridistill.training.head import FitHead, classifier_of
from agridistill.training.int8 import as_int8
from agridistill.training.module import DistillationModule, TeacherSource
from agridistill.training.result import RunResult, read_result
from agridistill.training.run_folder import RunFolder
from agridistill.training.settings import DistillConfig, FitSettings, ObjectiveSettings, TrainConfig
from agridistill.training.start import earlier_photos, starting_normalisation, tell_what_keeping_saves
from agridistill.training.teachers import hint_source, teacher_source
from agridistill.training.terms import temperature_of, weights_of
from agridistill.training.trainer import (
    create_trainer,
    interruptible,
    quiet_lightning,
    require_share_for_each,
    stopped_early,
    together,
    with_others,
)


class Session:
    """One pass through a run: builds the parts, fits, evaluates, and writes the run folder."""

    def __init__(
        self,
        folder: RunFolder,
        prepared: PreparedData,
        config: TrainConfig | DistillConfig,
        fit: FitSettings,
        objective: ObjectiveSettings,
        teacher: Path | None,
        caches: Path | None,
        resume: bool,
    ) -> None:
        self.folder, self.prepared, self.config = folder, prepared, config
        self.fit, self.objective, self.resume = fit, objective, resume
        self.teacher, self.caches = teacher, caches
        mean, std = starting_normalisation(fit, folder, resume=resume)
        self.preprocessing = Preprocessing(config.data.image_size, config.data.resize, mean, std)
        # Students of any seed see the same views, with or without a teacher; a teacher has its own.
        self.view_seed = DISTILLATION_VIEWS if isinstance(config, DistillConfig) else fit.seed
        self.views = fit.views_of_each_photo(student=isinstance(config, DistillConfig))
        self.first = is_first_process(fit.processes)
        self.teacher_sha256 = read_manifest(RunFolder(teacher).manifest).weights_sha256 if teacher else None
        self.best = BestWeights(folder.weights, len(prepared.val))
        self.log = EpochLog(folder.metrics)

    def run(self) -> RunResult:
        """Builds, fits, evaluates."""
        require_share_for_each(self.fit, train=len(self.prepared.train), val=len(self.prepared.val))
        keep_freed_memory()
        lightning.seed_everything(self.fit.seed, verbose=False)
        saved = self.folder.read_checkpoint() if self.resume else None
        # The checkpoint replaces them: a resume needs neither hub nor file.
        weights = Path(self.fit.weights) if self.fit.weights and saved is None else None
        model = create_model(
            self.fit.model,
            len(self.prepared.classes),
            image_size=self.preprocessing.image_size,
            pretrained=self.fit.pretrained and saved is None,
            weights=weights,
            drop_path=self.fit.drop_path,
        )
        if self.fit.int8:
            model = as_int8(model, self.prepared, self.preprocessing, self.objective, weights=weights)
        if self.fit.head_first:
            classifier_of(model)
        datamodule = self._datamodule()
        source, hints = self._teacher_sources()
        module = self._module(model, source, hints, datamodule.steps_per_epoch * self.fit.epochs)
        precision = self._precision(model)
        module.try_out()
        if self.first:
            self.folder.path.mkdir(parents=True, exist_ok=True)
        # Two of one run would write one checkpoint.
        lock = only_one(self.folder.lock, f"run in '{self.folder.path}'") if self.first else nullcontext()
        with lock:
            if self.first:
                # Another one may have come first while the photos were read.
                self.folder.require_startable(resume=self.resume)
                if self.fit.keep_views:
                    kept = KeptViews(self.prepared.root, self.preprocessing, self.config.augmentation)
                    seen = (self.prepared.train, self.view_seed, self.views, self.fit.epochs)
                    tell_what_keeping_saves(kept, *seen, cached=self.caches is not None)
                self._write_start(precision)
            return self._carry_out(module, datamodule, source, precision, saved)

    def _carry_out(
        self,
        module: DistillationModule,
        datamodule: PhotoDataModule,
        source: TeacherSource | None,
        precision: str,
        saved: Mapping[str, Any] | None,
    ) -> RunResult:
        """Fits what is not fitted yet, and evaluates."""
        if saved is not None and (self.folder.manifest.exists() or stopped_early(saved, self.fit)):
            # Training was done; only what follows it was interrupted, and the first process needs no help there.
            if not self.first:
                raise SystemExit(0)
            for callback in (self.best, self.log):
                callback.load_state_dict(saved["callbacks"][callback.state_key])
            return self._finish(precision)
        cached = source if isinstance(source, CachedTeacher) else None
        builder: list[Callback] = [BuildCache(cached, datamodule.workers)] if cached else []
        if self.fit.head_first and saved is None:
            builder.append(
                FitHead(
                    self.prepared.root,
                    self.prepared.train,
                    self.preprocessing,
                    self.config.augmentation,
                    seed=self.view_seed,
                    workers=datamodule.workers,
                    balance=self.fit.balance,
                )
            )
        same = SameEverywhere({"photos": self.prepared.fingerprint, "recipe": asdict(self.config)})
        trainer = create_trainer(self.fit, self.folder, precision, [same, *builder, self.best, self.log])
        several = with_others(trainer) if self.fit.processes > 1 else nullcontext()
        with several, quiet_lightning(), interruptible(), closing(cached) if cached else nullcontext():
            trainer.fit(
                module,
                datamodule=datamodule,
                ckpt_path=self.folder.checkpoint if saved is not None else None,
                # A checkpoint from elsewhere is data, not code.
                weights_only=True,
            )
        if self.fit.processes == 1:
            return self._finish(precision)
        with together(trainer):
            if self.first:
                self._finish(precision)
        return read_result(self.folder, self.prepared.skipped)

    def _module(
        self, model: torch.nn.Module, source: TeacherSource | None, hints: LiveTeacher | None, total_steps: int
    ) -> DistillationModule:
        settings, weights = self.objective, weights_of(self.objective)
        logits = get_method(settings.method).logits
        if logits == "standardised" and weights["w_kd"] and len(self.prepared.classes) < 3:
            # Two logits, standardised, are always 1 and -1: nothing is left of what the teacher says.
            raise ConfigError(
                f"at least 3 classes for {settings.method}", str(len(self.prepared.classes)), "pass --method kd"
            )
        pairs = tuple(StagePair(pair.student, pair.teacher, pair.weight) for pair in settings.pairs)
        pairs = pairs if weights["w_att"] or weights["w_hint"] else ()
        strides = tuple(sorted({pair.student for pair in pairs}))
        objective = DistillationObjective(
            **weights,
            hint_share=settings.hint_share,
            logits=logits,
            temperature=temperature_of(settings),
            label_smoothing=self.fit.label_smoothing,
            pairs=pairs,
            student_channels=_channels(model, strides),
            teacher_channels=hints.map_counts() if hints is not None else {},
            teacher_maps=source.map_counts() if source is not None else {},
            alignment=settings.alignment,
            stage_weights=settings.stage_weights,
            distance=settings.distance,
            grid=settings.grid,
            warmup=settings.att_warmup,
            decay=settings.att_decay,
        )
        if self.fit.processes > 1 and torch.cuda.is_available():
            # Statistics of the whole batch, so that the number of processes changes no result.
            model = convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return DistillationModule(
            model,
            objective,
            teacher=source,
            hints=hints,
            strides=strides,
            preprocessing=self.preprocessing,
            num_classes=len(self.prepared.classes),
            total_steps=total_steps,
            lr=self.fit.lr,
            weight_decay=self.fit.weight_decay,
            layer_decay=self.fit.layer_decay,
            freeze_norm=self.fit.freeze_norm,
            warmup=self.fit.warmup,
            seed=self.fit.seed,
        )

    def _teacher_sources(self) -> tuple[TeacherSource | None, LiveTeacher | None]:
        if self.teacher is None:
            return None, None
        require_same_classes(
            read_manifest(RunFolder(self.teacher).manifest).classes, self.prepared.classes, owner="teacher"
        )
        viewing = Viewing(
            self.prepared.root,
            self.prepared.train,
            self.prepared.fingerprint,
            self.preprocessing,
            self.config.augmentation,
            self.views,
            self.fit.keep_views,
        )
        # Building the teacher draws random weights first; the student's must not depend on whether it was built.
        with torch.random.fork_rng(devices=[]):
            source = teacher_source(self.teacher, self.caches, viewing, self.objective)
            return source, hint_source(self.teacher, self.objective)

    def _precision(self, model: torch.nn.Module) -> str:
        if self.fit.precision != "auto":
            return self.fit.precision
        stored = self.folder.read_environment().get("precision") if self.resume else None
        if stored in ("fp32", "bf16"):
            return str(stored)
        if self.fit.processes > 1 and not torch.cuda.is_available():
            # Each process would measure for itself, and they might not agree.
            return "fp32"
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return choose_precision(model, self.preprocessing.image_size, device)

    def _write_start(self, precision: str) -> None:
        if self.resume:
            self.folder.require_same_recipe(self.config)
            self.folder.require_same_teacher(self.teacher_sha256)
            return
        # First: a folder with this alone is one that never came to a start.
        self.folder.write_environment(
            seed=self.fit.seed,
            data_root=self.prepared.root,
            fingerprint=self.prepared.fingerprint,
            extra={
                "precision": precision,
                "start": describe_start(
                    self.fit.model, self.fit.pretrained, Path(self.fit.weights) if self.fit.weights else None
                ),
                "normalisation": {"mean": self.preprocessing.mean, "std": self.preprocessing.std},
                "skipped": [list(item) for item in self.prepared.skipped],
                "teacher": str(self.teacher.resolve()) if self.teacher else None,
                "teacher_sha256": self.teacher_sha256,
                "layout": self.prepared.layout.to_json(),
                "train_photos": self._train_photos(),
            },
        )
        data, cut = self.config.data, self.prepared.cut
        write_split(
            self.folder.splits,
            self.prepared.split,
            seed=data.split_seed if cut else None,
            val_fraction=data.val_fraction if "val" in cut else None,
            test_fraction=data.test_fraction if "test" in cut else None,
            fingerprint=self.prepared.fingerprint,
        )
        # Last: a folder with a recipe is a run that can be resumed.
        self.folder.write_recipe(self.config)

    def _train_photos(self) -> dict[str, int]:
        counts = Counter(sample.label for sample in self.prepared.train)
        return {name: counts[label] for label, name in enumerate(self.prepared.classes)}

    def _datamodule(self) -> PhotoDataModule:
        accelerator = "cuda" if torch.cuda.is_available() else "cpu"
        return PhotoDataModule(
            self.prepared.root,
            self.prepared.train,
            self.prepared.val,
            self.preprocessing,
            self.config.augmentation,
            batch_size=self.fit.batch_size,
            seed=self.fit.seed,
            view_seed=self.view_seed,
            views=self.views,
            workers=default_workers(accelerator, self.fit.devices) if self.fit.workers < 0 else self.fit.workers,
            keep_views=self.fit.keep_views,
            balance=self.fit.balance,
        )

    def _finish(self, precision: str) -> RunResult:
        """Calibrates on the validation split, evaluates on the test split, and completes the run folder."""
        manifest = ModelManifest(
            model=self.fit.model,
            classes=self.prepared.classes,
            preprocessing=self.preprocessing,
            weights_file=self.folder.weights.name,
            weights_sha256=sha256_of(self.folder.weights),
            precision="int8" if self.fit.int8 else "fp32",
            lineage=self._lineage(precision),
        )
        network = network_of(manifest, self.folder.path)
        root, classes = self.prepared.root, self.prepared.classes
        val = predict_logits(TorchBackend(network, manifest), self.prepared.val, root)
        # Written once, calibrated: a folder with a manifest is a model that can be used.
        answering = fit_answering(val)
        familiarity = familiarity_of(root, self.prepared.train, self.prepared.val, self.preprocessing)
        manifest = replace(
            manifest,
            temperature=answering.temperature,
            threshold=answering.abstention.threshold,
            familiarity=familiarity.to_json() if familiarity else {},
        )
        learnt = (self.prepared.phashes[sample.path] for sample in (*self.prepared.train, *self.prepared.val))
        earlier = earlier_photos(self.teacher, Path(self.fit.weights) if self.fit.weights else None)
        write_learnt(self.folder.learnt, self.prepared.fingerprint, learnt, earlier)
        manifest.write(self.folder.manifest)
        size = complexity(network, self.preprocessing.image_size)
        result = evaluate(
            TorchBackend(network, manifest),
            self.prepared.test,
            root,
            classes=classes,
            split="test",
            parameters=size.parameters,
            macs=size.macs,
        )
        train_s = sum(row["train_s"] for row in self.log.rows)
        best_epoch = self.best.epoch + 1
        verdict = judge(result, learning=read_learning(self.folder.path, classes))
        document = result.to_json() | {"train_s": train_s, "best_epoch": best_epoch, "verdict": verdict.to_json()}
        write_json(self.folder.evaluation, document)
        return RunResult(self.folder.path, result, best_epoch, train_s, self.prepared.skipped)

    def _lineage(self, precision: str) -> dict[str, Any]:
        lineage: dict[str, Any] = {
            "method": self.objective.method,
            "seed": self.fit.seed,
            "precision": precision,
            "best_epoch": self.best.epoch + 1,
            "data_fingerprint": self.prepared.fingerprint,
        }
        lineage["start"] = self.folder.read_environment().get("start", {})
        if self.teacher is not None:
            lineage["teacher_sha256"] = self.teacher_sha256
        return lineage


def _channels(model: torch.nn.Module, strides: tuple[int, ...]) -> Mapping[int, int]:
    if not strides:
        return {}
    with StageTap(model, strides) as tap:
        return {stride: tap.channels(stride) for stride in strides}
