"""Describes this machine: its processor, system and installed libraries."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
# Instruction sets that speed up fp32 or int8 networks if an engine uses them, under the names that /proc/cpuinfo has.
_X86_INSTRUCTIONS = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
_ARM_INSTRUCTIONS = ("asimd", "asimddp", "i8mm", "bf16", "sve")
_LIBRARIES = ("agridistill", "numpy", "Pillow")


@dataclass(frozen=True)
class Host:
    """The hardware and software that a benchmark ran on."""

    processor: str
    cores: int  # number of logical cores, hyper-threads included
    instructions: tuple[str, ...] | None  # instruction sets that speed up a network; None if unknown
    system: str
    python: str
    versions: dict[str, str | None]  # versions of the libraries in use; None for one that is not installed
    date_utc: str  # ISO 8601


def describe_host(libraries: Iterable[str] = ()) -> Host:
    """Describes this machine, and the installed versions of AgriDistill, numpy, Pillow and `libraries` (pip names)."""
    return Host(
        processor=processor_name(),
        cores=os.cpu_count() or 1,
        instructions=instructions(),
        system=platform.platform(),
        python=platform.python_version(),
        versions=versions_of((*_LIBRARIES, *libraries)),
        date_utc=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def usable_cores() -> int:
    """Returns the number of cores that this process may use: fewer than the machine has under `taskset` or a cpuset."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def versions_of(packages: Iterable[str]) -> dict[str, str | None]:
    """Returns the installed versions of packages by pip name; None for one that is not installed under this name."""
    # Not imported at the top: a benchmark's worker imports this module, and 2 MB would count as the model's memory.
    from importlib import metadata

    versions: dict[str, str | None] = {}
    for name in packages:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def processor_name(cpuinfo: Path = _CPUINFO) -> str:
    """Returns the processor's name; on a single-board computer it is the name of the board."""
    fields = _first_fields(cpuinfo)
    name = fields.get("model name") or fields.get("Model") or fields.get("Hardware")
    if name is None and sys.platform == "darwin":
        import subprocess

        command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
        name = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()  # noqa: S603
    return name or platform.processor() or platform.machine()


def instructions(cpuinfo: Path = _CPUINFO) -> tuple[str, ...] | None:
    """Returns the processor's instruction sets that speed up a network; None if the system does not list them."""
    fields = _first_fields(cpuinfo)
    listed = fields.get("flags") or fields.get("Features")
    known = (*_X86_INSTRUCTIONS, *_ARM_INSTRUCTIONS)
    return None if listed is None else tuple(name for name in known if name in listed.split())


def _first_fields(cpuinfo: Path) -> dict[str, str]:
    """Returns the first value of each field in `cpuinfo`: those of the first core and, at the end, of the board."""
    fields: dict[str, str] = {}
    lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines() if cpuinfo.exists() else ()
    for line in lines:
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    return fields
