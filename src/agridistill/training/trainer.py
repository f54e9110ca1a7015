"""Lightning's trainer for our runs: precision, checkpoints, and one or several processes."""

from __future__ import annotations

import contextlib
import copy
import ctypes
import logging
import platform
import signal
import statistics
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import lightning
import torch
import torch.distributed
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn

from agridistill.errors import ConfigError, DataError, RunError
from agridistill.storage import replacing
from agridistill.teacher_cache.build import single_process
from agridistill.training.callbacks import PatientStop, ProgressLine
from agridistill.training.run_folder import RunFolder
from agridistill.training.settings import FitSettings

Precision = Literal["fp32", "bf16"]

# bf16 must pay for its coarser arithmetic: below this gain fp32 stays.
MIN_BF16_GAIN = 1.15
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
# Processes wait for each other's share of the teacher's cache, and for the evaluation in rank 0.
_TIMEOUT = timedelta(days=2)
# In gloo's and NCCL's messages where another process has ended.
_LOST = ("closed by peer", "reset by peer", "Broken pipe", "Socket closed", "remote process exited")


def choose_precision(model: nn.Module, image_size: int, device: torch.device) -> Precision:
    """Measures whether training steps are faster in bf16 than in fp32.

    On processors MobileNetV3 is slower in bf16, a Swin twice as fast, so the network itself is timed on a copy: three
    steps of each in turns, medians. The network takes `(B, 3, image_size, image_size)` float32.
    """
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if device.type != "cpu":
        return "fp32"
    with torch.random.fork_rng(devices=[]):
        trial = copy.deepcopy(model).train().to(memory_format=torch.channels_last)
        photos = torch.randn(8, 3, image_size, image_size).to(memory_format=torch.channels_last)
        seconds: dict[Precision, list[float]] = {"fp32": [], "bf16": []}
        for turn in range(4):
            for precision, taken in seconds.items():
                elapsed = _time_step(trial, photos, precision)
                if turn:  # the first turn only warms up
                    taken.append(elapsed)
    gain = statistics.median(seconds["fp32"]) / statistics.median(seconds["bf16"])
    return "bf16" if gain >= MIN_BF16_GAIN else "fp32"


def _time_step(model: nn.Module, photos: Tensor, precision: Precision) -> float:
    start = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        loss = model(photos).float().square().mean()
    torch.autograd.backward(loss)
    model.zero_grad(set_to_none=True)
    return time.perf_counter() - start


def keep_freed_memory() -> None:
    """Makes glibc keep freed tensors for the next step instead of returning them to the system.

    By default each tensor over 32 MB is mapped again in every step, and the kernel clears its pages: up to a third of a
    MobileNetV3 training step on a CPU. Does nothing on other C libraries.
    """
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint completely or not at all.

    Lightning writes to the system's temporary folder and moves the file: across file systems that is a copy, which a
    full disk or a kill leaves incomplete in place of the last good checkpoint.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Writes a temporary file beside `path`, then renames it.

        Raises:
            OSError: the disk is full or cannot be written; the old checkpoint stays.
        """
        with replacing(Path(path)) as temporary:
            try:
                # Python's own file: with torch's, a full disk is a RuntimeError without its reason.
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
    """A trainer that saves a checkpoint every epoch, with the state of the callbacks, and logs to TensorBoard.

    Raises:
        ConfigError: the machine does not have these devices.
    """
    checkpoint = ModelCheckpoint(
        dirpath=folder.path,
        filename=folder.checkpoint.stem,
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )
    early_stop = [PatientStop(fit.patience)] if fit.patience else []
    try:
        with quiet_lightning():
            return lightning.Trainer(
                max_epochs=fit.epochs,
                devices=fit.devices,
                num_nodes=fit.nodes,
                strategy=DDPStrategy(timeout=_TIMEOUT) if fit.processes > 1 else "auto",
                precision="bf16-mixed" if precision == "bf16" else "32-true",
                logger=TensorBoardLogger(folder.path, name="", version="tensorboard"),
                # The checkpoint last: it stores the state of the others at the end of the epoch.
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
        expected = f"a machine for devices = {fit.devices}, nodes = {fit.nodes}"
        raise ConfigError(expected, str(error).splitlines()[0][:200], "lower --devices or --nodes") from None


def stopped_early(saved: Mapping[str, Any], fit: FitSettings) -> bool:
    """Whether the run of this checkpoint had no patience left; Lightning itself would continue it."""
    states = [state for name, state in saved["callbacks"].items() if name.startswith(PatientStop.__name__)]
    return fit.patience > 0 and any(state["wait_count"] >= fit.patience for state in states)


@contextlib.contextmanager
def quiet_lightning() -> Iterator[None]:
    """Hides Lightning's hints and warnings, which address its own users."""
    names = ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero")
    loggers = {logging.getLogger(name): logging.getLogger(name).level for name in names}
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning.*")
            warnings.filterwarnings("ignore", module="torch.*")
            yield
    finally:
        for logger, level in loggers.items():
            logger.setLevel(level)


@contextlib.contextmanager
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


def require_share_for_each(fit: FitSettings, *, train: int, val: int) -> None:
    """Checks that every process has photos to train and to validate on.

    Raises:
        DataError: fewer photos than processes.
    """
    for name, photos in (("training", train), ("validation", val)):
        if photos < fit.processes:
            expected = f"at least {fit.processes} {name} photos, one for each process"
            raise DataError(expected, str(photos), "lower --devices or --nodes, or add photos")


def gather_all(own: Any) -> Sequence[Any]:
    """The `Gather` of all processes of the default group; of this process where there is none."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return single_process(own)
    gathered: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, own)
    return gathered


@contextlib.contextmanager
def barrier_on_exit(trainer: lightning.Trainer) -> Iterator[None]:
    """All processes wait at the end of the block; a failure ends the processes that this one started."""
    try:
        yield
        trainer.strategy.barrier()
    except BaseException:
        launcher = trainer.strategy.launcher
        if launcher is not None:
            launcher.kill(signal.SIGTERM)
        raise


@contextlib.contextmanager
def translate_peer_failure(trainer: lightning.Trainer) -> Iterator[None]:
    """Turns the loss of another process into an error of this one.

    Raises:
        RunError: another process ended.
    """
    try:
        yield
    except Exception as error:
        # Lightning kills this process when another one fails; without its list this one ends by itself, with its own
        # exit code.
        if (started := getattr(trainer.strategy.launcher, "procs", None)) is not None:
            started.clear()
        text = str(error)
        # By its text: gloo raises plain runtime errors.
        lost = isinstance(error, RuntimeError) and any(word in text for word in _LOST)
        if not (lost or isinstance(error, torch.distributed.DistError)):
            raise
        raise RunError(
            "all processes of this run to its end",
            f"the end of one of them before ('{text[:200]}')",
            "see its own output or the log of its machine, and continue with --resume",
        ) from error
