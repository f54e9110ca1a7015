"""Every photo that comes into a folder is given once, whole, and soon."""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import random
import shutil
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.test_heic import HEIC

from agridistill.edge.events import Frame
from agridistill.edge.sources import SourceLostError, SourceSettings, listing, open_source
from agridistill.edge.sources.folder import FolderSource, photo_time
from agridistill.edge.sources.listing import Hashes
from agridistill.edge.store.history import History
from agridistill.errors import EdgeError, OutboxError, PhotoError
from agridistill.photo_files import explanation_mark
from agridistill.preprocess import UnreachablePhotoError, read_photo


def photo_bytes(seed: int = 0, kind: str = "JPEG", size: tuple[int, int] = (64, 48)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def never(identity: str) -> bool:
    return False


def names(source: FolderSource, *, wait_s: float = 0.15) -> list[str]:
    found = []
    while frame := source.read(wait_s):
        found.append(frame.name)
    return found


# A search that a busy disk delays by half a second is followed by a pause of ten.
def given(source: FolderSource, within_s: float = 60) -> Frame:
    frame = source.read(within_s)
    assert frame is not None, f"no frame in {within_s} s"
    return frame


Opener = Callable[..., FolderSource]


@pytest.fixture(params=["told", "polled"])
def opened(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Opener]:
    """Sources on `tmp_path / "in"`, once with the system's word of new files and once without."""
    if request.param == "polled":
        monkeypatch.setattr(listing, "is_on_network", lambda folder: True)
    (tmp_path / "in").mkdir()
    sources: list[FolderSource] = []

    def make(seen: Callable[[str], bool] = never, settle_s: float = 0.2, **settings: Any) -> FolderSource:
        source = FolderSource(tmp_path / "in", SourceSettings(**settings), seen, settle_s=settle_s)
        source.open()
        sources.append(source)
        return source

    yield make
    for source in sources:
        source.close()


@pytest.mark.parametrize("after", ["keep", "delete"])
def test_a_photo_whose_time_is_set_after_its_content_comes_once(opened: Opener, tmp_path: Path, after: str) -> None:
    """As `scp -p` and `rsync --inplace -t` do."""
    committed: set[str] = set()
    source = opened(committed.__contains__, after=after)
    path = tmp_path / "in" / "a.jpg"
    path.write_bytes(photo_bytes())
    frame = given(source)
    os.utime(path, (1_700_000_000, 1_700_000_000))
    # Of a changed time alone the system tells nothing: a search finds it, where there are no events soon.
    assert names(source, wait_s=0.6 if listing.is_on_network(path) else 2.5) == []
    assert path.exists(), "it is not committed yet"
    committed.add(frame.identity)
    source.done(frame.identity)
    assert names(source, wait_s=1) == []
    assert path.exists() == (after == "keep")


def test_a_photo_that_was_deleted_may_come_again(opened: Opener, tmp_path: Path) -> None:
    source, path = opened(after="delete"), tmp_path / "in" / "a.jpg"
    for _ in range(2):
        path.write_bytes(photo_bytes())
        source.done(given(source).identity)
        assert not path.exists()


def test_another_content_of_the_same_name_and_size_is_another_photo(opened: Opener, tmp_path: Path) -> None:
    source, path = opened(), tmp_path / "in" / "a.jpg"
    for filling in (b"x", b"y"):
        path.write_bytes(photo_bytes()[:-2] + 10 * filling + b"\xff\xd9")
        assert given(source).name == "a.jpg"


def test_photos_come_once_oldest_first_with_their_plot(opened: Opener, tmp_path: Path) -> None:
    root = tmp_path / "in"
    for number, name in enumerate(["c.jpg", "north/a.JPG", "north/deep/b.png", "south/d.webp"]):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(photo_bytes(number, {".png": "PNG", ".webp": "WEBP"}.get(path.suffix, "JPEG")))
        os.utime(path, (2_000_000_000 - number, 2_000_000_000 - number))
    source = opened(plot="greenhouse")
    frames = [given(source) for _ in range(4)]
    # A WebP has no end mark, and is looked at again when it has settled.
    assert [(frame.name, frame.plot) for frame in frames] == [
        ("north/deep/b.png", "north"),
        ("north/a.JPG", "north"),
        ("c.jpg", "greenhouse"),
        ("south/d.webp", "south"),
    ]
    assert frames[0].pixels.shape == (48, 64, 3)
    assert frames[0].pixels.dtype == np.uint8
    assert all(abs(frame.at_s - time.time()) < 60 for frame in frames)
    assert len({frame.identity for frame in frames}) == 4
    assert names(source) == []


def test_what_is_no_photo_yet_or_no_photo_at_all_is_passed_over(opened: Opener, tmp_path: Path) -> None:
    root = tmp_path / "in"
    for name in ("a.jpg.part", "b.jpg.tmp", ".c.jpg", ".hidden/d.jpg", "e.txt", "upload.part/f.jpg"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(photo_bytes())
    (root / "folder.jpg").mkdir()
    os.mkfifo(root / "pipe.jpg")
    (root / "broken.jpg").symlink_to(root / "nowhere.jpg")
    (root / "loop").symlink_to(root, target_is_directory=True)
    source = opened()
    assert names(source) == []
    (root / "a.jpg.part").rename(root / "a.jpg")
    assert given(source).name == "a.jpg"
    (root / "linked.jpg").symlink_to(root / "e.txt")
    assert given(source).name == "linked.jpg"
    assert names(source) == []


def test_a_new_photo_is_given_within_a_moment(opened: Opener, tmp_path: Path) -> None:
    source = opened()
    assert source.read(0.2) is None
    waits = []
    for number in range(20):
        path = tmp_path / "in" / f"{number}.jpg"
        begin = [0.0]

        def write(path: Path = path, number: int = number, begin: list[float] = begin) -> None:
            time.sleep(random.Random(number).uniform(0, 0.05))
            begin[0] = time.monotonic()
            path.write_bytes(photo_bytes(number))

        thread = threading.Thread(target=write)
        thread.start()
        frame = given(source)
        waits.append(time.monotonic() - begin[0])
        thread.join()
        assert frame.name == path.name
    assert sorted(waits)[10] < 0.15, waits  # about 2 ms told, 20 ms polled, on an idle machine


@pytest.mark.parametrize(
    ("kind", "suffix"),
    [
        ("JPEG", "jpg"),
        pytest.param("PNG", "png", marks=pytest.mark.slow),
        ("WEBP", "webp"),
        pytest.param("BMP", "bmp", marks=pytest.mark.slow),
    ],
)
def test_a_photo_that_is_still_being_written_is_given_whole(
    opened: Opener, tmp_path: Path, kind: str, suffix: str
) -> None:
    data = photo_bytes(3, kind, (200, 150))
    source = opened(settle_s=1.0)
    path = tmp_path / "in" / f"slow.{suffix}"
    with path.open("wb", buffering=0) as file:
        for part in range(10):
            file.write(data[len(data) * part // 10 : len(data) * (part + 1) // 10])
            if part < 9:
                assert source.read(0.03) is None
    frame = given(source)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(frame.pixels, expected)
    assert names(source, wait_s=1.2) == []


def test_a_copy_with_its_full_size_from_the_beginning_is_not_taken_for_whole(opened: Opener, tmp_path: Path) -> None:
    data = photo_bytes(4, "BMP")
    source = opened(settle_s=0.5)
    path = tmp_path / "in" / "a.bmp"
    path.write_bytes(data[:54] + bytes(len(data) - 54))  # decodes, all black
    assert source.read(0.1) is None
    path.write_bytes(data)
    assert given(source).pixels.any()
    assert names(source, wait_s=0.8) == []


def test_a_photo_that_is_replaced_while_it_is_read_is_given_as_it_is_at_last(
    opened: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "in" / "a.jpg"
    path.write_bytes(photo_bytes(1))
    reads = []

    def read_slowly(*arguments: Any, **settings: Any) -> Image.Image:
        photo = read_photo(*arguments, **settings)
        reads.append(photo.size)
        if len(reads) == 1:
            path.write_bytes(photo_bytes(2, size=(90, 90)))
        return photo

    monkeypatch.setattr("agridistill.edge.sources.source.read_photo", read_slowly)
    source = opened()
    assert given(source).pixels.shape == (90, 90, 3)
    assert reads == [(64, 48), (90, 90)]
    assert names(source) == []


def test_a_damaged_photo_is_told_once_and_the_rest_goes_on(opened: Opener, tmp_path: Path) -> None:
    root = tmp_path / "in"
    data = photo_bytes()
    (root / "cut.jpg").write_bytes(data[: len(data) // 2])
    (root / "empty.png").write_bytes(b"")
    (root / "good.jpg").write_bytes(data)
    source = opened()
    assert given(source).name == "good.jpg"
    told = []
    for _ in range(2):
        with pytest.raises(PhotoError) as caught:
            source.read(5)
        told.append(caught.value.got)
    assert "cut.jpg" in " ".join(told)
    assert "empty.png" in " ".join(told)
    assert names(source, wait_s=0.6) == []
    # An upload that was only interrupted goes on.
    (root / "cut.jpg").write_bytes(data)
    assert given(source).name == "cut.jpg"


@pytest.mark.parametrize("after", ["keep", "delete"])
def test_a_bad_photo_is_not_told_again_after_a_restart_and_never_deleted(
    tmp_path: Path, after: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "in"
    root.mkdir()
    for name in ("cut.jpg", "large.png"):
        (root / name).write_bytes(photo_bytes(kind="PNG")[:-20] if name == "cut.jpg" else photo_bytes(kind="PNG"))
    monkeypatch.setattr("agridistill.edge.sources.source.MAX_PIXELS", 64 * 48 - 1)
    settings = SourceSettings(after=after)
    with History(tmp_path / "history.sqlite") as history:

        def seen(identity: str) -> bool:
            return history.decided_by(identity) is not None

        for told in (2, 0):
            source = FolderSource(root, settings, seen, bad=history.mark, settle_s=0.1)
            source.open()
            for _ in range(told):
                with pytest.raises(PhotoError):
                    source.read(60)
            assert names(source, wait_s=0.4) == []
            source.close()
    assert sorted(path.name for path in root.iterdir()) == ["cut.jpg", "large.png"]


def test_a_bad_photo_is_told_also_where_the_disk_refuses_to_remember_it(tmp_path: Path) -> None:
    def refuse(key: str) -> None:
        raise OutboxError("room", "none", "wait")

    (tmp_path / "a.jpg").write_bytes(b"nothing")
    source = FolderSource(tmp_path, SourceSettings(), never, bad=refuse, settle_s=0.1)
    source.open()
    with pytest.raises(PhotoError):
        source.read(60)
    assert names(source) == []
    source.close()


@contextlib.contextmanager
def without_root() -> Iterator[None]:
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.skipif(os.name != "posix", reason="rights of POSIX")
def test_photos_that_the_system_refuses_come_when_it_gives_them_and_hold_up_no_others(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "_ASIDE_S", 0.1)
    for module in ("listing", "folder"):
        monkeypatch.setattr(f"agridistill.edge.sources.{module}.MAX_FOUND", 5)
    root = Path(tempfile.mkdtemp())
    root.chmod(0o755)
    locked = [root / f"locked{number:02}.jpg" for number in range(12)]
    for number, path in enumerate(locked):
        path.write_bytes(photo_bytes())
        path.chmod(0)
        os.utime(path, (number, number))
    (root / "open.jpg").write_bytes(photo_bytes())
    marked: list[str] = []
    source = FolderSource(root, SourceSettings(), never, bad=marked.append, settle_s=0.1)
    try:
        with without_root():
            source.open()
            assert names(source, wait_s=1.5) == ["open.jpg"]
        warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
        assert len(warnings) == 1
        assert "a photo cannot be read now, and is tried again every 10 s" in warnings[0]
        assert "locked00.jpg' (Permission denied)" in warnings[0]
        for path in locked:
            path.chmod(0o644)
        with without_root():
            assert sorted(given(source).name for _ in locked) == [path.name for path in locked]
            assert names(source) == []
    finally:
        source.close()
        shutil.rmtree(root)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING][1:] == [
        "the photo locked00.jpg can be read again or was removed"
    ]
    assert marked == []


def test_the_end_of_the_trouble_is_told_where_the_refused_photo_is_gone(
    opened: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*arguments: Any, **settings: Any) -> Image.Image:
        raise UnreachablePhotoError("a readable photo", "a dead disk", "wait")

    monkeypatch.setattr(listing, "_ASIDE_S", 0.1)
    monkeypatch.setattr("agridistill.edge.sources.source.read_photo", refuse)
    (tmp_path / "in" / "a.jpg").write_bytes(photo_bytes())
    source = opened()
    assert names(source) == []
    (tmp_path / "in" / "a.jpg").unlink()
    assert names(source, wait_s=1.0) == []
    told = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(told) == 2
    assert "a dead disk" in told[0]
    assert told[1] == "the photo a.jpg can be read again or was removed"


def test_a_whole_photo_with_something_behind_it_is_given_when_it_has_settled(opened: Opener, tmp_path: Path) -> None:
    source = opened(settle_s=0.3)
    (tmp_path / "in" / "phone.jpg").write_bytes(photo_bytes() + b"maker's notes")
    begin = time.monotonic()
    assert given(source).name == "phone.jpg"
    assert time.monotonic() - begin >= 0.3


def test_a_photo_written_anew_is_a_new_one(opened: Opener, tmp_path: Path) -> None:
    path = tmp_path / "in" / "newest.jpg"
    path.write_bytes(photo_bytes(1))
    source = opened()
    first = given(source)
    path.write_bytes(photo_bytes(2, size=(80, 80)))
    second = given(source)
    assert (second.name, second.pixels.shape) == ("newest.jpg", (80, 80, 3))
    assert first.identity != second.identity


def test_photos_of_any_age_are_found(opened: Opener, tmp_path: Path) -> None:
    source = opened()
    assert names(source) == []
    for stamp in (0, 1_000_000_000, 4_000_000_000):
        aside = tmp_path / f"{stamp}.jpg"
        aside.write_bytes(photo_bytes(stamp))
        os.utime(aside, (stamp, stamp))
        aside.rename(tmp_path / "in" / aside.name)
        assert given(source).name == aside.name


def test_a_folder_moved_in_brings_its_photos(opened: Opener, tmp_path: Path) -> None:
    source = opened()
    assert names(source) == []
    aside = tmp_path / "east"
    (aside / "deep").mkdir(parents=True)
    (aside / "deep" / "a.jpg").write_bytes(photo_bytes(1))
    aside.rename(tmp_path / "in" / "east")
    assert given(source).plot == "east"
    (tmp_path / "in" / "east" / "b.jpg").write_bytes(photo_bytes(2))
    assert given(source).name == "east/b.jpg"
    (tmp_path / "in" / "east").rename(tmp_path / "in" / "west")
    assert sorted([given(source).name, given(source).name]) == ["west/b.jpg", "west/deep/a.jpg"]
    (tmp_path / "in" / "west" / "deep" / "c.jpg").write_bytes(photo_bytes(3))
    assert given(source).name == "west/deep/c.jpg"


def test_what_was_decided_on_in_an_earlier_life_is_asked_for_once(opened: Opener, tmp_path: Path) -> None:
    for number in range(6):
        (tmp_path / "in" / f"{number}.jpg").write_bytes(photo_bytes(number))
    first = opened()
    decided = {given(first).identity for _ in range(3)}
    first.close()
    asked = []

    def seen(identity: str) -> bool:
        asked.append(identity)
        return identity in decided

    second = opened(seen)
    rest = {given(second).identity for _ in range(3)}
    assert names(second) == []
    second.close()
    second.open()
    assert names(second) == []
    assert not rest & decided
    # A photo that was not decided on may have been found to be a bad one.
    assert sorted(asked) == sorted([*rest, *decided, *(f"bad {identity}" for identity in rest)])


def test_only_what_was_decided_on_is_deleted_and_only_if_it_is_still_the_same(opened: Opener, tmp_path: Path) -> None:
    root = tmp_path / "in"
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        (root / name).write_bytes(photo_bytes())
    source = opened(after="delete")
    frames = {frame.name: frame for frame in (given(source) for _ in range(3))}
    assert len(list(root.iterdir())) == 3
    (root / "b.jpg").write_bytes(photo_bytes(7, size=(99, 99)))
    for name in ("a.jpg", "b.jpg"):
        source.done(frames[name].identity)
    source.done("unknown")
    assert sorted(path.name for path in root.iterdir()) == ["b.jpg", "c.jpg"]
    # The agent was killed between its commit and the deletion.
    later = opened(lambda identity: identity == frames["c.jpg"].identity, after="delete")
    assert given(later).pixels.shape == (99, 99, 3)
    assert names(later) == []
    assert [path.name for path in root.iterdir()] == ["b.jpg"]


def test_a_kept_photo_stays_when_it_is_done(opened: Opener, tmp_path: Path) -> None:
    (tmp_path / "in" / "a.jpg").write_bytes(photo_bytes())
    source = opened()
    source.done(given(source).identity)
    assert (tmp_path / "in" / "a.jpg").exists()
    assert names(source) == []


def test_a_folder_that_vanishes_is_lost_and_goes_on_when_it_is_back(opened: Opener, tmp_path: Path) -> None:
    root = tmp_path / "in"
    (root / "a.jpg").write_bytes(photo_bytes(1))
    source = opened()
    assert given(source).name == "a.jpg"
    root.rename(tmp_path / "unplugged")
    with pytest.raises(SourceLostError):
        source.read(60)
    source.close()
    with pytest.raises(SourceLostError):
        source.open()
    (tmp_path / "unplugged").rename(root)
    (root / "b.jpg").write_bytes(photo_bytes(2))
    source.open()
    assert names(source) == ["b.jpg"]


def test_more_photos_than_one_search_gives_all_come(
    opened: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agridistill.edge.sources.listing.MAX_FOUND", 10)
    monkeypatch.setattr("agridistill.edge.sources.folder.MAX_FOUND", 10)
    data = photo_bytes()
    for number in range(57):
        (tmp_path / "in" / f"{number:03}.jpg").write_bytes(data)
        os.utime(tmp_path / "in" / f"{number:03}.jpg", (number, number))
    for number in range(30):
        (tmp_path / "in" / f"bad{number}.jpg").write_bytes(b"nothing")
    source = opened(settle_s=0.1)
    found, bad = [], 0
    deadline = time.monotonic() + 30
    while (len(found) < 57 or bad < 30) and time.monotonic() < deadline:
        try:
            frame = source.read(0.2)
        except PhotoError:
            bad += 1
        else:
            found += [frame.name] if frame else []
    assert found == [f"{number:03}.jpg" for number in range(57)]
    assert bad == 30
    assert names(source) == []


def test_a_name_that_is_no_utf8_can_be_sent(opened: Opener, tmp_path: Path) -> None:
    try:
        with open(os.fsencode(tmp_path) + b"/in/\xff.jpg", "wb") as file:  # noqa: PTH123
            file.write(photo_bytes())
    except OSError:
        pytest.skip("the file system takes UTF-8 only")
    assert given(opened()).name.encode("utf-8") == rb"\udcff.jpg"


@pytest.mark.needs("root")
def test_an_unreadable_subfolder_is_told_once_and_the_rest_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    root = Path(tempfile.mkdtemp())
    root.chmod(0o755)
    for name in ("open", "locked"):
        (root / name).mkdir()
        (root / name / "a.jpg").write_bytes(photo_bytes())
    (root / "locked").chmod(0o700)
    source = FolderSource(root, SourceSettings(), never)
    os.seteuid(65534)
    try:
        source.open()
        assert names(source, wait_s=2.5) == ["open/a.jpg"]  # long enough for a second search
        os.seteuid(0)
        (root / "locked").chmod(0o755)
        os.seteuid(65534)
        assert given(source).name == "locked/a.jpg"
    finally:
        os.seteuid(0)
        source.close()
        shutil.rmtree(root)
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len([line for line in told if "cannot be read" in line]) == 1
    assert len([line for line in told if "can be read again" in line]) == 1


def test_without_the_systems_watches_the_folder_is_polled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Any, folder: Path, name: str) -> int:
        raise OSError(errno.ENOSPC, "no watch")

    monkeypatch.setattr("agridistill.edge.sources.listing.Inotify.add", refuse)
    source = FolderSource(tmp_path, SourceSettings(), never)
    source.open()
    assert source.read(0.05) is None
    (tmp_path / "a.jpg").write_bytes(photo_bytes())
    assert given(source).name == "a.jpg"
    source.close()


def test_a_day_of_photos_takes_no_memory_and_no_descriptors(tmp_path: Path) -> None:
    """A short day; the long one is measured with the whole agent."""
    descriptors = Path("/proc/self/fd")
    before = len(list(descriptors.iterdir())) if descriptors.exists() else 0
    source = FolderSource(tmp_path, SourceSettings(after="delete"), never)
    source.open()
    data = photo_bytes()
    for number in range(300):
        (tmp_path / f"{number}.jpg").write_bytes(data)
        source.done(given(source).identity)
    assert list(tmp_path.iterdir()) == []
    assert not source._handed
    assert not source._growing
    source.close()
    if before:
        assert len(list(descriptors.iterdir())) == before


def test_hashes_agree_with_a_set_and_forget_what_is_gone() -> None:
    dice = random.Random(5)
    hashes, reference = Hashes(), set()
    numbers = [dice.randrange(-(2**63), 2**63) for _ in range(5000)]
    for number in numbers[:4500]:
        hashes.add(number)
        reference.add(number)
    assert [number in hashes for number in numbers] == [number in reference for number in numbers]
    hashes.keep(np.array(numbers[4000:], np.int64))
    kept = hashes.include(np.array(numbers, np.int64))
    assert kept.tolist() == [4000 <= place < 4500 for place in range(5000)]
    hashes.keep(np.empty(0, np.int64))
    assert numbers[4200] not in hashes


def test_thumbnails_and_other_files_of_machines_are_no_photos_and_no_plots(opened: Opener, tmp_path: Path) -> None:
    root = tmp_path / "in"
    for name in (
        *("@eaDir/leaf.jpg/SYNOFILE_THUMB_M.jpg", "row 1/@eaDir/leaf.jpg/SYNOFILE_THUMB_XL.jpg", "#recycle/old.jpg"),
        *("$RECYCLE.BIN/x.jpg", "System Volume Information/x.jpg", "lost+found/x.jpg", "__MACOSX/._leaf.jpg"),
        "row 1/leaf.jpg",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(photo_bytes())
    source = opened()
    frame = given(source)
    assert (frame.name, frame.plot) == ("row 1/leaf.jpg", "row 1")
    (root / "row 1" / "@eaDir" / "late").mkdir()
    (root / "row 1" / "@eaDir" / "late" / "SYNOFILE_THUMB_M.jpg").write_bytes(photo_bytes())
    assert names(source) == []


def test_linked_folders_are_watched_each_once(opened: Opener, tmp_path: Path) -> None:
    root, card = tmp_path / "in", tmp_path / "card"
    card.mkdir()
    (card / "a.jpg").write_bytes(photo_bytes())
    (card / "back").symlink_to(root, target_is_directory=True)
    (root / "row 1").symlink_to(card, target_is_directory=True)
    (root / "row 2").symlink_to(card, target_is_directory=True)
    source = opened()
    assert names(source) == ["row 1/a.jpg"]
    (card / "b.jpg").write_bytes(photo_bytes(1))
    frame = given(source)
    assert (frame.name, frame.plot) == ("row 1/b.jpg", "row 1")
    late = tmp_path / "late"
    late.mkdir()
    (late / "c.jpg").write_bytes(photo_bytes(2))
    (root / "row 3").symlink_to(late, target_is_directory=True)
    assert given(source).name == "row 3/c.jpg"
    assert names(source) == []


def test_what_is_passed_over_is_told_once_for_each_suffix(
    opened: Opener, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "in"
    for name in ("a.dng", "b.DNG", "notes.txt", "c.jpg.part", "Thumbs.db", "leaf.jpg"):
        (root / name).write_bytes(photo_bytes())
    source = opened()
    assert names(source) == ["leaf.jpg"]
    (root / "d.dng").write_bytes(b"")
    (root / "e.avif").write_bytes(b"")
    deadline = time.monotonic() + 10
    while "avif" not in caplog.text and time.monotonic() < deadline:
        assert names(source) == []
    told = [record.getMessage() for record in caplog.records if "are skipped" in record.getMessage()]
    assert told == [
        "files that are not photos are skipped: 2 .dng, 1 .txt",
        "files that are not photos are skipped: 1 .avif",
    ]


def test_pictures_of_where_a_model_looked_are_no_photos(
    opened: Opener, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = opened()
    folder = tmp_path / "in"
    for number in (1, 2):
        marked = folder / f"a-explained-{number}.png"
        Image.new("RGB", (20, 20)).save(marked, pnginfo=explanation_mark())
    Image.new("RGB", (20, 20)).save(folder / "b-explained.png")
    assert names(source) == ["b-explained.png"]
    assert len(caplog.messages) == 1
    assert "pictures that predict --explain wrote are skipped; the first one is 'a-explained-" in caplog.text


NOON = datetime(2026, 5, 12, 12, 0, tzinfo=UTC).timestamp()
NOW = NOON + 6 * 86_400
TAKEN, TAKEN_ZONE, DIGITISED, WRITTEN = 0x9003, 0x9011, 0x9004, 0x0132


def saved(path: Path, tags: dict[int, str], kind: str = "JPEG") -> Path:
    exif = Image.Exif()
    exif[0x010F] = "the camera's maker"  # without a tag outside the folders Pillow writes none into a PNG
    for tag, text in tags.items():
        (exif if tag == WRITTEN else exif.get_ifd(0x8769))[tag] = text
    pixels = np.random.default_rng(len(str(path))).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, kind, **({"exif": exif} if tags else {}))
    return path


@pytest.fixture
def in_kampala(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Three hours before UTC, without summer time."""
    monkeypatch.setenv("TZ", "EAT-3")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("in_kampala")
@pytest.mark.parametrize(
    "tags",
    [
        {TAKEN: "2026:05:12 15:00:00"},
        {TAKEN: "2026:05:12 15:00:00", TAKEN_ZONE: "   :  "},
        {TAKEN: "2026:05:12 12:00:00", TAKEN_ZONE: "Z"},
        {TAKEN: "2026:05:12 17:30:00", TAKEN_ZONE: "+05:30"},
        {TAKEN: "2026:05:12 05:00:00", TAKEN_ZONE: "-07:00", WRITTEN: "2026:05:13 00:00:00"},
        {TAKEN: "0000:00:00 00:00:00", DIGITISED: "2026-05-12 15:00:00"},
        {TAKEN: "    :  :     :  :  ", WRITTEN: "2026:05:12 15:00:00"},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_photo_says_when_it_was_taken(tmp_path: Path, tags: dict[int, str], kind: str) -> None:
    assert photo_time(saved(tmp_path / "a", tags, kind), NOW) == (NOON, "")


def heic_taken(text: str) -> bytes:
    """The HEIC photo of another test with a time in its EXIF."""
    exif = Image.Exif()
    exif[WRITTEN] = text
    block = b"\0\0\0\x06" + exif.tobytes()
    extent = struct.pack(">HHIHI", 2, 0, len(HEIC) - 36, 1, 0)  # of the EXIF in the photo's list of items
    place, mdat = HEIC.index(extent) + len(extent), HEIC.index(b"mdat") - 4
    made = bytearray(HEIC[:-36] + block)
    made[place : place + 4] = struct.pack(">I", len(block))
    made[mdat : mdat + 4] = struct.pack(">I", len(made) - mdat)
    return bytes(made)


@pytest.mark.needs("heic")
@pytest.mark.usefixtures("in_kampala")
def test_a_phones_heic_photo_says_when_it_was_taken(tmp_path: Path) -> None:
    (tmp_path / "a.heic").write_bytes(heic_taken("2026:05:12 15:00:00"))
    assert photo_time(tmp_path / "a.heic", NOW) == (NOON, "")


@pytest.mark.parametrize(
    ("tags", "problem"),
    [
        ({}, "no EXIF time"),
        ({TAKEN: "yesterday"}, "no EXIF time"),
        ({TAKEN: "2026:02:31 12:00:00"}, "no EXIF time"),
        ({TAKEN: "1970:01:01 00:00:10"}, "an EXIF time before 2010"),
        ({TAKEN: "1980:01:01 00:00:10"}, "an EXIF time before 2010"),
        ({TAKEN: "2000:01:01 00:00:10"}, "an EXIF time before 2010"),
        ({TAKEN: "2031:05:12 12:00:00"}, "an EXIF time in the future"),
        ({TAKEN: "9999:12:31 23:59:59"}, "an EXIF time in the future"),
    ],
    ids=str,
)
def test_a_time_that_cannot_be_is_none(tmp_path: Path, tags: dict[int, str], problem: str) -> None:
    assert photo_time(saved(tmp_path / "a.jpg", tags), NOW) == (None, problem)


def test_a_camera_that_is_a_little_ahead_took_its_photo_now(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.jpg", {TAKEN: "2026:05:12 12:02:00", TAKEN_ZONE: "+00:00"})
    assert photo_time(path, NOON) == (NOON, "")
    assert photo_time(path, NOON - 600) == (None, "an EXIF time in the future")
    assert photo_time(tmp_path / "gone.jpg", NOON) == (None, "no EXIF time")
    (tmp_path / "text.jpg").write_text("no photo")
    assert photo_time(tmp_path / "text.jpg", NOON) == (None, "no EXIF time")


def test_a_folder_gives_each_photo_its_own_time_and_reports_once_what_has_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    at_s = int(time.time()) - 3 * 86_400
    stamp = datetime.fromtimestamp(at_s, UTC).strftime("%Y:%m:%d %H:%M:%S")
    tags = [{TAKEN: stamp, TAKEN_ZONE: "+00:00"}, {}, {}, {TAKEN: "1980:01:01 00:00:10"}]
    for number, one in enumerate(tags):
        os.utime(saved(tmp_path / f"{number}.jpg", one), (at_s + number, at_s + number))
    found = {}
    for wanted in ("photo", "arrival"):
        source = FolderSource(tmp_path, SourceSettings(time=wanted), lambda identity: False)  # type: ignore[arg-type]
        source.open()
        frames = [source.read(1) for _ in tags]
        found[wanted] = [frame.taken_s for frame in frames if frame is not None]
        assert all(frame is not None and time.time() - frame.at_s < 60 for frame in frames)
        source.close()
    assert found == {"photo": [at_s, None, None, None], "arrival": [None] * 4}
    lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert lines == [
        "the photo 1.jpg has no EXIF time: rules use the time of arrival for such photos",
        "the photo 3.jpg has an EXIF time before 2010: rules use the time of arrival for such photos",
    ]


@pytest.mark.parametrize("text", ["0", "rtsp://camera/stream", "http://camera/a.jpg"])
def test_only_photos_of_a_folder_have_a_time_of_their_own(text: str) -> None:
    with pytest.raises(EdgeError, match='a folder of photos, because time = "photo" is set'):
        open_source(text, settings=SourceSettings(time="photo"), seen=lambda identity: False)


def test_a_folder_is_quiet_once_nothing_waits_grows_or_changes(opened: Opener, tmp_path: Path) -> None:
    at_once = -60.0  # nothing has changed since a minute from now
    (tmp_path / "in" / "a.jpg").write_bytes(photo_bytes())
    source = opened(settle_s=60)
    assert given(source).name == "a.jpg"
    assert source.is_quiet(at_once)
    assert not source.is_quiet(60)  # it has come just now
    (tmp_path / "in" / "b.jpg").write_bytes(photo_bytes(1))
    assert not source.is_quiet(at_once)  # found by a search, also if the system has not reported it
    assert source.has_backlog()
    assert names(source) == ["b.jpg"]
    (tmp_path / "in" / "c.jpg").write_bytes(photo_bytes(2)[:-20])
    assert names(source) == []
    assert not source.is_quiet(at_once)  # it may still be written
