"""Checkpoints that survive a full disk, best weights, early stop, and what a training shows while it runs."""

from __future__ import annotations

import errno
import io
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from tests.conftest import TINY_STUDENT
from tests.training.small_runs import DATA, FIT, rows, student

from agridistill.runtime import backends
from agridistill.training import trainer
from agridistill.training.run import distill, train
from agridistill.training.run_folder import RunFolder
from agridistill.training.settings import DataSettings, FitSettings, TrainConfig
from agridistill.training.trainer import EpochLog, WholeCheckpoints, create_trainer


def test_a_checkpoint_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = create_trainer(FIT, RunFolder(tmp_path / "run"), [])
    assert isinstance(trainer.strategy.checkpoint_io, WholeCheckpoints)
    path = tmp_path / "last.ckpt"
    WholeCheckpoints().save_checkpoint({"epoch": 1}, path)

    def full(checkpoint: object, file: BinaryIO) -> None:
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(OSError, match="No space"):
            WholeCheckpoints().save_checkpoint({"epoch": 2}, path)
    assert torch.load(path, weights_only=True) == {"epoch": 1}
    assert list(tmp_path.iterdir()) == [path]


@contextmanager
def files_of_at_most(size_bytes: int) -> Iterator[None]:
    """The system refuses to write more into one file, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [300_000, 3_000_000])
def test_a_checkpoint_that_the_disk_has_no_room_for_leaves_the_old_one(tmp_path: Path, size: int) -> None:
    file = tmp_path / "last.ckpt"
    checkpoints = WholeCheckpoints()
    checkpoints.save_checkpoint({"epoch": 1}, file)
    # In one piece and in many: the write that fails is another one.
    whole, parts = {"a": torch.zeros(size // 4)}, {str(number): torch.zeros(size // 400) for number in range(100)}
    for state in (whole, parts):
        with files_of_at_most(200_000), pytest.raises(OSError, match="last") as caught:
            checkpoints.save_checkpoint(state, file)
        assert caught.value.errno == errno.EFBIG
    assert torch.load(file) == {"epoch": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


def test_short_epochs_share_a_checkpoint_and_a_stopped_run_repeats_them(
    leaves: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TrainConfig(DATA, train=replace(FIT, epochs=4))
    train(leaves, tmp_path / "whole", config)
    saved: list[int] = []
    save = WholeCheckpoints.save_checkpoint

    def counted(self: WholeCheckpoints, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        saved.append(checkpoint["epoch"])
        save(self, checkpoint, path, storage_options)

    def stopped(self: EpochLog, run: Any, module: Any) -> None:
        if run.current_epoch == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(WholeCheckpoints, "save_checkpoint", counted)
    monkeypatch.setattr(trainer, "_CHECKPOINT_PAUSE_S", 1e9)
    with monkeypatch.context() as patch:
        patch.setattr(EpochLog, "on_train_epoch_start", stopped)
        with pytest.raises(KeyboardInterrupt):
            train(leaves, tmp_path / "run", config)
    assert saved == [0]
    train(leaves, tmp_path / "run", config, resume=True)
    assert saved == [0, 1, 3]
    columns = ("epoch", "train/total", "val/accuracy", "val/nll", "lr")
    whole, again = ([[row[name] for name in columns] for row in rows(tmp_path / name)] for name in ("whole", "run"))
    assert whole == again
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "run"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_goes_on_after_a_disk_without_room_for_its_checkpoint(leaves: Path, tmp_path: Path) -> None:
    config = TrainConfig(DATA, train=replace(FIT, epochs=2))
    # The weights fit, the checkpoint does not: it holds the optimiser's state as well.
    with files_of_at_most(4_000_000), pytest.raises(OSError, match="last"):
        train(leaves, tmp_path / "run", config)
    assert (tmp_path / "run" / "model.safetensors").exists()
    assert not list((tmp_path / "run").glob("*.part"))
    assert train(leaves, tmp_path / "run", config, resume=True).evaluation.photos > 0


def test_keeping_freed_memory_is_harmless_on_any_system(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer.keep_freed_memory()
    monkeypatch.setattr(trainer, "glibc", backends.glibc.__wrapped__)  # without its cache
    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.setattr(backends.ctypes, "CDLL", lambda name: pytest.fail("must not be loaded here"))
    trainer.keep_freed_memory()


def test_patience_begins_where_the_features_end(leaves: Path, teacher_run: Path, tmp_path: Path) -> None:
    fit = replace(FIT, epochs=8, patience=1, lr=1e-9)
    distill(leaves, teacher_run, tmp_path / "run", replace(student("hybrid-hint", hint_share=0.5), distill=fit))
    assert 5 <= len(rows(tmp_path / "run")) < 8


def test_early_stop_ends_a_run_that_no_longer_improves(leaves: Path, tmp_path: Path) -> None:
    fit = replace(FIT, epochs=12, patience=1, lr=1e-9)
    train(leaves, tmp_path / "run", TrainConfig(DATA, train=fit))
    assert len(rows(tmp_path / "run")) < 12


class Recorded:
    """A display that keeps what it is asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def hide(self) -> None:
        self.asked.append("hide")

    def show(self, label: str) -> None:
        self.asked.append(label)


def displayed(monkeypatch: pytest.MonkeyPatch, leaves: Path, out: Path, *, is_terminal: bool) -> tuple[str, list[str]]:
    """What a run of two epochs prints, and what it asks of the command's own display."""
    console, display = Console(file=io.StringIO(), force_terminal=is_terminal, width=80), Recorded()
    monkeypatch.setattr("agridistill.training.trainer.stderr_console", lambda: console)
    fit = FitSettings(model=TINY_STUDENT, epochs=2, batch_size=32, pretrained=False, workers=0, precision="fp32")
    monkeypatch.setattr("agridistill.progress.displays", [display])
    train(leaves, out, TrainConfig(data=DataSettings(image_size=32), train=fit))
    return console.file.getvalue(), display.asked  # type: ignore[attr-defined]


def test_a_terminal_shows_every_step_of_the_first_epoch(
    leaves: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, asked = displayed(monkeypatch, leaves, tmp_path / "run", is_terminal=True)
    assert "epoch 1/2, step 0/2" in text
    assert "left" in text
    # Two displays would overwrite each other; after the fit, the command's own one says what follows.
    assert asked == ["hide", "evaluating"]


def test_without_a_terminal_the_first_line_comes_before_the_first_epoch_ends(
    leaves: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, asked = displayed(monkeypatch, leaves, tmp_path / "run", is_terminal=False)
    lines = text.splitlines()
    assert lines[0] == "run  2 epochs of 2 steps"
    assert [line.split("  ")[1] for line in lines[1:]] == ["epoch 1/2", "epoch 2/2"]
    assert asked == []
