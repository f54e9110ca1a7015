"""An outbox with messages, and a publisher that sends them in its thread."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.edge.conftest import Broker, Receiver, Wire, access_to, running

from agridistill.edge.delivery import link
from agridistill.edge.delivery.broker import Connection
from agridistill.edge.delivery.link import MqttPublisher
from agridistill.edge.store.outbox import Message, Outbox

DISCOVERY = "homeassistant/device/agridistill_pi/config"
STATUS, STATE = "agridistill/pi/status", "agridistill/pi/state"


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "_FIRST_PAUSE_S", 0.02)
    monkeypatch.setattr(link, "_LONGEST_PAUSE_S", 0.1)


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    with Outbox(tmp_path / "outbox.db") as box:
        yield box


@pytest.fixture
def receiver(broker: Broker) -> Iterator[Receiver]:
    """Of all that the broker has got, which is started."""
    broker.start()
    found = Receiver(broker.port)
    yield found
    found.close()


@pytest.fixture
def wire(broker: Broker, receiver: Receiver) -> Iterator[Wire]:
    """To the broker, with a receiver behind it."""
    found = Wire(broker.port)
    yield found
    found.close()


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Callable[[str], Broker]]:
    """Starts a Mosquitto with an access list."""
    brokers: list[Broker] = []

    def start(access: str) -> Broker:
        file = tmp_path / "acl"
        file.write_text(access)
        file.chmod(0o600)
        brokers.append(Broker(tmp_path / "guarded", f"allow_anonymous true\nacl_file {file}"))
        brokers[0].start()
        return brokers[0]

    yield start
    for broker in brokers:
        broker.stop()


@pytest.fixture
def closed(tmp_path: Path) -> Iterator[Broker]:
    """A Mosquitto that knows no user."""
    passwords = tmp_path / "passwords"
    passwords.write_text("")
    broker = Broker(tmp_path / "closed", f"allow_anonymous false\npassword_file {passwords}")
    broker.start()
    yield broker
    broker.stop()


def fill(box: Outbox, stop: int, start: int = 0, plots: int = 3) -> None:
    box.add([Message(f"{number:06}".encode(), plot=f"plot{number % plots}") for number in range(start, stop)])


@contextmanager
def publishing(
    outbox: Outbox,
    port: int,
    retained: Mapping[str, bytes] | Callable[[], Mapping[str, bytes]] | None = None,
    commands: Mapping[str, Callable[[bytes], None]] | None = None,
    *,
    host: str = "127.0.0.1",
    **settings: object,
) -> Iterator[MqttPublisher]:
    given = {STATE: b"{}", DISCOVERY: b"{}"} if retained is None else retained
    read = given if callable(given) else lambda: given
    access = access_to(host, port, **{"device": "pi", **settings})  # type: ignore[arg-type]
    publisher = MqttPublisher(outbox, access, Connection(host, port), read, commands)
    with running(publisher.run):
        yield publisher


@contextmanager
def answering(answer: bytes) -> Iterator[int]:
    """A port where every client gets the same answer, and the end of its connection."""
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
        yield server.getsockname()[1]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def numbers(receiver: Receiver, plot: int | None = None) -> list[int]:
    part = "/detections/" if plot is None else f"/detections/plot{plot}"
    return list(dict.fromkeys(int(payload) for payload in receiver.payloads(part)))
