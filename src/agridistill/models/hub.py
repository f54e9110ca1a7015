"""Asking the model hub for weights without a minute of retries where it cannot be reached."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants, get_session

PATIENCE_S = 5.0
"""Seconds in which the hub has to give its first answer; a download that has begun may take longer."""

# A hub that gave no answer is not asked again for this long: choosing a model asks, and then creating it.
_REMEMBERED_S = 60.0
_PROXY_WANTS_PASSWORD, _SERVER_ERRORS = 407, 500

_silent_since: dict[str, float] = {}


@contextmanager
def hub_access(*, patience_s: float = PATIENCE_S) -> Iterator[None]:
    """Within it, weights come from the hub, or where it cannot be reached from the local cache alone.

    The hub's client would try five times with growing pauses, for each name that a file may have, and warn each time:
    47 s where a proxy refuses, minutes where it never answers.

    Args:
        patience_s: seconds until the hub counts as unreachable: name lookup, proxy, connection and answer in all.
    """
    before = constants.HF_HUB_OFFLINE
    timeout = socket.getdefaulttimeout()
    client = logging.getLogger("huggingface_hub")
    level = client.level
    client.setLevel(logging.ERROR)
    constants.HF_HUB_OFFLINE = before or not hub_reachable(patience_s=patience_s)
    # Some of timm's weights lie on plain servers, which torch would wait for without an end.
    socket.setdefaulttimeout(patience_s)
    try:
        yield
    finally:
        socket.setdefaulttimeout(timeout)
        constants.HF_HUB_OFFLINE = before
        client.setLevel(level)


def hub_reachable(*, patience_s: float = PATIENCE_S) -> bool:
    """Whether the hub answers a request now, by the client's own way: its proxies, certificates and address.

    Args:
        patience_s: seconds to wait for the answer.
    """
    if constants.HF_HUB_OFFLINE:
        return False
    endpoint = constants.ENDPOINT
    asked = _silent_since.get(endpoint)
    if asked is not None and time.monotonic() - asked < _REMEMBERED_S:
        return False
    answers: list[bool] = []
    # In a thread, because a name lookup takes no time limit.
    asking = threading.Thread(target=lambda: answers.append(_answers(endpoint, patience_s)), daemon=True)
    asking.start()
    asking.join(patience_s)
    if answers == [True]:
        return True
    _silent_since[endpoint] = time.monotonic()
    return False


def _answers(endpoint: str, patience_s: float) -> bool:
    try:
        status = get_session().head(endpoint, timeout=patience_s).status_code
    except Exception:
        # The client raises many types, by version and by transport, for one fact.
        return False
    return status < _SERVER_ERRORS and status != _PROXY_WANTS_PASSWORD
