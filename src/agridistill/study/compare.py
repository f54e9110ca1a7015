"""`compare`: methods x seeds x budgets under one teacher, and what their differences are worth."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from agridistill.data.folder import require_outside
from agridistill.data.labels import FOLDERS, Layout, read_layout
from agridistill.data.split import read_split
from agridistill.errors import RunError
from agridistill.manifest import read_manifest
from agridistill.progress import ProgressCallback, silent
from agridistill.storage import only_one, require_writable, write_json
from agridistill.study.evidence import gather_for
from agridistill.study.job import Order
from agridistill.study.plan import ComparePlan, Job
from agridistill.study.side_by_side import failed, run_side_by_side
from agridistill.study.summary import summarise
from agridistill.training.run_folder import RunFolder
from agridistill.training.settings import DistillConfig, TrainConfig

RESULT_NAME = "compare.json"
TEACHER_NAME, EVIDENCE_NAME = "teacher", "evidence"


def compare(
    data: Path,
    out: Path,
    plan: ComparePlan,
    *,
    teacher: Path | None = None,
    split_file: Path | None = None,
    layout: Layout = FOLDERS,
    jobs: int = 0,
    evidence: bool = True,
    progress: ProgressCallback = silent,
    tell: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Trains every run of a study that is not there yet, and compares all of them on the test split.

    What is finished in `out` is kept, what is unfinished goes on: after a kill, or with more seeds or candidates in
    the recipe, call it again.

    Args:
        data: a folder of class folders, or of train/val/test folders of them.
        out: folder of the study: `runs`, `logs`, `teacher` where none is given, and `compare.json`.
        plan: what is compared.
        teacher: a finished run; None trains one by the plan, where any candidate listens to a teacher.
        split_file: made by `data split`; None takes the teacher's split.
        layout: how the labels are found.
        jobs: runs at a time, 0 for one on each GPU (one without GPUs).
        evidence: also finds out, for the best method, the baseline and the teacher, what `report` shows beside scores.
        progress: told (epochs done, epochs in all), over all runs.
        tell: told a line where a run has finished.

    Returns:
        The document of `compare.json`, see `study.summary`.

    Raises:
        AgriDistillError: a run of `out` was made with other settings, a run failed, or data or teacher cannot be used.
    """
    read_layout(data, layout)  # a wrong path is told before anything is written
    require_writable(out, folder=True)
    require_outside(out, data)
    teacher_run = teacher or out / TEACHER_NAME
    trains_teacher = teacher is None and plan.needs_teacher
    out.mkdir(parents=True, exist_ok=True)
    slots, split = jobs or max(1, torch.cuda.device_count()), str(split_file) if split_file else None
    with only_one(out / ".lock", f"study in '{out}'"):
        todo = _unfinished(out, plan, teacher_run, given=teacher is not None, split_file=split_file)
        watch = _Watch(out, plan, teacher_run if trains_teacher else None, progress, tell)
        watch.tick()
        if trains_teacher and not RunFolder(teacher_run).evaluation.exists():
            first = [(TEACHER_NAME, Order(str(data), str(teacher_run), plan.teacher, split_file=split, layout=layout))]
            _carry_out(first, out, 1, watch, len(plan.jobs))
        asked = str(teacher_run) if teacher is not None or trains_teacher else None
        students = [
            (job.name, Order(str(data), str(run_of(out, job)), job.config, asked, split, layout)) for job in todo
        ]
        _carry_out(students, out, slots, watch, len(plan.jobs))
        document = summarise(data, out, plan, teacher_run if asked else None, layout=layout, progress=progress)
        shown = _shown(out, document, teacher_run)
        named = {"budget": _richest(document)["name"], "seed": _first_seed(document), "models": list(shown)}
        document["evidence"] = named
        write_json(out / RESULT_NAME, document)
        if evidence:
            gather_for(shown, data, out / EVIDENCE_NAME, layout=layout, progress=progress)
        return document


