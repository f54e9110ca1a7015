"""Publishes the agent's state: `state.json`, texts, metrics, systemd. Also reads temperature, memory and free disk."""

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

from agridistill.edge.events import SCHEMA_VERSION, Document, bytes_words, duration_words, number_of
from agridistill.errors import EdgeError
from agridistill.storage import write_json

STATE_FILE, HISTORY_FILE = "state.json", "history.sqlite"
FRESH_S = 30.0  # an older state belongs to an agent that has ended or hangs: it is written every 10 s

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# Key in the state; kind, name and meaning of the metric.
_OUTBOX = (
    ("waiting", "gauge", "outbox_messages", "Messages that wait for a receiver."),
    ("waiting_bytes", "gauge", "outbox_bytes", "Size of the waiting messages."),
    ("oldest_s", "gauge", "outbox_oldest_seconds", "Age of the oldest waiting message."),
    ("delivered", "counter", "outbox_delivered_total", "Messages that their receiver acknowledged."),
    ("dropped", "counter", "outbox_dropped_total", "Messages that were deleted because the outbox was full."),
)
_KEPT = (
    ("photos", "gauge", "kept_photos", "Photos that are kept for people."),
    ("bytes", "gauge", "kept_bytes", "Size of the kept photos and their sidecars."),
    ("waiting", "gauge", "kept_waiting", "Kept photos that are not uploaded yet."),
    ("oldest_s", "gauge", "kept_oldest_seconds", "Age of the oldest kept photo that is not uploaded."),
    ("uploaded", "counter", "kept_uploaded_total", "Kept photos that the upload server has."),
    ("dropped", "counter", "kept_dropped_total", "Kept photos that max_megabytes removed before an upload."),
    ("missed", "counter", "kept_missed_total", "Photos that could not be kept since the start."),
)
_THERMAL = Path("/sys/class/thermal")
_STATM = Path("/proc/self/statm")
_PROCESSOR_ZONES = ("cpu", "x86_pkg_temp", "soc")
# A sensor without power or a driver reports values such as -274 or 200.
_CREDIBLE_CELSIUS = (-60.0, 150.0)


@dataclass(frozen=True)
class AgentState(Document):
    """The agent's state, which it writes to `state.json` and publishes to the broker as a retained MQTT message."""

    device: str
    version: str  # version of AgriDistill
    pid: int
    started_s: float  # seconds since 1970
    at_s: float  # when this state was taken, seconds since 1970
    uptime_s: float  # seconds since the start, by a monotonic clock
    source: str  # name of the source, without secrets
    source_lost_s: float | None  # seconds that the source has been away; None while it is there
    frames: int  # number of frames with a detection
    skipped: int  # live frames that came while the model was busy
    unreadable: int  # photos that could not be read
    verdicts: Mapping[str, int]  # number of frames by verdict
    open_alerts: int
    model: Mapping[str, Any]  # keys: name, version, sha256 and path
    broker: Mapping[str, Any] | None  # keys: host, port, connected; None without a broker
    # Keys: waiting, waiting_bytes, oldest_s, delivered, dropped; None without a broker, or if it cannot be read.
    outbox: Mapping[str, Any] | None
    latency_ms: Mapping[str, float]  # p50 and p99 of the last frames, from taking a frame to storing its detection
    memory_bytes: int | None  # resident memory of the agent
    processor_celsius: float | None
    disk_free_bytes: int | None  # on the disk of the state folder
    trouble: str | None = None  # why detections cannot be stored; None if they can
    outputs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # by "webhook", "command": as `outbox`
    finished: bool = False  # the source has ended (a video, or the photos of a folder with `--once`)
    stopped: bool = False  # the user ended the agent with Ctrl-C
    cannot_warn: str | None = None  # why no alert can open, with the remedy; None if one can
    alerts: tuple[Mapping[str, Any], ...] = ()  # the newest 50 open alerts (see alerts.plots.open_alerts_json)
    source_trouble: str | None = None  # why a source that answers cannot be used, such as a wrong password
    # Of `[keep]`: photos, bytes, upload (whether one is set), waiting, waiting_bytes, oldest_s, uploaded, dropped,
    # missed and trouble; None without it, or if it cannot be read.
    kept: Mapping[str, Any] | None = None
    command: tuple[str, ...] = ()  # the words after `agridistill watch` that start this agent again, without secrets

    @property
    def outboxes(self) -> dict[str, Mapping[str, Any]]:
        """The counts in `outbox` and `outputs` by receiver ("broker", "webhook", "command"), as far as configured."""
        return ({"broker": self.outbox} if self.outbox is not None else {}) | dict(self.outputs)


