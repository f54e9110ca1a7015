"""Snapshots from a real HTTP server that misbehaves, goes away and comes back."""

from __future__ import annotations

import base64
import hashlib
import http.server
import io
import itertools
import logging
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image
from tests.edge.conftest import free_port, wait_for
from tests.edge.dripping import dripping, soon

from agridistill.edge.http import HttpError
from agridistill.edge.network import Backoff
from agridistill.edge.sources import (
    LatestFrame,
    SourceLostError,
    SourceRefusedError,
    SourceSettings,
    open_source,
    snapshots,
)
from agridistill.edge.sources.snapshots import JpegFrames, SnapshotSource
from agridistill.errors import EdgeError, PhotoError

from .test_folder import photo_bytes

SECRET = "s3cr:et@"  # noqa: S105


class Handler(http.server.BaseHTTPRequestHandler):
    server: Camera
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers.get("Authorization")))
        self.server.answer(self)

    def log_message(self, *args: object) -> None: ...

    def give(self, body: bytes, status: int = 200, kind: str = "image/jpeg", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body))}.items():
            if name.replace("-", "_") not in headers:
                self.send_header(name, value)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)


class Camera(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.asked: list[tuple[str, str | None]] = []
        self.pictures = 0
        self.answer: Callable[[Handler], None] = self.picture
        self.thread = threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    def handle_error(self, request: object, client_address: object) -> None: ...  # the client may leave early

    def picture(self, handler: Handler) -> None:
        self.pictures += 1
        handler.give(photo_bytes(self.pictures))

    def url(self, path: str = "/snap.jpg", user: str = "") -> str:
        return f"http://{user}127.0.0.1:{self.server_port}{path}"

    def end(self) -> None:
        self.shutdown()
        self.server_close()
        self.thread.join()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def camera() -> Iterator[Camera]:
    camera = Camera()
    yield camera
    camera.end()


def source_of(url: str, *, timeout_s: float = 10, every_s: float = 0.0, **settings: str) -> SnapshotSource:
    source = SnapshotSource(url, SourceSettings(every_s=every_s, **settings), timeout_s=timeout_s)  # type: ignore[arg-type]
    source.open()
    return source


def lost(source: SnapshotSource) -> str:
    with pytest.raises(SourceLostError) as caught:
        source.read(1)
    return str(caught.value)


def test_pictures_come_at_their_pace_and_an_unchanged_one_is_not_new(camera: Camera) -> None:
    source = source_of(camera.url(), every_s=0.1, plot="roof")
    begin = time.monotonic()
    frames = []
    while len(frames) < 3:
        frame = source.read(0.02)
        frames += [frame] if frame else []
    assert time.monotonic() - begin >= 0.2
    assert len(camera.asked) == 3
    assert [(frame.name, frame.plot, frame.identity) for frame in frames] == [
        (number, "roof", "") for number in ("1", "2", "3")
    ]
    assert frames[0].pixels.shape == (48, 64, 3)
    same = photo_bytes(77)
    camera.answer = lambda handler: handler.give(same)
    source = source_of(camera.url())
    assert source.read(1) is not None
    assert [source.read(1) for _ in range(3)] == [None] * 3


@pytest.mark.parametrize("where", ["address", "settings"])
def test_basic_credentials_are_given_to_a_camera_that_asks(camera: Camera, where: str) -> None:
    right = "Basic " + base64.b64encode(f"me:{SECRET}".encode()).decode()

    def guarded(handler: Handler) -> None:
        if handler.headers.get("Authorization") == right:
            camera.picture(handler)
        else:
            handler.give(b"", 401, WWW_Authenticate='Basic realm="camera"')

    camera.answer = guarded
    if where == "address":
        source = source_of(camera.url(user="me:s3cr%3Aet%40@"))
    else:
        source = source_of(camera.url(), username="me", password=SECRET)
    assert source.read(1) is not None
    text = lost(source_of(camera.url(), username="me", password="wrong-one"))  # noqa: S106
    assert "401" in text
    assert "wrong-one" not in text


def test_digest_credentials_are_given_to_a_camera_that_asks(camera: Camera) -> None:
    def md5(text: str) -> str:
        return hashlib.md5(text.encode()).hexdigest()  # noqa: S324 # RFC 2617

    def guarded(handler: Handler) -> None:
        given_ = handler.headers.get("Authorization", "")
        fields = dict(part.split("=", 1) for part in given_.removeprefix("Digest ").split(", ")) if given_ else {}
        fields = {name: value.strip('"') for name, value in fields.items()}
        secret, asked = md5(f"me:camera:{SECRET}"), md5(f"GET:{handler.path}")
        tail = f"{fields.get('nc')}:{fields.get('cnonce')}:auth:{asked}"
        if fields.get("response") == md5(f"{secret}:n0nce:{tail}"):
            camera.picture(handler)
        else:
            handler.give(b"", 401, WWW_Authenticate='Digest realm="camera", nonce="n0nce", qop="auth", algorithm=MD5')

    camera.answer = guarded
    assert source_of(camera.url("/a?b=1"), username="me", password=SECRET).read(1) is not None
    assert "401" in lost(source_of(camera.url(), username="me", password="wrong-one"))  # noqa: S106


def test_credentials_follow_a_redirect_on_the_camera_but_not_to_another_host(camera: Camera) -> None:
    other = Camera()

    def guarded(handler: Handler) -> None:
        if handler.path == "/away":
            handler.give(b"", 302, Location=other.url("/snap.jpg"))
        elif handler.path == "/here":
            handler.give(b"", 302, Location="/else/snap.jpg")
        elif handler.headers.get("Authorization"):
            camera.picture(handler)
        else:
            handler.give(b"", 401, WWW_Authenticate='Basic realm="camera"')

    camera.answer = guarded
    other.answer = lambda handler: handler.give(b"", 401, WWW_Authenticate='Basic realm="camera"')
    try:
        assert source_of(camera.url("/here", "me:pw@")).read(1) is not None
        assert "401" in lost(source_of(camera.url("/away", "me:pw@")))
        assert other.asked == [("/snap.jpg", None)]
    finally:
        other.end()


@pytest.mark.parametrize("target", ["file:///etc/hostname", "ftp://127.0.0.1/a.jpg"])
def test_a_redirect_leads_to_http_only(camera: Camera, target: str) -> None:
    camera.answer = lambda handler: handler.give(b"", 302, Location=target)
    lost(source_of(camera.url()))


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (lambda handler: handler.give(b"", 404), "404"),
        (lambda handler: handler.give(b"", 503), "503"),
        (lambda handler: handler.give(b"<html>log in</html>", kind="text/html"), "text/html"),
        (
            lambda handler: handler.give(b'{"busy": 1}', kind="application/json; charset=utf-8"),
            "application/json",
        ),
        (lambda handler: handler.give(b"<error/>", kind="Application/Problem+XML"), "application/problem+xml"),
        (lambda handler: handler.give(photo_bytes()[:500], Content_Length="9000", Connection="close"), "expected 9000"),
        (lambda handler: handler.wfile.write(b"what?\r\n\r\n"), "RemoteProtocolError"),
        (lambda handler: handler.give(b"", 302, Location="/snap.jpg"), "redirects"),
    ],
)
def test_what_is_no_picture_is_a_loss_told_without_the_token(
    camera: Camera, answer: Callable[[Handler], None], told: str
) -> None:
    def answer_and_close(handler: Handler) -> None:
        answer(handler)
        handler.close_connection = True

    camera.answer = answer_and_close
    text = lost(source_of(camera.url("/snap.jpg?token=hidden", "me:hidden@")))
    assert told in text
    assert "hidden" not in text
    assert "\n" not in text


