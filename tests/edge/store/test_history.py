"""What the device itself remembers."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from agridistill.edge.events import Alert, Detection
from agridistill.edge.store.history import Decision, History, HistoryLimits
from agridistill.errors import OutboxError


def detection(number: int, **changes: object) -> Detection:
    made = Detection(
        event_id=f"{number:032x}",
        at_s=1_800_000_000.0 + number,
        device="pi",
        source="photos",
        photo=f"{number}.jpg",
        plot="north" if number % 2 else "south",
        model="0123456789ab",
        verdict="answer",
        label="blight",
        probability=0.9,
        probabilities={"blight": 0.9, "healthy": 0.1},
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def alert(number: int, **changes: object) -> Alert:
    made = Alert(f"{number:032x}", "late blight", "north", "open", 10.0, 10.0 + number, None, "blight", 0.5, 8, "half")
    return replace(made, **changes)  # type: ignore[arg-type]


def put(history: History, one: Alert, told_s: float = 0.0) -> None:
    history.put_alerts([(one, told_s)])


@pytest.fixture
def trims_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each commit waits for the disk: a few have to do."""
    monkeypatch.setattr("agridistill.edge.store.history._TRIM_EVERY", 20)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "history.sqlite"


def test_detections_come_back_newest_first_and_as_they_were(path: Path) -> None:
    with History(path) as history:
        for number in range(5):
            history.add(detection(number))
        assert history.recent(3) == [detection(4), detection(3), detection(2)]
        assert history.recent(since_s=detection(3).at_s) == [detection(4), detection(3)]


def test_detections_and_alerts_are_known_by_their_source(path: Path) -> None:
    for number, source in enumerate(("one farm", "another")):
        with History(path, source=source) as history:
            history.add(detection(number, plot="north"))
            put(history, alert(number))
    with History(path, source="one farm") as history:
        assert history.recent(own=True) == [detection(0, plot="north")]
        assert history.last_leaves({"answer"}) == {"north": (detection(0).at_s, detection(0).at_s)}
        assert [found for found, _ in history.alerts_told(own=True)] == [alert(0)]
        put(history, alert(1, state="resolved"))
        assert [found for found, _ in history.alerts_told(own=False)] == [alert(1, state="resolved")]
        assert len(history.recent()) == len(history.alerts()) == 2


def test_when_the_last_leaf_of_a_plot_was_seen(path: Path) -> None:
    with History(path) as history:
        for number in range(4):
            history.add(detection(number))
        history.add(detection(5, verdict="unusable"))
        assert history.last_leaves({"answer", "unsure"})["north"] == (detection(3).at_s, detection(3).at_s)
        assert history.last_leaves({"unusable"}) == {"north": (detection(5).at_s, detection(5).at_s)}
        assert history.last_leaves({"unfamiliar"}) == {}


def test_a_detection_that_is_there_is_not_added_again(path: Path) -> None:
    with History(path) as history:
        history.add(detection(1))
        history.add(detection(1, label="healthy"))
        assert history.recent() == [detection(1)]
        assert history.verdict_counts() == {"answer": 1}


def test_photos_are_known_for_good_also_after_their_detections_have_gone(path: Path) -> None:
    with History(path, HistoryLimits(detections=10)) as history:
        for number in range(500):
            history.add(detection(number), identity=f"photo {number}")
        history.mark("unreadable")
    with History(path) as again:
        assert len(again.recent(1000)) < 500
        assert again.decided_by("photo 0") is not None
        assert again.decided_by("unreadable") is not None
        assert again.decided_by("photo 500") is None
        assert again.verdict_counts() == {"answer": 500}


def test_a_photo_that_was_begun_and_never_ended_is_counted_and_not_known(path: Path) -> None:
    with History(path) as history:
        assert [history.begin("big"), history.begin("big"), history.begin("big")] == [0, 1, 2]
        assert history.decided_by("big") is None
        history.end("big")
        assert history.begin("big") == 0
        history.mark("big")
        assert history.decided_by("big") is not None
        history.end("big")
        assert history.decided_by("big") is not None


