"""Figures of an evaluation in words, as verdict and advice need them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from agridistill.evaluation.evaluate import EvaluationResult
from agridistill.evaluation.learning import MIN_EPOCHS, Learning, Progress
from agridistill.evaluation.metrics import ClassScores, wilson_interval


def chance_accuracy(result: EvaluationResult) -> float:
    """Accuracy that needs no learning: of guessing, or of naming the largest class for every photo."""
    return max(1 / len(result.classes), max(scores.photos for scores in result.per_class) / result.photos)


def chance_words(result: EvaluationResult) -> str:
    """What the model must be better than, with its accuracy."""
    largest = max(result.per_class, key=lambda scores: scores.photos)
    share = largest.photos / result.photos
    # Where all classes have about as many photos, guessing is the plainer word.
    if share <= 1.2 / len(result.classes):
        return f"chance ({percent(max(share, 1 / len(result.classes)))})"
    return f"naming '{largest.name}' for every photo ({percent(share)})"


def named_photos(result: EvaluationResult) -> list[int]:
    """How many photos each class was named for."""
    return [sum(row[column] for row in result.confusion_matrix) for column in range(len(result.classes))]


def photos_noun(result: EvaluationResult) -> str:
    """What the photos of a split are to the model."""
    names = {"test": "new photos", "val": "validation photos", "train": "the photos that it learnt from"}
    return names.get(result.split, "these photos")


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


def them(names: Sequence[str]) -> str:
    """The pronoun for so many names."""
    return "it" if len(names) == 1 else "them"


def join(parts: Sequence[str]) -> str:
    """Parts of a sentence: a, b and c."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


Level = Literal["usable", "weak", "unproven", "unusable"]

# One wrong name in five is the most that a person can still catch by looking again.
GOOD_ACCURACY = 0.80
# From here on a wrong name is rare enough for an answer without a second look.
TRUSTED_ACCURACY = 0.95
# Below it, the name that a photo gets is more often wrong than right.
HALF = 0.5
# A class this far below the others is a finding, not the usual spread between classes.
WEAK_CLASS_GAP = 0.15
# One photo that was missed says nothing about its class.
MIN_CLASS_PHOTOS = 2
# An artefact that answers fewer than half of the photos leaves most of the work to the person.
USEFUL_COVERAGE = 0.5

_WORDS: Mapping[Level, str] = {"usable": "Usable", "weak": "Weak", "unproven": "Unproven", "unusable": "Not usable"}
_FROM_BEST = tuple(_WORDS)


@dataclass(frozen=True)
class ModelVerdict:
    """What a person needs to know before using a model.

    Attributes:
        level: "usable"; "weak", of use with care; "unproven", where the photos are too few to tell; "unusable".
        headline: one sentence without a full stop.
        remarks: what else was found, whole sentences.
        advice: what helps, the most helpful first, whole sentences.
    """

    level: Level
    headline: str
    remarks: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()

    @property
    def usable(self) -> bool:
        """Whether it makes sense to go on with this model."""
        return self.level in ("usable", "weak")

    @property
    def reason(self) -> str:
        """The headline without its first word."""
        return self.headline.partition(": ")[2]

    def to_json(self) -> dict[str, Any]:
        """A JSON document."""
        return {
            "usable": self.usable,
            "level": self.level,
            "headline": self.headline,
            "remarks": list(self.remarks),
            "advice": list(self.advice),
        }


def judge(result: EvaluationResult, *, learning: Learning | None = None) -> ModelVerdict:
    """Decides whether a model can be used, from its evaluation and, where known, from its training.

    Args:
        result: of photos that the model did not learn from; with the split "train" the verdict is never better than
            unproven.
        learning: of the same model.
    """
    learning = learning or Learning()
    level, headline = _decide(result)
    progress = learning.progress(chance_accuracy(result))
    weak = _weak_classes(result)
    good = level == "usable"
    remarks = [
        *_use_remark(result, level),
        *([f"It is better than {chance_words(result)}."] if level in ("usable", "weak") else []),
        *_class_remarks(result, level, weak),
        *_test_remarks(result, level),
        *_learning_remarks(learning, progress, good=good),
    ]
    advice = advice_for(result, learning, progress, weak, good=good, hopeless=level == "unusable")
    return ModelVerdict(level, headline, tuple(remarks), tuple(advice))


