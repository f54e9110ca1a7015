"""What a step of hybrid distillation costs: this project, torchdistill and timm on the same tensors, in turns.

    pip install --no-deps torchdistill==1.1.5
    python benchmarks/distillation_throughput.py PHOTOS --out docs/performance/distillation_throughput.json

One recipe for all: Swin-T teacher, MobileNetV3-Large student, KD at T = 4 and attention at stride 32, AdamW, fp32,
channels-last. One process trains them in turns on the same batches; the first turn warms up, medians of the others.
timm's task knows no attention, so it computes less. Peak memory is of a process of its own for each.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from reporting import machine, peak_memory_mb, publish
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from agridistill.data.folder import scan
from agridistill.data.loader import Batch, PhotoDataset, Viewing, collate
from agridistill.data.views import Augmentation
from agridistill.losses.objective import DistillationObjective, StagePair
from agridistill.manifest import ModelManifest, Preprocessing
from agridistill.models import LiveTeacher, create_model, normalise_batch
from agridistill.teacher_cache import CachedTeacher, cache_key
from agridistill.teacher_cache.build import UncachedTeacher
from agridistill.training.module import DistillationModule, TeacherSource
from agridistill.training.settings import FitSettings
from agridistill.training.trainer import keep_freed_memory

STUDENT, TEACHER = "mobilenetv3_large_100", "swin_tiny_patch4_window7_224"
STRIDE, TEMPERATURE, W_CE, W_KD, W_ATT = 32, 4.0, 0.1, 0.9, 5.0
STEPS, TURNS = 6, 6
CONTENDERS = ("plain", "ours, warm cache", "ours, live teacher", "torchdistill 1.1.5", "timm LogitDistillationTask")
Loss = Callable[[Batch], Tensor]


class Bench:
    """The photos, the models and one loss function for each contender."""

    def __init__(self, photos: Path, size: int, batch_size: int, work: Path, steps: int = STEPS) -> None:
        folder = scan(photos)
        count = steps * batch_size
        self.batch_size = batch_size
        stride = max(1, len(folder.samples) // count)
        self.samples = folder.samples[::stride][:count]
        self.preprocessing = Preprocessing(size)
        self.classes = len(folder.classes)
        torch.manual_seed(0)
        self.student = create_model(STUDENT, self.classes).to(memory_format=torch.channels_last)
        self.viewing = viewing = Viewing(photos, self.samples, "benchmark", self.preprocessing, Augmentation(), 1)
        manifest = ModelManifest(TEACHER, folder.classes, self.preprocessing, "none", "none")
        key = cache_key(viewing, manifest, strides=[STRIDE], kind="activation", per_head=False)
        self.cached = CachedTeacher(work, key, viewing, self.live)
        start = time.perf_counter()
        self.cached.prepare(torch.device("cpu"), workers=0)
        self.build_s_per_view = (time.perf_counter() - start) / count
        self.dataset = PhotoDataset(photos, self.samples, self.preprocessing, viewing.augmentation)
        items = [self.dataset[viewing.key(0, position)] for position in range(count)]
        batches = [collate(items[start : start + batch_size]) for start in range(0, count, batch_size)]
        self.batches = [batch for batch in batches if batch is not None]

    def live(self) -> LiveTeacher:
        return LiveTeacher(self._teacher(), self.preprocessing, strides=[STRIDE])

    def _teacher(self) -> nn.Module:
        """The same Swin for everyone; made only for those who run it."""
        torch.manual_seed(1)
        teacher = create_model(TEACHER, self.classes, image_size=self.preprocessing.image_size)
        return teacher.eval().requires_grad_(False).to(memory_format=torch.channels_last)

    def step(self, name: str) -> Callable[[Batch], None]:
        """One training step of a contender, with a student and an optimiser of its own."""
        student = copy.deepcopy(self.student).train()
        loss = self._loss(name, student)
        optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4)

        def step(batch: Batch) -> None:
            optimizer.zero_grad(set_to_none=True)
            loss(batch).backward()  # type: ignore[no-untyped-call]
            optimizer.step()

        return step

    def timed_step(self, name: str) -> Callable[[Batch], dict[str, float]]:
        """As `step`, but tells the seconds of its parts."""
        student = copy.deepcopy(self.student).train()
        loss = self._loss(name, student)
        optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4)

        def step(batch: Batch) -> dict[str, float]:
            marks = [time.perf_counter()]
            self.cached.outputs(batch)
            marks.append(time.perf_counter())
            optimizer.zero_grad(set_to_none=True)
            total = loss(batch)
            marks.append(time.perf_counter())
            total.backward()  # type: ignore[no-untyped-call]
            marks.append(time.perf_counter())
            optimizer.step()
            marks.append(time.perf_counter())
            asked, forward, backward, update = (after - before for before, after in itertools.pairwise(marks))
            # The forward pass reads the cache once more.
            return {
                "teacher's cache": asked,
                "forward and losses": forward - asked,
                "backward": backward,
                "optimiser": update,
            }

        return step

    def _loss(self, name: str, student: nn.Module) -> Loss:
        if name == "plain":
            return lambda batch: cross_entropy(student(self._input(batch)), batch.target)
        if name.startswith("ours"):
            return self._ours(student, self.cached if "cache" in name else UncachedTeacher(self.live()))
        if name.startswith("torchdistill"):
            return self._torchdistill(student)
        return self._timm(student)

    def _input(self, batch: Batch) -> Tensor:
        return normalise_batch(batch.pixels, self.preprocessing)

    def _ours(self, student: nn.Module, source: TeacherSource) -> Loss:
        objective = DistillationObjective(
            w_ce=W_CE, w_kd=W_KD, w_att=W_ATT, temperature=TEMPERATURE, pairs=[StagePair(STRIDE, STRIDE)]
        )
        module = DistillationModule(
            student,
            objective,
            FitSettings(lr=1e-4, weight_decay=0.0, warmup=0.0),
            teacher=source,
            preprocessing=self.preprocessing,
            num_classes=self.classes,
            total_steps=1,
        )
        return lambda batch: module.loss_terms(batch, progress=0.2)["total"]

    def _torchdistill(self, student: nn.Module) -> Loss:
        from torchdistill.core.forward_hook import ForwardHookManager
        from torchdistill.losses.mid_level import ATLoss, KDLoss

        teacher = ChannelsFirst(self._teacher()).eval()
        of_student, of_teacher = ForwardHookManager("cpu"), ForwardHookManager("cpu")
        of_student.add_hook(student, "blocks.6", requires_input=False, requires_output=True)
        of_student.add_hook(student, "classifier", requires_input=False, requires_output=True)
        of_teacher.add_hook(teacher, "stage", requires_input=False, requires_output=True)
        of_teacher.add_hook(teacher, "logits", requires_input=False, requires_output=True)
        kd = KDLoss("classifier", "output", "logits", "output", temperature=TEMPERATURE, alpha=W_CE)
        pair = {"teacher": {"io": "output", "path": "stage"}, "student": {"io": "output", "path": "blocks.6"}}
        at = ATLoss({"pair": pair}, mode="code")

        def loss(batch: Batch) -> Tensor:
            photos = self._input(batch)
            with torch.no_grad():
                teacher(photos)
            student(photos)
            said, heard = of_teacher.pop_io_dict(), of_student.pop_io_dict()
            total: Tensor = kd(heard, said, batch.target) + W_ATT * at(heard, said)
            return total

        return loss

    def _timm(self, student: nn.Module) -> Loss:
        from timm.task import LogitDistillationTask

        task = LogitDistillationTask(
            student,
            self._teacher(),
            criterion=nn.CrossEntropyLoss(),
            task_loss_weight=W_CE,
            distill_loss_weight=W_KD,
            temperature=TEMPERATURE,
            device=torch.device("cpu"),
            verbose=False,
        )
        return lambda batch: task(self._input(batch), batch.target)["loss"]


class ChannelsFirst(nn.Module):
    """A Swin whose last stage shows itself channels first, which torchdistill's loss takes for granted."""

    def __init__(self, swin: nn.Module) -> None:
        super().__init__()
        self.swin, self.stage, self.logits = swin, nn.Identity(), nn.Identity()
        swin.get_submodule("layers.3").register_forward_hook(
            lambda module, args, output: (self.stage(output.permute(0, 3, 1, 2)), None)[1]
        )

    def forward(self, photos: Tensor) -> Tensor:
        logits: Tensor = self.logits(self.swin(photos))
        return logits


