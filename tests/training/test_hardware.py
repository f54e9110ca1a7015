from __future__ import annotations

import pytest
import torch

from agridistill.training import hardware


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
    assert hardware.choose_precision(Slow(slow), 64, torch.device("cpu")) == chosen


def test_measuring_changes_neither_the_network_nor_the_random_state() -> None:
    model = Slow(torch.float32)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    hardware.choose_precision(model, 32, torch.device("cpu"))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_keeping_freed_memory_is_harmless_on_any_system(monkeypatch: pytest.MonkeyPatch) -> None:
    hardware.keep_freed_memory()
    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.setattr(hardware.ctypes, "CDLL", lambda name: pytest.fail("must not be loaded here"))
    hardware.keep_freed_memory()


def test_a_gpu_that_only_emulates_bf16_stays_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert hardware.choose_precision(Slow(torch.float32), 64, torch.device("cuda")) == "fp32"
