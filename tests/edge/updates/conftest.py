"""Real models, real keys, a real HTTP server that can cut, and a device that takes updates from it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from PIL import Image

from agridistill.edge.updates import prepare
from agridistill.edge.updates.publishing import PublishSettings, publish
from agridistill.edge.updates.release import (
    TrustedKeys,
    create_key,
    key_id,
    read_private_key,
    read_public_key,
)
from agridistill.edge.updates.slots import ActiveModel, ModelSlots
from agridistill.edge.updates.updater import Updater, UpdateResult
from agridistill.manifest import read_manifest
from agridistill.runtime.backends import manifest_path, open_artefact
from agridistill.runtime.predictor import Predictor

GREEN, RED = (10, 200, 10), (200, 10, 10)


def plain_photo(path: Path, colour: tuple[int, int, int]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 20), colour).save(path)
    return path


def model_like(model: Path, path: Path, *, padding: int = 0, classes: tuple[str, ...] | None = None) -> Path:
    """The same network in a file of its own, larger by random text; its classes may be named otherwise."""
    onnx = pytest.importorskip("onnx")
    network = onnx.load(model)
    network.doc_string = np.random.default_rng(5).integers(97, 123, padding, np.uint8).tobytes().decode()
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(network, path)
    manifest = read_manifest(manifest_path(model)).with_weights(path)
    replace(manifest, classes=classes or manifest.classes).write(manifest_path(path))
    return path


def wait_for_size(path: Path, size: int) -> None:
    deadline = time.monotonic() + 30
    while not (path.exists() and path.stat().st_size >= size):
        assert time.monotonic() < deadline, f"'{path}' did not grow"
        time.sleep(0.01)


@dataclass
class Publisher:
    """A folder that is served, and the key that signs what is in it."""

    folder: Path
    key_file: Path
    model: Path
    golden: Path

    @property
    def key(self) -> Ed25519PrivateKey:
        return read_private_key(self.key_file)

    @property
    def key_id(self) -> str:
        return key_id(self.public)

    @property
    def public(self) -> bytes:
        return read_public_key(self.key_file.with_name(f"{self.key_file.name}.pub"))

    def publish(
        self, version: int, *, model: Path | None = None, keys: list[Ed25519PrivateKey] | None = None, **more: object
    ) -> None:
        settings = PublishSettings(version, **more)  # type: ignore[arg-type]
        publish(model or self.model, self.golden, self.folder, keys or [self.key], settings)


@dataclass
class Device:
    """Slots and an updater in a state folder; a restart is `start`."""

    slots: ModelSlots
    updater: Updater
    source: str | Path | bytes

    def check(self) -> UpdateResult:
        return self.updater.check(self.source)

    def start(self) -> ActiveModel:
        """The active model, after it really answered."""
        active = self.slots.start()
        predictor = Predictor(open_artefact(active.path, threads=1))
        answer = predictor.predict(np.full((20, 20, 3), GREEN, np.uint8)).label
        assert answer == predictor.manifest.classes[0]
        return active


def make_publisher(folder: Path, colour_model: Path) -> Publisher:
    """A small model and two golden photos."""
    for name, colour in (("green", GREEN), ("red", RED)):
        plain_photo(folder / "golden" / name / "1.png", colour)
    create_key(folder / "keys" / "release.pem")
    model = model_like(colour_model, folder / "new" / "leaf.onnx", padding=1000)
    return Publisher(folder / "served", folder / "keys" / "release.pem", model, folder / "golden")


def make_device(
    publisher: Publisher,
    state: Path,
    first: Path,
    source: str | Path | bytes | None = None,
    channel: str = "default",
) -> Device:
    """A device that trusts a publisher."""
    slots = ModelSlots(state / "models", first)
    keys = TrustedKeys({publisher.key_id: publisher.public})
    updater = Updater(slots, keys, channel=channel, threads=1)
    return Device(slots, updater, source if source is not None else publisher.folder)


@pytest.fixture(autouse=True)
def limits(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets limits of updates by their names."""

    def change(**values: float) -> None:
        for name, value in values.items():
            monkeypatch.setattr(prepare, name, value)

    change(PAUSE_S=0, TIMEOUT_S=5, GOLDEN_LIMIT_S=60)
    return change


@pytest.fixture
def publisher(tmp_path: Path, colour_model: Path) -> Publisher:
    return make_publisher(tmp_path, colour_model)


@pytest.fixture
def device_for(tmp_path: Path, colour_model: Path) -> Callable[..., Device]:
    """Makes devices that trust a publisher."""

    def make(
        publisher: Publisher,
        source: str | Path | bytes | None = None,
        channel: str = "default",
    ) -> Device:
        return make_device(publisher, tmp_path / "state", colour_model, source, channel)

    return make


@pytest.fixture
def device(device_for: Callable[..., Device], publisher: Publisher) -> Device:
    return device_for(publisher)


@pytest.fixture
def without_golden(monkeypatch: pytest.MonkeyPatch) -> None:
    """Golden photos are answered in a process of its own, which takes a second; here they are left out."""
    monkeypatch.setattr("agridistill.edge.updates.updater.check_golden", lambda *given: None)


@dataclass
class Server:
    """Serves a folder over HTTP; can ignore ranges, cut every answer, add bytes, redirect or answer slowly."""

    folder: Path
    ranges: bool = True
    cut_after: int | None = None
    extra: bytes = b""
    status: int | None = None
    redirect: str | None = None
    pause_s: float = 0
    hold_after: int | None = None
    sent: dict[str, int] = field(default_factory=dict)
    starts: list[int] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/release.json"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = self.folder / urlsplit(request.path).path.lstrip("/")
        is_release = path.name == "release.json"
        if self.status is not None or not path.is_file():
            request.send_error(self.status or 404)
            return
        if self.redirect is not None:
            request.send_response(302)
            request.send_header("Location", self.redirect)
            request.end_headers()
            return
        content = path.read_bytes()
        wanted = request.headers.get("Range")
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.ranges else 0
        request.send_response(206 if start else 200)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        body = content[start:] + (b"" if is_release else self.extra)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if not is_release:
            self.starts.append(start)
            body = body if self.cut_after is None else body[: self.cut_after]
        slowly = self.pause_s > 0 and not is_release
        step = 1 if slowly else self.hold_after or 1 << 20
        for begin in range(0, len(body), step):
            request.wfile.write(body[begin : begin + step])
            self.sent[path.name] = self.sent.get(path.name, 0) + len(body[begin : begin + step])
            if (slowly and self.stop.wait(self.pause_s)) or (
                len(body) > step == self.hold_after and self.stop.wait(60)
            ):
                return


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], Server]]:
    """Starts servers, on 127.0.0.1."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    running: list[tuple[Server, ThreadingHTTPServer]] = []

    def start(folder: Path) -> Server:
        server = Server(folder)

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                try:
                    server.answer(self)
                except OSError:
                    return  # the device has gone

            def log_message(self, format: str, *words: object) -> None:  # noqa: A002 - the base's name
                return

        listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.port = listening.server_address[1]
        threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        running.append((server, listening))
        return server

    yield start
    for server, listening in running:
        server.stop.set()
        listening.shutdown()
        listening.server_close()
