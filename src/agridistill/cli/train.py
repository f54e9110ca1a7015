"""`agridistill train`: any timm model on labels alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, TypedDict

import typer

from agridistill.cli import options
from agridistill.cli.output import leave_talking_to_the_first, next_command, progress_bar

_STUDENT = "mobilenetv3_large_minimal_100"


class _StudentPlan(TypedDict):
    student: str
    planned: bool


def train(
    data: options.Data,
    out: options.Out,
    model: Annotated[
        str | None, typer.Option("--model", help="timm's name, e.g. swin_tiny_patch4_window7_224.")
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
    resume: options.Resume = False,
    json: options.Json = False,
) -> None:
    """Train a network on labels alone: a teacher, or a baseline to compare with."""
    from agridistill.config import train_config

    layout = options.layout_of(labels, label_columns, nested)
    chosen = options.recipe_for(
        "train",
        recipe,
        out,
        set_,
        {
            "model": model,
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
        },
        resume=resume,
    )
    chosen, reason = options.completed("train", chosen, data, layout=layout, recipe_file=recipe, resume=resume)
    config = train_config(chosen)
    # Now: after hours of training, the recipe may be gone.
    plan = _student_plan(recipe)
    for_student = _for_student(
        recipe,
        pretrained,
        {"--image-size": image_size, "--batch-size": batch_size, "--workers": workers, "--precision": precision},
    )
    leave_talking_to_the_first(config.train.processes)
    finished = options.is_finished(out, resume=resume)
    with progress_bar("reading photos", then="preparing") as progress:
        from agridistill.training import run

        announced = options.Announced(progress, reason)
        result = run.train(data, out, config, layout=layout, split_file=splits, resume=resume, progress=announced)
    verdict = options.show_result(result, json=json, model=config.train.model, finished=finished)
    if verdict.usable:
        from agridistill.cli.next_steps import after_training

        words = [*(layout.words() if layout else ()), *for_student]
        next_command(*after_training(data, out, result.evaluation, for_student=words, **plan))


def _student_plan(recipe_file: Path | None) -> _StudentPlan:
    from agridistill.config import read_recipe

    settings = read_recipe(recipe_file).get("distill") if recipe_file is not None else None
    return {"student": (settings or {}).get("model", _STUDENT), "planned": settings is not None}


def _for_student(
    recipe_file: Path | None, pretrained: bool | None, given: Mapping[str, object | None]
) -> list[str | Path]:
    """The options of `distill` that make a student as this teacher is made: same size, same machine, same recipe.

    Args:
        recipe_file: passed on where it says something for `distill`.
        pretrained: None where not given.
        given: options that both commands have; None where not given.
    """
    from agridistill.config import read_recipe, serves

    recipe = read_recipe(recipe_file) if recipe_file is not None else {}
    words: list[str | Path] = []
    if recipe_file is not None and "model" not in recipe.get("distill", {}):
        # Without a recipe `distill` chooses what works here.
        words += ["--student", _STUDENT]
    if recipe_file is not None and serves(recipe, "distill"):
        words += ["--recipe", recipe_file]
    for option, value in given.items():
        if value is not None:
            words += [option, str(value)]
    if pretrained is not None:
        words.append("--pretrained" if pretrained else "--no-pretrained")
    return words
