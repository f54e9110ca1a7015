"""Describes the machine of a benchmark and reads its counters of memory and energy."""

from __future__ import annotations

import inspect
import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from agridistill.errors import ModelError

_CPUINFO = Path("/proc/cpuinfo")
_POWERCAP = Path("/sys/class/powercap")
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
    # Not imported at the top: the worker imports this module, and 2 MB would count as the model's memory.
    from importlib import metadata

    versions: dict[str, str | None] = {}
    for name in (*_LIBRARIES, *libraries):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return Host(
        processor=processor_name(),
        cores=os.cpu_count() or 1,
        instructions=instructions(),
        system=platform.platform(),
        python=platform.python_version(),
        versions=versions,
        date_utc=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def processor_name(cpuinfo: Path = _CPUINFO) -> str:
    """Returns the processor's name; on a single-board computer it is the name of the board."""
    fields = _first_fields(cpuinfo)
    name = fields.get("model name") or fields.get("Model") or fields.get("Hardware")
    if name is None and sys.platform == "darwin":
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
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return fields
    for line in lines:
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    return fields


def peak_memory_bytes() -> int | None:
    """Returns the largest amount of RAM that this process has used so far, in bytes; None if it is not counted."""
    # Prefer /proc to resource.getrusage, because ru_maxrss of a child process is at least its parent's.
    # bare_interpreter_bytes runs the source of this function in an interpreter that has imported only sys; pathlib
    # would increase the memory that it measures.
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:  # noqa: PTH123
            for line in status:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def bare_interpreter_bytes() -> int | None:
    """Returns the peak memory, in bytes, of a Python interpreter that does nothing; None if it is not counted.

    Raises:
        ModelError: the Python interpreter cannot be started.
    """
    code = f"import sys\n{inspect.getsource(peak_memory_bytes)}\nprint(peak_memory_bytes() or '')"
    try:
        done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    except (OSError, subprocess.CalledProcessError) as error:
        raise ModelError("to start a Python process", str(error), "check the installation of Python") from None
    return int(done.stdout) if done.stdout.strip() else None


class EnergyCounter:
    """Reads how much energy all processors of the machine have used, for all processes, from Linux's RAPL counters."""

    def __init__(self, root: Path = _POWERCAP) -> None:
        self._counters: list[tuple[Path, int]] = []
        # Only whole packages: cores and memory are parts of them, and "psys" and "intel-rapl-mmio" count them again.
        for zone in sorted(root.glob("intel-rapl:*")):
            try:
                if (zone / "name").read_text().startswith("package"):
                    self._counters.append((zone / "energy_uj", int((zone / "max_energy_range_uj").read_text())))
            except (OSError, ValueError):
                continue

    def read(self) -> tuple[int, ...] | None:
        """Returns the counters in microjoules; None if there are none, or the user has no permission to read them."""
        try:
            return tuple(int(counter.read_text()) for counter, _ in self._counters) or None
        except (OSError, ValueError):
            return None

    def joules_since(self, start: tuple[int, ...] | None) -> float | None:
        """Returns the energy in joules since `start`, a result of `read`; None if it is unknown.

        Each counter may wrap around once; at 100 W that takes at least half an hour.
        """
        now = self.read()
        if start is None or now is None:
            return None
        used = (
            after - before if after >= before else after - before + range_uj
            for before, after, (_, range_uj) in zip(start, now, self._counters, strict=True)
        )
        return sum(used) / 1e6
