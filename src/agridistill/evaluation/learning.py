"""How a run's training went: read from its folder, without torch, for its verdict."""

from __future__ import annotations

import csv
import json
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from agridistill.data.split import read_split
from agridistill.errors import DataError

Progress = Literal["never began", "memorised", "still improving", "stopped", "unclear"]

# With fewer epochs, a trend and chance look alike.
MIN_EPOCHS = 4
# Validation sets of small folders hold 10 to 30 photos: a best epoch this far above chance is still luck.
LUCK = 0.05
# A cosine schedule ends in small steps: a rise of 2 points and a loss 5 % lower across them is no noise.
ACCURACY_RISE, NLL_FALL = 0.02, 0.05
# One photo more or fewer is no trend: a rise is this many photos of the validation split.
RISE_PHOTOS = 2
# The best epoch lies in the first 60 %: the last 40 % brought nothing.
STOPPED_SHARE = 0.6
# The training loss fell to half, so the network learnt something, if only its own photos.
MEMORISED_FALL = 0.5


@dataclass(frozen=True)
class Learning:
    """What a run folder records about the training.

    Attributes:
        rows: of `metrics.csv`, one an epoch: "val/accuracy" (0 to 1), "val/nll" (nats), "train/ce", "train/total".
        train_photos: for each class; empty where unknown.
        from_scratch: whether the network began with random weights; None where unknown.
        val_photos: in the validation split; None where unknown.
    """

    rows: Sequence[Mapping[str, float]] = ()
    train_photos: Mapping[str, int] | None = None
    from_scratch: bool | None = None
    val_photos: int | None = None

    @property
    def epochs(self) -> int:
        """How many were trained."""
        return len(self.rows)

    @property
    def best_epoch(self) -> int:
        """Counted from 1, the first of equals; 0 where none is known."""
        accuracy = self._column("val/accuracy")
        return 1 + accuracy.index(max(accuracy)) if accuracy else 0

    def accuracy_ends(self) -> tuple[float, float]:
        """Mean validation accuracy, 0 to 1, of the last quarter of the epochs, and of the quarter before it."""
        return self._ends("val/accuracy")

    def progress(self, chance: float) -> Progress:
        """Whether the training began, stopped by itself, or was stopped too early.

        Args:
            chance: accuracy that needs no learning, 0 to 1.
        """
        accuracy, nll = self._column("val/accuracy"), self._column("val/nll")
        if not accuracy or len(accuracy) < MIN_EPOCHS:
            return "unclear"
        if max(accuracy) <= chance + LUCK:
            loss = self._column("train/ce") or self._column("train/total")
            return "memorised" if loss and loss[-1] < MEMORISED_FALL * loss[0] else "never began"
        last, before = self._ends("val/accuracy")
        rise = max(ACCURACY_RISE, RISE_PHOTOS / self.val_photos) if self.val_photos else ACCURACY_RISE
        if last >= before + rise and len(nll) == len(accuracy):
            last_nll, nll_before = self._ends("val/nll")
            if last_nll <= (1 - NLL_FALL) * nll_before:
                return "still improving"
        return "stopped" if self.best_epoch <= STOPPED_SHARE * len(accuracy) else "unclear"

    def _column(self, name: str) -> list[float]:
        return [row[name] for row in self.rows if name in row]

    def _ends(self, name: str) -> tuple[float, float]:
        values = self._column(name)
        quarter = max(1, len(values) // 4)
        last, before = values[-quarter:], values[-2 * quarter : -quarter]
        return sum(last) / len(last), sum(before) / len(before)


def read_learning(run: Path, classes: Sequence[str]) -> Learning:
    """Reads what a run folder records; what is missing or damaged is unknown.

    Args:
        run: with `metrics.csv`, `splits.json` and `recipe.toml`.
        classes: names of the class folders.
    """
    return Learning(
        _rows(run / "metrics.csv"),
        _train_photos(run, classes),
        _from_scratch(run),
        _val_photos(run / "splits.json"),
    )


def _rows(file: Path) -> tuple[dict[str, float], ...]:
    try:
        with file.open(encoding="utf-8", newline="") as lines:
            return tuple({name: float(value) for name, value in row.items() if value} for row in csv.DictReader(lines))
    except (OSError, ValueError, TypeError):
        return ()


def _train_photos(run: Path, classes: Sequence[str]) -> dict[str, int] | None:
    try:
        counted = json.loads((run / "environment.json").read_text(encoding="utf-8"))["train_photos"]
        return {name: int(counted[name]) for name in classes}
    except (OSError, ValueError, KeyError, TypeError):
        pass  # a run of an earlier version
    try:
        # "rust/1.jpg", or "train/rust/1.jpg" in a folder that was divided before.
        named = (
            next(part for part in PurePosixPath(path).parts if part in classes)
            for path in read_split(run / "splits.json").train
        )
        counts = Counter(named)
    except (DataError, RuntimeError):
        # The latter where a photo is of no class.
        return None
    return {name: counts[name] for name in classes}


def _val_photos(file: Path) -> int | None:
    try:
        return len(read_split(file).val) or None
    except DataError:
        return None


def _from_scratch(run: Path) -> bool | None:
    try:
        recipe = tomllib.loads((run / "recipe.toml").read_text(encoding="utf-8"))
        settings = recipe["distill"] if "distill" in recipe else recipe["train"]
        return not (settings["pretrained"] or settings.get("weights"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
