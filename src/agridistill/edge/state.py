"""The agent's state for others: `state.json`, systemd, and the device's temperature, memory and disk."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import sys
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from agridistill.edge.events import SCHEMA_VERSION, AgentState
from agridistill.errors import EdgeError
from agridistill.storage import write_json

STATE_FILE, HISTORY_FILE = "state.json", "history.sqlite"
FRESH_S = 30.0
"""An agent writes its state every 10 s; an older state is of one that does not run, or hangs."""

_STATE = TypeAdapter(AgentState)
_THERMAL = Path("/sys/class/thermal")
_STATM = Path("/proc/self/statm")
_PROCESSOR_ZONES = ("cpu", "x86_pkg_temp", "soc")
# A sensor without power or a driver reports values such as -274 or 200.
_CREDIBLE_CELSIUS = (-60.0, 150.0)


def state_folder() -> Path:
    """Default folder of the agent's state.

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
        got = f"'{folder}' ({error.strerror or error})"
        raise EdgeError("a state folder that can be written", got, "check the disk") from None


def read_state(folder: Path) -> AgentState:
    """Reads what the agent wrote last.

    Raises:
        EdgeError: no agent has run in this folder, or its state is of another version or damaged.
    """
    file = folder / STATE_FILE
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        remedy = "start one with agridistill watch, or name its state folder with --state"
        raise EdgeError("the state of an agent", f"no file '{file}'", remedy) from None
    except NotADirectoryError:
        raise EdgeError("an agent's state folder", f"the file '{folder}'", "name the folder with --state") from None
    except OSError as error:
        got = f"'{file}' ({error.strerror or error})"
        raise EdgeError("a state that can be read", got, "read it as the agent's user") from None
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


def _damaged(file: Path, what: str) -> EdgeError:
    return EdgeError(
        f"a state of schema {SCHEMA_VERSION}",
        f"{what} in '{file}'",
        "use the AgriDistill that the agent runs with, or start the agent again",
    )


def is_running(state: AgentState, now_s: float) -> bool:
    """Whether the agent that wrote this state runs now: its process lives, and the state is fresh.

    Args:
        state: as it was read.
        now_s: seconds since 1970, by the same clock.
    """
    # A state from the future was written before the clock was set back: as old as any other.
    return abs(now_s - state.at_s) < FRESH_S and process_lives(state.pid)


def notify_systemd(message: str) -> None:
    """Sends "READY=1", "WATCHDOG=1" or "STOPPING=1" to systemd (`sd_notify`), where it started the agent."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address or not hasattr(socket, "AF_UNIX"):
        return
    # A leading @ stands for an abstract address.
    name = "\0" + address[1:] if address.startswith("@") else address
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto(message.encode(), name)


def processor_celsius(thermal: Path = _THERMAL) -> float | None:
    """Temperature of the processor's hottest zone in degrees Celsius; None where it is not known.

    Args:
        thermal: Linux's folder of thermal zones.
    """
    low, high = _CREDIBLE_CELSIUS
    found = []
    for zone in thermal.glob("thermal_zone*"):
        try:
            kind = (zone / "type").read_text(encoding="ascii", errors="replace").strip().lower()
            celsius = int((zone / "temp").read_text(encoding="ascii")) / 1000
        except (OSError, ValueError):
            continue  # the zone of a sensor that sleeps cannot be read
        if kind.startswith(_PROCESSOR_ZONES) and low < celsius < high:
            found.append(celsius)
    return max(found, default=None)


def resident_bytes(statm: Path = _STATM) -> int | None:
    """Memory that this process holds in RAM now; None where it is not known.

    Args:
        statm: Linux's file of a process's memory in pages.
    """
    try:
        return int(statm.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError, AttributeError):
        return None  # AttributeError: no sysconf on Windows


def disk_free_bytes(path: Path) -> int | None:
    """Room on the disk that holds `path`, as far as this user may take it; None where it is not known."""
    try:
        return shutil.disk_usage(path).free
    except OSError:
        return None


def process_lives(pid: int) -> bool:
    """Whether a process has this id; it may be of another program by now."""
    # Signal 0 to 0 or below addresses process groups; on Windows signal 0 is a Ctrl-C.
    if pid <= 0 or sys.platform == "win32":
        return pid > 0
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return True
