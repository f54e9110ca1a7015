"""No server holds an exchange beyond its time, wherever it begins to be slow; and nothing of it stays."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import socket
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from agridistill.edge.http import HttpClient, HttpError
from agridistill.errors import EdgeError

from .conftest import wait_for
from .dripping import BODY, HEADER, dripping, soon

LATE = r"^no complete answer within 0\.3 s$"
# The head of a TLS record of 16 KB, whose rest does not come.
HANDSHAKE = b"\x16\x03\x03\x40\x00"


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def slow_server() -> Iterator[str]:
    """Answers within half a second, in ten pieces; at /moved it leads to a path."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(302 if self.path.startswith("/moved") else 200)
            if self.path.startswith("/moved"):
                self.send_header("Location", self.path.removeprefix("/moved/"))
            self.end_headers()
            with contextlib.suppress(OSError):
                for _ in range(0 if self.path.startswith("/moved") else 10):
                    stop.wait(0.05)
                    self.wfile.write(b"x")

        def log_message(self, *words: object) -> None: ...

    stop = threading.Event()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    stop.set()
    server.shutdown()
    server.server_close()


def whole(url: str, limit_s: float = 0.3, client: HttpClient | None = None) -> bytes:
    with (client or HttpClient()).whole(url, limit_s) as answer:
        return b"".join(answer.iter_raw())


def certified(folder: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's context, and one of a client that trusts it."""
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "drip")])
    now = datetime.datetime.now(datetime.UTC)
    host = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + datetime.timedelta(1), [])
    certificate = builder.add_extension(host, critical=False).sign(key, hashes.SHA256())
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    file = folder / "drip.pem"
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain)
    file.write_bytes(private + certificate.public_bytes(pem))
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(file)
    return server, ssl.create_default_context(cafile=str(file))


@pytest.mark.parametrize("part", ["header", "body"])
@pytest.mark.parametrize("secure", [False, True], ids=["http", "https"])
def test_a_dripping_answer_is_cut_off(part: str, secure: bool, tmp_path: Path) -> None:
    server, trusting = certified(tmp_path) if secure else (None, None)
    with dripping(HEADER if part == "header" else BODY, tls=server) as port:
        url = f"{'https' if secure else 'http'}://127.0.0.1:{port}/"
        with soon(), pytest.raises(HttpError, match=LATE):
            whole(url, client=HttpClient(context=trusting))
        if part == "header":
            with soon(), pytest.raises(HttpError, match=LATE):
                HttpClient(context=trusting).header(url, 0.3)


def test_a_dripping_handshake_is_cut_off() -> None:
    with dripping(HANDSHAKE) as port, soon(), pytest.raises(HttpError, match=LATE):
        whole(f"https://127.0.0.1:{port}/")


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_dripping_proxy_is_cut_off(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with dripping() as port:
        monkeypatch.setenv(f"{scheme}_proxy", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("no_proxy", "")
        with soon(), pytest.raises(HttpError, match=LATE):
            whole(f"{scheme}://camera.invalid/")


def test_redirects_do_not_begin_the_time_anew(slow_server: str) -> None:
    client = HttpClient(follow_redirects=True)
    with dripping() as port, soon(), pytest.raises(HttpError, match=LATE):
        whole(f"{slow_server}/moved/http://127.0.0.1:{port}/", client=client)


def test_a_redirect_from_https_to_http_is_refused(tmp_path: Path) -> None:
    server, trusting = certified(tmp_path)
    with dripping(
        b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1/\r\nContent-Length: 0\r\n\r\n", tls=server
    ) as port:
        client = HttpClient(context=trusting, follow_redirects=True)
        with pytest.raises(HttpError, match="redirect from https"):
            whole(f"https://127.0.0.1:{port}/", 20, client)


def test_silence_is_told_as_late_too() -> None:
    with dripping(pause_s=10) as port, soon(), pytest.raises(HttpError, match=LATE):
        whole(f"http://127.0.0.1:{port}/")


def test_the_limit_of_a_header_leaves_the_body_its_time(slow_server: str) -> None:
    with pytest.raises(HttpError, match="no complete answer"):
        whole(slow_server, 0.25)
    with contextlib.closing(HttpClient().header(slow_server, 0.25)) as answer:
        assert answer.read() == b"x" * 10


def test_what_comes_in_time_and_what_fails_is_told_as_it_is(slow_server: str) -> None:
    assert whole(slow_server, 20) == b"x" * 10
    with pytest.raises(HttpError, match="status 302") as caught:
        whole(f"{slow_server}/moved/elsewhere", 20)
    assert caught.value.status == 302
    with pytest.raises(HttpError, match="protocol"):
        whole("file:///etc/hostname", 20)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(HttpError, match="refused"):
        whole(f"http://127.0.0.1:{port}/", 20)


@pytest.mark.parametrize("host", ["field..example", "f" * 70 + ".example", "xn--.example"])
def test_a_name_that_no_resolver_takes_is_no_answer(host: str) -> None:
    with pytest.raises(HttpError):
        whole(f"http://{host}/", 20)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ALL_PROXY", "socks://user:secret@127.0.0.1:1"),
        ("ALL_PROXY", "http://user:secret@127.0.0.1:port"),
        ("NO_PROXY", "2001:db8::/32"),  # findings/httpx_no_proxy_ipv6_network.sh
    ],
)
def test_an_unusable_proxy_setting_is_one_line(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(
        EdgeError, match=f"proxy variables with http:// addresses, and no IPv6 network in NO_PROXY.*{name}"
    ) as caught:
        HttpClient()
    assert "secret" not in str(caught.value)


def test_each_address_of_a_host_is_tried(slow_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = server.getsockname()
    right = ("127.0.0.1", int(slow_server.rpartition(":")[2]))
    kind = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
    monkeypatch.setattr(socket, "getaddrinfo", lambda *asked, **more: [(*kind, closed), (*kind, right)])
    assert whole("http://two.invalid/", 20) == b"x" * 10


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="descriptors are counted in /proc")
def test_nothing_stays_open(slow_server: str) -> None:
    def held() -> int:
        return sum(1 for _ in Path("/proc/self/fd").iterdir())

    with dripping() as port:
        before, threads = held(), {thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)}
        for _ in range(3):
            with pytest.raises(HttpError, match="no complete answer"):
                whole(f"http://127.0.0.1:{port}/", 0.05)
            with contextlib.closing(HttpClient().header(slow_server, 20)) as answer:
                assert next(answer.iter_raw())
        timers = {thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)} - threads
        for timer in timers:
            timer.join(5)
            assert not timer.is_alive()
        # The servers live in this process too, and may take a moment to see that a client has gone.
        wait_for(lambda: held() <= before)
