"""The folder of kept photos, its limit, and what the next start makes of a kill at any moment."""

from __future__ import annotations

import errno
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.edge.keep.test_photo import leaf
from tests.edge.looks import detection

from agridistill.edge.events import Detection, Frame
from agridistill.edge.keep import store as module
from agridistill.edge.keep.store import GroupTooLargeError, KeptPhotos, PhotoTooLargeError, thinned
from agridistill.edge.store.history import Decision, History
from agridistill.storage import replacing, write_text

SHA = "5" * 64


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    with History(tmp_path / "history.sqlite") as found:
        yield found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "kept"


def frame_of(number: int, look: int | None = None) -> Frame:
    return Frame(np.asarray(leaf(number if look is None else look)), f"{number}.jpg", "", 0.0, f"id {number}")


def stage(kept: KeptPhotos, number: int, *, held: bool = False, look: int | None = None, **changes: Any) -> Decision:
    found: Detection = detection(number, **changes)
    row = kept.stage(frame_of(number, look), found, "unsure", SHA, held=held)
    return Decision(found, identity=f"id {number}", kept=row)


def keep(kept: KeptPhotos, history: History, *numbers: int, **given: Any) -> None:
    history.add_all([stage(kept, number, **given) for number in numbers])
    kept.stored()


def name(number: int) -> str:
    return f"{number:032x}"


def numbers_in(folder: Path, suffix: str = ".jpg") -> list[int]:
    return sorted(int(path.stem, 16) for path in folder.glob(f"*{suffix}") if not path.name.startswith("."))


def bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def test_a_kept_photo_has_its_event_id_as_name_and_a_sidecar(history: History, folder: Path) -> None:
    kept = KeptPhotos(history, folder, 10**6)
    keep(kept, history, 7, plot="north", at_s=1_780_300_800.25, probabilities={"a": 0.6, "b": 0.4}, label="a")
    assert sorted(path.name for path in folder.iterdir()) == [f"{name(7)}.jpg", f"{name(7)}.json"]
    document = json.loads((folder / f"{name(7)}.json").read_text())
    assert document.pop("photo_sha256")
    assert document == {
        "schema": 1,
        "event_id": name(7),
        "time": "2026-06-01T08:00:00.250Z",
        "device": "field-7",
        "plot": "north",
        "verdict": "answer",
        "class": "a",
        "probabilities": {"a": 0.6, "b": 0.4},
        "model_sha256": SHA,
        "reason": "unsure",
        "photo": document["photo"],
    }
    assert kept.state()["bytes"] == bytes_in(folder)


def test_nothing_is_seen_in_the_folder_before_its_detection_is_stored(history: History, folder: Path) -> None:
    kept = KeptPhotos(history, folder, 10**6)
    decision = stage(kept, 1)
    assert numbers_in(folder) == []
    history.add_all([decision])
    assert numbers_in(folder) == []
    kept.stored()
    assert numbers_in(folder) == numbers_in(folder, ".json") == [1]


def test_a_photo_without_a_stored_detection_is_removed_at_the_next_start(history: History, folder: Path) -> None:
    stage(KeptPhotos(history, folder, 10**6), 1)
    (folder / f".{name(1)}.json.9-ab.part").touch()
    (folder / f"..{name(1)}.jpg.9-ab.part").touch()
    for theirs in ("notes.txt", ".hidden", "leaf.jpg"):
        (folder / theirs).touch()
    kept = KeptPhotos(history, folder, 10**6)
    assert sorted(path.name for path in folder.iterdir()) == [".hidden", "leaf.jpg", "notes.txt"]
    keep(kept, history, 1)  # it is decided on again
    assert kept.content(name(1))


