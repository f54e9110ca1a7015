"""What all users of the network share: addresses that are displayed without secrets, and pauses between tries."""

from __future__ import annotations

import ipaddress
import random
import re
from urllib.parse import SplitResult, quote, unquote, urlsplit

from agridistill.errors import EdgeError

_PARAMETERS = re.compile("[=&]")


class Backoff:
    """Gives the next pause in seconds: `first_s`, then twice as long each time, at most `longest_s`.

    Each pause is shortened at random, at most to the share `least`: many devices must not retry in the same moment.
    """

    def __init__(self, first_s: float, longest_s: float, *, least: float = 0.5) -> None:
        self.first_s, self.longest_s, self._least = min(first_s, longest_s), longest_s, least
        self._next_s = self.first_s

    def pause_s(self) -> float:
        """The pause before the next try, in seconds."""
        pause, self._next_s = self._next_s, min(2 * self._next_s, self.longest_s)
        return pause * random.uniform(self._least, 1.0)

    def skip_to_longest(self) -> None:
        """Makes the next pause the longest one, where a retry will not help soon."""
        self._next_s = self.longest_s

    def reset(self) -> None:
        """Starts again with the first pause, after a success."""
        self._next_s = self.first_s


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
