"""How long one prediction takes with everything around it: the command starts, loads the model, reads the photo, tells.

    python benchmarks/cold_start.py PHOTO MODEL [MODEL ...] --out docs/performance/cold_start.json
    python benchmarks/cold_start.py PHOTO leaf.onnx --engine onnxruntime --engine openvino    # of a program's own start

Each command runs in a process of its own, all in turns, with the Python that runs this script. Wall-clock time and
processor time of the process; the files lie in the system's page cache from the second turn on, so the first is told on
its own. Exits with 1 where a median prediction takes a second or more.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from reporting import machine, publish

LIMIT_S, TURNS = 1.0, 15
PROGRAM = "import sys, agridistill; print(agridistill.load(sys.argv[1], engine=sys.argv[2]).predict(sys.argv[3]).label)"


def spent(command: list[str]) -> tuple[float, float]:
    """Wall-clock and processor seconds of a command."""
    begin = time.perf_counter()
    before = os.times()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)  # noqa: S603 - our own command line
    wall, after = time.perf_counter() - begin, os.times()
    return wall, sum(after[2:4]) - sum(before[2:4])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photo", type=Path)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--engine", action="append", default=[], help="also time load() and predict() with it")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    ours = [sys.executable, "-m", "agridistill"]
    commands = {"--help": [*ours, "--help"]}
    commands |= {f"predict {model.name}": [*ours, "predict", str(model), str(given.photo)] for model in given.models}
    commands |= {
        f"load({model.name}, {engine}).predict": [sys.executable, "-c", PROGRAM, str(model), engine, str(given.photo)]
        for model in given.models
        for engine in given.engine
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for _ in range(TURNS):
        for name, command in commands.items():
            times[name].append(spent(command))
    rows: list[dict[str, Any]] = [
        {
            "command": name,
            "median_s": round(median(wall for wall, _ in each), 3),
            "least_s": round(min(wall for wall, _ in each), 3),
            "most_s": round(max(wall for wall, _ in each), 3),
            "first_s": round(each[0][0], 3),
            "median_processor_s": round(median(cpu for _, cpu in each), 3),
        }
        for name, each in times.items()
    ]
    holds = all(row["median_s"] < LIMIT_S for row in rows)
    publish({"machine": machine(), "turns": TURNS, "limit_s": LIMIT_S, "holds": holds, "commands": rows}, given.out)
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
