"""Best weights, early stop, and what a training shows while it runs."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from tests.conftest import TINY_STUDENT
from tests.training.small_runs import DATA, FIT, rows, student

from agridistill.models import create_model
from agridistill.progress import registered_display
from agridistill.training.module import DistillationModule
from agridistill.training.run import distill, train
from agridistill.training.settings import (
    DataSettings,
    FitSettings,
    TrainConfig,
)
from agridistill.training.trainer import BestWeights


def test_patience_begins_where_the_features_end(leaves: Path, teacher_run: Path, tmp_path: Path) -> None:
    fit = replace(FIT, epochs=8, patience=1, lr=1e-9)
    distill(leaves, teacher_run, tmp_path / "run", replace(student("hybrid-hint", hint_share=0.5), distill=fit))
    assert 5 <= len(rows(tmp_path / "run")) < 8


def test_early_stop_ends_a_run_that_no_longer_improves(leaves: Path, tmp_path: Path) -> None:
    fit = replace(FIT, epochs=12, patience=1, lr=1e-9)
    train(leaves, tmp_path / "run", TrainConfig(DATA, train=fit))
    assert len(rows(tmp_path / "run")) < 12


def test_the_weights_of_a_killed_epoch_give_way_to_those_of_its_repetition(tmp_path: Path) -> None:
    network = create_model(TINY_STUDENT, 3)
    best = BestWeights(tmp_path / "model.safetensors", 1000)
    trainer = SimpleNamespace(is_global_zero=True, current_epoch=1, callback_metrics={})
    trainer.callback_metrics = {"val/accuracy": 0.8, "val/nll": 0.5}
    module = DistillationModule.__new__(DistillationModule)
    torch.nn.Module.__init__(module)
    module.model = network
    best.on_validation_end(trainer, module)  # type: ignore[arg-type]
    stored = best.state_dict()
    again = BestWeights(best.path, 1000)
    again.load_state_dict(stored)
    assert again.best == (0.8, -0.5)
    best.path.write_bytes(b"of epoch 2, which was killed before its checkpoint")
    again.load_state_dict(stored)
    # Whatever epoch 2 reaches now, its weights replace those that nobody remembers.
    assert again.best is None


@pytest.mark.parametrize(("photos", "kept"), [(200, 0), (199, 1)])
def test_few_validation_photos_choose_no_epoch(tmp_path: Path, photos: int, kept: int) -> None:
    best = BestWeights(tmp_path / "model.safetensors", photos)
    module = DistillationModule.__new__(DistillationModule)
    torch.nn.Module.__init__(module)
    module.model = create_model(TINY_STUDENT, 3)
    for epoch, accuracy in enumerate((1.0, 0.96)):
        metrics = {"val/accuracy": accuracy, "val/nll": 0.2}
        trainer = SimpleNamespace(is_global_zero=True, current_epoch=epoch, callback_metrics=metrics)
        best.on_validation_end(trainer, module)  # type: ignore[arg-type]
    assert best.epoch == kept


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
    with registered_display(display):
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
