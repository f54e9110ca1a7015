"""The agent's state for others: `state.json`, words, metrics and systemd; the device's temperature, memory and disk."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from agridistill.edge.events import SCHEMA_VERSION, Document, duration_words, number_of
from agridistill.errors import EdgeError
from agridistill.storage import write_json

STATE_FILE, HISTORY_FILE = "state.json", "history.sqlite"
FRESH_S = 30.0
"""An agent writes its state every 10 s; an older state is of one that does not run, or hangs."""

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# Key in the state; kind, name and meaning of the metric.
_OUTBOX = (
    ("waiting", "gauge", "outbox_messages", "Messages that wait for a receiver."),
    ("waiting_bytes", "gauge", "outbox_bytes", "Size of the messages that wait."),
    ("oldest_s", "gauge", "outbox_oldest_seconds", "Age of the oldest message that waits."),
    ("delivered", "counter", "outbox_delivered_total", "Messages that their receiver acknowledged."),
    ("dropped", "counter", "outbox_dropped_total", "Messages that had to go for want of room."),
)
_THERMAL = Path("/sys/class/thermal")
_STATM = Path("/proc/self/statm")
_PROCESSOR_ZONES = ("cpu", "x86_pkg_temp", "soc")
# A sensor without power or a driver reports values such as -274 or 200.
_CREDIBLE_CELSIUS = (-60.0, 150.0)


@dataclass(frozen=True)
class AgentState(Document):
    """The agent's state: `state.json` in the state folder, and retained at the broker."""

    device: str
    version: str  # of AgriDistill
    pid: int
    started_s: float  # seconds since 1970
    at_s: float  # when this was written
    uptime_s: float  # by a monotonic clock
    source: str  # its name, without secrets
    source_lost_s: float | None  # time that the source has been away
    frames: int  # that were decided on
    skipped: int  # live frames that came while the model was busy
    unreadable: int  # photos that could not be read
    verdicts: Mapping[str, int]  # number of frames by verdict
    open_alerts: int
    model: Mapping[str, Any]  # name, version, sha256 and path
    broker: Mapping[str, Any] | None  # host, port, connected; None without a broker
    outbox: Mapping[str, Any] | None  # waiting, waiting_bytes, oldest_s, delivered, dropped; None without a broker
    latency_ms: Mapping[str, float]  # p50 and p99 of the last frames, from taking a frame to its commit
    memory_bytes: int | None  # resident
    processor_celsius: float | None
    disk_free_bytes: int | None  # where the state lies
    trouble: str | None = None  # why detections cannot be committed
    outputs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # as `outbox`, of "webhook" and "command"
    finished: bool = False  # the source came to its end (a video, or a folder's photos by `--once`)
    stopped: bool = False  # the user ended the agent with Ctrl-C
    cannot_warn: str | None = None  # why no alert can open, and the remedy
    alerts: tuple[Mapping[str, Any], ...] = ()  # the newest open ones, at most 50 (alerts.lifecycle.open_alerts_json)
    source_trouble: str | None = None  # of a source that answers, such as a wrong password

    @property
    def outboxes(self) -> dict[str, Mapping[str, Any]]:
        """Of all receivers by name: "broker", "webhook", "command"."""
        return ({"broker": self.outbox} if self.outbox is not None else {}) | dict(self.outputs)


def state_folder() -> Path:
    """systemd's `$STATE_DIRECTORY`, else `agridistill` in `$XDG_STATE_HOME` or in `~/.local/state`."""
    # systemd gives several folders, separated by colons, where a unit asks for several.
    given = os.environ.get("STATE_DIRECTORY", "").partition(":")[0]
    if given:
        return Path(given)
    # Not Path.home(): it raises for a user without a home.
    home = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")  # noqa: PTH111
    return Path(home) / "agridistill"


def write_state(folder: Path, state: AgentState) -> None:
    """Writes `state.json`, whole or not at all; raises OSError where the disk refuses."""
    write_json(folder / STATE_FILE, state.to_json())


