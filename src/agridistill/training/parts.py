"""Describes a run, and creates the parts that it trains: network, photos, teacher and objective."""

from __future__ import annotations

from dataclasses import astuple, dataclass
from functools import cached_property
from pathlib import Path

import torch
from timm.layers.norm_act import convert_sync_batchnorm
from torch import nn

from agridistill.data.loader import DISTILLATION_VIEWS, PhotoDataModule, Viewing, default_workers
from agridistill.data.prepare import PreparedData
from agridistill.data.unlabelled import repeats_for
from agridistill.errors import ConfigError, ModelError
from agridistill.evaluation.calibration import representative_batches
from agridistill.losses import DistillationObjective, StagePair, get_method
from agridistill.manifest import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    MANIFEST_NAME,
    Preprocessing,
    read_manifest,
    require_same_classes,
    sha256_of,
)
from agridistill.models import (
    Channels,
    LiveTeacher,
    StageTap,
    create_model,
    known_weights,
    pretrained_normalisation,
    start_path,
)
from agridistill.models.int8 import calibrate, quantised
from agridistill.teacher_cache import CachedTeacher, UncachedTeacher, cache_key, digest_of, load_teacher
from agridistill.training.callbacks import classifier_of
from agridistill.training.module import DistillationModule, TeacherSource
from agridistill.training.run_folder import RunFolder, run_of
from agridistill.training.settings import DistillConfig, FitSettings, ObjectiveSettings, TrainConfig


@dataclass(frozen=True)
class RunPlan:
    """Everything that defines a run: its folder, photos, settings and teacher."""

    folder: RunFolder
    prepared: PreparedData
    config: TrainConfig | DistillConfig
    teacher: RunFolder | None = None  # None if no term of the objective needs one
    caches: Path | None = None  # folder of the teacher's caches; None runs the teacher's network in every step
    resume: bool = False

    @property
    def fit(self) -> FitSettings:
        """The section `train` or `distill` of the settings."""
        return self.config.fit

    @property
    def weights(self) -> Path | None:
        """The weights file or run folder to start from instead of pretrained weights; None if not set."""
        return start_path(self.fit.weights, self.fit.model) if self.fit.weights else None

    @cached_property
    def viewing(self) -> Viewing:
        """The training photos and their views (augmented versions).

        All students with the same photos and augmentation get the same views, whatever their seed and teacher, so that
        they share one cache of the teacher's outputs.
        """
        data, student = self.config.data, isinstance(self.config, DistillConfig)
        train, others = self.prepared.train, self.prepared.unlabelled
        fingerprint, repeats = self.prepared.fingerprint, 1
        if others is not None:
            repeats = repeats_for(len(train), len(others.samples), data.labelled_share)
            fingerprint = f"{fingerprint} {others.fingerprint}"
        return Viewing(
            self.prepared.root,
            (*(repeats * train), *(others.samples if others else ())),
            fingerprint,
            Preprocessing(data.image_size, data.resize, *_starting_normalisation(self)),
            self.config.augmentation,
            views=self.fit.views_of_each_photo(student=student),
            keep_views=self.fit.keep_views,
            seed=DISTILLATION_VIEWS if student else self.fit.seed,
            unlabelled_root=others.root if others else None,
            repeats=repeats,
            teacher_size=self._live_teacher_size,
        )

    @property
    def _live_teacher_size(self) -> int | None:
        """The image size of a teacher that runs in every step, if the views must be drawn in it as well."""
        # Mixed photos are drawn in the student's size only, and enlarged: CutMix would cut other parts in another size.
        enlarged = self.teacher_size == self.config.data.image_size or self.fit.mixup or self.fit.cutmix
        return None if self.caches is not None or enlarged else self.teacher_size

    @property
    def teacher_size(self) -> int | None:
        """The image size of the teacher; None without a teacher."""
        return read_manifest(self.teacher.manifest).preprocessing.image_size if self.teacher else None

    @property
    def preprocessing(self) -> Preprocessing:
        """The size and resize rule of the settings, with the mean and standard deviation of the starting weights."""
        return self.viewing.preprocessing

    @cached_property
    def teacher_sha256(self) -> str | None:
        """The sha256 of the teacher's weights; None without a teacher."""
        return read_manifest(self.teacher.manifest).weights_sha256 if self.teacher else None

    @property
    def features(self) -> str | None:
        """Where the teacher's features come from, "cache" or "network"; None if no term compares them."""
        if self.teacher is None or not self.config.objective.weights()["w_hint"]:
            return None
        return "cache" if self.caches else "network"


