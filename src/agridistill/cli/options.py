"""Options that `train` and `distill` share, and how they change a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from agridistill.progress import ProgressCallback, begin

if TYPE_CHECKING:
    from agridistill.config import Recipe
    from agridistill.data.labels import Layout
    from agridistill.evaluation.verdict import ModelVerdict
    from agridistill.training.result import RunResult

Data = Annotated[Path, typer.Argument(metavar="DATA", help="Folder of class folders, or of train/val/test of them.")]
Labels = Annotated[
    Path | None,
    typer.Option(
        "--labels", metavar="FILE", help="CSV or TSV with the label of each photo, in place of class folders."
    ),
]
LabelColumns = Annotated[
    str | None,
    typer.Option(
        "--label-columns",
        metavar="IMAGE,LABEL",
        help="Columns of --labels, and as a third one that of the split; by default found by usual names.",
    ),
]
Nested = Annotated[
    bool | None,
    typer.Option(
        "--nested/--flat",
        help="Folders in class folders are classes of their own (Tomato/Late blight), or all of one class.",
        show_default=False,
    ),
]
Out = Annotated[Path, typer.Option("--out", help="Run folder to write.")]
RecipeFile = Annotated[
    Path | None,
    typer.Option("--recipe", metavar="NAME|FILE", help="Shipped recipe, as cpu or paper, or a file in TOML."),
]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Changes a recipe key; repeatable.")]
Splits = Annotated[Path | None, typer.Option("--splits", help="Split made by `data split`.")]
Epochs = Annotated[int | None, typer.Option("--epochs", help="Passes over the training photos.")]
ImageSize = Annotated[int | None, typer.Option("--image-size", help="Input size in pixels.")]
BatchSize = Annotated[int | None, typer.Option("--batch-size", help="Photos a step, over all processes.")]
LearningRate = Annotated[float | None, typer.Option("--lr", help="Peak learning rate.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Of weights, order, views and dropout.")]
KeepViews = Annotated[
    bool | None,
    typer.Option("--keep-views/--no-keep-views", help="Draw each view once and keep its pixels (150 kB at 224 px)."),
]
Balance = Annotated[
    bool | None,
    typer.Option("--balance/--no-balance", help="Show each class equally often, for classes with few photos."),
]
Workers = Annotated[int | None, typer.Option("--workers", help="Loader processes; -1 chooses.")]
Precision = Annotated[Literal["auto", "fp32", "bf16"] | None, typer.Option("--precision", help="auto measures.")]
Pretrained = Annotated[
    bool | None, typer.Option("--pretrained/--no-pretrained", help="Start from the model hub's weights.")
]
Weights = Annotated[Path | None, typer.Option("--weights", help="Safetensors file or finished run to start from.")]
Devices = Annotated[int | None, typer.Option("--devices", help="Processes on this machine, one for each GPU.")]
Nodes = Annotated[int | None, typer.Option("--nodes", help="Machines that run this command.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue an unfinished run, or show a finished one's result.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]


def layout_of(labels: Path | None, columns: str | None, nested: bool | None) -> Layout | None:
    """How the labels are found; None where no option says it.

    Raises:
        ConfigError: options that exclude each other.
    """
    from agridistill.data.labels import Layout

    if labels is None and columns is None and nested is None:
        return None
    return Layout(nested, labels, tuple(name.strip() for name in columns.split(",")) if columns else ())


def recipe_for(
    command: Literal["train", "distill"],
    recipe_file: Path | None,
    out: Path,
    overrides: list[str] | None,
    options: dict[str, Any],
    *,
    resume: bool,
) -> Recipe:
    """The recipe file (on a resume without one: the run's own), changed by --set and then by the options.

    Args:
        options: by key, "section.key" or a key of the command's own section; None where not given.

    Raises:
        ConfigError: the recipe file cannot be used, or says nothing for the command.
    """
    from agridistill.config import read_recipe, require_serves, with_options, with_overrides

    recipe: Recipe = {}
    if recipe_file is not None:
        recipe = read_recipe(recipe_file)
        require_serves(recipe, command)
    elif resume and (out / "recipe.toml").exists():
        recipe = read_recipe(out / "recipe.toml")
    recipe = with_overrides(recipe, command, overrides or [])
    located: dict[tuple[str, str], Any] = {}
    for name, value in options.items():
        section, _, key = name.rpartition(".")
        located[section or command, key] = str(value) if isinstance(value, Path) else value
    return with_options(recipe, located)


def completed(
    command: Literal["train", "distill"],
    recipe: Recipe,
    data: Path,
    *,
    layout: Layout | None = None,
    teacher: Path | None = None,
    recipe_file: Path | None,
    resume: bool,
) -> tuple[Recipe, str]:
    """The recipe, with a network and settings that fit photos and hardware, and the reason for them in a sentence.

    A recipe file and a resume have their own: they come back as they are, with an empty reason.
    """
    if recipe_file is not None or resume:
        return recipe, ""
    from agridistill.data.labels import FOLDERS
    from agridistill.training.defaults import choice_for

    choice = choice_for(command, recipe, data, teacher, layout or FOLDERS)
    return choice.recipe, choice.reason


class Announced:
    """A progress callback that prints a line when the work begins: after all checks, so that an error stands alone.

    Args:
        progress: the callback that is called in turn.
        line: printed once; nothing where empty.
    """

    def __init__(self, progress: ProgressCallback, line: str) -> None:
        self._progress, self._line = progress, line

    def __call__(self, done: int, total: int, /) -> None:
        """Takes how far it is."""
        if self._line:
            from agridistill.cli.output import stderr

            stderr.print(self._line, markup=False)
            self._line = ""
        self._progress(done, total)

    def stage(self, name: str, /) -> None:
        """Takes what is done from now on."""
        begin(self._progress, name)


def is_finished(out: Path, *, resume: bool) -> bool:
    """Whether a resume finds nothing left to train: the stored result is shown."""
    return resume and (out / "evaluation.json").exists()


def show_result(result: RunResult, *, json: bool, model: str, finished: bool = False) -> ModelVerdict:
    """The end of `train` and `distill`: the evaluation on the test split, and the verdict, which is given back.

    Args:
        result: of the run.
        json: prints it as one document.
        model: timm's name.
        finished: the run was finished before this command.
    """
    from agridistill.cli.output import print_json, stderr
    from agridistill.cli.tables import print_evaluation
    from agridistill.cli.verdicts import print_verdict, verdict_on

    verdict = verdict_on(result.evaluation, result.out)

    if finished:
        stderr.print(f"'{result.out}' is finished: this is its stored result", markup=False)
    if result.skipped:
        first = result.skipped[0][0]
        stderr.print(f"left out: {len(result.skipped)} unreadable photos, the first '{first}'", markup=False)
    if json:
        document = result.evaluation.to_json() | {"verdict": verdict.to_json()}
        print_json({"run": str(result.out), "best_epoch": result.best_epoch, "train_s": result.train_s, **document})
    else:
        print_evaluation(result.evaluation, title=f"{model} on the test split")
    print_verdict(verdict, json=json)
    return verdict
