"""Which photos an agent keeps, through the whole agent."""

from __future__ import annotations

import errno
import io
import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.edge.conftest import wait_for
from tests.edge.keep.test_photo import exif
from tests.edge.keep.test_upload import Server
from tests.edge.watched import GREEN, RED, once, put, watching

from agridistill.edge.alerts.rules import Rule
from agridistill.edge.keep import store
from agridistill.edge.keep.choice import KeepSettings
from agridistill.edge.settings import WatchSettings, read_settings
from agridistill.edge.state import read_state
from agridistill.errors import ConfigError

UNSURE = (128, 126, 10)


@pytest.fixture
def keeping(settings: WatchSettings, tmp_path: Path) -> WatchSettings:
    """The model answers from a probability of 90 % on."""
    assert settings.model is not None
    model = tmp_path / "model" / settings.model.name
    model.parent.mkdir()
    shutil.copy(settings.model, model)
    manifest = json.loads(settings.model.with_suffix(".json").read_text())
    model.with_suffix(".json").write_text(json.dumps(manifest | {"threshold": 0.9}))
    return replace(settings, model=model, keep=KeepSettings(one_in=0))


def with_keep(settings: WatchSettings, **changes: Any) -> WatchSettings:
    assert settings.keep is not None
    return replace(settings, keep=replace(settings.keep, **changes))


def sidecars(folder: Path) -> list[dict[str, Any]]:
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("[!.]*.json"))]
    assert {one["event_id"] for one in found} == {path.stem for path in folder.glob("[!.]*.jpg")}
    return found


