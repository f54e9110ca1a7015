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

from agridistill.training import trainer
from agridistill.training.run import train
from agridistill.training.run_folder import RunFolder
from agridistill.training.settings import (
    DataSettings,
    FitSettings,
    TrainConfig,
)
from agridistill.training.trainer import WholeCheckpoints, create_trainer

STUDENT = "mobilenetv3_small_050"
FIT = FitSettings(model=STUDENT, epochs=1, batch_size=16, pretrained=False, workers=0, precision="fp32")
DATA = DataSettings(image_size=64)


def test_a_checkpoint_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = create_trainer(FIT, RunFolder(tmp_path / "run"), "fp32", [])
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


class Slow(torch.nn.Module):
    """A network that is slower in one precision."""

    def __init__(self, slow: torch.dtype) -> None:
        super().__init__()
        self.layer = torch.nn.Conv2d(3, 4, 1)
        self.norm = torch.nn.BatchNorm2d(4)
        self.slow = slow

    def forward(self, photos: torch.Tensor) -> torch.Tensor:
        out = self.layer(photos)
        for _ in range(400 if out.dtype is self.slow else 1):
            out = out + 0.0
        return self.norm(out)


@pytest.mark.parametrize(("slow", "chosen"), [(torch.float32, "bf16"), (torch.bfloat16, "fp32")])
def test_the_faster_precision_is_chosen_for_the_network_at_hand(slow: torch.dtype, chosen: str) -> None:
    assert trainer.choose_precision(Slow(slow), 64, torch.device("cpu")) == chosen


def test_measuring_changes_neither_the_network_nor_the_random_state() -> None:
    model = Slow(torch.float32)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    trainer.choose_precision(model, 32, torch.device("cpu"))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_keeping_freed_memory_is_harmless_on_any_system(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer.keep_freed_memory()
    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.setattr(trainer.ctypes, "CDLL", lambda name: pytest.fail("must not be loaded here"))
    trainer.keep_freed_memory()


def test_a_gpu_that_only_emulates_bf16_stays_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert trainer.choose_precision(Slow(torch.float32), 64, torch.device("cuda")) == "fp32"