@pytest.mark.parametrize("done", ["nothing", "renamed", "half a sidecar"])
def test_a_stored_photo_gets_its_name_and_sidecar_at_the_next_start(history: History, folder: Path, done: str) -> None:
    history.add_all([stage(KeptPhotos(history, folder, 10**6), 1)])
    if done != "nothing":
        (folder / f".{name(1)}.jpg").rename(folder / f"{name(1)}.jpg")
    if done == "half a sidecar":
        (folder / f".{name(1)}.json.9-ab.part").write_text("{")
    KeptPhotos(history, folder, 10**6)
    assert sorted(path.name for path in folder.iterdir()) == [f"{name(1)}.jpg", f"{name(1)}.json"]
    assert json.loads((folder / f"{name(1)}.json").read_text())["event_id"] == name(1)


@pytest.mark.parametrize("is_removed", [False, True])
def test_a_kill_while_a_photo_is_removed_leaves_it_whole_or_not_at_all(
    history: History, folder: Path, is_removed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def kill(*given: Any, **more: Any) -> None:
        raise Killed

    first = KeptPhotos(history, folder, 10**6)
    keep(first, history, 1)
    with monkeypatch.context() as patch:
        patch.setattr(KeptPhotos, "_unlink_hidden" if is_removed else "_delete_rows", kill)
        with pytest.raises(Killed):
            first._drop([name(1)], count="kept_dropped")
    kept = KeptPhotos(history, folder, 10**6)
    assert numbers_in(folder) == numbers_in(folder, ".json") == ([] if is_removed else [1])
    assert (kept.state()["photos"], kept.state()["dropped"]) == ((0, 1) if is_removed else (1, 0))
    assert list(folder.glob(".*")) == []


@pytest.mark.parametrize("gone", [".json", ".jpg", "both"])
def test_what_people_delete_of_a_photo(history: History, folder: Path, gone: str) -> None:
    keep(KeptPhotos(history, folder, 10**6), history, 1)
    for suffix in (".jpg", ".json"):
        if gone in (suffix, "both"):
            (folder / f"{name(1)}{suffix}").unlink()
    kept = KeptPhotos(history, folder, 10**6)
    is_left = gone == ".json"
    assert numbers_in(folder) == ([1] if is_left else [])
    assert numbers_in(folder, ".json") == ([] if gone == "both" else [1])
    assert (kept.state()["photos"], kept.state()["dropped"]) == (is_left, 0)


def test_photos_that_a_lost_history_knew_are_known_again(
    history: History, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keep(KeptPhotos(history, folder, 10**6), history, 1, 2)
    (folder / f"{name(2)}.json").write_text("{}")
    with History(tmp_path / "new.sqlite") as new:
        kept = KeptPhotos(new, folder, 10**6)
        assert [pending.message.event_id for pending in kept.pending()] == [name(1)]
        assert stage(kept, 1).kept is None  # decided on again: it is there already
    assert f"'{name(2)}.json' in the folder of kept photos is damaged" in caplog.text
    assert (folder / f"{name(2)}.json").read_text() == "{}"


def test_the_limit_holds_at_every_moment(history: History, folder: Path) -> None:
    kept = KeptPhotos(history, folder, 20_000)
    for number in range(1, 60):
        decisions = [stage(kept, 2 * number + one) for one in (0, 1)]
        assert bytes_in(folder) <= 20_000
        history.add_all(decisions)
        kept.stored()
        assert bytes_in(folder) == kept.state()["bytes"] <= 20_000
    assert len(numbers_in(folder)) >= 5
    assert kept.state()["dropped"] == 2 * 59 - len(numbers_in(folder))
    assert max(numbers_in(folder)) == 2 * 59 + 1  # the newest
    assert bytes_in(folder) > 10_000
    KeptPhotos(history, folder, 8_000)  # a smaller limit in the settings
    assert bytes_in(folder) <= 8_000


def test_a_photo_larger_than_the_limit_is_refused(history: History, folder: Path) -> None:
    kept = KeptPhotos(history, folder, 1000)
    with pytest.raises(
        PhotoTooLargeError, match=r"photos of at most 1,000 bytes; got a photo of .*raise max_megabytes"
    ):
        stage(kept, 1)
    assert list(folder.iterdir()) == []
    kept = KeptPhotos(history, folder, 5000)
    with pytest.raises(GroupTooLargeError):
        keep(kept, history, 1, 2, 3)
    assert bytes_in(folder) <= 5000


def test_old_photos_that_look_alike_are_removed_first(history: History, folder: Path) -> None:
    kept = KeptPhotos(history, folder, 10**6)
    for number in range(8):
        keep(kept, history, number, look={2: 99, 3: 99, 6: 98, 7: 98}.get(number, number))
    size = kept.state()["bytes"]
    kept = KeptPhotos(history, folder, size - 1)
    assert numbers_in(folder) == [0, 1, 3, 4, 5, 6, 7]  # 6 and 7 are alike, but in the newer half
    KeptPhotos(history, folder, kept.state()["bytes"] - 1)
    assert numbers_in(folder) == [1, 3, 4, 5, 6, 7]  # without alike ones, the oldest


def test_thinning_frees_what_is_needed_and_not_more() -> None:
    rng = np.random.default_rng(0)
    rows = [module._Row(str(number), 100, int(rng.integers(-(2**63), 2**63))) for number in range(50)]
    rows[30] = module._Row("30", 100, rows[40].look ^ 3)
    assert thinned(rows, 250) == ["30", "0", "1"]
    assert len(thinned(rows, 10**6)) == 50
    assert thinned([], 5) == []


def test_uploaded_photos_are_removed_before_those_that_wait(history: History, folder: Path) -> None:
    kept = KeptPhotos(history, folder, 10**6)
    keep(kept, history, *range(6))
    kept.delivered([pending.seq for pending in kept.pending()][3:5])
    limit = kept.state()["bytes"] - 1
    assert KeptPhotos(history, folder, limit).state()["dropped"] == 0
    assert numbers_in(folder) == [0, 1, 2, 4, 5]


def test_uploaded_photos_go_where_that_is_wanted(history: History, folder: Path) -> None:
    kept = KeptPhotos(history, folder, 10**6, delete_uploaded=True)
    keep(kept, history, 1, 2)
    kept.delivered([kept.pending()[0].seq])
    assert numbers_in(folder) == numbers_in(folder, ".json") == [2]
    assert (kept.counts().delivered, kept.counts().waiting, kept.counts().dropped) == (1, {"photo": 1}, {"photo": 0})


def test_an_upload_that_was_acknowledged_before_a_kill_is_not_repeated(history: History, folder: Path) -> None:
    kept = KeptPhotos(history, folder, 10**6)
    keep(kept, history, 1)
    kept.delivered([kept.pending()[0].seq])
    again = KeptPhotos(history, folder, 10**6, delete_uploaded=True)
    assert again.pending() == []
    assert list(folder.iterdir()) == []


def test_leaves_wait_hidden_for_an_alert_and_go_without_one(history: History, folder: Path) -> None:
    kept = KeptPhotos(history, folder, 10**6)
    for number, plot, label in ((1, "north", "rust"), (2, "north", "mold"), (3, "south", "rust")):
        keep(kept, history, number, held=True, plot=plot, label=label, at_s=1000.0 + number)
    assert numbers_in(folder) == []
    assert kept.pending() == []
    kept.release_held({"north": {"rust"}}, before_s=1003.0)
    assert numbers_in(folder) == numbers_in(folder, ".json") == [1]
    assert sorted(path.name for path in folder.glob(".*")) == [f".{name(3)}.jpg"]
    kept.release_held({"north": {"rust"}}, before_s=1004.0)
    assert list(folder.glob(".*")) == []
    assert kept.state()["dropped"] == 0


def test_leaves_that_no_alert_needs_yet_take_a_tenth_of_the_room(history: History, folder: Path) -> None:
    kept = KeptPhotos(history, folder, 40_000)
    for number in range(30):
        keep(kept, history, number)
    before = numbers_in(folder)
    for number in range(100, 140):
        keep(kept, history, number, held=True)
    hidden = [path.stat().st_size for path in folder.glob(".*.jpg")]
    assert 0 < sum(hidden) < 8_000
    assert len(numbers_in(folder)) >= len(before) - 4


def test_photos_that_people_take_out_of_the_folder_are_forgotten(history: History, folder: Path) -> None:
    kept = KeptPhotos(history, folder, 10**6)
    keep(kept, history, 1, 2)
    (folder / f"{name(1)}.jpg").unlink()
    assert kept.content(name(1)) is None
    kept.forget_missing()
    assert [pending.message.event_id for pending in kept.pending()] == [name(2)]
    assert numbers_in(folder, ".json") == [1, 2]  # rsync may be about to move it, too
    assert kept.state()["dropped"] == 0


def test_a_folder_that_is_away_forgets_nothing(history: History, folder: Path) -> None:
    kept = KeptPhotos(history, folder, 10**6)
    keep(kept, history, 1)
    history.add_all([stage(kept, 2)])
    folder.rename(folder.with_name("unplugged"))
    for _ in range(2):
        for ask in (kept.forget_missing, kept.stored, lambda: kept.content(name(1)), lambda: stage(kept, 3)):
            with pytest.raises(FileNotFoundError, match="start the agent again"):
                ask()
        assert len(kept.pending()) == 2
        folder.mkdir(exist_ok=True)  # where a disk was mounted
    assert list(folder.iterdir()) == []


def test_a_disk_that_is_not_mounted_at_the_start_is_not_filled_and_nothing_of_it_is_forgotten(
    history: History, folder: Path
) -> None:
    kept = KeptPhotos(history, folder, 10**6)
    keep(kept, history, 1)
    history.add_all([stage(kept, 2, held=True)])
    kept.stored()
    disk = folder.rename(folder.with_name("disk"))
    folder.mkdir()  # where it was mounted
    away = KeptPhotos(history, folder, 10**6, is_away=True)
    for ask in (
        away.forget_missing,
        lambda: away.content(name(1)),
        lambda: stage(away, 3),
        lambda: away.release_held({}, before_s=1e12),
    ):
        with pytest.raises(FileNotFoundError, match="mount it, and start the agent again"):
            ask()
    away.publish()
    assert list(folder.iterdir()) == []
    folder.rmdir()
    disk.rename(folder)
    again = KeptPhotos(history, folder, 10**6)
    assert again.content(name(1)) is not None
    assert again.content(name(2)) is not None


def test_on_a_full_disk_older_photos_make_room_for_a_sidecar_too(
    history: History, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = KeptPhotos(history, folder, 10**6)
    keep(kept, history, 1, 2, 3)
    most = bytes_in(folder)

    def limited(path: Path, text: str) -> None:
        if bytes_in(folder) > most:
            raise OSError(errno.ENOSPC, "No space left on device")
        write_text(path, text)

    monkeypatch.setattr(module, "write_text", limited)
    keep(kept, history, 4)
    assert numbers_in(folder) == numbers_in(folder, ".json") == [2, 3, 4]
    assert kept.state()["dropped"] == 1


def test_on_a_full_disk_older_photos_make_room(history: History, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = KeptPhotos(history, folder, 10**6)
    keep(kept, history, 1, 2, 3)
    room = bytes_in(folder)

    def limited(path: Path, **given: bool) -> Any:
        if path.suffix == ".jpg" and bytes_in(folder) > room - 1000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return replacing(path, **given)

    monkeypatch.setattr(module, "replacing", limited)
    keep(kept, history, 4)
    assert numbers_in(folder) == [2, 3, 4]
    room = 0
    with pytest.raises(OSError, match="No space left"):
        stage(kept, 5)
    room = 10**6
    keep(kept, history, 5)
    assert numbers_in(folder) == [5]


def test_a_sidecar_that_cannot_be_written_now_is_written_later(
    history: History, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    kept = KeptPhotos(history, folder, 10**6)
    history.add_all([stage(kept, 1)])
    with monkeypatch.context() as patch:
        patch.setattr(module, "write_text", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
        with pytest.raises(OSError, match="full"):
            kept.stored()
    kept.publish()
    assert numbers_in(folder, ".json") == [1]
