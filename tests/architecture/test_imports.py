"""Imports are a promise: what runs on a device needs no torch, and help needs nothing heavy."""

from __future__ import annotations

import subprocess
import sys

import pytest

import agridistill

HEAVY = ("torch", "torchvision", "timm", "lightning", "torchmetrics", "sklearn", "safetensors", "imagehash")

# A finder that makes every heavy library absent, as on a device with the base install.
WITHOUT = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {HEAVY!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
"""


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "command",
    [
        "--help",
        "--version",
        "train --help",
        "distill --help",
        "predict --help",
        "benchmark --help",
        "data check --help",
    ],
)
def test_help_and_version_work_without_the_training_libraries(command: str) -> None:
    done = python(f"{WITHOUT}\nfrom agridistill.cli.main import main\nmain({command.split()!r})")
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize(
    "module",
    [
        "agridistill",
        "agridistill.runtime.predictor",
        "agridistill.data.samples",
        "agridistill.config",
        "agridistill.api",
        "agridistill.benchmarking",
        "agridistill.benchmark_worker",
    ],
)
def test_light_modules_import_without_the_training_libraries(module: str) -> None:
    done = python(f"{WITHOUT}\nimport {module}")
    assert done.returncode == 0, done.stderr


def test_a_missing_training_part_is_one_line_with_its_remedy(tmp_path: object) -> None:
    done = python(
        f"{WITHOUT}\nfrom agridistill.cli.main import main\nmain(['train', {str(tmp_path)!r}, '--out', 'never'])"
    )
    assert done.returncode == 2
    assert "pip install 'agridistill[train]'" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_the_public_names_are_the_documented_ones_and_all_exist() -> None:
    assert set(agridistill.__all__) == {"train", "distill", "evaluate", "export", "load", "benchmark"}
    for name in agridistill.__all__:
        assert callable(getattr(agridistill, name))
        assert name in dir(agridistill)
    with pytest.raises(AttributeError, match="no attribute 'tain'"):
        _ = agridistill.tain
