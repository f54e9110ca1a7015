"""The commands `agridistill watch`, which runs the field agent, and `publish`, which signs models for devices."""

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
            help="Watch a folder of photos, http(s)://… (snapshots or MJPEG), rtsp://…, /dev/videoN or a video file.",
        ),
    ] = None,
    model: Annotated[
        Path | None,
        Option(metavar="MODEL", help="Use this model: an exported file (.onnx, .tflite) or a shipped one (tomato)."),
    ] = None,
    config: Annotated[
        Path | None, Option(metavar="FILE", help="Read settings and rules from a TOML file; options override them.")
    ] = None,
    state: Annotated[
        Path | None,
        Option(
            metavar="DIR",
            help="Store detections and unsent messages in this folder.",
            show_default="~/.local/state/agridistill",
        ),
    ] = None,
    broker: Annotated[
        str | None,
        Option(metavar="URL", help="Send to this MQTT broker: mqtt\\[s]://\\[USER@]HOST\\[:PORT]\\[/PREFIX]."),
    ] = None,
    device: Annotated[
        str | None,
        Option(
            metavar="NAME", help="Use this device name on the page and in messages.", show_default="the host's name"
        ),
    ] = None,
    plot: Annotated[
        str | None,
        Option(
            metavar="NAME",
            help="Set the plot (part of the field) of the photos; each subfolder of a watched folder is also a plot.",
        ),
    ] = None,
    every: Annotated[
        float | None, Option(min=0, metavar="S", help="Take a frame of a camera or video every S seconds.")
    ] = None,
    after: Annotated[
        Literal["keep", "delete"] | None, Option(help="Keep or delete the photos of a folder after classifying them.")
    ] = None,
    page: Annotated[str | None, Option(metavar="[HOST:]PORT", help="Serve a web page and metrics at PORT.")] = None,
    app: Annotated[
        Path | None,
        Option(metavar="DIR", help="Serve the phone page in this folder (see agridistill app) at /app/ of the page."),
    ] = None,
    thumbnails: Annotated[
        bool | None,
        Option(
            help="Store a small picture of each photo for the web page.",
            show_default="on if only this device can open the page",
        ),
    ] = None,
    once: Annotated[
        bool, Option("--once", help="End when all photos of a folder are classified and all messages are sent.")
    ] = False,
    json: Annotated[bool, Option("--json", help="Print each detection and alert as one line of JSON.")] = False,
    quiet: Annotated[bool, Option("--quiet", help="Print only alerts and problems.")] = False,
) -> None:
    """Classify new photos from a folder or camera, open alerts, and send detections to an MQTT broker.

    Every detection is stored on the disk before it is sent, so the broker may be unreachable for weeks. Ctrl-C or
    SIGTERM end the agent cleanly; the same command continues where it stopped.
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
    settings = _with_options(settings, given | {"thumbnails": thumbnails}, broker=broker, page=page, app=app)
    if not settings.source:
        raise ConfigError("a source to watch", "none", "run for example agridistill watch FOLDER --model leaf.onnx")
    if settings.model is None:
        remedy = "add --model tomato, or run agridistill export RUN --out leaf.onnx and add --model leaf.onnx"
        raise ConfigError("a model", "none", remedy)
    settings = replace(settings, model=model_path(settings.model))
    folder = state if state is not None else state_folder()
    shown = {"model": model, "config": config, "broker": broker, "device": device, "plot": plot, "every": every}
    shown |= {"after": after, "page": page, "app": app, "thumbnails": thumbnails, "once": once or None}
    command = _command(source, shown)
    printer = _Printer(json=json, quiet=quiet)
    with _stopping() as (stop, by_user):
        listeners = Listeners(printer.detection, printer.alert, printer.page)
        end = run(settings, folder, stop, listeners, once=once, by_user=by_user.is_set, command=command)
    if not json:
        counts = verdict_counts_words(end.verdicts)
        new = number_of(printer.detections, "new detection") if printer.detections else "no new detections"
        stderr.print(f"The agent has ended: {new}; {number_of(end.frames, 'frame')} in all runs ({counts}).")
    output.next_command("status", *(("--state", folder) if state is not None else ()))


def _command(source: str | None, given: Mapping[str, Any]) -> list[str]:
    """Returns the words after `agridistill watch` that start the agent again, without parts that may be secret."""
    from agridistill.edge.network import public_name, split_url

    words = []
    if source is not None:
        name = public_name(split_url(source)) if "://" in source else _from_anywhere(source)
        words.append("SOURCE" if "…" in name else name)
    for option, value in given.items():
        if value is not None and not isinstance(value, bool):
            words += [f"--{option}", _from_anywhere(value) if isinstance(value, Path) else str(value)]
        elif value is not None:
            words.append(f"--{option}" if value else f"--no-{option}")
    return words


def _from_anywhere(path: str | Path) -> str:
    """Returns an existing path as an absolute one; the name of a shipped model or the number of a camera stays."""
    return str(Path(path).absolute()) if Path(path).exists() else str(path)


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
    # In a folder the plot is the subfolder, and the photo's name begins with it.
    named = not detection.plot or detection.photo.startswith(f"{detection.plot}/")
    return printable(f"{at} {'' if named else detection.plot + ' '}{detection.photo}: {detection_words(detection)}")


def _with_options(
    settings: WatchSettings, given: Mapping[str, Any], *, broker: str | None, page: str | None, app: Path | None
) -> WatchSettings:
    """Returns the settings with the options of the command line in their place; an option of None changes nothing."""
    from agridistill.edge.delivery.broker import BrokerSettings
    from agridistill.edge.settings import PageSettings

    changes = {name: value for name, value in given.items() if value is not None}
    if not changes.get("plot", "x").strip():
        raise ConfigError("a plot's name for --plot", f"'{given['plot']}'", "use for example --plot north, or omit it")
    if broker is not None:
        changes["broker"] = replace(settings.broker, url=broker) if settings.broker else BrokerSettings(broker)
    if page is not None:
        host, _, port = page.rpartition(":")
        if not port.isdecimal():
            raise ConfigError("--page [HOST:]PORT", f"'{page}'", "use for example --page 8571")
        before = settings.page or PageSettings()
        changes["page"] = replace(before, port=int(port), host=host.strip("[]") or before.host)
    if app is not None:
        served = changes.get("page", settings.page)
        if served is None:
            raise ConfigError("--page with --app", "--app alone", "add for example --page 8571")
        changes["page"] = replace(served, app=app)
    return replace(settings, **changes)


@contextmanager
def _stopping() -> Iterator[tuple[threading.Event, threading.Event]]:
    """Handles Ctrl-C and SIGTERM; a second signal ends the program at once.

    Yields two events: one that either signal sets, and one that only Ctrl-C sets.
    """
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
    model: Annotated[
        Path | None, Argument(metavar="MODEL", help="Publish this exported model, or a shipped one (tomato).")
    ] = None,
    key: Annotated[list[Path] | None, Option(help="Sign with this private key; repeatable.")] = None,
    version: Annotated[
        int | None, Option(min=1, help="Set the number of the release, higher than that of the last one.")
    ] = None,
    golden: Annotated[
        Path | None,
        Option(
            help="Let devices test the model on these photos. The right answers are the names of their class folders; "
            "without class folders, they are the present answers of the model. "
            "Of more than 200 photos, only five of each class are used."
        ),
    ] = None,
    out: Annotated[Path | None, Option(help="Write the release into this folder, which devices can read.")] = None,
    base_url: Annotated[str, Option(help="Set the URL of the files in --out, for releases sent by MQTT.")] = "",
    channel: Annotated[str, Option(help="Publish for devices with this channel in their settings.")] = "default",
    minimum_agreement: Annotated[
        float, Option(min=0.0, max=1.0, help="Require this share of right answers (0 to 1) on the photos of --golden.")
    ] = 0.9,
    trust_key: Annotated[
        list[Path] | None, Option(help="Make devices trust this public key from now on; repeatable.")
    ] = None,
    revoke_key: Annotated[
        list[str] | None, Option(metavar="ID", help="Make devices stop trusting the key with this id; repeatable.")
    ] = None,
    new_key: Annotated[
        Path | None, Option(help="Only create a key pair: the private key in this file, the public key in FILE.pub.")
    ] = None,
    against: Annotated[
        Path | None,
        Option(
            metavar="PROOF",
            help="Prove with this file of `evaluate MODEL PHOTOS --against OLD --out PROOF` that the model may replace "
            "the last release of its channel.",
        ),
    ] = None,
    without_proof: Annotated[
        bool, Option("--without-proof", help="Publish another model than the last without a proof, and record that.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Sign an exported model as a release; devices fetch it, test it, and return to their old model if it fails.

    If a model was released before on this channel, another one needs a proof that it is no worse (--against).

    The password of a private key is read from AGRIDISTILL_KEY_PASSWORD.
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
        raise typer.BadParameter(f"{', '.join(missing)} missing; to only create a key, use --new-key FILE")
    for name in revoke_key or []:
        if not _KEY_ID.fullmatch(name):
            raise typer.BadParameter(f"--revoke-key takes a key's id of 16 hexadecimal digits, not '{name}'")
    if against is not None and without_proof:
        raise typer.BadParameter("--against or --without-proof, not both")
    settings = PublishSettings(
        version=version,
        channel=channel,
        minimum_agreement=minimum_agreement,
        base_url=base_url,
        trust=tuple(read_public_key(path) for path in trust_key or []),
        revoke=tuple(revoke_key or []),
        proof=against,
        without_proof=without_proof,
    )
    for path in key:
        if path.resolve().is_relative_to(out.resolve()):
            raise typer.BadParameter(f"the private key '{path}' is in --out '{out}', which devices can read; move it")
    require_writable(out, folder=True)
    keys = [read_private_key(path) for path in key]
    with output.progress_bar("golden photos") as progress:
        result = write(model_path(model), golden, out, keys, settings, progress=progress)
    if json:
        output.print_json(result.to_json())
    else:
        state = "exists already, unchanged" if result.unchanged else "is written"
        stderr.print(
            f"{result.release}: version {result.version} {state}, with {result.files} files, "
            f"{result.size_bytes / 1e6:.2f} MB, signed by {', '.join(result.key_ids)}; the model answers "
            f"{100 * result.agreement:.1f} % of {result.golden_photos} golden photos correctly on this computer, and "
            f"must answer {100 * settings.minimum_agreement:g} % correctly on a device"
        )
        if result.proof != "not needed":
            stderr.print(f"proof: {printable(result.proof_headline or 'none')}")
    output.next_command("watch", "SOURCE", "--model", model, "--config", "watch.toml")


def _make_key(path: Path, *, json: bool) -> None:
    from agridistill.edge.updates.release import PUBLIC_SUFFIX, create_key

    identity, public = create_key(path), f"{path}{PUBLIC_SUFFIX}"
    if json:
        output.print_json({"key_id": identity, "private_key": str(path), "public_key": public})
    else:
        stderr.print(f"key {identity}: '{path}' is the private key, keep it secret; copy '{public}' to the devices")
    output.next_command("publish", "MODEL", "--key", path, "--version", "1", "--golden", "PHOTOS", "--out", "FOLDER")