def compare(bench: Bench) -> dict[str, list[float]]:
    steps = {name: bench.step(name) for name in CONTENDERS}
    return in_turns(steps, bench.batches, TURNS)


def in_turns(
    steps: Mapping[str, Callable[[Batch], object]], batches: Sequence[Batch], turns: int
) -> dict[str, list[float]]:
    """Runs every step on all batches, in turns; returns the seconds of each turn by name, without the first one."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(turns + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            for batch in batches:
                step(batch)
            if turn:
                seconds[name].append(time.perf_counter() - start)
        print(f"turn {turn} of {turns}", file=sys.stderr, flush=True)
    return seconds


def peak_mb(bench: Bench, name: str) -> int:
    step = bench.step(name)
    for batch in bench.batches[:3]:
        step(batch)
    return peak_memory_mb()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--peak", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    keep_freed_memory()
    work = given.work or Path(tempfile.mkdtemp())
    bench = Bench(given.photos, given.image_size, given.batch_size, work)
    if given.peak:
        print(peak_mb(bench, given.peak))
        return
    seconds = compare(bench)
    photos = len(bench.batches) * given.batch_size
    plain = statistics.median(seconds["plain"])
    rows: list[dict[str, Any]] = []
    for name, taken in seconds.items():
        own = [sys.executable, __file__, str(given.photos), "--peak", name, "--work", str(work)]
        own += ["--image-size", str(given.image_size), "--batch-size", str(given.batch_size)]
        memory = subprocess.run(own, capture_output=True, text=True, check=True).stdout  # noqa: S603 - our own file
        rows.append(
            {
                "name": name,
                "photos_per_s": round(photos / statistics.median(taken), 1),
                "times_plain": round(statistics.median(t / p for t, p in zip(taken, seconds["plain"], strict=True)), 3),
                "peak_memory_mb": int(memory),
            }
        )
        print(rows[-1], flush=True)
    live, warm = (statistics.median(seconds[f"ours, {name}"]) for name in ("live teacher", "warm cache"))
    document = {
        "image_size": given.image_size,
        "batch_size": given.batch_size,
        "photos_a_turn": photos,
        "turns": TURNS,
        "machine": machine(),
        "rows": rows,
        "build_ms_a_view": round(1000 * bench.build_s_per_view, 2),
        # One view built for each epoch that would have run it live: from which epoch on the cache has paid.
        "break_even_epochs_for_one_view": round(bench.build_s_per_view * photos / (live - warm), 2),
        "plain_photos_per_s": round(photos / plain, 1),
    }
    publish(document, given.out)


if __name__ == "__main__":
    main()
