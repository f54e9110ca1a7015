"""A source is chosen by its text, and its name tells no secrets."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from agridistill.edge.sources import SourceSettings, open_source, source_identity
from agridistill.edge.sources.folder import FolderSource
from agridistill.edge.sources.snapshots import SnapshotSource
from agridistill.edge.sources.source import Source
from agridistill.edge.urls import public_name, split_url, with_user
from agridistill.errors import EdgeError


def opened(text: str) -> Source:
    return open_source(text, settings=SourceSettings(), seen=lambda identity: False)


def test_a_folder_and_an_http_address_need_no_opencv(tmp_path: Path) -> None:
    folder = opened(str(tmp_path))
    assert isinstance(folder, FolderSource)
    assert (folder.name, folder.live) == (str(tmp_path), False)
    snapshot = opened("https://me:secret@camera.local:8443/snap.jpg?token=secret#secret")
    assert isinstance(snapshot, SnapshotSource)
    assert (snapshot.name, snapshot.live) == ("https://camera.local:8443/snap.jpg", True)


def test_a_folder_whose_name_is_a_number_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "2024").mkdir()
    assert isinstance(opened("2024"), FolderSource)


@pytest.mark.parametrize("text", ["", "nowhere", "nowhere.mp4", "notes.txt", "/dev/null", "gopher://host/a", "1234567"])
def test_anything_else_is_refused_with_what_is_possible(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(EdgeError, match=r"expected a folder, http\(s\)://…, rtsp://…, /dev/videoN"):
        opened(text)


@pytest.mark.parametrize(
    "url",
    [
        "http://me:secret@",
        "rtsp://me:secret#1@host/a",
        "rtsp://[me:secret/",
        "ftp://me:secret@host/a",
        "x://me:secret@h",
    ],
)
def test_a_refused_address_does_not_show_its_password(url: str) -> None:
    with pytest.raises(EdgeError) as caught:
        opened(url)
    assert "secret" not in str(caught.value)


def test_a_password_with_a_slash_does_not_show_in_the_name() -> None:
    assert "cret" not in public_name(split_url("rtsp://me:5/cret@host/stream"))


@pytest.mark.parametrize(
    "path",
    ["user=admin&password=geheim&channel=1", "user%3Dadmin%26password%3Dgeheim", "cam/user=admin;password=geheim"],
)
def test_a_password_in_the_path_does_not_show_in_the_name(path: str) -> None:
    assert public_name(split_url(f"rtsp://10.0.0.5/{path}")) == "rtsp://10.0.0.5/…"
    assert opened(f"http://10.0.0.5:81/{path}").name == "http://10.0.0.5:81/…"


def test_the_credentials_of_the_address_go_before_those_of_the_settings() -> None:
    settings = SourceSettings(username="you", password="p/w")  # noqa: S106
    assert settings.login(split_url("rtsp://me:a%40b@host/s")) == ("me", "a@b")
    assert settings.login(split_url("rtsp://me@host/s")) == ("me", "p/w")
    assert settings.login(split_url("rtsp://host/s")) == ("you", "p/w")
    assert SourceSettings().login(split_url("rtsp://host/s")) == (None, "")
    assert (
        with_user(split_url("rtsp://host:554/s?a=1"), *settings.login(split_url("rtsp://host:554/s?a=1")))
        == "rtsp://you:p%2Fw@host:554/s?a=1"
    )
    assert with_user(split_url("rtsp://host/s"), *SourceSettings().login(split_url("rtsp://host/s"))) == "rtsp://host/s"


def test_settings_show_no_password_and_are_checked() -> None:
    assert "secret" not in repr(SourceSettings(password="secret"))  # noqa: S106
    for wrong in ({"every_s": -1.0}, {"every_s": float("nan")}, {"every_s": float("inf")}, {"after": "burn"}):
        with pytest.raises(EdgeError):
            SourceSettings(**wrong)  # type: ignore[arg-type]


def test_without_opencv_a_camera_is_refused_with_what_to_install() -> None:
    code = (
        "import sys; sys.modules['cv2'] = None\n"
        "from agridistill.edge.sources import SourceSettings, open_source\n"
        "from agridistill.errors import MissingExtraError\n"
        "for text in ('0', '/dev/video3', 'rtsp://host/stream'):\n"
        "    try: open_source(text, settings=SourceSettings(), seen=lambda identity: False)\n"
        "    except MissingExtraError as error: print(error.remedy)\n"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.splitlines() == ["pip install 'agridistill[camera]'"] * 3


def test_a_source_is_known_again_by_each_of_its_paths_and_without_its_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "b").mkdir()
    (tmp_path / "c").mkdir()
    assert source_identity("b") == source_identity(str(tmp_path / "b")) == source_identity("c/../b")
    assert source_identity("b") != source_identity("c")
    assert source_identity("rtsp://me:secret@camera/1") == source_identity("rtsp://camera/1")
    assert source_identity("rtsp://camera/1") != source_identity("rtsp://camera/2")
