"""Carries out a run: writes the first files, trains with Lightning, calibrates, evaluates and completes the folder."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any

import lightning
import torch.distributed
from lightning.pytorch.callbacks import Callback

from agridistill.data.inspection import phashes_of
from agridistill.data.likeness import read_learnt, write_learnt
from agridistill.data.split import write_split
from agridistill.data.unlabelled import UnlabelledPhotos
from agridistill.data.views import SPARE_BYTES, KeptViews
from agridistill.errors import DataError, RunError
from agridistill.evaluation.calibration import familiarity_of, fit_answering
from agridistill.evaluation.evaluate import evaluate, predict_logits
from agridistill.evaluation.learning import read_learning
from agridistill.evaluation.verdict import judge
from agridistill.manifest import ModelManifest, read_manifest, sha256_of
from agridistill.models import TorchBackend, complexity, describe_start, network_of
from agridistill.progress import is_first_process
from agridistill.storage import only_one, write_json
from agridistill.teacher_cache import CachedTeacher
from agridistill.training.callbacks import (
    AveragedWeights,
    BestWeights,
    BuildCache,
    FitHead,
    RequireUnlabelled,
    SameEverywhere,
)
from agridistill.training.parts import RunParts, RunPlan, build_parts
from agridistill.training.run_folder import RunResult, run_of
from agridistill.training.settings import FitSettings
from agridistill.training.trainer import EpochLog, create_trainer, keep_freed_memory, quiet_lightning, stopped_early

logger = logging.getLogger(__name__)

# Parts of the messages that gloo and NCCL give if another process has ended.
_LOST = ("closed by peer", "reset by peer", "Broken pipe", "Socket closed", "remote process exited")


def carry_out(plan: RunPlan) -> RunResult:
    """Carries out a run: creates its parts, writes its first files, trains from the last saved epoch, and evaluates.

    Raises:
        AgriDistillError: settings, photos, weights and teacher are incompatible, or another process failed.
    """
    require_share_for_each(plan.fit, train=len(plan.prepared.train), val=len(plan.prepared.val))
    keep_freed_memory()
    saved = plan.folder.read_checkpoint() if plan.resume else None
    _ = plan.viewing  # before seeding: the normalisation of starting weights may be looked up in a new network
    lightning.seed_everything(plan.fit.seed, verbose=False)
    parts = build_parts(plan, restored=saved is not None)
    if not is_first_process(plan.fit.processes):
        return train_parts(plan, parts, saved)
    plan.folder.path.mkdir(parents=True, exist_ok=True)
    with only_one(plan.folder.lock, f"run in '{plan.folder.path}'"):
        # Check again under the lock, because another process may have started while the photos were read.
        plan.folder.require_startable(resume=plan.resume)
        for half_written in plan.folder.path.glob(".*.part"):  # left by a kill
            half_written.unlink(missing_ok=True)
        if plan.fit.keep_views:
            _warn_about_kept_views(plan)
        if plan.resume:
            plan.folder.require_same_recipe(plan.config, but="unlabelled")  # its photos are the same; it may have moved
            plan.folder.require_same_teacher(plan.teacher_sha256)
            plan.folder.require_same_features(plan.features)
        else:
            _write_start(plan)
        return train_parts(plan, parts, saved)


def require_share_for_each(fit: FitSettings, *, train: int, val: int) -> None:
    """Raises a DataError if there are fewer training photos or validation photos than processes."""
    for name, photos in (("training", train), ("validation", val)):
        if photos < fit.processes:
            expected = f"at least {fit.processes} {name} photos, one for each process"
            raise DataError(expected, str(photos), "lower --devices or --nodes, or add photos")


def train_parts(plan: RunPlan, parts: RunParts, saved: Mapping[str, Any] | None) -> RunResult:
    """Trains the epochs that the checkpoint `saved` lacks; then rank 0 calibrates, evaluates and writes last files."""
    fit, prepared, folder = plan.fit, plan.prepared, plan.folder
    first = is_first_process(fit.processes)
    best, log = BestWeights(folder.weights, len(prepared.val)), EpochLog(folder.metrics)
    if saved is not None and (folder.manifest.exists() or stopped_early(saved, fit)):
        # The training is done. Only the evaluation is left, for which rank 0 needs no other process.
        if not first:
            raise SystemExit(0)
        for callback in (best, log):
            callback.load_state_dict(saved["callbacks"][callback.state_key])
        return _complete(plan, best, log)
    callbacks: list[Callback] = [SameEverywhere({"photos": plan.viewing.fingerprint, "recipe": asdict(plan.config)})]
    if prepared.unlabelled:
        callbacks.append(RequireUnlabelled(prepared.unlabelled.root))
    if isinstance(parts.teacher, CachedTeacher):
        callbacks.append(BuildCache(parts.teacher, parts.datamodule.workers))
    if fit.head_first and saved is None:
        callbacks.append(FitHead(plan.viewing.with_labels(), workers=parts.datamodule.workers, balance=fit.balance))
    average = [AveragedWeights(fit.ema)] if fit.ema else []
    trainer = create_trainer(fit, folder, [*callbacks, best, *average, log])
    closed = contextlib.closing(parts.teacher) if isinstance(parts.teacher, CachedTeacher) else contextlib.nullcontext()
    with closed, _peer_failure_translated(trainer), quiet_lightning(), _interruptible():
        trainer.fit(
            parts.module,
            datamodule=parts.datamodule,
            ckpt_path=folder.checkpoint if saved is not None else None,
            weights_only=True,  # a checkpoint from an unknown source may contain code
        )
    if fit.processes == 1:
        return _complete(plan, best, log)
    with _barrier_on_exit(trainer):
        if first:
            _complete(plan, best, log)
    return folder.read_result()


def _complete(plan: RunPlan, best: BestWeights, log: EpochLog) -> RunResult:
    """Calibrates on the validation split, evaluates on the test split, and writes the last files of the run."""
    fit, folder, prepared = plan.fit, plan.folder, plan.prepared
    manifest = ModelManifest(
        model=fit.model,
        classes=prepared.classes,
        preprocessing=plan.preprocessing,
        weights_file=folder.weights.name,
        weights_sha256=sha256_of(folder.weights),
        precision="int8" if fit.int8 else "fp32",
        lineage={
            "method": plan.config.objective.method,
            "seed": fit.seed,
            "precision": fit.precision,
            "best_epoch": best.epoch + 1,
            "data_fingerprint": prepared.fingerprint,
            "start": folder.read_environment()["start"],
            **({"teacher_sha256": plan.teacher_sha256} if plan.teacher else {}),
            **({"unlabelled": _described(prepared.unlabelled)} if prepared.unlabelled else {}),
        },
    )
    network = network_of(manifest, folder.path)
    answering = fit_answering(predict_logits(TorchBackend(network, manifest), prepared.val, prepared.root))
    familiarity = familiarity_of(prepared.root, prepared.train, prepared.val, manifest.preprocessing)
    manifest = replace(
        manifest,
        temperature=answering.temperature,
        threshold=answering.abstention.threshold,
        familiarity=familiarity.to_json() if familiarity else {},
    )
    # The model has also learnt from the photos of its teacher, and of the run that it started from.
    parents = [run for run in (plan.teacher, run_of(plan.weights) if plan.weights else None) if run]
    inherited = [read_learnt(run.learnt, read_manifest(run.manifest)) for run in parents if run.manifest.exists()]
    phashes = phashes_of((*prepared.train, *prepared.val), prepared.inspection)
    others = prepared.unlabelled.phashes if prepared.unlabelled else {}
    write_learnt(folder.learnt, prepared.fingerprint, (*phashes.values(), *others.values()), filter(None, inherited))
    # Write the manifest only now, calibrated: a folder with a manifest counts as a usable model.
    manifest.write(folder.manifest)
    cost = complexity(network, manifest.preprocessing.image_size)
    backend = TorchBackend(network, manifest)
    result = evaluate(backend, prepared.test, prepared.root, split="test")
    result = replace(result, parameters=cost.parameters, macs=cost.macs)
    verdict = judge(result, learning=read_learning(folder.path, prepared.classes))
    train_s = sum(row["train_s"] for row in log.rows)
    figures = {"train_s": train_s, "best_epoch": best.epoch + 1, "verdict": verdict.to_json()}
    write_json(folder.evaluation, result.to_json() | figures)
    return RunResult(folder.path, result, best.epoch + 1, train_s, prepared.skipped)


def _write_start(plan: RunPlan) -> None:
    """Writes environment, split and recipe, in this order: a folder with a recipe counts as a run to resume."""
    fit, prepared, folder, data = plan.fit, plan.prepared, plan.folder, plan.config.data
    labels, others = Counter(sample.label for sample in prepared.train), prepared.unlabelled
    folder.write_environment(
        {
            "seed": fit.seed,
            "data": str(prepared.root.resolve()),
            "data_fingerprint": prepared.fingerprint,
            "precision": fit.precision,
            "start": describe_start(fit.model, fit.pretrained, plan.weights),
            "normalisation": {"mean": plan.preprocessing.mean, "std": plan.preprocessing.std},
            "skipped": [list(item) for item in prepared.skipped],
            "teacher": str(plan.teacher.path.resolve()) if plan.teacher else None,
            "teacher_sha256": plan.teacher_sha256,
            "teacher_features": plan.features,
            "layout": prepared.layout.to_json(),
            "train_photos": {name: labels[label] for label, name in enumerate(prepared.classes)},
            "unlabelled": (
                {"folder": str(others.root.resolve()), "skipped": [list(item) for item in others.skipped]}
                | _described(others)
                if others
                else None
            ),
        }
    )
    write_split(
        folder.splits,
        prepared.split,
        seed=data.split_seed if prepared.cut else None,
        val_fraction=data.val_fraction if "val" in prepared.cut else None,
        test_fraction=data.test_fraction if "test" in prepared.cut else None,
        fingerprint=prepared.fingerprint,
        unlabelled=[sample.path for sample in others.samples] if others else None,
    )
    folder.write_recipe(plan.config)


def _described(others: UnlabelledPhotos) -> dict[str, Any]:
    return {"photos": len(others.samples), "fingerprint": others.fingerprint}


def _warn_about_kept_views(plan: RunPlan) -> None:
    """Warns if --keep-views will not help, because views do not repeat or the disk has too little space."""
    viewing, epochs = plan.viewing, plan.fit.epochs
    # The cache of a teacher with the same image size reads every view as well.
    cached = plan.caches is not None and plan.teacher_size == plan.config.data.image_size
    if not cached and viewing.views >= epochs:
        logger.warning(
            "--keep-views speeds up only later runs, because every epoch of this run uses new views (views = %d, "
            "epochs = %d); pass --set views=N with N below the number of epochs to reuse views in this run",
            viewing.views,
            epochs,
        )
    kept = KeptViews(viewing.root, viewing.preprocessing, viewing.augmentation)
    missing = len(viewing.samples) * (viewing.views if cached else min(viewing.views, epochs))
    room = kept.room_bytes() // kept.view_bytes
    if missing > room:  # count the views on disk only in this case, because there may be many
        keys = (viewing.key(view, photo) for photo in range(len(viewing.samples)) for view in range(viewing.views))
        missing -= kept.count((viewing.samples[key.position].path, key.seed) for key in keys)
    if missing > room:
        logger.warning(
            "--keep-views has room for only %d of %d views in '%s', because %.0f GB of the disk must stay free; "
            "the other views are computed in every epoch",
            room,
            missing,
            kept.folder,
            SPARE_BYTES / 1e9,
        )


@contextlib.contextmanager
def _barrier_on_exit(trainer: lightning.Trainer) -> Iterator[None]:
    """Makes all processes wait for each other at the end of the block; an error ends the processes started here."""
    try:
        yield
        trainer.strategy.barrier()
    except BaseException:
        launcher = trainer.strategy.launcher
        if launcher is not None:
            launcher.kill(signal.SIGTERM)
        raise


@contextlib.contextmanager
def _peer_failure_translated(trainer: lightning.Trainer) -> Iterator[None]:
    """Converts exceptions in the block that come from the end of another process to a RunError."""
    try:
        yield
    except Exception as error:
        if trainer.world_size == 1:
            raise
        # Lightning would kill this process if another one fails. Without the list of processes it cannot, and this
        # process ends by itself, with its exit code.
        if (started := getattr(trainer.strategy.launcher, "procs", None)) is not None:
            started.clear()
        text = str(error)
        # Compare the text of the error, because gloo raises plain runtime errors.
        lost = isinstance(error, RuntimeError) and any(word in text for word in _LOST)
        if not (lost or isinstance(error, torch.distributed.DistError)):
            raise
        raise RunError(
            "all processes of this run to work until its end",
            f"a lost connection to a process that ended before ('{text[:200]}')",
            "read the output of that process for the cause, then continue with --resume",
        ) from error


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Raises KeyboardInterrupt for Ctrl-C in the block: Lightning would exit instead, and disables Ctrl-C later."""
    main_thread = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        if main_thread:
            signal.signal(signal.SIGINT, handler)