@dataclass(frozen=True)
class RunParts:
    """The objects that `build_parts` creates: the module to train, its photos, and the source of teacher outputs."""

    module: DistillationModule
    datamodule: PhotoDataModule
    teacher: TeacherSource | None


def build_parts(plan: RunPlan, *, restored: bool) -> RunParts:
    """Creates network, data loaders, teacher and objective of a run, and checks that they are compatible.

    With `restored`, a checkpoint will replace the network's weights, so none are downloaded or read.
    """
    fit, prepared = plan.fit, plan.prepared
    gpu = torch.cuda.is_available()
    weights = None if restored else plan.weights
    model = create_model(
        fit.model,
        len(prepared.classes),
        image_size=plan.preprocessing.image_size,
        pretrained=fit.pretrained and not restored,
        weights=weights,
        drop_path=fit.drop_path,
    )
    if fit.int8:
        model = _as_int8(model, plan, weights)
    if fit.head_first:
        classifier_of(model)  # raises its error now, not after the cache is built
    datamodule = PhotoDataModule(
        plan.viewing,
        prepared.val,
        batch_size=fit.batch_size,
        seed=fit.seed,
        workers=default_workers("cuda" if gpu else "cpu", fit.devices) if fit.workers < 0 else fit.workers,
        balance=fit.balance,
    )
    # Creating a teacher draws random numbers, which must not change the student's weights.
    with torch.random.fork_rng(devices=[]):
        teacher = _teacher(plan)
    _require_whole_views(plan, teacher)
    objective = _objective(plan, model, teacher)
    if fit.processes > 1 and gpu:
        # Batch norm uses statistics of the whole batch, so that the number of processes changes no result.
        model = convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    module = DistillationModule(
        model,
        objective,
        fit,
        teacher=teacher,
        preprocessing=plan.preprocessing,
        num_classes=len(prepared.classes),
        total_steps=datamodule.steps_per_epoch * fit.epochs,
    )
    module.check_with_example()
    return RunParts(module, datamodule, teacher)


def _starting_normalisation(plan: RunPlan) -> tuple[Channels, Channels]:
    """Returns mean and standard deviation of the RGB channels, 0 to 1, that the starting weights were trained with."""
    weights = None if plan.resume else plan.weights
    if weights is not None and weights.is_dir():
        trained = read_manifest(RunFolder(weights).manifest).preprocessing
        return trained.mean, trained.std
    # A resume needs neither hub nor file, because the run folder holds both values.
    run = plan.folder if plan.resume else run_of(weights) if weights else None
    if run is not None:
        stored = run.read_environment()["normalisation"]
        return tuple(stored["mean"]), tuple(stored["std"])
    package = known_weights(sha256_of(weights)) if weights is not None else None
    if package is not None:
        return package.mean, package.std
    if plan.fit.pretrained and weights is None:
        return pretrained_normalisation(plan.fit.model)
    return IMAGENET_MEAN, IMAGENET_STD


def _as_int8(model: nn.Module, plan: RunPlan, weights: Path | None) -> nn.Module:
    """Returns a copy of the network with folded batch norm and rounded weights and activations, ready for training."""
    objective, size = plan.config.objective, plan.preprocessing.image_size
    if objective.weights()["w_att"] or objective.weights()["w_hint"]:
        got = f"the method '{objective.method}'"
        raise ConfigError("a method without attention and feature terms, because int8 = true", got, "pass --method kd")
    rounded = quantised(model, plan.preprocessing)
    if weights is None:
        return rounded
    if (weights / MANIFEST_NAME).exists():
        trained = read_manifest(weights / MANIFEST_NAME).preprocessing.image_size
        if trained != size:
            expected = f"the image size of {trained} px with which '{weights}' was trained"
            raise ConfigError(expected, f"{size} px", f"pass --image-size {trained}")
    calibrate(rounded, representative_batches(plan.prepared.root, plan.prepared.train, plan.preprocessing))
    return rounded


