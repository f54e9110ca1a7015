"""One connection: what goes in turns, what is offered again, and how it ends."""

from __future__ import annotations

import itertools
import logging
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from paho.mqtt.enums import MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.reasoncodes import ReasonCode
from tests.edge.conftest import Broker, Receiver, Wire, access_to, wait_for
from tests.edge.delivery.test_refusals import DISCOVERY, STATUS, fill, numbers, publishing, warnings

from agridistill.edge.delivery import allowance, mqtt
from agridistill.edge.delivery import session as session_module
from agridistill.edge.delivery.mqtt import MqttPublisher
from agridistill.edge.delivery.session import LostError, Session, UnansweredError
from agridistill.edge.store.outbox import Outbox

ORDER = "agridistill/pi/update/set"


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mqtt, "_FIRST_PAUSE_S", 0.02)
    monkeypatch.setattr(mqtt, "_LONGEST_PAUSE_S", 0.1)


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    with Outbox(tmp_path / "outbox.db") as box:
        yield box


def test_the_state_of_many_plots_on_a_slow_line_does_not_hold_back_detections(
    broker: Broker, outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As where the next change is there before the last ones have been taken.
    monkeypatch.setattr(session_module, "_COLLECT_EVERY_S", 0.0)
    broker.start()
    receiver, count = Receiver(broker.port), itertools.count()

    def retained() -> dict[str, bytes]:
        return {f"agridistill/pi/plots/{plot}": b"%d" % next(count) for plot in range(50)}

    fill(outbox, 60)
    publisher = MqttPublisher(outbox, access_to("127.0.0.1", broker.port, device="pi"), retained)
    stop = threading.Event()
    thread = threading.Thread(target=publisher.run, args=(stop,))
    thread.start()
    try:
        wait_for(lambda: len(numbers(receiver)) == 60, what="all messages")
        told = {topic for topic, _ in receiver.got if "/plots/" in topic}
        assert told, "plots have their turn, too"
    finally:
        stop.set()
        thread.join(20)
        receiver.close()
    assert numbers(receiver) == list(range(60))


def test_plots_that_are_all_denied_by_closing_do_not_cost_a_connection_each(
    broker: Broker, outbox: Outbox, caplog: pytest.LogCaptureFixture
) -> None:
    broker.start()
    receiver, wire = Receiver(broker.port), Wire(broker.port)
    wire.denied = lambda topic, payload: "/plots/" in topic
    told = {f"agridistill/pi/plots/{plot}": b"{}" for plot in range(20)} | {DISCOVERY: b"{}"}
    with publishing(outbox, wire.port, told):
        wait_for(lambda: (DISCOVERY, b"{}") in receiver.got, what="the discovery behind the plots")
    receiver.close()
    wire.close()
    assert wire.connections <= 6
    assert len([line for line in warnings(caplog) if "refuses" in line]) == 1


def test_one_denied_plot_of_several_does_not_leave_out_the_others() -> None:
    found = allowance.Allowance("farm:1883")
    north, south, west = (
        allowance.UnderWay(f"agridistill/pi/plots/{plot}", 0.0) for plot in ("north", "south", "west")
    )
    found.taken(south)
    for denied in (north, west):
        assert [found.ended([denied], "it closes the connection") for _ in range(2)] == [False, True]
        assert not found.may_send(denied.topic)
    assert found.may_send(south.topic)


def test_a_level_that_was_denied_is_offered_again_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    found, clock = allowance.Allowance("farm:1883"), [0.0]
    monkeypatch.setattr(allowance.time, "monotonic", lambda: clock[0])
    plots = [allowance.UnderWay(f"agridistill/pi/plots/{plot}", 0.0) for plot in range(4)]
    for denied in plots[:2]:
        assert [found.ended([denied], "it closes the connection") for _ in range(2)] == [False, True]
    assert not any(found.may_send(plot.topic) for plot in plots)
    assert found.may_send(STATUS)
    clock[0] = 61.0
    assert found.offers_again()
    assert all(found.may_send(plot.topic) for plot in plots)
    # One connection shows that it is still so.
    assert found.ended([plots[3]], "it closes the connection")
    assert not any(found.may_send(plot.topic) for plot in plots)
    clock[0] = 200.0
    found.offers_again()
    found.taken(plots[0])
    assert all(found.may_send(plot.topic) for plot in plots)


def test_the_state_of_an_alert_does_not_wait_behind_the_plots(outbox: Outbox) -> None:
    told = {"state": b"0"} | {f"plots/{plot}": b"0" for plot in range(3)}
    settings = access_to("127.0.0.1", 1, device="pi")
    session = Session(outbox, settings, None, lambda: told, {}, MQTTProtocolVersion.MQTTv5)
    session._collect_changes()
    del session._to_send["state"]  # sent
    told["state"] = b"an alert"
    session._collect_changes()
    assert session._to_send == {"state": b"an alert"} | {f"plots/{plot}": b"0" for plot in range(3)}
    assert next(iter(session._to_send)) == "state"
    session.close()


def test_what_a_broker_denied_is_offered_again_on_the_same_connection(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(allowance, "_FIRST_PAUSE_S", 0.0)
    settings = access_to("127.0.0.1", 1, device="pi")
    session = Session(
        outbox, settings, None, lambda: {DISCOVERY: b"{}"}, {ORDER: lambda order: None}, MQTTProtocolVersion.MQTTv5
    )
    session._collect_changes()
    for mid, topic in enumerate(list(session._to_send)):
        session._to_send.pop(topic)
        session._under_way[mid] = allowance.UnderWay(topic, 0.0, is_subscription=topic == ORDER)
        session._resolve(mid, "Not authorized")
    session._collect_changes()
    assert session._to_send == {ORDER: None, DISCOVERY: b"{}"}
    session.close()


@pytest.mark.parametrize(("reason", "is_denied"), [(0x87, True), (0x8E, False), (0x8B, False)])
def test_only_an_end_for_a_message_counts_against_it(outbox: Outbox, reason: int, is_denied: bool) -> None:
    found, topic = allowance.Allowance("farm:1883"), "agridistill/pi/detections/north"
    for _ in range(2):
        settings = access_to("127.0.0.1", 1, device="pi")
        session = Session(outbox, settings, None, dict, {}, MQTTProtocolVersion.MQTTv5, found)
        session._under_way[1] = allowance.UnderWay(topic, 0.0, 1)
        # DISCONNECT: not authorized, another device of this name, the server shuts down.
        code = ReasonCode(PacketTypes.DISCONNECT, identifier=reason)
        session._on_disconnect(None, None, SimpleNamespace(is_disconnect_packet_from_server=True), code, None)
        session.explain_end()
        session.close()
    assert found.may_send(topic) != is_denied


def test_a_device_without_time_for_its_goodbye_is_offline_by_its_last_will(
    broker: Broker, outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "_GOODBYE_S", 0.0)
    broker.start()
    receiver = Receiver(broker.port)
    settings = access_to("127.0.0.1", broker.port, device="pi")
    session = Session(outbox, settings, None, dict, {}, MQTTProtocolVersion.MQTTv5)
    session.open()
    wait_for(lambda: session.step() or (STATUS, b"online") in receiver.got)
    session.say_goodbye()
    session.close()
    wait_for(lambda: (STATUS, b"offline") in receiver.got, timeout_s=5, what="the last will")
    receiver.close()


def test_a_lost_connection_does_not_make_an_old_broker_of_a_new_one(
    broker: Broker, outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker.start()
    publisher = MqttPublisher(outbox, access_to("127.0.0.1", broker.port, device="pi"))
    tried: list[MQTTProtocolVersion] = []

    def lost(protocol: MQTTProtocolVersion) -> Session:
        tried.append(protocol)
        raise (UnansweredError if protocol == MQTTProtocolVersion.MQTTv5 else LostError)("no answer")

    publisher._open().close()
    monkeypatch.setattr(publisher, "_open_by", lost)
    for _ in range(3):
        with pytest.raises(LostError):
            publisher._open()
    new, old = MQTTProtocolVersion.MQTTv5, MQTTProtocolVersion.MQTTv311
    # Another broker may have taken its place: it is asked in the end.
    assert tried == [new, new, new, old]


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (b"\x20\x03\x00\x87\x00", "refuses the device (Not authorized)"),
        (b"\x20\x03\x00\x89\x00", "is away (it refuses"),
    ],
)
def test_a_refusal_is_no_absence_and_names_its_remedy(
    outbox: Outbox, caplog: pytest.LogCaptureFixture, answer: bytes, kind: str
) -> None:
    caplog.set_level(logging.WARNING)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    client, _ = server.accept()
                except OSError:
                    return
                with client:
                    client.recv(1000)
                    client.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        with publishing(outbox, server.getsockname()[1], {}):
            wait_for(lambda: warnings(caplog))
            threading.Event().wait(0.3)  # several attempts
    (line,) = warnings(caplog)
    assert kind in line
    assert ("check user name, password and certificate" in line) == ("refuses the device" in line)
