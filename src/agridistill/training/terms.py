"""Which terms an objective has, with which weights."""

from __future__ import annotations

from agridistill.losses.methods import get_method
from agridistill.training.settings import ObjectiveSettings


def weights_of(settings: ObjectiveSettings) -> dict[str, float]:
    """The weights of the terms: the settings' where they name one, else the method's own.

    A recipe serves all methods: a term that a method does not have stays away, and a single term keeps its weight.
    """
    method = get_method(settings.method)
    own = {name: float(getattr(method, name)) for name in ("w_ce", "w_kd", "w_att", "w_hint")}
    terms = [name for name, weight in own.items() if weight > 0]
    if len(terms) > 1:
        own |= {name: getattr(settings, name) for name in terms if getattr(settings, name) is not None}
    return own


def listens(settings: ObjectiveSettings) -> bool:
    """Whether a term of the objective looks at a teacher."""
    weights = weights_of(settings)
    return any(weights[name] > 0 for name in ("w_kd", "w_att", "w_hint"))


def temperature_of(settings: ObjectiveSettings) -> float:
    """The settings' where they name one, else the method's own."""
    return get_method(settings.method).temperature if settings.temperature is None else settings.temperature
