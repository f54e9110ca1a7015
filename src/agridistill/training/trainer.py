"""Creates Lightning's trainer, with callbacks for checkpoints, best weights, the log of epochs and progress."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from agridistill.errors import ConfigError
from agridistill.evaluation.learning import count
from agridistill.progress import hidden_displays, quiet_loggers, stderr_console
from agridistill.runtime.backends import glibc
from agridistill.storage import csv_text, replacing, write_text
from agridistill.training.run_folder import RunFolder
from agridistill.training.settings import FitSettings

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
# Long, because processes wait while others build the teacher's cache, and during the evaluation in rank 0.
_TIMEOUT = timedelta(days=2)
# Least width of a terminal, in columns, that has room for the scores, and for the word "left", beside the bar.
_WIDE, _NARROW = 100, 70
_CHECKPOINT_PAUSE_S = 10.0


def create_trainer(fit: FitSettings, folder: RunFolder, callbacks: Sequence[Callback]) -> lightning.Trainer:
    """Creates Lightning's trainer for a run; `callbacks` run before progress and checkpoint.

    Raises:
        ConfigError: the machine does not have the devices that `fit` sets.
    """
    checkpoint = TimelyCheckpoint(
        dirpath=folder.path, filename=folder.checkpoint.stem, save_on_train_epoch_end=True, enable_version_counter=False
    )
    early_stop = [PatientStop(fit.patience)] if fit.patience else []
    try:
        with quiet_lightning():
            return lightning.Trainer(
                max_epochs=fit.epochs,
                devices=fit.devices,
                num_nodes=fit.nodes,
                strategy=DDPStrategy(timeout=_TIMEOUT) if fit.processes > 1 else "auto",
                precision="bf16-mixed" if fit.precision == "bf16" else "32-true",
                logger=TensorBoardLogger(folder.path, name="", version="tensorboard"),
                # The checkpoint comes last, because it stores the state of the others at the end of the epoch.
                callbacks=[*early_stop, *callbacks, ProgressLine(folder.path.name), checkpoint],
                plugins=[WholeCheckpoints()],
                default_root_dir=folder.path,
                gradient_clip_val=fit.clip_grad or None,
                num_sanity_val_steps=0,
                log_every_n_steps=20,
                enable_progress_bar=False,
                enable_model_summary=False,
                use_distributed_sampler=False,
            )
    except MisconfigurationException as error:
        expected = f"a machine with the GPUs or processes for devices = {fit.devices}, nodes = {fit.nodes}"
        raise ConfigError(expected, str(error).splitlines()[0][:200], "lower --devices or --nodes") from None


class TimelyCheckpoint(ModelCheckpoint):
    """Saves a checkpoint after the first epoch, after the last one, and in between at most every 10 s.

    With few photos, an epoch takes one or two seconds: writing 30 to 50 MB after each would wear out a flash disk, and
    several runs on one disk would wait for it.
    """

    _due_s = 0.0

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        is_last = trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs
        # The first process decides for all of them, because they also save together.
        if trainer.strategy.broadcast(is_last or time.monotonic() >= self._due_s):
            super().on_train_epoch_end(trainer, pl_module)
            self._due_s = time.monotonic() + _CHECKPOINT_PAUSE_S


class WholeCheckpoints(TorchCheckpointIO):
    """Writes each checkpoint completely or not at all.

    Lightning writes to the system's temporary folder and then moves the file. Across file systems this is a copy: a
    full disk or a kill would leave an incomplete file instead of the last good checkpoint.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        with replacing(Path(path)) as temporary:
            try:
                # Open the file in Python: torch would raise a RuntimeError without the reason for a full disk.
                with temporary.open("wb") as file:
                    torch.save(checkpoint, file)
            except (OSError, RuntimeError) as error:
                refused = error if isinstance(error, OSError) else error.__context__
                if not isinstance(refused, OSError):
                    raise
                raise OSError(refused.errno, refused.strerror, str(path)) from error


class PatientStop(EarlyStopping):
    """Ends the training after `patience` epochs without a higher validation accuracy.

    Epochs of the first stage, in which the student imitates feature maps, do not count.
    """

    def __init__(self, patience: int) -> None:
        super().__init__("val/accuracy", patience=patience, mode="max", check_on_train_epoch_end=False)

    def on_validation_end(self, trainer: lightning.Trainer, module: Any) -> None:
        if not module.objective.in_first_stage(module.progress):
            super().on_validation_end(trainer, module)


def stopped_early(saved: Mapping[str, Any], fit: FitSettings) -> bool:
    """Returns whether `PatientStop` ended the run of the checkpoint `saved`; Lightning itself would continue it."""
    states = [state for name, state in saved["callbacks"].items() if name.startswith(PatientStop.__name__)]
    return fit.patience > 0 and any(state["wait_count"] >= fit.patience for state in states)


