"""Lightning's trainer as our runs use it: quiet, interruptible, with our callbacks."""

from __future__ import annotations

import logging
import signal
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning
import torch
import torch.distributed
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy

from agridistill.errors import ConfigError, DataError, RunError
from agridistill.storage import replacing
from agridistill.training.callbacks import PatientStop, ProgressLine
from agridistill.training.run_folder import RunFolder
from agridistill.training.settings import FitSettings

# Processes wait for each other's share of the teacher's cache, and for the evaluation that one of them does.
_PATIENCE = timedelta(days=2)

# What gloo and NCCL say where a process that they wait for is gone.
_LOST = ("closed by peer", "reset by peer", "Broken pipe", "Socket closed", "remote process exited")


def require_share_for_each(fit: FitSettings, *, train: int, val: int) -> None:
    """Checks that every process has photos to learn from and to validate on.

    Args:
        fit: devices and nodes.
        train: number of training photos.
        val: number of validation photos.

    Raises:
        DataError: a process would have none.
    """
    for name, photos in (("training", train), ("validation", val)):
        if photos < fit.processes:
            raise DataError(
                f"at least {fit.processes} {name} photos, one for each process",
                str(photos),
                "lower --devices or --nodes, or add photos",
            )


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint whole or not at all.

    Lightning's own way writes to the system's temporary folder and moves from there: on another file system that is a
    copy, which a full disk or a kill leaves half done, in place of the one good checkpoint.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Writes beside the old one, then renames.

        Raises:
            OSError: the disk refuses, as when it is full; the old checkpoint stays.
        """
        with replacing(Path(path)) as temporary:
            try:
                # Python's own file: where torch opens one, a full disk is a RuntimeError without its reason.
                with temporary.open("wb") as file:
                    torch.save(checkpoint, file)
            except (OSError, RuntimeError) as error:
                refused = error if isinstance(error, OSError) else error.__context__
                if not isinstance(refused, OSError):
                    raise
                raise OSError(refused.errno, refused.strerror, str(path)) from error


def create_trainer(
    fit: FitSettings, folder: RunFolder, precision: str, callbacks: Sequence[Callback]
) -> lightning.Trainer:
    """A trainer that checkpoints every epoch and logs to TensorBoard.

    Args:
        fit: epochs, devices, gradient clipping and patience.
        folder: where checkpoint and logs go.
        precision: "fp32" or "bf16".
        callbacks: the run's own; their state is in the checkpoint.
    """
    checkpoint = ModelCheckpoint(
        dirpath=folder.path,
        filename=folder.checkpoint.stem,
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )
    early_stop = [PatientStop(fit.patience)] if fit.patience else []
    with quiet_lightning(), _told_misconfiguration(fit):
        return lightning.Trainer(
            max_epochs=fit.epochs,
            devices=fit.devices,
            num_nodes=fit.nodes,
            strategy=DDPStrategy(timeout=_PATIENCE) if fit.processes > 1 else "auto",
            precision="bf16-mixed" if precision == "bf16" else "32-true",
            logger=TensorBoardLogger(folder.path, name="", version="tensorboard"),
            # The checkpoint last: it stores the state of the others as the epoch left it.
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


def stopped_early(saved: Mapping[str, Any], fit: FitSettings) -> bool:
    """Whether the run of this checkpoint had no patience left: Lightning itself would go on."""
    states = [state for name, state in saved["callbacks"].items() if name.startswith(PatientStop.__name__)]
    return fit.patience > 0 and any(state["wait_count"] >= fit.patience for state in states)


@contextmanager
def together(trainer: lightning.Trainer) -> Iterator[None]:
    """What one process does while the others wait; where it fails, it takes along those that it started."""
    try:
        yield
        trainer.strategy.barrier()
    except BaseException:
        launcher = trainer.strategy.launcher
        if launcher is not None:
            launcher.kill(signal.SIGTERM)
        raise


@contextmanager
def with_others(trainer: lightning.Trainer) -> Iterator[None]:
    """Where several processes train: how the failure of one of them ends this one.

    Raises:
        RunError: another process is gone.
    """
    try:
        yield
    except Exception as error:
        # Lightning would kill this process as soon as it sees that another one has failed; it ends by itself, and
        # says with which result.
        if (started := getattr(trainer.strategy.launcher, "procs", None)) is not None:
            started.clear()
        if not _lost_another(error):
            raise
        raise RunError(
            "all processes of this run to its end",
            f"the end of one of them before ('{str(error)[:200]}')",
            "see what it told, or the log of its machine, and go on with --resume",
        ) from error


def _lost_another(error: Exception) -> bool:
    """Told by its text: gloo raises plain runtime errors."""
    text = str(error)
    return isinstance(error, torch.distributed.DistError) or (
        isinstance(error, RuntimeError) and any(word in text for word in _LOST)
    )


@contextmanager
def _told_misconfiguration(fit: FitSettings) -> Iterator[None]:
    try:
        yield
    except MisconfigurationException as error:
        raise ConfigError(
            f"a machine for devices = {fit.devices}, nodes = {fit.nodes}",
            str(error).splitlines()[0][:200],
            "lower --devices or --nodes",
        ) from None


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Keeps Lightning's hints for its own users (and its adverts) from ours."""
    names = ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero")
    before = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning.*")
            warnings.filterwarnings("ignore", module="torch.*")
            yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


@contextmanager
def interruptible() -> Iterator[None]:
    """Makes Ctrl-C during a fit a KeyboardInterrupt again: Lightning turns it into an exit and disables Ctrl-C."""
    main_thread = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        if main_thread:
            signal.signal(signal.SIGINT, handler)
