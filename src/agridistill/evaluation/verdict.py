"""Judges whether a model can be used, and for what: gives it a level, a headline, remarks and advice."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from agridistill.evaluation.evaluate import EvaluationResult
from agridistill.evaluation.learning import (
    WIDE_INTERVAL,
    Findings,
    Learning,
    Level,
    advice_on,
    count,
    join,
    learning_remarks,
    number,
    percent,
    quoted,
)
from agridistill.evaluation.metrics import ClassScores, wilson_interval

# A person who checks the answers can catch at most about one wrong answer in five.
GOOD_ACCURACY = 0.80
# With at least this accuracy, wrong answers are so rare that a person need not check each answer.
TRUSTED_ACCURACY = 0.95
# With a lower accuracy, an answer is more often wrong than right.
HALF = 0.5
# A recall this far below that of the other classes is worth a remark; a smaller gap is usual.
WEAK_CLASS_GAP = 0.15
# With fewer photos of a class, its recall means nothing.
MIN_CLASS_PHOTOS = 2
# An exported model that answers fewer than half of the photos leaves most of the work to a person.
USEFUL_COVERAGE = 0.5

_WORDS: Mapping[Level, str] = {"usable": "Usable", "weak": "Weak", "unproven": "Unproven", "unusable": "Not usable"}
_FROM_BEST = tuple(_WORDS)
# Words for the photos of each split.
_SPLITS = {"test": "new photos", "val": "validation photos", "train": "the photos that it learnt from"}


@dataclass(frozen=True)
class ModelVerdict:
    """Whether a model can be used, with reasons and advice for the person who decides."""

    # "usable"; "weak" (usable if a person checks the answers); "unproven" (there are too few photos to decide); or
    # "unusable".
    level: Level
    headline: str  # one sentence without a full stop, such as "Usable: right on 95 % of new photos"
    remarks: tuple[str, ...] = ()  # other findings, in whole sentences
    advice: tuple[str, ...] = ()  # what would make the model better, the most helpful first, in whole sentences

    @property
    def usable(self) -> bool:
        """Whether the model may be used: its level is "usable" or "weak"."""
        return self.level in ("usable", "weak")

    @property
    def reason(self) -> str:
        """The headline without the words for the level."""
        return self.headline.partition(": ")[2]

    def to_json(self) -> dict[str, Any]:
        """Returns a JSON document: "usable", "level", "headline", "remarks" and "advice"."""
        return {"usable": self.usable, **asdict(self)}


def judge(result: EvaluationResult, *, learning: Learning | None = None) -> ModelVerdict:
    """Decides whether a model can be used, from its evaluation and from its training if that is known.

    The evaluation is on photos that the model did not learn from; with the split "train" the level is "unproven" at
    best. `learning` is the result of `read_learning`.
    """
    learning = learning or Learning()
    level, reason = _decide(result)
    found = Findings(level, result, learning, learning.progress(result.chance), _weak_classes(result))
    remarks = (*_remarks(found), *learning_remarks(found))
    return ModelVerdict(level, f"{_WORDS[level]}: {reason}", remarks, tuple(advice_on(found)))


def judge_artefact(
    *,
    photos: int,
    accuracy: float,
    coverage: float,
    accuracy_of_answers: float,
    classes: int,
    run: ModelVerdict | None = None,
) -> ModelVerdict:
    """Decides whether an exported model can be used, from its measured accuracy and coverage.

    `accuracy` is the share of the photos whose top class is right, answered or not; `coverage` is the share that it
    answers, `accuracy_of_answers` the share of these answers that are right; all are 0 to 1. `run` is the verdict about
    the run that it was exported from, which limits its level; None if unknown.
    """
    level, reason = _decide_artefact(photos, accuracy, coverage, accuracy_of_answers, classes)
    headline = f"{_WORDS[level]}: {reason}"
    remarks, advice = [], list(run.advice) if run is not None else []
    low, high = wilson_interval(accuracy, photos)
    if high - low > WIDE_INTERVAL:
        remarks.append(
            f"{count(photos, 'photo')} are few: of other photos it may name between {number(low)} and "
            f"{percent(high)} correctly."
        )
    if coverage == 0 and accuracy >= HALF:
        # If it has to be right no more often than it is over all photos, it answers every photo.
        advice.insert(0, f"Export it again with --answers {math.floor(20 * accuracy) / 20:.2f}.")
    if run is None or run.level == "usable":
        advice = advice if level != "usable" else []
    elif _FROM_BEST.index(run.level) <= _FROM_BEST.index(level):
        remarks.append(f"Its run: {run.headline}.")
    else:
        # The exported model cannot be better than the network that it holds.
        level, headline = run.level, f"{_WORDS[run.level]}, like its run: {run.reason}"
    return ModelVerdict(level, headline, tuple(remarks), tuple(advice))


def _decide_artefact(
    photos: int, accuracy: float, coverage: float, accuracy_of_answers: float, classes: int
) -> tuple[Level, str]:
    correctly = f"it names {percent(accuracy)} of {count(photos, 'photo')} correctly"
    low, high = wilson_interval(accuracy, photos)
    if low <= 1 / classes:
        if high >= GOOD_ACCURACY and high - low > WIDE_INTERVAL:
            return "unproven", f"{correctly}, too few to distinguish it from chance ({percent(1 / classes)})"
        return "unusable", f"no better than chance ({percent(1 / classes)}): {correctly}"
    if accuracy < HALF:
        return "unusable", f"more often wrong than right: {correctly}"
    if coverage == 0:
        return "unusable", "it answers no photo, because it is unsure about all of them"
    answers = f"it answers {percent(coverage)} of the photos, {percent(accuracy_of_answers)} of these correctly"
    if coverage < USEFUL_COVERAGE or accuracy_of_answers < GOOD_ACCURACY:
        return "weak", answers
    return "usable", answers if coverage == 1 else f"{answers}; about the others it is unsure"


def _decide(result: EvaluationResult) -> tuple[Level, str]:
    named = [name for name, photos in result.named_photos.items() if photos]
    present = sum(scores.photos > 0 for scores in result.per_class)
    low, high = result.accuracy_ci95
    interval = f"(95 % interval {number(low)} to {number(high)})"
    right = f"right on {percent(result.accuracy)} of {_SPLITS.get(result.split, 'these photos')}"
    few = f"right on {round(result.accuracy * result.photos)} of {count(result.photos, 'photo')} {interval}, too few to"
    if present > 1 and len(named) == 1:
        return "unusable", f"it names one class for every photo, '{named[0]}'"
    if result.split == "train":
        return "unproven", f"{right}, which says nothing about new ones"
    if present == 1:
        return "unproven", f"{right}, but all these photos are of one class"
    if low <= result.chance:
        if high >= GOOD_ACCURACY and high - low > WIDE_INTERVAL:
            return "unproven", f"{few} distinguish it from {_chance_words(result)}"
        return "unusable", f"no better than {_chance_words(result)}: {right} {interval}"
    if result.accuracy < HALF:
        return "unusable", f"more often wrong than right: {right} {interval}"
    if result.accuracy >= GOOD_ACCURACY and low < HALF:
        return "unproven", f"{few} tell whether it is good"
    failing = _failing_classes(result)
    if failing or result.accuracy < GOOD_ACCURACY:
        return "weak", f"{right} {interval}" + (f", but it {join(failing)}" if failing else "")
    tested = "" if present == len(result.classes) else f", of {present} of its {len(result.classes)} classes"
    return "usable", f"{right} {interval}{tested}"


def _chance_words(result: EvaluationResult) -> str:
    """Describes the accuracy that needs no learning, for example "chance (25 %)"."""
    largest = max(result.per_class, key=lambda scores: scores.photos)
    share = largest.photos / result.photos
    # If all classes have about equally many photos, "chance" is easier to understand.
    if share <= 1.2 / len(result.classes):
        return f"chance ({percent(result.chance)})"
    return f"naming '{largest.name}' for every photo ({percent(share)})"


def _failing_classes(result: EvaluationResult) -> list[str]:
    """Describes each class that the model never names or mostly misses, as the end of a sentence about the model."""
    failing = []
    for scores in result.per_class:
        if scores.recall is None or scores.photos < MIN_CLASS_PHOTOS:
            continue
        if not result.named_photos[scores.name]:
            failing.append(f"never names '{scores.name}'")
        elif scores.recall < HALF and _is_below_the_rest(scores, result):
            failing.append(f"misses most of '{scores.name}'")
    return failing


def _weak_classes(result: EvaluationResult) -> list[ClassScores]:
    """Returns the classes whose recall is significantly below that of the others, the worst first."""
    tested = (scores for scores in result.per_class if scores.photos >= MIN_CLASS_PHOTOS)
    return sorted((one for one in tested if _is_below_the_rest(one, result)), key=lambda one: one.recall or 0.0)


def _is_below_the_rest(scores: ClassScores, result: EvaluationResult) -> bool:
    """Tests whether a class's recall is significantly below the mean recall of the other classes, at 95 %.

    It uses Newcombe's interval of a difference (1998, Statistics in Medicine 17, method 10). Photos count as
    independent, so with several photos of one leaf a class may be called weak on too little evidence.
    """
    others = [other for other in result.per_class if other.name != scores.name and other.photos]
    if scores.recall is None or not others:
        return False
    rest = sum(other.recall or 0.0 for other in others) / len(others)
    below = rest - wilson_interval(rest, sum(other.photos for other in others)).low
    above = wilson_interval(scores.recall, scores.photos).high - scores.recall
    return rest - scores.recall >= max(WEAK_CLASS_GAP, math.hypot(below, above))


def _remarks(found: Findings) -> Iterator[str]:
    level, result, named = found.level, found.result, found.result.named_photos
    wrong = 1 - result.accuracy
    about = f"about 1 photo in {round(1 / wrong)} gets a wrong name" if wrong else "none of the photos got a wrong name"
    if level == "usable" and result.accuracy >= TRUSTED_ACCURACY:
        yield f"For answers without a check: {about}."
    elif level == "usable":
        yield f"For a first opinion: {about}, so look again before you treat a plant."
    elif level == "weak":
        yield f"To sort photos that a person then looks at: {about}. Not for answers without a check."
    if level in ("usable", "weak"):
        yield f"It is better than {_chance_words(result)}."
    for scores in found.weak:
        if named[scores.name] and level != "unusable":
            right = round((scores.recall or 0.0) * scores.photos)
            yield f"It finds '{scores.name}' less often than the others: {right} of {count(scores.photos, 'photo')}."
    # The headline of a weak model already lists classes with more photos.
    most = MIN_CLASS_PHOTOS - 1 if level == "weak" else result.photos
    never = [one.name for one in result.per_class if 0 < one.photos <= most and not named[one.name]]
    if never and sum(photos > 0 for photos in named.values()) > 1:
        yield f"It never names {quoted(never)}."
    absent = [scores.name for scores in result.per_class if not scores.photos]
    if absent:
        them = "it" if len(absent) == 1 else "them"
        yield f"There are no photos of {quoted(absent)} here: nothing is known about {them}."
    low, high = result.accuracy_ci95
    if high - low > WIDE_INTERVAL and level != "unproven":
        leaves = f" of {count(result.leaves, 'leaf')}" if result.leaves < result.photos else ""
        yield (
            f"{count(result.photos, 'photo')}{leaves} are few: of other photos, between {number(low)} and "
            f"{percent(high)} may be right."
        )
