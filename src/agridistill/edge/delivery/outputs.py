"""Delivers alerts to a webhook or a command. Each has its own outbox, which keeps an alert until it is delivered."""

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
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Annotated, Any, Protocol

from pydantic import Field

from agridistill.edge.network import Backoff, server_of, usable_url
from agridistill.edge.store.outbox import Message, Pending
from agridistill.errors import ConfigError, EdgeError, OutboxError

logger = logging.getLogger(__name__)

Deliver = Callable[[Message, threading.Event], None]
"""A function that delivers one message; raises `DeliveryError` if it cannot, or soon after the event is set."""
_POLL_S = 0.5
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 300.0
_ANSWER_S, _READ_BYTES = 10.0, 1000
_ABOUT_THE_MESSAGE = (400, 413, 415, 422)
"""HTTP status codes that refuse this message; all others mean trouble with the receiver, the URL or the token."""
_REFUSED_IN_A_ROW = 20
_SECRET = re.compile("AGRIDISTILL_.*(_PASSWORD|_TOKEN)")
_PAGE = 100


class DeliveryError(Exception):
    """The webhook or command did not accept a message, for example because it is down; it is sent again later."""


class RefusedMessageError(DeliveryError):
    """The receiver refuses this message because of its content; it may accept others."""


class LoginRefusedError(DeliveryError):
    """The receiver refuses user, password or token; servers lock an account after several wrong ones."""


class Queue(Protocol):
    """Messages that wait for delivery: an `Outbox`, or the kept photos."""

    def pending(self, after: int = 0, limit: int = 100) -> list[Pending]:
        """See `Outbox.pending`."""

    def delivered(self, seqs: Iterable[int]) -> None:
        """See `Outbox.delivered`."""


class Deliverer:
    """Delivers the messages of one outbox to its receiver, in order; repeats a failed one after a pause.

    A message that the receiver refuses because of its content is repeated every five minutes, and later messages are
    delivered meanwhile.

    `name` is the receiver in log lines, without secrets; `what` is a message and several messages there.
    """

    def __init__(
        self, outbox: Queue, deliver: Deliver, name: str, what: tuple[str, str] = ("an alert", "alerts")
    ) -> None:
        self._outbox, self._deliver, self._name, self._what = outbox, deliver, name, what
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
                self._outbox.delivered([waiting.seq])
            except (DeliveryError, OutboxError, OSError) as error:  # OSError: the disk of the kept photos
                if waiting is not None and isinstance(error, RefusedMessageError):
                    self._postpone(waiting.seq, error, quietly=bool(refusals))
                    refusals += 1
                    # If the receiver refuses everything, pause instead of sending it all waiting messages at once.
                    if refusals % _REFUSED_IN_A_ROW:
                        continue
                if not is_away:
                    line = "%s does not accept %s (%s): they wait in the outbox"
                    logger.warning(line, self._name, self._what[1], error)
                    is_away = True
                if isinstance(error, LoginRefusedError):
                    backoff.skip_to_longest()
                stop.wait(backoff.pause_s())
                continue
            if is_away:
                logger.warning("%s accepts %s again", self._name, self._what[1])
            backoff.reset()
            is_away, refusals = False, 0

    def _next(self) -> Pending | None:
        """Returns the first message that was never refused, else the first one that is due again."""
        after, first, again = 0, 0, None
        while waiting := self._outbox.pending(after=after, limit=_PAGE):
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
        line = "%s refuses %s (%s): it is sent again every %g minutes, and later %s are sent meanwhile"
        logger.log(level, line, self._name, self._what[0], error, _LONGEST_PAUSE_S / 60, self._what[1])
        self._refused[seq] = time.monotonic() + _LONGEST_PAUSE_S


