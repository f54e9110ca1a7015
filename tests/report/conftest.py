"""The result files of a small study, written by hand: two budgets, four candidates, awkward names."""

from __future__ import annotations

import base64
import io
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from agridistill.report.page import ReportResult, report

CLASSES = ["Tomato___Late_blight", 'Tomato___<healthy> & "sound"']


ENVIRONMENT = {
    "versions": {"agridistill": "0.0.9", "torch": "2.9.0", "python": "3.12.1"},
    "hardware": {"processor": "Cortex-A76", "cores": 4, "device": "NVIDIA H200"},
    "data": "/data/my photos",
    "teacher": "/runs/teacher",
}


def picture(seed: int = 0) -> str:
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 40, 3), np.uint8)
    held = io.BytesIO()
    Image.fromarray(pixels).save(held, "JPEG")
    return "data:image/jpeg;base64," + base64.b64encode(held.getvalue()).decode()


def run(seed: int, accuracy: float, **changes: Any) -> dict[str, Any]:
    return {
        "seed": seed,
        "run": f"runs/full/hybrid-{seed}",
        "model": "mobilenetv3_large_100",
        "accuracy": accuracy,
        "accuracy_ci95": [accuracy - 0.03, accuracy + 0.03],
        "val_accuracy": accuracy + 0.01,
        "macro_f1": 0.8,
        "nll_nats": 0.4,
        "calibration_error": 0.02,
        "parameters": 4_200_000,
        "macs": 72_000_000,
        "image_size": 128,
        "best_epoch": 3,
        "train_s": 600.0,
        "val_accuracy_by_epoch": [0.5, 0.7, accuracy + 0.01],
        **changes,
    }


def row(name: str, accuracies: list[float], interval: list[float] | None, **changes: Any) -> dict[str, Any]:
    runs = [run(seed, accuracy, **changes) for seed, accuracy in enumerate(accuracies)]
    means = {
        f"{key}_mean": float(np.mean([one[key] for one in runs]))
        for key in ("accuracy", "val_accuracy", "macro_f1", "nll_nats", "calibration_error", "train_s")
    }
    spreads = {key.replace("_mean", "_sd"): 0.01 if len(runs) > 1 else None for key in means}
    difference = None
    if interval is not None:
        alone = len(accuracies) < 2
        points = sum(interval) / 2
        difference = {"points": points, "points_ci95": interval, "seeds": [0], "of_leaves_alone": alone}
    return {
        "name": name,
        "set": [],
        "model": runs[0]["model"],
        "parameters": runs[0]["parameters"],
        "macs": runs[0]["macs"],
        "seeds": [one["seed"] for one in runs],
        "runs": runs,
        "difference": difference,
        **means,
        **spreads,
    }


def budget(name: str, labels: float) -> dict[str, Any]:
    return {
        "name": name,
        "set": [],
        "epochs": 3,
        "labels": labels,
        "image_size": 128,
        "best": "hybrid",
        "rows": [
            row("ce", [0.85, 0.87], None),
            row("hybrid", [0.89, 0.91], [1.0, 7.0]),
            row("kd", [0.86], [-1.0, 2.0]),
            row("resnet18", [0.8], [-8.0, -2.0], model="resnet18", macs=600_000_000, parameters=11_000_000),
        ],
        "best_against": [
            {"other": "ce", "points": 4.0, "points_ci95": [1.0, 7.0], "seeds": [0, 1], "of_leaves_alone": False},
            {"other": "kd", "points": 3.0, "points_ci95": [-1.0, 7.0], "seeds": [0], "of_leaves_alone": True},
        ],
        "mcnemar": [
            {"first": "hybrid", "second": "ce", "seed": 0, "only_first": 9, "only_second": 3, "p_value": 0.146}
        ],
    }


def evaluation() -> dict[str, Any]:
    return {
        "model": "mobilenetv3_large_100",
        "split": "test",
        "photos": 20,
        "leaves": 9,
        "accuracy": 0.9,
        "accuracy_ci95": [0.7, 0.97],
        "classes": CLASSES,
        "per_class": [
            {"class": CLASSES[0], "precision": 0.9, "recall": 0.9, "f1": 0.9, "photos": 10},
            {"class": CLASSES[1], "precision": None, "recall": None, "f1": None, "photos": 0},
        ],
        "confusion_matrix": [[9, 1], [1, 9]],
    }