def test_more_than_a_picture_is_not_read_to_its_end(camera: Camera, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "MAX_BYTES", 100_000)
    camera.answer = lambda handler: handler.give(bytes(3_000_000))
    assert "more than" in lost(source_of(camera.url()))


def test_a_picture_that_trickles_in_is_given_up(camera: Camera) -> None:
    stop = threading.Event()

    def trickle(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "image/jpeg")
        handler.end_headers()
        while not stop.wait(0.05):
            handler.wfile.write(b"x")

    camera.answer = trickle
    begin = time.monotonic()
    assert "no complete answer within 0.3 s" in lost(source_of(camera.url(), timeout_s=0.3))
    assert time.monotonic() - begin < 5
    stop.set()


def test_a_silent_camera_is_given_up(camera: Camera) -> None:
    stop = threading.Event()
    camera.answer = lambda handler: (stop.wait(20), None)[1]
    assert "no complete answer within 0.2 s" in lost(source_of(camera.url(), timeout_s=0.2))
    stop.set()


def test_a_header_that_drips_is_given_up() -> None:
    with dripping() as port, soon():
        text = lost(source_of(f"http://me:hidden@127.0.0.1:{port}/snap.jpg?token=hidden", timeout_s=0.3))
    assert "no complete answer within 0.3 s" in text
    assert "hidden" not in text


