"""The command `agridistill benchmark`, which measures and compares the cost of models on this machine."""

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

# If the medians of two measuring turns of a model have a larger ratio, other programs have used the machine.
_STEADY = 1.5
# The most important columns come first: on a narrow screen, the last ones follow in a second table.
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
        list[Path],
        Argument(
            metavar="MODEL", help="Measure these models: run folders, exported files or the shipped model tomato."
        ),
    ],
    engine: Annotated[
        list[str] | None,
        Option(
            help="Measure each model with this engine: torch, onnxruntime, openvino, litert, or all (installed ones); "
            "repeatable. By default each model runs with its default engine."
        ),
    ] = None,
    threads: Annotated[
        int, Option(min=0, help="Use this number of threads for a prediction; 0 means one for each core.")
    ] = 1,
    data: Annotated[Path | None, Option(help="Also measure accuracy on this folder (one subfolder per class).")] = None,
    split: Annotated[options.SplitName, Option(help="Measure the accuracy on this split of --data.")] = "test",
    splits: options.Splits = None,
    photos: Annotated[
        Path | None,
        Option(
            help="Measure the time from file to label with this photo or folder of photos, not with drawn pictures."
        ),
    ] = None,
    queries: Annotated[
        int, Option(min=1, help="Time this many photos for each model, once for inference and once from file to label.")
    ] = 1024,
    json: options.Json = False,
    csv: Annotated[Path | None, Option(help="Also write the table to this file as CSV.")] = None,
    out: Annotated[Path | None, Option(help="Also write the result to this file as JSON.")] = None,
    published: Annotated[bool, Option(help="Also print the published figures of arXiv 2504.16128.")] = False,
) -> None:
    """Measure and compare models: latency, throughput, memory, energy, load time, size and, with --data, accuracy.

    Each model runs with each engine in a separate process on the CPU. The processes take turns, so that other programs
    on the machine slow all of them down equally.
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
    # Print before writing files: if the disk fails, the result of minutes of measuring is not lost.
    if json:
        output.print_json(result.to_json())
    else:
        print_benchmark(result)
    if out is not None:
        write_json(out, result.to_json())
    if csv is not None:
        write_text(csv, result.to_csv())
    if queries < PUBLISHABLE_QUERIES:
        stderr.print(
            f"{queries:,} queries are too few for figures to publish: pass --queries {PUBLISHABLE_QUERIES} or more"
        )
    for model in result.models:
        fastest, slowest = min(model.latency_ms_p50_of_turns), max(model.latency_ms_p50_of_turns)
        if slowest > _STEADY * fastest:
            stderr.print(
                f"The machine was busy: repeated measurements of {model.model} with {model.engine} had medians from "
                f"{fastest:.2f} to {slowest:.2f} ms. Stop other programs and measure again.",
                style="yellow",
            )
    output.next_command("predict", models[0], "IMAGE")


def print_benchmark(result: BenchmarkResult) -> None:
    """Prints a table of the measured models and the published figures, then notes on how they were measured."""
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
        f"{result.queries:,} queries of each kind in {result.turns} turns, with {result.warm_up_queries} untimed "
        f"queries before each turn; {photos.photos} photos ({source}) of {photos.mean_pixels / 1e6:.2g} megapixels "
        f"and {photos.mean_bytes / 1e3:.0f} kB on average",
        "photos/s: throughput of inference, with the batch size in brackets; memory: peak, minus that of an empty "
        "Python process; energy: of all CPU packages for one inference; load: time until ready, in a new process",
        f"{host.system}, Python {host.python}, {host.cores} cores{instructions}; {versions}; {host.date_utc}",
    ]
    if result.data is not None:
        notes.insert(0, f"accuracy (95 % interval): {printable(result.data)}")
    if result.published:
        from agridistill.benchmark.result import PAPER

        notes.append(
            f"published: {PAPER}, on the tomato leaves of PlantVillage and on other machines; the paper does not name "
            'a percentile, and calls MACs "FLOPs" and the model size "memory"'
        )
    return notes


def _percentiles(latency: Percentiles) -> str:
    return " / ".join(digits(value) for value in (latency.p50, latency.p90, latency.p99))


def _megabytes(number: int | None) -> str:
    return UNDEFINED if number is None else f"{digits(number / 1e6)} MB"
