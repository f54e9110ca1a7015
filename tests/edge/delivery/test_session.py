"""One connection: what goes in turns, what is offered again, and how it ends."""

from __future__ import annotations

import itertools
import threading
from types import SimpleNamespace

import pytest
from paho.mqtt.enums import MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.reasoncodes import ReasonCode
from tests.edge.conftest import Broker, Receiver, access_to, wait_for
from tests.edge.delivery.conftest import DISCOVERY, STATUS, answering, fill, numbers, publishing, warnings

from agridistill.edge.delivery import broker as broker_module
from agridistill.edge.delivery import session as session_module
from agridistill.edge.delivery.broker import Connection, InFlight, Refusals
from agridistill.edge.delivery.link import MqttPublisher
from agridistill.edge.delivery.session import LostError, Session, UnansweredError
from agridistill.edge.store.outbox import Outbox

pytestmark = pytest.mark.usefixtures("short_pauses")
ORDER = "agridistill/pi/update/set"
NEW, OLD = MQTTProtocolVersion.MQTTv5, MQTTProtocolVersion.MQTTv311


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
    with publishing(outbox, broker.port, retained):
        wait_for(lambda: len(numbers(receiver)) == 60, what="all messages")
        assert {topic for topic, _ in receiver.got if "/plots/" in topic}, "plots have their turn, too"
    receiver.close()
    assert numbers(receiver) == list(range(60))


def test_the_state_of_an_alert_does_not_wait_behind_the_plots(outbox: Outbox) -> None:
    told = {"state": b"0"} | {f"plots/{plot}": b"0" for plot in range(3)}
    settings = access_to("127.0.0.1", 1, device="pi")
    session = Session(outbox, settings, NEW, retained=lambda: told)
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
    monkeypatch.setattr(broker_module, "_FIRST_PAUSE_S", 0.0)
    settings = access_to("127.0.0.1", 1, device="pi")
    retained, commands = {DISCOVERY: b"{}"}, {ORDER: lambda order: None}
    session = Session(outbox, settings, NEW, retained=lambda: retained, commands=commands)
    session._collect_changes()
    for mid, topic in enumerate(list(session._to_send)):
        session._to_send.pop(topic)
        session._in_flight[mid] = InFlight(topic, 0.0, is_subscription=topic == ORDER)
        session._resolve(mid, "Not authorized")
    session._collect_changes()
    assert session._to_send == {ORDER: None, DISCOVERY: b"{}"}
    session.close()


@pytest.mark.parametrize(("reason", "is_denied"), [(0x87, True), (0x8E, False), (0x8B, False)])
def test_only_an_end_for_a_message_counts_against_it(outbox: Outbox, reason: int, is_denied: bool) -> None:
    found, topic = Refusals("farm:1883"), "agridistill/pi/detections/north"
    for _ in range(2):
        settings = access_to("127.0.0.1", 1, device="pi")
        session = Session(outbox, settings, NEW, found)
        session._in_flight[1] = InFlight(topic, 0.0, 1)
        # DISCONNECT: not authorized, another device of this name, the server shuts down.
        code = ReasonCode(PacketTypes.DISCONNECT, identifier=reason)
        session._on_disconnect(None, None, SimpleNamespace(is_disconnect_packet_from_server=True), code, None)
        session.explain_end()
        session.close()
    assert found.may_send(topic) != is_denied


def test_a_device_without_time_for_its_goodbye_is_offline_by_its_last_will(
    broker: Broker, receiver: Receiver, outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "_GOODBYE_S", 0.0)
    settings = access_to("127.0.0.1", broker.port, device="pi")
    session = Session(outbox, settings, NEW)
    session.open()
    wait_for(lambda: session.step() or (STATUS, b"online") in receiver.got)
    session.say_goodbye()
    session.close()
    wait_for(lambda: (STATUS, b"offline") in receiver.got, timeout_s=5, what="the last will")


def test_a_lost_connection_does_not_make_an_old_broker_of_a_new_one(
    broker: Broker, outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker.start()
    publisher = MqttPublisher(
        outbox, access_to("127.0.0.1", broker.port, device="pi"), Connection("127.0.0.1", broker.port)
    )
    tried: list[MQTTProtocolVersion] = []

    def lost(protocol: MQTTProtocolVersion) -> Session:
        tried.append(protocol)
        raise (UnansweredError if protocol == NEW else LostError)("no answer")

    publisher._open().close()
    monkeypatch.setattr(publisher, "_open_by", lost)
    for _ in range(3):
        with pytest.raises(LostError):
            publisher._open()
    # Another broker may have taken its place.
    assert tried == [NEW, NEW, NEW, OLD]


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (b"\x20\x03\x00\x87\x00", "refuses this device: Not authorized"),
        (b"\x20\x03\x00\x89\x00", "is away (the broker refuses"),
    ],
)
def test_a_refusal_is_no_absence_and_names_its_remedy(
    outbox: Outbox, caplog: pytest.LogCaptureFixture, answer: bytes, kind: str
) -> None:
    with answering(answer) as port, publishing(outbox, port, {}):
        wait_for(lambda: warnings(caplog))
        threading.Event().wait(0.3)  # several attempts
    (line,) = warnings(caplog)
    assert kind in line
    assert ("check user name, password and certificate" in line) == ("refuses this device" in line)
