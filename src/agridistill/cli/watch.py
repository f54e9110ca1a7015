"""`agridistill watch` and `publish`: the agent in the field, and signed releases of its model."""

from __future__ import annotations

import json as json_format
import re
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer import Argument, Option

from agridistill.cli import options, output
from agridistill.cli.output import printable, stderr, stdout
from agridistill.errors import ConfigError, needs_extra

if TYPE_CHECKING:
    from agridistill.edge.alerts import AlertMessage
    from agridistill.edge.events import Detection
    from agridistill.edge.settings import WatchSettings

_KEY_ID = re.compile(r"[0-9a-f]{16}")


def watch(
    source: Annotated[
        str | None,
        Argument(
            metavar="[SOURCE]",
            help="A folder of photos, http(s)://… (snapshots or MJPEG), rtsp://…, /dev/videoN or a video file.",
        ),
    ] = None,
    model: Annotated[
        Path | None, Option(metavar="MODEL", help="Exported model (.onnx, .tflite), or a shipped one (tomato).")
    ] = None,
    config: Annotated[
        Path | None, Option(metavar="FILE", help="Settings and rules as TOML; options override them.")
    ] = None,
    state: Annotated[
        Path | None,
        Option(metavar="DIR", help="Folder for what must not be lost.", show_default="~/.local/state/agridistill"),
    ] = None,
    broker: Annotated[str | None, Option(metavar="URL", help="mqtt\\[s]://\\[USER@]HOST\\[:PORT]\\[/PREFIX].")] = None,
    device: Annotated[
        str | None, Option(metavar="NAME", help="Name on the page, in messages and topics.", show_default="the host's")
    ] = None,
    plot: Annotated[
        str | None, Option(metavar="NAME", help="Where the plants stand. In a folder, subfolders are plots.")
    ] = None,
    every: Annotated[float | None, Option(min=0, metavar="S", help="Seconds between a camera's frames.")] = None,
    after: Annotated[Literal["keep", "delete"] | None, Option(help="Keep or delete a folder's photos.")] = None,
    page: Annotated[str | None, Option(metavar="[HOST:]PORT", help="Serve the local page and the metrics.")] = None,
    thumbnails: Annotated[
        bool | None, Option(help="Keep small pictures for the page.", show_default="on where the page is local")
    ] = None,
    once: Annotated[bool, Option("--once", help="End when all photos of a folder are classified and sent.")] = False,
    json: Annotated[bool, Option("--json", help="Print each detection and alert as one line of JSON.")] = False,
    quiet: Annotated[bool, Option("--quiet", help="Print alerts and problems only.")] = False,
) -> None:
    """Watch photos as they come: classify, warn, and send the detections to a broker, which may be away for weeks.

    Every detection is on the disk before anything is sent. Ctrl-C or SIGTERM end the agent cleanly; the same command
    continues where it stopped.
    """
    from agridistill.runtime.backends import model_path

    with needs_extra("the field part of AgriDistill", "edge"):
        from agridistill.edge.agent import Listeners
        from agridistill.edge.building import watch as run
        from agridistill.edge.events import number_of
        from agridistill.edge.settings import WatchSettings, read_settings
        from agridistill.edge.state import state_folder, verdict_counts_words

    settings = read_settings(config) if config is not None else WatchSettings()
    given = {"source": source, "model": model, "device": device, "plot": plot, "every_s": every, "after": after}
    settings = _with_options(settings, given | {"thumbnails": thumbnails}, broker=broker, page=page)
    if not settings.source:
        raise ConfigError("a source to watch", "none", "run agridistill watch FOLDER --model leaf.onnx")
    if settings.model is None:
        raise ConfigError(
            "a model", "none", "--model tomato, or agridistill export RUN --out leaf.onnx and --model leaf.onnx"
        )
    settings = replace(settings, model=model_path(settings.model))
    folder = state if state is not None else state_folder()
    printer = _Printer(json=json, quiet=quiet)
    with _stopping() as (stop, by_user):
        listeners = Listeners(printer.detection, printer.alert, printer.page)
        end = run(settings, folder, stop, listeners, once=once, by_user=by_user.is_set)
    if not json:
        counts = verdict_counts_words(end.verdicts)
        new = f"{printer.detections:,} new" if printer.detections else "nothing new"
        stderr.print(f"ended: {new}; {number_of(end.frames, 'frame')} decided on in all ({counts})")
    output.next_command("status", *(("--state", folder) if state is not None else ()))


class _Printer:
    """Prints detections and alerts once they are stored."""

    def __init__(self, *, json: bool, quiet: bool) -> None:
        self._json, self._quiet = json, quiet
        self.detections = 0

    def detection(self, detection: Detection) -> None:
        self.detections += 1
        if self._json:
            self._line({"event": "detection", **detection.to_json()})
        elif not self._quiet:
            stdout.print(_detection_line(detection))

    def alert(self, message: AlertMessage) -> None:
        if self._json:
            self._line({"event": "alert", "change": message.change, **message.alert.to_json()})

    def page(self, address: str) -> None:
        stderr.print(f"page: {address}")

    @staticmethod
    def _line(document: dict[str, Any]) -> None:
        sys.stdout.write(json_format.dumps(document, allow_nan=False) + "\n")
        sys.stdout.flush()


def _detection_line(detection: Detection) -> str:
    from agridistill.edge.events import detection_words

    at = datetime.fromtimestamp(detection.at_s).strftime("%H:%M:%S")  # noqa: DTZ006 - local time
    # In a folder the plot is the subfolder, with which the photo's name begins.
    named = not detection.plot or detection.photo.startswith(f"{detection.plot}/")
    return printable(f"{at} {'' if named else detection.plot + ' '}{detection.photo}: {detection_words(detection)}")


