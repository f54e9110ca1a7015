"""Callbacks of a run: best weights, early stop, the epoch log, the teacher's cache, and progress with the time left."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback, EarlyStopping
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from agridistill.errors import RunError
from agridistill.evaluation.learning import count
from agridistill.manifest import sha256_of
from agridistill.models import save_weights
from agridistill.progress import ProgressCallback, hidden_displays, silent, stderr_console
from agridistill.storage import write_text
from agridistill.teacher_cache.build import CachedTeacher, Gather
from agridistill.training.module import DistillationModule

# Columns of a screen with room for the scores, and for words, beside the bar.
_WIDE, _NARROW = 100, 70


class BestWeights(Callback):
    """Saves the network of the best epoch: highest validation accuracy, then lowest negative log-likelihood.

    With few validation photos the last epoch is saved, where the learning rate has come to 0: few photos would choose
    an early epoch by chance.

    Args:
        path: of the weights.
        photos: in the validation split.
    """

    FEW_PHOTOS = 200

    def __init__(self, path: Path, photos: int) -> None:
        self.path, self.photos = path, photos
        self.best: tuple[float, float] | None = None
        self.epoch = -1
        self._sha256: str | None = None

    def on_validation_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Compares and saves."""
        if trainer.sanity_checking or not trainer.is_global_zero or not isinstance(module, DistillationModule):
            return
        metrics = trainer.callback_metrics
        score = (float(metrics["val/accuracy"]), -float(metrics["val/nll"]))
        if self.photos < self.FEW_PHOTOS:
            score = (float(trainer.current_epoch), 0.0)
        if self.best is None or score > self.best:
            self.best, self.epoch = score, trainer.current_epoch
            save_weights(module.model, self.path)
            self._sha256 = sha256_of(self.path)

    def state_dict(self) -> dict[str, Any]:
        """Best score, epoch and checksum of its weights."""
        return {"best": list(self.best) if self.best else None, "epoch": self.epoch, "sha256": self._sha256}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the state, without its score where the weights are of a later epoch, which was killed.

        That epoch is repeated, perhaps not to the last bit, and then its weights replace those in the file.
        """
        best = state_dict["best"]
        self.epoch, self._sha256 = state_dict["epoch"], state_dict.get("sha256")
        unchanged = self._sha256 is None or (self.path.exists() and sha256_of(self.path) == self._sha256)
        self.best = (best[0], best[1]) if best and unchanged else None


class PatientStop(EarlyStopping):
    """Ends a run whose validation accuracy has not risen for `patience` epochs after the first stage."""

    def __init__(self, patience: int) -> None:
        super().__init__("val/accuracy", patience=patience, mode="max", check_on_train_epoch_end=False)

    def on_validation_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Counts epochs without a better accuracy."""
        if not (isinstance(module, DistillationModule) and module.objective.in_first_stage(module.progress)):
            super().on_validation_end(trainer, module)


class EpochLog(Callback):
    """`metrics.csv`: one row an epoch with every loss term; a resume continues it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, float]] = []
        self._start = 0.0
        self._train_seconds = 0.0
        self._photos = 0

    def on_train_epoch_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Starts the clock."""
        self._start, self._train_seconds, self._photos = time.perf_counter(), 0.0, 0

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Counts photos; reads the clock here, so that validation does not count as training."""
        self._photos += (len(batch.target) if batch is not None else 0) * trainer.world_size
        self._train_seconds = time.perf_counter() - self._start

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Adds the epoch's row and writes the file."""
        logged = {name.removesuffix("_epoch"): value for name, value in sorted(trainer.callback_metrics.items())}
        terms = {f"train/{name}" for name in (module.terms if isinstance(module, DistillationModule) else ())}
        row = {
            "epoch": float(trainer.current_epoch + 1),
            **{name: float(value) for name, value in logged.items() if name in terms or name.startswith("val/")},
            # Of the head; earlier layers may have less.
            "lr": max(group["lr"] for group in trainer.optimizers[0].param_groups),
            "train_s": self._train_seconds,
            "photos_per_s": self._photos / max(self._train_seconds, 1e-9),
        }
        self.rows = [old for old in self.rows if old["epoch"] < row["epoch"]] + [row]
        if trainer.is_global_zero:
            text = io.StringIO()
            names = list(dict.fromkeys(name for row in self.rows for name in row))
            writer = csv.DictWriter(text, names, lineterminator="\n")
            writer.writeheader()
            writer.writerows({name: f"{value:.6g}" for name, value in row.items()} for row in self.rows)
            write_text(self.path, text.getvalue())

    def state_dict(self) -> dict[str, Any]:
        """The rows so far."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the rows."""
        self.rows = list(state_dict["rows"])


class SameEverywhere(Callback):
    """Stops a run whose processes do not have the same photos and settings."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self.document = document

    def on_fit_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Compares with rank 0."""
        for name, value in trainer.strategy.broadcast(self.document).items():
            if value != self.document[name]:
                got = f"others in process {trainer.global_rank}"
                raise RunError(f"the same {name} in every process", got, "compare them")


