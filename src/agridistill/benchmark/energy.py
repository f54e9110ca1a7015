"""Energy of the processor packages, from the counters that Linux shows (RAPL)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")


@dataclass(frozen=True)
class _Package:
    """One processor package.

    Attributes:
        counter: file with the energy so far in microjoules, from 0 again above `range_uj`.
        range_uj: the counter's largest value.
    """

    counter: Path
    range_uj: int


class EnergyCounter:
    """Joules of all processor packages: cores, caches and memory controller, whoever uses them.

    Args:
        root: where the system shows its counters.
    """

    def __init__(self, root: Path = POWERCAP) -> None:
        self._packages = _packages(root)

    def read(self) -> tuple[int, ...] | None:
        """The counters as they stand, in microjoules; None where there are none that this user may read."""
        if not self._packages:
            return None
        try:
            return tuple(int(package.counter.read_text()) for package in self._packages)
        except (OSError, ValueError):
            return None

    def joules_since(self, start: tuple[int, ...] | None) -> float | None:
        """Energy since `start`, which `read` gave; None where there is none to read.

        A counter that came round once since then is allowed for: at 100 W that takes more than half an hour.
        """
        now = self.read()
        if start is None or now is None:
            return None
        used = [
            after - before if after >= before else after - before + package.range_uj
            for before, after, package in zip(start, now, self._packages, strict=True)
        ]
        return sum(used) / 1e6


def _packages(root: Path) -> tuple[_Package, ...]:
    """Whole packages only: cores and memory are parts of them, "psys" and "intel-rapl-mmio" the same energy again."""
    found = []
    for zone in sorted(root.glob("intel-rapl:*")):
        try:
            if (zone / "name").read_text().startswith("package"):
                found.append(_Package(zone / "energy_uj", int((zone / "max_energy_range_uj").read_text())))
        except (OSError, ValueError):
            continue
    return tuple(found)
