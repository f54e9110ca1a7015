"""A day of photos in fast-forward: memory, open files, and the time from a photo's file to its message."""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from tests.colour_model import colour_model_file

from .conftest import Broker, Receiver, wait_for
from .torture import write_settings


class Arrivals(Receiver):
    """Notes when each photo's message came, and forgets the message."""

    def __init__(self, port: int) -> None:
        self.at: dict[str, float] = {}
        super().__init__(port, "+/+/detections/#")
        self._client.on_message = self._note

    def _note(self, client: object, data: object, message: object) -> None:
        now = time.monotonic()
        document = json.loads(message.payload)  # type: ignore[attr-defined]
        self.at.setdefault(document["photo"], now)


class Gauge(threading.Thread):
    """Resident memory and open files of a process, every second."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid, self.rows, self._stop_asked = pid, list[tuple[float, int, int]](), threading.Event()

    def run(self) -> None:
        while not self._stop_asked.wait(1):
            try:
                pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
                files = len(list(Path(f"/proc/{self.pid}/fd").iterdir()))
            except OSError:
                return
            self.rows.append((time.monotonic(), pages * os.sysconf("SC_PAGE_SIZE"), files))

    def end(self) -> None:
        self._stop_asked.set()
        self.join()


def fast_forward(
    work: Path, model: Path, pictures: list[bytes], *, frames: int, rate: float, core: int | None, after: str, seed: int
) -> dict[str, object]:
    photos, state, config = work / "photos", work / "state", work / "watch.toml"
    photos.mkdir(parents=True)
    write_settings(config, after, warned_of="*")
    broker = Broker(work / "broker")
    broker.start()
    receiver = Arrivals(broker.port)
    words = ["watch", photos, "--model", model, "--config", config, "--state", state, "--quiet"]
    words += ["--broker", f"mqtt://127.0.0.1:{broker.port}", "--thumbnails"]
    agent = subprocess.Popen(
        [sys.executable, "-m", "agridistill", *map(str, words)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        preexec_fn=(lambda: os.sched_setaffinity(0, {core})) if core is not None else None,
    )
    gauge = Gauge(agent.pid)
    gauge.start()
    written: dict[str, float] = {}
    rng, began = random.Random(seed), time.monotonic()
    try:
        for number in range(frames):
            name = f"{rng.choice(('north', 'south', 'east'))}/{number:07d}.jpg"
            target = photos / name
            target.parent.mkdir(exist_ok=True)
            part = target.with_suffix(".part")
            part.write_bytes(rng.choice(pictures))
            part.rename(target)
            written[name] = time.monotonic()
            assert agent.poll() is None, "the agent ended"
            pause = began + (number + 1) / rate - time.monotonic()
            if pause > 0:
                time.sleep(pause)
            while number - len(receiver.at) > 500 and agent.poll() is None:
                time.sleep(0.05)  # behind: latency is not measured by a queue of our own making
        wait_for(lambda: len(receiver.at) == frames, 120, "the last messages")
    finally:
        gauge.end()
        agent.send_signal(signal.SIGTERM)
        agent.wait(30)
        receiver.close()
        broker.stop()
    return summary(written, receiver.at, gauge.rows, time.monotonic() - began)


def summary(
    written: dict[str, float], at: dict[str, float], rows: list[tuple[float, int, int]], seconds: float
) -> dict[str, object]:
    # The first photos meet an agent that is still starting.
    names = list(written)[200:]
    latencies = 1000 * np.array([at[name] - written[name] for name in names])
    memory = np.array([resident for _, resident, _ in rows]) / 1e6
    tenth = max(1, len(memory) // 10)
    return {
        "frames": len(written),
        "seconds": round(seconds, 1),
        "latency_ms_p50": round(float(np.quantile(latencies, 0.5)), 1),
        "latency_ms_p99": round(float(np.quantile(latencies, 0.99)), 1),
        "latency_ms_max": round(float(latencies.max()), 1),
        "latency_ms_p99_by_tenth": [round(float(np.quantile(part, 0.99)), 1) for part in np.array_split(latencies, 10)],
        "memory_mb_after_a_tenth": round(float(np.median(memory[tenth : 2 * tenth])), 1),
        "memory_mb_in_the_last_tenth": round(float(np.median(memory[-tenth:])), 1),
        "memory_mb_max": round(float(memory.max()), 1),
        "open_files_after_a_tenth": rows[tenth][2],
        "open_files_at_the_end": rows[-1][2],
    }


def pictures_of(folder: Path | None, count: int = 200) -> list[bytes]:
    if folder is None:
        import io

        from PIL import Image

        rng, made = np.random.default_rng(0), []
        for _ in range(count):
            held = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(held, "JPEG")
            made.append(held.getvalue())
        return made
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    return [path.read_bytes() for path in paths[:: max(1, len(paths) // count)][:count]]


def run() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=100_000)
    parser.add_argument("--rate", type=float, default=100.0, help="photos a second")
    parser.add_argument("--model", type=Path, help="exported model; a tiny one where not given")
    parser.add_argument("--photos", type=Path, help="folder of real photos; drawn ones where not given")
    parser.add_argument("--core", type=int, help="the agent runs on this core alone")
    parser.add_argument("--after", default="delete", choices=["keep", "delete"])
    parser.add_argument("--work", type=Path)
    given = parser.parse_args()
    work = Path(tempfile.mkdtemp(dir=given.work))
    try:
        found = fast_forward(
            work,
            given.model or colour_model_file(work / "model"),
            pictures_of(given.photos),
            frames=given.frames,
            rate=given.rate,
            core=given.core,
            after=given.after,
            seed=0,
        )
    finally:
        shutil.rmtree(work, ignore_errors=True)
    sys.stdout.write(json.dumps(found, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(run())
