"""Reads from a run folder, without torch, how the training went, and advises how to get a better model."""

from __future__ import annotations

import csv
import json
import math
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from agridistill.data.split import read_split
from agridistill.errors import DataError
from agridistill.evaluation.evaluate import EvaluationResult
from agridistill.evaluation.metrics import ClassScores

Level = Literal["usable", "weak", "unproven", "unusable"]
Progress = Literal["never began", "memorised", "still improving", "stopped", "unclear"]

# With fewer epochs, a trend may be chance.
MIN_EPOCHS = 4
# Validation sets of small folders hold 10 to 30 photos: a best epoch this far above chance can still be luck.
LUCK = 0.05
# A cosine schedule ends in small steps: if accuracy rises by 2 points and the loss falls by 5 % there, it is not noise.
ACCURACY_RISE, NLL_FALL = 0.02, 0.05
# A change of one photo is no trend: accuracy must rise by at least this many photos of the validation split.
RISE_PHOTOS = 2
# If the best epoch lies in the first 60 %, the last 40 % brought nothing.
STOPPED_SHARE = 0.6
# If the training loss fell to half, the network learnt something, even if it only memorised its training photos.
MEMORISED_FALL = 0.5
# If an image has a shorter side than this in pixels, spots of a few pixels vanish.
SMALL_IMAGE, LARGER_IMAGE = 160, 224
# With pretrained weights, accuracy on two crops was 70 to 79 % with 10 photos a class, 80 to 90 % with 30, and
# 87 to 95 % with 100.
PHOTO_STEPS = (30, 100, 300)
# Photos without labels brought 5 points where 8 photos of each class had labels (docs/results.md). They are advised
# below this mean number of photos in a class.
FEW_LABELS = 30
# A split takes 15 % of a class for the test: that is at least one leaf if the class has this many.
TESTABLE_LEAVES = 7
# The shortest run that the advice to train longer recommends.
SOME_EPOCHS = 10
# A wider interval leaves open whether every tenth or every third photo is wrong.
WIDE_INTERVAL = 0.20
# Half of the interval, in standard errors.
_Z = 1.96


@dataclass(frozen=True)
class Learning:
    """The course of a training, as recorded in a run folder."""

    # The rows of `metrics.csv`, one for each epoch, with the keys "val/accuracy" (0 to 1), "val/nll" (nats), "train/ce"
    # and "train/total".
    rows: Sequence[Mapping[str, float]] = ()
    train_photos: Mapping[str, int] | None = None  # number of training photos of each class; None if unknown
    from_scratch: bool | None = None  # whether the network began with random weights; None if unknown
    val_photos: int | None = None  # number of photos in the validation split; None if unknown
    could_use_unlabelled: bool = False  # whether `--unlabelled` could have added photos without labels

    @property
    def epochs(self) -> int:
        """Number of trained epochs."""
        return len(self.rows)

    @property
    def best_epoch(self) -> int:
        """Epoch with the highest validation accuracy, from 1, the first of equal ones; 0 if none is recorded."""
        accuracy = self._column("val/accuracy")
        return 1 + accuracy.index(max(accuracy)) if accuracy else 0

    def progress(self, chance: float) -> Progress:
        """Describes how the training went; `chance` is the accuracy that needs no learning, 0 to 1.

        Returns:
            "memorised" if validation accuracy stayed near `chance` although the training loss halved; "never began"
            if it stayed near `chance` and the loss did not halve; "still improving" if it still rose at the end;
            "stopped" if the best epoch lies in the first 60 %; otherwise "unclear".
        """
        accuracy, nll = self._column("val/accuracy"), self._column("val/nll")
        if not accuracy or len(accuracy) < MIN_EPOCHS:
            return "unclear"
        if max(accuracy) <= chance + LUCK:
            loss = self._column("train/ce") or self._column("train/total")
            return "memorised" if loss and loss[-1] < MEMORISED_FALL * loss[0] else "never began"
        last, before = self.ends("val/accuracy")
        rise = max(ACCURACY_RISE, RISE_PHOTOS / self.val_photos) if self.val_photos else ACCURACY_RISE
        if last >= before + rise and len(nll) == len(accuracy):
            last_nll, nll_before = self.ends("val/nll")
            if last_nll <= (1 - NLL_FALL) * nll_before:
                return "still improving"
        return "stopped" if self.best_epoch <= STOPPED_SHARE * len(accuracy) else "unclear"

    def _column(self, name: str) -> list[float]:
        return [row[name] for row in self.rows if name in row]

    def ends(self, name: str) -> tuple[float, float]:
        """Returns the means of a column of `metrics.csv` over the last quarter of the epochs and the quarter before."""
        values = self._column(name)
        quarter = max(1, len(values) // 4)
        last, before = values[-quarter:], values[-2 * quarter : -quarter]
        return sum(last) / len(last), sum(before) / len(before)


def read_learning(run: Path, classes: Sequence[str]) -> Learning:
    """Reads the record of a training from its run folder; returns an empty one if a file is missing or damaged."""
    try:
        with (run / "metrics.csv").open(encoding="utf-8", newline="") as lines:
            rows = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(lines)]
        counted = json.loads((run / "environment.json").read_text(encoding="utf-8"))["train_photos"]
        recipe = tomllib.loads((run / "recipe.toml").read_text(encoding="utf-8"))
        settings = recipe["distill"] if "distill" in recipe else recipe["train"]
        return Learning(
            tuple(rows),
            train_photos={name: int(counted[name]) for name in classes},
            from_scratch=not (settings["pretrained"] or settings.get("weights")),
            val_photos=len(read_split(run / "splits.json").val) or None,
            could_use_unlabelled=_could_use_unlabelled(recipe, settings),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, DataError):
        return Learning()


