"""Tells systemd that the agent works, where systemd started it (`sd_notify`)."""

from __future__ import annotations

import contextlib
import os
import socket


def notify(message: str) -> None:
    """Sends "READY=1", "WATCHDOG=1", "STOPPING=1" or "STATUS=…"; nothing happens without systemd."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address or not hasattr(socket, "AF_UNIX"):
        return
    # A leading @ stands for an abstract address.
    name = "\0" + address[1:] if address.startswith("@") else address
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto(message.encode(), name)
