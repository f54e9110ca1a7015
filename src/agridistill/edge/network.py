"""Helpers for all network code: URLs without their secrets, and pauses between retries."""

from __future__ import annotations

import ipaddress
import random
import re
from urllib.parse import SplitResult, quote, unquote, urlsplit

from agridistill.errors import EdgeError

_PARAMETERS = re.compile("[=&]")


class Backoff:
    """Computes the pauses between retries: first `first_s`, then twice as long each time, up to `longest_s`.

    Each pause is multiplied by a random factor from `least` to 1, so that many devices do not retry at the same moment.
    """

    def __init__(self, first_s: float, longest_s: float, *, least: float = 0.5) -> None:
        self.first_s, self.longest_s, self._least = min(first_s, longest_s), longest_s, least
        self._next_s = self.first_s

    def pause_s(self) -> float:
        """Returns the pause before the next try, in seconds, and doubles the one after it."""
        pause, self._next_s = self._next_s, min(2 * self._next_s, self.longest_s)
        return pause * random.uniform(self._least, 1.0)

    def skip_to_longest(self) -> None:
        """Makes the next pause the longest one; for failures that an early retry cannot cure."""
        self._next_s = self.longest_s

    def reset(self) -> None:
        """Makes the next pause the first one again; call it after a success."""
        self._next_s = self.first_s


def split_url(url: str, *, example: str = "rtsp://host/stream") -> SplitResult:
    """Splits a URL into its parts; `example` is a valid URL for the error message.

    Raises:
        EdgeError: the URL has no host or is malformed. The message omits the URL, which may hold a password.
    """
    try:
        parts = urlsplit(url)
        usable = bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise EdgeError(
            f"an address such as {example}",
            "an address without a host or with a wrong port",
            "correct it; write special characters of a password as %XX",
        )
    return parts


def without_user(parts: SplitResult) -> SplitResult:
    """Removes user and password from a URL."""
    return parts._replace(netloc=parts.netloc.rpartition("@")[2])


def with_user(parts: SplitResult, user: str | None, password: str) -> str:
    """Puts user and password into a URL, as OpenCV needs it; returns the URL unchanged if `user` is None."""
    if user is None:
        return parts.geturl()
    login = f"{quote(user, safe='')}:{quote(password, safe='')}"
    return parts._replace(netloc=f"{login}@{without_user(parts).netloc}").geturl()


def public_name(parts: SplitResult) -> str:
    """Makes a URL safe to display: without user, password, query, fragment, and a path that contains parameters.

    Example:
        >>> public_name(urlsplit("http://me:secret@camera:8080/snap.jpg?token=secret"))
        'http://camera:8080/snap.jpg'
        >>> public_name(urlsplit("rtsp://10.0.0.5/user=admin&password=secret&channel=1"))
        'rtsp://10.0.0.5/…'
    """
    # An @ in the path means that the password contains a slash: the path then starts with a part of the password.
    path = "" if "@" in parts.path else "/…" if _PARAMETERS.search(unquote(parts.path)) else parts.path
    return f"{parts.scheme}://{without_user(parts).netloc}{path}"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a host: a loopback address or "localhost", but no other name."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
