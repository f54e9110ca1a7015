"""Logging in, against the example of RFC 7616 and cameras that offer several ways."""

from __future__ import annotations

import hashlib
import re
import secrets
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from agridistill.edge.network import split_url
from agridistill.edge.sources.cameras import rtsp_status
from agridistill.edge.sources.source import authorization, challenges

from .test_snapshots import Camera, Handler, camera, lost, no_proxy, source_of  # noqa: F401 # fixtures

USER, PASSWORD = "Mufasa", "Circle of Life"
NONCE, MADE = "7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v", "f2/wE4q74E6zIJEtWaHKaf5wv/H5QzzpXusqGemxURZJ"
OPAQUE = "FQhe/qaU925kfnzjCev0ciny7QMkPqMAFRtzCUYo5tdS"
REALM = "http-auth@example.org"
RFC_7616 = {
    "SHA-256": "753927fa0e85d155564e2e272a28d1802ca10daf4496794697cf8db5856cb6c1",
    "MD5": "8ca523f5e9506fed4657c9700eebdbec",
}
HASHES = {"SHA-256": hashlib.sha256, "MD5": hashlib.md5}


def offer(algorithm: str | None, qop: str | None = "auth, auth-int") -> str:
    parts = [f'realm="{REALM}"', f'nonce="{NONCE}"', f'opaque="{OPAQUE}"']
    parts += [f'qop="{qop}"'] if qop else []
    parts += [f"algorithm={algorithm}"] if algorithm else []
    return "Digest " + ", ".join(parts)


def fields(answer: str) -> dict[str, str]:
    return {name: quoted or bare for name, quoted, bare in re.findall(r'(\w+)=(?:"([^"]*)"|([^,\s]+))', answer)}


def is_right(answer: str, method: str, uri: str, user: str = USER, password: str = PASSWORD) -> bool:
    """A server's side of RFC 7616."""
    if not answer.startswith("Digest "):
        return False
    found = fields(answer)
    function = HASHES[found.get("algorithm", "MD5").upper().removesuffix("-SESS")]

    def digest(text: str) -> str:
        return function(text.encode()).hexdigest()

    secret = digest(f"{user}:{REALM}:{password}")
    if found.get("algorithm", "").lower().endswith("-sess"):
        secret = digest(f"{secret}:{found['nonce']}:{found['cnonce']}")
    middle = f"{found['nc']}:{found['cnonce']}:{found['qop']}:" if "qop" in found else ""
    return found["uri"] == uri and found["response"] == digest(
        f"{secret}:{found['nonce']}:{middle}{digest(f'{method}:{uri}')}"
    )


@pytest.mark.parametrize("algorithm", list(RFC_7616))
def test_the_answer_is_that_of_the_rfcs_example(algorithm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "token_hex", lambda size: MADE)
    answer = authorization(challenges([offer(algorithm)]), USER, PASSWORD, "GET", "/dir/index.html")
    assert answer is not None
    found = fields(answer)
    assert found["response"] == RFC_7616[algorithm]
    assert (found["username"], found["opaque"], found["algorithm"]) == (USER, OPAQUE, algorithm)


@pytest.mark.parametrize(
    ("offers", "taken"),
    [
        ([offer("SHA-256"), offer("MD5")], "SHA-256"),
        ([offer("MD5"), offer("SHA-256")], "SHA-256"),
        ([f'{offer("MD5")}, {offer("SHA-256")}, Basic realm="x"'], "SHA-256"),
        ([offer("SHA-256-sess")], "SHA-256-sess"),
        ([offer("SHA-512-256"), offer("MD5")], "MD5"),
        (["Negotiate", offer("MD5", "auth-int"), offer(None, None)], None),
        (['Basic realm="x"', offer("md5")], "md5"),
    ],
    ids=str,
)
def test_a_camera_is_answered_in_the_strongest_way_that_it_offers(
    camera: Camera,  # noqa: F811
    offers: list[str],
    taken: str | None,
) -> None:
    answers = []

    def guarded(handler: Handler) -> None:
        given = handler.headers.get("Authorization", "")
        answers.append(given)
        if is_right(given, "GET", handler.path):
            camera.picture(handler)
            return
        handler.send_response(401)
        for one in offers:
            handler.send_header("WWW-Authenticate", one)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    camera.answer = guarded
    assert source_of(camera.url("/a?b=1"), username=USER, password=PASSWORD).read(1) is not None
    assert fields(answers[-1]).get("algorithm") == taken
    wrong = lost(source_of(camera.url("/a?b=1"), username=USER, password="wrong-one"))  # noqa: S106
    assert "401" in wrong
    assert "a user and password that the camera accepts" in wrong
    assert "wrong-one" not in wrong
    assert len(answers) == 4  # a wrong password is given once: cameras lock an account after a few
    assert "no user is set" in lost(source_of(camera.url("/a?b=1")))


