"""The page of a review over real connections: what it records, and what it does not let others do."""

from __future__ import annotations

import errno
import http.client
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from PIL import Image
from tests.review.pages import leaf_photos, review_of, served

from agridistill.errors import RunError
from agridistill.review.record import HEADER, Action, ReviewLog
from agridistill.review.server import serving

TOKEN = "a-token-of-some-length"  # noqa: S105 - of these tests alone


@pytest.fixture
def photos(tmp_path: Path) -> list[str]:
    return leaf_photos(tmp_path, 4)


@pytest.fixture
def address(tmp_path: Path, photos: list[str]) -> Iterator[str]:
    with served(tmp_path, photos) as found:
        yield found


def ask(
    address: str, path: str, document: Any = None, method: str = "", **headers: str
) -> tuple[int, http.client.HTTPMessage, bytes]:
    parts = urlsplit(address)
    connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=10)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    body = None
    if document is not None:
        named = {"Content-Type": "application/json"} | named
        body = document if isinstance(document, str) else json.dumps(document)
    connection.request(method or ("GET" if body is None else "POST"), path, body, named)
    answer = connection.getresponse()
    told = answer.status, answer.headers, answer.read()
    connection.close()
    return told


def queue(address: str, *held: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(ask(address, f"/api/queue?held={','.join(held)}")[2])
    return found


def lines(folder: Path) -> list[tuple[str, str, str, str]]:
    return [(one.reviewer, one.verdict, one.label, one.photo) for one in ReviewLog(folder / "review.csv").read()]


def test_a_choice_is_recorded_once_and_its_photo_does_not_come_again(
    tmp_path: Path, photos: list[str], address: str
) -> None:
    first, second = queue(address)["photos"][:2]
    assert [first["name"], second["name"]] == photos[:2]
    assert first["guess"]["top"][0]["label"] == "green"
    choice = {"photo": first["id"], "verdict": "label", "label": "red"}
    for _ in range(2):  # as a browser does that has not got the answer
        assert ask(address, "/api/choice", choice)[0] == 200
    assert ask(address, "/api/choice", {"photo": second["id"], "verdict": "not a leaf"})[0] == 200
    assert lines(tmp_path) == [("anna", "label", "red", photos[0]), ("anna", "not a leaf", "", photos[1])]
    after = queue(address)
    assert [one["name"] for one in after["photos"]] == photos[2:]
    assert (after["left"], after["total"]) == (2, 4)
    assert [one["name"] for one in queue(address, after["photos"][0]["id"])["photos"]] == photos[3:]


def test_undo_leaves_choices_on_photos_that_are_not_shown(tmp_path: Path, photos: list[str]) -> None:
    choices = [("label", "red", photos[0]), ("label", "red", "moved/away.jpg")]
    ReviewLog(tmp_path / "review.csv").append([Action("2026-01-01T00:00:00Z", "anna", *each) for each in choices])
    with served(tmp_path, photos) as address:
        assert json.loads(ask(address, "/api/undo", {})[2])["photo"]["name"] == photos[0]
        assert json.loads(ask(address, "/api/undo", {})[2])["photo"] is None
    assert lines(tmp_path)[2:] == [("anna", "undo", "", photos[0])]


def test_undo_takes_back_one_choice_even_if_it_is_asked_twice(tmp_path: Path, photos: list[str], address: str) -> None:
    ids = [one["id"] for one in queue(address)["photos"]]
    for photo in ids[:2]:
        ask(address, "/api/choice", {"photo": photo, "verdict": "several"})
    taken = [json.loads(ask(address, "/api/undo", {"photo": ids[1]})[2])["photo"] for _ in range(2)]
    assert (taken[0]["name"], taken[1]) == (photos[1], None)
    assert lines(tmp_path)[2:] == [("anna", "undo", "", photos[1])]
    # A page that was loaded again does not know the last photo.
    assert json.loads(ask(address, "/api/undo", {})[2])["photo"]["name"] == photos[0]
    assert json.loads(ask(address, "/api/undo", {})[2])["photo"] is None
    assert queue(address)["left"] == 4


def test_another_reviewer_has_own_choices(tmp_path: Path, photos: list[str], address: str) -> None:
    photo = queue(address)["photos"][0]["id"]
    ask(address, "/api/choice", {"photo": photo, "verdict": "label", "label": "red"})
    with served(tmp_path, photos, "ben") as other:
        assert queue(other)["left"] == 4
        ask(other, "/api/choice", {"photo": photo, "verdict": "label", "label": "green"})
    assert lines(tmp_path) == [("anna", "label", "red", photos[0]), ("ben", "label", "green", photos[0])]
    with served(tmp_path, photos) as again:
        assert queue(again)["left"] == 3


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"Origin": "http://evil.example"}, None),
        ({"Origin": "null"}, None),
        ({"Content_Type": "text/plain"}, None),
        ({"Content_Type": "application/x-www-form-urlencoded"}, None),
        ({"Host": "evil.example"}, None),
        ({}, "no JSON"),
        ({}, "[]"),
        ({}, {"photo": 7, "verdict": "several"}),
        ({}, {"photo": "../../etc/passwd", "verdict": "several"}),
        ({}, {"photo": "FIRST", "verdict": "label", "label": "no class"}),
        ({}, {"photo": "FIRST", "verdict": "undo"}),
        ({}, {"photo": "FIRST", "verdict": "several", "label": "green"}),
        ({}, "x" * 5000),
    ],
)
def test_what_the_page_itself_does_not_send_changes_nothing(
    tmp_path: Path, address: str, headers: dict[str, str], body: Any
) -> None:
    first = queue(address)["photos"][0]["id"]
    document = {"photo": first, "verdict": "several"} if body is None else body
    if isinstance(document, dict) and document["photo"] == "FIRST":
        document = document | {"photo": first}
    status, _, told = ask(address, "/api/choice", document, **headers)
    assert 400 <= status < 500, told
    assert not (tmp_path / "review.csv").exists()