def test_a_damaged_picture_is_told_once_and_the_next_one_is_taken(camera: Camera) -> None:
    camera.answer = lambda handler: handler.give(photo_bytes()[:900])
    source = source_of(camera.url("/snap.jpg?token=hidden"))
    with pytest.raises(PhotoError) as caught:
        source.read(1)
    assert "hidden" not in str(caught.value)
    assert source.read(1) is None
    camera.answer = camera.picture
    assert source.read(1) is not None


@pytest.mark.parametrize("same", [False, True], ids=["another each time", "the same"])
def test_a_camera_that_gives_only_rubbish_is_away_until_a_picture_can_be_read(camera: Camera, same: bool) -> None:
    def rubbish(handler: Handler) -> None:
        camera.pictures += not same
        handler.give(photo_bytes(camera.pictures)[:900])

    camera.answer = rubbish
    source = source_of(camera.url("/snap.jpg?token=hidden"))
    for number in (1, 2):
        if same and number > 1:
            assert source.read(1) is None
        else:
            with pytest.raises(PhotoError):
                source.read(1)
    for _ in range(2):
        text = lost(source)
        assert "answers in a row that cannot be read" in text
        assert "hidden" not in text
        source.close()
        source.open()
    camera.answer = camera.picture
    assert source.read(1) is not None
    camera.answer = rubbish
    camera.pictures += 1
    with pytest.raises(PhotoError):
        source.read(1)


def test_bad_pictures_among_good_ones_are_left_out_and_no_loss(camera: Camera) -> None:
    def flapping(handler: Handler) -> None:
        camera.pictures += 1
        handler.give(photo_bytes(camera.pictures)[: 900 if camera.pictures % 3 else None])

    camera.answer = flapping
    source = source_of(camera.url())
    for _ in range(3):
        for _ in range(2):
            with pytest.raises(PhotoError):
                source.read(1)
        assert source.read(1) is not None


def test_rubbish_is_told_a_few_times_then_once_and_its_end_once(
    camera: Camera, caplog: pytest.LogCaptureFixture
) -> None:
    def rubbish(handler: Handler) -> None:
        camera.pictures += 1
        handler.give(photo_bytes(camera.pictures)[:900])

    camera.answer = rubbish
    source = SnapshotSource(camera.url(), SourceSettings(every_s=0.0))
    with LatestFrame(source, backoff=Backoff(0.01, 0.02)) as latest:
        wait_for(lambda: camera.pictures >= 10)
        assert latest.unreadable == 2
        assert latest.lost_for_s is not None
        camera.answer = camera.picture
        wait_for(lambda: latest.lost_for_s is None)
    lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert ["away" in lines[0], "back" in lines[1], len(lines)] == [True, True, 2]


