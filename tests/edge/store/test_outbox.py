"""Nothing that was committed is lost but by a limit, and then it is counted."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from agridistill.edge.store import StateLostError
from agridistill.edge.store.outbox import Message, Outbox, OutboxLimits
from agridistill.errors import OutboxError


def messages(count: int, *, kind: str = "detection", size: int = 10, plot: str = "north") -> list[Message]:
    return [Message(f"{number:0{size}}".encode(), kind, plot) for number in range(count)]  # type: ignore[arg-type]


def payloads(box: Outbox) -> list[int]:
    return [int(item.message.payload) for item in box.pending(limit=10**6)]


def places(box: Outbox) -> list[int]:
    return [item.seq for item in box.pending(limit=10**6)]


def test_messages_come_out_in_the_order_in_which_they_went_in(tmp_path: Path) -> None:
    with Outbox(tmp_path / "new" / "outbox.db") as box:
        added = messages(5)
        box.add(added[:3])
        box.add(added[3:])
        seqs = places(box)
        assert seqs == sorted(seqs)
        assert [item.message for item in box.pending()] == added
        assert [item.seq for item in box.pending(after=seqs[1], limit=2)] == seqs[2:4]
        assert 0 <= box.counts().oldest_s < 60


def test_what_is_acknowledged_goes_and_its_place_is_never_given_again(tmp_path: Path) -> None:
    with Outbox(tmp_path / "outbox.db") as box:
        box.add(messages(3))
        seqs = places(box)
        box.delivered([*seqs, 99])
        assert box.pending() == []
        assert (box.counts().delivered, box.counts().waiting_bytes) == (3, 0)
    with Outbox(tmp_path / "outbox.db") as box:
        box.add(messages(1))
        assert places(box) > [max(seqs)]
        counts = box.counts()
        assert (counts.delivered, counts.waiting, counts.dropped) == (3, {"detection": 1}, {})


def test_what_was_committed_is_there_after_a_new_start(tmp_path: Path) -> None:
    with Outbox(tmp_path / "outbox.db") as box:
        added = messages(3)
        box.add(added)
        size = box.counts().waiting_bytes
    with Outbox(tmp_path / "outbox.db") as box:
        assert [item.message for item in box.pending()] == added
        assert box.counts().waiting_bytes == size > 3 * 10


def test_what_waits_in_a_file_without_a_counter_of_bytes_counts(tmp_path: Path) -> None:
    file = tmp_path / "outbox.db"
    with Outbox(file) as box:
        box.add(messages(3))
        size = box.counts().waiting_bytes
    # As version 0.1 wrote it.
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as database:
        database.execute("DELETE FROM counters WHERE name = 'waiting_bytes'")
        database.executescript("DROP TRIGGER message_added; DROP TRIGGER message_removed")
    with Outbox(file) as box:
        assert box.counts().waiting_bytes == size > 0
        box.delivered(places(box))
        assert box.counts().waiting_bytes == 0


def test_the_same_event_is_kept_once(tmp_path: Path) -> None:
    with Outbox(tmp_path / "outbox.db") as box:
        (message,) = messages(1)
        box.add([message])
        size = box.counts().waiting_bytes
        box.add([message])
        assert len(box.pending()) == 1
        assert box.counts().waiting_bytes == size


def test_a_commit_is_synchronised_with_the_disk(tmp_path: Path) -> None:
    with Outbox(tmp_path / "outbox.db") as box:
        pragma = {
            name: box._database.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")
        }
        assert pragma == {"journal_mode": "wal", "synchronous": 2}


def len_of(message: Message) -> int:
    """What a message counts for against the limit."""
    with tempfile.TemporaryDirectory() as folder, Outbox(Path(folder) / "outbox.db") as box:
        box.add([message])
        return box.counts().waiting_bytes


class TestLimits:
    def test_old_detections_are_thinned_first_and_alerts_stay(self, tmp_path: Path) -> None:
        with Outbox(tmp_path / "outbox.db", OutboxLimits(0.04)) as box:
            box.add(messages(5, kind="alert"))
            for number in range(400):
                box.add([Message(f"{number:010}".encode(), "detection", "north")])
            counts = box.counts()
            kept = [int(item.message.payload) for item in box.pending(limit=1000) if item.message.kind == "detection"]
            assert counts.waiting_bytes <= 40_000
            assert counts.waiting["alert"] == 5
            assert set(counts.dropped) == {"detection"}
            assert counts.dropped["detection"] + len(kept) == 400
            # The newest are whole, the oldest are thin, and there is still something of every time.
            assert kept[-50:] == list(range(350, 400))
            assert kept[0] < 40
            gaps = [b - a for a, b in itertools.pairwise(kept)]
            assert max(gaps[: len(gaps) // 4]) > 1 == max(gaps[-50:])
            assert max(gaps) < 150

    def test_without_detections_the_oldest_alerts_go(self, tmp_path: Path) -> None:
        with Outbox(tmp_path / "outbox.db", OutboxLimits(0.02)) as box:
            for number in range(300):
                box.add([Message(f"{number:010}".encode(), "alert", "north")])
            counts = box.counts()
            kept = payloads(box)
            assert counts.waiting_bytes <= 20_000
            assert kept == list(range(kept[0], 300))
            assert counts.dropped == {"alert": kept[0]}

    def test_a_detection_never_costs_an_alert(self, tmp_path: Path) -> None:
        with Outbox(tmp_path / "outbox.db", OutboxLimits(0.02)) as box:
            room = 20_000 // len_of(Message(b"0" * 10, "alert", "north"))
            for number in range(room):
                box.add([Message(f"{number:010}".encode(), "alert", "north")])
            box.add([Message(b"d" * 100)])
            assert box.counts().waiting == {"alert": room}
            assert box.counts().dropped == {"detection": 1}
            # One alert more costs one alert, not several.
            box.add([Message(b"1" * 10, "alert", "north")])
            assert (box.counts().waiting, box.counts().dropped["alert"]) == ({"alert": room}, 1)

    def test_the_newest_detections_stay_beside_many_alerts(self, tmp_path: Path) -> None:
        with Outbox(tmp_path / "outbox.db", OutboxLimits(0.02)) as box:
            size = len_of(Message(b"0" * 10, "alert", "north"))
            alerts = 20_000 // size - 4
            box.add([Message(f"{number:010}".encode(), "alert", "north") for number in range(alerts)])
            for number in range(20):
                box.add([Message(f"{number:010}".encode(), "detection", "north")])
            kept = [int(item.message.payload) for item in box.pending(limit=1000) if item.message.kind == "detection"]
            assert kept[-1] == 19
            assert set(box.counts().dropped) == {"detection"}

    def test_what_is_dropped_is_counted_over_new_starts(self, tmp_path: Path) -> None:
        for _ in range(3):
            with Outbox(tmp_path / "outbox.db", OutboxLimits(0.02)) as box:
                box.add([Message(b"x" * 100) for _ in range(60)])
        with Outbox(tmp_path / "outbox.db") as box:
            counts = box.counts()
            assert counts.dropped["detection"] + counts.waiting["detection"] == 180


class TestTrouble:
    def test_a_damaged_file_is_set_aside_and_told(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        path = tmp_path / "outbox.db"
        with Outbox(path) as box:
            box.add([Message(os.urandom(3000)) for _ in range(50)])
        data = bytearray(path.read_bytes())
        data[100:20_000] = os.urandom(19_900)
        path.write_bytes(data)
        with Outbox(path) as box:
            box.add(messages(1))
            assert len(box.pending()) == 1
        (aside,) = [file for file in tmp_path.glob("outbox.db.damaged-*") if not file.name.endswith(("-wal", "-shm"))]
        assert aside.read_bytes() == bytes(data)
        assert "is damaged: it is renamed to" in caplog.text

    def test_a_file_that_is_removed_while_it_is_open_is_a_clear_error(self, tmp_path: Path) -> None:
        path = tmp_path / "state" / "outbox.db"
        with Outbox(path) as box:
            box.add(messages(3))
            shutil.rmtree(path.parent)
            for _ in range(2):
                with pytest.raises(
                    StateLostError,
                    match=r"the outbox as the agent left it; got .*removed or replaced; start the agent",
                ):
                    box.add(messages(2))

    def test_a_file_that_is_damaged_while_it_is_open_is_a_clear_error_and_the_next_start_begins_anew(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        path = tmp_path / "outbox.db"
        with Outbox(path) as box:
            box.add([Message(os.urandom(3000)) for _ in range(50)])
            box._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            with path.open("r+b") as file:
                file.seek(4096)
                file.write(b"\xff" * (path.stat().st_size - 4096))
            box._database.execute("PRAGMA cache_size = 0")
            for use in (box.pending, lambda: box.add(messages(1))):
                with pytest.raises(StateLostError, match=r"was damaged \(.*malformed\); start the agent again"):
                    use()
        assert caplog.text == ""
        with Outbox(path) as box:
            box.add(messages(1))
            assert payloads(box) == [0]
        assert caplog.text.count("damaged: it is renamed to") == 1

    def test_a_file_of_another_version_is_left_alone(self, tmp_path: Path) -> None:
        path = tmp_path / "outbox.db"
        Outbox(path).close()
        database = sqlite3.connect(path)
        database.execute("PRAGMA user_version = 99")
        database.close()
        with pytest.raises(
            OutboxError, match=r"an outbox of schema version 1; got schema version 99 in .*; name another folder"
        ):
            Outbox(path)
        assert not list(tmp_path.glob("*damaged*"))

    def test_a_full_disk_is_told_and_nothing_is_half_added(self, tmp_path: Path) -> None:
        with Outbox(tmp_path / "outbox.db") as box:
            box.add(messages(3))
            before = replace(box.counts(), oldest_s=0)
            pages = box._database.execute("PRAGMA page_count").fetchone()[0]
            box._database.execute(f"PRAGMA max_page_count = {pages + 1}")
            with pytest.raises(OutboxError, match=r"an outbox that can be written.*full\); free some room on the disk"):
                box.add([Message(os.urandom(2000)) for _ in range(20)])
            assert replace(box.counts(), oldest_s=0) == before
            assert payloads(box) == [0, 1, 2]
            box._database.execute("PRAGMA max_page_count = 100000")
            box.add(messages(1))
            assert payloads(box) == [0, 1, 2, 0]

    def test_threads_may_share_it(self, tmp_path: Path) -> None:
        with Outbox(tmp_path / "outbox.db") as box:
            threads = [threading.Thread(target=lambda: [box.add(messages(1)) for _ in range(40)]) for _ in range(4)]
            for thread in threads:
                thread.start()
            got: set[int] = set()
            while any(thread.is_alive() for thread in threads) or box.pending():
                seqs = [item.seq for item in box.pending(limit=7)]
                got.update(seqs)
                box.delivered(seqs)
            assert len(got) == 160
            assert box.counts().delivered == 160


WRITER = """
import sys
from pathlib import Path
from agridistill.edge.store.outbox import Message, Outbox
with Outbox(Path(sys.argv[1])) as box:
    number = int(sys.argv[2])
    while True:
        box.add([Message(f"{number:010}".encode())])
        print(number, flush=True)
        number += 1
"""


@pytest.mark.parametrize("seed", range(3))
def test_after_a_kill_everything_that_was_told_is_there(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    path, start = tmp_path / "outbox.db", 0
    for _ in range(5):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), str(start)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        told = [int(process.stdout.readline())]
        time.sleep(rng.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        told += [int(line) for line in process.stdout.read().splitlines()]
        process.stdout.close()
        process.wait()
        with Outbox(path) as box:
            kept = payloads(box)
        # One more may have been committed than there was time to tell.
        assert kept[: told[-1] + 1] == list(range(told[-1] + 1))
        assert len(kept) - (told[-1] + 1) in (0, 1)
        start = len(kept)
