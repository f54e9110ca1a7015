"""The table of methods: what each compares, with the weights of its paper."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from agridistill.errors import ConfigError, nearest

if TYPE_CHECKING:
    # Recipes are read without torch.
    from agridistill.losses.logits import LogitDistance


@dataclass(frozen=True)
class Method:
    """A way to train the student: default weights of the objective's terms.

    Attributes:
        name: as on the command line.
        w_ce: of the cross entropy with the labels.
        w_kd: of the distance to the teacher's logits.
        w_att: of the attention alignment at its peak.
        description: one line, with the source.
        w_hint: of the features' distance in a first stage.
        logits: which distance to the teacher's logits.
        temperature: T of that distance.
    """

    name: str
    w_ce: float
    w_kd: float
    w_att: float
    description: str
    w_hint: float = 0.0
    logits: LogitDistance = "kl"
    temperature: float = 4.0

    @property
    def uses_teacher(self) -> bool:
        """Whether any term looks at a teacher."""
        return self.w_kd > 0 or self.w_att > 0 or self.w_hint > 0


METHODS: Mapping[str, Method] = MappingProxyType(
    {
        method.name: method
        for method in (
            Method("ce", 1.0, 0.0, 0.0, "labels alone: the baseline"),
            Method("kd", 0.1, 0.9, 0.0, "labels and the teacher's class probabilities (Hinton et al. 2015)"),
            Method(
                "kd-std",
                0.1,
                9.0,
                0.0,
                "kd on standardised logits (Sun et al. 2024)",
                logits="standardised",
                temperature=2.0,
            ),
            Method(
                "dkd", 1.0, 1.0, 0.0, "kd with target and other classes apart (Zhao et al. 2022)", logits="decoupled"
            ),
            Method(
                "dist",
                1.0,
                2.0,
                0.0,
                "correlations of the class probabilities (Huang et al. 2022)",
                logits="correlation",
            ),
            Method("at", 1.0, 0.0, 5.0, "labels and the teacher's attention (Zagoruyko and Komodakis 2017)"),
            Method("fitnet", 0.1, 0.9, 0.0, "the teacher's features first, then kd (Romero et al. 2015)", w_hint=1.0),
            Method("hybrid", 0.1, 0.9, 5.0, "labels, the teacher's class probabilities and its attention"),
            Method("hybrid-hint", 0.1, 0.9, 5.0, "the teacher's features first, then hybrid", w_hint=1.0),
        )
    }
)


def get_method(name: str) -> Method:
    """Looks a method up.

    Raises:
        ConfigError: there is none of that name.

    Example:
        >>> get_method("hybrid").w_att
        5.0
    """
    if name not in METHODS:
        raise ConfigError("a distillation method", f"'{name}'", nearest(name, METHODS))
    return METHODS[name]