def _richest(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """The budget with most labels: what is shown of single models is shown of these."""
    budgets: list[Mapping[str, Any]] = document["budgets"]
    return max(budgets, key=lambda budget: (float(budget["labels"]), int(budget["epochs"])))


def _first_seed(document: Mapping[str, Any]) -> int:
    budget = _richest(document)
    return next(int(row["seeds"][0]) for row in budget["rows"] if row["name"] == budget["best"])


def _shown(out: Path, document: Mapping[str, Any], teacher: Path) -> dict[str, Path]:
    """The best method on the validation split, the baseline and their teacher, of the richest budget, first seed."""
    budget = _richest(document)
    rows = {row["name"]: row for row in budget["rows"]}
    runs = {name: out / rows[name]["runs"][0]["run"] for name in (budget["best"], document["baseline"]) if name in rows}
    return runs | ({TEACHER_NAME: teacher} if document["teacher"] is not None else {})


def run_of(out: Path, job: Job) -> Path:
    """The run folder of a job."""
    return out / "runs" / job.budget / f"{job.candidate}-{job.seed}"


def _carry_out(orders: list[tuple[str, Order]], out: Path, slots: int, watch: _Watch, total: int) -> None:
    failures = run_side_by_side(
        orders,
        slots=slots,
        environment=lambda slot: _environment(slot, slots),
        logs=out / "logs",
        on_tick=watch.tick,
        on_end=watch.ended,
        on_warning=watch.warned,
    )
    if failures:
        raise failed(failures, total)


def _environment(slot: int, slots: int) -> dict[str, str]:
    """A device for each process: a GPU, or its share of the processor."""
    gpus = torch.cuda.device_count()
    if gpus:
        # What the user has left visible, by the names that they gave: numbers, GPU-… or MIG-….
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        names = visible if visible != [""] else [str(number) for number in range(gpus)]
        return {"CUDA_VISIBLE_DEVICES": names[slot % gpus].strip()}
    return {"OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // slots))} if slots > 1 else {}


def _unfinished(out: Path, plan: ComparePlan, teacher: Path, *, given: bool, split_file: Path | None) -> list[Job]:
    """The jobs that have to run; every finished one must be what the recipe and the split say now.

    Raises:
        RunError: a run was made with other settings, with another split or under another teacher.
    """
    if not given and plan.needs_teacher and RunFolder(teacher).recipe.exists():
        _require_as_planned(RunFolder(teacher), plan.teacher, TEACHER_NAME)
    wanted = read_split(split_file) if split_file is not None else None
    known = RunFolder(teacher).manifest.exists()
    sha256 = read_manifest(RunFolder(teacher).manifest).weights_sha256 if known or given else None
    todo = []
    for job in plan.jobs:
        folder = RunFolder(run_of(out, job))
        if not folder.recipe.exists():
            todo.append(job)
            continue
        _require_as_planned(folder, job.config, job.name, sha256)
        if wanted is not None and set(read_split(folder.splits).test) != set(wanted.test):
            raise _of_another_study(folder, f"the test photos of '{split_file}'", "others", job.name)
        if not folder.evaluation.exists():
            todo.append(job)
    return todo


def _require_as_planned(
    folder: RunFolder, config: TrainConfig | DistillConfig, name: str, teacher_sha256: str | None = None
) -> None:
    try:
        folder.require_same_recipe(config)
        before = folder.read_environment().get("teacher_sha256")
        if before is not None and before != teacher_sha256:
            folder.require_same_teacher(teacher_sha256)
    except RunError as error:
        raise _of_another_study(folder, error.expected, error.got, name) from None


def _of_another_study(folder: RunFolder, expected: str, got: str, name: str) -> RunError:
    return RunError(
        expected,
        f"{got} for '{name}' of this study",
        f"choose another --out, or remove '{folder.path}' to train it anew",
    )


class _Watch:
    """Counts the epochs of all runs, and tells of each run that has finished."""

    def __init__(
        self,
        out: Path,
        plan: ComparePlan,
        teacher: Path | None,
        progress: ProgressCallback,
        tell: Callable[[str], None],
    ) -> None:
        self._runs = {job.name: (RunFolder(run_of(out, job)), job.config.distill.epochs) for job in plan.jobs}
        if teacher is not None:
            self._runs[TEACHER_NAME] = (RunFolder(teacher), plan.teacher.train.epochs)
        self._progress, self._tell = progress, tell
        self._warned: set[str] = set()
        self._finished = {name for name, (folder, _) in self._runs.items() if folder.evaluation.exists()}

    def tick(self) -> None:
        """Looks how far the runs are."""
        total = sum(epochs for _, epochs in self._runs.values())
        done = sum(
            epochs if name in self._finished else min(_rows(folder.metrics), epochs)
            for name, (folder, epochs) in self._runs.items()
        )
        self._progress(done, total)

    def warned(self, line: str) -> None:
        """Passes on what a run warns of, once for all runs."""
        if line not in self._warned:
            self._warned.add(line)
            self._tell(line)

    def ended(self, name: str) -> None:
        """Tells what a run has reached."""
        self._finished.add(name)
        folder, _ = self._runs[name]
        found = json.loads(folder.evaluation.read_text(encoding="utf-8"))
        minutes = found["train_s"] / 60
        self._tell(
            f"{name}: {100 * found['accuracy']:.1f} % on the test split, trained in {minutes:.1f} min; "
            f"{len(self._finished)} of {len(self._runs)} runs"
        )


def _rows(metrics: Path) -> int:
    try:
        return max(0, len(metrics.read_text(encoding="utf-8").splitlines()) - 1)
    except OSError:
        return 0
