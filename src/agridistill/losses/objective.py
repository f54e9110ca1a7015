"""The training objective: the weighted sum of the losses on labels and on the teacher's logits, maps and features."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from agridistill.errors import ConfigError, ModelError, nearest
from agridistill.losses.logits import cross_entropy_loss
from agridistill.losses.maps import ChannelProjection, Distance, HintRegressor, channel_mean_square, match_resolution
from agridistill.losses.methods import METHODS, Method

Alignment = Literal["fixed", "learned"]
Decay = Literal["cosine", "none"]


@dataclass(frozen=True)
class StagePair:
    """A stage of the student and a stage of the teacher whose attention or feature maps are compared.

    Stages are given by their stride in input pixels; `weight` is the factor of this pair in the sum over all pairs.
    """

    student: int
    teacher: int
    weight: float = 1.0

    @property
    def name(self) -> str:
        """Name of the pair's term in the result, such as "attention_s16_t32" for the strides 16 and 32."""
        return f"attention_s{self.student}_t{self.teacher}"


def attention_schedule(progress: float, warmup: float = 0.1, decay: Decay = "cosine") -> float:
    """Returns the factor of the attention weight at a point of the training, in [0, 1].

    It rises linearly from 0 to 1 during the warm-up, then falls to 0 along half a cosine.

    Args:
        progress: share of the training that is done, in [0, 1].
        warmup: share of the training that the warm-up takes, in [0, 1).
        decay: "cosine" lets it fall as above; with "none" it stays at 1 after the warm-up.

    Example:
        >>> [round(attention_schedule(p, warmup=0.2), 3) for p in (0.0, 0.1, 0.2, 0.6, 1.0)]
        [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    progress = min(max(progress, 0.0), 1.0)
    if progress < warmup:
        return progress / warmup
    return 1.0 if decay == "none" else 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


class DistillationObjective(nn.Module):
    """Computes a student's loss: `w_ce * CE + w_kd * logit loss + w_att * schedule * attention`, in float32.

    The method determines the logit loss and the distance between maps. `attention` is the sum over all pairs of stages
    of the distance between their attention maps, times the weight of the pair.

    With `w_hint` > 0 the training has two stages (Romero et al. 2015, arXiv 1412.6550, section 2.2). In the first, the
    loss is only `w_hint` times the distance between the pairs' feature maps. In the second, it is the sum above, and
    the schedule of the attention begins.

    Args:
        method: the method, which determines the terms; see `METHODS`.
        w_ce: weight of the cross entropy, >= 0. For all four weights, None means the method's; see `Method.weights`.
        w_kd: weight of the logit loss.
        w_att: weight of the attention term, before the schedule.
        w_hint: weight of the distance between feature maps in the first stage.
        hint_share: share of the training, in (0, 1), that the first stage takes.
        temperature: temperature T > 0 of the class probabilities; None means the method's.
        label_smoothing: label smoothing of the cross entropy, in [0, 1).
        labelled_share: share of photos with labels, in (0, 1]; see `cross_entropy_loss`.
        pairs: the pairs of stages whose attention or feature maps are compared.
        student_channels: number of channels of the student's features by stride; needed for alignment "learned" and for
            `w_hint` > 0.
        teacher_channels: number of channels of the teacher's features by stride; needed for `w_hint` > 0.
        alignment: how the student's features become attention maps. "fixed" takes the channel mean of their squares,
            "learned" a learned projection of their squares.
        teacher_maps: number of maps by stride that the student imitates for each photo; 1 for a missing stride. With 1,
            several maps of the teacher (one for each attention head) are averaged. More than 1 needs "learned".
        distance: distance between attention maps; see `attention_distance`.
        warmup: see `attention_schedule`; a share of the training after the first stage.
        decay: see `attention_schedule`.

    Raises:
        ConfigError: a setting is out of its range or contradicts another.
    """

    def __init__(
        self,
        method: Method = METHODS["hybrid"],
        *,
        w_ce: float | None = None,
        w_kd: float | None = None,
        w_att: float | None = None,
        w_hint: float | None = None,
        hint_share: float = 0.25,
        temperature: float | None = None,
        label_smoothing: float = 0.0,
        labelled_share: float = 1.0,
        pairs: Sequence[StagePair] = (),
        student_channels: Mapping[int, int] | None = None,
        teacher_channels: Mapping[int, int] | None = None,
        alignment: Alignment = "fixed",
        teacher_maps: Mapping[int, int] | None = None,
        distance: Distance = "l2",
        warmup: float = 0.1,
        decay: Decay = "cosine",
    ) -> None:
        super().__init__()
        self.method = method
        self.weights = method.weights({"w_ce": w_ce, "w_kd": w_kd, "w_att": w_att, "w_hint": w_hint})
        self.hint_share, self.label_smoothing, self.labelled_share = hint_share, label_smoothing, labelled_share
        self.temperature = method.temperature if temperature is None else temperature
        attends, hints = self.weights["w_att"] > 0, self.weights["w_hint"] > 0
        self.pairs = tuple(pairs) if attends or hints else ()
        self.distance, self.warmup, self.decay = distance, warmup, decay
        self.teacher_maps = {pair.teacher: (teacher_maps or {}).get(pair.teacher, 1) for pair in self.pairs}
        students, teachers = student_channels or {}, teacher_channels or {}
        for name, value, kind in (
            ("alignment", alignment, Alignment),
            ("distance", distance, Distance),
            ("decay", decay, Decay),
        ):
            if value not in get_args(kind):
                raise ConfigError(f"a known {name}", f"'{value}'", nearest(value, get_args(kind)))
        self._check(alignment, students, teachers)
        self.projections, self.regressors = nn.ModuleDict(), nn.ModuleDict()
        for pair in self.pairs:
            if hints:
                self.regressors[pair.name] = HintRegressor(students[pair.student], teachers[pair.teacher])
            if attends and alignment == "learned":
                maps = self.teacher_maps[pair.teacher]
                self.projections[pair.name] = ChannelProjection(students[pair.student], maps)

    def in_first_stage(self, progress: float) -> bool:
        """Returns whether the first stage is going on when the share `progress` of the training is done."""
        return self.weights["w_hint"] > 0 and progress < self.hint_share

    def forward(
        self,
        student_logits: Tensor,
        student_features: Mapping[int, Tensor],
        target: Tensor,
        *,
        teacher_logits: Tensor | None = None,
        teacher_maps: Mapping[int, Tensor] | None = None,
        teacher_features: Mapping[int, Tensor] | None = None,
        progress: float = 0.0,
    ) -> dict[str, Tensor]:
        """Computes all loss terms and their weighted sum; the teacher's outputs get no gradients.

        Args:
            student_logits: `(B, K)`.
            student_features: `(B, C, H, W)` by stride, for the student's strides in `pairs`.
            target: class indices `(B,)`, -1 for photos without labels, or class probabilities `(B, K)`, if the method
                accepts them.
            teacher_logits: `(B, K)`; needed if `w_kd` > 0.
            teacher_maps: `(B, H, W)` or `(B, M, H, W)` by stride; needed if `w_att` > 0.
            teacher_features: `(B, C, H, W)` by stride; needed in the first stage.
            progress: share of the training that is done, in [0, 1].

        Returns:
            Float32 scalars by name. "total" is the weighted sum. The others are terms before weight and schedule: "ce",
            "kd", "attention", "attention_s16_t16" and so on for each pair, and "hint" in the first stage. A term with
            weight 0 is left out, except "ce", which then has no gradient.

        Raises:
            ModelError: an output of the teacher is missing, or its classes or batch differ from the student's.
        """
        weights, method = self.weights, self.method
        with torch.autocast(device_type=student_logits.device.type, enabled=False):
            ce = cross_entropy_loss(student_logits, target, self.label_smoothing, labelled_share=self.labelled_share)
            terms = {"ce": ce if weights["w_ce"] > 0 else ce.detach()}
            total = weights["w_ce"] * terms["ce"]
            if method.logits and weights["w_kd"] > 0:
                teacher = _matching_logits(student_logits, teacher_logits)
                terms["kd"] = method.logits.loss(student_logits, teacher, target, self.temperature)
                total = total + weights["w_kd"] * terms["kd"]
            if weights["w_att"] > 0:
                for pair in self.pairs:
                    terms[pair.name] = self._pair_distance(pair, student_features, teacher_maps or {})
                terms["attention"] = torch.stack([pair.weight * terms[pair.name] for pair in self.pairs]).sum()
                total = total + weights["w_att"] * self._attention_share(progress) * terms["attention"]
            # Multiply by 0 instead of leaving terms out, because DDP needs a gradient for every parameter.
            if self.in_first_stage(progress):
                terms["hint"] = self._hint(student_features, teacher_features or {})
                total = weights["w_hint"] * terms["hint"] + 0.0 * total
            elif weights["w_hint"] > 0:
                total = total + 0.0 * sum(parameter.sum() for parameter in self.regressors.parameters())
            terms["total"] = total
        return terms

    def _attention_share(self, progress: float) -> float:
        if self.weights["w_hint"] > 0:
            progress = max(0.0, progress - self.hint_share) / (1 - self.hint_share)
        return attention_schedule(progress, self.warmup, self.decay)

    def _hint(self, features: Mapping[int, Tensor], teachers: Mapping[int, Tensor]) -> Tensor:
        assert self.method.features is not None  # noqa: S101 - its weight is above 0
        losses = []
        for pair in self.pairs:
            student = self.regressors[pair.name](_at_stride(features, pair.student, "student's features"))
            teacher = _at_stride(teachers, pair.teacher, "teacher's features").detach()
            losses.append(pair.weight * self.method.features.loss(*match_resolution(student, teacher)))
        return torch.stack(losses).sum()

    def _pair_distance(self, pair: StagePair, features: Mapping[int, Tensor], maps: Mapping[int, Tensor]) -> Tensor:
        assert self.method.maps is not None  # noqa: S101 - its weight is above 0
        student_features = _at_stride(features, pair.student, "student's features")
        teacher = _at_stride(maps, pair.teacher, "teacher's attention maps").detach()
        if len(teacher) != len(student_features):
            expected = f"teacher's maps for the student's {len(student_features)} photos"
            raise ModelError(expected, f"maps for {len(teacher)} photos", "give both models the same batch")
        single = self.teacher_maps[pair.teacher] == 1
        if teacher.dim() == 4 and single:
            teacher = teacher.float().mean(dim=1)
        if pair.name in self.projections:
            student = self.projections[pair.name](student_features)
            student = student.squeeze(1) if single else student
        else:
            student = channel_mean_square(student_features)
        return self.method.maps.loss(*match_resolution(student, teacher), self.distance)

    def _check(self, alignment: str, students: Mapping[int, int], teachers: Mapping[int, int]) -> None:
        weights, hints = self.weights, self.weights["w_hint"] > 0
        for name, value in weights.items():
            _require(math.isfinite(value) and value >= 0, f"{name} >= 0", value)
        _require(any(weights[name] for name in ("w_ce", "w_kd", "w_att")), "w_ce, w_kd or w_att above 0", "all 0")
        _require(0 < self.hint_share < 1, "a hint_share between 0 and 1", self.hint_share)
        _require(self.temperature > 0, "a temperature above 0", self.temperature)
        _require(0 <= self.label_smoothing < 1, "label smoothing in [0, 1)", self.label_smoothing)
        _require(0 <= self.warmup < 1, "a warm-up share in [0, 1)", self.warmup)
        needed = weights["w_att"] > 0 or hints
        _require(not needed or bool(self.pairs), "at least one pair of stages for w_att > 0 or w_hint > 0", "none")
        names = [pair.name for pair in self.pairs]
        _require(len(set(names)) == len(names), "each pair of stages once", ", ".join(names))
        for pair in self.pairs:
            _require(pair.weight > 0, "pair weights above 0", pair.weight)
            known = pair.student in students or not (hints or alignment == "learned")
            _require(known, f"student_channels at stride {pair.student}", f"strides {sorted(students)}")
            known = pair.teacher in teachers or not hints
            _require(known, f"teacher_channels at stride {pair.teacher}", f"strides {sorted(teachers)}")
        most = max(self.teacher_maps.values(), default=1)
        _require(alignment == "learned" or most == 1, "one teacher map for each stage with fixed alignment", most)


def _require(holds: bool, expected: str, got: object) -> None:
    if not holds:
        raise ConfigError(expected, str(got), "correct the objective's settings")


def _matching_logits(student_logits: Tensor, teacher_logits: Tensor | None) -> Tensor:
    if teacher_logits is None:
        raise ModelError("the teacher's logits for w_kd > 0", "none", "pass teacher_logits, or set w_kd = 0")
    student, teacher = tuple(student_logits.shape), tuple(teacher_logits.shape)
    if student[-1] != teacher[-1]:
        expected = f"a teacher with the student's {student[-1]} classes"
        raise ModelError(expected, f"a teacher with {teacher[-1]}", "train the teacher on the same class folders")
    if student != teacher:
        raise ModelError(f"teacher's logits of shape {student}", f"{teacher}", "give both models the same batch")
    return teacher_logits.detach()


def _at_stride(tensors: Mapping[int, Tensor], stride: int, what: str) -> Tensor:
    if stride not in tensors:
        got = f"strides {sorted(tensors)}" if tensors else "none"
        raise ModelError(f"the {what} at stride {stride}", got, "pass the outputs at all strides of `pairs`")
    return tensors[stride]
