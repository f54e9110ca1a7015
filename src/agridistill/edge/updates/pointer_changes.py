"""What may happen to a pointer, without a disk."""

from __future__ import annotations

from dataclasses import replace

from agridistill.edge.updates.keys import key_id
from agridistill.edge.updates.pointer import Pointer
from agridistill.edge.updates.release import Release


def switched(pointer: Pointer, release: Release) -> Pointer:
    """A release becomes the active version, on trial, and its keys count."""
    removed, added = release.trust.remove, release.trust.add
    again = {key_id(bytes.fromhex(key)) for key in added}
    kept_removed = [name for name in pointer.removed_keys if name not in again]
    kept_added = [key for key in pointer.added_keys if key_id(bytes.fromhex(key)) not in removed]
    return replace(
        pointer,
        active=release.version,
        # One on trial has not shown that one could return to it.
        good=pointer.good if pointer.trial else pointer.active,
        trial=True,
        starts=0,
        frames=0,
        highest=max(pointer.highest, release.version),
        killed_checks={},
        added_keys=tuple(dict.fromkeys((*kept_added, *added))),
        removed_keys=tuple(dict.fromkeys((*kept_removed, *removed))),
    )


def refusing(pointer: Pointer, version: int, why: str) -> Pointer:
    """A version failed here."""
    refused = {**pointer.refused, version: why[:300]}
    # Older ones than the highest are refused anyway.
    return replace(pointer, refused={number: text for number, text in refused.items() if number >= pointer.highest})


def confirmed(pointer: Pointer, version: int) -> Pointer:
    """A version has worked; nothing changes where another one is active by now."""
    return replace(pointer, trial=False, starts=0, frames=0) if pointer.active == version else pointer


def ended_well(pointer: Pointer, version: int, answered: int) -> Pointer:
    """A life of a version on trial ended in an orderly way: its start does not count, its answers do."""
    if not pointer.trial or pointer.active != version:
        return pointer
    return replace(pointer, starts=max(0, pointer.starts - 1), frames=pointer.frames + answered)


def check_killed(pointer: Pointer, version: int) -> Pointer:
    """The golden check of a version was killed once more."""
    times = {number: count for number, count in pointer.killed_checks.items() if number >= pointer.highest}
    return replace(pointer, killed_checks={**times, version: times.get(version, 0) + 1})
