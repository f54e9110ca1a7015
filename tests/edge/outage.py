"""A broker that is away for thousands of detections: order, window and memory. Part of `make torture`."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.colour_model import colour_model_file

from .conftest import Broker, Receiver, Wire, wait_for
from .fast_forward import Gauge
from .torture import write_settings, writing

INFLIGHT = 20


@dataclass(frozen=True)
class Outage:
    """What became of it.

    Attributes:
        detections: that were committed while the broker was away.
        arrived: different ones afterwards.
        out_of_order: that came, for the first time, before an earlier one of their plot.
        most_under_way: messages without an acknowledgement at any time.
        memory_grew_mb: from a fifth of the detections on, when all caches are full, to the most at any time.
        seconds_to_deliver: from the broker's return to the last message.
    """

    detections: int
    arrived: int
    out_of_order: int
    most_under_way: int
    memory_grew_mb: float
    seconds_to_deliver: float

    @property
    def holds(self) -> bool:
        complete = self.arrived == self.detections and not self.out_of_order
        # "online" and retained topics are acknowledged beside the window.
        return complete and self.most_under_way <= INFLIGHT + 12 and self.memory_grew_mb < 5


def outage(work: Path, model: Path, *, detections: int, seed: int = 0) -> Outage:
    photos, state, config = work / "photos", work / "state", work / "watch.toml"
    photos.mkdir(parents=True)
    write_settings(config, "delete")
    config.write_text(config.read_text() + "[broker]\nurl = 'mqtt://x'\ndiscovery = false\n")
    broker = Broker(work / "broker")
    broker.start()
    receiver, wire = Receiver(broker.port, "+/+/detections/#"), Wire(broker.port)
    broker.stop()
    words = ["watch", photos, "--model", model, "--config", config, "--state", state, "--json"]
    words += ["--broker", f"mqtt://127.0.0.1:{wire.port}"]
    with (work / "agent.out").open("w") as out, (work / "agent.err").open("w") as told:
        agent = subprocess.Popen(
            [sys.executable, "-m", "agridistill", *map(str, words)],
            stdout=out,
            stderr=told,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
    gauge = Gauge(agent.pid)
    try:
        committed = _committed(photos, work / "agent.out", gauge, detections, seed)
        broker.start()
        back = time.monotonic()
        wait_for(lambda: len(set(receiver.payloads())) >= detections, 60 + detections / 50, "all messages")
        seconds = time.monotonic() - back
    finally:
        gauge.end()
        agent.send_signal(signal.SIGTERM)
        agent.wait(30)
        receiver.close()
        wire.close()
        broker.stop()
    arrived = [json.loads(payload) for payload in dict.fromkeys(receiver.payloads())]
    memory = [resident for _, resident, _ in gauge.rows]
    return Outage(
        detections=len(committed),
        arrived=len({item["event_id"] for item in arrived}),
        out_of_order=_out_of_order(committed, [(item["plot"], item["event_id"]) for item in arrived]),
        most_under_way=wire.most_under_way,
        memory_grew_mb=round((max(memory) - memory[0]) / 1e6, 2),
        seconds_to_deliver=round(seconds, 1),
    )


def _committed(photos: Path, out: Path, gauge: Gauge, detections: int, seed: int) -> list[tuple[str, str]]:
    def lines() -> list[str]:
        return [line for line in out.read_text().splitlines() if line.endswith("}")]

    with writing(photos, detections, seed) as writer:
        wait_for(lambda: len(lines()) >= detections // 5, 300, "the first detections")
        gauge.start()
        wait_for(lambda: sum(line.startswith('{"event": "detection"') for line in lines()) == detections, 900)
        writer.join()
    told = [json.loads(line) for line in lines()]
    return [(item["plot"], item["event_id"]) for item in told if item["event"] == "detection"]


def _out_of_order(committed: list[tuple[str, str]], arrived: list[tuple[str, str]]) -> int:
    place = {event: number for number, (_, event) in enumerate(committed)}
    latest: dict[str, int] = defaultdict(lambda: -1)
    wrong = 0
    for plot, event in arrived:
        wrong += place[event] < latest[plot]
        latest[plot] = max(latest[plot], place[event])
    return wrong


def run() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--detections", type=int, default=10_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = outage(Path(folder) / "work", colour_model_file(Path(folder) / "model"), detections=given.detections)
    sys.stdout.write(json.dumps({**asdict(found), "holds": found.holds}, indent=2) + "\n")
    return 0 if found.holds else 1


if __name__ == "__main__":
    sys.exit(run())