def test_looking_changes_nothing(tmp_path: Path, address: str) -> None:
    for path in ("/api/choice", "/api/undo"):
        assert ask(address, path)[0] == 404
        assert ask(address, path, method="DELETE")[0] == 405
    assert not (tmp_path / "review.csv").exists()


def test_the_page_brings_all_it_needs_and_forbids_the_rest(address: str) -> None:
    status, headers, body = ask(address, "/")
    policy = headers["Content-Security-Policy"]
    assert status == 200
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    nonce = policy.partition("script-src 'nonce-")[2].partition("'")[0]
    assert f'<script type="module" nonce="{nonce}">'.encode() in body
    assert b"http://" not in body.replace(b"http://www.w3.org/2000/svg", b"")
    assert b"__" not in body
    assert headers["X-Content-Type-Options"] == "nosniff"


def test_other_machines_need_the_token(tmp_path: Path, photos: list[str]) -> None:
    review = review_of(tmp_path, photos)
    with pytest.raises(RunError, match="a token for a page that other machines can reach"), serving(review, "0.0.0.0"):  # noqa: S104
        pass
    with serving(review, token=TOKEN) as address:
        for path in ("/", "/api/state", "/api/queue", "/photos/0000000000000000.jpg"):
            assert ask(address, path)[0] == 401
        assert ask(address, "/api/undo", {})[0] == 401
        assert ask(address, "/api/state", Authorization=f"Bearer {TOKEN}")[0] == 200
        form = {"Content_Type": "application/x-www-form-urlencoded"}
        assert b"This is not the token." in ask(address, "/login", "token=wrong", Accept="text/html", **form)[2]
        status, headers, _ = ask(address, "/login", f"token={TOKEN}", **form)
        cookie = headers["Set-Cookie"]
        assert (status, headers["Location"]) == (303, "/")
        assert cookie.startswith("agridistill-review=")
        assert "SameSite=Strict" in cookie
        assert ask(address, "/api/state", Cookie=cookie.partition(";")[0])[0] == 200


def test_photos_come_upright_and_without_their_metadata(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "field of a neighbour"
    Image.new("RGB", (40, 20), "green").save(tmp_path / "1.jpg", exif=exif)
    with served(tmp_path, ["1.jpg"]) as address:
        photo = queue(address)["photos"][0]["id"]
        status, headers, body = ask(address, f"/photos/{photo}.jpg")
        assert (status, headers["Content-Type"]) == (200, "image/jpeg")
        with Image.open(io.BytesIO(body)) as shown:
            assert shown.size == (20, 40)
            assert not shown.getexif()
        status, headers, body = ask(address, f"/photos/{photo}/looked.jpg")
        assert status == 200
        assert "Covering" in headers["X-Caption"].replace("%20", " ")
        assert ask(address, "/photos/0123456789abcdef.jpg")[0] == 404


def test_what_the_agent_wrote_beside_a_photo_is_shown(tmp_path: Path, photos: list[str]) -> None:
    kept = {"plot": "north", "time": "2026-06-01T08:00:00Z", "reason": "too dark", "device": "pi", "class": None}
    (tmp_path / photos[0]).with_suffix(".json").write_text(json.dumps(kept))
    (tmp_path / photos[1]).with_suffix(".json").write_text("[1, 2]")
    (tmp_path / photos[2]).with_suffix(".json").write_bytes(b"\xff{")
    with served(tmp_path, photos, given={photos[3]: "Late___blight"}) as address:
        shown = queue(address)["photos"]
    assert shown[0]["kept"] == {"plot": "north", "time": "2026-06-01T08:00:00Z", "reason": "too dark"}
    assert [one["kept"] for one in shown[1:]] == [{}, {}, {}]
    assert [one["given"] for one in shown] == [None, None, None, "Late: blight"]


def test_a_choice_that_is_not_on_the_disk_is_not_confirmed(
    tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    choice = {"photo": queue(address)["photos"][0]["id"], "verdict": "several"}
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        status, _, told = ask(address, "/api/choice", choice)
        assert (status, told) == (507, b"the record cannot be written: No space left on device\n")
        assert queue(address)["left"] == 4
    assert ask(address, "/api/choice", choice)[0] == 200
    assert len((tmp_path / "review.csv").read_text().splitlines()) == 2
    assert (tmp_path / "review.csv").read_text().startswith(HEADER)
