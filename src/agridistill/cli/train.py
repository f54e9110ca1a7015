"""`agridistill train`: any timm model on labels alone."""

from __future__ import annotations

from typing import Annotated

import typer

from agridistill.cli import options
from agridistill.cli.output import leave_talking_to_the_first, next_command, progress_bar, sibling


def train(
    data: options.Data,
    out: options.Out,
    model: Annotated[
        str | None, typer.Option("--model", help="timm's name, e.g. swin_tiny_patch4_window7_224.")
    ] = None,
    recipe: options.RecipeFile = None,
    set_: options.Set = None,
    splits: options.Splits = None,
    epochs: options.Epochs = None,
    image_size: options.ImageSize = None,
    batch_size: options.BatchSize = None,
    lr: options.LearningRate = None,
    seed: options.Seed = None,
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
            "workers": workers,
            "precision": precision,
            "pretrained": pretrained,
            "weights": weights,
            "devices": devices,
            "nodes": nodes,
        },
        resume=resume,
    )
    config = train_config(chosen)
    leave_talking_to_the_first(config.train.processes)
    with progress_bar("reading photos") as progress:
        from agridistill.training import run

        result = run.train(data, out, config, split_file=splits, resume=resume, progress=progress)
    options.show_result(result, json=json, model=config.train.model)
    next_command(
        "distill", data, "--teacher", out, "--student", "mobilenetv3_large_100", "--out", sibling(out, "student")
    )
