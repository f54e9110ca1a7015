"""Brokers that refuse a part: everything else arrives, and what is left out is reported once."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from paho.mqtt.enums import MQTTProtocolVersion
from tests.edge.conftest import Broker, Receiver, Wire, access_to, wait_for

from agridistill.edge.delivery import allowance as allowance_module
from agridistill.edge.delivery import mqtt
from agridistill.edge.delivery import session as session_module
from agridistill.edge.delivery.allowance import Allowance, UnderWay
from agridistill.edge.delivery.mqtt import MqttPublisher
from agridistill.edge.delivery.session import Session
from agridistill.edge.store.outbox import Message, Outbox

DISCOVERY = "homeassistant/device/agridistill_pi/config"
STATUS, STATE = "agridistill/pi/status", "agridistill/pi/state"


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mqtt, "_FIRST_PAUSE_S", 0.02)
    monkeypatch.setattr(mqtt, "_LONGEST_PAUSE_S", 0.1)


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    with Outbox(tmp_path / "outbox.db") as box:
        yield box


def fill(box: Outbox, number: int, plots: int = 3) -> None:
    box.add([Message(f"{each:06}".encode(), plot=f"plot{each % plots}") for each in range(number)])


@contextmanager
def publishing(
    outbox: Outbox,
    port: int,
    retained: Mapping[str, bytes] | None = None,
    commands: Mapping[str, Callable[[bytes], None]] | None = None,
    **settings: object,
) -> Iterator[MqttPublisher]:
    told = {STATE: b"{}", DISCOVERY: b"{}"} if retained is None else retained
    made = access_to("127.0.0.1", port, device="pi", **settings)  # type: ignore[arg-type]
    publisher, stop = MqttPublisher(outbox, made, lambda: told, commands), threading.Event()
    thread = threading.Thread(target=publisher.run, args=(stop,))
    thread.start()
    try:
        yield publisher
    finally:
        stop.set()
        thread.join(20)
        assert not thread.is_alive()


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def numbers(receiver: Receiver, plot: int | None = None) -> list[int]:
    part = "/detections/" if plot is None else f"/detections/plot{plot}"
    return list(dict.fromkeys(int(payload) for payload in receiver.payloads(part)))


def test_a_broker_that_closes_the_connection_on_discovery_gets_everything_else(
    broker: Broker, outbox: Outbox, caplog: pytest.LogCaptureFixture
) -> None:
    broker.start()
    receiver, wire = Receiver(broker.port), Wire(broker.port)
    wire.denied = lambda topic, payload: topic.startswith("homeassistant/")
    fill(outbox, 60)
    with publishing(outbox, wire.port):
        wait_for(lambda: not outbox.pending(), what="an empty outbox")
        wait_for(lambda: (STATE, b"{}") in receiver.got, what="the state")
        wait_for(lambda: warnings(caplog))
    receiver.close()
    wire.close()
    assert numbers(receiver) == list(range(60))
    assert wire.connections <= 4
    assert warnings(caplog) == [
        f"the broker refuses '{DISCOVERY}' (it closes the connection, each time it is sent): it and others like it are "
        "left out; check user name, device name and access list"
    ]


def test_a_plot_that_is_denied_by_closing_waits_in_its_order_and_the_others_arrive(
    broker: Broker, outbox: Outbox, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(allowance_module, "_FIRST_PAUSE_S", 2.0)
    broker.start()
    receiver, wire = Receiver(broker.port), Wire(broker.port)
    wire.denied = lambda topic, payload: topic.endswith("/plot1")
    fill(outbox, 90)
    with publishing(outbox, wire.port, {}):
        wait_for(lambda: len(outbox.pending()) == 30, what="the other plots")
        assert numbers(receiver, 1) == []
        wire.denied = lambda topic, payload: False  # the access list is mended
        wait_for(lambda: not outbox.pending(), what="an empty outbox")
        wait_for(lambda: len(numbers(receiver)) == 90)
    receiver.close()
    wire.close()
    for plot in range(3):
        assert numbers(receiver, plot) == list(range(plot, 90, 3))
    denied, taken = warnings(caplog)
    assert "does not take messages ('agridistill/pi/detections/plot1': it closes the connection, each time" in denied
    assert taken.endswith("takes 'agridistill/pi/detections/plot1' again")


def test_one_message_that_is_refused_does_not_hold_its_plot(broker: Broker, outbox: Outbox) -> None:
    broker.start()
    receiver, wire = Receiver(broker.port), Wire(broker.port)
    wire.denied = lambda topic, payload: payload.endswith(b"000030")  # as one that is too large for it
    fill(outbox, 60)
    with publishing(outbox, wire.port, {}):
        wait_for(lambda: len(outbox.pending()) == 1, what="all but one")
    receiver.close()
    wire.close()
    assert numbers(receiver) == [number for number in range(60) if number != 30]


@pytest.mark.needs("mosquitto")
def test_a_plot_that_is_denied_with_a_reason_does_not_hold_the_others(
    tmp_path: Path, outbox: Outbox, caplog: pytest.LogCaptureFixture
) -> None:
    access = tmp_path / "acl"
    access.write_text(f"topic readwrite {STATUS}\n" + "".join(f"topic agridistill/pi/+/plot{n}\n" for n in (0, 2)))
    access.chmod(0o600)
    guarded = Broker(tmp_path / "guarded", f"allow_anonymous true\nacl_file {access}")
    guarded.start()
    fill(outbox, 60)
    with publishing(outbox, guarded.port, {}):
        wait_for(lambda: len(outbox.pending()) == 20, what="the other plots")
    guarded.stop()
    assert {pending.message.plot for pending in outbox.pending()} == {"plot1"}
    assert len(warnings(caplog)) == 1


def test_an_order_that_may_not_be_read_is_not_taken_for_a_denied_message(
    broker: Broker, outbox: Outbox, caplog: pytest.LogCaptureFixture
) -> None:
    found = Allowance("host:1883")
    order = UnderWay("agridistill/pi/update/set", 0.0, is_subscription=True)
    assert not found.ended([order], "it closes the connection")
    assert found.ended([order], "it closes the connection")
    assert not found.may_send(order.topic)
    assert found.may_send(STATUS)
    assert "refuses to let the device read 'agridistill/pi/update/set'" in caplog.text


def test_a_message_that_arrives_between_two_losses_is_not_denied() -> None:
    found, state = Allowance(), UnderWay(STATE, 0.0)
    assert not found.ended([state], "lost")
    found.taken(state)
    assert not found.ended([state], "lost")
    assert not found.ended([state, UnderWay("other", 0.0)], "lost")
    assert found.may_send(STATE)


def test_a_broker_that_is_silent_to_mqtt_5_is_asked_by_3(
    broker: Broker, outbox: Outbox, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "CONNECT_S", 0.3)
    broker.start()
    receiver = Receiver(broker.port)
    fill(outbox, 20)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            silent: list[socket.socket] = []
            while True:
                try:
                    device, _ = server.accept()
                except OSError:
                    for device in silent:
                        device.close()
                    return
                hello = device.recv(1000)
                if hello[8] == 5:  # the protocol's level, behind the lengths and "MQTT"
                    silent.append(device)
                    continue
                peer = socket.create_connection(("127.0.0.1", broker.port))
                peer.sendall(hello)
                for source, sink in ((device, peer), (peer, device)):
                    threading.Thread(target=_pipe, args=(source, sink), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        with publishing(outbox, server.getsockname()[1]):
            wait_for(lambda: not outbox.pending(), what="an empty outbox")
    receiver.close()
    assert [line for line in warnings(caplog) if "speaks MQTT 3.1.1 alone" in line] == warnings(caplog)


def _pipe(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(4096):
            sink.sendall(data)
    except OSError:
        pass
    finally:
        source.close()
        sink.close()


@pytest.mark.needs("mosquitto")
@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("retain_available false", "keeps no retained messages"),
        ("max_qos 0", "acknowledges no message (maximum QoS 0)"),
        ("retain_available false\nmax_qos 0", "acknowledges no message (maximum QoS 0)"),
    ],
)
def test_a_broker_without_retained_messages_or_acknowledgements_gets_everything(
    tmp_path: Path, outbox: Outbox, caplog: pytest.LogCaptureFixture, option: str, words: str
) -> None:
    poor = Broker(tmp_path / "poor", f"allow_anonymous true\n{option}")
    poor.start()
    receiver = Receiver(poor.port)
    fill(outbox, 60)
    with publishing(outbox, poor.port, inflight=7):
        wait_for(lambda: not outbox.pending(), what="an empty outbox")
        wait_for(lambda: (DISCOVERY, b"{}") in receiver.got, what="the discovery")
        wait_for(lambda: len(numbers(receiver)) == 60, what="all messages")
    wait_for(lambda: (STATUS, b"offline") in receiver.got)
    receiver.close()
    poor.stop()
    assert numbers(receiver) == list(range(60))
    assert len(warnings(caplog)) == len(option.splitlines())
    assert words in caplog.text


def test_without_acknowledgements_nothing_leaves_the_outbox_before_the_broker_has_read_it(
    tmp_path: Path, outbox: Outbox
) -> None:
    settings = access_to("127.0.0.1", 1, device="pi")
    session = Session(outbox, settings, None, dict, {}, MQTTProtocolVersion.MQTTv5)
    session._allowance.announced(qos=0)
    session._under_way[7] = UnderWay("agridistill/pi/detections/a", 0.0, 1)
    session._on_publish(None, None, 7, None, None)  # type: ignore[arg-type] - written to the socket
    assert session._acknowledged == []
    session._barrier = 9, [7]
    session._on_unsubscribe(None, None, 9, [], None)
    assert session._acknowledged == [1]
    session.close()


@pytest.mark.needs("mosquitto")
def test_a_message_that_is_too_large_for_the_broker_waits_and_the_others_arrive(
    tmp_path: Path, outbox: Outbox, caplog: pytest.LogCaptureFixture
) -> None:
    small = Broker(tmp_path / "small", "allow_anonymous true\nmax_packet_size 400")
    small.start()
    receiver = Receiver(small.port)
    fill(outbox, 10, plots=1)
    outbox.add([Message(b"x" * 500, plot="plot0")])
    outbox.add([Message(b"000010", plot="plot0")])
    with publishing(outbox, small.port, {STATE: b"{}", DISCOVERY: b"x" * 900}):
        wait_for(lambda: len(outbox.pending()) == 1, what="all but one")
        wait_for(lambda: len(numbers(receiver)) == 11)
        wait_for(lambda: (STATE, b"{}") in receiver.got)
        wait_for(lambda: len(warnings(caplog)) == 2)
    receiver.close()
    small.stop()
    assert len(outbox.pending()[0].message.payload) == 500
    kept, left_out = sorted(warnings(caplog), key=lambda line: "left out" in line)
    assert "'agridistill/pi/detections/plot0' and all others that are too large are kept in the outbox" in kept
    assert "takes packets of up to 400 bytes: a message of 952 on" in left_out


@pytest.mark.parametrize("protocol", [MQTTProtocolVersion.MQTTv5, MQTTProtocolVersion.MQTTv311])
def test_a_connection_that_we_give_up_leaves_the_device_offline(
    broker: Broker, outbox: Outbox, protocol: MQTTProtocolVersion
) -> None:
    broker.start()
    receiver = Receiver(broker.port)
    session = Session(outbox, access_to("127.0.0.1", broker.port, device="pi"), None, dict, {}, protocol)
    session.open()
    wait_for(lambda: session.step() or (STATUS, b"online") in receiver.got)
    session.close()
    wait_for(lambda: (STATUS, b"offline") in receiver.got, timeout_s=5, what="the last will")
    receiver.close()
