"""Against a real Mosquitto: everything arrives, in order, and what was not acknowledged comes again."""

from __future__ import annotations

import gc
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from paho.mqtt.enums import MQTTProtocolVersion
from tests.edge.conftest import Broker, Receiver, Wire, access_to, wait_for
from tests.edge.delivery.conftest import DISCOVERY, STATE, STATUS, answering, fill, publishing, warnings

from agridistill.edge.delivery import link
from agridistill.edge.delivery import session as session_module
from agridistill.edge.delivery.broker import BrokerAccess, BrokerSettings, Connection, topic_level
from agridistill.edge.delivery.link import MqttPublisher
from agridistill.edge.delivery.session import RefusedError, Session
from agridistill.edge.settings import watch_settings
from agridistill.edge.store.outbox import Outbox
from agridistill.errors import ConfigError

pytestmark = pytest.mark.usefixtures("short_pauses")


def test_everything_arrives_once_and_in_order_and_the_outbox_is_empty(
    broker: Broker, receiver: Receiver, outbox: Outbox
) -> None:
    fill(outbox, 200)
    with publishing(outbox, broker.port, {}, device="pi 1"):
        fill(outbox, 300, 200)
        wait_for(lambda: len(receiver.payloads()) >= 300, what="300 messages")
        wait_for(lambda: not outbox.pending(), what="an empty outbox")
    assert [int(payload) for payload in receiver.payloads()] == list(range(300))
    assert {topic for topic, _ in receiver.got if "detections" in topic} == {
        f"agridistill/pi_1-1de505/detections/plot{number}" for number in range(3)
    }
    assert outbox.counts().delivered == 300
    status = "agridistill/pi_1-1de505/status"
    wait_for(lambda: [payload for topic, payload in receiver.got if topic == status] == [b"online", b"offline"])


def test_a_broker_that_is_away_is_told_once_and_gets_everything_later(
    broker: Broker, outbox: Outbox, caplog: pytest.LogCaptureFixture
) -> None:
    broker.start()
    receiver = Receiver(broker.port)
    broker.stop()
    fill(outbox, 2000)
    with publishing(outbox, broker.port) as publisher:
        wait_for(lambda: "is away" in caplog.text)
        threading.Event().wait(0.5)  # several attempts
        assert not publisher.connection.connected
        broker.start()
        wait_for(lambda: not outbox.pending(), what="an empty outbox")
        wait_for(lambda: publisher.connection.connected)
        wait_for(lambda: len(receiver.payloads()) == 2000, what="the messages")
    receiver.close()
    assert [int(payload) for payload in receiver.payloads()] == list(range(2000))
    told = warnings(caplog)
    assert len(told) == 2
    assert "is away (" in told[0]
    assert told[1].endswith("is back")


def test_a_broker_that_starts_anew_in_between_loses_nothing(broker: Broker, receiver: Receiver, outbox: Outbox) -> None:
    with publishing(outbox, broker.port):
        for turn in range(4):
            fill(outbox, 300 * (turn + 1), 300 * turn)
            broker.stop()
            broker.start()
        wait_for(lambda: not outbox.pending(), what="an empty outbox")
        wait_for(lambda: len(set(receiver.payloads())) == 1200, what="the messages")
    got = [int(payload) for payload in receiver.payloads()]
    first_seen = list(dict.fromkeys(got))
    assert first_seen == list(range(1200))


def test_a_lost_acknowledgement_brings_the_message_again_and_no_other_is_lost(
    receiver: Receiver, wire: Wire, outbox: Outbox
) -> None:
    fill(outbox, 500)
    with publishing(outbox, wire.port, ack_timeout_s=0.5):
        wait_for(lambda: outbox.counts().delivered > 50)
        wire.swallow_acks = 3
        wait_for(lambda: not outbox.pending(), what="an empty outbox")
    got = [int(payload) for payload in receiver.payloads()]
    assert list(dict.fromkeys(got)) == list(range(500))
    assert len(got) > 500
    assert wire.connections >= 2