def _with_options(
    settings: WatchSettings, given: Mapping[str, Any], *, broker: str | None, page: str | None
) -> WatchSettings:
    """The file's settings, changed by the options; None where not given."""
    from agridistill.edge.delivery.broker import BrokerSettings
    from agridistill.edge.settings import PageSettings

    changes = {name: value for name, value in given.items() if value is not None}
    if not changes.get("plot", "x").strip():
        raise ConfigError("a plot's name for --plot", f"'{given['plot']}'", "for example --plot north, or leave it out")
    if broker is not None:
        changes["broker"] = replace(settings.broker, url=broker) if settings.broker else BrokerSettings(broker)
    if page is not None:
        host, _, port = page.rpartition(":")
        if not port.isdecimal():
            raise ConfigError("--page [HOST:]PORT", f"'{page}'", "for example --page 8571")
        before = settings.page or PageSettings()
        changes["page"] = replace(before, port=int(port), host=host.strip("[]") or before.host)
    return replace(settings, **changes)


@contextmanager
def _stopping() -> Iterator[tuple[threading.Event, threading.Event]]:
    """An event that Ctrl-C and SIGTERM set, and one that Ctrl-C alone sets; a second one ends at once."""
    stop, by_user = threading.Event(), threading.Event()

    def ask(number: int, frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        if number == signal.SIGINT:
            by_user.set()
        stop.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop, by_user
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def publish(
    model: Annotated[Path | None, Argument(metavar="MODEL", help="Exported model, or a shipped one (tomato).")] = None,
    key: Annotated[list[Path] | None, Option(help="Private key that signs; repeatable.")] = None,
    version: Annotated[int | None, Option(min=1, help="Above the last one.")] = None,
    golden: Annotated[
        Path | None, Option(help="Photos in class folders, or photos that the model answers now.")
    ] = None,
    out: Annotated[Path | None, Option(help="Folder that devices will see.")] = None,
    base_url: Annotated[str, Option(help="Its address, for releases sent by MQTT.")] = "",
    channel: Annotated[str, Option(help="Which devices take it.")] = "default",
    minimum_agreement: Annotated[float, Option(min=0.0, max=1.0, help="Share of golden photos to get right.")] = 0.9,
    trust_key: Annotated[list[Path] | None, Option(help="Public key to trust from now on; repeatable.")] = None,
    revoke_key: Annotated[list[str] | None, Option(metavar="ID", help="Key to trust no more; repeatable.")] = None,
    new_key: Annotated[Path | None, Option(help="Only make a key: this file and FILE.pub.")] = None,
    json: options.Json = False,
) -> None:
    """Sign a release of an exported model; devices fetch it, try it, and return to the old one if it fails.

    A key's password is read from AGRIDISTILL_KEY_PASSWORD.
    """

    with needs_extra("cryptography, to sign releases", "edge"):
        from agridistill.edge.updates.publishing import PublishSettings
        from agridistill.edge.updates.publishing import publish as write
        from agridistill.edge.updates.release import read_private_key, read_public_key
    from agridistill.runtime.backends import model_path
    from agridistill.storage import require_writable

    if new_key is not None:
        _make_key(new_key, json=json)
        return
    if not key or model is None or golden is None or out is None or version is None:
        named = {"MODEL": model, "--key": key or None, "--version": version, "--golden": golden, "--out": out}
        missing = [name for name, value in named.items() if value is None]
        raise typer.BadParameter(f"{', '.join(missing)} missing (or --new-key FILE to make a key)")
    for name in revoke_key or []:
        if not _KEY_ID.fullmatch(name):
            raise typer.BadParameter(f"--revoke-key takes a key's id of 16 hexadecimal digits, not '{name}'")
    settings = PublishSettings(
        version=version,
        channel=channel,
        minimum_agreement=minimum_agreement,
        base_url=base_url,
        trust=tuple(read_public_key(path) for path in trust_key or []),
        revoke=tuple(revoke_key or []),
    )
    for path in key:
        if path.resolve().is_relative_to(out.resolve()):
            raise typer.BadParameter(f"the private key '{path}' lies in '{out}', which devices will see")
    require_writable(out, folder=True)
    keys = [read_private_key(path) for path in key]
    with output.progress_bar("golden photos") as progress:
        result = write(model_path(model), golden, out, keys, settings, progress=progress)
    if json:
        output.print_json(result.to_json())
    else:
        state = "exists unchanged" if result.unchanged else "written"
        stderr.print(
            f"{result.release}: version {result.version} {state}, {result.files} files, "
            f"{result.size_bytes / 1e6:.2f} MB, signed by {', '.join(result.key_ids)}; of {result.golden_photos} "
            f"golden photos {100 * result.agreement:.1f} % right here, at least {100 * settings.minimum_agreement:g} % "
            "needed on a device"
        )
    output.next_command("watch", "SOURCE", "--model", model, "--config", "watch.toml")


def _make_key(path: Path, *, json: bool) -> None:
    from agridistill.edge.updates.release import PUBLIC_SUFFIX, create_key

    identity, public = create_key(path), f"{path}{PUBLIC_SUFFIX}"
    if json:
        output.print_json({"key_id": identity, "private_key": str(path), "public_key": public})
    else:
        stderr.print(f"key {identity}: '{path}' signs, keep it secret; '{public}' goes onto the devices")
    output.next_command("publish", "MODEL", "--key", path, "--version", "1", "--golden", "PHOTOS", "--out", "FOLDER")
