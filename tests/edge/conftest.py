"""A real Mosquitto, a receiver that keeps everything, and a wire that can be cut."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion
from tests.needs import NEEDS, program

from agridistill.edge.delivery.broker import BrokerAccess, BrokerSettings
from agridistill.edge.settings import WatchSettings

MOSQUITTO = program("mosquitto")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def wait_for(condition: Callable[[], Any], timeout_s: float = 30, what: str = "it") -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come in {timeout_s} s"
        time.sleep(0.01)


@contextlib.contextmanager
def running(target: Callable[[threading.Event], object]) -> Iterator[None]:
    """Runs what works until its event is set, in a thread."""
    stop = threading.Event()
    thread = threading.Thread(target=target, args=(stop,))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(30)
        assert not thread.is_alive()


class Broker:
    """A Mosquitto of its own, which keeps sessions and messages over a new start."""

    def __init__(self, folder: Path, extra: str = "allow_anonymous true") -> None:
        self.port, self.folder = free_port(), folder
        folder.mkdir(parents=True, exist_ok=True)
        # Without root's rights it could not read the tests' folders.
        user = "user root\n" if os.geteuid() == 0 else ""
        self.config = folder / "mosquitto.conf"
        self.config.write_text(
            f"{user}listener {self.port} 127.0.0.1\npersistence true\npersistence_location {folder}/\n"
            f"max_queued_messages 0\nmax_inflight_messages 1000\nlog_dest none\n{extra}\n"
        )
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        assert MOSQUITTO is not None, NEEDS["mosquitto"].reason
        self.process = subprocess.Popen([MOSQUITTO, "-c", str(self.config)])
        wait_for(self.answers, what="mosquitto")

    def answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, "mosquitto ended"
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except OSError:
            return False
        return True

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(10)

    def forget(self) -> None:
        """As a new machine in the old one's place."""
        (self.folder / "mosquitto.db").unlink(missing_ok=True)


class Receiver:
    """Subscribes for good, so that the broker keeps what comes while it is away; keeps (topic, payload)."""

    def __init__(self, port: int, topics: str = "#") -> None:
        self.got: list[tuple[str, bytes]] = []
        self._ready = threading.Event()
        self._client = paho.Client(CallbackAPIVersion.VERSION2, client_id="receiver", clean_session=False)
        self._client.reconnect_delay_set(1, 1)
        self._client.on_message = lambda client, data, message: self.got.append((message.topic, message.payload))
        self._client.on_connect = lambda client, *rest: client.subscribe(topics, qos=1)
        self._client.on_subscribe = lambda *rest: self._ready.set()
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        assert self._ready.wait(10)

    def payloads(self, part: str = "/detections/") -> list[bytes]:
        return [payload for topic, payload in list(self.got) if part in topic]

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()
        let_go(self._client)


def let_go(client: paho.Client) -> None:
    """Ends its circle with its callbacks; the collector may end that one in an order that leaves sockets open."""
    client.on_connect = client.on_disconnect = client.on_subscribe = client.on_publish = client.on_message = None


class Wire:
    """Between device and broker: forwards, and can go silent, swallow acknowledgements, or count what is under way."""

    def __init__(self, target: int) -> None:
        self.port, self._target = free_port(), target
        self.silent, self.swallow_acks, self.connections = False, 0, 0
        self.denied: Callable[[str, bytes], bool] = lambda topic, payload: False  # closes, as RabbitMQ and aedes do
        self.under_way = self.most_under_way = self.publishes = 0
        self._open = True
        self._server = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._open = False
        self._server.close()

    def _accept(self) -> None:
        while self._open:
            try:
                device, _ = self._server.accept()
            except OSError:
                continue
            try:
                broker = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                device.close()
                continue
            self.connections += 1
            self.under_way = 0
            threading.Thread(target=self._forward, args=(device, broker, True), daemon=True).start()
            threading.Thread(target=self._forward, args=(broker, device, False), daemon=True).start()

    def _forward(self, source: socket.socket, sink: socket.socket, from_device: bool) -> None:
        try:
            while packet := _packet(source):
                kind = packet[0] >> 4
                if from_device and kind == 3 and self.denied(*_published(packet)):
                    break
                if from_device and kind == 3 and (packet[0] >> 1) & 3:  # PUBLISH of QoS 1
                    self.publishes += 1
                    self.under_way += 1
                    self.most_under_way = max(self.most_under_way, self.under_way)
                if not from_device and kind == 4:  # PUBACK
                    self.under_way -= 1
                    if self.swallow_acks:
                        self.swallow_acks -= 1
                        continue
                if not self.silent:
                    sink.sendall(packet)
        except OSError:
            pass
        finally:
            for end in (source, sink):
                # A close alone would wait for the other thread, which reads from it.
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()


def _packet(source: socket.socket) -> bytes:
    head = source.recv(1)
    length, shift = 0, 0
    while head:
        byte = source.recv(1)
        if not byte:
            return b""
        head += byte
        length |= (byte[0] & 127) << shift
        shift += 7
        if byte[0] < 128:
            break
    while head and length:
        part = source.recv(length)
        if not part:
            return b""
        head, length = head + part, length - len(part)
    return head


def _published(packet: bytes) -> tuple[str, bytes]:
    start = next(index for index in range(1, 5) if packet[index] < 128) + 1
    length = int.from_bytes(packet[start : start + 2], "big")
    return packet[start + 2 : start + 2 + length].decode(), packet[start + 2 + length :]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """The folder that an agent watches."""
    folder = tmp_path / "photos"
    folder.mkdir()
    return folder


@pytest.fixture
def settings(photos: Path, colour_model: Path) -> WatchSettings:
    from tests.edge.watched import settings_for

    return settings_for(photos, colour_model)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    found = Broker(tmp_path / "broker")
    yield found
    found.stop()


def access_to(
    host: str = "127.0.0.1",
    port: int = 1883,
    *,
    device: str = "device",
    prefix: str = "agridistill",
    username: str | None = None,
    password: str | None = None,
    ack_timeout_s: float = 30.0,
    **settings: Any,
) -> BrokerAccess:
    """A device's access to a broker."""
    user = f"{username}@" if username else ""
    found = BrokerSettings(f"mqtt://{user}{host}:{port}/{prefix}", **settings)
    return BrokerAccess(found, device, password, ack_timeout_s)
