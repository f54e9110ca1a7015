"""Kills agents that keep and upload photos, and counts what became of the photos.

`python -m tests.edge.keep.killed --kills 200`
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.colour_model import colour_model_file
from tests.edge.conftest import wait_for
from tests.edge.keep.servers import PASSWORD, USER, WebDav
from tests.edge.torture import Zygote, is_alive, write_settings, writing

from agridistill.edge.keep.store import KeptPhotos
from agridistill.edge.store.history import History


@dataclass(frozen=True)
class Outcome:
    """What became of the photos.

    Attributes:
        photos: that were written and, once decided on, deleted.
        decided: detections in the history.
        arrived: different photos on the server, whole and with their sidecars; without one, in the folder.
        missing: photos to keep that are neither there nor counted as removed by the limit.
        dropped: removed by the limit.
        broken: photos on the server or in the folder without a sidecar, or with another content than it says.
        two_names: photos that are there under more than one name.
        largest_bytes: largest size of the folder at any moment.
        limit_bytes: limit for it.
        kills: agents killed.
        outages: times that the server was killed.
        seconds: that it took.
    """

    photos: int
    decided: int
    arrived: int
    missing: int
    dropped: int
    broken: int
    two_names: int
    largest_bytes: int
    limit_bytes: int
    kills: int
    outages: int
    seconds: float

    @property
    def holds(self) -> bool:
        is_bounded = self.largest_bytes <= self.limit_bytes
        return self.decided == self.photos and is_bounded and not (self.missing or self.broken or self.two_names)


@contextlib.contextmanager
def measuring(folder: Path) -> Iterator[list[int]]:
    """The largest size of a folder with all its hidden files."""
    found, stop = [0], threading.Event()

    def measure() -> None:
        while not stop.wait(0.003):
            # A file that is renamed during the listing may be listed twice: count each photo once.
            sizes: dict[tuple[str, str], int] = {}
            with contextlib.suppress(OSError), os.scandir(folder) as entries:
                for entry in entries:
                    with contextlib.suppress(OSError):
                        name = entry.name.lstrip(".")
                        sizes[name[:32], name[32:37]] = entry.stat().st_size
            found[0] = max(found[0], sum(sizes.values()))

    thread = threading.Thread(target=measure)
    thread.start()
    try:
        yield found
    finally:
        stop.set()
        thread.join()


def killed(work: Path, model: Path, *, kills: int, photos: int, upload: bool, limit_mb: float, seed: int) -> Outcome:
    began, rng = time.monotonic(), random.Random(seed)
    source, state, kept, config = work / "photos", work / "state", work / "kept", work / "watch.toml"
    source.mkdir(parents=True)
    write_settings(config, "delete")
    server = WebDav(work / "served")
    lines = ["[keep]", f'folder = "{kept}"', "one_in = 1", "alert = false", f"max_megabytes = {limit_mb}"]
    if upload:
        (work / "password").write_text(PASSWORD)
        lines += [f'upload = "{server.address}"', f'user = "{USER}"', f'password_file = "{work / "password"}"']
        lines += ['after_upload = "delete"']
        server.start()
    config.write_text(config.read_text() + "\n".join(lines) + "\n")
    zygote = Zygote(work / "agents.log")
    command = ("watch", source, "--model", model, "--config", config, "--state", state, "--quiet")
    outages = 0
    try:
        with writing(source, photos, seed + 1) as writer, measuring(kept) as largest:
            for kill in range(kills):
                pid = zygote.start(*command)
                time.sleep(rng.uniform(0.0, 0.25) if rng.random() < 0.2 else rng.uniform(0.2, 0.9))
                os.kill(pid, signal.SIGKILL)
                wait_for(lambda pid=pid: not is_alive(pid), what="the end of a killed agent")
                if upload and rng.random() < 0.1:
                    server.stop()
                    outages += 1
                    if rng.random() < 0.5:  # an agent without its server
                        pid = zygote.start(*command)
                        time.sleep(rng.uniform(0.2, 0.6))
                        os.kill(pid, signal.SIGKILL)
                        wait_for(lambda pid=pid: not is_alive(pid))
                    server.start()
                if kill % 50 == 49:
                    sys.stderr.write(f"{kill + 1} kills\n")
            pid = zygote.start(*command)
            writer.join()
            wait_for(lambda: _is_done(source, state, upload), 120 + photos / 10, "the end of the work")
            os.kill(pid, signal.SIGTERM)
            wait_for(lambda: not is_alive(pid), 60, "an orderly end")
    finally:
        zygote.close()
        server.stop()
    with History(state / "history.sqlite") as history:
        decided = {one.event_id for one in history.recent(10**9)}
        dropped = KeptPhotos(history, kept, 10**9).state()["dropped"]
    whole, broken, two_names = _found(server.folder if upload else kept)
    return Outcome(
        photos=photos,
        decided=len(decided),
        arrived=len(whole),
        missing=len(decided - whole) - dropped,
        dropped=dropped,
        broken=broken + len(whole - decided),
        two_names=two_names,
        largest_bytes=largest[0],
        limit_bytes=int(1e6 * limit_mb),
        kills=kills,
        outages=outages,
        seconds=round(time.monotonic() - began, 1),
    )


def _is_done(source: Path, state: Path, upload: bool) -> bool:
    if any(source.rglob("*.jpg")):
        return False
    time.sleep(0.5)
    with History(state / "history.sqlite", read_only=True) as history, history.reading() as database:
        (waiting,) = database.execute("SELECT count(*) FROM kept WHERE uploaded = 0").fetchone()
        return not (upload and waiting)


def _found(folder: Path) -> tuple[set[str], int, int]:
    """The ids of whole photos, the number of broken ones, and of those with more than one name."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    names = Counter(path.name for path in files)
    whole = set[str]()
    for path in files:
        if path.suffix == ".json":
            document = json.loads(path.read_text())
            digest = hashlib.sha256(path.with_suffix(".jpg").read_bytes()).hexdigest()
            if digest == document["photo_sha256"] and document["event_id"] == path.stem:
                whole.add(path.stem)
    return whole, len({name[:32] for name in names} - whole), sum(count > 1 for count in names.values())


def run() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--photos", type=int, default=3000)
    parser.add_argument("--no-upload", action="store_true")
    parser.add_argument("--limit-mb", type=float, default=50.0)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        outcome = killed(
            Path(folder) / "work",
            colour_model_file(Path(folder) / "model"),
            kills=given.kills,
            photos=given.photos,
            upload=not given.no_upload,
            limit_mb=given.limit_mb,
            seed=given.seed,
        )
    sys.stdout.write(json.dumps({**asdict(outcome), "holds": outcome.holds}, indent=2) + "\n")
    return 0 if outcome.holds else 1


if __name__ == "__main__":
    sys.exit(run())
