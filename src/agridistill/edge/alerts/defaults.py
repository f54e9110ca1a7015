"""Which classes of a model are healthy, and the rule that warns of all others where the settings hold no rules."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from glob import escape

from agridistill.edge.alerts.rules import Rule
from agridistill.errors import ConfigError, nearest

DEFAULT_RULE_NAME = "ill leaves"
# As in `Rule`: two clearly ill leaves of five open an alert, a single one does not.
DEFAULT_SHARE, DEFAULT_LEAST_LEAVES = 0.3, 5
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")
_NEGATIONS = frozenset({"not", "non", "no", "un"})


def is_healthy(name: str, healthy: Sequence[str] = ()) -> bool:
    """Whether a class is of healthy leaves, by its name.

    Args:
        name: of the class.
        healthy: names and patterns of further healthy classes.

    Example:
        >>> [is_healthy(name) for name in ("Tomato___healthy", "HealthyLeaf", "normal", "Unhealthy", "not_healthy")]
        [True, True, True, False, False]
        >>> is_healthy("Tomato/normal")
        True
    """
    if any(fnmatchcase(name, pattern) for pattern in healthy):
        return True
    words = [word.lower() for word in _WORD.findall(re.split("___|/", name)[-1])]
    if words == ["normal"]:
        return True
    return "healthy" in words and not _NEGATIONS & set(words[: words.index("healthy")])


def ill_classes(classes: Sequence[str], healthy: Sequence[str] = ()) -> list[str]:
    """Those of a model that are not healthy.

    Args:
        classes: of the model.
        healthy: names and patterns of healthy classes, besides those that `is_healthy` recognises.

    Raises:
        ConfigError: a name or pattern of `healthy` that fits no class.
    """
    for pattern in healthy:
        if not any(fnmatchcase(name, pattern) for name in classes):
            raise ConfigError("classes of the model in 'healthy'", f"'{pattern}'", nearest(pattern, classes))
    return [name for name in classes if not is_healthy(name, healthy)]


def default_rules(ill: Sequence[str], window_minutes: float) -> tuple[Rule, ...]:
    """One rule for all ill classes, so that leaves that are ill of several add up; none without ill classes.

    Args:
        ill: classes to warn of, as `ill_classes` gives them.
        window_minutes: how long a leaf counts.
    """
    if not ill:
        return ()
    return (
        Rule(
            DEFAULT_RULE_NAME,
            tuple(escape(name) for name in ill),
            share=DEFAULT_SHARE,
            least_leaves=DEFAULT_LEAST_LEAVES,
            window_minutes=window_minutes,
        ),
    )


def why_nothing_warns(rules: Sequence[Rule], ill: Sequence[str]) -> str | None:
    """Why no alert can open, and what to do; None where there are rules.

    Args:
        rules: that are applied.
        ill: classes of the model that are not healthy.
    """
    if rules:
        return None
    if ill:
        return (
            "Nothing can warn: there are no rules and default_rules is false. Remove that line from watch.toml, or "
            "add [[rules]]."
        )
    return (
        "Nothing can warn: all classes of the model count as healthy. Add [[rules]] to watch.toml, correct 'healthy' "
        "there, or use a model that knows diseases."
    )


def why_all_is_ill(rules: Sequence[Rule], ill: Sequence[str], classes: Sequence[str]) -> str | None:
    """What to do where the default rule would warn of every leaf; None where it does not.

    Args:
        rules: that are applied.
        ill: classes of the model that are not healthy.
        classes: all of them.
    """
    if len(ill) < len(classes) or all(rule.name != DEFAULT_RULE_NAME for rule in rules):
        return None
    names = ", ".join(classes[:5]) + (", ..." if len(classes) > 5 else "")
    return (
        f"No class of the model is healthy by its name, so every leaf counts as ill ({names}). Name the healthy ones "
        'in watch.toml: healthy = ["..."], or add [[rules]].'
    )
