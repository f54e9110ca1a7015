"""What makes a model better, the most helpful first, as its evaluation and its training suggest."""

from __future__ import annotations

import math
from collections.abc import Sequence

from agridistill.evaluation.learning import MIN_EPOCHS, Learning, Progress
from agridistill.evaluation.metrics import ClassScores
from agridistill.evaluation.result import EvaluationResult
from agridistill.evaluation.words import named_photos

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


def advice_for(
    result: EvaluationResult,
    learning: Learning,
    progress: Progress,
    weak: Sequence[ClassScores],
    *,
    good: bool,
    hopeless: bool,
) -> list[str]:
    """Whole sentences; none where nothing is to be mended.

    Args:
        result: of the model.
        learning: of the same model.
        progress: how its training ended.
        weak: classes that are found less often than the others, the worst first.
        good: the model can be used as it is.
        hopeless: the model answers no better than without learning, or more often wrong than right.
    """
    return [
        *([] if good else _weights_advice(learning)),
        *_epochs_advice(learning, progress, good=good),
        *_photos_advice(result, learning, progress, weak, good=good, hopeless=hopeless),
        *([] if good else _size_advice(result)),
        *_test_advice(result, hopeless=hopeless),
    ]


def _weights_advice(learning: Learning) -> list[str]:
    if not learning.from_scratch:
        return []
    return [
        "Start from trained weights: agridistill train brings them along, --weights FILE takes others. Few photos "
        "alone do not teach a network to see."
    ]


def _epochs_advice(learning: Learning, progress: Progress, *, good: bool) -> list[str]:
    longer = f"Train longer: --epochs {max(2 * learning.epochs, SOME_EPOCHS)} (it was {learning.epochs})."
    if progress == "still improving":
        return [longer]
    if good:
        return []
    if progress == "never began":
        return [longer, "Check the labels (agridistill data check), and try another learning rate (--lr)."]
    return [longer] if 0 < learning.epochs < MIN_EPOCHS else []


def _photos_advice(
    result: EvaluationResult,
    learning: Learning,
    progress: Progress,
    weak: Sequence[ClassScores],
    *,
    good: bool,
    hopeless: bool,
) -> list[str]:
    counts = learning.train_photos or {}
    if not hopeless:
        never = [scores for scores, named in zip(result.per_class, named_photos(result), strict=True) if not named]
        lacking = dict.fromkeys([*(scores for scores in never if scores.photos), *weak])
        if lacking:
            return [f"Add photos of '{scores.name}'{_lacks(counts.get(scores.name))}." for scores in lacking]
    if good:
        return []
    if not counts:
        return ["Add photos of every class, of other plants and days."]
    fewest = min(counts, key=lambda name: counts[name])
    if progress in ("never began", "still improving") and counts[fewest] >= PHOTO_STEPS[0]:
        # There is something to learn from already.
        return []
    return [f"Add photos of every class, of other plants and days; '{fewest}' {_aim(counts[fewest])}."]


def _lacks(photos: int | None) -> str:
    return ", of other plants and days" if photos is None else f": it {_aim(photos)}"


def _aim(photos: int) -> str:
    # Twice as many at least: less changes little.
    aim = next((step for step in PHOTO_STEPS if step >= 2 * photos), 2 * photos)
    return f"has {photos} for training, aim at {aim}"


def _size_advice(result: EvaluationResult) -> list[str]:
    if result.image_size >= SMALL_IMAGE:
        return []
    return [f"Show it more detail: --image-size {LARGER_IMAGE} (it was {result.image_size})."]


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
