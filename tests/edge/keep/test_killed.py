"""The short form of `python -m tests.edge.keep.killed`."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.edge.keep.killed import killed

pytestmark = pytest.mark.slow


@pytest.mark.needs("rclone")
def test_kills_lose_no_photo_that_is_uploaded_and_give_none_two_names(tmp_path: Path, colour_model: Path) -> None:
    outcome = killed(tmp_path, colour_model, kills=12, photos=150, upload=True, limit_mb=50, seed=3)
    assert outcome.holds, outcome
    assert outcome.arrived == 150


def test_kills_do_not_break_the_limit_of_the_folder(tmp_path: Path, colour_model: Path) -> None:
    outcome = killed(tmp_path, colour_model, kills=12, photos=150, upload=False, limit_mb=0.05, seed=4)
    assert outcome.holds, outcome
    assert outcome.dropped + outcome.arrived == 150
    assert outcome.largest_bytes > 25_000
