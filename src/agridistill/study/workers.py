"""Runs of a study in processes of their own: `python -m agridistill.study.workers` trains one, which comes on stdin.

Processes and not `multiprocessing`: its workers import the caller's script again, and one that is killed ends the pool.
A worker lives no longer than its parent: at the end of stdin it stops as after Ctrl-C, and a later study resumes it.
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

import torch

from agridistill.data.labels import FOLDERS, Layout
from agridistill.errors import AgriDistillError, RunError
from agridistill.training.run import distill, train
from agridistill.training.run_folder import RunFolder
from agridistill.training.settings import DistillConfig, TrainConfig

_TICK_S = 0.5
# Time for a run to write its last checkpoint.
_STOP_S = 30.0
_DONE, _FAILED, _INTERRUPTED = 0, 2, 130


@dataclass(frozen=True)
class Order:
    """One run: a student, or with a `TrainConfig` a network on labels alone. `teacher` is a run folder."""

    data: Path
    out: Path
    config: DistillConfig | TrainConfig
    teacher: Path | None = None
    split_file: Path | None = None
    layout: Layout = FOLDERS

    def carry_out(self) -> None:
        """Trains, or resumes an unfinished run.

        Raises:
            AgriDistillError: as `distill` and `train`.
        """
        resume = RunFolder(self.out).recipe.exists()
        split_file = None if resume else self.split_file
        if isinstance(self.config, TrainConfig):
            train(self.data, self.out, self.config, layout=self.layout, split_file=split_file, resume=resume)
        else:
            distill(
                self.data, self.teacher, self.out, self.config, layout=self.layout, split_file=split_file, resume=resume
            )


def run_side_by_side(
    orders: Mapping[str, Order],
    logs: Path,
    *,
    slots: int = 1,
    total: int,
    on_tick: Callable[[], None] = lambda: None,
    on_end: Callable[[str], None] = lambda name: None,
    on_warning: Callable[[str], None] = lambda line: None,
) -> None:
    """Carries out all orders, up to `slots` at a time. A run that fails does not stop the others.

    Any exception, an interrupt included, stops the processes; their runs can be resumed.

    Args:
        orders: by name, in the order of their start.
        logs: folder of one log a run; an existing log is continued.
        slots: processes at a time, each with a GPU or a share of the processor.
        total: runs of the study, for the error.
        on_tick: called about twice a second.
        on_end: called with the name of each finished run.
        on_warning: called with each line of a log that starts with "warning: ".

    Raises:
        RunError: runs failed; names the first of them with its log.
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
            f"see '{run.log}', correct it and repeat the command: finished runs are kept",
        )


class _Run:
    """The process of one run. `slot` is its place among those that run at the same time."""

    def __init__(self, name: str, order: Order, logs: Path, *, slot: int, slots: int) -> None:
        self.name, self.slot = name, slot
        self.log = logs / f"{name.replace('/', '-')}.log"
        with self.log.open("ab") as file:
            self._start = file.tell()
            # In a session of its own: a Ctrl-C in the terminal reaches the study alone, which stops its runs.
            self.process = subprocess.Popen(
                [sys.executable, "-m", "agridistill.study.workers"],
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=os.environ | worker_environment(slot, slots),
                start_new_session=True,
            )
        with contextlib.suppress(OSError):  # a process that has ended already gives the reason in its log
            self.process.stdin.write(pickle.dumps(order))  # type: ignore[union-attr]
            self.process.stdin.flush()  # type: ignore[union-attr]

    def lines(self) -> list[str]:
        """What the process wrote."""
        self.close()
        with self.log.open("rb") as file:
            file.seek(self._start)
            lines = file.read().decode("utf-8", "replace").splitlines()
        return [line.strip() for line in lines if line.strip()]

    def close(self) -> None:
        """Asks the process to stop, by the end of its stdin."""
        with contextlib.suppress(OSError):
            self.process.stdin.close()  # type: ignore[union-attr]


def _reason(code: int, lines: Sequence[str]) -> str:
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    last = errors or lines or [f"no output, exit code {code}"]
    return last[-1][:300]


def _stop(running: Sequence[_Run]) -> None:
    """Ends the processes, those that do not stop in time by force."""
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
    """Environment variables that give a process one of the visible GPUs, or its share of the processor."""
    gpus = torch.cuda.device_count()
    if gpus:
        # Names as the user gave them: numbers, GPU-… or MIG-….
        visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(gpus)))
        return {"CUDA_VISIBLE_DEVICES": visible.split(",")[slot % gpus].strip()}
    return {"OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // slots))} if slots > 1 else {}


def main() -> int:
    """Carries out the order on stdin; an error is one line on stderr."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore it by default
    logging.addLevelName(logging.WARNING, "warning")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    order = pickle.load(sys.stdin.buffer)  # noqa: S301 - from our own parent
    threading.Thread(target=_interrupt_at_end_of_stdin, daemon=True).start()
    try:
        order.carry_out()
    except (AgriDistillError, OSError) as error:  # OSError: a full disk, for example
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - the log of this run
        return _FAILED
    except KeyboardInterrupt:
        return _INTERRUPTED
    return _DONE


def _interrupt_at_end_of_stdin() -> None:
    # Not `sys.stdin`: a blocked read there holds a lock that Python needs at exit.
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGINT)


if __name__ == "__main__":
    sys.exit(main())
