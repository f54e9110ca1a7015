"""Kills agents at random moments, restarts brokers, and counts what arrived. The long form: `make torture`."""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tests.colour_model import colour_model_file

from agridistill.edge.store.history import History

from .conftest import Broker, Receiver, wait_for

_BACKLOG = 150
_PLOTS = ("north", "south", "east", "")
_SETTINGS = """
device = "tortured"
after = "%s"
threads = 1
[quality]
darkest = 0.0
brightest = 1.0
blurriest = 0.0
least_leaf = 0.0
[[rules]]
name = "red"
classes = ["%s"]
share = 0.6
least_leaves = 5
repeat_hours = 0.0
"""


@dataclass(frozen=True)
class Outcome:
    """What became of a torture.

    Attributes:
        photos: that were written.
        committed: detections in the history.
        arrived: different event ids at the receiver.
        missing: committed and never arrived.
        unknown: arrived and never committed.
        duplicates: that arrived more than once, with the same event id.
        two_ids: photos that arrived under more than one event id.
        kills: agents killed.
        restarts: of the broker.
        seconds: that it took.
    """

    photos: int
    committed: int
    arrived: int
    missing: int
    unknown: int
    duplicates: int
    two_ids: int
    kills: int
    restarts: int
    seconds: float

    @property
    def holds(self) -> bool:
        return self.committed == self.arrived == self.photos and not (self.missing or self.unknown or self.two_ids)


def write_settings(path: Path, after: str, warned_of: str = "red") -> None:
    path.write_text(_SETTINGS % (after, warned_of))


class Zygote:
    """Forks agents."""

    def __init__(self, log: Path) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.edge.zygote", str(log)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=Path(__file__).parents[2],
        )

    def start(self, *arguments: str | Path) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([str(word) for word in arguments]) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def close(self) -> None:
        self._process.terminate()
        self._process.communicate()


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def write_photos(folder: Path, count: int, stop: threading.Event, seed: int) -> None:
    """Some renamed into place, some written there bit by bit; never more than a few wait."""
    rng = random.Random(seed)
    for number in range(count):
        while not stop.is_set() and sum(1 for _ in folder.rglob("*.jpg")) > _BACKLOG:
            time.sleep(0.02)
        if stop.is_set():
            return
        colour = tuple(rng.randrange(256) for _ in range(3))
        held = io.BytesIO()
        Image.fromarray(np.full((16, 16, 3), colour, np.uint8)).save(held, "JPEG")
        content, target = held.getvalue(), folder / rng.choice(_PLOTS) / f"{number:06d}.jpg"
        target.parent.mkdir(exist_ok=True)
        if rng.random() < 0.9:
            part = target.with_suffix(".part")
            part.write_bytes(content)
            part.rename(target)
        else:
            with target.open("wb") as file:
                for start in range(0, len(content), 200):
                    file.write(content[start : start + 200])
                    file.flush()


@contextmanager
def writing(folder: Path, count: int, seed: int) -> Iterator[threading.Thread]:
    stop = threading.Event()
    thread = threading.Thread(target=write_photos, args=(folder, count, stop, seed))
    thread.start()
    try:
        yield thread
    finally:
        stop.set()
        thread.join()


def torture(work: Path, model: Path, *, kills: int, detections: int, restarts: int, seed: int) -> Outcome:
    began, rng = time.monotonic(), random.Random(seed)
    photos, state, config = work / "photos", work / "state", work / "watch.toml"
    photos.mkdir(parents=True)
    write_settings(config, "delete")
    broker, zygote = Broker(work / "broker"), Zygote(work / "agents.log")
    broker.start()
    receiver = Receiver(broker.port)
    command = ("watch", photos, "--model", model, "--config", config, "--state", state)
    command = (*command, "--broker", f"mqtt://127.0.0.1:{broker.port}", "--quiet")
    restart_at = set(rng.sample(range(kills), min(restarts, kills)))
    try:
        with writing(photos, detections, seed + 1) as writer:
            for kill in range(kills):
                pid = zygote.start(*command)
                # Sometimes while it opens its files, mostly at work; longer while kills are ahead of the photos.
                time.sleep(rng.uniform(0.0, 0.25) if rng.random() < 0.2 else rng.uniform(0.2, 0.9))
                os.kill(pid, signal.SIGKILL)
                wait_for(lambda pid=pid: not is_alive(pid), what="the end of a killed agent")
                if kill in restart_at:
                    broker.stop()
                    if rng.random() < 0.5:
                        pid = zygote.start(*command)
                        time.sleep(rng.uniform(0.2, 0.6))
                        os.kill(pid, signal.SIGKILL)
                        wait_for(lambda pid=pid: not is_alive(pid))
                    broker.start()
                if kill % 50 == 49:
                    sys.stderr.write(f"{kill + 1} kills, {len(receiver.payloads()):,} messages\n")
            pid = zygote.start(*command)
            writer.join()
            _wait_until_all_is_delivered(photos, state, detections)
            os.kill(pid, signal.SIGTERM)
            wait_for(lambda: not is_alive(pid), 60, "an orderly end")
        return _counted(state, receiver, detections, kills, restarts, time.monotonic() - began)
    finally:
        receiver.close()
        broker.stop()
        zygote.close()


def _wait_until_all_is_delivered(photos: Path, state: Path, detections: int) -> None:
    from agridistill.edge.store.outbox import Outbox

    def done() -> bool:
        if any(photos.rglob("*.jpg")):
            return False
        with Outbox(state / "outbox.sqlite") as outbox:
            return not outbox.pending(limit=1)

    deadline = time.monotonic() + 120 + detections / 20
    while not done():
        assert time.monotonic() < deadline, "not all was delivered in time"
        time.sleep(0.5)
    time.sleep(1)


def _counted(state: Path, receiver: Receiver, photos: int, kills: int, restarts: int, seconds: float) -> Outcome:
    with History(state / "history.sqlite", read_only=True) as history:
        committed = {item.event_id for item in history.recent(10**9)}
    arrivals = [json.loads(payload) for payload in receiver.payloads()]
    counts = Counter(item["event_id"] for item in arrivals)
    ids_of: dict[str, set[str]] = {}
    for item in arrivals:
        ids_of.setdefault(item["photo"], set()).add(item["event_id"])
    return Outcome(
        photos=photos,
        committed=len(committed),
        arrived=len(counts),
        missing=len(committed - set(counts)),
        unknown=len(set(counts) - committed),
        duplicates=sum(count - 1 for count in counts.values()),
        two_ids=sum(len(ids) > 1 for ids in ids_of.values()),
        kills=kills,
        restarts=restarts,
        seconds=round(seconds, 1),
    )


def run() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--detections", type=int, default=20_000)
    parser.add_argument("--restarts", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        model = colour_model_file(work / "model")
        outcome = torture(
            work, model, kills=given.kills, detections=given.detections, restarts=given.restarts, seed=given.seed
        )
    sys.stdout.write(json.dumps({**outcome.__dict__, "holds": outcome.holds}, indent=2) + "\n")
    return 0 if outcome.holds else 1


if __name__ == "__main__":
    sys.exit(run())
