"""Settings of `agridistill watch`: one TOML file for a device, typed and strict."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import Field, TypeAdapter

from agridistill.arguments import require_threads
from agridistill.edge.alerts.rules import Rule, WindowMinutes, default_rules
from agridistill.edge.delivery.broker import BrokerSettings
from agridistill.edge.delivery.outputs import Command
from agridistill.edge.network import is_loopback
from agridistill.edge.store.history import HistoryLimits
from agridistill.edge.store.outbox import OutboxLimits
from agridistill.errors import ConfigError
from agridistill.runtime.verdict import QualitySettings
from agridistill.settings_file import build_settings, read_toml

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_Group = TypeVar("_Group", bound="DataclassInstance")
_DEVICE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
_LONGEST_SECRET = 10_000
_ADDRESSES = frozenset({"url", "source", "words"})


@dataclass(frozen=True)
class WebhookSettings:
    """[webhook]: alerts as JSON by POST."""

    url: str
    token_file: Path | None = None  # bearer token; else AGRIDISTILL_WEBHOOK_TOKEN


@dataclass(frozen=True)
class PageSettings:
    """[page]: the local page and the metrics; elsewhere than on loopback a token is needed."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65_535)] = 8571
    token_file: Path | None = None  # else AGRIDISTILL_PAGE_TOKEN


@dataclass(frozen=True)
class UpdateSettings:
    """[updates]: signed models."""

    keys: Path  # a public key, or a folder of such
    source: str = ""  # `http(s)://…/release.json`, or a folder; "" for MQTT alone
    every_hours: Annotated[float, Field(ge=0.01, le=24 * 31)] = 6.0  # between two checks of the source
    channel: str = "default"  # releases of another one are refused
    ca_file: Path | None = None  # certificates of trusted authorities for https; None for the system's


@dataclass(frozen=True)
class WatchSettings:
    """The settings file of a device; see docs/field.md.

    Raises:
        ConfigError: a value that cannot be used.
    """

    source: str = ""  # a folder, a camera, a stream, a snapshot or a video file
    model: Path | None = None  # an exported file, or a shipped model's name
    device: str = ""  # name in topics; "" takes the host's name
    plot: str = ""  # where the plants stand; in a folder, of the photos outside its subfolders
    every_s: Annotated[float, Field(ge=0)] = 1.0  # pause from one frame of a camera or video file to the next
    after: Literal["keep", "delete"] = "keep"  # of a folder's photo once it is decided on
    time: Literal["arrival", "photo"] = "arrival"  # a folder's photo counts by its arrival, or by its own EXIF
    ca_file: Path | None = None  # certificates of trusted authorities for an https camera; None for the system's
    threads: int = 1  # of one prediction
    thumbnails: bool | None = None  # small pictures for the page; None keeps them where the page is local
    window_minutes: WindowMinutes = 1440.0  # of a plot's health and report, and of the default rule
    default_rules: bool = True  # where `rules` is empty, one rule for every class that is not healthy
    healthy: tuple[str, ...] = ()  # names and patterns of healthy classes, besides those named so
    quality: QualitySettings = field(default_factory=QualitySettings)
    rules: tuple[Rule, ...] = ()
    broker: BrokerSettings | None = None
    webhook: WebhookSettings | None = None
    command: Command | None = None
    page: PageSettings | None = None
    updates: UpdateSettings | None = None
    outbox: OutboxLimits = field(default_factory=OutboxLimits)
    history: HistoryLimits = field(default_factory=HistoryLimits)

    def __post_init__(self) -> None:
        if self.device and not _DEVICE.fullmatch(self.device):
            usable = _usable_name(self.device)
            remedy = f"for example '{usable}'" if usable else "choose another"
            raise ConfigError("a device's name of up to 63 letters, digits, '_' and '-'", f"'{self.device}'", remedy)
        names = [rule.name for rule in self.rules]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ConfigError("rules with different names", f"'{twice}' twice", "rename one")
        require_threads(self.threads)
        if any(not sign.isprintable() or sign in "/#+" for sign in self.plot):
            remedy = f"for example '{_usable_name(self.plot) or 'north'}'"
            raise ConfigError("a plot's name without '/', '#', '+' and control characters", repr(self.plot), remedy)
        if self.model == Path():
            raise ConfigError("a model's file, or a shipped model's name", "an empty text or '.'", "correct the model")

    @property
    def device_name(self) -> str:
        """The device's name, or the host's."""
        return self.device or _usable_name(socket.gethostname()) or "device"

    @property
    def keeps_thumbnails(self) -> bool:
        """Whether small pictures are kept: as set, else where a page shows them on this device alone."""
        if self.thumbnails is not None:
            return self.thumbnails
        return self.page is not None and is_loopback(self.page.host)

    def rules_for(self, ill: Sequence[str]) -> tuple[Rule, ...]:
        """The file's rules, else the default one of the model's ill classes."""
        return self.rules or (default_rules(ill, self.window_minutes) if self.default_rules else ())


def _usable_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "-", text).strip("-_")[:63]


def read_settings(path: Path) -> WatchSettings:
    """Reads a device's file; paths in it are relative to its folder.

    Raises:
        ConfigError: not there, no TOML, an unknown key (the nearest known one is named) or a wrong value.
    """
    settings = watch_settings(read_toml(path, "a settings file"), where=f"'{path}'")
    return _from_folder(settings, path.parent)


def watch_settings(document: Mapping[str, Any], *, where: str) -> WatchSettings:
    """Settings from what a TOML file holds; `where` it comes from, for messages.

    Raises:
        ConfigError: an unknown key or a wrong value.
    """
    # Addresses often hold a token or a password.
    return build_settings(WatchSettings, document, f"in {where}", secret=_ADDRESSES)


def require_valid(settings: WatchSettings) -> None:
    """Checks settings that a caller built as those of a file are checked.

    Raises:
        ConfigError: a value of a wrong type or range.
    """
    # The source's and the model's path need not be UTF-8, as text in JSON is.
    plain = TypeAdapter(WatchSettings).dump_python(settings, mode="json", exclude={"source", "model"})
    watch_settings(plain, where="the agent's settings")


def read_secret(file: Path | None, variable: str) -> str | None:
    """A secret from a file, else from the environment; None where there is none.

    Raises:
        ConfigError: the file cannot be read or is empty; never with what it holds.
    """
    if file is None:
        return os.environ.get(variable) or None
    try:
        with file.open(encoding="utf-8") as opened:
            secret = opened.read(_LONGEST_SECRET).strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise ConfigError("a file with a secret", f"'{file}' ({reason})", "check path and permissions") from None
    if not secret:
        raise ConfigError("a file with a secret", f"'{file}', which is empty", "write the secret into it")
    return secret


def _from_folder(value: _Group, folder: Path) -> _Group:
    """The same settings with their relative paths from a folder."""
    changed: dict[str, Any] = {}
    for item in fields(value):
        found = getattr(value, item.name)
        if isinstance(found, Path):
            changed[item.name] = _located(found, folder)
        elif item.name == "source" and found and "://" not in found:
            changed[item.name] = str(_located(Path(found), folder))
        elif is_dataclass(found) and not isinstance(found, type):
            changed[item.name] = _from_folder(found, folder)
    return replace(value, **changed)


def _located(path: Path, folder: Path) -> Path:
    """A path from a folder; what is not there (a camera's number, a shipped model's name) stays as it is."""
    candidate = folder / path.expanduser()
    return candidate if candidate.exists() or len(path.parts) > 1 or path.is_absolute() else path
