"""Watches folders for new files with Linux's inotify. docs/decisions/0011-the-field-agent.md: why not watchfiles."""

from __future__ import annotations

import ctypes
import os
import select
import struct
import sys
from pathlib import Path

_CREATE, _CLOSE_WRITE, _MOVED_TO, _MOVED_FROM = 0x100, 0x8, 0x80, 0x40
_DELETE_SELF, _MOVE_SELF, _ONLY_DIRECTORIES = 0x400, 0x800, 0x0100_0000
_WATCHED = _CREATE | _CLOSE_WRITE | _MOVED_TO | _MOVED_FROM | _DELETE_SELF | _MOVE_SELF | _ONLY_DIRECTORIES
_IS_DIRECTORY, _OVERFLOW, _IGNORED, _UNMOUNTED = 0x4000_0000, 0x4000, 0x8000, 0x2000
_FOLDER_EVENTS = _OVERFLOW | _IGNORED | _UNMOUNTED | _DELETE_SELF | _MOVE_SELF | _IS_DIRECTORY
_EVENT = struct.Struct("iIII")
# Types of network file systems, on which inotify does not report changes by other hosts.
_NETWORK = ("nfs", "cifs", "smb", "9p", "fuse.", "afs", "ceph", "virtiofs")


class Inotify:
    """An inotify instance; raises OSError if the system is not Linux, or its limit of instances is reached."""

    def __init__(self) -> None:
        if not sys.platform.startswith("linux"):
            raise OSError("inotify needs Linux")
        self._library = ctypes.CDLL(None, use_errno=True)
        self._folders: dict[int, str] = {}
        self._added = set[int]()
        self._descriptor = self._library.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._descriptor < 0:
            raise OSError(ctypes.get_errno(), "the limit of inotify instances is reached")

    def add(self, folder: Path, prefix: str) -> None:
        """Starts watching a folder, without its subfolders. For a folder that was replaced, call it again.

        `events` puts `prefix`, such as "north/", in front of the names of the folder's files. Raises OSError if the
        folder does not exist, or the system's limit of watches is reached.
        """
        watch = int(self._library.inotify_add_watch(self._descriptor, os.fsencode(folder), _WATCHED))
        if watch < 0:
            raise OSError(ctypes.get_errno(), "the limit of inotify watches is reached")
        self._folders[watch] = prefix
        self._added.add(watch)

    def end_others(self) -> None:
        """Stops watching all folders for which `add` was not called since the last call of this method."""
        for watch in set(self._folders) - self._added:
            self._library.inotify_rm_watch(self._descriptor, watch)
            del self._folders[watch]
        self._added = set()

    def wait(self, wait_s: float) -> None:
        """Waits until there are events, at most `wait_s` seconds."""
        waiting = select.poll()
        waiting.register(self._descriptor, select.POLLIN)
        waiting.poll(max(0.0, wait_s) * 1000)

    def events(self) -> tuple[list[str], bool]:
        """Returns the names of new or changed files since the last call, each with its folder's prefix.

        Also returns whether all folders must be searched: a folder changed, or the system dropped events.
        """
        files: list[str] = []
        search = False
        try:
            data = os.read(self._descriptor, 65_536)
        except BlockingIOError:
            return files, search
        place = 0
        while place < len(data):
            watch, mask, _, length = _EVENT.unpack_from(data, place)
            place += _EVENT.size + length
            name = os.fsdecode(data[place - length : place].rstrip(b"\0"))
            if mask & _FOLDER_EVENTS:
                # A watch that `end_others` ended reports its end as well, which means nothing.
                search = search or bool(mask & _OVERFLOW) or watch in self._folders
            elif watch in self._folders and not mask & _MOVED_FROM:
                files.append(self._folders[watch] + name)
        return files, search

    def close(self) -> None:
        """Stops watching all folders."""
        os.close(self._descriptor)


def is_on_network(folder: Path) -> bool:
    """Returns whether Linux's table of mounts lists the folder's disk as a network file system, such as NFS."""
    try:
        device = folder.stat().st_dev
        wanted = f"{os.major(device)}:{os.minor(device)}"
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except (OSError, AttributeError):
        return False
    mounts = (line.partition(" - ") for line in lines)
    return any(mount.split()[2] == wanted and kind.startswith(_NETWORK) for mount, _, kind in mounts)
