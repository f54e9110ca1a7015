"""Processes: how many of a run a launcher started, which of them this is, and whether a process lives."""

from __future__ import annotations

import os
import sys

from agridistill.errors import ConfigError

_RANKS = ("RANK", "SLURM_PROCID", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK")


def is_first_process(processes: int) -> bool:
    """Whether this process writes the run folder and talks to the user.

    `torchrun` and Slurm give every process its number in the environment; Lightning starts the others by itself and
    gives them theirs.

    Args:
        processes: of the run; a run of one has no others, whatever a launcher started beside it.
    """
    return processes == 1 or all(os.environ.get(name, "0") == "0" for name in _RANKS)


def require_launched(processes: int) -> None:
    """Checks that torchrun, where it is used, started as many processes as the run expects.

    Raises:
        ConfigError: another number: each would train by itself, into one folder.
    """
    launched = os.environ.get("WORLD_SIZE", str(processes)) if "TORCHELASTIC_RUN_ID" in os.environ else str(processes)
    if launched != str(processes):
        raise ConfigError(
            f"--devices times --nodes of {launched}, the processes that torchrun started",
            str(processes),
            "pass the same numbers to both",
        )


def process_lives(pid: int) -> bool:
    """Whether there is a process of this number; it may be another program's by now."""
    # 0 and below would ask for groups of processes; on Windows the signal 0 is a Ctrl-C.
    if pid <= 0 or sys.platform == "win32":
        return pid > 0
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return True
