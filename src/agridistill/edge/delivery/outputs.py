"""Alerts to a webhook or a command: each from its own outbox, until the receiver has taken it."""

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
"""Hands a message over; raises `NotTakenError` where it was not taken, and soon after the event is set."""
_POLL_S = 0.5
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 300.0
_ANSWER_S, _READ_BYTES = 10.0, 1000
_ABOUT_THE_MESSAGE = (400, 413, 415, 422)
"""Status codes about a message; all others are about the receiver, the address or the token."""
_REFUSED_IN_A_ROW = 20
_PAGE = 100


class NotTakenError(Exception):
    """A receiver did not take a message; it will be offered again."""


class RefusedMessageError(NotTakenError):
    """A receiver does not take this message; it may take others."""


class Deliverer:
    """Delivers the messages of an outbox in order; one that is not taken is offered again after a pause.

    A message that is refused for its content lets later ones pass, and is offered again every five minutes.

    Args:
        outbox: of this receiver alone.
        name: of the receiver, for the log, without secrets.
    """

    def __init__(self, outbox: Outbox, deliver: Deliver, name: str) -> None:
        self.outbox, self.name = outbox, name
        self._deliver = deliver
        # Time of the next offer of a refused message, on the monotonic clock, by its place.
        self._refused: dict[int, float] = {}

    def run(self, stop: threading.Event) -> None:
        """Delivers until `stop`; an outage is logged once, and its end once."""
        backoff, is_away, refusals = Backoff(_FIRST_PAUSE_S, _LONGEST_PAUSE_S), False, 0
        while not stop.is_set():
            waiting: Pending | None = None
            try:
                waiting = self._next()
                if waiting is None:
                    # All that was refused was offered once: the receiver itself works.
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
                    # A receiver that refuses everything does not get all that waits at once.
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
        """The first one that was never refused, else the first whose next offer is due."""
        after, first, again = 0, 0, None
        while waiting := self.outbox.pending(after=after, limit=_PAGE):
            first, after = first or waiting[0].seq, waiting[-1].seq
            for pending in waiting:
                if pending.seq not in self._refused:
                    return pending
                if again is None and self._refused[pending.seq] <= time.monotonic():
                    again = pending
        # Forget those that are gone.
        self._refused = {seq: due for seq, due in self._refused.items() if first and seq >= first}
        return again

    def _postpone(self, seq: int, error: RefusedMessageError, *, quietly: bool) -> None:
        level = logging.INFO if quietly or seq in self._refused else logging.WARNING
        line = "%s refuses an alert (%s): later ones pass it, and it is offered again every %g minutes"
        logger.log(level, line, self.name, error, _LONGEST_PAUSE_S / 60)
        self._refused[seq] = time.monotonic() + _LONGEST_PAUSE_S


@dataclass(frozen=True)
class Webhook:
    """POSTs each message as JSON.

    Raises:
        ConfigError: no http(s) address, or one with a user.
    """

    url: str = field(repr=False)  # the log names its host alone: tokens often stand behind it
    token: str | None = field(default=None, repr=False)  # for `Authorization: Bearer`

    def __post_init__(self) -> None:
        try:
            parts = urllib.parse.urlsplit(self.url)
            is_usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            is_usable = False
        # The message omits the address, which often holds a token.
        if not is_usable or "@" in parts.netloc:
            raise ConfigError(
                "a webhook's address http(s)://HOST[:PORT]/… without a user",
                "another one (hidden: it may hold a token)",
                "correct it; a token goes into token_file",
            )

    @property
    def name(self) -> str:
        """For the log."""
        parts = urllib.parse.urlsplit(self.url)
        return f"the webhook at {parts.hostname}" + (f":{parts.port}" if parts.port else "")

    def __call__(self, message: Message, stop: threading.Event) -> None:
        """Hands one message over.

        Raises:
            NotTakenError: no answer, or none of the 2xx; RefusedMessageError for one about this message.
        """
        headers = {"Content-Type": "application/json", "Idempotency-Key": message.event_id}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        # Importing httpx takes time and memory, which an agent without a webhook saves.
        from agridistill.edge.http import HttpClient, HttpError

        # A redirect is not followed: it would turn the POST into a GET, and take the token elsewhere.
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
    """[command]: a program that runs for each alert, with the JSON on its standard input; exit code 0 has taken it.

    Its environment holds `AGRIDISTILL_RULE`, `_PLOT`, `_STATE`, `_CHANGE`, `_LEVEL` and `_TEXT`. A ConfigError is
    raised where no program is named.
    """

    words: Annotated[tuple[str, ...], Field(min_length=1)]  # program and arguments, without a shell
    timeout_s: Annotated[float, Field(gt=0)] = 60.0  # after which it is killed

    def __post_init__(self) -> None:
        if not self.words or not self.words[0]:
            raise ConfigError("a program as the first of command.words", f"{list(self.words)}", "correct it")

    @property
    def name(self) -> str:
        """For the log."""
        return f"the command '{self.words[0]}'"

    @property
    def can_be_run(self) -> bool:
        """Whether there is such a program now."""
        return shutil.which(self.words[0]) is not None

    def __call__(self, message: Message, stop: threading.Event) -> None:
        """Hands one message over.

        Raises:
            NotTakenError: no such program, another exit code, or too slow.
        """
        try:
            # Files: programs that it starts in the background may hold its outputs, and run on.
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
                    os.killpg(process.pid, signal.SIGKILL)  # with all that it has started
                process.wait()
                raise NotTakenError(f"not done after {self.timeout_s:g} s" if late else "the agent ends")
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_POLL_S)


def _without_secrets(environment: Mapping[str, str]) -> dict[str, str]:
    secret = re.compile("AGRIDISTILL_.*(_PASSWORD|_TOKEN)")
    return {name: value for name, value in environment.items() if not secret.fullmatch(name)}


def _variables(payload: bytes) -> Mapping[str, str]:
    document = json.loads(payload)
    keys: Sequence[str] = ("rule", "plot", "state", "change", "level", "text")
    return {f"AGRIDISTILL_{key.upper()}": str(document.get(key, "")).replace("\0", "") for key in keys}
