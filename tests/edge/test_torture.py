"""The short form of `make torture`."""

from __future__ import annotations

from pathlib import Path

import pytest

from .outage import outage
from .torture import torture

pytestmark = [pytest.mark.slow, pytest.mark.needs("mosquitto")]


def test_kills_and_broker_restarts_lose_no_detection(tmp_path: Path, colour_model: Path) -> None:
    outcome = torture(tmp_path, colour_model, kills=20, detections=300, restarts=3, seed=7)
    assert outcome.holds, outcome
    assert outcome.photos == 300


def test_what_was_seen_while_the_broker_was_away_arrives_in_order(tmp_path: Path, colour_model: Path) -> None:
    found = outage(tmp_path, colour_model, detections=400)
    assert found.holds, found
    assert found.detections == 400
