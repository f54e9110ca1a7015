"""Login at a camera over HTTP or RTSP: Digest with SHA-256 or MD5 (RFC 7616), and Basic.

httpx's own Digest takes the first offer of a camera only, and does not speak RTSP.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import re
import secrets
import socket
import urllib.request
from collections.abc import Callable, Iterable
from typing import IO, Any, NamedTuple

_SCHEME = re.compile(r"([!#$%&'*+.^_`|~\w-]+)(?:\s+(.*))?", re.DOTALL)
_PARAMETER = re.compile(r"([\w*-]+)\s*=\s*(.*)", re.DOTALL)
_HASHES: dict[str, Callable[[bytes], Any]] = {
    "SHA-256": hashlib.sha256,
    "MD5": lambda data: hashlib.md5(data, usedforsecurity=False),
}
_MAX_LINE, _MAX_BODY = 4096, 65_536


class Challenge(NamedTuple):
    """One way to log in that a server offers: the scheme in lower case, and its parameters by name in lower case."""

    scheme: str
    fields: dict[str, str]


def challenges(headers: Iterable[str]) -> list[Challenge]:
    """All offers in the values of WWW-Authenticate, also several in one header.

    Example:
        >>> [offer.scheme for offer in challenges(['Digest realm="a, b", nonce="n", algorithm=MD5, Basic realm="c"'])]
        ['digest', 'basic']
    """
    found: list[Challenge] = []
    for header in headers:
        for item in urllib.request.parse_http_list(header):
            parameter = _PARAMETER.fullmatch(item)
            if parameter is None and (scheme := _SCHEME.fullmatch(item)):
                found.append(Challenge(scheme[1].lower(), {}))
                parameter = _PARAMETER.fullmatch(scheme[2] or "")
            if parameter is not None and found:
                found[-1].fields[parameter[1].lower()] = parameter[2].strip().removeprefix('"').removesuffix('"')
    return found


def authorization(offers: Iterable[Challenge], user: str, password: str, method: str, uri: str) -> str | None:
    """The value of the `Authorization` header for the strongest login method; None where none is supported.

    Args:
        offers: the server's challenges.
        user: the user's name.
        password: sent in clear with Basic only.
        method: of the request, such as "GET".
        uri: of the request as it is sent.
    """
    offers = list(offers)
    for name in _HASHES:
        for offer in offers:
            algorithm = offer.fields.get("algorithm", "MD5").upper()
            qualities = [part.strip().lower() for part in offer.fields.get("qop", "auth").split(",")]
            if offer.scheme == "digest" and algorithm.removesuffix("-SESS") == name and "auth" in qualities:
                return _digest(offer, algorithm, user, password, method, uri)
    if any(offer.scheme == "basic" for offer in offers):
        return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
    return None


def _digest(offer: Challenge, algorithm: str, user: str, password: str, method: str, uri: str) -> str:
    function = _HASHES[algorithm.removesuffix("-SESS")]

    def hashed(*parts: str) -> str:
        return str(function(":".join(parts).encode()).hexdigest())

    realm, nonce, client_nonce = offer.fields.get("realm", ""), offer.fields.get("nonce", ""), secrets.token_hex(8)
    secret, request = hashed(user, realm, password), hashed(method, uri)
    if algorithm.endswith("-SESS"):
        secret = hashed(secret, nonce, client_nonce)
    # Header lines are Latin-1; the bytes of UTF-8 pass unchanged.
    name = user.encode().decode("latin-1").replace("\\", r"\\").replace('"', r"\"")
    fields = [f'username="{name}"', f'realm="{realm}"', f'nonce="{nonce}"', f'uri="{uri}"']
    if "qop" in offer.fields:
        response = hashed(secret, nonce, "00000001", client_nonce, "auth", request)
        fields += ["qop=auth", "nc=00000001", f'cnonce="{client_nonce}"']
    else:
        response = hashed(secret, nonce, request)
    fields.append(f'response="{response}"')
    if "algorithm" in offer.fields:
        fields.append(f"algorithm={offer.fields['algorithm']}")
    if "opaque" in offer.fields:
        fields.append(f'opaque="{offer.fields["opaque"]}"')
    return "Digest " + ", ".join(fields)


def rtsp_status(host: str, port: int, url: str, user: str | None, password: str, *, timeout_s: float = 5) -> int | None:
    """The status with which a camera answers DESCRIBE; None where it does not answer.

    OpenCV does not report whether a camera is away or refuses the password.

    Args:
        host: of the camera.
        port: 554 by default.
        url: `rtsp://…` without user and password.
        user: None for none.
        password: of the user.
        timeout_s: of each answer.
    """
    try:
        with socket.create_connection((host, port), timeout_s) as connection, connection.makefile("rb") as stream:
            status, headers = _describe(connection, stream, url, [])
            if status == 401 and user is not None:
                offers = challenges(headers.get_all("WWW-Authenticate", []))
                answer = authorization(offers, user, password, "DESCRIBE", url)
                if answer is not None:
                    status, _ = _describe(connection, stream, url, [f"Authorization: {answer}"])
            return status
    except (OSError, ValueError, http.client.HTTPException):
        return None


def _describe(
    connection: socket.socket, stream: IO[bytes], url: str, more: list[str]
) -> tuple[int, http.client.HTTPMessage]:
    lines = [f"DESCRIBE {url} RTSP/1.0", f"CSeq: {1 + len(more)}", "Accept: application/sdp", *more]
    connection.sendall(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))
    version, _, rest = stream.readline(_MAX_LINE).decode("latin-1").partition(" ")
    if not version.startswith("RTSP/"):
        raise ValueError("no RTSP")
    headers = http.client.parse_headers(stream)
    stream.read(min(int(headers.get("Content-Length", "0")), _MAX_BODY))
    return int(rest[:3]), headers
