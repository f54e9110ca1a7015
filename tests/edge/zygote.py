"""Starts agents by forking: the same process as `agridistill watch`, without a second of imports for each.

Each line on the standard input is a JSON list of arguments; the answer is the pid of the agent that runs with them.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from typing import TextIO

import onnxruntime  # noqa: F401 - what takes the time

import agridistill.edge.building
import agridistill.runtime.backends  # noqa: F401
from agridistill.cli.main import main


def serve(log: TextIO) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for number in (1, 2):
                os.dup2(log.fileno(), number)
            os.close(0)
            try:
                main(json.loads(line))
            except SystemExit as end:
                os._exit(int(end.code or 0))
            except BaseException:
                traceback.print_exc()
            os._exit(70)
        sys.stdout.write(f"{pid}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    with open(sys.argv[1], "a", buffering=1) as opened:  # noqa: PTH123
        serve(opened)