@pytest.mark.slow
def test_a_connection_that_only_seems_to_be_there_is_noticed(receiver: Receiver, wire: Wire, outbox: Outbox) -> None:
    with publishing(outbox, wire.port, ack_timeout_s=0.5) as publisher:
        wait_for(lambda: publisher.connection.connected)
        wire.silent = True  # as a router that forgot the connection
        fill(outbox, 10)
        wait_for(lambda: wire.connections >= 2, what="a second connection")
        wire.silent = False
        wait_for(lambda: not outbox.pending(), what="an empty outbox")
    assert list(dict.fromkeys(int(payload) for payload in receiver.payloads())) == list(range(10))


def test_no_more_are_in_flight_than_allowed_also_after_a_reconnect(
    broker: Broker, receiver: Receiver, wire: Wire, outbox: Outbox
) -> None:
    fill(outbox, 500)
    with publishing(outbox, wire.port, inflight=7):
        wait_for(lambda: outbox.counts().delivered > 50)
        broker.stop()
        broker.start()
        wait_for(lambda: not outbox.pending(), what="an empty outbox")
    assert wire.connections >= 2
    assert 1 < wire.most_under_way <= 7 + 1  # and "online"


def test_a_broker_that_has_forgotten_everything_is_told_again(broker: Broker, outbox: Outbox) -> None:
    broker.start()
    with publishing(outbox, broker.port) as publisher:
        wait_for(lambda: publisher.connection.connected)
        broker.stop()
        broker.forget()
        broker.start()
        late = Receiver(broker.port)
        wait_for(lambda: (DISCOVERY, b"{}") in late.got, what="the discovery")
        wait_for(lambda: (STATUS, b"online") in late.got, what="the status")
    late.close()


def test_the_last_will_of_a_connection_that_only_seems_to_be_there_does_not_come_after_the_new_one(
    broker: Broker, outbox: Outbox
) -> None:
    broker.start()
    settings = access_to("127.0.0.1", broker.port, device="pi")
    receiver = Receiver(broker.port)
    sessions = [Session(outbox, settings, MQTTProtocolVersion.MQTTv5) for _ in range(2)]
    for session in sessions:
        receiver.got.clear()
        session.open()
        wait_for(lambda s=session: s.step() or ("agridistill/pi/status", b"online") in receiver.got)
    sessions[0]._client.socket().close()  # as where the broker gives the old one up
    threading.Event().wait(0.5)
    sessions[1].step()
    assert [payload for topic, payload in receiver.got if topic == "agridistill/pi/status"][-1] == b"online"
    receiver.close()
    sessions[1].close()


def test_two_devices_of_one_name_throw_each_other_out_ever_less_often(
    broker: Broker, outbox: Outbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "_LONGEST_PAUSE_S", 60)
    broker.start()
    wire = Wire(broker.port)
    with Outbox(tmp_path / "second.db") as box, publishing(outbox, wire.port), publishing(box, wire.port):
        threading.Event().wait(4)
    # Pauses of 0.05 s that double; without that it would be a hundred.
    assert 4 <= wire.connections <= 20


def test_the_reason_that_a_broker_gives_for_an_end_is_told(outbox: Outbox, caplog: pytest.LogCaptureFixture) -> None:
    accepted_and_ended = b"\x20\x03\x00\x00\x00" + b"\xe0\x02\x8e\x00"  # CONNACK, DISCONNECT
    with answering(accepted_and_ended) as port, publishing(outbox, port):
        wait_for(lambda: "is away" in caplog.text)
    assert "(the broker ends the connection: Session taken over)" in caplog.text


def test_a_device_that_vanishes_is_reported_by_the_broker(receiver: Receiver, wire: Wire, outbox: Outbox) -> None:
    session = Session(outbox, access_to("127.0.0.1", wire.port, device="pi"), MQTTProtocolVersion.MQTTv5)
    session.open()
    wait_for(lambda: session.step() or ("agridistill/pi/status", b"online") in receiver.got)
    session._client.socket().close()  # no goodbye
    wait_for(lambda: ("agridistill/pi/status", b"offline") in receiver.got, what="the last will")


