"""Linux's word of new files, so that a folder need not be searched for them."""

from __future__ import annotations

import ctypes
import os
import select
import struct
import sys
from pathlib import Path

_CREATE, _CLOSE_WRITE, _MOVED_TO, _MOVED_FROM = 0x100, 0x8, 0x80, 0x40
_DELETE_SELF, _MOVE_SELF, _ONLY_DIRECTORIES = 0x400, 0x800, 0x0100_0000
_WANTED = _CREATE | _CLOSE_WRITE | _MOVED_TO | _MOVED_FROM | _DELETE_SELF | _MOVE_SELF
_IS_DIRECTORY, _OVERFLOW, _IGNORED, _UNMOUNTED = 0x4000_0000, 0x4000, 0x8000, 0x2000
_NEWS_OF_FOLDERS = _OVERFLOW | _IGNORED | _UNMOUNTED | _DELETE_SELF | _MOVE_SELF | _IS_DIRECTORY
_HEAD = struct.Struct("iIII")
_BUFFER_BYTES = 65_536


class Inotify:
    """Tells which files were written or came by a rename. What other hosts do on a network file system goes untold.

    Raises:
        OSError: not on Linux, or the system has no more watches.
    """

    def __init__(self) -> None:
        if not sys.platform.startswith("linux"):
            raise OSError("inotify is Linux's")
        self._library = ctypes.CDLL(None, use_errno=True)
        self._folders: dict[int, str] = {}
        self._descriptor = self._library.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._descriptor < 0:
            raise OSError(ctypes.get_errno(), "no inotify")

    def add(self, folder: Path, name: str) -> int:
        """Watches a folder, but not its subfolders; again for one that was renamed or replaced.

        Args:
            folder: its path.
            name: what its files' names get in front: "" or "subfolder/".

        Returns:
            A number that is the folder's.

        Raises:
            OSError: it is gone, or the system has no more watches.
        """
        flags = _WANTED | _ONLY_DIRECTORIES
        watch = int(self._library.inotify_add_watch(self._descriptor, os.fsencode(folder), flags))
        if watch < 0:
            raise OSError(ctypes.get_errno(), "no watch")
        self._folders[watch] = name
        return watch

    def keep(self, watches: set[int]) -> None:
        """Lets go of all other folders."""
        for watch in set(self._folders) - watches:
            self._library.inotify_rm_watch(self._descriptor, watch)
            del self._folders[watch]

    def wait(self, wait_s: float) -> None:
        """Until there is news, or `wait_s` is over."""
        waiting = select.poll()
        waiting.register(self._descriptor, select.POLLIN)
        waiting.poll(max(0.0, wait_s) * 1000)

    def news(self) -> tuple[list[str], bool]:
        """What happened since the last call, or the next part of it.

        Returns:
            Names of files that were made, written or moved here; and whether the folders themselves changed, or too
            much happened to be told, so that only a search can say.
        """
        files: list[str] = []
        search = False
        try:
            data = os.read(self._descriptor, _BUFFER_BYTES)
        except BlockingIOError:
            return files, search
        place = 0
        while place < len(data):
            watch, mask, _, length = _HEAD.unpack_from(data, place)
            place += _HEAD.size + length
            name = os.fsdecode(data[place - length : place].rstrip(b"\0"))
            if mask & _NEWS_OF_FOLDERS:
                # What `keep` let go of is no news.
                search = search or bool(mask & _OVERFLOW) or watch in self._folders
            elif watch in self._folders and not mask & _MOVED_FROM:
                files.append(self._folders[watch] + name)
        return files, search

    def close(self) -> None:
        """Lets go of the system's watches."""
        os.close(self._descriptor)