@pytest.mark.usefixtures("trims_often")
def test_of_photos_the_newest_are_remembered(path: Path) -> None:
    with History(path, HistoryLimits(photos=20)) as history:
        for number in range(100):
            history.add(detection(number), identity=f"photo {number}")
        assert history.decided_by("photo 99") is not None
        assert history.decided_by("photo 80") is not None
        assert history.decided_by("photo 0") is None


@pytest.mark.usefixtures("trims_often")
def test_what_is_kept_is_bounded_and_the_newest_stay(path: Path) -> None:
    with History(path, HistoryLimits(detections=10, thumbnails=5)) as history:
        for number in range(100):
            history.add(detection(number), thumbnail=b"jpeg")
        kept = history.recent(1000)
        assert [item.event_id for item in kept[:10]] == [detection(number).event_id for number in range(99, 89, -1)]
        assert len(kept) <= 10 + 20
        assert history.thumbnail(detection(99).event_id) == b"jpeg"
        assert history.thumbnail(detection(72).event_id) is None
        assert history.thumbnail("no such") is None


def test_alerts_are_kept_by_their_id_and_found_by_their_state(path: Path) -> None:
    with History(path) as history:
        put(history, alert(1))
        put(history, alert(2), 12.0)
        ended = alert(1, state="resolved", resolved_s=99.0, updated_s=99.0)
        put(history, ended)
        assert history.alerts() == [ended, alert(2)]
        assert history.alerts(state="open") == [alert(2)]
        assert history.alerts_told(state="open") == [(alert(2), 12.0)]


def test_open_alerts_stay_where_old_resolved_ones_go(path: Path) -> None:
    with History(path, HistoryLimits(alerts=3)) as history:
        put(history, alert(0))
        for number in range(1, 10):
            put(history, alert(number, state="resolved"))
        assert [item.alert_id for item in history.alerts()] == [alert(number).alert_id for number in (9, 8, 7, 0)]


def test_another_process_reads_while_the_agent_writes(path: Path) -> None:
    with pytest.raises(OutboxError, match=r"no file .* start the agent"):
        History(path, read_only=True)
    stop = threading.Event()
    with History(path) as history:
        history.add(detection(0))

        def write() -> None:
            for number in range(1, 300):
                history.add(detection(number))
            stop.set()

        writer = threading.Thread(target=write)
        writer.start()
        with History(path, read_only=True) as reader:
            counts = [len(reader.recent(1000))]
            while not stop.is_set():
                counts.append(len(reader.recent(1000)))
        writer.join()
        assert counts == sorted(counts)
        assert counts[0] >= 1


def test_a_reader_cannot_write(path: Path) -> None:
    with History(path) as history, History(path, read_only=True) as reader:
        history.add(detection(0))
        with pytest.raises(OutboxError, match="readonly"):
            reader.mark("photo")


def test_a_damaged_file_is_set_aside_and_told(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with History(path) as history:
        history.add(detection(1))
    for part in path.parent.glob("history.sqlite*"):
        part.write_bytes(b"\xff" * 5000)
    with History(path) as again:
        assert again.recent() == []
        again.add(detection(2))
    assert "damaged: it is renamed to" in caplog.text
    assert list(path.parent.glob("history.sqlite.damaged-*"))


def test_a_group_is_stored_as_a_whole_or_not_at_all(path: Path) -> None:
    with History(path) as history:
        history.add_all([Decision(detection(number), None, f"photo {number}") for number in range(3)])
        assert history.recent() == [detection(2), detection(1), detection(0)]
        unusable = Decision(detection(4, plot=None))
        with pytest.raises(OutboxError):
            history.add_all([Decision(detection(3), None, "photo 3"), unusable])
        assert history.recent(1) == [detection(2)]
        assert [history.decided_by(f"photo {number}") for number in (2, 3)] == ["0123456789ab", None]
        assert history.verdict_counts() == {"answer": 3}
