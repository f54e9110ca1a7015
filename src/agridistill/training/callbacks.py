"""What happens around the epochs: best weights, the epoch log, progress with time left."""

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
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)

from agridistill import terminal
from agridistill.errors import RunError
from agridistill.evaluation.verdict import count
from agridistill.manifest import sha256_of
from agridistill.models.factory import save_weights
from agridistill.progress import ProgressCallback, silent
from agridistill.storage import write_text
from agridistill.training.agreement import gather_all
from agridistill.training.cached_teacher import CachedTeacher
from agridistill.training.module import DistillationModule

# Columns of a screen that holds the scores beside the bar, and of one that holds words beside the figures.
_WIDE, _NARROW = 100, 70


class BestWeights(Callback):
    """Writes the network whenever it is better on the validation split than in any epoch before.

    Better means higher accuracy, and at equal accuracy lower negative log-likelihood. With few validation photos the
    last epoch is kept, where the learning rate has come to 0: they would choose an early epoch by chance.

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
        """Compares and writes."""
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
        """The best score so far, for a resume."""
        return {"best": list(self.best) if self.best else None, "epoch": self.epoch, "sha256": self._sha256}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the best score.

        Weights that a killed epoch wrote behind its checkpoint are better than all before them; that epoch comes again,
        perhaps not to the last bit, and what it is then stands in the file.
        """
        best = state_dict["best"]
        self.epoch, self._sha256 = state_dict["epoch"], state_dict.get("sha256")
        theirs = self._sha256 is None or (self.path.exists() and sha256_of(self.path) == self._sha256)
        self.best = (best[0], best[1]) if best and theirs else None


class PatientStop(EarlyStopping):
    """Ends a run whose validation accuracy has not risen for so many epochs.

    Those in which the student learns features do not count: its head has not begun to learn.
    """

    def __init__(self, patience: int) -> None:
        super().__init__("val/accuracy", patience=patience, mode="max", check_on_train_epoch_end=False)

    def on_validation_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Counts."""
        if not (isinstance(module, DistillationModule) and module.objective.in_first_stage(module.progress)):
            super().on_validation_end(trainer, module)


class EpochLog(Callback):
    """`metrics.csv`: one row an epoch with every loss term, written whole each time; a resume goes on in it."""

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
        """Counts photos; the clock is read here so that validation is not counted as training."""
        self._photos += (len(batch.target) if batch is not None else 0) * trainer.world_size
        self._train_seconds = time.perf_counter() - self._start

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Adds the epoch's row."""
        logged = {name.removesuffix("_epoch"): value for name, value in sorted(trainer.callback_metrics.items())}
        terms = {f"train/{name}" for name in (module.terms if isinstance(module, DistillationModule) else ())}
        metrics = {name: float(value) for name, value in logged.items() if name in terms or name.startswith("val/")}
        row = {
            "epoch": float(trainer.current_epoch + 1),
            **metrics,
            # Of the head; earlier layers may have less.
            "lr": max(group["lr"] for group in trainer.optimizers[0].param_groups),
            "train_s": self._train_seconds,
            "photos_per_s": self._photos / max(self._train_seconds, 1e-9),
        }
        self.rows = [old for old in self.rows if old["epoch"] < row["epoch"]] + [row]
        if trainer.is_global_zero:
            self._write()

    def state_dict(self) -> dict[str, Any]:
        """The rows so far."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the rows."""
        self.rows = list(state_dict["rows"])

    def _write(self) -> None:
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: _short(value) for name, value in row.items()} for row in self.rows)
        write_text(self.path, text.getvalue())


class SameEverywhere(Callback):
    """Stops a run whose processes do not see the same photos and settings: they would train past each other."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self.document = document

    def on_fit_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Compares with the first process."""
        for name, value in trainer.strategy.broadcast(self.document).items():
            if value != self.document[name]:
                raise RunError(
                    f"the same {name} in every process", f"others in process {trainer.global_rank}", "compare them"
                )