def evidence(seed: int) -> dict[str, Any]:
    names = ("blur", "noise", "light", "scale")
    return {
        "format_version": 1,
        "model": "mobilenetv3_large_100",
        "precision": "fp32",
        "weights_sha256": "0" * 64,
        "classes": CLASSES,
        "split": "test",
        "photos": 20,
        "reliability": [{"from": 0.8, "to": 0.87, "photos": 20, "confidence": 0.85, "accuracy": 0.9 - 0.1 * seed}],
        "selective": {
            "wanted_accuracy": 0.99,
            "threshold": 0.8,
            "val_coverage": 0.7,
            "val_accuracy": 0.99,
            "coverage": 0.65,
            "accuracy": 0.98,
            "curve": [{"coverage": i / 20, "accuracy": 1 - i / 200} for i in range(1, 21)],
        },
        "robustness": {
            "photos": 20,
            "accuracy": 0.9,
            "accuracy_ci95": [0.7, 0.97],
            "corruptions": [
                {"name": name, "unit": "share", "strengths": [1, 2, 3, 4], "accuracies": [0.9, 0.8 - 0.1 * i, 0.5, 0.3]}
                for i, name in enumerate(names)
            ],
            "mean_corrupted_accuracy": 0.6,
            "masked_photos": 18,
            "leaf_masked_accuracy": 0.7 if seed else 0.5,
            "leaf_masked_ci95": [0.6, 0.8] if seed else [0.3, 0.7],
            "ground_masked_accuracy": 0.8,
            "chance": 0.5,
        },
        "mistakes": [
            {
                "path": "late/<b>1</b>.jpg",
                "truth": CLASSES[0],
                "predicted": CLASSES[1],
                "probability": 0.97,
                "photo": picture(seed),
            }
        ],
    }


def write(path: Path, document: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))


@dataclass(frozen=True)
class Reported:
    """The report of a whole study, which tests only read: its plots take seconds to draw."""

    folder: Path
    result: ReportResult
    page: str


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A study that a test may change."""
    return write_study(tmp_path / "study")


@pytest.fixture(scope="session")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Reported:
    folder = write_study(tmp_path_factory.mktemp("reported") / "study")
    # Left by an earlier form of the study.
    shutil.copy(folder / "evidence/ce.json", folder / "evidence/old-best.json")
    result = report(folder)
    return Reported(folder, result, result.page.read_text())


def write_study(folder: Path) -> Path:
    document = {
        "format_version": 1,
        "baseline": "ce",
        "tuning": "none",
        "test_photos": 20,
        "test_leaves": 9,
        "teacher": run(
            0,
            0.93,
            model="swin_micro_patch4_window4_128",
            macs=364_000_000,
            parameters=6_900_000,
            labels=1.0,
            test_photos_learnt=0,
        ),
        "evidence": {"budget": "full", "seed": 0, "models": ["hybrid", "ce"]},
        "budgets": [budget("few", 0.1), budget("full", 1.0)],
    }
    write(folder / "compare.json", document)
    write(folder / "runs/full/hybrid-0/evaluation.json", evaluation())
    write(folder / "runs/full/hybrid-0/environment.json", ENVIRONMENT)
    for seed, name in enumerate(("hybrid", "ce")):
        write(folder / "evidence" / f"{name}.json", evidence(seed))
    models = [
        {"name": name, "predicted": CLASSES[0], "probability": 0.9, "map": [[0.0, 1.0], [0.5, 0.2]]}
        for name in ("hybrid", "teacher")
    ]
    photos = [{"path": "late/1.jpg", "truth": CLASSES[0], "photo": picture(), "models": models}]
    write(folder / "evidence" / "gallery.json", {"format_version": 1, "weights_sha256": {}, "photos": photos})
    bench = {
        "host": {"processor": "Raspberry Pi 5", "cores": 4, "system": "Linux-6.6"},
        "models": [
            {
                "model": f"leaf-{precision}.onnx",
                "engine": "onnxruntime",
                "precision": precision,
                "accuracy": accuracy,
                "accuracy_ci95": [accuracy - 0.02, accuracy + 0.02],
                "latency_ms_p50": latency,
                "size_bytes": size,
            }
            for precision, accuracy, latency, size in (("fp32", 0.9, 4.1, 17_000_000), ("int8", 0.89, 2.5, 4_700_000))
        ],
    }
    write(folder / "benchmark.json", bench)
    return folder
