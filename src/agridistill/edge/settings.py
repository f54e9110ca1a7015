"""Settings of `agridistill watch`: one TOML file per device, whose keys, types and ranges are checked."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from agridistill.arguments import require_threads
from agridistill.edge.alerts.rules import Rule, WindowMinutes, default_rules
from agridistill.edge.delivery.broker import BrokerSettings
from agridistill.edge.delivery.outputs import Command
from agridistill.edge.keep.choice import KeepSettings
from agridistill.edge.store.history import HistoryLimits
from agridistill.edge.store.outbox import OutboxLimits
from agridistill.errors import ConfigError
from agridistill.local_page import is_loopback
from agridistill.runtime.verdict import QualitySettings
from agridistill.settings_file import build_settings, read_toml

_DEVICE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
_LONGEST_SECRET = 10_000
_ADDRESSES = frozenset({"url", "source", "words", "upload"})


@dataclass(frozen=True)
class WebhookSettings:
    """Section [webhook]: the address that receives each alert as JSON by HTTP POST."""

    url: str
    token_file: Path | None = None  # file with the bearer token; None uses AGRIDISTILL_WEBHOOK_TOKEN


@dataclass(frozen=True)
class PageSettings:
    """Section [page]: where the local web page and the metrics are served. Without a token only loopback is allowed."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65_535)] = 8571
    token_file: Path | None = None  # file with the token; None uses AGRIDISTILL_PAGE_TOKEN
    app: Path | None = None  # folder that agridistill app wrote, served at /app/


@dataclass(frozen=True)
class UpdateSettings:
    """Section [updates]: where new models come from, and which keys must have signed them."""

    keys: Path  # a public key, or a folder of public keys
    source: str = ""  # `http(s)://…/release.json`, or a folder; "" takes releases only from MQTT
    every_hours: Annotated[float, Field(ge=0.01, le=24 * 31)] = 6.0  # hours between two checks of the source
    channel: str = "default"  # releases of other channels are refused
    ca_file: Path | None = None  # certificate authorities to trust for https; None trusts the system's


@dataclass(frozen=True)
class WatchSettings:
    """All settings of `agridistill watch`, as in a device's settings file (docs/field.md).

    Raises:
        ConfigError: a value is invalid, or two rules have the same name.
    """

    source: str = ""  # a folder, a camera, a stream, a snapshot or a video file
    model: Path | None = None  # an exported file, or a shipped model's name
    device: str = ""  # the device's name in topics; "" takes the host's name
    plot: str = ""  # where the plants stand; for a folder, the plot of photos outside its subfolders
    every_s: Annotated[float, Field(ge=0)] = 1.0  # seconds between two frames of a camera or video file
    after: Literal["keep", "delete"] = "keep"  # what to do with a folder's photo after its detection is stored
    time: Literal["arrival", "photo"] = "arrival"  # the time that rules use for a folder's photo: arrival, or EXIF
    ca_file: Path | None = None  # certificate authorities to trust for an https camera; None trusts the system's
    threads: int = 1  # threads of one prediction
    thumbnails: bool | None = None  # keep small pictures for the page; None keeps them if the page is on loopback
    window_minutes: WindowMinutes = 1440.0  # window for a plot's health and report, and for the default rule
    default_rules: bool = True  # if `rules` is empty, use one rule for all classes that are not healthy
    healthy: tuple[str, ...] = ()  # names and patterns of further healthy classes (see `rules.is_healthy`)
    quality: QualitySettings = field(default_factory=QualitySettings)
    rules: tuple[Rule, ...] = ()
    broker: BrokerSettings | None = None
    webhook: WebhookSettings | None = None
    command: Command | None = None
    page: PageSettings | None = None
    updates: UpdateSettings | None = None
    keep: KeepSettings | None = None
    outbox: OutboxLimits = field(default_factory=OutboxLimits)
    history: HistoryLimits = field(default_factory=HistoryLimits)

    def __post_init__(self) -> None:
        if self.device and not _DEVICE.fullmatch(self.device):
            usable = _usable_name(self.device)
            remedy = f"for example '{usable}'" if usable else "choose another"
            expected = "a device name (device) of up to 63 letters, digits, '_' and '-'"
            raise ConfigError(expected, f"'{self.device}'", remedy)
        names = [rule.name for rule in self.rules]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ConfigError("[[rules]] with different names", f"the name '{twice}' twice", "rename one of them")
        require_threads(self.threads)
        if any(not sign.isprintable() or sign in "/#+" for sign in self.plot):
            remedy = f"for example '{_usable_name(self.plot) or 'north'}'"
            expected = "a plot name (plot) without '/', '#', '+' and control characters"
            raise ConfigError(expected, repr(self.plot), remedy)
        if self.model == Path():
            expected = "a model file or the name of a shipped model (model)"
            raise ConfigError(expected, "an empty path or '.'", 'for example model = "tomato"')

    @property
    def device_name(self) -> str:
        """`device`, or if that is empty, the host's name."""
        return self.device or _usable_name(socket.gethostname()) or "device"

    @property
    def keeps_thumbnails(self) -> bool:
        """Whether small pictures are stored: `thumbnails`, or if that is None, whether the page is on loopback."""
        if self.thumbnails is not None:
            return self.thumbnails
        return self.page is not None and is_loopback(self.page.host)

    def rules_for(self, ill: Sequence[str]) -> tuple[Rule, ...]:
        """Returns `rules`, or without any, the default rule for the ill classes `ill` (if `default_rules` is on)."""
        return self.rules or (default_rules(ill, self.window_minutes) if self.default_rules else ())


