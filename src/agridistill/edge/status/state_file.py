"""The agent's state as a file: written by the agent every few seconds, read by whoever looks at it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from agridistill.edge.events import SCHEMA_VERSION, AgentState
from agridistill.errors import EdgeError
from agridistill.storage import write_json

STATE_FILE, HISTORY_FILE = "state.json", "history.sqlite"
FRESH_S = 30.0
"""An agent writes its state every 10 s; one that has not for so long does not run, or hangs."""

_STATE = TypeAdapter(AgentState)


def state_folder() -> Path:
    """Where the agent keeps what it must not lose, unless told otherwise.

    That is systemd's `$STATE_DIRECTORY`, else `agridistill` in `$XDG_STATE_HOME` or in `~/.local/state`.
    """
    # systemd gives several folders, separated by colons, where a unit asks for several.
    given = os.environ.get("STATE_DIRECTORY", "").partition(":")[0]
    if given:
        return Path(given)
    # Not Path.home(): it raises for a user without a home.
    home = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")  # noqa: PTH111
    return Path(home) / "agridistill"


def write_state(folder: Path, state: AgentState) -> None:
    """Writes `state.json`, whole or not at all.

    Raises:
        EdgeError: the disk refuses.
    """
    try:
        write_json(folder / STATE_FILE, state.to_json())
    except OSError as error:
        raise EdgeError(
            "a state folder that can be written", f"'{folder}' ({error.strerror or error})", "check the disk"
        ) from None


def read_state(folder: Path) -> AgentState:
    """Reads what the agent wrote last.

    Raises:
        EdgeError: no agent has run in this folder, or its state is of another version or damaged.
    """
    file = folder / STATE_FILE
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise EdgeError(
            "the state of an agent",
            f"no file '{file}'",
            "start one with agridistill watch, or name its state folder with --state",
        ) from None
    except NotADirectoryError:
        raise EdgeError("an agent's state folder", f"the file '{folder}'", "name the folder with --state") from None
    except OSError as error:
        raise EdgeError(
            "a state that can be read", f"'{file}' ({error.strerror or error})", "read it as the agent's user"
        ) from None
    except ValueError:
        raise _damaged(file, "no JSON") from None
    version = document.pop("schema", None) if isinstance(document, dict) else None
    if version != SCHEMA_VERSION:
        raise _damaged(file, f"schema {version}")
    try:
        return _STATE.validate_python(document)
    except ValidationError as error:
        first = error.errors()[0]
        raise _damaged(file, f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def is_running(state: AgentState, now_s: float) -> bool:
    """Whether the agent that wrote this state runs now: its process lives, and it has written just before.

    Args:
        state: as it was read.
        now_s: seconds since 1970, by the same clock.
    """
    # A state from the future was written before the clock was set back: as old as any other.
    return abs(now_s - state.at_s) < FRESH_S and process_lives(state.pid)


def _damaged(file: Path, what: str) -> EdgeError:
    return EdgeError(
        f"a state of schema {SCHEMA_VERSION}",
        f"{what} in '{file}'",
        "use the AgriDistill that the agent runs with, or start the agent again",
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
