"""The table of methods. To add a loss, write a function in `logits` or `maps` and a row here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, NamedTuple

from torch import Tensor

from agridistill.errors import ConfigError, nearest
from agridistill.losses.logits import dist_loss, dkd_loss, kd_loss, standardised_kd_loss
from agridistill.losses.maps import attention_distance, hint_loss

Need = Literal["logits", "maps", "features"]


class Term(NamedTuple):
    """A loss function of a method, and its default weight in the objective."""

    weight: float
    loss: Callable[..., Tensor]


@dataclass(frozen=True)
class Method:
    """A distillation method: the loss terms besides the cross entropy with the labels. None leaves a term out.

    - `logits`: its loss is called with (student_logits, teacher_logits, target, temperature); the first three have the
      shapes `(B, K)`, `(B, K)` and `(B,)`.
    - `maps`: its loss is called with (student_map, teacher_map, distance); both maps are `(B, H, W)` or `(B, M, H, W)`.
    - `features`: its loss is called with (student_features, teacher_features), both `(B, C, H, W)`, and only in a first
      stage of the training.
    """

    name: str
    description: str  # one line that cites the paper
    w_ce: float  # weight of the cross entropy with the labels
    logits: Term | None = None
    maps: Term | None = None
    features: Term | None = None
    temperature: float = 4.0
    min_classes: int = 2

    @property
    def needs(self) -> frozenset[Need]:
        """The outputs of the teacher that the method needs: any of "logits", "maps" and "features"."""
        terms: dict[Need, Term | None] = {"logits": self.logits, "maps": self.maps, "features": self.features}
        return frozenset(name for name, term in terms.items() if term is not None)

    def weights(self, chosen: Mapping[str, float | None]) -> dict[str, float]:
        """Returns the weights of the loss terms by name ("w_ce", "w_kd", "w_att", "w_hint").

        A weight in `chosen` replaces the method's own, unless it is None. So that one recipe serves all methods, a
        chosen weight is ignored if the method lacks the term, or if it is the method's only term.
        """
        terms = {"w_kd": self.logits, "w_att": self.maps, "w_hint": self.features}
        own = {"w_ce": self.w_ce} | {name: term.weight if term else 0.0 for name, term in terms.items()}
        present = [name for name, weight in own.items() if weight > 0]
        if len(present) > 1:
            own |= {name: value for name in present if (value := chosen.get(name)) is not None}
        return own


def _without_target(loss: Callable[[Tensor, Tensor, float], Tensor]) -> Callable[..., Tensor]:
    def labelled(student_logits: Tensor, teacher_logits: Tensor, target: Tensor, temperature: float) -> Tensor:
        return loss(student_logits, teacher_logits, temperature)

    return labelled


_KD = Term(0.9, _without_target(kd_loss))
_ATTENTION = Term(5.0, attention_distance)
_HINT = Term(1.0, hint_loss)

_ROWS = (
    Method("ce", "labels alone: the baseline", 1.0),
    Method("kd", "labels and the teacher's class probabilities (Hinton et al. 2015)", 0.1, logits=_KD),
    Method(
        "kd-std",
        "kd on standardised logits (Sun et al. 2024)",
        0.1,
        logits=Term(9.0, _without_target(standardised_kd_loss)),
        temperature=2.0,
        min_classes=3,  # two standardised logits are always 1 and -1, so they carry no information
    ),
    Method("dkd", "kd with target and other classes apart (Zhao et al. 2022)", 1.0, logits=Term(1.0, dkd_loss)),
    Method(
        "dist",
        "correlations of the class probabilities (Huang et al. 2022)",
        1.0,
        logits=Term(2.0, _without_target(dist_loss)),
    ),
    Method("at", "labels and the teacher's attention (Zagoruyko and Komodakis 2017)", 1.0, maps=_ATTENTION),
    Method("fitnet", "the teacher's features first, then kd (Romero et al. 2015)", 0.1, logits=_KD, features=_HINT),
    Method("hybrid", "labels, the teacher's class probabilities and its attention", 0.1, logits=_KD, maps=_ATTENTION),
    Method(
        "hybrid-hint", "the teacher's features first, then hybrid", 0.1, logits=_KD, maps=_ATTENTION, features=_HINT
    ),
)
METHODS: Mapping[str, Method] = MappingProxyType({method.name: method for method in _ROWS})


def get_method(name: str) -> Method:
    """Returns the method with this name from the table `METHODS`; a ConfigError names the most similar one.

    Example:
        >>> sorted(get_method("hybrid").needs)
        ['logits', 'maps']
    """
    if name not in METHODS:
        raise ConfigError("the name of a distillation method", f"'{name}'", nearest(name, METHODS))
    return METHODS[name]
