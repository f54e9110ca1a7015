"""How a run's training went, read from its folder without torch, and what would make its model better."""

from __future__ import annotations

import csv
import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from agridistill.data.split import read_split
from agridistill.errors import DataError
from agridistill.evaluation.evaluate import EvaluationResult
from agridistill.evaluation.metrics import ClassScores

Level = Literal["usable", "weak", "unproven", "unusable"]
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
# Spots of a few pixels vanish below about this side.
SMALL_IMAGE, LARGER_IMAGE = 160, 224
# With trained weights two crops had 70 to 79 % from 10 photos a class, 80 to 90 % from 30, and 87 to 95 % from 100.
PHOTO_STEPS = (30, 100, 300)
# Of 15 % of a class, as a split takes for the test, at least one leaf is left from here on.
TESTABLE_LEAVES = 7
# A longer run is worth a try from this length on.
SOME_EPOCHS = 10
# A wider interval leaves open whether every tenth or every third photo is wrong.
WIDE_INTERVAL = 0.20
# Half of the interval, in standard errors.
_Z = 1.96


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

        `chance` is the accuracy that needs no learning, 0 to 1.
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
    """Reads what a run folder records; what is missing or damaged is unknown."""
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
        return None


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


@dataclass(frozen=True)
class Findings:
    """What remarks and advice rest on: the evaluation, the training, and what follows from both.

    Attributes:
        progress: how the training ended.
        weak: classes that are found less often than the others, the worst first.
    """

    level: Level
    result: EvaluationResult
    learning: Learning
    progress: Progress
    weak: Sequence[ClassScores]

    @property
    def good(self) -> bool:
        """The model can be used as it is."""
        return self.level == "usable"


def learning_remarks(found: Findings) -> list[str]:
    """What a person has to know of the training, in whole sentences."""
    learning, progress = found.learning, found.progress
    if progress == "still improving":
        last, before = learning.accuracy_ends()
        return [
            f"It was still improving when it stopped: from {number(before)} to {percent(last)} of the validation "
            "photos in the last epochs."
        ]
    if found.good:
        return []
    epochs = count(learning.epochs, "epoch")
    if progress == "never began":
        return [f"It never began to learn: after {epochs} it is no better on validation photos than chance."]
    if progress == "memorised":
        return ["It learnt its training photos by heart, and nothing that holds for other photos."]
    if progress == "stopped":
        best = learning.best_epoch
        return [f"It stopped learning after epoch {best} of {learning.epochs}: more epochs alone will not help."]
    if 0 < learning.epochs < MIN_EPOCHS:
        return [f"It trained for {epochs} only, too few to tell whether it was still improving."]
    return []


def advice_on(found: Findings) -> list[str]:
    """What helps, the most helpful first, in whole sentences; none where nothing is to be mended."""
    size = found.result.image_size
    return [
        *(
            [
                "Start from trained weights: agridistill train brings them along, --weights FILE takes others. Few "
                "photos alone do not teach a network to see."
            ]
            if found.learning.from_scratch and not found.good
            else []
        ),
        *_epochs_advice(found),
        *_photos_advice(found),
        *(
            [f"Show it more detail: --image-size {LARGER_IMAGE} (it was {size})."]
            if size < SMALL_IMAGE and not found.good
            else []
        ),
        *_test_advice(found.result, hopeless=found.level == "unusable"),
    ]


def _epochs_advice(found: Findings) -> list[str]:
    epochs, progress = found.learning.epochs, found.progress
    longer = f"Train longer: --epochs {max(2 * epochs, SOME_EPOCHS)} (it was {epochs})."
    if progress == "still improving":
        return [longer]
    if found.good:
        return []
    if progress == "never began":
        return [longer, "Check the labels (agridistill data check), and try another learning rate (--lr)."]
    return [longer] if 0 < epochs < MIN_EPOCHS else []


def _photos_advice(found: Findings) -> list[str]:
    result, counts = found.result, found.learning.train_photos or {}
    if found.level != "unusable":
        never = [scores for scores in result.per_class if scores.photos and not result.named_photos[scores.name]]
        lacking = dict.fromkeys(scores.name for scores in (*never, *found.weak))
        if lacking:
            return [
                f"Add photos of '{name}': it {_aim(counts[name])}."
                if name in counts
                else f"Add photos of '{name}', of other plants and days."
                for name in lacking
            ]
    if found.good:
        return []
    if not counts:
        return ["Add photos of every class, of other plants and days."]
    fewest = min(counts, key=lambda name: counts[name])
    if found.progress in ("never began", "still improving") and counts[fewest] >= PHOTO_STEPS[0]:
        return []  # there is something to learn from already
    return [f"Add photos of every class, of other plants and days; '{fewest}' {_aim(counts[fewest])}."]


def _aim(photos: int) -> str:
    # Twice as many at least: less changes little.
    aim = next((step for step in PHOTO_STEPS if step >= 2 * photos), 2 * photos)
    return f"has {photos} for training, aim at {aim}"


def _test_advice(result: EvaluationResult, *, hopeless: bool) -> list[str]:
    if result.split == "train":
        return ["Evaluate it on photos that it did not learn from (--split test)."]
    advice = []
    if any(not scores.photos for scores in result.per_class):
        advice.append(f"Label photos of the classes that were not tested, of at least {TESTABLE_LEAVES} leaves each.")
    low, high = result.accuracy_ci95
    if high - low > WIDE_INTERVAL and not hopeless:
        # Near 0 and 1 the estimate would ask for next to nothing.
        spread = min(max(result.accuracy, 0.5), 0.9)
        wanted = spread * (1 - spread) * (2 * _Z / WIDE_INTERVAL) ** 2
        tens = math.ceil(max(wanted, result.photos + 1) / 10)
        advice.append(
            f"Test it on at least {10 * tens} photos, each of another leaf (evaluate RUN FOLDER --split all)."
        )
    return advice


def percent(share: float) -> str:
    """Whole percents with their sign; see `number`."""
    return f"{number(share)} %"


def number(share: float) -> str:
    """Whole percents; one or two more digits where rounding would make all or none of it."""
    for digits in (0, 1, 2):
        text = f"{100 * share:.{digits}f}"
        if share in (0.0, 1.0) or 0 < float(text) < 100:
            return text
    return text


def count(amount: int, noun: str) -> str:
    """An amount of things: 1 photo, 2 leaves."""
    plural = "leaves" if noun == "leaf" else f"{noun}s"
    return f"{amount:,} {noun if amount == 1 else plural}"


def quoted(names: Sequence[str]) -> str:
    """Names for a sentence: 'a', 'b' and 'c'."""
    return join([f"'{name}'" for name in names])


def join(parts: Sequence[str]) -> str:
    """Parts of a sentence: a, b and c."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
