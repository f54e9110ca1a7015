"""Helpers for all network code: URLs without their secrets, and pauses between retries."""

from __future__ import annotations

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


def split_url(url: str, *, example: str = "rtsp://host/stream") -> SplitResult:
    """Splits a URL into its parts; `example` is a correct URL for the error message.

    Raises:
        EdgeError: the URL has no host or a wrong port. The message omits the URL, which may contain a password.
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
            "correct the address; write special characters of a password as %XX, such as %40 for @",
        )
    return parts


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
