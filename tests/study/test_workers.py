"""Runs in processes of their own: their devices, and how they end."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from agridistill.study.workers import Order, run_side_by_side, worker_environment
from agridistill.training.settings import FitSettings, TrainConfig


@pytest.mark.parametrize(
    ("visible", "gpus", "expected"),
    [
        (None, 2, ["0", "1", "0"]),
        ("2,3", 2, ["2", "3", "2"]),
        ("MIG-a, MIG-b", 2, ["MIG-a", "MIG-b", "MIG-a"]),
    ],
)
def test_each_run_gets_one_of_the_gpus_that_the_user_left_visible(
    visible: str | None, gpus: int, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [worker_environment(slot, 3)["CUDA_VISIBLE_DEVICES"] for slot in range(3)] == expected


@pytest.mark.slow
def test_an_interrupt_ends_running_and_waiting_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrainConfig(train=FitSettings(model="mobilenetv3_small_050", pretrained=False))
    started: list[Any] = []

    class Kept(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, *words: Any, **options: Any) -> None:
            super().__init__(*words, **options)
            started.append(self)

    monkeypatch.setattr("agridistill.study.workers.subprocess.Popen", Kept)
    orders = {name: Order(tmp_path / "nowhere", tmp_path / name, config) for name in ("a", "b", "c")}

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_side_by_side(orders, tmp_path / "logs", slots=1, total=3, on_tick=interrupt)
    assert [file.name for file in (tmp_path / "logs").iterdir()] == ["a.log"]
    assert [process.poll() is not None for process in started] == [True]
