"""`agridistill train` and `distill`: any timm model on labels alone, and a student under a teacher."""

from __future__ import annotations

import json as json_format
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typer import Option

from agridistill.cli import export, options, output
from agridistill.cli.evaluate import print_evaluation
from agridistill.cli.output import count, stderr
from agridistill.progress import is_first_process

if TYPE_CHECKING:
    from agridistill.config import Recipe
    from agridistill.evaluation.verdict import ModelVerdict
    from agridistill.training.run_folder import RunResult

Out = Annotated[Path, Option("--out", help="Run folder to write.")]

_STUDENT = "mobilenetv3_large_minimal_100"
# Options that set a recipe key of another section than the command's own.
_SECTIONS = {"image_size": "data"}
_RECIPE_KEYS = (
    *("epochs", "image_size", "batch_size", "lr", "seed", "balance", "keep_views", "workers", "precision"),
    *("pretrained", "weights", "devices", "nodes"),
)


@dataclass
class RunOptions(options.LabelOptions):
    """The options that `train` and `distill` share."""

    recipe: Annotated[
        Path | None, Option(metavar="NAME|FILE", help="Shipped recipe, as cpu or paper, or a file in TOML.")
    ] = None
    set_: options.Set = None
    splits: options.Splits = None
    epochs: Annotated[int | None, Option(help="Passes over the training photos.")] = None
    image_size: Annotated[int | None, Option(help="Input size in pixels.")] = None
    batch_size: Annotated[int | None, Option(help="Photos a step, over all processes.")] = None
    lr: Annotated[float | None, Option(help="Peak learning rate.")] = None
    seed: Annotated[int | None, Option(help="Of weights, order, views and dropout.")] = None
    balance: Annotated[bool | None, Option(help="Show each class equally often, for classes with few photos.")] = None
    keep_views: Annotated[bool | None, Option(help="Draw each view once and keep its pixels (150 kB at 224 px).")] = (
        None
    )
    workers: Annotated[int | None, Option(help="Loader processes; -1 chooses.")] = None
    precision: Annotated[Literal["fp32", "bf16"] | None, Option(help="Of the arithmetic.")] = None
    pretrained: Annotated[bool | None, Option(help="Start from the model hub's weights.")] = None
    weights: Annotated[Path | None, Option(help="Safetensors file or finished run to start from.")] = None
    devices: Annotated[int | None, Option(help="Processes on this machine, one for each GPU.")] = None
    nodes: Annotated[int | None, Option(help="Machines that run this command.")] = None
    resume: Annotated[bool, Option("--resume", help="Continue an unfinished run, or show a finished one's result.")] = (
        False
    )
    json: options.Json = False

    def recipe_for(
        self,
        command: Literal["train", "distill"],
        data: Path,
        out: Path,
        changes: dict[tuple[str, str], Any],
        teacher: Path | None = None,
    ) -> tuple[Recipe, str]:
        """The recipe that the options mean, and the reason for what was chosen for the user in a sentence.

        It is the recipe file (on a resume without one: the run's own), changed by --set, then by the options. Without
        either, network and settings are chosen to fit photos and hardware.

        Args:
            changes: options of one command alone, by section and key; None where not given.

        Raises:
            ConfigError: the recipe file cannot be used, or has no section for the command.
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

    def is_finished(self, out: Path) -> bool:
        """Whether a resume has nothing left to train: the stored result is printed."""
        return self.resume and (out / "evaluation.json").exists()

    def student_plan(self) -> export.StudentPlan:
        """The student that may follow, of the same size and for the same machine."""
        from agridistill.config import read_recipe, serves

        recipe = read_recipe(self.recipe) if self.recipe is not None else {}
        model = recipe.get("distill", {}).get("model")
        words = list(self.words())
        if self.recipe is not None:
            # Without a recipe `distill` chooses a network that works here.
            words += ["--student", _STUDENT] if model is None else []
            words += ["--recipe", self.recipe] if serves(recipe, "distill") else []
        for key in ("image_size", "batch_size", "workers", "precision"):
            if getattr(self, key) is not None:
                words += [f"--{key.replace('_', '-')}", str(getattr(self, key))]
        if self.pretrained is not None:
            words.append("--pretrained" if self.pretrained else "--no-pretrained")
        return export.StudentPlan(model or _STUDENT, "distill" in recipe, words)


@options.with_groups
def train(
    data: options.Data,
    out: Out,
    run: RunOptions,
    model: Annotated[str | None, Option(help="timm's name, e.g. swin_tiny_patch4_window7_224.")] = None,
) -> None:
    """Train a network on labels alone: a teacher, or a baseline to compare with."""
    from agridistill.config import train_config

    layout = run.layout()
    recipe, reason = run.recipe_for("train", data, out, {("train", "model"): model})
    config = train_config(recipe)
    # Read now: after hours of training, the recipe may be gone.
    plan = run.student_plan()
    output.silence_other_ranks(config.train.processes)
    finished = run.is_finished(out)
    with output.progress_bar("reading photos", then="preparing", first_line=reason) as progress:
        from agridistill.training import run as runs

        result = runs.train(
            data, out, config, layout=layout, split_file=run.splits, resume=run.resume, progress=progress
        )
    verdict = show_result(result, json=run.json, model=config.train.model, finished=finished)
    if verdict.usable:
        output.next_command(*export.after_training(data, out, result.evaluation, plan))


@options.with_groups
def distill(
    data: options.Data,
    out: Out,
    run: RunOptions,
    teacher: Annotated[Path | None, Option(help="Run folder of the teacher.")] = None,
    student: Annotated[str | None, Option(help="timm's name; default: fastest in int8.")] = None,
    method: Annotated[
        str | None,
        Option(
            help="ce, kd, kd-std, dkd, dist, at, fitnet, hybrid or hybrid-hint; "
            "default: hybrid-hint (with --weights hybrid, with --int8 kd)."
        ),
    ] = None,
    views: Annotated[int | None, Option(help="Views of each photo that the teacher classifies; 0 chooses.")] = None,
    cache: Annotated[bool, Option(help="Run the teacher once (but for features), or in every step.")] = True,
    cache_dir: Annotated[Path | None, Option(help="Folder of the teacher's caches.")] = None,
    int8: Annotated[
        bool | None, Option("--int8/--fp32", help="Train a finished student (--weights) on, rounded as in int8.")
    ] = None,
) -> None:
    """Train a student under a teacher (the method ce needs none: it is the equal baseline)."""
    from agridistill.config import distill_config

    layout = run.layout()
    own: dict[tuple[str, str], Any] = {("distill", "model"): student, ("objective", "method"): method}
    own |= {("distill", "views"): views, ("distill", "int8"): int8}
    recipe, reason = run.recipe_for("distill", data, out, own, teacher)
    config = distill_config(recipe)
    fit = config.distill
    output.silence_other_ranks(fit.processes)
    finished = run.is_finished(out)
    larger = larger_student(fit.model, teacher) if teacher is not None and not fit.int8 else ""
    first_line = "\n".join(filter(None, (reason, larger)))
    with output.progress_bar("reading photos", then="preparing", first_line=first_line) as progress:
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
            output.next_command(*export.export_of(best))
            return
    if verdict.usable:
        output.next_command(*export.export_of(out, result.evaluation))


def show_result(result: RunResult, *, json: bool, model: str, finished: bool) -> ModelVerdict:
    """Prints the evaluation on the test split, where the run may have `finished` before, and the verdict."""
    verdict = export.verdict_on(result.evaluation, result.out)
    if finished:
        stderr.print(f"'{result.out}' is finished: this is its stored result")
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


def larger_student(student: str, teacher: Path) -> str:
    """A warning of a student with more parameters than its teacher; empty otherwise or where unknown."""
    try:
        document = json_format.loads((teacher / "evaluation.json").read_text(encoding="utf-8"))
        theirs, classes = document["parameters"], len(document["classes"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    ours = export.parameters_of(student, classes)
    if ours is None or theirs is None or ours <= theirs:
        return ""
    return (
        f"warning: the student {student} has more parameters ({count(ours)}) than its teacher ({count(theirs)}): "
        "expect little from this teacher; pass a smaller --student, or use agridistill train"
    )


def _print_weaker_teacher(result: RunResult, teacher: Path) -> None:
    from agridistill.training.run_folder import teacher_evaluation

    of_teacher = teacher_evaluation(result.out, teacher)
    # Compared as they are printed.
    if of_teacher is not None and round(of_teacher.accuracy, 3) < round(result.evaluation.accuracy, 3):
        stderr.print(
            f"The student ({result.evaluation.accuracy:.1%}) is better than its teacher ({of_teacher.accuracy:.1%}), "
            "which may hold it back: compare it with one that learns from labels alone (--method ce)."
        )