def _usable_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "-", text).strip("-_")[:63]


def read_settings(path: Path) -> WatchSettings:
    """Reads a device's settings file (TOML). Relative paths in it are relative to the file's folder.

    Raises:
        ConfigError: the file is missing or not TOML, a key is unknown, or a value is invalid.
    """
    given = watch_settings(read_toml(path, "a settings file"), where=f"'{path}'")
    settings: WatchSettings = _from_folder(given, path.parent)
    return settings


def watch_settings(document: Mapping[str, Any], *, where: str) -> WatchSettings:
    """Creates settings from parsed TOML; raises ConfigError, with `where` as the name of the file."""
    # Error messages hide addresses: they often hold a token or a password.
    return build_settings(WatchSettings, document, f"in {where}", secret=_ADDRESSES)


def require_valid(settings: WatchSettings) -> None:
    """Checks settings that were created in Python as a settings file is checked; raises ConfigError."""
    # The paths of source and model may not be valid UTF-8, which JSON requires.
    plain = TypeAdapter(WatchSettings).dump_python(settings, mode="json", exclude={"source", "model"})
    watch_settings(plain, where="the agent's settings")


def read_secret(file: Path | None, variable: str) -> str | None:
    """Returns the secret in `file`, or if `file` is None, in the environment variable `variable` (None if unset).

    Raises:
        ConfigError: the file cannot be read or is empty. The message never contains the secret.
    """
    if file is None:
        return os.environ.get(variable) or None
    expected = "a file with a token or password (token_file, password_file)"
    try:
        with file.open(encoding="utf-8") as opened:
            secret = opened.read(_LONGEST_SECRET).strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise ConfigError(expected, f"'{file}' ({reason})", "check its path and permissions") from None
    if not secret:
        raise ConfigError(expected, f"'{file}', which is empty", "write the token or password into it")
    return secret


def _from_folder(value: Any, folder: Path) -> Any:
    """Returns a settings dataclass with relative paths joined to `folder`."""
    changed: dict[str, Any] = {}
    for item in fields(value):
        found = getattr(value, item.name)
        if isinstance(found, Path):
            # A folder to write into may not exist yet.
            changed[item.name] = folder / _home_of(found) if item.name == "folder" else _located(found, folder)
        elif item.name == "source" and found and "://" not in found:
            changed[item.name] = str(_located(Path(found), folder))
        elif is_dataclass(found) and not isinstance(found, type):
            changed[item.name] = _from_folder(found, folder)
    return replace(value, **changed)


def _located(path: Path, folder: Path) -> Path:
    """Joins a path to `folder`; a name without a file there (a camera's number, a shipped model) stays unchanged."""
    candidate = folder / _home_of(path)
    return candidate if candidate.exists() or len(path.parts) > 1 or path.is_absolute() else path


def _home_of(path: Path) -> Path:
    """Replaces `~` by the home folder; a user without one leaves the path as it is, and reading it reports that."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 - Path.expanduser raises RuntimeError
