"""What a figure was measured on: processor, instructions, system and versions. Imports nothing heavy."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from agridistill.benchmark import memory
from agridistill.errors import ModelError

_CPUINFO = Path("/proc/cpuinfo")
# What makes a network faster, fp32 or int8, where an engine uses it: x86's names, then Arm's.
_TELLING_INSTRUCTIONS = (
    "avx2",
    "avx_vnni",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "asimddp",
    "i8mm",
    "bf16",
    "sve",
)
_LIBRARIES = ("agridistill", "numpy", "Pillow")


@dataclass(frozen=True)
class Host:
    """The machine and what runs on it.

    Attributes:
        processor: its name as the system tells it.
        cores: that the system counts, hyper-threads included.
        instructions: of those that speed a network up, the ones that the processor has; None where unknown.
        system: name and version of the operating system.
        python: version.
        versions: of the libraries that take part; None where one is not installed.
        date_utc: when this was recorded, ISO 8601.
    """

    processor: str
    cores: int
    instructions: tuple[str, ...] | None
    system: str
    python: str
    versions: dict[str, str | None]
    date_utc: str

    def to_json(self) -> dict[str, Any]:
        """Every field."""
        listed = None if self.instructions is None else list(self.instructions)
        return asdict(self) | {"instructions": listed}


def describe_host(libraries: Iterable[str] = ()) -> Host:
    """The machine at hand, now.

    Args:
        libraries: distributions whose versions matter, besides AgriDistill's own.
    """
    return Host(
        processor=processor_name(),
        cores=os.cpu_count() or 1,
        instructions=instructions(),
        system=platform.platform(),
        python=platform.python_version(),
        versions={name: _version(name) for name in (*_LIBRARIES, *libraries)},
        date_utc=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def processor_name(cpuinfo: Path = _CPUINFO) -> str:
    """The processor's name: of x86 "model name", of a single-board computer the board's "Model"."""
    fields = _first_fields(cpuinfo)
    named = fields.get("model name") or fields.get("Model") or fields.get("Hardware")
    if named is None and sys.platform == "darwin":
        command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
        named = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()  # noqa: S603
    return named or platform.processor() or platform.machine()


def instructions(cpuinfo: Path = _CPUINFO) -> tuple[str, ...] | None:
    """Which of the instruction sets that speed a network up the processor has; None where the system does not tell."""
    fields = _first_fields(cpuinfo)
    told = fields.get("flags") or fields.get("Features")
    return None if told is None else tuple(name for name in _TELLING_INSTRUCTIONS if name in told.split())


def bare_interpreter_bytes() -> int | None:
    """Peak memory of a Python that does nothing; None where the system does not tell.

    Raises:
        ModelError: no Python can be started.
    """
    try:
        done = subprocess.run(  # noqa: S603 - this very Python and a file of ours
            [sys.executable, "-P", memory.__file__], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise ModelError("a Python that can be started", str(error), "check the installation") from None
    return int(done.stdout) if done.stdout else None


def _first_fields(cpuinfo: Path) -> dict[str, str]:
    """What /proc/cpuinfo says of the first core, and what it says of the board at its end."""
    fields: dict[str, str] = {}
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return fields
    for line in lines:
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    return fields


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
