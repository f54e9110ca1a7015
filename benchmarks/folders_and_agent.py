"""How fast folders, the agent and a first answer are, against an older checkout: the same commands, in turns.

    git worktree add ../before COMMIT
    PYTHONPATH=. python benchmarks/folders_and_agent.py ../before . PHOTOS models/tomato/tomato-int8.onnx \
        --small 2000 --large 100 --turns 3 --out docs/performance/folders_and_agent.json

Both checkouts run with this Python and its packages, and the same model file. `predict`, `evaluate` and `data check`
read folders on all cores: small photos as they are in PHOTOS, and the same at 12 megapixels, as a phone's camera writes
them. The agent and the first answer run on one core. A rate leaves out the time of the same command for a single photo,
where there is one. Medians over the turns, and the median of the ratios old / new within a turn, so that above 1 is
faster. The outputs of both checkouts are compared as well (labels and verdicts of `predict`, the confusion matrix of
`evaluate`, all of `data check`); exits with 1 if they differ. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image
from reporting import machine, publish
from tests.app.photo_forms import scaled, shaped, stored

CORE, RATE, PACED_S = 0, 35, 20


class Tree:
    """One checkout: its commands run from its sources, with caches of its own."""

    def __init__(self, root: Path, work: Path, model: Path) -> None:
        self.root, self.work, self.model, self.outputs = root.resolve(), work, model.resolve(), dict[str, str]()
        work.mkdir()

    def start(self, *words: object, one_core: bool = False) -> subprocess.Popen[str]:
        pinned = ["taskset", "-c", str(CORE)] if one_core else []
        environment = {**os.environ, "PYTHONPATH": str(self.root / "src"), "XDG_CACHE_HOME": str(self.work / "cache")}
        return subprocess.Popen(  # noqa: S603 - our own command line
            [*pinned, sys.executable, "-m", "agridistill", *map(str, words)],
            cwd=self.work,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def seconds(self, *words: object, one_core: bool = False, keep: str = "") -> float:
        """Wall-clock seconds of a command; its output is kept for the comparison under the name `keep`."""
        shutil.rmtree(self.work / "cache", ignore_errors=True)
        start = time.perf_counter()
        process = self.start(*words, one_core=one_core)
        output, _ = process.communicate()
        taken = time.perf_counter() - start
        if process.returncode not in (0, 1):
            raise SystemExit(f"{words} ended with {process.returncode}")
        if keep:
            self.outputs[keep] = output
        return taken


def figures(tree: Tree, folders: dict[str, Path], one: Path) -> Iterator[tuple[str, float]]:
    """One turn: names and figures, lower is better."""
    state = tree.work / "state"
    yield "first_answer_s", tree.seconds("predict", tree.model, one, one_core=True)
    start = tree.seconds("predict", tree.model, one)
    for name, folder in folders.items():
        photos = len(list(folder.rglob("*.jpg")))
        taken = tree.seconds("predict", tree.model, folder, "--json", keep=f"predict {name}")
        yield f"predict_{name}_ms_a_photo", 1000 * (taken - start) / photos
        words = ("evaluate", tree.model, folder, "--split", "all", "--json")
        yield f"evaluate_{name}_ms_a_photo", 1000 * tree.seconds(*words, keep=f"evaluate {name}") / photos
        words = ("data", "check", folder, "--json")
        yield f"data_check_{name}_ms_a_photo", 1000 * tree.seconds(*words, keep=f"data check {name}") / photos
    shutil.rmtree(state, ignore_errors=True)
    folder = folders["small"]
    words = ("watch", folder, "--model", tree.model, "--state", state)
    yield "watch_once_s", tree.seconds(*words, "--once", one_core=True)
    yield "watch_once_nothing_new_s", tree.seconds(*words, "--once", one_core=True)
    yield from paced(tree, sorted(folder.rglob("*.jpg")))


def paced(tree: Tree, photos: list[Path]) -> Iterator[tuple[str, float]]:
    """Latency of the agent while photos arrive at a steady rate, by its own count of the last 500 photos."""
    state, folder = tree.work / "paced-state", tree.work / "paced"
    for each in (state, folder):
        shutil.rmtree(each, ignore_errors=True)
    folder.mkdir()
    agent = tree.start("watch", folder, "--model", tree.model, "--state", state, "--quiet", one_core=True)
    while not (state / "state.json").exists():
        time.sleep(0.1)
    begin = time.monotonic()
    for number in range(RATE * PACED_S):
        time.sleep(max(0.0, begin + number / RATE - time.monotonic()))
        shutil.copy(photos[number % len(photos)], folder / f".{number}.jpg")
        (folder / f".{number}.jpg").rename(folder / f"{number}.jpg")
    time.sleep(3)
    agent.send_signal(signal.SIGTERM)
    agent.wait()
    found = json.loads((state / "state.json").read_text(encoding="utf-8"))
    if found["frames"] != RATE * PACED_S:
        raise SystemExit(f"{found['frames']} of {RATE * PACED_S} photos were decided on")
    yield "paced_latency_p50_ms", found["latency_ms"]["p50"]
    yield "paced_latency_p99_ms", found["latency_ms"]["p99"]


def answers(output: str) -> Any:
    """What must be the same: not the last digits of probabilities, which depend on the photos computed at once."""
    document = json.loads(output)
    if "photos" in document and "errors" in document:
        return [(row["photo"], row["verdict"], row["label"]) for row in document["photos"]], document["errors"]
    return document.get("confusion_matrix", document)


def large(photo: Path) -> bytes:
    with Image.open(photo) as image:
        return stored(shaped(scaled(image.convert("RGB"), 3000 / image.height), 4 / 3))[0]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("photos", type=Path, help="folder of class folders")
    parser.add_argument("model", type=Path, help="an exported file that both checkouts can open")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--small", type=int, default=400, help="number of small photos")
    parser.add_argument("--large", type=int, default=40, help="number of photos of 12 megapixels")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        every = [sorted(each.glob("*.*")) for each in sorted(given.photos.iterdir()) if each.is_dir()]
        chosen = [photo for group in zip(*every, strict=False) for photo in group][: given.small]
        folders = {name: work / name for name in ("small", "12mp")}
        for number, photo in enumerate(chosen):
            for name, folder in folders.items():
                if name == "small" or number < given.large:
                    file = folder / photo.parent.name / f"{number:04}.jpg"
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_bytes(photo.read_bytes() if name == "small" else large(photo))
        trees = {
            name: Tree(root, work / f"tree-{name}", given.model)
            for name, root in (("old", given.old), ("new", given.new))
        }
        turns: list[dict[str, dict[str, float]]] = []
        for turn in range(given.turns):
            order = list(trees) if turn % 2 else list(trees)[::-1]
            turns.append({name: dict(figures(trees[name], folders, chosen[0])) for name in order})
            print(json.dumps({"turn": turn, **turns[-1]}), file=sys.stderr, flush=True)
    outputs = trees["old"].outputs
    same = {name: answers(trees["new"].outputs[name]) == answers(output) for name, output in outputs.items()}
    rows: dict[str, Any] = {
        name: {side: round(statistics.median(turn[side][name] for turn in turns), 3) for side in ("old", "new")}
        | {"old_by_new": round(statistics.median(turn["old"][name] / turn["new"][name] for turn in turns), 2)}
        for name in turns[0]["old"]
    }
    publish({"machine": machine(), "turns": given.turns, "figures": rows, "same_output": same}, given.out)
    return 0 if all(same.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