def read_state(folder: Path) -> AgentState:
    """Reads what the agent wrote last.

    Raises:
        EdgeError: no agent has run in this folder, or its state is of another version or damaged.
    """
    file = folder / STATE_FILE
    try:
        return AgentState.from_json(json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        remedy = "start one with agridistill watch, or name its state folder with --state"
        raise EdgeError("the state of an agent", f"no file '{file}'", remedy) from None
    except NotADirectoryError:
        raise EdgeError("an agent's state folder", f"the file '{folder}'", "name the folder with --state") from None
    except OSError as error:
        got = f"'{file}' ({error.strerror or error})"
        raise EdgeError("a state that can be read", got, "read it as the agent's user") from None
    except ValueError as error:
        remedy = "use the AgriDistill that the agent runs with, or start the agent again"
        raise EdgeError(f"a state of schema {SCHEMA_VERSION}", f"'{file}' ({error})", remedy) from None


def is_running(state: AgentState, now_s: float) -> bool:
    """Whether the agent that wrote this state runs now: its process lives, and the state is fresh."""
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
    """Temperature of the processor's hottest zone in degrees Celsius; None where it is not known."""
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
    """Memory that this process holds in RAM now; None where it is not known."""
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


def verdict_counts_words(verdicts: Mapping[str, int]) -> str:
    """Numbers of frames by verdict; "none" without frames.

    Example:
        >>> verdict_counts_words({"unsure": 2, "answer": 12, "unusable": 0})
        '12 answers, 2 unsure'
    """
    counts = (
        number_of(count, verdict) if verdict == "answer" else f"{count:,} {verdict}"
        for verdict, count in sorted(verdicts.items())
        if count
    )
    return ", ".join(counts) or "none"


def total(counts: int | Mapping[str, int]) -> int:
    """The sum of numbers by kind, or the number itself."""
    return sum(counts.values()) if isinstance(counts, Mapping) else counts


def model_words(state: AgentState) -> str:
    """Name, version and the first digits of the checksum of the agent's model."""
    name, version, sha256 = (str(state.model.get(key) or "") for key in ("name", "version", "sha256"))
    return " ".join(part for part in (name or "unknown", version, f"({sha256[:12]})" if sha256 else "") if part)


def source_trouble_words(state: AgentState) -> str:
    """Trouble of the agent's source; "" without trouble."""
    away = "" if state.source_lost_s is None else f"away for {duration_words(state.source_lost_s)}"
    return state.source_trouble or away


def broker_words(state: AgentState) -> str:
    """Address of the agent's broker, and whether it is connected."""
    if state.broker is None:
        return "none configured"
    where = f"{state.broker.get('host', '')}:{state.broker.get('port', '')}"
    return f"{where}: {'connected' if state.broker.get('connected') else 'away'}"


def queue_words(state: AgentState) -> str:
    """Messages that wait for the broker, and dropped ones."""
    return "nothing: no broker" if state.outbox is None else waiting_words(state.outbox)


def waiting_words(outbox: Mapping[str, Any]) -> str:
    """Messages that wait in one outbox of the state, and dropped ones."""
    waiting, dropped = (total(outbox.get(key, 0)) for key in ("waiting", "dropped"))
    oldest = f", the oldest for {duration_words(outbox.get('oldest_s', 0))}" if waiting else ""
    return number_of(waiting, "message") + oldest + (f"; {dropped:,} dropped" if dropped else "")


def metrics_text(state: AgentState) -> str:
    """The state in Prometheus's text format, version 0.0.4; what is not known is left out."""
    gauge, counter = partial(_family, "gauge"), partial(_family, "counter")
    names = {"device": state.device, "version": state.version, "model": str(state.model.get("name", ""))}
    names["model_sha256"] = str(state.model.get("sha256", ""))
    latencies = [({"percentile": name.lstrip("p")}, value / 1000) for name, value in state.latency_ms.items()]
    lost_s = state.source_lost_s
    verdicts = [({"verdict": verdict}, count) for verdict, count in state.verdicts.items()]
    connected = None if state.broker is None else int(bool(state.broker.get("connected")))
    families = [
        gauge("info", "Always 1; its labels name device, version and model.", [(names, 1)]),
        gauge("start_time_seconds", "When the agent started, since 1970.", state.started_s),
        gauge("state_time_seconds", "When these figures were taken, since 1970.", state.at_s),
        gauge("uptime_seconds", "Time since the agent started.", state.uptime_s),
        gauge("open_alerts", "Alerts that are open.", state.open_alerts),
        gauge("frame_latency_seconds", "From taking a frame to its commit, of the last frames.", latencies),
        gauge("source_up", "1 if the source is there, 0 if it is away.", [({"source": state.source}, lost_s is None)]),
        gauge("source_lost_seconds", "Time that the source has been away; 0 while it is there.", lost_s or 0),
        counter("frames_total", "Frames that were decided on, by verdict.", verdicts),
        counter("frames_skipped_total", "Live frames that came while the model was busy.", state.skipped),
        counter("photos_unreadable_total", "Photos that could not be read.", state.unreadable),
        gauge("broker_connected", "1 while the broker is connected.", connected),
        *_outbox_families(state),
        gauge("memory_resident_bytes", "Memory that the agent holds in RAM.", state.memory_bytes),
        gauge("processor_temperature_celsius", "Temperature of the processor's hottest zone.", state.processor_celsius),
        gauge("disk_free_bytes", "Room on the disk where the state lies.", state.disk_free_bytes),
    ]
    return "".join(families)


def _outbox_families(state: AgentState) -> Iterator[str]:
    # One family for all receivers, by the label `to`: one alert rule covers each of them.
    for key, kind, name, text in _OUTBOX:
        counts = {to: outbox[key] for to, outbox in state.outboxes.items() if outbox.get(key) is not None}
        yield _family(kind, name, text, [({"to": to}, total(value)) for to, value in counts.items()])


def _family(kind: str, name: str, text: str, samples: float | Sequence[tuple[dict[str, str], float]] | None) -> str:
    """One metric with its values by their labels; nothing without values."""
    if isinstance(samples, int | float):
        samples = [({}, samples)]
    if not samples:
        return ""
    name = f"agridistill_{name}"
    lines = [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
    for labels, value in samples:
        inner = ",".join(f'{key}="{_escaped(label)}"' for key, label in labels.items())
        # Whole numbers without a fraction: a float's exponent would hide the last digits of large sizes.
        number = str(int(value)) if float(value).is_integer() else repr(float(value))
        lines.append(f"{name}{{{inner}}} {number}" if inner else f"{name} {number}")
    return "".join(f"{line}\n" for line in lines)


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