def test_a_nonce_that_ran_out_is_no_wrong_password(camera: Camera) -> None:  # noqa: F811
    asked = []

    def forgetful(handler: Handler) -> None:
        asked.append(handler.path)
        if len(asked) == 3:
            camera.picture(handler)
        else:
            stale = ", stale=TRUE" if len(asked) == 2 else ""
            handler.give(b"", 401, WWW_Authenticate=offer("MD5") + stale)

    camera.answer = forgetful
    assert source_of(camera.url(), username=USER, password=PASSWORD).read(1) is not None
    camera.answer = lambda handler: handler.give(b"", 401, WWW_Authenticate=offer("MD5") + ", stale=true")
    assert "401" in lost(source_of(camera.url(), username=USER, password=PASSWORD))


def test_names_and_passwords_may_have_any_letters(camera: Camera) -> None:  # noqa: F811
    def guarded(handler: Handler) -> None:
        right = is_right(handler.headers.get("Authorization", ""), "GET", handler.path, "Jürgen", "πß")
        camera.picture(handler) if right else handler.give(b"", 401, WWW_Authenticate=offer("SHA-256"))

    camera.answer = guarded
    assert source_of(camera.url(), username="Jürgen", password="πß").read(1) is not None  # noqa: S106


@contextmanager
def rtsp_camera(guarded: bool = True, status: str = "404 Not Found") -> Iterator[int]:
    """Asks for a password, and then has no such stream."""

    def serve(client: socket.socket) -> None:
        with client, client.makefile("rb") as stream:
            while head := stream.readline():
                method, url, _ = head.decode().split(" ", 2)
                given, number = "", "0"
                while (line := stream.readline().decode().strip()) != "":
                    name, _, value = line.partition(": ")
                    given = value if name == "Authorization" else given
                    number = value if name == "CSeq" else number
                answer = status if not guarded or is_right(given, method, url) else "401 Unauthorized"
                extra = (
                    f"WWW-Authenticate: {offer('MD5', None)}\r\nContent-Length: 4\r\n\r\nno!\n"
                    if "401" in answer
                    else "\r\n"
                )
                client.sendall(f"RTSP/1.0 {answer}\r\nCSeq: {number}\r\n{extra}".encode())

    def accept() -> None:
        try:
            while True:
                threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()
        except OSError:
            return

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=accept, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


def test_why_a_stream_does_not_open_is_asked() -> None:
    with rtsp_camera() as port:
        address = split_url(f"rtsp://127.0.0.1:{port}/stream")
        assert rtsp_status(address, None, "") == 401
        assert rtsp_status(address, USER, "wrong") == 401
        assert rtsp_status(address, USER, PASSWORD) == 404
    assert rtsp_status(address, USER, PASSWORD, timeout_s=0.5) is None


def test_a_stream_with_a_wrong_password_is_refused_and_not_away() -> None:
    pytest.importorskip("cv2")
    from agridistill.edge.sources import SourceLostError, SourceRefusedError, SourceSettings
    from agridistill.edge.sources.cameras import CameraSource

    with rtsp_camera() as port:
        source = CameraSource(f"rtsp://127.0.0.1:{port}/stream", SourceSettings(username=USER, password="wrong-one"))  # noqa: S106
        with pytest.raises(SourceRefusedError, match="status 401 from rtsp://") as caught:
            source.open()
        assert "wrong-one" not in str(caught.value)
        source = CameraSource(f"rtsp://127.0.0.1:{port}/stream", SourceSettings(username=USER, password=PASSWORD))
        with pytest.raises(SourceLostError, match="RTSP status 404"):
            source.open()
