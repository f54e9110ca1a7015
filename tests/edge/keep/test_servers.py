"""Kept photos arrive whole at rclone's WebDAV and at moto's S3, also through an outage."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from tests.edge.conftest import wait_for
from tests.edge.keep.servers import PASSWORD, USER, PresignedS3, webdav
from tests.edge.keep.test_store import keep, name
from tests.edge.keep.test_upload import AT_S, DAY, uploading

from agridistill.edge.delivery import outputs
from agridistill.edge.keep.store import KeptPhotos
from agridistill.edge.network import basic_login
from agridistill.edge.store.history import History

pytestmark = pytest.mark.slow
LOGIN = basic_login(USER, PASSWORD)


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outputs, "_LONGEST_PAUSE_S", 0.2)


def require_whole(files: Mapping[str, bytes], count: int) -> None:
    """Each photo has its sidecar, which has the photo's digest."""
    stems = {Path(each).stem for each in files}
    assert stems == {name(number) for number in range(count)}
    assert len(files) == 2 * count
    for path in files:
        if path.endswith(".json"):
            photo = files[path.removesuffix("json") + "jpg"]
            assert json.loads(files[path])["photo_sha256"] == hashlib.sha256(photo).hexdigest()


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.needs("rclone")
def test_rclones_webdav_gets_every_photo_in_the_days_collection(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with History(tmp_path / "history.sqlite") as history, webdav(tmp_path / "served") as server:
        server.stop()
        kept = KeptPhotos(history, tmp_path / "kept", 10**7, delete_uploaded=True)
        with uploading(kept, server.address, LOGIN):
            keep(kept, history, *range(5), at_s=AT_S)
            wait_for(lambda: "does not accept photos" in caplog.text)
            server.start()
            wait_for(lambda: not kept.pending())
            server.stop()
            keep(kept, history, *range(5, 9), at_s=AT_S)
            server.start()
            wait_for(lambda: not kept.pending())
        found = files_in(server.folder)
    assert list((tmp_path / "kept").iterdir()) == []
    assert {str(Path(each).parent) for each in found} == {f"greenhouse-1/kept/{DAY}"}
    require_whole(found, 9)


@pytest.mark.needs("rclone")
def test_rclone_refuses_a_wrong_password_with_one_clear_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with webdav(tmp_path / "served") as server, History(tmp_path / "history.sqlite") as history:
        kept = KeptPhotos(history, tmp_path / "kept", 10**7)
        keep(kept, history, 0)
        with uploading(kept, server.address, basic_login(USER, "another")):
            wait_for(lambda: caplog.records)
    assert [record.getMessage().partition(" does not accept ")[2] for record in caplog.records] == [
        "photos (HTTP status 401: check user, password_file and token_file in [keep]): they wait in the outbox"
    ]


@pytest.mark.needs("moto")
def test_an_s3_bucket_gets_every_photo_by_presigned_addresses(tmp_path: Path) -> None:
    store = PresignedS3()
    try:
        with History(tmp_path / "history.sqlite") as history:
            kept = KeptPhotos(history, tmp_path / "kept", 10**7)
            keep(kept, history, *range(4))
            with uploading(kept, store.address):
                wait_for(lambda: not kept.pending())
        require_whole(store.files(), 4)
    finally:
        store.close()