@pytest.mark.parametrize("kind", ["application/octet-stream", "binary/octet-stream", "jpeg", None])
def test_a_picture_with_a_careless_type_is_taken(camera: Camera, kind: str | None) -> None:
    def careless(handler: Handler) -> None:
        body = photo_bytes(1)
        handler.send_response(200)
        if kind:
            handler.send_header("Content-Type", kind)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    camera.answer = careless
    assert source_of(camera.url()).read(1) is not None


def test_an_unchanged_picture_is_not_fetched_without_pause(camera: Camera) -> None:
    same = photo_bytes(77)
    camera.answer = lambda handler: handler.give(same)
    source = source_of(camera.url(), every_s=0)
    deadline = time.monotonic() + 0.35
    while time.monotonic() < deadline:
        source.read(0.05)
    assert 2 <= len(camera.asked) <= 5


def test_a_camera_that_goes_away_and_comes_back_is_told_once_each(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    port = free_port()
    camera = Camera(port)
    url = camera.url("/snap.jpg?token=hidden", "me:hidden@")
    source = SnapshotSource(url, SourceSettings(every_s=0.01))
    with LatestFrame(source, backoff=Backoff(0.02, 0.05)) as latest:
        assert latest.take(10) is not None
        camera.end()
        deadline = time.monotonic() + 10
        while latest.lost_for_s is None:
            assert time.monotonic() < deadline
            latest.take(0.01)
        time.sleep(0.2)  # several attempts
        latest.take(0)
        camera = Camera(port)
        assert latest.take(10) is not None
        assert latest.lost_for_s is None
    camera.end()
    lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert ["away" in lines[0], "back" in lines[1], len(lines)] == [True, True, 2]
    assert "hidden" not in " ".join(lines)
    assert f"http://127.0.0.1:{port}/snap.jpg" in lines[0]


def test_a_large_picture_is_decoded_at_the_size_that_is_wanted(camera: Camera) -> None:
    camera.answer = lambda handler: handler.give(photo_bytes(1, size=(640, 480)))
    frame = SnapshotSource(camera.url(), SourceSettings(shorter_side=100)).read(1)
    assert frame is not None
    assert frame.pixels.shape == (120, 160, 3)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Self-signed, of 127.0.0.1, and its key."""
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name.from_rfc4514_string("CN=camera")
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now - timedelta(days=1), now + timedelta(days=9))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    folder = tmp_path_factory.mktemp("tls")
    (folder / "camera.crt").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "camera.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return folder / "camera.crt", folder / "camera.key"


def test_a_camera_with_a_certificate_of_its_own_is_trusted_by_ca_file(
    camera: Camera, certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    camera.socket = context.wrap_socket(camera.socket, server_side=True)
    url = camera.url().replace("http:", "https:")
    settings = SourceSettings(every_s=0.0, ca_file=certificate[0])
    frame = open_source(url, settings=settings, seen=lambda identity: False).read(1)
    assert frame is not None
    source = SnapshotSource(url, SourceSettings(every_s=0.0))
    with pytest.raises(
        SourceRefusedError, match="self-signed certificate; set ca_file to a file with the certificate of its authority"
    ):
        source.read(1)
    with pytest.raises(EdgeError, match="an https:// source, because ca_file is set"):
        open_source(camera.url(), settings=settings, seen=lambda identity: False)
    (tmp_path / "empty.crt").write_text("")
    with pytest.raises(EdgeError, match="a PEM file with certificates"):
        SnapshotSource(url, SourceSettings(ca_file=tmp_path / "empty.crt"))


def test_an_address_without_a_host_is_refused() -> None:
    with pytest.raises(EdgeError):
        SnapshotSource("http:///snap.jpg", SourceSettings())


class Firmware(NamedTuple):
    """How a server writes its stream.

    Attributes:
        kind: of the whole answer.
        part: around one picture.
        chunked: whether the answer comes in chunks.
    """

    kind: str
    part: Callable[[bytes], bytes]
    chunked: bool = False


def with_length(delimiter: bytes, line: bytes = b"\r\n", wrong: int | None = None) -> Callable[[bytes], bytes]:
    def part(picture: bytes) -> bytes:
        length = b"Content-Length: %d" % (len(picture) if wrong is None else wrong)
        return line.join([delimiter, b"Content-Type: image/jpeg", length, b"", picture, b""])

    return part


def without_length(delimiter: bytes, line: bytes = b"\r\n") -> Callable[[bytes], bytes]:
    return lambda picture: line.join([delimiter, b"Content-Type: image/jpeg", b"", picture, b""])


FIRMWARES = {
    "ESP32-CAM": Firmware("multipart/x-mixed-replace;boundary=1234", with_length(b"\r\n--1234"), chunked=True),
    "mjpg-streamer": Firmware("multipart/x-mixed-replace;boundary=donotcross", with_length(b"--donotcross")),
    "OctoPrint": Firmware('multipart/x-mixed-replace; boundary="jpgboundary"', without_length(b"--jpgboundary")),
    "dashes in the boundary": Firmware("multipart/x-mixed-replace; boundary=--mine", with_length(b"--mine")),
    "another boundary": Firmware("multipart/x-mixed-replace; boundary=one", without_length(b"--two")),
    "no boundary": Firmware("Multipart/X-Mixed-Replace", without_length(b"")),
    "line feeds alone": Firmware("multipart/x-mixed-replace; boundary=x", without_length(b"--x", b"\n")),
    "wrong length": Firmware("multipart/x-mixed-replace; boundary=x", with_length(b"--x", wrong=7)),
}


def streaming(
    firmware: Firmware, pictures: list[bytes], stop: threading.Event | None = None
) -> Callable[[Handler], None]:
    """Sends the pictures, in pieces that end anywhere; then waits for `stop`, or ends."""

    def answer(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", firmware.kind)
        if firmware.chunked:
            handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        handler.close_connection = True
        data = b"".join(map(firmware.part, pictures))
        for start in range(0, len(data), 997):
            piece = data[start : start + 997]
            handler.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if firmware.chunked else piece)
        if stop is not None:
            stop.wait(20)

    return answer


def taken(source: SnapshotSource, count: int) -> list[np.ndarray]:
    frames: list[np.ndarray] = []
    while len(frames) < count:
        frame = source.read(0.05)
        frames += [frame.pixels] if frame is not None else []
    return frames


def pixels_of(picture: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))


def with_thumbnail(seed: int) -> bytes:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x927C] = photo_bytes(seed + 50, size=(16, 16))  # a JPEG within the JPEG
    stream = io.BytesIO()
    Image.open(io.BytesIO(photo_bytes(seed))).save(stream, "JPEG", exif=exif)
    return stream.getvalue()


@pytest.mark.parametrize("firmware", FIRMWARES.values(), ids=list(FIRMWARES))
def test_streams_are_read_however_they_are_written(camera: Camera, firmware: Firmware) -> None:
    picture, stop = with_thumbnail(1), threading.Event()
    camera.answer = streaming(firmware, [picture], stop)
    source = source_of(camera.url("/stream"), plot="roof")
    frame = None
    while frame is None:
        frame = source.read(0.05)
    np.testing.assert_array_equal(frame.pixels, pixels_of(picture))
    assert (frame.plot, frame.identity) == ("roof", "")
    stop.set()
    source.close()


def test_pieces_may_end_anywhere_and_each_picture_comes_once() -> None:
    pictures = [with_thumbnail(seed) for seed in range(3)]
    data = b"".join(map(FIRMWARES["OctoPrint"].part, pictures))
    for size in (1, 2, 3, 1000, len(data)):
        frames = JpegFrames(1_000_000)
        pieces = (data[start : start + size] for start in range(0, len(data), size))
        assert list(itertools.chain.from_iterable(map(frames.feed, pieces))) == pictures


def test_pictures_that_are_cut_off_are_left_out_and_the_next_is_taken() -> None:
    good = [with_thumbnail(seed) for seed in range(4)]
    part = FIRMWARES["mjpg-streamer"].part
    data = part(good[0]) + part(good[1][:-300]) + part(good[2]) + part(good[3][:40]) + b"".join(map(part, good))
    found = JpegFrames(1_000_000).feed(data)
    assert found[:2] == [good[0], good[2]]
    assert found[-3:] == good[-3:]
    assert set(found) <= set(good)
    with pytest.raises(HttpError, match="more than"):
        JpegFrames(1000).feed(b"\xff\xd8\xff\xe0\xff\xff" + bytes(2000))


def test_the_newest_picture_is_taken_at_its_pace(camera: Camera) -> None:
    pictures, stop, sent = [photo_bytes(seed) for seed in range(4)], threading.Event(), threading.Event()

    def answer(handler: Handler) -> None:
        part = FIRMWARES["mjpg-streamer"].part
        streaming(FIRMWARES["mjpg-streamer"], pictures[:3])(handler)
        sent.wait(10)
        while not stop.wait(0.01):
            handler.wfile.write(part(pictures[3]))

    camera.answer = answer
    source = source_of(camera.url(), every_s=0.2)
    first = taken(source, 1)[0]
    assert any(np.array_equal(first, pixels_of(picture)) for picture in pictures[:3])
    begin = time.monotonic()
    sent.set()
    np.testing.assert_array_equal(taken(source, 1)[0], pixels_of(pictures[3]))
    assert time.monotonic() - begin >= 0.1
    assert len(camera.asked) == 2  # the first answer said that it is a stream, the second one stays open
    stop.set()
    source.close()


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ([], "a stream that the camera has ended"),
        ([photo_bytes(1)[:700]], "a stream that the camera has ended"),
        (None, "no complete picture within 0.3 s"),
    ],
)
def test_a_stream_without_a_picture_is_lost(camera: Camera, body: list[bytes] | None, told: str) -> None:
    def dripping(handler: Handler) -> None:
        streaming(FIRMWARES["OctoPrint"], [])(handler)
        while True:
            handler.wfile.write(b"--jpgboundary\r\n")
            time.sleep(0.02)

    camera.answer = dripping if body is None else streaming(FIRMWARES["OctoPrint"], body)
    source = source_of(camera.url(), timeout_s=0.3)
    assert source.read(0) is None
    with pytest.raises(SourceLostError, match=told):
        source.read(0)
    source.close()


def test_a_picture_without_an_end_is_not_kept(camera: Camera, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "MAX_BYTES", 100_000)
    camera.answer = streaming(FIRMWARES["OctoPrint"], [photo_bytes(1)[:700] + bytes(300_000)])
    source = source_of(camera.url())
    assert source.read(0) is None
    with pytest.raises(SourceLostError):
        source.read(0)
    source.close()


def test_a_stream_that_ends_is_come_back_to_and_may_be_a_snapshot_then(
    camera: Camera,
    caplog: pytest.LogCaptureFixture,
) -> None:
    numbers = itertools.count()

    def short(handler: Handler) -> None:
        streaming(FIRMWARES["ESP32-CAM"], [photo_bytes(next(numbers)) for _ in range(3)])(handler)

    camera.answer = short
    source = SnapshotSource(camera.url(), SourceSettings(every_s=0.0))
    with LatestFrame(source, backoff=Backoff(0.01, 60)) as latest:
        wait_for(lambda: next(numbers) > 9)
        assert latest.take(10) is not None
        camera.answer = camera.picture
        before = camera.pictures
        wait_for(lambda: camera.pictures > before + 5)
        assert latest.take(10) is not None
    lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert "away" in lines[0]
    assert "is back" in lines[1]
