"""`agridistill distill`: a student under a teacher."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agridistill.cli import options
from agridistill.cli.output import leave_talking_to_the_first, next_command, progress_bar, sibling, stderr
from agridistill.progress import is_first_process

if TYPE_CHECKING:
    from agridistill.training.result import RunResult


def distill(
    data: options.Data,
    out: options.Out,
    teacher: Annotated[Path | None, typer.Option("--teacher", help="Run folder of the teacher.")] = None,
    student: Annotated[str | None, typer.Option("--student", help="timm's name; default: fastest in int8.")] = None,
    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            help="ce, kd, kd-std, dkd, dist, at, fitnet, hybrid or hybrid-hint; "
            "default: hybrid-hint (with --weights hybrid, with --int8 kd).",
        ),
    ] = None,
    recipe: options.RecipeFile = None,
    set_: options.Set = None,
    labels: options.Labels = None,
    label_columns: options.LabelColumns = None,
    nested: options.Nested = None,
    splits: options.Splits = None,
    epochs: options.Epochs = None,
    image_size: options.ImageSize = None,
    batch_size: options.BatchSize = None,
    lr: options.LearningRate = None,
    seed: options.Seed = None,
    balance: options.Balance = None,
    keep_views: options.KeepViews = None,
    workers: options.Workers = None,
    precision: options.Precision = None,
    pretrained: options.Pretrained = None,
    weights: options.Weights = None,
    devices: options.Devices = None,
    nodes: options.Nodes = None,
    views: Annotated[
        int | None, typer.Option("--views", help="Views of each photo that the teacher is asked about; 0 chooses.")
    ] = None,
    cache: Annotated[
        bool, typer.Option("--cache/--no-cache", help="Ask the teacher once (but for features), or in every step.")
    ] = True,
    cache_dir: Annotated[Path | None, typer.Option("--cache-dir", help="Where the teacher's caches lie.")] = None,
    int8: Annotated[
        bool | None, typer.Option("--int8/--fp32", help="Train a finished student (--weights) on, rounded as in int8.")
    ] = None,
    resume: options.Resume = False,
    json: options.Json = False,
) -> None:
    """Train a student under a teacher (the method ce needs none: it is the equal baseline)."""
    from agridistill.config import distill_config

    layout = options.layout_of(labels, label_columns, nested)
    chosen = options.recipe_for(
        "distill",
        recipe,
        out,
        set_,
        {
            "model": student,
            "objective.method": method,
            "epochs": epochs,
            "data.image_size": image_size,
            "batch_size": batch_size,
            "lr": lr,
            "seed": seed,
            "balance": balance,
            "keep_views": keep_views,
            "workers": workers,
            "precision": precision,
            "pretrained": pretrained,
            "weights": weights,
            "devices": devices,
            "nodes": nodes,
            "views": views,
            "int8": int8,
        },
        resume=resume,
    )
    chosen, reason = options.completed(
        "distill", chosen, data, layout=layout, teacher=teacher, recipe_file=recipe, resume=resume
    )
    config = distill_config(chosen)
    leave_talking_to_the_first(config.distill.processes)
    finished = options.is_finished(out, resume=resume)
    larger = _larger_student(config.distill.model, teacher) if teacher is not None and not config.distill.int8 else ""
    with progress_bar("reading photos", then="preparing") as progress:
        from agridistill.training import run

        result = run.distill(
            data,
            teacher,
            out,
            config,
            layout=layout,
            split_file=splits,
            resume=resume,
            cache=cache,
            cache_dir=cache_dir,
            progress=options.Announced(progress, "\n".join(filter(None, (reason, larger)))),
        )
    verdict = options.show_result(result, json=json, model=config.distill.model, finished=finished)
    if teacher is not None and not config.distill.int8:
        _tell_of_weaker_teacher(result, teacher)
    if teacher is not None and is_first_process(config.distill.processes):
        from agridistill.cli.device_forms import better_form, known_forms, measure_forms

        best = better_form(out, known_forms(out) if finished else measure_forms(out, teacher, data=data))
        if best is not None:
            next_command("export", best, "--out", sibling(best, f"{best.resolve().name}.onnx"), "--precision", "int8")
            return
    if verdict.usable:
        from agridistill.cli.next_steps import export_of

        next_command(*export_of(out, result.evaluation))


def _larger_student(student: str, teacher: Path) -> str:
    """A warning of a student with more parameters than its teacher; empty where it has not."""
    from agridistill.cli.cells import count
    from agridistill.cli.next_steps import larger_than_teacher

    sizes = larger_than_teacher(student, teacher)
    if sizes is None:
        return ""
    return (
        f"warning: the student {student} has more parameters ({count(sizes[0])}) than its teacher ({count(sizes[1])}): "
        "expect little from this teacher; pass a smaller --student, or use agridistill train"
    )


def _tell_of_weaker_teacher(result: RunResult, teacher: Path) -> None:
    from agridistill.training.result import teacher_evaluation

    of_teacher = teacher_evaluation(result.out, teacher)
    # Compared as they are printed.
    if of_teacher is not None and round(of_teacher.accuracy, 3) < round(result.evaluation.accuracy, 3):
        ours, theirs = f"{result.evaluation.accuracy:.1%}", f"{of_teacher.accuracy:.1%}"
        stderr.print(
            f"The student ({ours}) is better than its teacher ({theirs}), which may hold it back: "
            "compare it with one that learns from labels alone (--method ce).",
            markup=False,
        )
