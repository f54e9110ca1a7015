"""`python -m agridistill.study.job`: one run of a study, in a process of its own; its order comes in on stdin.

The process lives no longer than the one that started it: where its stdin ends, it stops as after Ctrl-C, and a later
study goes on with its run.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from agridistill.data.labels import FOLDERS, Layout
from agridistill.errors import AgriDistillError
from agridistill.training.settings import DistillConfig, TrainConfig

DONE, FAILED, INTERRUPTED = 0, 2, 130


@dataclass(frozen=True)
class Order:
    """What a process is to train.

    Attributes:
        data: the photos.
        out: the run folder; what is unfinished there goes on.
        config: a student's, or with `TrainConfig` a teacher's.
        teacher: run folder, for students.
        split_file: None makes or takes over a split.
        layout: how the labels are found.
    """

    data: str
    out: str
    config: DistillConfig | TrainConfig
    teacher: str | None = None
    split_file: str | None = None
    layout: Layout = FOLDERS

    def to_json(self) -> str:
        """One line."""
        kind = "distill" if isinstance(self.config, DistillConfig) else "train"
        return json.dumps({"kind": kind, **asdict(replace(self, layout=FOLDERS)), "layout": self.layout.to_json()})

    @classmethod
    def from_json(cls, line: str) -> Order:
        """Reads what `to_json` gave."""
        document: dict[str, Any] = json.loads(line)
        kind: type[Any] = DistillConfig if document.pop("kind") == "distill" else TrainConfig
        document["config"] = TypeAdapter(kind).validate_json(json.dumps(document["config"]), strict=True)
        document["layout"] = Layout.from_json(document["layout"])
        return cls(**document)


def carry_out(order: Order) -> None:
    """Trains, or goes on where a run was stopped.

    Raises:
        AgriDistillError: as `distill` and `train`.
    """
    from agridistill.training.run import distill, train
    from agridistill.training.run_folder import RunFolder

    out = Path(order.out)
    resume = RunFolder(out).recipe.exists()
    split_file = Path(order.split_file) if order.split_file and not resume else None
    if isinstance(order.config, TrainConfig):
        train(Path(order.data), out, order.config, layout=order.layout, split_file=split_file, resume=resume)
        return
    teacher = Path(order.teacher) if order.teacher else None
    distill(Path(order.data), teacher, out, order.config, layout=order.layout, split_file=split_file, resume=resume)


def _end_with_stdin() -> None:
    # The file itself, not `sys.stdin`: whoever waits in there holds a lock that Python wants back at its exit.
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGINT)


def _first_line() -> str:
    with os.fdopen(0, "rb", buffering=0, closefd=False) as stdin:
        return stdin.readline().decode()


def main() -> int:
    """One order; errors go to stderr as one line."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are born deaf to it
    logging.addLevelName(logging.WARNING, "warning")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    order = Order.from_json(_first_line())
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    try:
        carry_out(order)
    except (AgriDistillError, OSError) as error:  # a full disk, say: the log needs no traceback of it
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - the log of this run
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    return DONE


if __name__ == "__main__":
    sys.exit(main())