def judge_artefact(
    *,
    photos: int,
    accuracy: float,
    coverage: float,
    accuracy_of_answers: float,
    classes: int,
    run: ModelVerdict | None = None,
) -> ModelVerdict:
    """Decides whether an exported model can be used, from what it was measured at.

    Args:
        photos: that it was measured on, at least 1.
        accuracy: of all its top classes, 0 to 1.
        coverage: share of the photos that it answers, 0 to 1.
        accuracy_of_answers: share of these answers that are right, 0 to 1; of no meaning at coverage 0.
        classes: how many it knows.
        run: the verdict about its run; an artefact is never better.
    """
    level, what = _decide_artefact(photos, accuracy, coverage, accuracy_of_answers, classes)
    remarks, advice = [], list(run.advice) if run is not None else []
    low, high = wilson_interval(accuracy, photos)
    if high - low > WIDE_INTERVAL:
        remarks.append(
            f"{count(photos, 'photo')} can say little: of others it can name between {number(low)} and {percent(high)} "
            "rightly."
        )
    if coverage == 0 and accuracy >= HALF:
        # A twentieth below what all its names reach: then all of them are answers.
        advice.insert(0, f"Export it again with --answers {math.floor(20 * accuracy) / 20:.2f}.")
    if run is None or run.level == "usable":
        return ModelVerdict(
            level, f"{_WORDS[level]}: {what}", tuple(remarks), tuple(advice) if level != "usable" else ()
        )
    if _FROM_BEST.index(run.level) <= _FROM_BEST.index(level):
        return ModelVerdict(level, f"{_WORDS[level]}: {what}", (*remarks, f"Its run: {run.headline}."), tuple(advice))
    # It cannot be better than the network in it.
    return ModelVerdict(run.level, f"{_WORDS[run.level]}, like its run: {run.reason}", tuple(remarks), tuple(advice))


def _decide_artefact(
    photos: int, accuracy: float, coverage: float, accuracy_of_answers: float, classes: int
) -> tuple[Level, str]:
    rightly = f"it names {percent(accuracy)} of {count(photos, 'photo')} rightly"
    low, high = wilson_interval(accuracy, photos)
    if low <= 1 / classes:
        if high >= GOOD_ACCURACY and high - low > WIDE_INTERVAL:
            return "unproven", f"{rightly}, too few to tell it from chance ({percent(1 / classes)})"
        return "unusable", f"no better than chance ({percent(1 / classes)}): {rightly}"
    if accuracy < HALF:
        return "unusable", f"more often wrong than right: {rightly}"
    if coverage == 0:
        return "unusable", "it answers no photo at all, it is unsure about every one"
    answers = f"it answers {percent(coverage)} of the photos, {percent(accuracy_of_answers)} of these rightly"
    if coverage < USEFUL_COVERAGE or accuracy_of_answers < GOOD_ACCURACY:
        return "weak", answers
    return "usable", answers if coverage == 1 else f"{answers}; about the others it is unsure"


def _decide(result: EvaluationResult) -> tuple[Level, str]:
    named = [name for name, photos in zip(result.classes, named_photos(result), strict=True) if photos]
    present = sum(scores.photos > 0 for scores in result.per_class)
    low, high = result.accuracy_ci95
    right = f"right on {percent(result.accuracy)} of {photos_noun(result)}"
    interval = f"(95 % interval {number(low)} to {number(high)})"
    chance, without = chance_accuracy(result), chance_words(result)
    if present > 1 and len(named) == 1:
        return "unusable", f"Not usable: it names one class for every photo, '{named[0]}'"
    if result.split == "train":
        return "unproven", f"Unproven: {right}, which says nothing about new ones"
    if present == 1:
        return "unproven", f"Unproven: {right}, but these photos are of one class alone"
    if low <= chance:
        if high >= GOOD_ACCURACY and high - low > WIDE_INTERVAL:
            found = f"right on {round(result.accuracy * result.photos)} of {count(result.photos, 'photo')}"
            return "unproven", f"Unproven: {found} {interval}, too few to tell it from {without}"
        return "unusable", f"Not usable: no better than {without}: {right} {interval}"
    if result.accuracy < HALF:
        return "unusable", f"Not usable: more often wrong than right: {right} {interval}"
    if result.accuracy >= GOOD_ACCURACY and low < HALF:
        found = f"right on {round(result.accuracy * result.photos)} of {count(result.photos, 'photo')}"
        return "unproven", f"Unproven: {found} {interval}, too few to tell whether it is good"
    failing = _failing_classes(result)
    if failing:
        return "weak", f"Weak: {right} {interval}, but it {join(failing)}"
    if result.accuracy < GOOD_ACCURACY:
        return "weak", f"Weak: {right} {interval}"
    tested = "" if present == len(result.classes) else f", of {present} of its {len(result.classes)} classes"
    return "usable", f"Usable: {right} {interval}{tested}"


