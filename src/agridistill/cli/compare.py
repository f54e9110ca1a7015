"""The commands `agridistill compare`, which trains and compares methods, and `agridistill report`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from agridistill.cli import options, output
from agridistill.cli.output import UNDEFINED, count, percent_with_interval, printable, stderr, stdout
from agridistill.errors import ConfigError, needs_extra
from agridistill.progress import begin
from agridistill.storage import require_writable

if TYPE_CHECKING:
    from agridistill.study.plan import SearchPlan


@options.with_groups
def compare(
    data: options.Data,
    recipe: Annotated[
        Path,
        Option(
            metavar="NAME|FILE",
            help="Use this recipe: the name of a shipped one (such as compare) or a TOML file with \\[compare].",
        ),
    ],
    out: Annotated[Path, Option(help="Write all runs and the result to this folder.")],
    labels: options.LabelOptions,
    teacher: Annotated[
        Path | None,
        Option(help="Use the teacher in this run folder; by default a teacher is trained as the recipe says."),
    ] = None,
    set_: options.Set = None,
    splits: options.Splits = None,
    jobs: Annotated[
        int, Option(min=0, help="Train this many runs at a time; 0 means one run for each GPU, or one run on the CPU.")
    ] = 0,
    evidence: Annotated[bool, Option(help="Also measure robustness, calibration and attention for the report.")] = True,
    search: Annotated[
        int, Option(min=0, metavar="N", help="Search for good settings in N Optuna trials, within \\[compare.search].")
    ] = 0,
    storage: Annotated[
        str | None,
        Option(
            metavar="URL",
            help="Store the trials of --search in this Optuna storage; by default in an SQLite file in --out.",
        ),
    ] = None,
    json: options.Json = False,
) -> None:
    """Train students of one teacher with several methods, seeds and budgets, and compare them photo by photo.

    A budget is a set of settings that all methods share, such as epochs, share of labels or image size.

    To continue after an interruption, or after adding methods to the recipe, run the same command again: finished runs
    are not trained again.
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
        _refuse("with --search, which trains one run at a time", {"--jobs": jobs, "--no-evidence": not evidence})
        plan = search_plan(chosen, set_ or [])
        _search(data, out, plan, search, storage, shared, json=json)
        return
    _refuse("without --search", {"--storage": storage})
    runs = compare_plan(chosen, set_ or [])
    with output.progress_bar("epochs of all runs") as progress:
        from agridistill.study import compare as study

        document = study.compare(data, out, runs, jobs=jobs, evidence=evidence, progress=progress, **shared)
    if json:
        output.print_json(document)
    else:
        print_study(document)
    output.next_command("report", out)


def _refuse(command: str, given: Mapping[str, object]) -> None:
    """Refuses options that would have no effect."""
    for name, value in given.items():
        if value:
            raise ConfigError(f"no {name} {command}", name, f"leave {name} out")


def _search(
    data: Path, out: Path, plan: SearchPlan, trials: int, storage: str | None, shared: dict[str, Any], *, json: bool
) -> None:
    if shared["teacher"] is None:
        raise ConfigError("a teacher for --search", "none", "pass --teacher RUN")
    with needs_extra("Optuna, for --search", "search"):
        import optuna  # noqa: F401 - fails before any work if it is not installed
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
    # The recipe of the best run contains the budget, the candidate and the values that were found.
    words = (*shared["layout"].words(), *(("--splits", shared["split_file"]) if shared["split_file"] else ()))
    run = ("--teacher", shared["teacher"], "--recipe", out / best["recipe"])
    output.next_command("distill", data, *run, *words, "--out", "RUN")


def print_study(document: Mapping[str, Any]) -> None:
    """Prints the result of `agridistill compare`: a table for each budget, and notes on how its figures were computed.

    `document` is the content of `compare.json`.
    """
    for budget in document["budgets"]:
        _print_budget(budget, baseline=document["baseline"])
    teacher = document["teacher"]
    if teacher is not None:
        accuracy = percent_with_interval(teacher["accuracy"], teacher["accuracy_ci95"])
        labels = f"{100 * teacher['labels']:g} % of the labels"
        output.print_note(f"teacher: {teacher['model']}, {accuracy}, trained on {labels}", style="")
        if learnt := teacher["test_photos_learnt"]:
            text = f"the teacher was trained on {learnt:,} of the test photos: the figures of its students are too high"
            output.print_note(text, style="yellow")
    output.print_note(
        f"{document['test_photos']:,} test photos of {document['test_leaves']:,} leaves. ± is the standard deviation "
        "over seeds. A difference is the mean over the seeds that both candidates have. Its interval is a bootstrap "
        "over leaves and seeds; * marks a bootstrap over leaves only, because there is one seed: it is too narrow."
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
            f"McNemar test, seed {test['seed']}: only {test['first']} is right on {test['only_first']} photos, only "
            f"{test['second']} on {test['only_second']}, p = {test['p_value']:.2g} (assumes that photos of one leaf "
            "are independent)"
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
    folder: Annotated[
        Path,
        Argument(
            metavar="DIR",
            help="Read the results in this folder: the --out of `compare`, `train` or `distill`, or "
            "the DIR of `evaluate --evidence`.",
        ),
    ],
    json: options.Json = False,
) -> None:
    """Write an HTML page, which needs no other file, with results, plots, attention maps and the worst mistakes."""
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
    stderr.print(f"Open the page in a browser: {result.page.resolve().as_uri()}")
