"""The record of a review: no confirmed choice is lost, whatever kills the writer."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from agridistill.errors import RunError
from agridistill.review.record import HEADER, LABEL, UNDO, Action, Choice, Judgements, ReviewLog

WRITER = """
import sys
from pathlib import Path
from agridistill.review.record import Action, ReviewLog
log, name = ReviewLog(Path(sys.argv[1])), sys.argv[2]
for number in range(100_000):
    log.append([Action("2026-01-01T00:00:00Z", name, "label", "late blight, \\"both\\" sides", f"plot/{number}.jpg")])
    print(number, flush=True)
"""


def action(photo: str, label: str = "rust", reviewer: str = "anna", verdict: str = LABEL) -> Action:
    return Action("2026-01-01T00:00:00Z", reviewer, verdict, label if verdict == LABEL else "", photo)


def test_what_is_written_is_read_with_every_sign_of_a_name(tmp_path: Path) -> None:
    written = [
        action('a, "b".jpg', 'late "blight", leaf'),
        action("über/1.jpg", "Rost", "Änne"),
        action(os.fsdecode(b"caf\xe9.jpg")),
        action("1.jpg", verdict="not a leaf"),
        action("1.jpg", verdict=UNDO),
    ]
    log = ReviewLog(tmp_path / "deep" / "review.csv")
    assert log.read() == []
    for one in written:
        log.append([one])
    assert ReviewLog(log.path).read() == written


@pytest.mark.parametrize("torn", [b"2026-01-01T00:00:00Z,anna,label,late_bl", b"2", HEADER.encode()[:10]])
def test_an_incomplete_last_line_is_left_out_and_then_removed(
    tmp_path: Path, torn: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    log = ReviewLog(tmp_path / "review.csv")
    log.append([action("1.jpg")])
    with log.path.open("ab") as file:
        file.write(torn)
    again = ReviewLog(log.path)
    assert again.read() == [action("1.jpg")]
    assert [record.getMessage() for record in caplog.records] == [
        f"'{log.path}': left out the incomplete last line of a stopped process"
    ]
    again.append([action("2.jpg")])
    assert again.read() == [action("1.jpg"), action("2.jpg")]
    assert len(caplog.records) == 1


def test_a_process_killed_while_it_writes_the_header_leaves_a_usable_file(tmp_path: Path) -> None:
    (tmp_path / "review.csv").write_bytes(HEADER.encode()[:9])
    log = ReviewLog(tmp_path / "review.csv")
    log.append([action("1.jpg")])
    assert log.read() == [action("1.jpg")]


def test_a_line_that_is_no_action_is_reported_and_the_others_count(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = ReviewLog(tmp_path / "review.csv")
    log.append([action("1.jpg")])
    with log.path.open("a") as file:
        file.write("a note of the adviser\n")
    log.append([action("2.jpg")])
    assert [one.photo for one in log.read()] == ["1.jpg", "2.jpg"]
    assert "left out 1 lines that are no actions, the first 3" in caplog.text


@pytest.mark.parametrize("damage", [b't,anna,label,"rust,2.jpg\n', b"\0" * 200_000 + b"\n"])
def test_damage_that_hides_later_lines_is_one_error(tmp_path: Path, damage: bytes) -> None:
    log = ReviewLog(tmp_path / "review.csv")
    log.append([action("1.jpg")])
    log.path.write_bytes(log.path.read_bytes() + damage)
    log.append([action("3.jpg")])
    with pytest.raises(RunError, match=r"expected a whole record of a review in '.*'; got line [34] \(.*correct or"):
        log.read()


def test_a_foreign_file_is_refused_and_stays(tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    file.write_text("image,label\n1.jpg,rust\n")
    with pytest.raises(RunError, match="earlier result for --out"):
        ReviewLog(file)
    assert file.read_text() == "image,label\n1.jpg,rust\n"


def test_a_full_disk_leaves_the_record_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = ReviewLog(tmp_path / "review.csv")
    log.append([action("1.jpg")])
    before = log.path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            log.append([action("2.jpg")])
    assert log.path.read_bytes() == before


def test_no_second_record_begins_where_the_first_ones_disk_was_mounted(tmp_path: Path) -> None:
    stick = tmp_path / "stick"
    log = ReviewLog(stick / "photos" / "review.csv")
    log.append([action("1.jpg")])
    stick.rename(tmp_path / "unplugged")
    for _ in range(2):
        with pytest.raises(FileNotFoundError, match="bring it back"):
            log.append([action("2.jpg")])
        stick.mkdir(exist_ok=True)
    assert list(stick.iterdir()) == []
    stick.rmdir()
    (tmp_path / "unplugged").rename(stick)
    log.append([action("3.jpg")])
    assert [each.photo for each in log.read()] == ["1.jpg", "3.jpg"]


def test_reviewers_who_write_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "review.csv"

    def write(name: str) -> None:
        log = ReviewLog(path)
        for number in range(25):
            log.append([action(f"{number}.jpg", reviewer=name)])

    ReviewLog(path).append([action("0.jpg", reviewer="first")])
    threads = [threading.Thread(target=write, args=(name,)) for name in ("anna", "ben", "cem")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    judgements = Judgements(ReviewLog(path).read())
    assert judgements.reviewers == ["anna", "ben", "cem", "first"]
    assert all(len(judgements.of(name)) == 25 for name in ("anna", "ben", "cem"))


@pytest.mark.slow
def test_no_confirmed_choice_is_lost_by_kills(tmp_path: Path) -> None:
    path = tmp_path / "review.csv"
    rng = random.Random(0)
    for run in range(6):
        name = f"writer {run}"
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(path), name], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        with process.stdout as confirmed:
            count = rng.randrange(3, 30)
            for _ in range(count):
                confirmed.readline()
            process.send_signal(signal.SIGKILL)
            count += len(confirmed.read().split())
        process.wait()
        log = ReviewLog(path)
        log.append([action("between.jpg", reviewer="between")])
        found = list(Judgements(log.read()).of(name))
        assert len(found) >= count - 1  # the number that was printed last may be cut
        assert found == [f"plot/{number}.jpg" for number in range(len(found))]


def test_undo_takes_back_the_last_choice_of_this_reviewer_on_this_photo() -> None:
    judgements = Judgements(
        [
            action("1.jpg", "rust"),
            action("1.jpg", "mildew"),
            action("1.jpg", "healthy", "ben"),
            action("2.jpg", "rust"),
            action("1.jpg", verdict=UNDO),
            action("3.jpg", verdict=UNDO),
        ]
    )
    assert judgements.of("anna") == {"1.jpg": Choice(LABEL, "rust"), "2.jpg": Choice(LABEL, "rust")}
    assert judgements.of("ben") == {"1.jpg": Choice(LABEL, "healthy")}
    assert judgements.valid("anna")[-1].photo == "2.jpg"