@pytest.mark.needs("mosquitto")
def test_what_the_access_list_denies_stays_in_the_outbox_and_is_told_once(
    guarded: Callable[[str], Broker], outbox: Outbox, caplog: pytest.LogCaptureFixture
) -> None:
    port = guarded("topic write agridistill/other/#\ntopic write agridistill/+/status\n").port
    fill(outbox, 5)
    with publishing(outbox, port, {}):
        wait_for(lambda: "refuses messages on" in caplog.text)
        threading.Event().wait(0.5)  # several attempts
    assert outbox.counts().delivered == 0
    assert len(outbox.pending()) == 5
    (told,) = warnings(caplog)
    assert "'agridistill/pi/detections/plot0' (Not authorized): they wait in the outbox" in told


@pytest.mark.needs("mosquitto")
def test_a_retained_topic_that_is_denied_is_left_out_and_detections_go_on(
    guarded: Callable[[str], Broker], outbox: Outbox, caplog: pytest.LogCaptureFixture
) -> None:
    port = guarded("topic readwrite agridistill/#\n").port
    fill(outbox, 50)
    retained = {"homeassistant/a": b"1", "homeassistant/b": b"1", STATE: b"2"}
    with publishing(outbox, port, retained):
        wait_for(lambda: not outbox.pending())
        retained[STATE] = b"3"
        receiver = Receiver(port)
        wait_for(lambda: (STATE, b"3") in receiver.got)
    receiver.close()
    # Mosquitto 2.0 also closes the connection.
    assert warnings(caplog)[0] == (
        f"the broker 127.0.0.1:{port} refuses a retained message on 'homeassistant/a' (Not authorized): it is "
        "tried again later; check user name, device name and the broker's access list"
    )
    assert len([line for line in warnings(caplog) if "refuses" in line]) == 1


