"""Two processes with gloo learn what one process learns from the same photos a step."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from agridistill.data.drawn_leaves import draw_leaves

pytestmark = pytest.mark.slow

# Layer norm alone: batch norm on a processor sees only its own process's share of a batch.
STUDENT = "swin_nano_patch4_window4_64"
OPTIONS = [
    "--no-pretrained",
    "--image-size",
    "64",
    "--epochs",
    "2",
    "--batch-size",
    "16",
    "--workers",
    "0",
    "--precision",
    "fp32",
    "--json",
]


def run(leaves: Path, teacher: Path, out: Path, *options: str, launcher: tuple[str, ...] = ()) -> dict[str, object]:
    command = [sys.executable, *launcher, "-m", "agridistill", "distill", str(leaves), "--teacher", str(teacher)]
    command += ["--student", STUDENT, "--set", "distill.drop_path=0", "--out", str(out), *OPTIONS, *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    document: dict[str, object] = json.loads(done.stdout)
    return document


def epochs(run: Path) -> list[dict[str, float]]:
    with (run / "metrics.csv").open() as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


def cached(folder: Path) -> dict[str, bytes]:
    (cache,) = folder.iterdir()
    return {path.name: path.read_bytes() for path in cache.iterdir()}


@pytest.mark.parametrize(
    ("launcher", "method", "others"),
    [((), "hybrid-hint", 0), (("-m", "torch.distributed.run", "--nproc-per-node=2"), "hybrid", 10)],
    ids=["own", "torchrun without labels"],
)
def test_two_processes_learn_what_one_learns(
    leaves: Path, teacher_run: Path, tmp_path: Path, launcher: tuple[str, ...], method: str, others: int
) -> None:
    named: tuple[str, ...] = ("--method", method, "--cache-dir")
    if others:
        new = draw_leaves(tmp_path / "new", leaves_per_class=others, shots_per_leaf=1, image_size=64, seed=1)
        named = ("--unlabelled", str(new), *named)
    alone = run(leaves, teacher_run, tmp_path / "one", *named, str(tmp_path / "cache1"))
    both = run(
        leaves, teacher_run, tmp_path / "two", *named, str(tmp_path / "cache2"), "--devices=2", launcher=launcher
    )
    assert cached(tmp_path / "cache1") == cached(tmp_path / "cache2")
    for ours, theirs in zip(epochs(tmp_path / "two"), epochs(tmp_path / "one"), strict=True):
        assert ours.keys() == theirs.keys()
        for name in ("train/ce", "train/kd", "train/attention", "train/total", "val/accuracy", "val/nll"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4)
            assert ours[name] > 0
    assert ("train/hint" in epochs(tmp_path / "two")[0]) == (method == "hybrid-hint")
    assert both["accuracy"] == alone["accuracy"]
    assert both["confusion_matrix"] == alone["confusion_matrix"]
