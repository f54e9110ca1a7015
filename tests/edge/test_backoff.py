"""Pauses double up to their limit, and begin anew after a success."""

from __future__ import annotations

import pytest

from agridistill.edge import backoff
from agridistill.edge.backoff import Backoff


@pytest.fixture
def no_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff.random, "uniform", lambda low, high: high)


@pytest.mark.usefixtures("no_jitter")
def test_pauses_double_up_to_the_longest_and_begin_anew() -> None:
    pauses = Backoff(1, 5)
    assert [pauses.pause_s() for _ in range(5)] == [1, 2, 4, 5, 5]
    pauses.reset()
    assert pauses.pause_s() == 1
    pauses.skip_to_longest()
    assert pauses.pause_s() == 5
    assert Backoff(60, 36).pause_s() == 36


def test_many_devices_do_not_come_back_in_one_moment() -> None:
    pauses = {Backoff(1, 1, least=0.5).pause_s() for _ in range(50)}
    assert len(pauses) > 10
    assert all(0.5 <= pause <= 1 for pause in pauses)