def _failing_classes(result: EvaluationResult) -> list[str]:
    """What a model must not do to any class, as the end of a sentence."""
    failing = []
    for scores, named in zip(result.per_class, named_photos(result), strict=True):
        if scores.recall is None or scores.photos < MIN_CLASS_PHOTOS:
            continue
        if not named:
            failing.append(f"never names '{scores.name}'")
        elif scores.recall < HALF and _is_below_the_rest(scores, result):
            failing.append(f"misses most of '{scores.name}'")
    return failing


def _weak_classes(result: EvaluationResult) -> list[ClassScores]:
    """Classes that are surely found less often than the others, the worst first."""
    return sorted(
        (
            scores
            for scores in result.per_class
            if scores.photos >= MIN_CLASS_PHOTOS and _is_below_the_rest(scores, result)
        ),
        key=lambda scores: scores.recall or 0.0,
    )


def _is_below_the_rest(scores: ClassScores, result: EvaluationResult) -> bool:
    """By Newcombe's interval of a difference (1998, Statistics in Medicine 17, method 10), at 95 %.

    Photos count as independent, so several of one leaf can make a class look weak a little too soon.
    """
    others = [other for other in result.per_class if other.name != scores.name and other.photos]
    if scores.recall is None or not others:
        return False
    rest = sum(other.recall or 0.0 for other in others) / len(others)
    below = rest - wilson_interval(rest, sum(other.photos for other in others)).low
    above = wilson_interval(scores.recall, scores.photos).high - scores.recall
    return rest - scores.recall >= max(WEAK_CLASS_GAP, math.hypot(below, above))


def _use_remark(result: EvaluationResult, level: Level) -> list[str]:
    wrong = 1 - result.accuracy
    about = f"about 1 photo in {round(1 / wrong)} gets a wrong name" if wrong else "none of the photos got a wrong name"
    if level == "usable" and result.accuracy >= TRUSTED_ACCURACY:
        return [f"For answers on the spot: {about}."]
    if level == "usable":
        return [f"For a first opinion: {about}, so look again before you treat a plant."]
    if level == "weak":
        return [f"To sort photos that a person then looks at: {about}. Not for answers without a second look."]
    return []


def _class_remarks(result: EvaluationResult, level: Level, weak: Sequence[ClassScores]) -> list[str]:
    named = dict(zip(result.classes, named_photos(result), strict=True))
    remarks = [
        f"It finds '{scores.name}' less often than the others: {round((scores.recall or 0.0) * scores.photos)} of "
        f"{count(scores.photos, 'photo')}."
        for scores in weak
        if named[scores.name] and level != "unusable"
    ]
    # The headline of a weak model names the others.
    most = MIN_CLASS_PHOTOS - 1 if level == "weak" else result.photos
    never = [one.name for one in result.per_class if 0 < one.photos <= most and not named[one.name]]
    if never and sum(photos > 0 for photos in named.values()) > 1:
        remarks.append(f"It never names {quoted(never)}.")
    absent = [scores.name for scores in result.per_class if not scores.photos]
    if absent:
        remarks.append(f"There are no photos of {quoted(absent)} here: nothing is known about {them(absent)}.")
    return remarks


def _test_remarks(result: EvaluationResult, level: Level) -> list[str]:
    low, high = result.accuracy_ci95
    if high - low <= WIDE_INTERVAL or level == "unproven":
        return []
    leaves = f" of {count(result.leaves, 'leaf')}" if result.leaves < result.photos else ""
    return [
        f"{count(result.photos, 'photo')}{leaves} can say little: of others between {number(low)} and {percent(high)} "
        "can be right."
    ]


def _learning_remarks(learning: Learning, progress: Progress, *, good: bool) -> list[str]:
    best, epochs = learning.best_epoch, count(learning.epochs, "epoch")
    if progress == "still improving":
        last, before = learning.accuracy_ends()
        return [
            f"It was still improving when it stopped: from {number(before)} to {percent(last)} of the validation "
            "photos in the last epochs."
        ]
    if good:
        return []
    if progress == "never began":
        return [f"It never began to learn: after {epochs} it is no better on validation photos than chance."]
    if progress == "memorised":
        return ["It learnt its training photos by heart, and nothing that holds for other photos."]
    if progress == "stopped":
        return [f"It stopped learning after epoch {best} of {learning.epochs}: more epochs alone will not help."]
    if 0 < learning.epochs < MIN_EPOCHS:
        return [f"It trained for {epochs} only, too few to tell whether it was still improving."]
    return []


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
