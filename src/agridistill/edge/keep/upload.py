"""Uploads kept photos by HTTP PUT: WebDAV, nginx, and object stores through addresses that allow a PUT."""

from __future__ import annotations

import json
import re
import threading
import urllib.parse
from pathlib import Path
from typing import TYPE_CHECKING

from agridistill.edge.delivery.outputs import DeliveryError, LoginRefusedError, RefusedMessageError
from agridistill.edge.keep.choice import NAME
from agridistill.edge.keep.store import PHOTO, SIDECAR, KeptPhotos
from agridistill.edge.network import server_of
from agridistill.edge.store.outbox import Message
from agridistill.errors import EdgeError

if TYPE_CHECKING:
    from agridistill.edge.http import HttpClient

# A mobile network with a poor signal transfers 10 kB in a second.
_ANSWER_S, _SLOWEST_BYTES_A_S = 30.0, 10_000
# A network with a login page answers in place of the server until someone logs in.
_OK, _PAGE_BYTES = 200, 4096
_BEFORE_PAGE = rb"(\xef\xbb\xbf|\s|<\?[^>]*>|<!--.{,500}?-->){,20}"
_PAGE = re.compile(_BEFORE_PAGE + rb"<(!doctype\s+html|html|head|body|meta|title|script)\b", re.I | re.S)
_LOGIN, _NO_FOLDER, _OF_THE_PHOTO = (401, 403), (404, 409), (400, 413, 415, 422)
_REMEDIES = {
    401: "check user, password_file and token_file in [keep]",
    403: "check user, password_file and token_file in [keep], and the permissions on the server",
    404: "check upload in [keep]",
    405: "the address takes no PUT: check upload in [keep]",
    409: "the folder does not exist and cannot be created: check upload in [keep]",
    413: "raise the server's limit, in nginx client_max_body_size",
    507: "the server's disk is full",
}


class Upload:
    """Delivers a kept photo: first the photo, then its sidecar, which shows that the photo is complete.

    A folder `https://host/photos/` gets `DAY/EVENT_ID.jpg`, and missing collections are created by MKCOL. In an address
    with `{name}`, this is replaced by the file's name. Redirects are followed only if they repeat the PUT (307, 308): a
    service can so answer with a presigned address of an object store. Another host never gets the `login`, the value of
    the header `Authorization`.
    """

    def __init__(self, photos: KeptPhotos, address: str, login: str | None = None, ca_file: Path | None = None) -> None:
        self._photos, self._ca_file = photos, ca_file
        self._client: HttpClient | None = None
        self._address = address if NAME in address else f"{address.rstrip('/')}/"
        self._headers = {} if login is None else {"Authorization": login}

    @property
    def name(self) -> str:
        """Name for log lines, without secrets."""
        return f"the upload server {server_of(self._address)}"

    def __call__(self, message: Message, stop: threading.Event) -> None:
        """Uploads the photo with the sidecar `message.payload`; does nothing if the photo was removed meanwhile.

        Raises RefusedMessageError or LoginRefusedError if the server refuses this photo or the login, and DeliveryError
        if there is no answer, another status than 2xx, or a web page.
        """
        try:
            content = self._photos.content(message.event_id)
        except OSError as error:
            raise DeliveryError(f"the photo cannot be read: {error.strerror}") from None
        if content is None:
            self._photos.forget_missing()
            return
        day = str(json.loads(message.payload)["time"])[:10]
        self._put(f"{message.event_id}{PHOTO}", day, content, "image/jpeg")
        self._put(f"{message.event_id}{SIDECAR}", day, message.payload, "application/json")

    def _put(self, name: str, day: str, content: bytes, kind: str) -> None:
        if NAME in self._address:
            self._require(self._send("PUT", self._address.replace(NAME, name), content, kind))
            return
        url = f"{self._address}{day}/{name}"
        status = self._send("PUT", url, content, kind)
        if status in _NO_FOLDER:
            self._create(f"{self._address}{day}/")
            status = self._send("PUT", url, content, kind)
        self._require(status)

    def _create(self, folder: str) -> None:
        """Creates a collection and those above it that are missing; if that fails, the next PUT reports it."""
        parent = f"{folder.rstrip('/').rpartition('/')[0]}/"
        if self._send("MKCOL", folder) in _NO_FOLDER and urllib.parse.urlsplit(parent).path != "/":
            self._create(parent)
            self._send("MKCOL", folder)

    def _send(self, method: str, url: str, content: bytes = b"", kind: str = "") -> int:
        """Sends a request and returns the status; raises DeliveryError if there is none."""
        # Importing httpx takes time and memory, which an agent without uploads saves.
        from agridistill.edge.http import HttpClient, HttpError, tls_context

        headers = self._headers | ({"Content-Type": kind} if kind else {})
        limit_s = _ANSWER_S + len(content) / _SLOWEST_BYTES_A_S
        try:
            if self._client is None:
                self._client = HttpClient(context=tls_context(self._ca_file), follow_redirects=True)
            with self._client.whole(url, limit_s, method=method, headers=headers, content=content) as answer:
                if answer.request.method != method:
                    first = answer.history[0].status_code
                    raise DeliveryError(f"HTTP status {first}, a redirect that drops the photo: check upload in [keep]")
                if answer.status_code == _OK and _PAGE.match(next(answer.iter_bytes(_PAGE_BYTES), b"")):
                    raise DeliveryError(
                        "a web page instead of an answer: log in to the network, or check upload in [keep]"
                    )
                return answer.status_code
        except HttpError as error:
            if error.status is None:
                raise DeliveryError(str(error)) from None
            return error.status
        except EdgeError as error:
            raise DeliveryError(str(error)) from None

    @staticmethod
    def _require(status: int) -> None:
        if 200 <= status < 300:
            return
        remedy = f": {_REMEDIES[status]}" if status in _REMEDIES else ""
        error = RefusedMessageError if status in _OF_THE_PHOTO else DeliveryError
        raise (LoginRefusedError if status in _LOGIN else error)(f"HTTP status {status}{remedy}")