class BuildCache(Callback):
    """Builds what the teacher's cache lacks before the first step, every process its share, and tells the time left."""

    def __init__(self, teacher: CachedTeacher, workers: int, console: Console | None = None) -> None:
        self.teacher, self.workers = teacher, workers
        self.console = console or terminal.stderr

    def on_fit_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Builds."""
        with self._shown(trainer.is_global_zero) as progress:
            self.teacher.prepare(
                module.device,
                workers=self.workers,
                rank=trainer.global_rank,
                world=trainer.world_size,
                gather=gather_all,
                progress=progress,
            )

    @contextmanager
    def _shown(self, talks: bool) -> Iterator[ProgressCallback]:
        if not talks:
            yield silent
            return
        begin, told, first = 0.0, -1, 0
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        bar = Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal)
        with terminal.alone(then="preparing"), bar:
            task = bar.add_task("asking the teacher", total=None, visible=False)

            def show(done: int, total: int) -> None:
                nonlocal begin, told, first
                bar.update(task, completed=done, total=total, visible=True)
                if told < 0:
                    # The first batch also waits for the teacher and the loaders: the pace is that of the others.
                    begin, told, first = time.perf_counter(), 0, done
                    size = self.teacher.size_bytes / 1e6
                    line = f"asking the teacher about {total:,} views, once: {size:.1f} MB in {self.teacher.folder}"
                    self.console.print(line, markup=False, soft_wrap=True)
                    return
                left = (time.perf_counter() - begin) / (done - first) * (total - done)
                tenth = 1 + 10 * done // total
                if tenth > told and (told == 0 or not self.console.is_terminal):
                    told = tenth
                    line = f"teacher cache  {done:,} of {total:,} views  about {left / 60:.1f} min left"
                    self.console.print(line, markup=False, soft_wrap=True)

            yield show


class ProgressLine(Callback):
    """A bar over all steps with the time left; where stderr is no terminal, a line at the start and one an epoch."""

    def __init__(self, label: str, console: Console | None = None) -> None:
        self.label = label
        self.console = console or terminal.stderr
        self._open = ExitStack()
        self._progress: Progress | None = None
        self._begin = 0.0
        self._first_epoch = 0

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Shows the bar."""
        self._begin, self._first_epoch = time.perf_counter(), trainer.current_epoch
        if not trainer.is_global_zero:
            return
        if not self.console.is_terminal:
            epochs, steps = trainer.max_epochs or 0, int(trainer.num_training_batches)
            told = f"{count(epochs, 'epoch')} of {count(steps, 'step')}"
            self.console.print(f"{self.label}  {told}", markup=False, soft_wrap=True)
            return
        self._open.enter_context(terminal.alone(then="evaluating"))
        self._progress = self._open.enter_context(_step_bar(self.console))
        total = int(trainer.estimated_stepping_batches)
        state = _position(trainer, 0)
        self._progress.add_task(self.label, total=total, completed=trainer.global_step, state=state, scores="")

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Moves the bar."""
        self._show(trainer, _position(trainer, batch_idx + 1))

    def on_validation_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Says why the bar stands still."""
        self._show(trainer, f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}, validation")

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Without a terminal: a line with the time left."""
        if self._progress is not None or not trainer.is_global_zero:
            return
        done, total = trainer.current_epoch + 1, trainer.max_epochs or 0
        pace = (time.perf_counter() - self._begin) / max(1, done - self._first_epoch)
        left = f"{pace * (total - done) / 60:.1f} min left"
        line = f"{self.label}  epoch {done}/{total}  {_state(trainer.callback_metrics)}  {left}"
        self.console.print(line, markup=False, soft_wrap=True)

    def teardown(self, trainer: lightning.Trainer, module: lightning.LightningModule, stage: str) -> None:
        """Takes the bar away, also after an error or Ctrl-C."""
        self._progress = None
        self._open.close()

    def _show(self, trainer: lightning.Trainer, state: str) -> None:
        if self._progress is not None:
            task, scores = self._progress.task_ids[0], _state(trainer.callback_metrics)
            self._progress.update(task, completed=trainer.global_step, state=state, scores=scores)


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
        # stdout stays the caller's: rich would send to stderr what is printed there meanwhile.
        redirect_stdout=False,
        refresh_per_second=5,
        # Longer than a validation, in which no step is made.
        speed_estimate_period=600,
    )


def _position(trainer: lightning.Trainer, step: int) -> str:
    steps = trainer.num_training_batches
    return f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}, step {step}/{steps}"


def _state(metrics: Mapping[str, Any]) -> str:
    parts = []
    for name, label in (("train/total", "loss"), ("val/accuracy", "val accuracy")):
        value = metrics.get(f"{name}_epoch", metrics.get(name))
        if value is not None:
            parts.append(f"{label} {float(value):.3f}" if label == "loss" else f"{label} {float(value):.1%}")
    return "  ".join(parts)


def _short(value: float) -> str:
    return f"{value:.6g}"
