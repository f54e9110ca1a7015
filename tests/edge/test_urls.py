"""An address is displayed without its secrets."""

from __future__ import annotations

import pytest

from agridistill.edge.urls import public_name, split_url, with_user


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
