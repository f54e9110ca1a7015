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
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, BinaryIO

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
    workers = _Workers(slots, logs)
    failures: list[tuple[str, str]] = []
    with ThreadPoolExecutor(slots) as pool:
        waiting = {pool.submit(workers.run, name, order): name for name, order in orders.items()}
        try:
            while waiting:
                for future in wait(waiting, _TICK_S, FIRST_COMPLETED).done:
                    name = waiting.pop(future)
                    code, lines = future.result()
                    for line in lines:
                        if line.startswith("warning: "):
                            on_warning(line)
                    if code == _DONE:
                        on_end(name)
                    else:
                        failures.append((name, _reason(code, lines)))
                on_tick()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            workers.stop(waiting)
    if failures:
        name, reason = failures[0]
        raise RunError(
            "every run of the study to finish",
            f"{len(failures)} of {total} failed, the first '{name}' ({reason})",
            f"see '{workers.log_of(name)}', correct it and repeat the command: finished runs are kept",
        )


def _reason(code: int, lines: Sequence[str]) -> str:
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    last = errors or lines or [f"no output, exit code {code}"]
    return last[-1][:300]


class _Workers:
    """The processes of the pool's threads."""

    def __init__(self, slots: int, logs: Path) -> None:
        self._slots, self._logs = slots, logs
        self._free: SimpleQueue[int] = SimpleQueue()
        for slot in range(slots):
            self._free.put(slot)
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._is_stopping = threading.Event()
        logs.mkdir(parents=True, exist_ok=True)

    def log_of(self, name: str) -> Path:
        return self._logs / f"{name.replace('/', '-')}.log"

    def run(self, name: str, order: Order) -> tuple[int, list[str]]:
        """Waits for the process of one run; gives its exit code and the lines of its log."""
        slot = self._free.get()
        try:
            with self.log_of(name).open("a+b") as log:
                start = log.tell()
                code = self._train(order, log, worker_environment(slot, self._slots))
                log.seek(start)
                lines = log.read().decode("utf-8", "replace").splitlines()
        finally:
            self._free.put(slot)
        return code, [line.strip() for line in lines if line.strip()]

    def _train(self, order: Order, log: BinaryIO, environment: Mapping[str, str]) -> int:
        # In a session of its own: a Ctrl-C in the terminal reaches the study alone, which stops its runs.
        process = subprocess.Popen(
            [sys.executable, "-m", "agridistill.study.workers"],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            start_new_session=True,
        )
        self._processes.add(process)
        with contextlib.suppress(OSError):  # a process that has ended already gives the reason in its log
            process.stdin.write(pickle.dumps(order))  # type: ignore[union-attr]
            process.stdin.flush()  # type: ignore[union-attr]
        if self._is_stopping.is_set():
            _close_stdin(process)
        code = process.wait()
        _close_stdin(process)
        self._processes.discard(process)
        return code

    def stop(self, futures: Iterable[Future[Any]]) -> None:
        """Ends the processes of these futures, those that do not stop in time by force."""
        self._is_stopping.set()
        for process in list(self._processes):
            _close_stdin(process)
        wait([future for future in futures if not future.cancelled()], _STOP_S)
        for process in list(self._processes):
            process.kill()


def _close_stdin(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(OSError):
        process.stdin.close()  # type: ignore[union-attr]


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
