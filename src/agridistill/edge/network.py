"""For all network code: URLs and their public parts, the login by Basic, and pauses between retries."""

from __future__ import annotations

import base64
import random
import re
from urllib.parse import SplitResult, quote, unquote, urlsplit

from agridistill.errors import EdgeError

_PARAMETERS = re.compile("[=&]")


class Backoff:
    """Pauses between retries, in seconds: first `first_s`, then doubled each time, up to `longest_s`.

    Each is multiplied by a random factor between `least` and 1, so that many devices do not retry at the same moment.
    """

    def __init__(self, first_s: float, longest_s: float, *, least: float = 0.5) -> None:
        self.first_s, self.longest_s, self._least = min(first_s, longest_s), longest_s, least
        self._next_s = self.first_s

    def pause_s(self) -> float:
        """Returns the pause before the next retry in seconds, and doubles the one after it."""
        pause, self._next_s = self._next_s, min(2 * self._next_s, self.longest_s)
        return pause * random.uniform(self._least, 1.0)

    def skip_to_longest(self) -> None:
        """Makes the next pause the longest one, for failures that a retry rarely cures, such as a wrong password."""
        self._next_s = self.longest_s

    def reset(self) -> None:
        """Starts again with the shortest pause; call it after a success."""
        self._next_s = self.first_s


def usable_url(url: str, *schemes: str) -> SplitResult | None:
    """Splits a URL; None if it has no host, a wrong port or none of `schemes` (none given: any scheme)."""
    try:
        parts = urlsplit(url)
        is_usable = bool(parts.hostname) and parts.port != 0 and (not schemes or parts.scheme in schemes)
    except ValueError:
        return None
    return parts if is_usable else None


def split_url(url: str, *, example: str = "rtsp://host/stream") -> SplitResult:
    """Splits a URL; raises an EdgeError without it, as it may hold a password, and with the correct `example`."""
    parts = usable_url(url)
    if parts is None:
        raise EdgeError(
            f"an address such as {example}",
            "an address without a host or with a wrong port",
            "correct the address; write special characters of a password as %XX, such as %40 for @",
        )
    return parts


def server_of(url: str) -> str:
    """Returns `HOST` or `HOST:PORT` of a URL, for log lines; the rest of the URL may contain secrets."""
    parts = urlsplit(url)
    return f"{parts.hostname}:{parts.port}" if parts.port else str(parts.hostname)


def basic_login(user: str, password: str) -> str:
    """Returns the header `Authorization` for Basic authentication (RFC 7617)."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def without_user(parts: SplitResult) -> SplitResult:
    """Returns the parts of a URL without user and password."""
    return parts._replace(netloc=parts.netloc.rpartition("@")[2])


def with_user(parts: SplitResult, user: str | None, password: str) -> str:
    """Returns a URL with user and password in it, as OpenCV needs it; unchanged if `user` is None."""
    if user is None:
        return parts.geturl()
    login = f"{quote(user, safe='')}:{quote(password, safe='')}"
    return parts._replace(netloc=f"{login}@{without_user(parts).netloc}").geturl()


def public_name(parts: SplitResult) -> str:
    """Returns a URL without parts that may be secret: user, password, query, fragment, and a path with parameters.

    Example:
        >>> public_name(urlsplit("http://me:secret@camera:8080/snap.jpg?token=secret"))
        'http://camera:8080/snap.jpg'
        >>> public_name(urlsplit("rtsp://10.0.0.5/user=admin&password=secret&channel=1"))
        'rtsp://10.0.0.5/…'
    """
    # An @ in the path means that the password contains a slash: the path then starts with a part of the password.
    path = "" if "@" in parts.path else "/…" if _PARAMETERS.search(unquote(parts.path)) else parts.path
    return f"{parts.scheme}://{without_user(parts).netloc}{path}"
