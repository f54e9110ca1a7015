"""What a training shows while it runs."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console
from tests.conftest import TINY_STUDENT

from agridistill import terminal
from agridistill.training.run import train
from agridistill.training.settings import DataSettings, FitSettings, TrainConfig


class Recorded:
    """A display that keeps what it is asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def hide(self) -> None:
        self.asked.append("hide")

    def show(self, label: str) -> None:
        self.asked.append(label)


def shown(monkeypatch: pytest.MonkeyPatch, leaves: Path, out: Path, *, is_terminal: bool) -> tuple[str, list[str]]:
    """What a run of two epochs prints, and what it asks of the command's own display."""
    console, display = Console(file=io.StringIO(), force_terminal=is_terminal, width=80), Recorded()
    monkeypatch.setattr(terminal, "stderr", console)
    fit = FitSettings(model=TINY_STUDENT, epochs=2, batch_size=32, pretrained=False, workers=0, precision="fp32")
    with terminal.registered(display):
        train(leaves, out, TrainConfig(data=DataSettings(image_size=32), train=fit))
    return console.file.getvalue(), display.asked  # type: ignore[attr-defined]


def test_a_terminal_shows_every_step_of_the_first_epoch(
    leaves: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, asked = shown(monkeypatch, leaves, tmp_path / "run", is_terminal=True)
    assert "epoch 1/2, step 0/2" in text
    assert "left" in text
    # Two displays would overwrite each other; after the fit, the command's own one says what follows.
    assert asked == ["hide", "evaluating"]


def test_without_a_terminal_the_first_line_comes_before_the_first_epoch_ends(
    leaves: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, asked = shown(monkeypatch, leaves, tmp_path / "run", is_terminal=False)
    lines = text.splitlines()
    assert lines[0] == "run  2 epochs of 2 steps"
    assert [line.split("  ")[1] for line in lines[1:]] == ["epoch 1/2", "epoch 2/2"]
    assert asked == []
