"""Trains the runs of a study in separate processes: `python -m agridistill.study.workers` trains the run on its stdin.

`multiprocessing` is not used, because its workers import the caller's script again, and a killed worker ends its pool.
A worker stops as after Ctrl-C when its stdin ends, so it does not outlive its parent; a later study resumes its run.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from agridistill.data.labels import FOLDERS, Layout
from agridistill.errors import AgriDistillError, RunError
from agridistill.training.run import distill, train
from agridistill.training.run_folder import RunFolder
from agridistill.training.settings import DistillConfig, TrainConfig

_TICK_S = 0.5
# Seconds that a run gets to write its last checkpoint before it is killed.
_STOP_S = 30.0
_DONE, _FAILED, _INTERRUPTED = 0, 2, 130


class Job(Protocol):
    """Work for a process of its own, which gets it by pickle."""

    def run(self) -> None:
        """Does the work; raises an AgriDistillError or an OSError."""


@dataclass(frozen=True)
class Order:
    """The arguments of `distill` (with a `DistillConfig`) or `train` (with a `TrainConfig`) for one run."""

    data: Path
    out: Path
    config: DistillConfig | TrainConfig
    teacher: Path | None = None
    split_file: Path | None = None
    layout: Layout = FOLDERS

    def run(self) -> None:
        """Trains the run, or resumes it if it is unfinished; raises the errors of `distill` and `train`."""
        resume = RunFolder(self.out).recipe.exists()
        split_file = None if resume else self.split_file
        if isinstance(self.config, TrainConfig):
            train(self.data, self.out, self.config, layout=self.layout, split_file=split_file, resume=resume)
        else:
            own = (self.data, self.teacher, self.out, self.config)
            distill(*own, layout=self.layout, split_file=split_file, resume=resume)


def run_side_by_side(
    orders: Mapping[str, Job],
    logs: Path,
    *,
    slots: int = 1,
    total: int,
    on_tick: Callable[[], None] = lambda: None,
    on_end: Callable[[str], None] = lambda name: None,
    on_warning: Callable[[str], None] = lambda line: None,
) -> None:
    """Trains each run in a process of its own, up to `slots` at the same time. A failed run does not stop the others.

    An exception in this process, such as Ctrl-C, stops all processes; their runs can be resumed. `logs` gets a log file
    for each run. `total`, the number of runs of the study, is for the error. `on_tick` is called twice a second,
    `on_end` with the name of each finished run, `on_warning` with each line "warning: TEXT" that a run has logged.

    Raises:
        RunError: at least one run failed; the message names the first one and its log.
    """
    logs.mkdir(parents=True, exist_ok=True)
    waiting, free = list(orders.items()), list(range(slots))
    running: list[_Run] = []
    failures: list[tuple[_Run, str]] = []
    try:
        while waiting or running:
            while waiting and free:
                running.append(_Run(*waiting.pop(0), logs, slot=free.pop(0), slots=slots))
            with contextlib.suppress(subprocess.TimeoutExpired):
                running[0].process.wait(_TICK_S)
            for run in [run for run in running if run.process.poll() is not None]:
                running.remove(run)
                free.append(run.slot)
                lines = run.lines()
                for line in lines:
                    if line.startswith("warning: "):
                        on_warning(line)
                if run.process.returncode == _DONE:
                    on_end(run.name)
                else:
                    failures.append((run, _reason(run.process.returncode, lines)))
            on_tick()
    finally:
        _stop(running)
    if failures:
        run, reason = failures[0]
        raise RunError(
            "every run of the study to finish",
            f"{len(failures)} of {total} failed, the first '{run.name}' ({reason})",
            f"read '{run.log}', correct the cause and repeat the command, which keeps the finished runs",
        )


class _Run:
    """The process of one run. `slot` is its number among the `slots` processes that run at the same time."""

    def __init__(self, name: str, order: Job, logs: Path, *, slot: int, slots: int) -> None:
        self.name, self.slot = name, slot
        self.log = logs / f"{name.replace('/', '-')}.log"
        with self.log.open("ab") as file:
            self._start = file.tell()
            # In a new session, so that Ctrl-C in the terminal reaches only the study, which then stops its runs.
            self.process = subprocess.Popen(
                [sys.executable, "-m", "agridistill.study.workers"],
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=os.environ | worker_environment(slot, slots),
                start_new_session=True,
            )
        with contextlib.suppress(OSError):  # the process has already ended; its log has the reason
            self.process.stdin.write(pickle.dumps(order))  # type: ignore[union-attr]
            self.process.stdin.flush()  # type: ignore[union-attr]

    def lines(self) -> list[str]:
        """Returns the lines that the process wrote to its log, without empty ones, and closes its stdin."""
        self.close()
        with self.log.open("rb") as file:
            file.seek(self._start)
            lines = file.read().decode("utf-8", "replace").splitlines()
        return [line.strip() for line in lines if line.strip()]

    def close(self) -> None:
        """Asks the process to stop by closing its stdin."""
        with contextlib.suppress(OSError):
            self.process.stdin.close()  # type: ignore[union-attr]


def _reason(code: int, lines: Sequence[str]) -> str:
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    last = errors or lines or [f"no output, exit code {code}"]
    return last[-1][:300]


def _stop(running: Sequence[_Run]) -> None:
    """Stops the processes, and kills those that do not end within 30 s."""
    for run in running:
        run.close()
    deadline = time.monotonic() + _STOP_S
    for run in running:
        try:
            run.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            run.process.kill()
            run.process.wait()


def worker_environment(slot: int, slots: int) -> dict[str, str]:
    """Returns variables that give process number `slot` one of the GPUs, or without a GPU a share of the cores."""
    gpus = torch.cuda.device_count()
    if gpus:
        # Keep the names that the user set: numbers, GPU-… or MIG-….
        visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(gpus)))
        return {"CUDA_VISIBLE_DEVICES": visible.split(",")[slot % gpus].strip()}
    return {"OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // slots))} if slots > 1 else {}


def main() -> int:
    """Trains the run whose pickled `Order` comes on stdin; prints an error on stderr, and returns the exit code."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore it by default
    logging.addLevelName(logging.WARNING, "warning")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    order = pickle.load(sys.stdin.buffer)  # noqa: S301 - from our own parent
    threading.Thread(target=_interrupt_at_end_of_stdin, daemon=True).start()
    try:
        order.run()
    except (AgriDistillError, OSError) as error:  # OSError: a full disk, for example
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - the log of this run
        return _FAILED
    except KeyboardInterrupt:
        return _INTERRUPTED
    return _DONE


def _interrupt_at_end_of_stdin() -> None:
    # Do not use `sys.stdin`: a blocked read holds its lock, which Python needs at exit.
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGINT)


if __name__ == "__main__":
    sys.exit(main())