def test_photos_of_a_group_that_fit_one_by_one_are_all_decided_and_the_newest_kept(
    photos: Path, keeping: WatchSettings, state: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(12):
        put(photos, f"{number:02}.jpg", UNSURE)
    size = max(path.stat().st_size for path in photos.iterdir())
    heard = once(with_keep(keeping, max_megabytes=4 * (size + 1200) / 1e6), state)
    assert len(heard.detections) == 12
    assert len(sidecars(state / "kept")) >= 3
    assert "is not kept" not in caplog.text


def test_a_leaf_whose_photo_could_not_be_kept_counts_once(
    photos: Path, keeping: WatchSettings, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        put(photos, f"{number}.jpg", UNSURE)

    def full(*given: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(store.KeptPhotos, "stage", full)
        once(keeping, state)
    once(keeping, state)
    assert len(sidecars(state / "kept")) == 3
    assert read_state(state).frames == 3


def test_without_the_disk_of_the_kept_photos_detections_go_on_and_nothing_is_lost(
    photos: Path, keeping: WatchSettings, state: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "stick" / "kept"
    keeping = replace(with_keep(keeping, folder=folder), after="delete")
    put(photos, "a.jpg", UNSURE)
    once(keeping, state)
    disk = folder.parent.rename(tmp_path / "unplugged")
    folder.parent.mkdir()  # where it was mounted
    put(photos, "b.jpg", UNSURE)
    heard = once(keeping, state)
    assert len(heard.detections) == 1
    assert "mount its disk and start the agent again" in caplog.text
    assert not folder.exists()
    assert (photos / "b.jpg").exists()  # not kept, so not deleted
    folder.parent.rmdir()
    disk.rename(folder.parent)
    once(keeping, state)
    assert len(sidecars(folder)) == 2
    assert list(photos.rglob("*.jpg")) == []


def test_unsure_photos_are_kept_whole_before_they_are_deleted(
    photos: Path, keeping: WatchSettings, state: Path
) -> None:
    originals = {}
    for name, colour in (("north/a.jpg", UNSURE), ("b.jpg", GREEN), ("c.jpg", RED)):
        path = put(photos, name, colour)
        Image.open(path).save(path.with_suffix(".part"), "JPEG", exif=exif())
        path.with_suffix(".part").rename(path)
        originals[name] = path.read_bytes()
    heard = once(replace(keeping, after="delete"), state)
    assert list(photos.rglob("*.jpg")) == []
    (found,) = sidecars(state / "kept")
    assert (found["photo"], found["plot"], found["verdict"], found["reason"]) == (
        *("north/a.jpg", "north", "unsure", "unsure"),
    )
    assert found["event_id"] == next(one.event_id for one in heard.detections if one.verdict == "unsure")
    assert found["probabilities"].keys() == {"green", "red"}
    with Image.open(state / "kept" / f"{found['event_id']}.jpg") as image:
        assert not image.getexif().get_ifd(0x8825)
        with Image.open(io.BytesIO(originals["north/a.jpg"])) as original:
            np.testing.assert_array_equal(np.asarray(image), np.asarray(original))
    kept = read_state(state).kept
    assert kept is not None
    assert (kept["photos"], kept["upload"], kept["missed"], kept["trouble"]) == (1, False, 0, None)


def test_with_location_the_files_are_the_originals(photos: Path, keeping: WatchSettings, state: Path) -> None:
    content = put(photos, "a.jpg", UNSURE).read_bytes() + b"whatever follows"
    (photos / "a.jpg").write_bytes(content[:-16])
    once(with_keep(keeping, location=True), state)
    (kept,) = (state / "kept").glob("[!.]*.jpg")
    assert kept.read_bytes() == content[:-16]


def test_one_in_n_of_the_sure_ones_is_kept(photos: Path, keeping: WatchSettings, state: Path) -> None:
    for number in range(60):
        put(photos, f"{number}.jpg", GREEN)
    once(with_keep(keeping, one_in=4), state)
    chosen = sidecars(state / "kept")
    assert {one["reason"] for one in chosen} == {"sample"}
    assert 5 <= len(chosen) <= 28


def test_the_leaves_that_opened_an_alert_are_kept_although_they_are_deleted_from_their_folder(
    photos: Path, keeping: WatchSettings, state: Path
) -> None:
    rule = Rule("red", ("red",), least_leaves=5)
    settings = replace(keeping, rules=(rule,), after="delete")
    for number in range(4):
        put(photos, f"north/{number}.jpg", RED)
        put(photos, f"south/{number}.jpg", RED)
    once(settings, state)
    assert sidecars(state / "kept") == []
    for number in (4, 5):
        put(photos, f"north/{number}.jpg", RED)
        put(photos, f"north/{number + 10}.jpg", GREEN)
    assert once(settings, state).alerts
    found = sidecars(state / "kept")
    assert Counter((one["plot"], one["class"], one["reason"]) for one in found) == {("north", "red", "alert"): 6}
    put(photos, "north/6.jpg", RED)  # while the alert is open
    once(settings, state)
    assert len(sidecars(state / "kept")) == 7


def test_a_disk_that_refuses_kept_photos_does_not_stop_detections(
    photos: Path,
    keeping: WatchSettings,
    state: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings = replace(keeping, after="delete")
    with watching(settings, state) as heard:
        wait_for(lambda: (state / "kept").exists())
        with monkeypatch.context() as patch:

            def full(path: Path) -> Any:
                raise OSError(errno.ENOSPC, "No space left on device")

            patch.setattr(store, "replacing", full)
            for number in range(3):
                put(photos, f"{number}.jpg", UNSURE)
            wait_for(lambda: len(heard.detections) == 3)
        put(photos, "3.jpg", UNSURE)
        wait_for(lambda: "photos can be kept again" in caplog.text)
    assert caplog.text.count("photos cannot be kept") == 1
    assert [one["photo"] for one in sidecars(state / "kept")] == ["3.jpg"]
    # Those that were missed are still there, and the next start keeps them under the ids of their detections.
    assert len(list(photos.glob("*.jpg"))) == 3
    again = once(settings, state)
    assert {one.event_id for one in again.detections} < {one.event_id for one in heard.detections}
    assert {one["event_id"] for one in sidecars(state / "kept")} == {one.event_id for one in heard.detections}
    assert list(photos.glob("*.jpg")) == []


def test_an_agent_with_an_upload_ends_once_the_server_has_all(
    photos: Path, keeping: WatchSettings, state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server()
    (tmp_path / "password").write_text("pa:ss\n")
    login = {"user": "me", "password_file": tmp_path / "password"}
    for number in range(3):
        put(photos, f"{number}.jpg", UNSURE)
    try:
        once(with_keep(keeping, upload=f"{server.address}/photos/", after_upload="delete", **login), state)
        assert len(server.files) == 6
        assert server.logins == {"Basic bWU6cGE6c3M="}
        assert [path.name for path in (state / "kept").iterdir()] == [".lock"]
        monkeypatch.setenv("AGRIDISTILL_KEEP_TOKEN", "token")
        put(photos, "3.jpg", UNSURE)
        once(with_keep(keeping, upload=f"{server.address}/{{name}}"), state)
        assert server.logins == {"Basic bWU6cGE6c3M=", "Bearer token"}
        kept = read_state(state).kept
        assert kept is not None
        assert (kept["photos"], kept["waiting"], kept["uploaded"]) == (1, 0, 4)
    finally:
        server.close()


def test_a_folder_of_kept_photos_is_not_watched(photos: Path, keeping: WatchSettings, state: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"expected folder in \[keep\] outside the folder of photos; got '.*kept' inside '"
    ):
        once(with_keep(keeping, folder=photos / "kept"), state)
    file = Path(keeping.model or "")
    with pytest.raises(ConfigError, match=r"a folder for kept photos that can be written; got '.*Not a directory"):
        once(with_keep(keeping, folder=file / "below a file"), state)


ADDRESS = "https://host/photos/?sig=s3cr3t"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f'upload = "{ADDRESS}"', r"upload in \[keep\]: a folder's address .*hidden"),
        ('upload = "https://me:s3cr3t@host/photos/"', "hidden, because it may contain a password"),
        ('upload = "ftp://host/"', "hidden"),
        ("upload = 3", r"keep.upload: .*got something else"),
        ("max_megabytes = 0", "keep.max_megabytes above 0; got 0"),
        ('password_file = "p"', r"user in \[keep\], because password_file is set"),
        ('user = "me"\ntoken_file = "t"', "either user or token_file"),
        ("uploads = 1", "did you mean 'upload'"),
    ],
)
def test_wrong_settings_are_one_line_without_secrets(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "watch.toml").write_text(f"[keep]\n{text}\n")
    with pytest.raises(ConfigError, match=message) as found:
        read_settings(tmp_path / "watch.toml")
    assert "s3cr3t" not in str(found.value)


def test_relative_paths_start_at_the_settings_file(tmp_path: Path) -> None:
    (tmp_path / "watch.toml").write_text('[keep]\nfolder = "kept"\nupload = "https://host/{name}?sig=1"\n')
    keep = read_settings(tmp_path / "watch.toml").keep
    assert keep is not None
    assert keep.folder == tmp_path / "kept"
    assert "sig" not in repr(keep)