@dataclass(frozen=True)
class Webhook:
    """Delivers each message by HTTP POST with a JSON body.

    Raises:
        ConfigError: `url` is not an http(s) address, or contains a user name.
    """

    url: str = field(repr=False)  # the log shows only its host and port, because the rest often holds a token
    token: str | None = field(default=None, repr=False)  # for `Authorization: Bearer`; None sends none

    def __post_init__(self) -> None:
        parts = usable_url(self.url, "http", "https")
        # The message omits the address, which often holds a token.
        if parts is None or "@" in parts.netloc:
            raise ConfigError(
                "a webhook address such as https://host/path, without a user name",
                "another address (hidden, because it may contain a token)",
                "correct url in [webhook], and put a token into token_file",
            )

    @property
    def name(self) -> str:
        """Name for log lines, without secrets."""
        return f"the webhook at {server_of(self.url)}"

    def __call__(self, message: Message, stop: threading.Event) -> None:
        """Sends one message; raises RefusedMessageError if its content is refused, DeliveryError if sending fails."""
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
            kind = RefusedMessageError if error.status in _ABOUT_THE_MESSAGE else DeliveryError
            raise kind(f"HTTP status {error.status}" if error.status else str(error)) from None
        except EdgeError as error:
            raise DeliveryError(str(error)) from None


@dataclass(frozen=True)
class Command:
    """Section [command] of watch.toml: a program that runs once for each alert, with the alert as JSON on stdin.

    Exit code 0 means success; after any other code the program runs again later with the same alert. The environment
    variables `AGRIDISTILL_RULE`, `…_PLOT`, `…_STATE`, `…_CHANGE`, `…_LEVEL` and `…_TEXT` hold fields of the alert.
    """

    words: Annotated[tuple[str, ...], Field(min_length=1)]  # program and arguments; no shell is used
    timeout_s: Annotated[float, Field(gt=0)] = 60.0  # the program is killed after this time

    def __post_init__(self) -> None:
        if not self.words or not self.words[0]:
            raise ConfigError(
                "a program as the first item of command.words",
                f"words = {list(self.words)}",
                'name it, as in words = ["notify-send"]',
            )

    @property
    def name(self) -> str:
        """Name for log lines, without the arguments, which may contain secrets."""
        return f"the command '{self.words[0]}'"

    @property
    def can_be_run(self) -> bool:
        """Whether the program can be found now, at its path or on PATH."""
        return shutil.which(self.words[0]) is not None

    def __call__(self, message: Message, stop: threading.Event) -> None:
        """Runs the program for one message; raises DeliveryError if that fails, takes too long, or `stop` is set."""
        try:
            # Files instead of pipes: a background program that it starts may keep a pipe open.
            with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as errors:
                given.write(message.payload)
                given.seek(0)
                process = subprocess.Popen(  # noqa: S603 - the user's own program
                    list(self.words),
                    env=_environment(message.payload),
                    stdin=given,
                    stdout=subprocess.DEVNULL,
                    stderr=errors,
                    start_new_session=True,
                )
                self._wait(process, stop)
                errors.seek(0)
                text = " ".join(errors.read(_READ_BYTES).decode("utf-8", "replace").split())[:200]
        except OSError as error:
            raise DeliveryError(error.strerror or str(error)) from None
        if process.returncode:
            raise DeliveryError(f"the program ends with exit code {process.returncode}: {text or 'no output'}")

    def _wait(self, process: subprocess.Popen[bytes], stop: threading.Event) -> None:
        deadline = time.monotonic() + self.timeout_s
        while process.poll() is None:
            late = time.monotonic() > deadline
            if late or stop.is_set():
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # with all programs that it has started
                process.wait()
                raise DeliveryError(f"the program runs longer than {self.timeout_s:g} s" if late else "the agent stops")
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_POLL_S)


def _environment(payload: bytes) -> dict[str, str]:
    """Returns the agent's environment without its passwords and tokens, and with the fields of the alert."""
    public = {name: value for name, value in os.environ.items() if not _SECRET.fullmatch(name)}
    alert = json.loads(payload)
    fields = ("rule", "plot", "state", "change", "level", "text")
    return public | {f"AGRIDISTILL_{name.upper()}": str(alert.get(name, "")).replace("\0", "") for name in fields}