class BuildCache(Callback):
    """Builds what is missing in the teacher's cache before the first step; every process builds its share."""

    def __init__(self, teacher: CachedTeacher, workers: int, gather: Gather) -> None:
        self.teacher, self.workers, self.gather = teacher, workers, gather

    def on_fit_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Builds."""
        with self._progress(visible=trainer.is_global_zero) as progress:
            self.teacher.prepare(
                module.device,
                workers=self.workers,
                rank=trainer.global_rank,
                world=trainer.world_size,
                gather=self.gather,
                progress=progress,
            )

    @contextmanager
    def _progress(self, *, visible: bool) -> Iterator[ProgressCallback]:
        """A bar with the time left; without a terminal a line at each tenth. One line first, in both cases."""
        if not visible:
            yield silent
            return
        console = stderr_console()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        begin, first, next_tenth = 0.0, -1, 1
        with hidden_displays(then="preparing"), bar:
            task = bar.add_task("teacher cache", total=None, visible=False)

            def show(done: int, total: int) -> None:
                nonlocal begin, first, next_tenth
                bar.update(task, completed=done, total=total, visible=True)
                if first < 0:
                    # The first batch includes the start of teacher and loaders: it does not count for the time left.
                    begin, first = time.perf_counter(), done
                    size = f"{self.teacher.size_bytes / 1e6:.1f} MB in {self.teacher.folder}"
                    _print(console, f"teacher cache  {total:,} views to compute, once: {size}")
                elif not console.is_terminal and 10 * done // total >= next_tenth:
                    next_tenth = 10 * done // total + 1
                    left_s = (time.perf_counter() - begin) / (done - first) * (total - done)
                    line = f"{done:,} of {total:,} views  about {left_s / 60:.1f} min left"
                    _print(console, f"teacher cache  {line}")

            yield show


class ProgressLine(Callback):
    """A bar over all steps with the time left; without a terminal a line at the start and one an epoch."""

    def __init__(self, label: str) -> None:
        self.label, self.console = label, stderr_console()
        self._open = ExitStack()
        self._progress: Progress | None = None
        self._begin = 0.0
        self._first_epoch = 0

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Draws the bar."""
        self._begin, self._first_epoch = time.perf_counter(), trainer.current_epoch
        if not trainer.is_global_zero:
            return
        if not self.console.is_terminal:
            epochs, steps = trainer.max_epochs or 0, int(trainer.num_training_batches)
            _print(self.console, f"{self.label}  {count(epochs, 'epoch')} of {count(steps, 'step')}")
            return
        self._open.enter_context(hidden_displays(then="evaluating"))
        self._progress = self._open.enter_context(_step_bar(self.console))
        total = int(trainer.estimated_stepping_batches)
        self._progress.add_task(self.label, total=total, completed=trainer.global_step, state="", scores="")
        self._show(trainer, f"step 0/{trainer.num_training_batches}")
        self._progress.refresh()  # the first step may take long

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Moves the bar."""
        self._show(trainer, f"step {batch_idx + 1}/{trainer.num_training_batches}")

    def on_validation_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Says why the bar does not move."""
        self._show(trainer, "validation")

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Without a terminal: a line with the time left."""
        if self._progress is not None or not trainer.is_global_zero:
            return
        done, total = trainer.current_epoch + 1, trainer.max_epochs or 0
        pace_s = (time.perf_counter() - self._begin) / max(1, done - self._first_epoch)
        left = f"{pace_s * (total - done) / 60:.1f} min left"
        _print(self.console, f"{self.label}  epoch {done}/{total}  {_scores(trainer.callback_metrics)}  {left}")

    def teardown(self, trainer: lightning.Trainer, module: lightning.LightningModule, stage: str) -> None:
        """Removes the bar, also after an error or Ctrl-C."""
        self._progress = None
        self._open.close()

    def _show(self, trainer: lightning.Trainer, state: str) -> None:
        if self._progress is not None:
            state = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}, {state}"
            task, scores = self._progress.task_ids[0], _scores(trainer.callback_metrics)
            self._progress.update(task, completed=trainer.global_step, state=state, scores=scores)


def _print(console: Console, line: str) -> None:
    console.print(line, markup=False, soft_wrap=True)


def _step_bar(console: Console) -> Progress:
    """A bar that fits the screen: a narrow one shows no scores."""
    wide = console.width >= _WIDE
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(max(10, min(40, console.width - (90 if wide else 50)))),
        TextColumn("{task.fields[state]}", markup=False),
        *([TextColumn("{task.fields[scores]}", markup=False)] if wide else []),
        TimeRemainingColumn(),
        *([TextColumn("left")] if console.width >= _NARROW else []),
        console=console,
        transient=True,
        redirect_stdout=False,  # rich would send to stderr what the caller prints meanwhile
        refresh_per_second=5,
        speed_estimate_period=600,  # longer than a validation, in which no step is made
    )


def _scores(metrics: Mapping[str, Any]) -> str:
    parts = []
    for name, text in (("train/total", "loss {:.3f}"), ("val/accuracy", "val accuracy {:.1%}")):
        value = metrics.get(f"{name}_epoch", metrics.get(name))
        if value is not None:
            parts.append(text.format(float(value)))
    return "  ".join(parts)
