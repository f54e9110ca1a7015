"""The commands `agridistill train`, which needs only labels, and `agridistill distill`, which also needs a teacher."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typer import Option

from agridistill.cli import export, options, output
from agridistill.cli.evaluate import print_evaluation
from agridistill.cli.output import stderr
from agridistill.progress import is_first_process

if TYPE_CHECKING:
    from agridistill.config import Recipe
    from agridistill.evaluation.evaluate import EvaluationResult
    from agridistill.evaluation.verdict import ModelVerdict
    from agridistill.training.run_folder import RunResult

Out = Annotated[Path, Option("--out", help="Write the run to this folder.")]

# Option -> section of its recipe key, if that is not the section with the name of the command.
_SECTIONS = {"image_size": "data"}
_RECIPE_KEYS = (
    *("epochs", "image_size", "batch_size", "lr", "seed", "balance", "keep_views", "workers", "precision"),
    *("pretrained", "weights", "devices", "nodes"),
)


@dataclass
class RunOptions(options.LabelOptions):
    """The options that `train` and `distill` share."""

    recipe: Annotated[
        Path | None,
        Option(
            metavar="NAME|FILE",
            help="Use the settings of this recipe: the name of a shipped one (such as cpu) or a TOML file.",
        ),
    ] = None
    set_: options.Set = None
    splits: options.Splits = None
    epochs: Annotated[int | None, Option(help="Set the number of passes over the training photos.")] = None
    image_size: Annotated[int | None, Option(help="Set the height and width of the model's input, in pixels.")] = None
    batch_size: Annotated[
        int | None, Option(help="Set the number of photos in a training step, over all processes.")
    ] = None
    lr: Annotated[float | None, Option(help="Set the largest learning rate.")] = None
    seed: Annotated[int | None, Option(help="Set the seed of weights, photo order, augmentation and dropout.")] = None
    balance: Annotated[
        bool | None, Option(help="Draw photos of each class equally often, which helps classes with few photos.")
    ] = None
    keep_views: Annotated[
        bool | None,
        Option(help="Compute each augmented copy of a photo once and store its pixels on disk (150 kB at 224 px)."),
    ] = None
    workers: Annotated[
        int | None, Option(help="Set the number of processes that load photos; -1 chooses it automatically.")
    ] = None
    precision: Annotated[Literal["fp32", "bf16"] | None, Option(help="Set the number format of the computation.")] = (
        None
    )
    pretrained: Annotated[bool | None, Option(help="Start from pretrained weights (timm's), or from random ones.")] = (
        None
    )
    weights: Annotated[Path | None, Option(help="Start from the weights of this safetensors file or finished run.")] = (
        None
    )
    devices: Annotated[
        int | None, Option(help="Set the number of training processes on this machine, one for each GPU.")
    ] = None
    nodes: Annotated[int | None, Option(help="Set the number of machines that run this command.")] = None
    resume: Annotated[
        bool, Option("--resume", help="Continue an unfinished run, or print the result of a finished one.")
    ] = False
    json: options.Json = False

    def recipe_for(
        self,
        command: Literal["train", "distill"],
        data: Path,
        out: Path,
        changes: dict[tuple[str, str], Any],
        teacher: Path | None = None,
    ) -> tuple[Recipe, str]:
        """Builds the recipe of a command; also returns a sentence that explains an automatic choice, or "".

        The recipe file comes first; --set changes it, then the other options do, and `changes`, the options that only
        this command has. Without a recipe file, --resume uses the settings of the run; a new run gets a network and
        settings that suit the photos and the hardware.
        """
        from agridistill.config import complete_recipe, read_recipe, require_serves, with_options, with_overrides

        recipe: Recipe = {}
        if self.recipe is not None:
            recipe = read_recipe(self.recipe)
            require_serves(recipe, command)
        given = changes | {(_SECTIONS.get(key, command), key): getattr(self, key) for key in _RECIPE_KEYS}
        recipe = with_options(with_overrides(recipe, command, self.set_ or []), given)
        if self.recipe is not None:
            return recipe, ""
        layout = self.layout()
        return complete_recipe(command, recipe, data, out, teacher=teacher, layout=layout, resume=self.resume)


@options.with_groups
def train(
    data: options.Data,
    out: Out,
    run: RunOptions,
    model: Annotated[
        str | None, Option(help="Train this network, by its name in timm, such as swin_tiny_patch4_window7_224.")
    ] = None,
) -> None:
    """Train a network on labels, without a teacher; it can become the teacher of a student."""
    from agridistill.config import train_config

    layout = run.layout()
    recipe, reason = run.recipe_for("train", data, out, {("train", "model"): model})
    config = train_config(recipe)
    output.silence_other_ranks(config.train.processes)
    finished = run.resume and (out / "evaluation.json").exists()
    with output.progress_bar("reading photos", then="preparing", first_line=reason) as progress:
        from agridistill.training import run as runs

        result = runs.train(
            data, out, config, layout=layout, split_file=run.splits, resume=run.resume, progress=progress
        )
    verdict = show_result(result, json=run.json, model=config.train.model, finished=finished)
    if not verdict.usable:
        return
    recipe_words = ("--recipe", run.recipe) if run.recipe is not None and "distill" in recipe else ()
    # Distilling takes many times longer than training: without a GPU it is suggested only if the recipe has a student.
    if (recipe_words or gpu_at_hand()) and not _is_larger(recipe.get("distill", {}).get("model"), result.evaluation):
        student = output.sibling(out, "student")
        output.next_command("distill", data, "--teacher", out, *run.words(), *recipe_words, "--out", student)
    else:
        output.next_command(*export.export_of(out))


def _is_larger(student: str | None, teacher: EvaluationResult) -> bool:
    """Returns whether a student (None: the default) has more parameters than its teacher; False if timm lacks it."""
    import torch

    from agridistill.errors import ModelError
    from agridistill.models import create_model
    from agridistill.training.defaults import STUDENT

    try:
        with torch.device("meta"):  # allocates no memory
            network = create_model(student or STUDENT, len(teacher.classes), pretrained=False)
    except (ModelError, RuntimeError):  # RuntimeError: torch cannot build this network on the meta device
        return False
    return sum(each.numel() for each in network.parameters()) > (teacher.parameters or math.inf)


def gpu_at_hand() -> bool:
    """Returns whether this machine has a GPU that PyTorch can use."""
    import torch

    return torch.cuda.is_available()


@options.with_groups
def distill(
    data: options.Data,
    out: Out,
    run: RunOptions,
    teacher: Annotated[Path | None, Option(help="Take the teacher from this finished run folder.")] = None,
    student: Annotated[
        str | None,
        Option(help="Train this network, by its name in timm; by default the one that is fastest in int8."),
    ] = None,
    method: Annotated[
        str | None,
        Option(
            help="Choose the method: ce, kd, kd-std, dkd, dist, at, fitnet, hybrid or hybrid-hint. The default is "
            "hybrid-hint; with --weights, hybrid; with --int8, kd."
        ),
    ] = None,
    views: Annotated[
        int | None,
        Option(help="Set the number of views (augmented copies) of each photo; 0 chooses it automatically."),
    ] = None,
    cache: Annotated[
        bool,
        Option(help="Run the teacher once and store its outputs (features compressed), or run it in every step."),
    ] = True,
    cache_dir: Annotated[Path | None, Option(help="Store the teacher's outputs here, not in its run folder.")] = None,
    unlabelled: Annotated[
        Path | None,
        Option(metavar="DIR", help="Also learn from these photos, without labels, by the teacher's loss terms."),
    ] = None,
    int8: Annotated[
        bool | None,
        Option(
            "--int8/--fp32",
            help="Train a finished student (--weights) further, with weights and activations rounded to int8.",
        ),
    ] = None,
) -> None:
    """Train a student network that learns from labels and from a teacher.

    The method ce needs no teacher: it is the baseline to compare with.
    """
    from agridistill.config import distill_config

    layout = run.layout()
    own: dict[tuple[str, str], Any] = {("distill", "model"): student, ("objective", "method"): method}
    own |= {("distill", "views"): views, ("distill", "int8"): int8}
    own |= {("data", "unlabelled"): unlabelled.resolve() if unlabelled is not None else None}
    recipe, reason = run.recipe_for("distill", data, out, own, teacher)
    config = distill_config(recipe)
    fit = config.distill
    output.silence_other_ranks(fit.processes)
    finished = run.resume and (out / "evaluation.json").exists()
    with output.progress_bar("reading photos", then="preparing", first_line=reason) as progress:
        from agridistill.training import run as runs

        result = runs.distill(
            data,
            teacher,
            out,
            config,
            layout=layout,
            split_file=run.splits,
            resume=run.resume,
            cache=cache,
            cache_dir=cache_dir,
            progress=progress,
        )
    verdict = show_result(result, json=run.json, model=fit.model, finished=finished)
    if teacher is not None and not fit.int8:
        _print_weaker_teacher(result, teacher)
    if teacher is not None and is_first_process(fit.processes):
        forms = export.known_forms(out) if finished else export.measure_forms(out, teacher, data=data)
        best = export.better_form(out, forms)
        if best is not None:
            output.next_command(*export.export_of(best, assume_int8=True))
            return
    if verdict.usable:
        output.next_command(*export.export_of(out))


def show_result(result: RunResult, *, json: bool, model: str, finished: bool) -> ModelVerdict:
    """Prints the evaluation of a run on its test split; prints and returns the verdict about it.

    With `json`, stdout holds one JSON document, and the verdict goes to stderr. `finished`: the run had already
    finished before this command.
    """
    verdict = export.verdict_on(result.evaluation, result.out)
    if finished:
        stderr.print(f"The run '{result.out}' has already finished; this is its stored result.")
    output.print_skipped(len(result.skipped), f"'{result.skipped[0][0]}'" if result.skipped else "")
    if json:
        document = result.evaluation.to_json() | {"verdict": verdict.to_json()}
        output.print_json(
            {"run": str(result.out), "best_epoch": result.best_epoch, "train_s": result.train_s, **document}
        )
    else:
        print_evaluation(result.evaluation, title=f"{model} on the test split")
    export.print_verdict(verdict, json=json)
    return verdict


def _print_weaker_teacher(result: RunResult, teacher: Path) -> None:
    from agridistill.training.run_folder import teacher_evaluation

    of_teacher = teacher_evaluation(result.out, teacher)
    # Compare the rounded values, which are printed.
    if of_teacher is not None and round(of_teacher.accuracy, 3) < round(result.evaluation.accuracy, 3):
        stderr.print(
            f"The student ({result.evaluation.accuracy:.1%}) is better than its teacher ({of_teacher.accuracy:.1%}), "
            "which may limit it: compare it with a student that learns only from labels (--method ce)."
        )
