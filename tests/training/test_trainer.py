"""Precision, memory and checkpoints that survive a full disk."""

from __future__ import annotations

import errno
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import pytest
import torch
from tests.training.small_runs import DATA, FIT

from agridistill.training import trainer
from agridistill.training.run import train
from agridistill.training.run_folder import RunFolder
from agridistill.training.settings import (
    TrainConfig,
)
from agridistill.training.trainer import WholeCheckpoints, create_trainer


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
    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.setattr(trainer.ctypes, "CDLL", lambda name: pytest.fail("must not be loaded here"))
    trainer.keep_freed_memory()
