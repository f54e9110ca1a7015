"""When two names of classes are one to people: normal forms, capitals and spaces."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence

from agridistill.manifest import composed

# Between two digits a space parts numbers: "grade 1 1" is not "grade 11".
_SPACES = re.compile(r"(?<!\d)[\s_]+|[\s_]+(?!\d)")


def alike_names(names: Iterable[str]) -> tuple[tuple[str, ...], ...]:
    """Groups of names that differ in capitals, spaces (also written `_`) or normal form alone.

    Example:
        >>> alike_names(["Late blight", "Rust", "late_blight ", "rust 2"])
        (('Late blight', 'late_blight '),)
    """
    groups: dict[str, list[str]] = defaultdict(list)
    for name in sorted(names):
        groups[_SPACES.sub("", composed(name).casefold())].append(name)
    return tuple(tuple(group) for group in groups.values() if len(group) > 1)


def alike_in_words(group: Sequence[str]) -> str:
    """A group of `alike_names` as a sentence.

    Example:
        >>> alike_in_words(("Rust", "rust"))
        "classes whose names differ in capitals, spaces or normal form alone: 'Rust' and 'rust'"
    """
    written = [f"'{name}'" for name in dict.fromkeys(map(composed, group))]
    if len(written) == 1:
        return f"{len(group)} class folders {written[0]} in different Unicode normal forms, which are one class"
    return f"classes whose names differ in capitals, spaces or normal form alone: {' and '.join(written)}"
