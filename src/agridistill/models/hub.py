"""Asking the model hub for weights without a minute of retries where it cannot be reached."""

from __future__ import annotations

import logging
import socket
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants

_PATIENCE_S = 5.0


@contextmanager
def hub_access() -> Iterator[None]:
    """Within it, weights come from the hub, or where it cannot be reached from the local cache alone.

    The hub's client would try five times with growing pauses, and warn each time.
    """
    before = constants.HF_HUB_OFFLINE
    client = logging.getLogger("huggingface_hub")
    level = client.level
    client.setLevel(logging.ERROR)
    constants.HF_HUB_OFFLINE = before or not _reachable(constants.ENDPOINT)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
        client.setLevel(level)


def _reachable(endpoint: str) -> bool:
    if urllib.request.getproxies():
        # Behind a proxy a direct connection says nothing; the client finds out by itself.
        return True
    parts = urllib.parse.urlsplit(endpoint)
    try:
        with socket.create_connection((parts.hostname or "", parts.port or 443), timeout=_PATIENCE_S):
            return True
    except OSError:
        return False
