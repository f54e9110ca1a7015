"""The command `agridistill status`: shows the state of the agent on this device and its last detections."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Option

from agridistill.cli import options, output
from agridistill.cli.output import UNDEFINED, printable, stdout
from agridistill.errors import OutboxError

if TYPE_CHECKING:
    from agridistill.edge.events import Alert, Detection
    from agridistill.edge.state import AgentState

# Shorter outages often end by themselves.
_LONG_S = 300.0


def status(
    state: Annotated[
        Path | None,
        Option(
            metavar="DIR",
            help="Read the state of the agent from this folder.",
            show_default="~/.local/state/agridistill",
        ),
    ] = None,
    last: Annotated[int, Option(min=0, max=1000, metavar="N", help="Show the last N detections.")] = 10,
    json: options.Json = False,
) -> None:
    """Show whether the agent on this device runs, which messages wait to be sent, and its last detections.

    The exit code is 1 if the agent has stopped unexpectedly or ended with unsent messages, if detections cannot be
    stored, or if for five minutes its camera or folder has been unavailable or messages have waited.
    """
    import time

    from agridistill.edge.state import HISTORY_FILE, is_running, read_state, state_folder

    folder = state_folder() if state is None else state
    found = read_state(folder)
    alerts: list[Alert] = []
    detections: list[Detection] = []
    error = None
    try:
        alerts, detections = _history(folder / HISTORY_FILE, last)
    except OutboxError as failure:
        error = str(failure)  # for example on a read-only disk: print the state anyway
    now_s = time.time()
    running = is_running(found, now_s)
    problems = _problems(found, running)
    if json:
        document: dict[str, Any] = {"running": running, "problems": problems, "state": found.to_json()}
        document["open_alerts"] = None if error else [alert.to_json() for alert in alerts]
        document["detections"] = None if error else [detection.to_json() for detection in detections]
        output.print_json(document | {"history_error": error})
    else:
        style = "bold green" if running else "bold" if found.finished or found.stopped else "bold red"
        stdout.print(printable(_headline(found, running, now_s)), style=style)
        output.print_figures(_state_rows(found))
        if error:
            stdout.print(f"Alerts and detections cannot be read: {printable(error)}", style="yellow")
        else:
            _print_alerts(alerts, now_s)
            if detections:
                _print_detections(detections, str(found.model.get("sha256", ""))[:12])
            elif last:
                stdout.print("There are no detections yet.")
        for problem in problems:
            stdout.print(f"Problem: {problem}", style="red")
    if not running:
        # Without the command: a name whose secrets were replaced by … is no valid source, and the model of an update is
        # not that of --model.
        source = found.source if "…" not in found.source else "SOURCE"
        model = "MODEL" if found.model.get("version") else str(found.model.get("path") or "MODEL")
        words = () if state is None else ("--state", state.absolute())
        output.next_command("watch", *(found.command or (source, "--model", model)), *words)
    if problems:
        raise typer.Exit(1)


def _history(file: Path, last: int) -> tuple[list[Alert], list[Detection]]:
    """Returns the open alerts (at most 100) and the `last` detections, newest first."""
    from agridistill.edge.store.history import History

    # An agent that has just started may not have created it yet.
    if not file.exists():
        return [], []
    with History(file, read_only=True) as history:
        return history.alerts(state="open", limit=100), history.recent(last)


def _problems(state: AgentState, running: bool) -> list[str]:
    from agridistill.edge.events import duration_words, number_of
    from agridistill.edge.state import process_lives, total

    if not running and (state.finished or state.stopped):
        unsent = {name: total(waits.get("waiting", 0)) for name, waits in state.outboxes.items()}
        words = {f"{number_of(number, 'message')} not sent to the {name}": number for name, number in unsent.items()}
        if state.kept is not None and state.kept["upload"]:
            photos = state.kept["waiting"]
            words[f"{number_of(photos, 'kept photo')} not uploaded"] = photos
        return [f"{text} yet; the next run will send them" for text, number in words.items() if number]
    if not running and process_lives(state.pid):
        return [
            f"the agent has not written its state since {_local(state.at_s)}, but a process {state.pid} exists: "
            "if that is the agent, its disk may be full"
        ]
    if not running:
        return [f"the agent has not run since {_local(state.at_s)}"]
    problems = [state.trouble] if state.trouble else []
    if state.source_trouble is not None:
        problems.append(f"the source: {state.source_trouble}")
    elif state.source_lost_s is not None and state.source_lost_s >= _LONG_S:
        problems.append(f"the source has been away for {duration_words(state.source_lost_s)}")
    if state.broker is not None and not state.broker.get("connected"):
        # A broker that is away is no problem while no message waits for it.
        oldest_s = (state.outbox or {}).get("oldest_s", 0)
        if oldest_s >= _LONG_S:
            problems.append(f"the broker is away, and messages have waited for {duration_words(oldest_s)}")
    for name, waits in state.outputs.items():
        if waits.get("oldest_s", 0) >= _LONG_S:
            problems.append(f"alerts have waited for the {name} for {duration_words(waits['oldest_s'])}")
    return problems + _kept_problems(state.kept or {})


def _kept_problems(kept: Mapping[str, Any]) -> list[str]:
    from agridistill.edge.events import duration_words

    problems = [kept["trouble"]] if kept.get("trouble") else []
    if kept.get("upload") and kept["oldest_s"] >= _LONG_S:
        problems.append(f"kept photos have waited for the upload for {duration_words(kept['oldest_s'])}")
    return problems


def _headline(state: AgentState, running: bool, now_s: float) -> str:
    from agridistill.edge.events import duration_words

    if running:
        return f"{state.device}: running for {duration_words(state.uptime_s)} (process {state.pid})"
    end = "not running since"
    if state.finished or state.stopped:
        end = "all photos were classified by" if state.finished else "stopped by Ctrl-C at"
    ago = duration_words(now_s - state.at_s)
    return f"{state.device}: {end} {_local(state.at_s)} ({ago} ago); the figures below are from then"


def _state_rows(state: AgentState) -> list[tuple[str, str]]:
    from agridistill.edge.events import bytes_words
    from agridistill.edge.state import (
        broker_words,
        kept_words,
        model_words,
        queue_words,
        source_trouble_words,
        verdict_counts_words,
        waiting_words,
    )

    trouble = source_trouble_words(state)
    verdicts = verdict_counts_words(state.verdicts) if state.frames else ""
    memory, disk = (
        UNDEFINED if size is None else bytes_words(size) for size in (state.memory_bytes, state.disk_free_bytes)
    )
    return [
        ("source", state.source + (f" ({trouble})" if trouble else "")),
        ("frames", f"{state.frames:,}" + (f" ({verdicts})" if verdicts else "")),
        ("lost", f"{state.skipped:,} skipped while busy, {state.unreadable:,} unreadable"),
        ("model", model_words(state)),
        ("broker", broker_words(state)),
        ("queue", queue_words(state)),
        *((name, waiting_words(waits)) for name, waits in state.outputs.items()),
        *([("kept photos", kept_words(state.kept))] if state.kept is not None else []),
        ("processor", UNDEFINED if state.processor_celsius is None else f"{state.processor_celsius:.0f} °C"),
        ("memory", memory),
        ("free disk", disk),
    ]


def _print_alerts(alerts: list[Alert], now_s: float) -> None:
    from agridistill.edge.events import duration_words

    if not alerts:
        stdout.print("No alert is open.")
    for alert in alerts:
        since = duration_words(now_s - alert.since_s)
        stdout.print(printable(f"{alert.level.capitalize()}, open for {since}: {alert.text}"), style="yellow")


def _print_detections(detections: list[Detection], model: str) -> None:
    from agridistill.edge.events import detection_words, number_of

    # Show each detection's model if any of them comes from another model than the present one.
    several = any(one.model != model for one in detections)
    headings = ("plot", "answer", "photo", *(("model",) if several else ()))
    table = output.new_table(f"Last {number_of(len(detections), 'detection')}", "time", *headings)
    for column in table.columns:
        column.justify = "left"
    for one in detections:
        cells = [one.plot or UNDEFINED, detection_words(one), one.photo, *((one.model,) if several else ())]
        table.add_row(_local(one.at_s), *map(printable, cells), style="" if one.verdict == "answer" else "yellow")
    output.print_table(table)


def _local(at_s: float) -> str:
    from agridistill.edge.events import moment

    when = moment(at_s)
    return "an unknown time" if when is None else f"{when.astimezone():%Y-%m-%d %H:%M:%S}"
