"""Two processes build a teacher's cache; here they are threads."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from agridistill.data.prepare import prepare_data
from agridistill.data.views import Augmentation
from agridistill.manifest import Preprocessing
from agridistill.teacher_cache.build import CachedTeacher, Viewing
from agridistill.training.settings import ObjectiveSettings
from agridistill.training.teachers import teacher_source


class Gathering:
    """Of threads instead of processes."""

    def __init__(self, world: int) -> None:
        self._passed: list[Any] = [None] * world
        self._barrier = threading.Barrier(world, timeout=60)

    def of(self, rank: int, own: Any) -> Sequence[Any]:
        self._passed[rank] = own
        self._barrier.wait()
        passed = list(self._passed)
        self._barrier.wait()
        return passed


def build(leaves: Path, teacher: Path, caches: Path, views: int) -> list[list[tuple[int, int]]]:
    """What each of two processes tells of its progress."""
    prepared, gathering = prepare_data(leaves), Gathering(2)
    viewing = Viewing(leaves, prepared.train, prepared.fingerprint, Preprocessing(64), Augmentation(), views)

    sources = [teacher_source(teacher, caches, viewing, ObjectiveSettings(method="hybrid")) for _ in range(2)]

    def process(rank: int) -> list[tuple[int, int]]:
        told: list[tuple[int, int]] = []
        source = sources[rank]
        assert isinstance(source, CachedTeacher)
        source.prepare(
            torch.device("cpu"),
            workers=0,
            rank=rank,
            world=2,
            gather=lambda own: gathering.of(rank, own),
            progress=lambda done, total: told.append((done, total)),
        )
        source.close()
        return told

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(process, range(2)))


def test_the_progress_of_a_build_is_that_of_all_processes(leaves: Path, teacher_run: Path, tmp_path: Path) -> None:
    photos = len(prepare_data(leaves).train)
    for told in build(leaves, teacher_run, tmp_path, 2):
        assert told[-1] == (2 * photos, 2 * photos)
        assert {total for _, total in told} == {2 * photos}
    # A block more: the second process has none to build, but knows of the first one's.
    first, second = build(leaves, teacher_run, tmp_path, 3)
    assert first[-1] == (photos, photos)
    assert second == [(0, photos)]
    assert build(leaves, teacher_run, tmp_path, 3) == [[], []]
