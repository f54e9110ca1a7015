"""The commands `agridistill data check`, `data split` and `data fetch`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from agridistill.cli import options, output
from agridistill.cli.output import printable, stdout

if TYPE_CHECKING:
    from agridistill.data.check import CheckResult
    from agridistill.data.prepare import PreparedData


app = typer.Typer(no_args_is_help=True, help="Check photos, split them by leaves, or fetch a public data set.")


@app.command()
@options.with_groups
def check(
    data: options.Data,
    labels: options.LabelOptions,
    splits: Annotated[
        Path | None, Option(help="Also check this split file, made by `data split`: a leaf must be in one part only.")
    ] = None,
    json: options.Json = False,
) -> None:
    """Read every photo and report problems, such as unreadable photos; the exit code is 1 if there is a problem."""
    layout = labels.layout()
    words = (*labels.words(), *(("--splits", splits) if splits else ()))
    with output.progress_bar("reading photos") as progress:
        from agridistill.data.check import check as check_data
        from agridistill.data.labels import FOLDERS

        result = check_data(data, layout=layout or FOLDERS, split_file=splits, progress=progress)
    if json:
        output.print_json(result.to_json())
    else:
        _print_check(result)
    if result.problems:
        output.next_command("data", "check", data, *words, *(() if json else ("--json",)))
        raise typer.Exit(1)
    if splits is None:
        output.next_command("data", "split", data, *words, "--out", "splits.json")
    else:
        output.next_command("train", data, *words, "--out", "model")


@app.command()
@options.with_groups
def split(
    data: options.Data,
    out: Annotated[Path, Option(help="Write the split to this JSON file.")],
    labels: options.LabelOptions,
    val_fraction: Annotated[float, Option(help="Put this share (0 to 1) of each class into val.")] = 0.15,
    test_fraction: Annotated[float, Option(help="Put this share (0 to 1) of each class into test.")] = 0.15,
    seed: Annotated[int, Option(min=0, help="Set the random seed; each seed gives another split.")] = 0,
    conflicts: Annotated[
        float,
        Option(min=0, max=1, help="Stop with an error if a larger share of the photos has a copy under another label."),
    ] = 0.05,
    force: Annotated[bool, Option("--force", help="Replace an existing split file.")] = False,
    json: options.Json = False,
) -> None:
    """Divide photos into train, val and test, so that all photos of a leaf are in the same part."""
    layout = labels.layout()
    with output.progress_bar("reading photos") as progress:
        from agridistill.data.labels import FOLDERS
        from agridistill.data.prepare import split_data

        prepared = split_data(
            data,
            out,
            layout=layout or FOLDERS,
            val_fraction=val_fraction,
            test_fraction=test_fraction,
            seed=seed,
            conflicts=conflicts,
            force=force,
            progress=progress,
        )
    if prepared.skipped:
        path, reason = prepared.skipped[0]
        output.print_skipped(len(prepared.skipped), f"'{path}' ({reason})")
    if json:
        output.print_json(
            {"out": str(out), "data_fingerprint": prepared.fingerprint, "classes": _split_counts(prepared)}
        )
    else:
        table = output.new_table(f"{out}: photos (leaf groups)", "class", "train", "val", "test")
        for row in _split_counts(prepared):
            cells = (f"{row[f'{name}_photos']:,} ({row[f'{name}_leaves']:,})" for name in ("train", "val", "test"))
            table.add_row(printable(str(row["name"])), *cells)
        output.print_table(table)
    output.next_command("train", data, *labels.words(), "--splits", out, "--out", "model")


@app.command()
def fetch(
    name: Annotated[
        str,
        Argument(
            metavar="NAME", help="Fetch this data set, such as plantvillage-tomato; a wrong name lists all names."
        ),
    ],
    out: Annotated[Path, Option(help="Unpack the photos to this new folder.")],
    source: Annotated[
        str | None,
        Option(
            metavar="URL|FILE",
            help="Read the archive from this URL or local file instead; a URL may end with #sha256=… to be checked.",
        ),
    ] = None,
    json: options.Json = False,
) -> None:
    """Download a public data set, unpack it and check that its photos can be read."""
    from agridistill.data.datasets import DATASETS
    from agridistill.data.fetch import fetch_dataset
    from agridistill.errors import DataError, nearest

    if name not in DATASETS:
        raise DataError("a known data set", f"'{name}'", nearest(name, DATASETS))
    with output.progress_bar("fetching") as progress:
        result = fetch_dataset(DATASETS[name], out, source=source, progress=progress)
    if json:
        output.print_json(result.to_json())
    else:
        stdout.print(f"{result.photos:,} photos in {result.classes} classes: {printable(str(out))}")
    output.next_command("data", "check", out)


def _print_check(result: CheckResult) -> None:
    split_names = tuple(result.classes[0].photos_per_split or ())
    table = output.new_table(str(result.root), "class", "photos", "leaf groups", *split_names)
    for one in result.classes:
        per_split = (f"{one.photos_per_split[name]:,}" for name in split_names) if one.photos_per_split else ()
        table.add_row(printable(one.name), f"{one.photos:,}", f"{one.leaves:,}", *per_split)
    output.print_table(table)
    for text in result.notes:
        stdout.print(f"note: {printable(text)}")
    for text in result.problems:
        stdout.print(f"problem: {printable(text)}", style="red")
    if not result.problems:
        stdout.print("nothing wrong", style="green")


def _split_counts(prepared: PreparedData) -> list[dict[str, object]]:
    parts = {"train": prepared.train, "val": prepared.val, "test": prepared.test}
    rows: list[dict[str, object]] = []
    for label, class_name in enumerate(prepared.classes):
        own = {name: [one for one in part if one.label == label] for name, part in parts.items()}
        photos = {f"{name}_photos": len(part) for name, part in own.items()}
        leaves = {f"{name}_leaves": len({one.leaf_id for one in part}) for name, part in own.items()}
        rows.append({"name": class_name, **photos, **leaves})
    return rows