class EpochLog(Callback):
    """Writes `metrics.csv`, with one row for each epoch; a resumed run continues the file.

    Its columns are "epoch" (from 1), each loss term ("train/…"), "val/accuracy", "val/nll", "lr", "train_s" (without
    validation) and "photos_per_s".
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, float]] = []
        self._start, self._train_s, self._photos = 0.0, 0.0, 0

    def on_train_epoch_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self._start, self._train_s, self._photos = time.perf_counter(), 0.0, 0

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Counts the photos, and measures the time so far, which thus does not include validation."""
        self._photos += (len(batch.target) if batch is not None else 0) * trainer.world_size
        self._train_s = time.perf_counter() - self._start

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: Any) -> None:
        terms = {f"train/{name}" for name in module.terms}
        logged = {name.removesuffix("_epoch"): value for name, value in sorted(trainer.callback_metrics.items())}
        row = {
            "epoch": float(trainer.current_epoch + 1),
            **{name: float(value) for name, value in logged.items() if name in terms or name.startswith("val/")},
            # The head's learning rate; earlier layers may have a lower one.
            "lr": max(group["lr"] for group in trainer.optimizers[0].param_groups),
            "train_s": self._train_s,
            "photos_per_s": self._photos / max(self._train_s, 1e-9),
        }
        self.rows = [old for old in self.rows if old["epoch"] < row["epoch"]] + [row]
        if trainer.is_global_zero:
            names = list(dict.fromkeys(name for row in self.rows for name in row))
            cells = ([f"{row[name]:.6g}" if name in row else "" for name in names] for row in self.rows)
            write_text(self.path, csv_text([names, *cells]))

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = list(state_dict["rows"])


class ProgressLine(Callback):
    """Shows a progress bar over all steps with the remaining time; `label` is its first word.

    If the output is not a terminal, it prints a line at the start and after every epoch instead.
    """

    def __init__(self, label: str) -> None:
        self.label, self.console = label, stderr_console()
        self._open = contextlib.ExitStack()
        self._bar: Progress | None = None
        self._begin, self._first_epoch = 0.0, 0

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self._begin, self._first_epoch = time.perf_counter(), trainer.current_epoch
        if not trainer.is_global_zero:
            return
        if not self.console.is_terminal:
            epochs, steps = trainer.max_epochs or 0, int(trainer.num_training_batches)
            self.console.print(f"{self.label}  {count(epochs, 'epoch')} of {count(steps, 'step')}")
            return
        self._open.enter_context(hidden_displays(then="evaluating"))
        self._bar = self._open.enter_context(_step_bar(self.console))
        total = int(trainer.estimated_stepping_batches)
        self._bar.add_task(self.label, total=total, completed=trainer.global_step, state="", scores="")
        self._show(trainer, f"step 0/{trainer.num_training_batches}")
        self._bar.refresh()  # draw it now, because the first step may take long

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._show(trainer, f"step {batch_idx + 1}/{trainer.num_training_batches}")

    def on_validation_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self._show(trainer, "validation")

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        if self._bar is not None or not trainer.is_global_zero:
            return
        done, total = trainer.current_epoch + 1, trainer.max_epochs or 0
        pace_s = (time.perf_counter() - self._begin) / max(1, done - self._first_epoch)
        left = f"{pace_s * (total - done) / 60:.1f} min left"
        self.console.print(f"{self.label}  epoch {done}/{total}  {_scores(trainer.callback_metrics)}  {left}")

    def teardown(self, trainer: lightning.Trainer, module: lightning.LightningModule, stage: str) -> None:
        self._open.close()

    def on_exception(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, exception: BaseException
    ) -> None:
        self._open.close()

    def _show(self, trainer: lightning.Trainer, state: str) -> None:
        if self._bar is not None:
            state = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}, {state}"
            task, scores = self._bar.task_ids[0], _scores(trainer.callback_metrics)
            self._bar.update(task, completed=trainer.global_step, state=state, scores=scores)


def _step_bar(console: Console) -> Progress:
    """Creates a progress bar that fits the width of the terminal; on a narrow terminal it shows no scores."""
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
        redirect_stdout=False,  # otherwise rich would redirect the caller's prints to stderr
        refresh_per_second=5,
        speed_estimate_period=600,  # longer than a validation, in which no step is made
    )


def _scores(metrics: Mapping[str, Any]) -> str:
    loss = metrics.get("train/total_epoch", metrics.get("train/total"))
    found = {"loss {:.3f}": loss, "val accuracy {:.1%}": metrics.get("val/accuracy")}
    return "  ".join(text.format(float(value)) for text, value in found.items() if value is not None)


def keep_freed_memory() -> None:
    """Makes glibc keep the memory of freed tensors for the next step instead of returning it to the system.

    By default, the kernel maps and clears the pages of every tensor over 32 MB again in every step. That takes up to a
    third of a MobileNetV3 training step on a CPU.
    """
    library = glibc()
    if library is not None:
        library.mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        library.mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


@contextlib.contextmanager
def quiet_lightning() -> Iterator[None]:
    """Hides Lightning's and torch's hints and warnings, which are for programmers."""
    names = ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero")
    with quiet_loggers(*names), warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning.*")
        warnings.filterwarnings("ignore", module="torch.*")
        yield
