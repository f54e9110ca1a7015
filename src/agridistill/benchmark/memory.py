"""Peak memory of this process. Run as a program, it prints that of a bare interpreter."""

from __future__ import annotations

import sys


def peak_memory_bytes() -> int | None:
    """The most memory that this process has held in RAM so far; None where the system does not tell."""
    # Not resource.getrusage where there is /proc: ru_maxrss of a child is at least its parent's.
    peak = _high_water_mark()
    return _resource_peak() if peak is None else peak


def _high_water_mark() -> int | None:
    try:
        # Not pathlib: it would count as the bare interpreter's own.
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:  # noqa: PTH123
            found = [line.split() for line in status if line.startswith("VmHWM:")]
    except OSError:
        return None
    return int(found[0][1]) * 1024 if found else None


def _resource_peak() -> int | None:
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    sys.stdout.write(str(peak_memory_bytes() or ""))
