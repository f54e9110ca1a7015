"""Whether a change made anything slower: two source trees, the same commands, in turns.

    git worktree add ../before COMMIT
    python benchmarks/side_by_side.py ../before . PHOTOS --out docs/performance/side_by_side.json

Both trees run with this Python and its packages. Every figure is of whole commands, as a user runs them: the start, the
network's own latency and file to label (`agridistill benchmark`), processor time a photo of the agent and of
`predict`, and photos a second of a student that reads its teacher's cache. Medians over the turns, and the median of
the ratios new / old within one turn. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from reporting import machine, publish

MODEL, ENGINE = "tomato", "onnxruntime"
FOLDER_PHOTOS, CLASS_PHOTOS = 400, 60


class Tree:
    """One checkout: its commands run from its sources."""

    def __init__(self, root: Path, work: Path) -> None:
        self.root, self.work = root.resolve(), work
        work.mkdir()

    def run(self, *words: object) -> tuple[str, float, float]:
        """Standard output, wall-clock seconds and processor seconds of a command."""
        environment = {**os.environ, "PYTHONPATH": str(self.root / "src")}
        start, before = time.perf_counter(), os.times()
        done = subprocess.run(  # noqa: S603 - our own command line
            [sys.executable, "-m", "agridistill", *map(str, words)],
            cwd=self.work,
            env=environment,
            check=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        wall, after = time.perf_counter() - start, os.times()
        return done.stdout, wall, sum(after[2:4]) - sum(before[2:4])


def figures(tree: Tree, folder: Path, classes: Path, photo: Path) -> Iterator[tuple[str, float]]:
    """One turn: names and figures, lower is better."""
    yield "help_wall_s", tree.run("--help")[1]
    yield "first_answer_wall_s", tree.run("predict", MODEL, photo)[1]
    yield "predict_cpu_ms_a_photo", 1000 * tree.run("predict", MODEL, folder)[2] / FOLDER_PHOTOS
    state = tree.work / "state"
    shutil.rmtree(state, ignore_errors=True)
    words = ("watch", folder, "--model", MODEL, "--once", "--state", state)
    yield "watch_cpu_ms_a_photo", 1000 * tree.run(*words)[2] / FOLDER_PHOTOS
    measured = json.loads(
        tree.run("benchmark", MODEL, "--engine", ENGINE, "--photos", folder, "--queries", 256, "--json")[0]
    )["models"][0]
    yield "latency_p50_ms", measured["latency_ms_p50"]
    yield "file_to_label_p50_ms", measured["end_to_end_ms_p50"]
    run = tree.work / "student"
    shutil.rmtree(run, ignore_errors=True)
    student = ("--student", "mobilenetv3_large_100", "--image-size", 128, "--epochs", 2, "--views", 1)
    options = ("--method", "hybrid", "--no-pretrained", "--set", "batch_size=32", "--set", "precision=fp32")
    tree.run("distill", classes, "--teacher", tree.work / "teacher", "--out", run, *student, *options)
    with (run / "metrics.csv").open() as file:
        # The second epoch: the first one may still warm up.
        yield "cached_step_ms_a_photo", 1000 / float(list(csv.DictReader(file))[-1]["photos_per_s"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("photos", type=Path, help="folder of class folders")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        every = [sorted(each.glob("*.*")) for each in sorted(given.photos.iterdir()) if each.is_dir()]
        folder, classes = work / "folder", work / "classes"
        folder.mkdir()
        chosen = [photo for group in zip(*every, strict=False) for photo in group][:FOLDER_PHOTOS]
        for number, photo in enumerate(chosen):
            shutil.copy(photo, folder / f"{number:04}{photo.suffix}")
        for group in every:
            (classes / group[0].parent.name).mkdir(parents=True)
            for photo in group[:CLASS_PHOTOS]:
                shutil.copy(photo, classes / photo.parent.name)
        trees = {name: Tree(root, work / name) for name, root in (("old", given.old), ("new", given.new))}
        for tree in trees.values():
            teacher = ("--model", "swin_nano_patch4_window4_64", "--no-pretrained", "--image-size", 64, "--epochs", 1)
            tree.run("train", classes, "--out", tree.work / "teacher", *teacher)
        turns: list[dict[str, dict[str, float]]] = []
        for turn in range(given.turns + 1):
            order = list(trees) if turn % 2 else list(trees)[::-1]
            found = {name: dict(figures(trees[name], folder, classes, chosen[0])) for name in order}
            print(json.dumps({"turn": turn, **found}), file=sys.stderr, flush=True)
            if turn:  # the first one fills the caches
                turns.append(found)
    rows = defaultdict(dict)
    for name in turns[0]["old"]:
        for side in ("old", "new"):
            rows[name][side] = statistics.median(turn[side][name] for turn in turns)
        rows[name]["ratio"] = statistics.median(turn["new"][name] / turn["old"][name] for turn in turns)
    publish({"machine": machine(), "turns": given.turns, "figures": rows}, given.out)


if __name__ == "__main__":
    main()