def _teacher(plan: RunPlan) -> TeacherSource | None:
    if plan.teacher is None:
        return None
    require_same_classes(read_manifest(plan.teacher.manifest).classes, plan.prepared.classes, owner="teacher")
    return teacher_source(plan.teacher.path, plan.caches, plan.viewing, plan.config.objective)


def _require_whole_views(plan: RunPlan, teacher: TeacherSource | None) -> None:
    """Checks that teacher and objective support mixed photos, and that `start_size` is not above the image size."""
    fit, size = plan.fit, plan.preprocessing.image_size
    if fit.start_size > size:
        expected, got = f"start_size of at most {size} px, the image size", f"{fit.start_size} px"
        raise ConfigError(expected, got, "lower start_size, or raise --image-size")
    if not (fit.mixup or fit.cutmix):
        return
    if isinstance(teacher, CachedTeacher):
        raise ConfigError(
            "a teacher without a cache for mixup and cutmix, because the cache knows only unmixed photos",
            "a teacher with a cache",
            "pass --no-cache, or set mixup and cutmix to 0",
        )
    if plan.config.objective.method == "dkd":
        raise ConfigError(
            "mixup = 0 and cutmix = 0 for the method 'dkd', which needs one label for each photo",
            f"mixup = {fit.mixup}, cutmix = {fit.cutmix}",
            "set both to 0, or pass another --method",
        )


def teacher_source(teacher: Path, caches: Path | None, viewing: Viewing, settings: ObjectiveSettings) -> TeacherSource:
    """Creates the source of the teacher's maps and features that `settings` need: `caches`, or if None its network."""
    strides, kind = settings.teacher_strides, settings.attention
    per_head = kind == "window" and settings.alignment == "learned"
    attends, hints = settings.weights()["w_att"] > 0, settings.weights()["w_hint"] > 0
    if caches is None:
        maps = strides if attends else ()
        features = strides if hints else ()
        return UncachedTeacher(load_teacher(teacher, maps, kind, per_head=per_head, features=features))
    manifest = read_manifest(teacher / MANIFEST_NAME)
    keys = {
        wanted: cache_key(viewing, manifest, strides=strides, kind=kind, per_head=per_head, features=wanted)
        for wanted in (False, True)
    }
    # A cache with features serves methods that do not need them, too.
    stored = hints or ((caches / digest_of(keys[True])).exists() and not (caches / digest_of(keys[False])).exists())

    def load() -> LiveTeacher:
        # Compute maps also for methods that do not need them, so that all methods share one cache.
        try:
            return load_teacher(teacher, strides, kind, per_head=per_head, features=strides if stored else ())
        except ModelError:
            if attends or stored:
                raise
            return load_teacher(teacher, (), kind, per_head=False)

    return CachedTeacher(caches, keys[stored], viewing, load)


def _objective(plan: RunPlan, model: nn.Module, teacher: TeacherSource | None) -> DistillationObjective:
    settings, classes = plan.config.objective, len(plan.prepared.classes)
    method, weights = get_method(settings.method), settings.weights()
    if weights["w_kd"] and classes < method.min_classes:
        raise ConfigError(
            f"at least {method.min_classes} classes for the method '{method.name}'", str(classes), "pass --method kd"
        )
    compares_stages = weights["w_att"] or weights["w_hint"]
    pairs = [StagePair(*astuple(pair)) for pair in settings.pairs] if compares_stages else []
    with StageTap(model, {pair.student for pair in pairs}) as tap:
        student_channels = {pair.student: tap.channels(pair.student) for pair in pairs}
    return DistillationObjective(
        method,
        **weights,
        hint_share=settings.hint_share,
        temperature=settings.temperature,
        label_smoothing=plan.fit.label_smoothing,
        labelled_share=plan.viewing.labelled / len(plan.viewing.samples),
        pairs=pairs,
        student_channels=student_channels,
        teacher_channels=teacher.feature_counts() if teacher is not None else {},
        teacher_maps=teacher.map_counts() if teacher is not None else {},
        alignment=settings.alignment,
        distance=settings.distance,
        warmup=settings.att_warmup,
        decay=settings.att_decay,
    )
