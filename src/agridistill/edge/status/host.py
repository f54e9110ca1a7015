"""What the device says of itself: temperature, memory, room on the disk. None where it does not say."""

from __future__ import annotations

import ipaddress
import os
import shutil
from pathlib import Path

_THERMAL = Path("/sys/class/thermal")
_STATM = Path("/proc/self/statm")
_PROCESSOR_ZONES = ("cpu", "x86_pkg_temp", "soc")
# A sensor without power or a driver tells values such as -274 or 200.
_CREDIBLE_CELSIUS = (-60.0, 150.0)


def processor_celsius(thermal: Path = _THERMAL) -> float | None:
    """Temperature of the processor's hottest zone in degrees Celsius; None where it is not known.

    Args:
        thermal: where Linux shows its thermal zones.
    """
    low, high = _CREDIBLE_CELSIUS
    found = []
    for zone in thermal.glob("thermal_zone*"):
        try:
            kind = (zone / "type").read_text(encoding="ascii", errors="replace").strip().lower()
            celsius = int((zone / "temp").read_text(encoding="ascii")) / 1000
        except (OSError, ValueError):
            # Zones whose sensor sleeps are there, and refuse to be read.
            continue
        if kind.startswith(_PROCESSOR_ZONES) and low < celsius < high:
            found.append(celsius)
    return max(found, default=None)


def resident_bytes(statm: Path = _STATM) -> int | None:
    """Memory that this process holds in RAM now; None where it is not known.

    Args:
        statm: where Linux tells a process's memory in pages.
    """
    try:
        return int(statm.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError, AttributeError):
        # AttributeError: no sysconf on Windows.
        return None


def disk_free_bytes(path: Path) -> int | None:
    """Room on the disk where `path` lies, as far as this user may take it; None where it is not known."""
    try:
        return shutil.disk_usage(path).free
    except OSError:
        return None


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address. A name may come to mean another one, except localhost."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
