"""`agridistill benchmark`: what models cost on this machine, side by side."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from agridistill.cli import options
from agridistill.cli.output import next_command, print_json, progress_bar, stderr

if TYPE_CHECKING:
    from agridistill.benchmark.result import BenchmarkResult

# Turns of one model that differ by more say that something else used the machine.
_STEADY = 1.5


def benchmark(
    models: Annotated[
        list[Path],
        typer.Argument(metavar="MODEL", help="Run folders, exported models, or ones that come along (tomato)."),
    ],
    engine: Annotated[
        list[str] | None,
        typer.Option("--engine", help="torch, onnxruntime, openvino, litert, or all that are installed; repeatable."),
    ] = None,
    threads: Annotated[int, typer.Option("--threads", min=0, help="Of one prediction; 0 takes every core.")] = 1,
    data: Annotated[
        Path | None, typer.Option("--data", help="Folder of class folders: measure the accuracy as well.")
    ] = None,
    split: Annotated[Literal["test", "val", "train", "all"], typer.Option("--split", help="Of --data.")] = "test",
    splits: options.Splits = None,
    photos: Annotated[
        Path | None, typer.Option("--photos", help="Photo or folder for file to label; drawn leaves otherwise.")
    ] = None,
    queries: Annotated[int, typer.Option("--queries", min=1, help="Of each kind for each model.")] = 1024,
    json: options.Json = False,
    csv: Annotated[Path | None, typer.Option("--csv", help="Also write the table to this file as CSV.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Also write the JSON document to this file.")] = None,
    published: Annotated[
        bool, typer.Option("--published/--no-published", help="Also show the figures of the paper.")
    ] = False,
) -> None:
    """Measure models side by side: latency, throughput, memory, energy, load time, size and, with --data, accuracy.

    Each model and engine runs in a process of its own, on the processor; they take turns, so that noise hits all.
    """
    from agridistill.benchmark.result import CSV_COLUMNS
    from agridistill.errors import ConfigError
    from agridistill.storage import require_result_file

    if out is not None:
        require_result_file(out, keys=("host", "queries", "models"))
    if csv is not None:
        require_result_file(csv, "--csv", header=",".join(CSV_COLUMNS[:4]))
    if out is not None and csv is not None and out.resolve() == csv.resolve():
        raise ConfigError("two files for --out and --csv", f"'{out}' for both", "choose another --csv")
    with progress_bar("measuring") as progress:
        from agridistill.benchmark.run import PUBLISHABLE_QUERIES, BenchmarkPlan
        from agridistill.benchmark.run import benchmark as measure
        from agridistill.storage import write_json, write_text

        result = measure(
            models,
            engines=engine or (),
            threads=threads,
            data=data,
            split=split,
            split_file=splits,
            photos=photos,
            plan=BenchmarkPlan(queries),
            progress=progress,
        )
    if not published:
        result = replace(result, published=())
    # Shown first: a disk that refuses must not cost what took minutes to measure.
    if json:
        print_json(result.to_json())
    else:
        from agridistill.cli.tables import print_benchmark

        print_benchmark(result)
    if out is not None:
        write_json(out, result.to_json())
    if csv is not None:
        write_text(csv, result.to_csv())
    if queries < PUBLISHABLE_QUERIES:
        stderr.print(
            f"{queries:,} queries are too few to publish: leave --queries at {PUBLISHABLE_QUERIES:,} or more",
            markup=False,
        )
    _tell_unsteady(result)
    next_command("predict", models[0], "IMAGE")


def _tell_unsteady(result: BenchmarkResult) -> None:
    for model in result.models:
        fastest, slowest = min(model.latency_ms_p50_of_turns), max(model.latency_ms_p50_of_turns)
        if slowest > _STEADY * fastest:
            stderr.print(
                f"the machine was busy: the turns of {model.model} with {model.engine} had medians from "
                f"{fastest:.2f} to {slowest:.2f} ms; stop what else runs and measure again",
                markup=False,
                style="yellow",
            )
