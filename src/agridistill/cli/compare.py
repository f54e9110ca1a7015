"""`agridistill compare` and `report`: a study from one recipe, and one page from its results."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from agridistill.cli import options, output
from agridistill.cli.output import UNDEFINED, count, printable, stderr, stdout
from agridistill.errors import ConfigError, needs_extra
from agridistill.progress import begin
from agridistill.storage import require_writable

if TYPE_CHECKING:
    from agridistill.study.plan import SearchPlan


@options.with_groups
def compare(
    data: options.Data,
    recipe: Annotated[
        Path, Option(metavar="NAME|FILE", help="Shipped recipe, as compare, or a file in TOML; with \\[compare].")
    ],
    out: Annotated[Path, Option(help="Folder of the study.")],
    labels: options.LabelOptions,
    teacher: Annotated[Path | None, Option(help="Run folder of the teacher; trained by the recipe otherwise.")] = None,
    set_: options.Set = None,
    splits: options.Splits = None,
    jobs: Annotated[int, Option(min=0, help="Runs at a time; 0 takes one for each GPU, one without.")] = 0,
    evidence: Annotated[bool, Option(help="Also measure robustness, calibration and attention for the report.")] = True,
    search: Annotated[int, Option(min=0, metavar="N", help="Instead: N trials of \\[compare.search], by Optuna.")] = 0,
    storage: Annotated[
        str | None, Option(metavar="URL", help="Optuna storage of --search; SQLite in --out otherwise.")
    ] = None,
    json: options.Json = False,
) -> None:
    """Train methods x seeds x budgets under one teacher and compare them, photo by photo.

    Finished runs are kept: after an interruption, or with more in the recipe, the same command continues.
    """
    from agridistill.config import compare_plan, read_recipe, require_serves, search_plan
    from agridistill.data.labels import FOLDERS

    chosen = read_recipe(recipe)
    require_serves(chosen, "compare")
    shared: dict[str, Any] = {
        "layout": labels.layout() or FOLDERS,
        "teacher": teacher,
        "split_file": splits,
        "tell": stderr.print,
    }
    if search:
        _refuse("--search, which tries one after another", {"--jobs": jobs, "--no-evidence": not evidence})
        plan = search_plan(chosen, set_ or [])
        _search(data, out, plan, search, storage, shared, json=json)
        return
    _refuse("a study without --search", {"--storage": storage})
    runs = compare_plan(chosen, set_ or [])
    with output.progress_bar("epochs of all runs") as progress:
        from agridistill.study import compare as study

        document = study.compare(data, out, runs, jobs=jobs, evidence=evidence, progress=progress, **shared)
    if json:
        output.print_json(document)
    else:
        print_study(document)
    output.next_command("report", out)


def _refuse(where: str, given: Mapping[str, object]) -> None:
    """Refuses options that would have no effect."""
    for name, value in given.items():
        if value:
            raise ConfigError(f"options for {where}", name, "leave it away")


def _search(
    data: Path, out: Path, plan: SearchPlan, trials: int, storage: str | None, shared: dict[str, Any], *, json: bool
) -> None:

    if shared["teacher"] is None:
        raise ConfigError("a teacher for --search", "none", "pass --teacher RUN")
    with needs_extra("Optuna, to search", "search"):
        import optuna  # noqa: F401 - checked before any work
    with output.progress_bar("trials") as progress:
        from agridistill.study.search import search

        document = search(data, out, plan, trials, storage=storage, progress=progress, **shared)
    best = document["best"]
    if json:
        output.print_json(document)
    else:
        found = ", ".join(f"{name} = {value}" for name, value in best["settings"].items())
        accuracy = f"{100 * best['val_accuracy']:.2f} % on the validation split"
        stdout.print(f"best of {len(document['trials'])} trials: {accuracy} with {found}")
    # The run's own recipe holds budget, candidate and the values that were found.
    words = (*shared["layout"].words(), *(("--splits", shared["split_file"]) if shared["split_file"] else ()))
    run = ("--teacher", shared["teacher"], "--recipe", out / best["recipe"])
    output.next_command("distill", data, *run, *words, "--out", "RUN")


def print_study(document: Mapping[str, Any]) -> None:
    """Prints one table a budget, from the document of `compare.json`, and how the figures were obtained."""
    for budget in document["budgets"]:
        _print_budget(budget, baseline=document["baseline"])
    teacher = document["teacher"]
    if teacher is not None:
        low, high = (f"{100 * end:.1f}" for end in teacher["accuracy_ci95"])
        labels = "" if teacher["labels"] is None else f", trained on {100 * teacher['labels']:g} % of the labels"
        output.print_note(
            f"teacher: {teacher['model']}, {100 * teacher['accuracy']:.1f} % ({low}–{high}){labels}", style=""
        )
        if learnt := teacher["test_photos_learnt"]:
            text = f"it was trained on {learnt:,} of the test photos: its students' figures are too high"
            output.print_note(text, style="yellow")
    output.print_note(
        f"{document['test_photos']:,} test photos of {document['test_leaves']:,} leaves; ± is the standard deviation "
        "over seeds; a difference is over the seeds that both have, its interval a bootstrap over leaves and seeds "
        "(* one seed: of leaves alone, and too narrow)"
    )
    output.print_note(f"tuning: {document['tuning']}")


def _print_budget(budget: Mapping[str, Any], *, baseline: str) -> None:
    title = f"{budget['name']}: {budget['epochs']} epochs, {100 * budget['labels']:g} % of the labels"
    columns = ("accuracy, %", f"to {baseline}, points (95 %)", "macro-F1", "NLL, nats", "calibration error, %", "seeds")
    table = output.new_table(title, "candidate", *columns, "parameters", "MACs")
    for row in budget["rows"]:
        table.add_row(
            printable(row["name"]),
            _mean(row, "accuracy", scale=100, decimals=2),
            _difference(row["difference"]),
            _mean(row, "macro_f1", decimals=3),
            _mean(row, "nll_nats", decimals=3),
            _mean(row, "calibration_error", scale=100, decimals=1),
            str(len(row["seeds"])),
            count(row["parameters"]),
            count(row["macs"]),
        )
    output.print_table(table)
    if others := [f"{found['other']} {_difference(found)}" for found in budget["best_against"]]:
        output.print_note(f"{budget['best']}, the best on the validation split, against {'; '.join(others)}")
    for test in budget["mcnemar"]:
        output.print_note(
            f"McNemar, seed {test['seed']}: {test['first']} alone right on {test['only_first']} photos, "
            f"{test['second']} alone on {test['only_second']}, p = {test['p_value']:.2g} (photos of one leaf taken for "
            "independent)"
        )


def _mean(row: Mapping[str, Any], key: str, *, scale: float = 1, decimals: int) -> str:
    mean, spread = row[f"{key}_mean"], row[f"{key}_sd"]
    text = f"{scale * mean:.{decimals}f}"
    return text if spread is None else f"{text} ± {scale * spread:.{decimals}f}"


def _difference(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return UNDEFINED
    low, high = found["points_ci95"]
    return f"{found['points']:+.2f} ({low:+.1f} to {high:+.1f}){'*' if found['of_leaves_alone'] else ''}"


def report(
    folder: Annotated[Path, Argument(metavar="DIR", help="Of `compare`, of a run, or of `evaluate --evidence`.")],
    json: options.Json = False,
) -> None:
    """Write one self-contained HTML page: what was found, with plots, robustness, attention and the worst mistakes."""
    if folder.is_dir():
        require_writable(folder, "DIR", folder=True)
    with output.progress_bar("drawing") as progress:
        from agridistill.report import report as write

        begin(progress, "drawing")
        result = write(folder)
    if json:
        files = {"plots": result.plots, "numbers": result.numbers}
        output.print_json({"page": str(result.page), **{name: list(map(str, each)) for name, each in files.items()}})
    else:
        stdout.print(str(result.page))
    stderr.print(f"open it in a browser: {result.page.resolve().as_uri()}")