def _could_use_unlabelled(recipe: Mapping[str, Any], settings: Mapping[str, Any]) -> bool:
    """Whether a run has a teacher, a method and settings that take photos without labels, but has none of these."""
    method = recipe.get("objective", {}).get("method", "ce")
    mixes = settings.get("mixup") or settings.get("cutmix")
    return method not in ("ce", "dkd") and not mixes and not recipe.get("data", {}).get("unlabelled")


@dataclass(frozen=True)
class Findings:
    """A model's evaluation and training, with the conclusions from which remarks and advice are written."""

    level: Level  # how far the model can be used; see `ModelVerdict`
    result: EvaluationResult  # the evaluation
    learning: Learning  # the record of the training
    progress: Progress  # how the training went; see `Learning.progress`
    weak: Sequence[ClassScores]  # classes that the model recognises less often than the others, the worst first

    @property
    def good(self) -> bool:
        """Whether the model can be used without checking its answers: its level is "usable"."""
        return self.level == "usable"


def learning_remarks(found: Findings) -> Iterator[str]:
    """Yields a sentence if the training ended too early or failed."""
    learning, progress = found.learning, found.progress
    epochs = count(learning.epochs, "epoch")
    if progress == "still improving":
        last, before = learning.ends("val/accuracy")
        yield (
            f"It was still improving when it stopped: from {number(before)} to {percent(last)} of the validation "
            "photos in the last epochs."
        )
    elif found.good:
        return
    elif progress == "never began":
        yield f"It never began to learn: after {epochs} it is no better on validation photos than chance."
    elif progress == "memorised":
        yield "It memorised its training photos and learnt nothing that helps with other photos."
    elif progress == "stopped":
        best = learning.best_epoch
        yield f"It stopped learning after epoch {best} of {learning.epochs}: more epochs alone will not help."
    elif 0 < learning.epochs < MIN_EPOCHS:
        yield f"It trained for {epochs} only, too few to tell whether it was still improving."


