"""Delivers alerts to a webhook or a command. Each has an outbox, which keeps an alert until it was taken."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import Field

from agridistill.edge.network import Backoff
from agridistill.edge.store.outbox import Message, Outbox, Pending
from agridistill.errors import ConfigError, EdgeError, OutboxError

logger = logging.getLogger(__name__)

Deliver = Callable[[Message, threading.Event], None]
"""A function that delivers a message; raises `NotTakenError` if it was not taken, or soon after the event is set."""
_POLL_S = 0.5
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 300.0
_ANSWER_S, _READ_BYTES = 10.0, 1000
_ABOUT_THE_MESSAGE = (400, 413, 415, 422)
"""HTTP status codes that refuse this message; all others mean trouble with the receiver, the URL or the token."""
_REFUSED_IN_A_ROW = 20
_PAGE = 100


class NotTakenError(Exception):
    """A receiver did not take a message; the message will be sent again later."""


class RefusedMessageError(NotTakenError):
    """A receiver refuses the content of this message; it may take others."""


class Deliverer:
    """Delivers the messages of an outbox in order; a message that is not taken is sent again after a pause.

    A message that is refused for its content does not delay later ones, and is sent again every five minutes.

    Args:
        outbox: the outbox that holds only this receiver's messages.
        deliver: sends one message to the receiver.
        name: the receiver's name for the log, without secrets.
    """

    def __init__(self, outbox: Outbox, deliver: Deliver, name: str) -> None:
        self.outbox, self.name = outbox, name
        self._deliver = deliver
        # When a refused message is sent again, in monotonic seconds, by `Pending.seq`.
        self._refused: dict[int, float] = {}

    def run(self, stop: threading.Event) -> None:
        """Delivers messages until `stop` is set; logs the start and the end of an outage once each."""
        backoff, is_away, refusals = Backoff(_FIRST_PAUSE_S, _LONGEST_PAUSE_S), False, 0
        while not stop.is_set():
            waiting: Pending | None = None
            try:
                waiting = self._next()
                if waiting is None:
                    # Every refused message was sent once: the receiver itself works.
                    backoff.reset()
                    refusals = 0
                    stop.wait(_POLL_S)
                    continue
                self._deliver(waiting.message, stop)
                self._refused.pop(waiting.seq, None)
                self.outbox.delivered([waiting.seq])
            except (NotTakenError, OutboxError) as error:
                if waiting is not None and isinstance(error, RefusedMessageError):
                    self._postpone(waiting.seq, error, quietly=bool(refusals))
                    refusals += 1
                    # If the receiver refuses everything, pause instead of sending it all waiting messages at once.
                    if refusals % _REFUSED_IN_A_ROW:
                        continue
                if not is_away:
                    logger.warning("%s does not take alerts (%s): they wait in the outbox", self.name, error)
                    is_away = True
                stop.wait(backoff.pause_s())
                continue
            if is_away:
                logger.warning("%s takes alerts again", self.name)
            backoff.reset()
            is_away, refusals = False, 0

    def _next(self) -> Pending | None:
        """Returns the first message that was never refused, else the first one that is due again, else None."""
        after, first, again = 0, 0, None
        while waiting := self.outbox.pending(after=after, limit=_PAGE):
            first, after = first or waiting[0].seq, waiting[-1].seq
            for pending in waiting:
                if pending.seq not in self._refused:
                    return pending
                if again is None and self._refused[pending.seq] <= time.monotonic():
                    again = pending
        # Forget refused messages that have left the outbox.
        self._refused = {seq: due for seq, due in self._refused.items() if first and seq >= first}
        return again

    def _postpone(self, seq: int, error: RefusedMessageError, *, quietly: bool) -> None:
        level = logging.INFO if quietly or seq in self._refused else logging.WARNING
        line = "%s refuses an alert (%s): it is sent again every %g minutes, and does not delay later alerts"
        logger.log(level, line, self.name, error, _LONGEST_PAUSE_S / 60)
        self._refused[seq] = time.monotonic() + _LONGEST_PAUSE_S


@dataclass(frozen=True)
class Webhook:
    """Delivers each message as JSON by HTTP POST.

    Raises:
        ConfigError: `url` is no http(s) address, or contains a user name.
    """

    url: str = field(repr=False)  # the log shows only its host and port, because the rest often holds a token
    token: str | None = field(default=None, repr=False)  # for `Authorization: Bearer`; None sends none

    def __post_init__(self) -> None:
        try:
            parts = urllib.parse.urlsplit(self.url)
            is_usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            is_usable = False
        # The message omits the address, which often holds a token.
        if not is_usable or "@" in parts.netloc:
            raise ConfigError(
                "a webhook's url http(s)://HOST[:PORT]/… without a user name",
                "another text (not shown, because it may hold a token)",
                "correct [webhook] url; a token belongs into token_file",
            )

    @property
    def name(self) -> str:
        """Name for the log, with host and port."""
        parts = urllib.parse.urlsplit(self.url)
        return f"the webhook at {parts.hostname}" + (f":{parts.port}" if parts.port else "")

    def __call__(self, message: Message, stop: threading.Event) -> None:
        """Sends one message; `stop` is not used, because the request ends after 10 s.

        Raises:
            RefusedMessageError: the status says that the content of this message is refused.
            NotTakenError: there is no answer, or its status is not 2xx.
        """
        headers = {"Content-Type": "application/json", "Idempotency-Key": message.event_id}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        # Importing httpx takes time and memory, which an agent without a webhook saves.
        from agridistill.edge.http import HttpClient, HttpError

        # Redirects are not followed: they would turn the POST into a GET, and send the token to another host.
        request: dict[str, Any] = {"method": "POST", "headers": headers, "content": message.payload}
        try:
            with HttpClient().whole(self.url, _ANSWER_S, **request) as answer:
                next(answer.iter_raw(_READ_BYTES), b"")
        except HttpError as error:
            kind = RefusedMessageError if error.status in _ABOUT_THE_MESSAGE else NotTakenError
            raise kind(f"it answers {error.status}" if error.status else str(error)) from None
        except EdgeError as error:
            raise NotTakenError(str(error)) from None


@dataclass(frozen=True)
class Command:
    """Section [command]: a program that runs for each alert, and gets the alert as JSON on standard input.

    Exit code 0 means that it has taken the alert. Its environment holds `AGRIDISTILL_RULE`, `AGRIDISTILL_PLOT`, and
    likewise `_STATE`, `_CHANGE`, `_LEVEL` and `_TEXT`. Raises ConfigError if no program is named.
    """

    words: Annotated[tuple[str, ...], Field(min_length=1)]  # program and arguments; no shell is used
    timeout_s: Annotated[float, Field(gt=0)] = 60.0  # the program is killed after so many seconds

    def __post_init__(self) -> None:
        if not self.words or not self.words[0]:
            raise ConfigError("a program as the first of command.words", f"{list(self.words)}", "correct it")

    @property
    def name(self) -> str:
        """Name for the log, with the program."""
        return f"the command '{self.words[0]}'"

    @property
    def can_be_run(self) -> bool:
        """Whether the program exists now."""
        return shutil.which(self.words[0]) is not None

    def __call__(self, message: Message, stop: threading.Event) -> None:
        """Runs the program for one message; it is killed after `timeout_s`, or when `stop` is set.

        Raises:
            NotTakenError: the program cannot be started, was killed, or its exit code is not 0.
        """
        try:
            # Files instead of pipes: a background program that it starts may keep a pipe open.
            with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as errors:
                given.write(message.payload)
                given.seek(0)
                process = subprocess.Popen(  # noqa: S603 - the user's own program
                    list(self.words),
                    env={**_without_secrets(os.environ), **_variables(message.payload)},
                    stdin=given,
                    stdout=subprocess.DEVNULL,
                    stderr=errors,
                    start_new_session=True,
                )
                self._wait(process, stop)
                errors.seek(0)
                text = " ".join(errors.read(_READ_BYTES).decode("utf-8", "replace").split())[:200]
        except OSError as error:
            raise NotTakenError(error.strerror or str(error)) from None
        if process.returncode:
            raise NotTakenError(f"exit code {process.returncode}" + (f": {text}" if text else ""))

    def _wait(self, process: subprocess.Popen[bytes], stop: threading.Event) -> None:
        deadline = time.monotonic() + self.timeout_s
        while process.poll() is None:
            late = time.monotonic() > deadline
            if late or stop.is_set():
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # with all programs that it has started
                process.wait()
                raise NotTakenError(f"it did not end within {self.timeout_s:g} s" if late else "the agent ends")
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_POLL_S)


def _without_secrets(environment: Mapping[str, str]) -> dict[str, str]:
    secret = re.compile("AGRIDISTILL_.*(_PASSWORD|_TOKEN)")
    return {name: value for name, value in environment.items() if not secret.fullmatch(name)}


def _variables(payload: bytes) -> Mapping[str, str]:
    document = json.loads(payload)
    keys: Sequence[str] = ("rule", "plot", "state", "change", "level", "text")
    return {f"AGRIDISTILL_{key.upper()}": str(document.get(key, "")).replace("\0", "") for key in keys}
