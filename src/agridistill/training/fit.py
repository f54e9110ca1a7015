"""One pass through a run: writes its start, trains with Lightning, and hands over to the evaluation."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack, closing, nullcontext
from dataclasses import asdict
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback

from agridistill.data.split import write_split
from agridistill.data.views import SPARE_BYTES, KeptViews
from agridistill.manifest import ModelManifest, sha256_of
from agridistill.models import describe_start
from agridistill.progress import is_first_process
from agridistill.storage import only_one
from agridistill.teacher_cache import CachedTeacher
from agridistill.training.callbacks import BestWeights, BuildCache, EpochLog, SameEverywhere
from agridistill.training.head import FitHead
from agridistill.training.parts import RunParts, RunPlan, build_parts
from agridistill.training.result import RunResult, complete_run, read_result
from agridistill.training.run_folder import run_of
from agridistill.training.trainer import (
    barrier_on_exit,
    create_trainer,
    gather_all,
    interruptible,
    keep_freed_memory,
    quiet_lightning,
    require_share_for_each,
    stopped_early,
    translate_peer_failure,
)

logger = logging.getLogger(__name__)


def carry_out(plan: RunPlan) -> RunResult:
    """Builds the parts, writes the start of the run folder, trains, and evaluates; a resume does what is left.

    Raises:
        AgriDistillError: settings, photos, weights and teacher do not fit each other, or another process of the run
            failed.
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
        # Again, under the lock: another process may have started while the photos were read.
        plan.folder.require_startable(resume=plan.resume)
        if plan.fit.keep_views:
            _warn_about_kept_views(plan)
        if plan.resume:
            plan.folder.require_same_recipe(plan.config)
            plan.folder.require_same_teacher(plan.teacher_sha256)
        else:
            _write_start(plan, parts.precision)
        return train_parts(plan, parts, saved)


def train_parts(plan: RunPlan, parts: RunParts, saved: Mapping[str, Any] | None) -> RunResult:
    """Trains the epochs after the checkpoint `saved` with Lightning, then completes the run folder in rank 0."""
    fit, prepared, folder = plan.fit, plan.prepared, plan.folder
    first = is_first_process(fit.processes)
    best, log = BestWeights(folder.weights, len(prepared.val)), EpochLog(folder.metrics)
    if saved is not None and (folder.manifest.exists() or stopped_early(saved, fit)):
        # Training was done, only the evaluation is left, for which rank 0 needs no other process.
        if not first:
            raise SystemExit(0)
        for callback in (best, log):
            callback.load_state_dict(saved["callbacks"][callback.state_key])
        return _complete(plan, parts, best, log)
    callbacks: list[Callback] = [SameEverywhere({"photos": prepared.fingerprint, "recipe": asdict(plan.config)})]
    with ExitStack() as stack:
        if isinstance(parts.teacher, CachedTeacher):
            callbacks.append(BuildCache(parts.teacher, parts.datamodule.workers, gather_all))
            stack.enter_context(closing(parts.teacher))
        if fit.head_first and saved is None:
            callbacks.append(FitHead(plan.viewing, workers=parts.datamodule.workers, balance=fit.balance))
        trainer = create_trainer(fit, folder, parts.precision, [*callbacks, best, log])
        with (
            translate_peer_failure(trainer) if fit.processes > 1 else nullcontext(),
            quiet_lightning(),
            interruptible(),
        ):
            trainer.fit(
                parts.module,
                datamodule=parts.datamodule,
                ckpt_path=folder.checkpoint if saved is not None else None,
                weights_only=True,  # a checkpoint from elsewhere may contain code
            )
    if fit.processes == 1:
        return _complete(plan, parts, best, log)
    with barrier_on_exit(trainer):
        if first:
            _complete(plan, parts, best, log)
    return read_result(folder, prepared.skipped)


def _complete(plan: RunPlan, parts: RunParts, best: BestWeights, log: EpochLog) -> RunResult:
    lineage = {
        "method": plan.config.objective.method,
        "seed": plan.fit.seed,
        "precision": parts.precision,
        "best_epoch": best.epoch + 1,
        "data_fingerprint": plan.prepared.fingerprint,
        "start": plan.folder.read_environment().get("start", {}),
        **({"teacher_sha256": plan.teacher_sha256} if plan.teacher else {}),
    }
    manifest = ModelManifest(
        model=plan.fit.model,
        classes=plan.prepared.classes,
        preprocessing=plan.preprocessing,
        weights_file=plan.folder.weights.name,
        weights_sha256=sha256_of(plan.folder.weights),
        precision="int8" if plan.fit.int8 else "fp32",
        lineage=lineage,
    )
    return complete_run(
        plan.folder,
        plan.prepared,
        manifest,
        parents=[run for run in (plan.teacher, run_of(plan.weights) if plan.weights else None) if run],
        best_epoch=best.epoch + 1,
        train_s=sum(row["train_s"] for row in log.rows),
    )


def _write_start(plan: RunPlan, precision: str) -> None:
    """Environment, split and recipe, in this order: a folder with a recipe is a run that can be resumed."""
    fit, prepared, folder, data = plan.fit, plan.prepared, plan.folder, plan.config.data
    labels = Counter(sample.label for sample in prepared.train)
    folder.write_environment(
        {
            "seed": fit.seed,
            "data": str(prepared.root.resolve()),
            "data_fingerprint": prepared.fingerprint,
            "precision": precision,
            "start": describe_start(fit.model, fit.pretrained, plan.weights),
            "normalisation": {"mean": plan.preprocessing.mean, "std": plan.preprocessing.std},
            "skipped": [list(item) for item in prepared.skipped],
            "teacher": str(plan.teacher.path.resolve()) if plan.teacher else None,
            "teacher_sha256": plan.teacher_sha256,
            "layout": prepared.layout.to_json(),
            "train_photos": {name: labels[label] for label, name in enumerate(prepared.classes)},
        }
    )
    write_split(
        folder.splits,
        prepared.split,
        seed=data.split_seed if prepared.cut else None,
        val_fraction=data.val_fraction if "val" in prepared.cut else None,
        test_fraction=data.test_fraction if "test" in prepared.cut else None,
        fingerprint=prepared.fingerprint,
    )
    folder.write_recipe(plan.config)


def _warn_about_kept_views(plan: RunPlan) -> None:
    """Warns where --keep-views does not help."""
    viewing, epochs = plan.viewing, plan.fit.epochs
    cached = plan.caches is not None  # a teacher's cache sees every view as well
    if not cached and viewing.views >= epochs:
        logger.warning(
            "every epoch shows new views (views = %d, epochs = %d): keeping them helps only another run of the same "
            "views; --set views=N below the epochs",
            viewing.views,
            epochs,
        )
    kept = KeptViews(viewing.root, viewing.preprocessing, viewing.augmentation)
    missing = len(viewing.samples) * (viewing.views if cached else min(viewing.views, epochs))
    room = kept.room_bytes() // kept.view_bytes
    if missing > room:  # counted only where it matters: there may be many
        keys = (viewing.key(view, photo) for photo in range(len(viewing.samples)) for view in range(viewing.views))
        missing -= kept.count((viewing.samples[key.position].path, key.seed) for key in keys)
    if missing > room:
        logger.warning(
            "room for %d of the %d views to keep in '%s', beside %.0f GB left free; the others are drawn each time",
            room,
            missing,
            kept.folder,
            SPARE_BYTES / 1e9,
        )
