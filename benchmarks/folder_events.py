"""Our inotify and listing beside watchfiles, on a folder of many photos: memory, delay, and events that are missed.

    python benchmarks/folder_events.py docs/performance/folder_events.json --photos 100000

Needs `pip install watchfiles`. Why we keep our own: docs/decisions/0011-the-field-agent.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

_FOLDERS, _DELAYS, _PATIENCE_S = 20, 100, 1.5
_STEPS_MS = (50, 5, 1)


def resident_mb() -> float:
    """Memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def listing_events(root: Path, step_ms: int) -> tuple[Callable[[], set[str]], float]:
    """Our events, and the memory that listing all photos takes."""
    from agridistill.edge.sources.listing import Listing

    before = resident_mb()
    listing = Listing(root)
    listing.open()
    listing.search()

    def events() -> set[str]:
        listing.wait(0.1, poll=False)
        names = set(listing.events())
        if listing.is_due(idle=False):
            names |= {photo.name for photo in listing.search()}
        return names

    return events, resident_mb() - before


def watchfiles_events(root: Path, step_ms: int) -> tuple[Callable[[], set[str]], float]:
    """Those of watchfiles, which lists nothing."""
    import watchfiles

    before = resident_mb()
    changes = watchfiles.watch(root, step=step_ms, rust_timeout=100, yield_on_timeout=True)
    next(changes)
    return lambda: {os.path.relpath(path, root) for _, path in next(changes)}, resident_mb() - before


def delays_ms(root: Path, events: Callable[[], set[str]]) -> list[float]:
    """From a rename to its event."""
    found = []
    for number in range(_DELAYS):
        part, photo = root / f"d{number % _FOLDERS}" / "new.part", f"d{number % _FOLDERS}/new{number}.jpg"
        part.write_bytes(b"x")
        renamed_at: list[float] = []
        timer = threading.Timer(0.02, lambda: (renamed_at.append(time.perf_counter()), part.rename(root / photo)))  # noqa: B023 - joined below
        timer.start()
        while photo not in events():
            pass
        found.append(1000 * (time.perf_counter() - renamed_at[0]))
        timer.join()
    return found


def missed(opened: Callable[[Path, int], tuple[Callable[[], set[str]], float]], step_ms: int) -> list[str]:
    """Photos of which neither an event nor a search tells within a moment."""
    folder = Path(tempfile.mkdtemp())
    root, other = folder / "root", folder / "other"
    for path in (root, other / "moved"):
        path.mkdir(parents=True)
    (other / "moved" / "a.jpg").write_bytes(b"x")
    events, _ = opened(root, step_ms)

    def sees(photo: str) -> bool:
        end = time.monotonic() + 2 * _PATIENCE_S
        while time.monotonic() < end:
            if photo in events():
                return True
        return False

    steps = {
        "in a folder that is moved in": lambda: (other / "moved").rename(root / "moved"),
        "in a linked folder": lambda: (root / "linked").symlink_to(other),
    }
    photos = {"in a folder that is moved in": "moved/a.jpg", "in a linked folder": "linked/b.jpg"}
    found = []
    for name, step in steps.items():
        step()
        time.sleep(0.1)
        if name == "in a linked folder":
            events()
            (other / "b.jpg").write_bytes(b"x")
        if not sees(photos[name]):
            found.append(name)
    shutil.rmtree(folder)
    return found


def measure(which: str, root: Path, step_ms: int) -> dict[str, object]:
    opened = listing_events if which == "own" else watchfiles_events
    events, memory_mb = opened(root, step_ms)
    begin, used = time.monotonic(), time.process_time()
    while time.monotonic() - begin < 3:
        events()
    idle = (time.process_time() - used) / (time.monotonic() - begin)
    found = delays_ms(root, events)
    return {
        "which": which if which == "own" else f"watchfiles, step {step_ms} ms",
        "memory_mb": round(memory_mb, 1),
        "delay_p50_ms": round(statistics.median(found), 2),
        "delay_max_ms": round(max(found), 2),
        "idle_processor_share": round(idle, 4),
        "missed": missed(opened, step_ms),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--photos", type=int, default=100_000)
    parser.add_argument("--only", nargs=3, metavar=("WHICH", "ROOT", "STEP"))
    arguments = parser.parse_args()
    if arguments.only:
        which, root, step = arguments.only
        print(json.dumps(measure(which, Path(root), int(step))))
        return
    root = Path(tempfile.mkdtemp())
    for folder in range(_FOLDERS):
        (root / f"d{folder}").mkdir()
    for number in range(arguments.photos):
        (root / f"d{number % _FOLDERS}" / f"p{number}.jpg").write_bytes(b"x")
    runs = []
    for which, step in [("own", 0), *(("watchfiles", step) for step in _STEPS_MS)]:  # each in a process of its own
        words = [sys.executable, __file__, str(arguments.out), "--only", which, str(root), str(step)]
        done = subprocess.run(words, check=True, capture_output=True, text=True)  # noqa: S603 - this file
        runs.append(json.loads(done.stdout))
    shutil.rmtree(root)
    arguments.out.write_text(json.dumps({"photos": arguments.photos, "runs": runs}, indent=2) + "\n")


if __name__ == "__main__":
    main()
