"""`agridistill benchmark`: what models cost on this machine, side by side."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.text import Text
from typer import Argument, Option

from agridistill.cli import options, output
from agridistill.cli.output import UNDEFINED, count, digits, percent, printable, stderr

if TYPE_CHECKING:
    from agridistill.benchmark.result import BenchmarkResult, ModelResult, Percentiles

# Turns of one model that differ by more show that something else used the machine.
_STEADY = 1.5
# The most important first: a narrow screen shows the last ones in a table of their own.
_COLUMNS = (
    "accuracy",
    "size",
    "inference, ms\np50 / p90 / p99",
    "file to label, ms\np50 / p90 / p99",
    "photos/s",
    "memory",
    "energy",
    "load",
    "parameters",
    "MACs\nFLOPs",
)


def benchmark(
    models: Annotated[
        list[Path], Argument(metavar="MODEL", help="Run folders, exported models, or shipped ones (tomato).")
    ],
    engine: Annotated[
        list[str] | None, Option(help="torch, onnxruntime, openvino, litert, or all that are installed; repeatable.")
    ] = None,
    threads: Annotated[int, Option(min=0, help="Of one prediction; 0 takes every core.")] = 1,
    data: Annotated[Path | None, Option(help="Folder of class folders: measure the accuracy as well.")] = None,
    split: Annotated[options.SplitName, Option(help="Of --data.")] = "test",
    splits: options.Splits = None,
    photos: Annotated[Path | None, Option(help="Photo or folder for file to label; drawn leaves otherwise.")] = None,
    queries: Annotated[int, Option(min=1, help="Of each kind for each model.")] = 1024,
    json: options.Json = False,
    csv: Annotated[Path | None, Option(help="Also write the table to this file as CSV.")] = None,
    out: Annotated[Path | None, Option(help="Also write the JSON document to this file.")] = None,
    published: Annotated[bool, Option(help="Also show the figures of the paper.")] = False,
) -> None:
    """Measure models side by side: latency, throughput, memory, energy, load time, size and, with --data, accuracy.

    Each model and engine runs in a process of its own, on the processor; they take turns, so that noise hits all.
    """
    from agridistill.benchmark.result import CSV_COLUMNS
    from agridistill.errors import ConfigError
    from agridistill.storage import require_result_file, write_json, write_text

    if out is not None:
        require_result_file(out, keys=("host", "queries", "models"))
    if csv is not None:
        require_result_file(csv, "--csv", header=",".join(CSV_COLUMNS[:4]))
    if out is not None and csv is not None and out.resolve() == csv.resolve():
        raise ConfigError("two files for --out and --csv", f"'{out}' for both", "choose another --csv")
    with output.progress_bar("measuring") as progress:
        from agridistill.benchmark.run import PUBLISHABLE_QUERIES, BenchmarkPlan
        from agridistill.benchmark.run import benchmark as measure

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
    # Printed first: a disk that fails must not lose what took minutes to measure.
    if json:
        output.print_json(result.to_json())
    else:
        print_benchmark(result)
    if out is not None:
        write_json(out, result.to_json())
    if csv is not None:
        write_text(csv, result.to_csv())
    if queries < PUBLISHABLE_QUERIES:
        stderr.print(f"{queries:,} queries are too few to publish: leave --queries at {PUBLISHABLE_QUERIES:,} or more")
    for model in result.models:
        fastest, slowest = min(model.latency_ms_p50_of_turns), max(model.latency_ms_p50_of_turns)
        if slowest > _STEADY * fastest:
            stderr.print(
                f"the machine was busy: the turns of {model.model} with {model.engine} had medians from "
                f"{fastest:.2f} to {slowest:.2f} ms; stop what else runs and measure again",
                style="yellow",
            )
    output.next_command("predict", models[0], "IMAGE")


def print_benchmark(result: BenchmarkResult) -> None:
    """Prints one line a model, published figures below, and how it was measured."""
    threads = "1 thread" if result.threads == 1 else f"{result.threads} threads"
    table = output.new_table(f"one photo at a time, {threads}, {result.host.processor}", "model", *_COLUMNS)
    for model in result.models:
        table.add_row(f"{printable(model.model)}\n{model.engine}, {model.precision}", *_measured_cells(model))
    if result.published:
        table.add_section()
    for paper in result.published:
        where = f" on a {paper.device}" if paper.device else ""
        name = Text.assemble(f"{paper.model}{where}\n", ("published, not measured", "italic"))
        latency = UNDEFINED if paper.latency_ms is None else f"{paper.latency_ms:g}"
        figures = (percent(paper.accuracy), _megabytes(paper.size_bytes), latency)
        table.add_row(name, *figures, *[UNDEFINED] * 6, f"{count(paper.macs)}\n{count(paper.flops)}")
    output.print_table(table)
    for line in _notes(result):
        output.print_note(line)


def _measured_cells(model: ModelResult) -> tuple[str, ...]:
    accuracy = UNDEFINED
    if model.accuracy is not None:
        low, high = model.accuracy.ci95
        accuracy = f"{percent(model.accuracy.share)}\n({100 * low:.1f}–{100 * high:.1f})"
    return (
        accuracy,
        _megabytes(model.size_bytes),
        _percentiles(model.latency),
        _percentiles(model.end_to_end),
        f"{digits(model.throughput_photos_per_s)}\n(x{model.throughput_batch_size})",
        _megabytes(model.peak_memory_bytes),
        "unmeasured" if model.energy_j is None else f"{digits(1000 * model.energy_j)} mJ",
        f"{digits(model.load_s)} s",
        count(model.parameters),
        f"{count(model.macs)}\n{count(model.flops)}",
    )


def _notes(result: BenchmarkResult) -> list[str]:
    photos, host = result.photos, result.host
    source = "drawn leaves" if photos.source == "drawn" else printable(photos.source)
    instructions = f" ({', '.join(host.instructions)})" if host.instructions else ""
    versions = ", ".join(f"{name} {version or 'unknown'}" for name, version in host.versions.items())
    notes = [
        f"{result.queries:,} queries of each kind in {result.turns} turns, {result.warm_up_queries} untimed before "
        f"each; {photos.photos} photos ({source}) of {photos.mean_pixels / 1e6:.2g} megapixels and "
        f"{photos.mean_bytes / 1e3:.0f} kB on average",
        "photos/s: inference, in brackets the photos at once; memory: peak above a bare Python's; "
        "energy: of all processor packages for one inference; load: until ready, in a fresh process",
        f"{host.system}, Python {host.python}, {host.cores} cores{instructions}; {versions}; {host.date_utc}",
    ]
    if result.data is not None:
        notes.insert(0, f"accuracy (95 % interval): {printable(result.data)}")
    if result.published:
        from agridistill.benchmark.result import PAPER

        notes.append(
            f"published: {PAPER}, on PlantVillage's tomato leaves and other machines; it names no percentile, calls "
            "its MACs FLOPs and its size memory"
        )
    return notes


def _percentiles(latency: Percentiles) -> str:
    return " / ".join(digits(value) for value in (latency.p50, latency.p90, latency.p99))


def _megabytes(number: int | None) -> str:
    return UNDEFINED if number is None else f"{digits(number / 1e6)} MB"
