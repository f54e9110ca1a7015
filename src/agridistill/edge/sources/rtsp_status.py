"""Why an RTSP stream does not open: OpenCV does not report whether a camera is away or refuses the password."""

from __future__ import annotations

import http.client
import socket
from typing import IO

from agridistill.edge.sources.http_login import authorization, challenges

_LONGEST_LINE, _LONGEST_BODY = 4096, 65_536


def rtsp_status(host: str, port: int, url: str, user: str | None, password: str, *, timeout_s: float = 5) -> int | None:
    """The status with which a camera answers the description of a stream; None where it does not answer.

    Args:
        host: of the camera.
        port: 554 as a rule.
        url: `rtsp://…` without user and password.
        user: None for none.
        password: of the user.
        timeout_s: for each answer.
    """
    try:
        with socket.create_connection((host, port), timeout_s) as connection, connection.makefile("rb") as stream:
            status, headers = _asked(connection, stream, url, 1, None)
            if status == 401 and user is not None:
                offers = challenges(headers.get_all("WWW-Authenticate", []))
                answer = authorization(offers, user, password, "DESCRIBE", url)
                if answer is not None:
                    status, _ = _asked(connection, stream, url, 2, answer)
            return status
    except (OSError, ValueError, http.client.HTTPException):
        return None


def _asked(
    connection: socket.socket, stream: IO[bytes], url: str, number: int, answer: str | None
) -> tuple[int, http.client.HTTPMessage]:
    lines = [f"DESCRIBE {url} RTSP/1.0", f"CSeq: {number}", "Accept: application/sdp"]
    if answer is not None:
        lines.append(f"Authorization: {answer}")
    connection.sendall(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))
    version, _, rest = stream.readline(_LONGEST_LINE).decode("latin-1").partition(" ")
    if not version.startswith("RTSP/"):
        raise ValueError("no RTSP")
    headers = http.client.parse_headers(stream)
    stream.read(min(int(headers.get("Content-Length", "0")), _LONGEST_BODY))
    return int(rest[:3]), headers
