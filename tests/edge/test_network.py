"""An address is displayed without its secrets; pauses double up to their limit, and begin anew after a success."""

from __future__ import annotations

import pytest

from agridistill.edge import network
from agridistill.edge.network import Backoff, public_name, split_url, with_user


def test_a_password_with_a_slash_does_not_show_in_the_name() -> None:
    assert "cret" not in public_name(split_url("rtsp://me:5/cret@host/stream"))


@pytest.mark.parametrize(
    "path",
    ["user=admin&password=geheim&channel=1", "user%3Dadmin%26password%3Dgeheim", "cam/user=admin;password=geheim"],
)
def test_a_password_in_the_path_does_not_show_in_the_name(path: str) -> None:
    assert public_name(split_url(f"rtsp://10.0.0.5/{path}")) == "rtsp://10.0.0.5/…"
    assert public_name(split_url(f"http://10.0.0.5:81/{path}")) == "http://10.0.0.5:81/…"


def test_user_and_password_are_quoted_in_an_address() -> None:
    assert with_user(split_url("rtsp://host:554/s?a=1"), "you", "p/w") == "rtsp://you:p%2Fw@host:554/s?a=1"
    assert with_user(split_url("rtsp://host/s"), None, "") == "rtsp://host/s"


@pytest.fixture
def no_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network.random, "uniform", lambda low, high: high)


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