def advice_on(found: Findings) -> Iterator[str]:
    """Yields sentences of advice for a better model, the most helpful first."""
    learning, size = found.learning, found.result.image_size
    if learning.from_scratch and not found.good:
        yield (
            "Start from pretrained weights: agridistill train uses them by default, --weights FILE takes others. "
            "A few photos are not enough to train a network from random weights."
        )
    yield from _epochs_advice(found)
    yield from _photos_advice(found)
    counts = learning.train_photos or {}
    if learning.could_use_unlabelled and sum(counts.values()) < FEW_LABELS * len(counts):
        yield "Add photos of the same kind without labels, from which the teacher teaches as well: --unlabelled DIR."
    if size < SMALL_IMAGE and not found.good:
        yield f"Show it more detail: --image-size {LARGER_IMAGE} (it was {size})."
    yield from _test_advice(found.result, hopeless=found.level == "unusable")


def _epochs_advice(found: Findings) -> Iterator[str]:
    epochs, progress = found.learning.epochs, found.progress
    few = not found.good and (progress == "never began" or 0 < epochs < MIN_EPOCHS)
    if progress == "still improving" or few:
        yield f"Train longer: --epochs {max(2 * epochs, SOME_EPOCHS)} (it was {epochs})."
    if progress == "never began" and not found.good:
        yield "Check the labels (agridistill data check), and try another learning rate (--lr)."


def _photos_advice(found: Findings) -> Iterator[str]:
    result, counts = found.result, found.learning.train_photos or {}
    if found.level != "unusable":
        never = [scores for scores in result.per_class if scores.photos and not result.named_photos[scores.name]]
        lacking = dict.fromkeys(scores.name for scores in (*never, *found.weak))
        for name in lacking:
            if name in counts:
                yield f"Add photos of '{name}': it {_aim(counts[name])}."
            else:
                yield f"Add photos of '{name}', of other plants and days."
        if lacking:
            return
    if found.good:
        return
    if not counts:
        yield "Add photos of every class, of other plants and days."
        return
    fewest = min(counts, key=lambda name: counts[name])
    # Fewer photos than the first step are too few to learn from.
    if found.progress not in ("never began", "still improving") or counts[fewest] < PHOTO_STEPS[0]:
        yield f"Add photos of every class, of other plants and days; '{fewest}' {_aim(counts[fewest])}."


def _aim(photos: int) -> str:
    # At least twice as many: fewer new photos change little.
    aim = next((step for step in PHOTO_STEPS if step >= 2 * photos), 2 * photos)
    return f"has {photos} for training, aim at {aim}"


def _test_advice(result: EvaluationResult, *, hopeless: bool) -> Iterator[str]:
    if result.split == "train":
        yield "Evaluate it on photos that it did not learn from (--split test)."
        return
    if any(not scores.photos for scores in result.per_class):
        yield f"Label photos of the classes that were not tested, of at least {TESTABLE_LEAVES} leaves each."
    low, high = result.accuracy_ci95
    if high - low > WIDE_INTERVAL and not hopeless:
        # With an accuracy near 0 or 1 the formula would ask for almost no photos.
        spread = min(max(result.accuracy, 0.5), 0.9)
        wanted = spread * (1 - spread) * (2 * _Z / WIDE_INTERVAL) ** 2
        tens = math.ceil(max(wanted, result.photos + 1) / 10)
        yield f"Test it on at least {10 * tens} photos, each of another leaf (evaluate RUN FOLDER --split all)."


def percent(share: float) -> str:
    """Formats a share, 0 to 1, as a percentage, such as "95 %"; see `number`."""
    return f"{number(share)} %"


def number(share: float) -> str:
    """Formats a share, 0 to 1, as whole percent without "%"; with up to two decimals if it would round to 0 or 100."""
    for digits in (0, 1, 2):
        text = f"{100 * share:.{digits}f}"
        if share in (0.0, 1.0) or 0 < float(text) < 100:
            return text
    return text


def count(amount: int, noun: str) -> str:
    """Formats a number with its noun in the singular or plural: "1 photo", "2 leaves"."""
    plural = "leaves" if noun == "leaf" else f"{noun}s"
    return f"{amount:,} {noun if amount == 1 else plural}"


def quoted(names: Sequence[str]) -> str:
    """Quotes names and joins them for a sentence: "'a', 'b' and 'c'"."""
    return join([f"'{name}'" for name in names])


def join(parts: Sequence[str]) -> str:
    """Joins one or more parts of a sentence: "a, b and c"."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
