"""Brokers that refuse a part: everything else arrives, and what is left out is reported once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from paho.mqtt.enums import MQTTProtocolVersion
from tests.edge.conftest import Broker, Receiver, Wire, access_to, wait_for
from tests.edge.delivery.conftest import DISCOVERY, STATE, STATUS, fill, numbers, publishing, warnings

from agridistill.edge.delivery import broker as broker_module
from agridistill.edge.delivery.broker import InFlight, Refusals
from agridistill.edge.delivery.session import Session
from agridistill.edge.store.outbox import Message, Outbox

pytestmark = pytest.mark.usefixtures("short_pauses")


def test_a_broker_that_closes_the_connection_on_discovery_gets_everything_else(
    receiver: Receiver, wire: Wire, outbox: Outbox, caplog: pytest.LogCaptureFixture
) -> None:
    wire.denied = lambda topic, payload: topic.startswith("homeassistant/")
    fill(outbox, 60)
    with publishing(outbox, wire.port):
        wait_for(lambda: not outbox.pending(), what="an empty outbox")
        wait_for(lambda: (STATE, b"{}") in receiver.got, what="the state")
        wait_for(lambda: warnings(caplog))
    assert numbers(receiver) == list(range(60))
    assert wire.connections <= 4
    assert warnings(caplog) == [
        f"the broker 127.0.0.1:{wire.port} refuses a retained message on '{DISCOVERY}' (the broker closes the "
        "connection, each time it is sent): it is tried again later; check user name, device name and the broker's "
        "access list"
    ]


def test_a_plot_that_is_denied_by_closing_waits_in_its_order_and_the_others_arrive(
    receiver: Receiver, wire: Wire, outbox: Outbox, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker_module, "_FIRST_PAUSE_S", 2.0)
    wire.denied = lambda topic, payload: topic.endswith("/plot1")
    fill(outbox, 90)
    with publishing(outbox, wire.port, {}):
        wait_for(lambda: len(outbox.pending()) == 30, what="the other plots")
        assert numbers(receiver, 1) == []
        wire.denied = lambda topic, payload: False  # the access list is mended
        wait_for(lambda: not outbox.pending(), what="an empty outbox")
        wait_for(lambda: len(numbers(receiver)) == 90)
    for plot in range(3):
        assert numbers(receiver, plot) == list(range(plot, 90, 3))
    denied, taken = warnings(caplog)
    assert "refuses messages on 'agridistill/pi/detections/plot1' (the broker closes the connection," in denied
    assert taken.endswith("accepts the topic 'agridistill/pi/detections/plot1' again")


def test_one_message_that_is_refused_does_not_hold_its_plot(receiver: Receiver, wire: Wire, outbox: Outbox) -> None:
    wire.denied = lambda topic, payload: payload.endswith(b"000030")  # as one that is too large for it
    fill(outbox, 60)
    with publishing(outbox, wire.port, {}):
        wait_for(lambda: len(outbox.pending()) == 1, what="all but one")
    assert numbers(receiver) == [number for number in range(60) if number != 30]


@pytest.mark.needs("mosquitto")
def test_a_plot_that_is_denied_with_a_reason_does_not_hold_the_others(
    guarded: Callable[[str], Broker], outbox: Outbox, caplog: pytest.LogCaptureFixture
) -> None:
    access = f"topic readwrite {STATUS}\n" + "".join(f"topic agridistill/pi/+/plot{n}\n" for n in (0, 2))
    port = guarded(access).port
    fill(outbox, 60)
    with publishing(outbox, port, {}):
        wait_for(lambda: len(outbox.pending()) == 20, what="the other plots")
    assert {pending.message.plot for pending in outbox.pending()} == {"plot1"}
    assert len(warnings(caplog)) == 1


def test_an_order_that_may_not_be_read_is_not_taken_for_a_denied_message(
    broker: Broker, outbox: Outbox, caplog: pytest.LogCaptureFixture
) -> None:
    found = Refusals("host:1883")
    order = InFlight("agridistill/pi/update/set", 0.0, is_subscription=True)
    assert not found.ended([order], "it closes the connection")
    assert found.ended([order], "it closes the connection")
    assert not found.may_send(order.topic)
    assert found.may_send(STATUS)
    assert "refuses the subscription to 'agridistill/pi/update/set'" in caplog.text


def test_a_message_that_arrives_between_two_losses_is_not_denied() -> None:
    found, state = Refusals(), InFlight(STATE, 0.0)
    assert not found.ended([state], "lost")
    found.acknowledged(state)
    assert not found.ended([state], "lost")
    assert not found.ended([state, InFlight("other", 0.0)], "lost")
    assert found.may_send(STATE)


@pytest.mark.needs("mosquitto")
def test_a_broker_without_retained_messages_gets_everything(
    tmp_path: Path, outbox: Outbox, caplog: pytest.LogCaptureFixture
) -> None:
    poor = Broker(tmp_path / "poor", "allow_anonymous true\nretain_available false")
    poor.start()
    receiver = Receiver(poor.port)
    fill(outbox, 60)
    with publishing(outbox, poor.port):
        wait_for(lambda: not outbox.pending(), what="an empty outbox")
        wait_for(lambda: (DISCOVERY, b"{}") in receiver.got, what="the discovery")
        wait_for(lambda: len(numbers(receiver)) == 60, what="all messages")
    wait_for(lambda: (STATUS, b"offline") in receiver.got)
    receiver.close()
    poor.stop()
    assert numbers(receiver) == list(range(60))
    (line,) = warnings(caplog)
    assert "does not support retained messages" in line


@pytest.mark.needs("mosquitto")
def test_a_broker_that_acknowledges_nothing_is_refused_in_one_line(
    tmp_path: Path, outbox: Outbox, caplog: pytest.LogCaptureFixture
) -> None:
    poor = Broker(tmp_path / "poor", "allow_anonymous true\nmax_qos 0")
    poor.start()
    fill(outbox, 3)
    with publishing(outbox, poor.port):
        wait_for(lambda: warnings(caplog))
        threading.Event().wait(0.3)  # several attempts
    poor.stop()
    assert len(outbox.pending()) == 3
    assert warnings(caplog) == [
        f"the broker 127.0.0.1:{poor.port} cannot be used (the broker acknowledges no messages: its maximum QoS is "
        "0): messages wait in the outbox; allow QoS 1 in the broker"
    ]


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
    kept, skipped = sorted(warnings(caplog), key=lambda line: "skipped" in line)
    assert "'agridistill/pi/detections/plot0' has " in kept
    assert "messages that are too large wait in the outbox" in kept
    assert "accepts at most 400 bytes, but a message on" in skipped
    assert "has 952: messages that are too large are skipped" in skipped


@pytest.mark.parametrize("protocol", [MQTTProtocolVersion.MQTTv5, MQTTProtocolVersion.MQTTv311])
def test_a_connection_that_we_give_up_leaves_the_device_offline(
    broker: Broker, receiver: Receiver, outbox: Outbox, protocol: MQTTProtocolVersion
) -> None:
    session = Session(outbox, access_to("127.0.0.1", broker.port, device="pi"), protocol)
    session.open()
    wait_for(lambda: session.step() or (STATUS, b"online") in receiver.got)
    session.close()
    wait_for(lambda: (STATUS, b"offline") in receiver.got, timeout_s=5, what="the last will")
