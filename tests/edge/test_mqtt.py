"""Against a real Mosquitto: everything arrives, in order, and what was not acknowledged comes again."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agridistill.edge import mqtt
from agridistill.edge.broker import BrokerSettings, parse_broker, topic_level
from agridistill.edge.messages import Message
from agridistill.edge.mqtt import MqttPublisher
from agridistill.edge.outbox import Outbox
from agridistill.errors import ConfigError

from .conftest import Broker, Receiver, Wire, wait_for


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mqtt, "_FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr(mqtt, "_LONGEST_PAUSE_S", 0.2)


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    with Outbox(tmp_path / "outbox.db") as box:
        yield box


def fill(box: Outbox, start: int, stop: int, plots: int = 3) -> None:
    box.add([Message(f"{number:06}".encode(), plot=f"plot{number % plots}") for number in range(start, stop)])


@contextmanager
def publishing(outbox: Outbox, port: int, **settings: object) -> Iterator[MqttPublisher]:
    publisher = MqttPublisher(outbox, BrokerSettings("127.0.0.1", port, device="pi 1", **settings))  # type: ignore[arg-type]
    stop = threading.Event()
    thread = threading.Thread(target=publisher.run, args=(stop,))
    thread.start()
    try:
        yield publisher
    finally:
        stop.set()
        thread.join(20)
        assert not thread.is_alive()


def test_everything_arrives_once_and_in_order_and_the_outbox_is_empty(broker: Broker, outbox: Outbox) -> None:
    broker.start()
    receiver = Receiver(broker.port)
    fill(outbox, 0, 200)
    with publishing(outbox, broker.port):
        fill(outbox, 200, 300)
        wait_for(lambda: len(receiver.payloads()) >= 300, what="300 messages")
        wait_for(lambda: not outbox.pending(), what="an empty outbox")
    receiver.close()
    assert [int(payload) for payload in receiver.payloads()] == list(range(300))
    assert {topic for topic, _ in receiver.got if "detections" in topic} == {
        f"agridistill/pi_1/detections/plot{number}" for number in range(3)
    }
    assert outbox.counts().delivered == 300
    assert [payload for topic, payload in receiver.got if topic == "agridistill/pi_1/status"] == [b"online", b"offline"]


def test_a_broker_that_is_away_is_told_once_and_gets_everything_later(
    broker: Broker, outbox: Outbox, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    fill(outbox, 0, 2000)
    with publishing(outbox, broker.port) as publisher:
        wait_for(lambda: "is away" in caplog.text)
        threading.Event().wait(0.5)  # several attempts
        assert not publisher.connected
        broker.start()
        receiver = Receiver(broker.port)
        wait_for(lambda: not outbox.pending(), what="an empty outbox")
        wait_for(lambda: publisher.connected)
        wait_for(lambda: len(receiver.payloads()) == 2000, what="the messages")
    receiver.close()
    assert [int(payload) for payload in receiver.payloads()] == list(range(2000))
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2
    assert "is away (" in told[0]
    assert told[1].endswith("is back")


def test_a_broker_that_starts_anew_in_between_loses_nothing(broker: Broker, outbox: Outbox) -> None:
    broker.start()
    receiver = Receiver(broker.port)
    with publishing(outbox, broker.port):
        for turn in range(4):
            fill(outbox, 300 * turn, 300 * (turn + 1))
            broker.stop()
            broker.start()
        wait_for(lambda: not outbox.pending(), what="an empty outbox")
        wait_for(lambda: len(set(receiver.payloads())) == 1200, what="the messages")
    receiver.close()
    got = [int(payload) for payload in receiver.payloads()]
    first_seen = list(dict.fromkeys(got))
    assert first_seen == list(range(1200))


def test_a_lost_acknowledgement_brings_the_message_again_and_no_other_is_lost(broker: Broker, outbox: Outbox) -> None:
    broker.start()
    receiver, wire = Receiver(broker.port), Wire(broker.port)
    wire.swallow_acks = 3
    fill(outbox, 0, 100)
    with publishing(outbox, wire.port, ack_timeout_s=0.5):
        wait_for(lambda: not outbox.pending(), what="an empty outbox")
    receiver.close()
    wire.close()
    got = [int(payload) for payload in receiver.payloads()]
    assert list(dict.fromkeys(got)) == list(range(100))
    assert len(got) > 100
    assert wire.connections >= 2


def test_a_connection_that_only_seems_to_be_there_is_noticed(broker: Broker, outbox: Outbox) -> None:
    broker.start()
    receiver, wire = Receiver(broker.port), Wire(broker.port)
    with publishing(outbox, wire.port, ack_timeout_s=0.5) as publisher:
        wait_for(lambda: publisher.connected)
        wire.silent = True  # as a router that forgot the connection
        fill(outbox, 0, 10)
        wait_for(lambda: wire.connections >= 2, what="a second connection")
        wire.silent = False
        wait_for(lambda: not outbox.pending(), what="an empty outbox")
    receiver.close()
    wire.close()
    assert list(dict.fromkeys(int(payload) for payload in receiver.payloads())) == list(range(10))


def test_no_more_are_under_way_than_allowed_also_after_a_reconnect(broker: Broker, outbox: Outbox) -> None:
    broker.start()
    receiver, wire = Receiver(broker.port), Wire(broker.port)
    fill(outbox, 0, 500)
    with publishing(outbox, wire.port, inflight=7):
        wait_for(lambda: outbox.counts().delivered > 50)
        broker.stop()
        broker.start()
        wait_for(lambda: not outbox.pending(), what="an empty outbox")
    receiver.close()
    wire.close()
    assert wire.connections >= 2
    assert 1 < wire.most_under_way <= 7 + 1  # and "online"


def test_a_broker_that_has_forgotten_everything_is_told_again(broker: Broker, outbox: Outbox) -> None:
    broker.start()
    publisher = MqttPublisher(
        outbox, BrokerSettings("127.0.0.1", broker.port), lambda: {"homeassistant/sensor/x/config": b"{}"}
    )
    stop = threading.Event()
    thread = threading.Thread(target=publisher.run, args=(stop,))
    thread.start()
    wait_for(lambda: publisher.connected)
    broker.stop()
    broker.forget()
    broker.start()
    late = Receiver(broker.port)
    wait_for(lambda: ("homeassistant/sensor/x/config", b"{}") in late.got, what="the discovery")
    wait_for(lambda: ("agridistill/device/status", b"online") in late.got, what="the status")
    stop.set()
    thread.join(20)
    late.close()


def test_a_device_that_vanishes_is_reported_by_the_broker(broker: Broker, outbox: Outbox) -> None:
    broker.start()
    receiver, wire = Receiver(broker.port), Wire(broker.port)
    session = mqtt._Session(outbox, BrokerSettings("127.0.0.1", wire.port, device="pi"), None, dict, {})
    session.open()
    wait_for(lambda: ("agridistill/pi/status", b"online") in receiver.got)
    session._client.socket().close()  # no goodbye
    wait_for(lambda: ("agridistill/pi/status", b"offline") in receiver.got, what="the last will")
    receiver.close()
    wire.close()


def test_a_wrong_password_is_told_without_it(tmp_path: Path, outbox: Outbox, caplog: pytest.LogCaptureFixture) -> None:
    passwords = tmp_path / "passwords"
    passwords.write_text("")
    closed = Broker(tmp_path / "closed", f"allow_anonymous false\npassword_file {passwords}")
    closed.start()
    caplog.set_level(logging.DEBUG)
    with publishing(outbox, closed.port, username="pi", password="correct-horse"):  # noqa: S106
        wait_for(lambda: "it refuses: Not authorized" in caplog.text)
    closed.stop()
    assert "correct-horse" not in caplog.text
    assert "correct-horse" not in repr(BrokerSettings("host", password="correct-horse"))  # noqa: S106


class TestAddress:
    def test_an_address_is_taken_apart(self) -> None:
        found = parse_broker("mqtts://pi%201@farm.example:1234/fields", device="pi")
        assert (found.host, found.port, found.tls, found.username) == ("farm.example", 1234, True, "pi 1")
        assert found.base == "fields/pi"
        assert parse_broker("localhost").port == 1883
        assert parse_broker("mqtts://localhost").port == 8883

    @pytest.mark.parametrize(
        ("url", "message"),
        [
            ("mqtt://pi:secret@host", "without a password; got one with; put it into AGRIDISTILL_MQTT_PASSWORD"),
            ("http://host", "a broker such as mqtt://host:1883; got 'http://host'"),
            ("mqtt://", "a broker such as"),
            ("mqtt://host:99999", "a broker such as mqtt://host:1883; got an address with"),
        ],
    )
    def test_what_is_no_address_is_refused_without_repeating_secrets(self, url: str, message: str) -> None:
        with pytest.raises(ConfigError, match=message) as raised:
            parse_broker(url)
        assert "secret" not in str(raised.value)

    def test_names_from_outside_cannot_leave_their_level(self) -> None:
        assert topic_level("a/b") == "a_b"
        assert topic_level("#") == "_"
        assert topic_level("feld süd") == "feld_süd"

    @pytest.mark.parametrize("settings", [{"port": 0}, {"inflight": 0}, {"keepalive_s": 0}, {"cert_file": Path("x")}])
    def test_settings_out_of_range_are_refused(self, settings: dict[str, object]) -> None:
        with pytest.raises(ConfigError):
            BrokerSettings("host", **settings)  # type: ignore[arg-type]