class OldBroker:
    """In front of a real broker: answers MQTT 5 as one that knows 3.1.1 alone; by None it is silent (amqtt)."""

    def __init__(self, target: int, answer: bytes | None) -> None:
        self._target, self._answer = target, answer
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._server.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._server.close()

    def _accept(self) -> None:
        silent: list[socket.socket] = []
        while True:
            try:
                device, _ = self._server.accept()
            except OSError:
                for device in silent:
                    device.close()
                return
            hello = device.recv(1000)
            if hello[8] == 5:  # the protocol's level, behind the lengths and "MQTT"
                if self._answer is None:
                    silent.append(device)
                    continue
                device.sendall(self._answer)
                device.close()
                continue
            broker = socket.create_connection(("127.0.0.1", self._target))
            broker.sendall(hello)
            for source, sink in ((device, broker), (broker, device)):
                threading.Thread(target=self._pipe, args=(source, sink), daemon=True).start()

    @staticmethod
    def _pipe(source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(4096):
                sink.sendall(data)
        except OSError:
            pass
        finally:
            source.close()
            sink.close()


@pytest.mark.parametrize("answer", [b"\x20\x02\x00\x01", b"", None])
def test_a_broker_that_knows_mqtt_3_alone_is_served_and_told(
    broker: Broker,
    outbox: Outbox,
    caplog: pytest.LogCaptureFixture,
    answer: bytes | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(session_module, "_CONNECT_S", 0.3)
    broker.start()
    receiver, old = Receiver(broker.port), OldBroker(broker.port, answer)
    fill(outbox, 20)
    with publishing(outbox, old.port):
        wait_for(lambda: len(receiver.payloads()) == 20)
        wait_for(lambda: not outbox.pending())
    receiver.close()
    old.close()
    assert [line for line in warnings(caplog) if "supports only MQTT 3.1.1" in line] == warnings(caplog)


@pytest.mark.needs("mosquitto")
def test_attempts_leave_no_open_sockets_behind(closed: Broker, outbox: Outbox) -> None:
    publisher = MqttPublisher(
        outbox, access_to("127.0.0.1", closed.port, device="pi"), Connection("127.0.0.1", closed.port)
    )

    def attempt() -> int:
        with pytest.raises(RefusedError):
            publisher._open()
        return len(list(Path("/proc/self/fd").iterdir()))

    first = attempt()
    gc.disable()  # on a device, too, it is long until the collector looks at old objects
    try:
        assert [attempt() for _ in range(3)] == [first] * 3
    finally:
        gc.enable()


def test_what_is_no_broker_is_told_once(outbox: Outbox, caplog: pytest.LogCaptureFixture) -> None:
    with answering(b"HTTP/1.1 400 Bad Request\r\n\r\n") as port, publishing(outbox, port):
        wait_for(lambda: "is away" in caplog.text)
        threading.Event().wait(0.3)
    assert caplog.text.count("is away") == 1


def test_a_host_that_cannot_be_one_is_told_and_ends_nothing(outbox: Outbox, caplog: pytest.LogCaptureFixture) -> None:
    with publishing(outbox, 1883, host="a..b"):
        wait_for(lambda: "is away" in caplog.text)


@pytest.mark.needs("mosquitto")
def test_a_wrong_password_is_told_without_it(closed: Broker, outbox: Outbox, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    with publishing(outbox, closed.port, username="pi", password="correct-horse"):  # noqa: S106
        wait_for(lambda: "refuses this device: Not authorized" in caplog.text)
    assert "correct-horse" not in caplog.text
    assert "correct-horse" not in repr(access_to("host", username="pi", password="correct-horse"))  # noqa: S106


class TestAddress:
    def test_an_address_is_taken_apart(self) -> None:
        found = BrokerSettings("mqtts://pi%201@farm.example:1234/fields")
        assert (found.host, found.port, found.tls, found.username) == ("farm.example", 1234, True, "pi 1")
        assert BrokerAccess(found, "pi").base == "fields/pi"
        assert BrokerSettings("localhost").port == 1883
        assert BrokerSettings("mqtts://localhost").port == 8883

    @pytest.mark.parametrize(
        ("url", "message"),
        [
            (
                "mqtt://pi:secret@host",
                "without a password; got an address that contains a password; set AGRIDISTILL_MQTT_PASSWORD",
            ),
            ("http://host", "a broker address such as mqtt://host:1883; got 'http://host'"),
            ("mqtt://", "a broker address such as"),
            ("mqtt://host:99999", "a broker address such as mqtt://host:1883; got 'mqtt://host:99999'"),
            ("mqtt://pi:secret/word@host", "got an invalid address"),
            ("mqtt://pi:12345/secret@host", "got an invalid address"),
            ("mqtt://pi:secret#word@host", "got an invalid address"),
            ("mqtt://pi:secret", "got an invalid address"),
            ("pi:secret/agridistill", "got an invalid address"),
            ("mqtt://pi:1?secret@host", "got an invalid address"),
        ],
    )
    def test_what_is_no_address_is_refused_without_repeating_secrets(self, url: str, message: str) -> None:
        with pytest.raises(ConfigError, match=message) as raised:
            BrokerSettings(url)
        assert "secret" not in str(raised.value)

    def test_a_plot_that_is_called_all_has_a_topic_of_its_own(self) -> None:
        settings = access_to("host", device="pi")
        assert settings.plot_topic("") == "agridistill/pi/plots/all"
        assert settings.plot_topic("all").startswith("agridistill/pi/plots/all-")

    def test_names_from_outside_cannot_leave_their_level(self) -> None:
        for name in ("a/b", "#", "feld süd", "+", "a\0b", "$SYS", ""):
            assert not set(topic_level(name)) & set("/#+ \0$")
            assert topic_level(name)
        assert topic_level("feld_süd") == "feld_süd"
        assert topic_level("feld süd").startswith("feld_süd-")
        assert len({topic_level(name) for name in ("a b", "a_b", "a/b", "_a_b")}) == 4

    @pytest.mark.parametrize(
        "settings",
        [{"url": "mqtt://host:0"}, {"inflight": 0}, {"keepalive_s": 0}, {"cert_file": "x"}, {"ca_file": "x"}],
    )
    def test_settings_out_of_range_are_refused(self, settings: dict[str, object]) -> None:
        with pytest.raises(ConfigError):
            watch_settings({"broker": {"url": "mqtt://host"} | settings}, where="here")

    def test_a_password_needs_a_user(self) -> None:
        with pytest.raises(ConfigError, match="a broker address with a user name"):
            access_to("host", password="x")  # noqa: S106