def state_folder() -> Path:
    """Returns `$STATE_DIRECTORY`, which systemd sets; else `$XDG_STATE_HOME/agridistill`; else `~/.local/state/…`."""
    # A unit with several state folders gets them separated by colons.
    given = os.environ.get("STATE_DIRECTORY", "").partition(":")[0]
    if given:
        return Path(given)
    # Not Path.home(): it raises for a user without a home.
    home = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")  # noqa: PTH111
    return Path(home) / "agridistill"


def write_state(folder: Path, state: AgentState) -> None:
    """Replaces `state.json` in `folder` atomically; raises OSError if the disk is full or refuses the write."""
    write_json(folder / STATE_FILE, state.to_json())


def read_state(folder: Path) -> AgentState:
    """Reads `state.json`, which a running agent writes every 10 s, from the agent's state folder.

    Raises:
        EdgeError: the file is missing, cannot be read, is damaged, or has another schema version.
    """
    file = folder / STATE_FILE
    try:
        return AgentState.from_json(json.loads(file.read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError):
        remedy = "start one with agridistill watch, or name its state folder with --state"
        raise EdgeError("a folder in which an agent has run", f"no file '{file}'", remedy) from None
    except OSError as error:
        got = f"'{file}' ({error.strerror or error})"
        raise EdgeError("a state file that can be read", got, "run the command as the agent's user") from None
    except ValueError as error:
        remedy = "use the same version of AgriDistill as the agent, or restart the agent"
        raise EdgeError(f"a state file with schema {SCHEMA_VERSION}", f"'{file}' ({error})", remedy) from None


def is_running(state: AgentState, now_s: float) -> bool:
    """Returns whether the process that wrote `state` exists, and the state is less than 30 s old at `now_s`."""
    # A state from the future was written before the clock was set back, and is not fresh either.
    return abs(now_s - state.at_s) < FRESH_S and process_lives(state.pid)


def notify_systemd(message: str) -> None:
    """Sends systemd a message such as "READY=1" or "WATCHDOG=1" (`sd_notify`); does nothing without systemd."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address or not hasattr(socket, "AF_UNIX"):
        return
    # A leading @ stands for an abstract address.
    name = "\0" + address[1:] if address.startswith("@") else address
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto(message.encode(), name)


def processor_celsius(thermal: Path = _THERMAL) -> float | None:
    """Returns the processor's highest temperature in degrees Celsius; None if no sensor in `thermal` reports it."""
    low, high = _CREDIBLE_CELSIUS
    found = []
    for zone in thermal.glob("thermal_zone*"):
        try:
            kind = (zone / "type").read_text(encoding="ascii", errors="replace").strip().lower()
            celsius = int((zone / "temp").read_text(encoding="ascii")) / 1000
        except (OSError, ValueError):
            continue  # a sensor that sleeps cannot be read
        if kind.startswith(_PROCESSOR_ZONES) and low < celsius < high:
            found.append(celsius)
    return max(found, default=None)


def resident_bytes(statm: Path = _STATM) -> int | None:
    """Returns the resident memory (RAM) of this process in bytes; None if the system does not report it."""
    try:
        return int(statm.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError, AttributeError):
        return None  # AttributeError: no sysconf on Windows


def disk_free_bytes(path: Path) -> int | None:
    """Returns the free bytes on the disk that holds `path`; None if the system does not report them."""
    try:
        return shutil.disk_usage(path).free
    except OSError:
        return None


def process_lives(pid: int) -> bool:
    """Returns whether a process with the id `pid` exists. It may be another program that got the same id later."""
    # `os.kill` with a pid of 0 or below addresses process groups; on Windows signal 0 is a Ctrl-C.
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
    """Returns the number of frames of each verdict as text; "none" if all are 0.

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
    """Returns the sum of the values if `counts` is a mapping; returns a plain number unchanged."""
    return sum(counts.values()) if isinstance(counts, Mapping) else counts


def model_words(state: AgentState) -> str:
    """Returns the agent's model as text: name, version and the first 12 digits of its file's sha256."""
    name, version, sha256 = (str(state.model.get(key) or "") for key in ("name", "version", "sha256"))
    return " ".join(part for part in (name or "unknown", version, f"({sha256[:12]})" if sha256 else "") if part)


def source_trouble_words(state: AgentState) -> str:
    """Returns what is wrong with the agent's source as text, such as "away for 2 min"; "" if nothing is wrong."""
    away = "" if state.source_lost_s is None else f"away for {duration_words(state.source_lost_s)}"
    return state.source_trouble or away


def broker_words(state: AgentState) -> str:
    """Returns the broker's address and connection as text, such as "farm:1883: connected"."""
    if state.broker is None:
        return "none configured"
    where = f"{state.broker.get('host', '')}:{state.broker.get('port', '')}"
    return f"{where}: {'connected' if state.broker.get('connected') else 'away'}"


def queue_words(state: AgentState) -> str:
    """Returns what waits for the broker, in words: "3 messages, the oldest for 2 min" or "nothing: no broker"."""
    return "nothing: no broker" if state.outbox is None else waiting_words(state.outbox)


def waiting_words(outbox: Mapping[str, Any]) -> str:
    """Returns text on a receiver's messages from its counts, such as "3 messages, the oldest for 2 min; 5 dropped"."""
    waiting, dropped = (total(outbox.get(key, 0)) for key in ("waiting", "dropped"))
    oldest = f", the oldest for {duration_words(outbox.get('oldest_s', 0))}" if waiting else ""
    return number_of(waiting, "message") + oldest + (f"; {dropped:,} dropped" if dropped else "")


def kept_words(kept: Mapping[str, Any]) -> str:
    """Returns text on the kept photos, such as "12 photos, 3.4 MB; 2 wait for the upload, the oldest for 5 min"."""
    parts = [f"{number_of(kept['photos'], 'photo')}, {bytes_words(kept['bytes'])}"]
    if kept["upload"]:
        oldest = f", the oldest for {duration_words(kept['oldest_s'])}" if kept["waiting"] else ""
        parts.append(f"{kept['waiting']:,} wait for the upload{oldest}")
    parts += [f"{kept[key]:,} {key}" for key in ("dropped", "missed") if kept[key]]
    return "; ".join(parts)


def metrics_text(state: AgentState) -> str:
    """Returns the state as metrics in Prometheus's text format, version 0.0.4; values that are None are left out."""
    gauge, counter = partial(_family, "gauge"), partial(_family, "counter")
    names = {"device": state.device, "version": state.version, "model": str(state.model.get("name", ""))}
    names["model_sha256"] = str(state.model.get("sha256", ""))
    latencies = [({"percentile": name.lstrip("p")}, value / 1000) for name, value in state.latency_ms.items()]
    lost_s = state.source_lost_s
    verdicts = [({"verdict": verdict}, count) for verdict, count in state.verdicts.items()]
    connected = None if state.broker is None else int(bool(state.broker.get("connected")))
    families = [
        gauge("info", "Always 1; its labels name device, version and model.", [(names, 1)]),
        gauge("start_time_seconds", "Time of the agent's start, in seconds since 1970.", state.started_s),
        gauge("state_time_seconds", "Time of these figures, in seconds since 1970.", state.at_s),
        gauge("uptime_seconds", "Time since the agent started.", state.uptime_s),
        gauge("open_alerts", "Number of open alerts.", state.open_alerts),
        gauge("frame_latency_seconds", "Time from taking a frame to storing its detection.", latencies),
        gauge("source_up", "1 if the source is there, 0 if it is away.", [({"source": state.source}, lost_s is None)]),
        gauge("source_lost_seconds", "Time that the source has been away; 0 while it is there.", lost_s or 0),
        counter("frames_total", "Frames with a detection, by verdict.", verdicts),
        counter("frames_skipped_total", "Live frames that came while the model was busy.", state.skipped),
        counter("photos_unreadable_total", "Photos that could not be read.", state.unreadable),
        gauge("broker_connected", "1 while the agent is connected to the broker, else 0.", connected),
        *_outbox_families(state),
        *_kept_families(state),
        gauge("memory_resident_bytes", "RAM that the agent uses.", state.memory_bytes),
        gauge("processor_temperature_celsius", "Temperature of the processor's hottest zone.", state.processor_celsius),
        gauge("disk_free_bytes", "Free space on the disk of the state folder.", state.disk_free_bytes),
    ]
    return "".join(families)


def _outbox_families(state: AgentState) -> Iterator[str]:
    # All receivers share a metric, with the label `to`: one alert rule in Prometheus then covers them all.
    for key, kind, name, text in _OUTBOX:
        counts = {to: outbox[key] for to, outbox in state.outboxes.items() if outbox.get(key) is not None}
        yield _family(kind, name, text, [({"to": to}, total(value)) for to, value in counts.items()])


def _kept_families(state: AgentState) -> Iterator[str]:
    for key, kind, name, text in _KEPT if state.kept is not None else ():
        yield _family(kind, name, text, (state.kept or {})[key])


def _family(kind: str, name: str, text: str, samples: float | Sequence[tuple[dict[str, str], float]] | None) -> str:
    """Formats one metric with the value for each set of labels; "" if there are no values."""
    if isinstance(samples, int | float):
        samples = [({}, samples)]
    if not samples:
        return ""
    name = f"agridistill_{name}"
    lines = [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
    for labels, value in samples:
        inner = ",".join(f'{key}="{_escaped(label)}"' for key, label in labels.items())
        # Whole numbers are written as integers: a float's exponent would hide the last digits of large sizes.
        number = str(int(value)) if float(value).is_integer() else repr(float(value))
        lines.append(f"{name}{{{inner}}} {number}" if inner else f"{name} {number}")
    return "".join(f"{line}\n" for line in lines)


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
