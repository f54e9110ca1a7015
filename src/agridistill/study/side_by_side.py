"""Runs of a study in processes of their own, as many at a time as there are devices."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from agridistill.errors import RunError
from agridistill.study.job import Order

_POLL_S = 0.5
# For the checkpoint that is being written; longer on slow disks than anyone waits.
_GOODBYE_S = 30.0


@dataclass(frozen=True)
class Failure:
    """A run that ended without a result.

    Attributes:
        name: of the run.
        reason: the last line of its log.
        log: the whole of it.
    """

    name: str
    reason: str
    log: Path


@dataclass
class _Running:
    name: str
    slot: int
    process: subprocess.Popen[str]
    log: IO[str]
    log_path: Path
    logged_before: int = field(default=0)


def run_side_by_side(
    orders: Iterable[tuple[str, Order]],
    *,
    slots: int,
    environment: Callable[[int], Mapping[str, str]],
    logs: Path,
    on_tick: Callable[[], None],
    on_end: Callable[[str], None],
    on_warning: Callable[[str], None] = lambda line: None,
) -> list[Failure]:
    """Carries out orders, so many at a time; one that fails does not stop the others.

    Whatever ends this call, an interrupt too, ends the processes: each leaves a run that can go on.

    Args:
        orders: names and orders, begun in this order.
        slots: processes at a time.
        environment: what a process in slot 0, 1, … finds beside our own environment variables.
        logs: folder of one log a run, added to.
        on_tick: called about twice a second.
        on_end: called with the name of each run that has finished.
        on_warning: called with each line that begins with "warning: " in a log.

    Returns:
        The runs that failed.
    """
    waiting = list(orders)
    running: list[_Running] = []
    failures: list[Failure] = []
    try:
        while waiting or running:
            free = sorted(set(range(slots)) - {one.slot for one in running})
            while waiting and free:
                running.append(_start(*waiting.pop(0), free.pop(0), environment, logs))
            for one in [one for one in running if one.process.poll() is not None]:
                running.remove(one)
                lines = _said(one)
                for line in lines:
                    if line.startswith("warning: "):
                        on_warning(line)
                failure = _ended(one, lines)
                if failure is None:
                    on_end(one.name)
                else:
                    failures.append(failure)
            on_tick()
            if running:
                time.sleep(_POLL_S)
    finally:
        _stop(running)
    return failures


def _start(name: str, order: Order, slot: int, environment: Callable[[int], Mapping[str, str]], logs: Path) -> _Running:
    path = logs / f"{name.replace('/', '-')}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    log = path.open("a", encoding="utf-8")
    before = log.tell()
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "agridistill.study.job"],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | dict(environment(slot)),
            # A Ctrl-C in the terminal is for the study, which stops its runs in order.
            start_new_session=True,
        )
    except OSError:
        log.close()
        raise
    with contextlib.suppress(BrokenPipeError):
        # One that has ended already says why in its log.
        assert process.stdin is not None  # noqa: S101 - a pipe
        process.stdin.write(order.to_json() + "\n")
        process.stdin.flush()
    return _Running(name, slot, process, log, path, before)


def _said(one: _Running) -> list[str]:
    """The lines of the log that this process wrote."""
    _let_go(one)
    with one.log_path.open("rb") as log:
        log.seek(one.logged_before)
        text = log.read().decode("utf-8", "replace")
    return [line.strip() for line in text.splitlines() if line.strip()]


def _ended(one: _Running, lines: list[str]) -> Failure | None:
    if one.process.returncode == 0:
        return None
    told = [line for line in lines if line.startswith("error: ")] or lines
    reason = told[-1].removeprefix("error: ") if told else f"nothing said, exit code {one.process.returncode}"
    return Failure(one.name, reason[:300], one.log_path)


def _stop(running: list[_Running]) -> None:
    for one in running:
        # The end of its stdin is the sign to stop.
        with contextlib.suppress(OSError):
            assert one.process.stdin is not None  # noqa: S101 - a pipe
            one.process.stdin.close()
    deadline = time.monotonic() + _GOODBYE_S
    for one in running:
        try:
            one.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            one.process.kill()
            one.process.wait()
        _let_go(one)


def _let_go(one: _Running) -> None:
    with contextlib.suppress(OSError):
        assert one.process.stdin is not None  # noqa: S101 - a pipe
        one.process.stdin.close()
    one.log.close()


def failed(failures: list[Failure], total: int) -> RunError:
    """One error for all runs that failed.

    Args:
        failures: at least one.
        total: runs of the study.
    """
    first = failures[0]
    return RunError(
        "every run of the study to finish",
        f"{len(failures)} of {total} failed, the first '{first.name}' ({first.reason})",
        f"see '{first.log}', mend it and give the same command again: finished runs are kept",
    )
