"""The whole agent: photos in, detections and alerts out, whatever happens around it. A real broker, real files."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import pytest
from PIL import Image
from tests.edge.conftest import Broker, Receiver, wait_for
from tests.edge.updates.conftest import model_like
from tests.edge.watched import GREEN, RED, once, put, watching

from agridistill.edge import agent as agent_module
from agridistill.edge import building
from agridistill.edge.alerts.rules import Rule
from agridistill.edge.building import watch
from agridistill.edge.delivery.broker import BrokerSettings
from agridistill.edge.delivery.link import MqttPublisher
from agridistill.edge.delivery.outputs import Command
from agridistill.edge.events import Detection, Frame
from agridistill.edge.settings import PageSettings, WatchSettings
from agridistill.edge.sources import LatestFrame, SourceEndedError
from agridistill.edge.state import read_state
from agridistill.edge.store import StateLostError
from agridistill.edge.store.history import History
from agridistill.edge.store.outbox import Message, Outbox
from agridistill.edge.verdict import CurrentModel
from agridistill.errors import ConfigError, EdgeError, ModelError, OutboxError, PhotoError, RunError


def test_photos_are_decided_on_and_kept_without_any_broker(photos: Path, settings: WatchSettings, state: Path) -> None:
    put(photos, "a.jpg")
    put(photos, "north/b.jpg", RED)
    (photos / "broken.jpg").write_bytes(b"\xff\xd8 no photo")
    heard = once(settings, state, idle_s=3)
    assert {(item.photo, item.plot, item.label) for item in heard.detections} == {
        ("a.jpg", "", "green"),
        ("north/b.jpg", "north", "red"),
    }
    with History(state / "history.sqlite", read_only=True) as history:
        assert {item.photo for item in history.recent()} == {"a.jpg", "north/b.jpg"}
    end = read_state(state)
    assert (end.frames, end.unreadable, end.broker, end.outbox) == (2, 1, None, None)
    assert not (state / "outbox.sqlite").exists()


def test_six_photos_of_six_days_on_one_card_are_not_one_hour(
    photos: Path, settings: WatchSettings, state: Path
) -> None:
    rules = (Rule("red", ("red",), share=0.5, least_leaves=5),)
    settings = replace(settings, rules=rules, time="photo")
    now_s = time.time()

    def card(name: str, pause_s: float) -> None:
        for number in range(6):
            exif = Image.Exif()
            taken = datetime.fromtimestamp(now_s - 3 * 86_400 - number * pause_s, UTC)
            exif.get_ifd(0x8769).update({0x9003: taken.strftime("%Y:%m:%d %H:%M:%S"), 0x9011: "+00:00"})
            path = put(photos, f"{name}/{number}.jpg", RED)
            Image.open(path).save(path.with_suffix(".part"), "JPEG", exif=exif)
            path.with_suffix(".part").rename(path)

    card("days", 86_400)
    assert once(settings, state).alerts == []
    card("minutes", 60)
    heard = once(settings, state)
    assert [(message.change, message.alert.plot) for message in heard.alerts] == [("opened", "minutes")]
    assert all(item.taken_s is not None and item.taken_s < now_s - 2 * 86_400 for item in heard.detections)


def test_what_was_decided_on_is_not_decided_on_again(photos: Path, settings: WatchSettings, state: Path) -> None:
    put(photos, "a.jpg")
    assert len(once(settings, state).detections) == 1
    put(photos, "b.jpg")
    again = once(settings, state)
    assert [item.photo for item in again.detections] == ["b.jpg"]
    assert read_state(state).frames == 2


def test_leaves_and_alerts_belong_to_the_source_that_they_were_seen_in(
    tmp_path: Path, settings: WatchSettings, state: Path
) -> None:
    rule = Rule("too red", ("red",), share=0.6, least_leaves=3)
    farms = [replace(settings, source=str(tmp_path / name), rules=(rule,)) for name in ("b", "c")]
    for number in range(3):
        put(tmp_path / "b", f"north/{number}.jpg", RED)
    put(tmp_path / "c", "north/9.jpg", RED)
    assert [message.change for message in once(farms[0], state).alerts] == ["opened"]
    (end,) = once(farms[1], state).alerts
    assert (end.change, end.alert.text) == ("resolved", "too red, north: another source is watched now")
    with History(state / "history.sqlite", read_only=True) as history:
        assert history.alerts(state="open") == []
    for number in range(2):
        put(tmp_path / "c", f"north/{number}.jpg", RED)
    assert [message.change for message in once(farms[1], state).alerts] == ["opened"]


def test_photos_that_another_model_decided_on_are_reported(
    photos: Path, settings: WatchSettings, tmp_path: Path, state: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a.jpg", "b.jpg"):
        put(photos, name)
    model = once(settings, state).detections[0].model
    once(settings, state)
    assert "another model" not in caplog.text
    assert settings.model is not None
    other = model_like(settings.model, tmp_path / "other" / "colour.onnx", padding=9)
    assert once(replace(settings, model=other), state).detections == []
    assert (
        caplog.text.count(f"another model ({model}) has already classified some of these photos, and its answers stay")
        == 1
    )
    assert len(once(replace(settings, model=other), tmp_path / "new state").detections) == 2


def test_only_an_agent_that_came_to_its_end_says_so(photos: Path, settings: WatchSettings, state: Path) -> None:
    put(photos, "a.jpg")
    with watching(settings, state) as heard:
        wait_for(lambda: heard.detections)
    assert not read_state(state).finished
    once(settings, state)
    assert read_state(state).finished


@pytest.mark.parametrize("by_user", [True, False])
def test_an_agent_that_its_user_ends_says_so(settings: WatchSettings, state: Path, by_user: bool) -> None:
    stop = threading.Event()
    stop.set()
    assert watch(settings, state, stop, by_user=lambda: by_user).stopped is by_user
    assert read_state(state).stopped is by_user


def test_a_file_in_place_of_the_state_folder_is_refused(settings: WatchSettings, state: Path) -> None:
    state.touch()
    with pytest.raises(
        ConfigError, match=r"expected a folder for the agent's state; got the file '.*state'; choose another"
    ):
        once(settings, state)


@pytest.mark.parametrize("wrong", [{"source": "no-such-folder"}, {"model": Path("no-such.onnx")}])
def test_a_mistyped_name_leaves_no_state_folder(settings: WatchSettings, state: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(EdgeError, match=r"'no-such.*', which does not exist"):
        once(replace(settings, **wrong), state)
    assert not state.exists()


def test_a_command_that_is_not_there_is_told_at_the_start(
    photos: Path, settings: WatchSettings, state: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(photos, "a.jpg")
    for words in (("sh", "-c", "exit 0"), ("no-such-notifier", "--now")):
        assert "not executable" not in caplog.text
        assert once(replace(settings, command=Command(words)), state).ends
    assert "the command 'no-such-notifier' is not found or not executable: its alerts wait in the outbox" in caplog.text


def states_of(receiver: Receiver) -> list[bytes]:
    return [payload for topic, payload in list(receiver.got) if topic == "farm/pi/state"]


def test_detections_alerts_and_state_reach_the_broker(
    photos: Path, settings: WatchSettings, state: Path, broker: Broker
) -> None:
    broker.start()
    receiver = Receiver(broker.port)
    rule = Rule("too red", ("red",), share=0.6, least_leaves=3)
    settings = replace(settings, rules=(rule,), broker=BrokerSettings(f"mqtt://127.0.0.1:{broker.port}/farm"))
    with watching(settings, state) as heard:
        for number in range(4):
            put(photos, f"north/{number}.jpg", RED)
        wait_for(lambda: len(receiver.payloads()) == 4 and heard.alerts, what="detections and an alert")
        wait_for(lambda: any(topic == "farm/pi/plots/north" for topic, _ in receiver.got))
        wait_for(lambda: receiver.payloads("/alerts/"))
        # At once, and not with the state that is written every 10 s.
        wait_for(lambda: any(b'"open_alerts": 1' in payload for payload in states_of(receiver)), 5, "the alert's state")
    wait_for(lambda: ("farm/pi/status", b"offline") in receiver.got)
    receiver.close()
    got = dict(receiver.got)
    assert {topic for topic in got if topic.startswith("farm/")} == {
        "farm/pi/status",
        "farm/pi/state",
        "farm/pi/detections/north",
        "farm/pi/alerts/north",
        "farm/pi/plots/north",
    }
    sent = [json.loads(payload) for payload in receiver.payloads()]
    assert [Detection.from_json(item) for item in sent] == heard.detections
    (alert,) = [json.loads(payload) for payload in receiver.payloads("/alerts/")]
    assert (alert["rule"], alert["change"], alert["state"], alert["plot"]) == ("too red", "opened", "open", "north")
    assert json.loads(got["farm/pi/plots/north"])["label"] == "red"
    plot = json.loads(got["farm/pi/plots/north"])
    assert (plot["condition"], plot["leaves"], plot["ill_leaves"]) == ("red", 4, 4)
    sensors = json.loads(got["homeassistant/device/farm_pi/config"])["cmps"]
    assert sensors["plot_north"]["state_topic"] == "farm/pi/plots/north"


def test_alerts_run_a_command(photos: Path, settings: WatchSettings, state: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = Command(("sh", "-c", f'cat > /dev/null; echo "$AGRIDISTILL_RULE $AGRIDISTILL_CHANGE" >> "{out}"'))
    for number in range(3):
        put(photos, f"{number}.jpg", RED)
    once(replace(settings, rules=(Rule("too red", ("red",), least_leaves=3),), command=command), state)
    assert out.read_text() == "too red opened\n"


def test_a_full_disk_holds_the_photo_until_there_is_room(
    photos: Path,
    settings: WatchSettings,
    state: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    opened: list[History] = []
    made = History.__init__

    def remember(self: History, *given: Any) -> None:
        made(self, *given)
        opened.append(self)

    monkeypatch.setattr(History, "__init__", remember)
    monkeypatch.setattr(agent_module, "_RETRY_FIRST_S", 0.02)
    with watching(replace(settings, after="delete"), state) as heard:
        put(photos, "a.jpg")
        wait_for(lambda: len(heard.detections) == 1)
        database = opened[0]._database
        pages = database.execute("PRAGMA page_count").fetchone()[0]
        database.execute(f"PRAGMA max_page_count = {pages}")
        for number in range(60):
            put(photos, f"{number:02}.jpg")
        wait_for(lambda: "the agent waits for the disk" in caplog.text)
        held = len(heard.detections)
        assert held < 61
        assert len(list(photos.glob("*.jpg"))) >= 61 - held
        database.execute("PRAGMA max_page_count = 100000")
        wait_for(lambda: len(heard.detections) == 61)
        wait_for(lambda: not list(photos.glob("*.jpg")))
    assert caplog.text.count("cannot be stored") == 1
    assert caplog.text.count("can be stored again") == 1
    assert len({item.event_id for item in heard.detections}) == 61


def test_a_folder_that_goes_away_is_told_once_and_comes_back(
    photos: Path, settings: WatchSettings, state: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with watching(settings, state) as heard:
        put(photos, "a.jpg")
        wait_for(lambda: len(heard.detections) == 1)
        photos.rename(photos.with_name("gone"))
        wait_for(lambda: "is away" in caplog.text)
        photos.with_name("gone").rename(photos)
        put(photos, "b.jpg")
        wait_for(lambda: len(heard.detections) == 2)
    assert caplog.text.count("is away") == caplog.text.count("is back") == 1


def test_the_page_and_its_metrics_show_what_was_seen(photos: Path, settings: WatchSettings, state: Path) -> None:
    settings = replace(settings, page=PageSettings(port=0), device="greenhouse-1")
    with watching(settings, state) as heard:
        put(photos, "a.jpg")
        wait_for(lambda: heard.detections)
        page = urlopen(heard.pages[0]).read().decode()  # noqa: S310 - our own
        assert "a.jpg" in page
        assert "<h1>greenhouse-1</h1>" in page
        assert heard.detections[0].device == "greenhouse-1"
        picture = urlopen(f"{heard.pages[0]}detections/{heard.detections[0].event_id}.jpg").read()  # noqa: S310
        assert picture.startswith(b"\xff\xd8")
        assert "agridistill_" in urlopen(f"{heard.pages[0]}metrics").read().decode()  # noqa: S310


def test_without_any_rule_of_ones_own_ill_leaves_open_an_alert(
    photos: Path, settings: WatchSettings, state: Path
) -> None:
    for number in range(5):
        put(photos, f"north/{number}.jpg", RED)
        put(photos, f"south/{number}.jpg")
    heard = once(replace(settings, default_rules=True, healthy=("green",)), state)
    assert [(one.change, one.alert.rule, one.alert.plot, one.alert.label) for one in heard.alerts] == [
        ("opened", "ill leaves", "north", "red")
    ]
    assert read_state(state).cannot_warn is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"default_rules": False}, "default_rules is false"),
        ({"default_rules": True, "healthy": ("*",)}, "all classes of the model count as healthy"),
    ],
)
def test_an_agent_that_can_never_warn_reports_that_at_its_start_and_on_the_page(
    settings: WatchSettings,
    state: Path,
    changes: dict[str, Any],
    reason: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings = replace(settings, page=PageSettings(port=0), **changes)
    with watching(settings, state) as heard:
        wait_for(lambda: heard.pages)
        page = urlopen(heard.pages[0]).read().decode()  # noqa: S310 - our own
    assert "<strong>No alert can open:</strong>" in page
    assert reason in page
    assert "No alert is open" not in page
    assert [record.message for record in caplog.records].count(str(read_state(state).cannot_warn)) == 1
    assert reason in caplog.text


def test_a_model_without_a_healthy_class_is_noticed_at_the_start(
    settings: WatchSettings, state: Path, caplog: pytest.LogCaptureFixture
) -> None:
    once(replace(settings, default_rules=True), state)
    assert "every leaf counts as ill (classes: green, red). Name the healthy classes in watch.toml" in caplog.text
    caplog.clear()
    once(replace(settings, default_rules=True, healthy=("green",)), state)
    once(replace(settings, rules=(Rule("any", ("*",)),)), state)
    assert "counts as ill" not in caplog.text


def test_two_agents_do_not_share_a_state(settings: WatchSettings, state: Path) -> None:
    with watching(settings, state):
        wait_for(lambda: (state / "state.json").exists())
        with pytest.raises(RunError, match="another process that uses it now"):
            watch(settings, state, threading.Event())


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model": Path("no.onnx")}, EdgeError, "'no.onnx', which does not exist"),
        ({"model": Path("tomatoe")}, EdgeError, "check --model; shipped models: tomato"),
        ({"source": "no-such-folder"}, EdgeError, "which does not exist"),
        ({"healthy": ("sano",)}, ConfigError, "in 'healthy'; got 'sano'"),
        ({"rules": (Rule("mold", ("*mold",)),)}, ConfigError, r"rule 'mold'; got '\*mold'"),
        ({"page": PageSettings(host="0.0.0.0", port=0)}, EdgeError, "a token for a page that other devices can reach"),  # noqa: S104
    ],
)
def test_settings_that_cannot_be_used_are_told_at_once(
    settings: WatchSettings, state: Path, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        watch(replace(settings, **changes), state, threading.Event())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_ends_in_an_orderly_way_and_prints_what_it_saw(
    photos: Path, settings: WatchSettings, state: Path, tmp_path: Path, number: signal.Signals
) -> None:
    config = tmp_path / "watch.toml"
    config.write_text("[quality]\ndarkest = 0\nbrightest = 1\nblurriest = 0\nleast_leaf = 0\n")
    words = ("watch", str(photos), "--model", str(settings.model), "--config", str(config), "--state", str(state))
    process = subprocess.Popen(
        [sys.executable, "-m", "agridistill", *words, "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    put(photos, "a.jpg")
    assert process.stdout is not None
    line = json.loads(process.stdout.readline())
    process.send_signal(number)
    rest, told = process.communicate(timeout=30)
    assert (line["event"], line["photo"], line["label"]) == ("detection", "a.jpg", "green")
    assert process.returncode == 0, told
    assert rest == b""
    assert b"Traceback" not in told
    assert read_state(state).stopped is (number == signal.SIGINT)


def test_alerts_are_logged_where_nobody_else_hears_of_them(
    photos: Path, settings: WatchSettings, state: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(3):
        put(photos, f"{number}.jpg", RED)
    with caplog.at_level(logging.WARNING):
        once(replace(settings, rules=(Rule("too red", ("red",), least_leaves=3),)), state)
    assert "alert opened: too red, all: 100 % of 3 leaves, mostly red" in caplog.text


def test_what_waits_for_a_broker_that_is_away_is_on_the_disk(
    photos: Path, settings: WatchSettings, state: Path
) -> None:
    put(photos, "a.jpg")
    with watching(replace(settings, broker=BrokerSettings("mqtt://127.0.0.1:9")), state) as heard:
        wait_for(lambda: heard.detections)
    with Outbox(state / "outbox.sqlite") as outbox:
        assert [json.loads(item.message.payload)["photo"] for item in outbox.pending()] == ["a.jpg"]


def test_the_state_tells_what_waits_for_a_command_that_fails(
    photos: Path, settings: WatchSettings, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "_GIVE_UP_S", 0.2)
    for number in range(3):
        put(photos, f"{number}.jpg", RED)
    rules = (Rule("too red", ("red",), least_leaves=3),)
    once(replace(settings, rules=rules, command=Command(("false",))), state)
    end = read_state(state)
    assert {name: waits["waiting"] for name, waits in end.outputs.items()} == {"command": 1}


def test_a_state_folder_among_the_photos_is_refused(photos: Path, settings: WatchSettings) -> None:
    for state in (photos, photos / "state"):
        with pytest.raises(
            ConfigError, match=r"a state folder outside the folder of photos; got .*; choose another --state"
        ):
            watch(settings, state, threading.Event())
    assert not list(photos.iterdir())


def test_a_state_that_is_removed_ends_the_agent_with_a_clear_error(
    photos: Path, settings: WatchSettings, state: Path
) -> None:
    def remove_the_state() -> None:
        with watching(settings, state) as heard:
            put(photos, "a.jpg")
            wait_for(lambda: heard.detections)
            shutil.rmtree(state)
            put(photos, "b.jpg")
            wait_for(lambda: heard.ends)

    with pytest.raises(StateLostError, match="removed or replaced"):
        remove_the_state()


def test_once_does_not_wait_for_ever_for_a_broker_that_is_away(
    photos: Path,
    settings: WatchSettings,
    state: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(building, "_GIVE_UP_S", 0.2)
    put(photos, "a.jpg")
    with caplog.at_level(logging.WARNING):
        once(replace(settings, broker=BrokerSettings("mqtt://127.0.0.1:9")), state)
    assert "1 message could not be delivered; the next run of the agent tries again" in caplog.text
    with Outbox(state / "outbox.sqlite") as outbox:
        assert len(outbox.pending()) == 1


def test_a_part_that_fails_ends_the_whole_agent_with_its_error(
    photos: Path, settings: WatchSettings, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: object, stop: threading.Event) -> None:
        raise ValueError("a defect")

    monkeypatch.setattr(MqttPublisher, "run", fail)
    with (
        pytest.raises(ValueError, match="a defect"),
        watching(replace(settings, broker=BrokerSettings("mqtt://127.0.0.1:9")), state) as heard,
    ):
        wait_for(lambda: heard.ends)


def test_an_alert_that_one_outbox_refuses_is_handed_to_the_others_once(
    photos: Path,
    settings: WatchSettings,
    state: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    added: list[str] = []
    real = Outbox.add

    def add(self: Outbox, messages: list[Message]) -> None:
        added.extend(self.path.stem for message in messages if message.kind == "alert")
        if self.path.stem == "command" and added.count("command") < 4:
            raise OutboxError("an outbox that can be written", "a full disk", "free some room")
        real(self, messages)

    monkeypatch.setattr(Outbox, "add", add)
    monkeypatch.setattr(agent_module, "_RETRY_LONGEST_S", 0.02)
    settings = replace(
        settings,
        rules=(Rule("too red", ("red",), least_leaves=3),),
        broker=BrokerSettings("mqtt://127.0.0.1:9"),
        command=Command(("true",)),
    )
    with watching(settings, state) as heard:
        for number in range(3):
            put(photos, f"{number}.jpg", RED)
        wait_for(lambda: heard.alerts)
    assert added == ["outbox", "command", "command", "command", "command"]
    assert caplog.text.count("an alert cannot be stored") == 1


def test_after_once_the_state_tells_how_it_ended(
    photos: Path, settings: WatchSettings, state: Path, broker: Broker
) -> None:
    broker.start()
    for number in range(5):
        put(photos, f"{number}.jpg")
    once(replace(settings, broker=BrokerSettings(f"mqtt://127.0.0.1:{broker.port}")), state)
    end = read_state(state)
    assert end.outbox is not None
    assert (end.outbox["waiting"], end.outbox["delivered"]) == (0, 5)
    assert end.broker is not None
    assert end.broker["connected"]


def test_what_the_disk_refuses_stands_in_the_state(
    photos: Path, settings: WatchSettings, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse = threading.Event()
    refuse.set()
    real = History.add_all

    def add(self: History, *given: Any, **more: Any) -> set[str]:
        if refuse.is_set():
            raise OutboxError("a history that can be written", "a full disk", "free some room")
        return real(self, *given, **more)

    monkeypatch.setattr(History, "add_all", add)
    monkeypatch.setattr(agent_module, "_RETRY_LONGEST_S", 0.05)
    monkeypatch.setattr(agent_module, "_STATE_EVERY_S", 0.05)
    with watching(settings, state) as heard:
        put(photos, "a.jpg")
        wait_for(lambda: (state / "state.json").exists() and read_state(state).trouble)
        assert "a full disk" in str(read_state(state).trouble)
        refuse.clear()
        wait_for(lambda: heard.detections)
        wait_for(lambda: read_state(state).trouble is None)


def test_photos_that_are_there_already_are_stored_in_groups_and_told_afterwards(
    photos: Path, settings: WatchSettings, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [put(photos, f"{number:02}.jpg").name for number in range(40)]
    groups: list[int] = []
    real = History.add_all

    def add_all(self: History, decisions: Any) -> set[str]:
        assert len(self.recent(100)) == sum(groups)  # a listener has not been called before
        groups.append(len(decisions))
        return real(self, decisions)

    monkeypatch.setattr(History, "add_all", add_all)
    heard = once(settings, state)
    assert [detection.photo for detection in heard.detections] == expected
    assert sum(groups) == 40
    assert max(groups) > 1
    with History(state / "history.sqlite", read_only=True) as history:
        assert history.recent(100)[::-1] == heard.detections


def test_photos_before_one_on_which_the_model_fails_are_stored(
    photos: Path, settings: WatchSettings, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(8):
        put(photos, f"{number}.jpg")
    real = CurrentModel.decide

    def decide(self: CurrentModel, frame: Frame) -> Detection:
        if frame.name == "3.jpg":
            raise ModelError("finite logits", "NaN", "export the model again")
        return real(self, frame)

    monkeypatch.setattr(CurrentModel, "decide", decide)
    monkeypatch.setattr(agent_module, "_GROUP_S", 60)
    with pytest.raises(ModelError, match="NaN"):
        once(replace(settings, after="delete"), state)
    with History(state / "history.sqlite", read_only=True) as history:
        assert [item.photo for item in history.recent()] == ["2.jpg", "1.jpg", "0.jpg"]
    assert min(photo.name for photo in photos.iterdir()) == "3.jpg"


def test_damaged_photos_do_not_delay_the_detections_before_them(
    photos: Path, settings: WatchSettings, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = Frame(np.full((20, 20, 3), GREEN, np.uint8), "a.jpg", "", time.time(), "a")
    heard: list[int] = []
    damaged = iter(range(5))

    def take(self: LatestFrame, wait_s: float) -> Frame:
        if not self.unreadable:
            self.unreadable = 1
            return frame
        if next(damaged, None) is None:
            raise SourceEndedError("no more photos")
        with History(state / "history.sqlite", read_only=True) as history:
            heard.append(len(history.recent()))
        raise PhotoError("a photo", "damage", "remove it")

    monkeypatch.setattr(LatestFrame, "take", take)
    monkeypatch.setattr(LatestFrame, "has_backlog", True)
    once(settings, state)
    assert heard == [0, 1, 1, 1, 1]
