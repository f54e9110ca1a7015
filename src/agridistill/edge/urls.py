"""Addresses of cameras, releases and receivers: split, and displayed without secrets."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import SplitResult, quote, unquote, urlsplit

from agridistill.errors import EdgeError

_PARAMETERS = re.compile("[=&]")


def split_url(url: str, *, example: str = "rtsp://host/stream") -> SplitResult:
    """Splits an address.

    Raises:
        EdgeError: no host, or a malformed address. The message omits the address, which may hold a password.
    """
    try:
        parts = urlsplit(url)
        usable = bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise EdgeError(
            f"an address such as {example}",
            "one without a host or with a wrong port",
            "correct it; write special signs of a password as %XX",
        )
    return parts


def without_user(parts: SplitResult) -> SplitResult:
    """The address without user and password."""
    return parts._replace(netloc=parts.netloc.rpartition("@")[2])


def with_user(parts: SplitResult, user: str | None, password: str) -> str:
    """The address with this user and password inside, as a stream's reader needs it; as it is without a user."""
    if user is None:
        return parts.geturl()
    login = f"{quote(user, safe='')}:{quote(password, safe='')}"
    return parts._replace(netloc=f"{login}@{without_user(parts).netloc}").geturl()


def public_name(parts: SplitResult) -> str:
    """The address without user, password, query and fragment, and without a path that holds parameters.

    Example:
        >>> public_name(urlsplit("http://me:secret@camera:8080/snap.jpg?token=secret"))
        'http://camera:8080/snap.jpg'
        >>> public_name(urlsplit("rtsp://10.0.0.5/user=admin&password=secret&channel=1"))
        'rtsp://10.0.0.5/…'
    """
    # An @ in the path is the rest of a password that holds a slash.
    path = "" if "@" in parts.path else "/…" if _PARAMETERS.search(unquote(parts.path)) else parts.path
    return f"{parts.scheme}://{without_user(parts).netloc}{path}"


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address. A name may come to mean another one, except localhost."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
