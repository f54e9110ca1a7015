"""`compare`: trains methods x seeds x budgets with one teacher, and compares the results photo by photo."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from agridistill.data.folder import require_outside
from agridistill.data.labels import FOLDERS, Layout, read_layout
from agridistill.data.prepare import prepare_data
from agridistill.data.split import read_split
from agridistill.errors import RunError
from agridistill.evaluation.evidence import gather_evidence, read_evidence, write_gallery
from agridistill.manifest import read_manifest
from agridistill.models import load_backend
from agridistill.progress import ProgressCallback, silent
from agridistill.storage import only_one, require_writable, write_json
from agridistill.study.plan import ComparePlan, Job
from agridistill.study.summary import run_of, summarise
from agridistill.study.workers import Order, run_side_by_side
from agridistill.training.run_folder import RunFolder
from agridistill.training.settings import DistillConfig, TrainConfig

TEACHER = "teacher"


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
    """Trains the runs of a study that are missing or unfinished, and compares all of its runs on the test split.

    `agridistill.compare` documents the arguments. The folder `out` gets the folders `runs` and `logs`, the file
    `compare.json`, whose content is returned (see `summarise`), and a folder `teacher` if the study trains one.

    Raises:
        AgriDistillError: `out` holds a run with other settings, a run failed, or data or teacher cannot be used.
    """
    read_layout(data, layout)  # reports a wrong path before anything is written
    require_writable(out, folder=True)
    require_outside(out, data)
    trains_teacher = teacher is None and plan.needs_teacher
    used_teacher = out / TEACHER if trains_teacher else teacher
    out.mkdir(parents=True, exist_ok=True)
    with only_one(out / ".lock", f"study in '{out}'"):
        _require_same_photos(out, plan, data, layout)
        missing = _missing_jobs(out, plan, teacher, split_file)
        runs = {job.name: (RunFolder(run_of(out, job)), job.config.distill.epochs) for job in plan.jobs}
        if trains_teacher:
            runs[TEACHER] = (RunFolder(out / TEACHER), plan.teacher.train.epochs)
        tracker = _Tracker(runs, progress, tell)
        tracker.update()
        train_all = partial(
            run_side_by_side,
            logs=out / "logs",
            total=len(plan.jobs),
            on_tick=tracker.update,
            on_end=tracker.finish,
            on_warning=tracker.warn,
        )
        if trains_teacher and not RunFolder(out / TEACHER).evaluation.exists():
            order = Order(data, out / TEACHER, plan.teacher, split_file=split_file, layout=layout)
            train_all({TEACHER: order})
        orders = {
            job.name: Order(data, run_of(out, job), job.config, used_teacher, split_file, layout) for job in missing
        }
        train_all(orders, slots=jobs or max(1, torch.cuda.device_count()))
        document = summarise(data, out, plan, used_teacher, layout=layout, progress=progress)
        budget = max(document["budgets"], key=lambda budget: (float(budget["labels"]), int(budget["epochs"])))
        rows = {row["name"]: row for row in budget["rows"]}
        names = [name for name in dict.fromkeys((budget["best"], document["baseline"])) if name in rows]
        models = {name: out / rows[name]["runs"][0]["run"] for name in names}
        if document["teacher"] is not None and used_teacher is not None:
            models[TEACHER] = used_teacher
        seed = int(rows[budget["best"]]["seeds"][0])
        document["evidence"] = {"budget": budget["name"], "seed": seed, "models": list(models)}
        write_json(out / "compare.json", document)
        if evidence:
            # The teacher's own split may be one of other photos.
            gather_for(models, data, out / "evidence", layout, progress, split_file=RunFolder(models[names[0]]).splits)
        return document


def gather_for(
    runs: Mapping[str, Path],
    data: Path,
    folder: Path,
    layout: Layout = FOLDERS,
    progress: ProgressCallback = silent,
    *,
    split_file: Path | None = None,
) -> None:
    """Measures robustness, calibration and attention of runs: `NAME.json` for each, and `gallery.json`, in `folder`.

    Files that exist already for the same weights are not written again. The photos are those of `split_file`, or if it
    is None of each run's own split.
    """
    weights = {name: read_manifest(RunFolder(run).manifest).weights_sha256 for name, run in runs.items()}
    for name, run in runs.items():
        file = folder / f"{name}.json"
        before = read_evidence(file)
        if before is None or before["weights_sha256"] != weights[name]:
            own = RunFolder(run).splits
            found = gather_evidence(
                load_backend(run), data, layout=layout, own_split=own, split_file=split_file, progress=progress
            )
            write_json(file, found)
    before = read_evidence(folder / "gallery.json")
    if before is None or before["weights_sha256"] != weights:
        write_gallery(runs, data, folder / "gallery.json", layout=layout, progress=progress)


def _require_same_photos(out: Path, plan: ComparePlan, data: Path, layout: Layout) -> None:
    """Raises a RunError if the first run that has begun has learnt from other photos than those in `data` now."""
    for job in plan.jobs:
        folder = RunFolder(run_of(out, job))
        if folder.recipe.exists():
            photos = prepare_data(data, layout=layout, split_file=folder.splits)
            try:
                folder.require_same_data(data, photos.fingerprint)
            except RunError as error:
                raise _of_another_study(folder, error.expected, error.got, job.name) from None
            return


def _missing_jobs(out: Path, plan: ComparePlan, teacher: Path | None, split_file: Path | None) -> list[Job]:
    """Returns the jobs that have no result yet; a run with another recipe, teacher or test split is a RunError."""
    own_teacher = RunFolder(out / TEACHER)
    if teacher is None and plan.needs_teacher and own_teacher.recipe.exists():
        _require_same(own_teacher, plan.teacher, TEACHER, None)
    manifest = RunFolder(teacher or own_teacher.path).manifest
    sha256 = read_manifest(manifest).weights_sha256 if teacher is not None or manifest.exists() else None
    wanted = read_split(split_file) if split_file is not None else None
    missing = []
    for job in plan.jobs:
        folder = RunFolder(run_of(out, job))
        if folder.recipe.exists():
            _require_same(folder, job.config, job.name, sha256)
            if wanted is not None and set(read_split(folder.splits).test) != set(wanted.test):
                raise _of_another_study(folder, f"the test photos of '{split_file}'", "other test photos", job.name)
        if not folder.evaluation.exists():
            missing.append(job)
    return missing


def _require_same(
    folder: RunFolder, config: TrainConfig | DistillConfig, name: str, teacher_sha256: str | None
) -> None:
    try:
        folder.require_same_recipe(config)
        if folder.read_environment().get("teacher_sha256") is not None:
            folder.require_same_teacher(teacher_sha256)
    except RunError as error:
        raise _of_another_study(folder, error.expected, error.got, name) from None


def _of_another_study(folder: RunFolder, expected: str, got: str, name: str) -> RunError:
    remedy = f"choose another --out, or remove '{folder.path}' to train this run again"
    return RunError(expected, f"{got} for '{name}' of this study", remedy)


class _Tracker:
    """Counts the trained epochs of all runs, and reports each finished run and each warning once."""

    def __init__(
        self, runs: Mapping[str, tuple[RunFolder, int]], progress: ProgressCallback, tell: Callable[[str], None]
    ) -> None:
        self._runs, self._progress, self._tell = runs, progress, tell
        self._finished = {name for name, (folder, _) in runs.items() if folder.evaluation.exists()}
        self._warnings: set[str] = set()

    def update(self) -> None:
        done = sum(
            epochs if name in self._finished else min(folder.epochs_done(), epochs)
            for name, (folder, epochs) in self._runs.items()
        )
        self._progress(done, sum(epochs for _, epochs in self._runs.values()))

    def warn(self, line: str) -> None:
        if line not in self._warnings:
            self._warnings.add(line)
            self._tell(line)

    def finish(self, name: str) -> None:
        self._finished.add(name)
        result = json.loads(self._runs[name][0].evaluation.read_text(encoding="utf-8"))
        self._tell(
            f"{name}: {100 * result['accuracy']:.1f} % on the test split, trained in {result['train_s'] / 60:.1f} min; "
            f"{len(self._finished)} of {len(self._runs)} runs are finished"
        )
