"""The command `agridistill export`, and output for finished runs: verdict, int8 measurements and next command."""

from __future__ import annotations

import json as json_format
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer import Argument, Option

from agridistill.cli import options, output
from agridistill.cli.output import printable, stderr, stdout
from agridistill.errors import AgriDistillError, RunError

if TYPE_CHECKING:
    from agridistill.evaluation.evaluate import EvaluationResult
    from agridistill.evaluation.verdict import ModelVerdict
    from agridistill.export.artefact import ExportResult
    from agridistill.export.forms import DeviceForm

Words = tuple[str | Path, ...]

_SUFFIX = {"onnx": ".onnx", "litert": ".tflite", "micro": ".tflite"}
_FORMS = "forms.json"
# The colours only repeat the meaning of the headline's first word.
_STYLES = {"usable": "bold green", "weak": "bold yellow", "unproven": "bold yellow", "unusable": "bold red"}


@options.with_groups
def export(
    run: Annotated[Path, Argument(metavar="RUN", help="Export the network of this finished run folder.")],
    out: Annotated[Path, Option(help="Write the model to this file, and its manifest to the same folder.")],
    labels: options.LabelOptions,
    format: Annotated[  # noqa: A002 - the option's name
        Literal["onnx", "litert", "micro"] | None,
        Option(
            "--format",
            help="Choose the file format; by default the suffix of --out decides. micro writes an int8 .tflite and C "
            "source for TensorFlow Lite Micro.",
        ),
    ] = None,
    precision: Annotated[
        Literal["fp32", "int8"], Option(help="Set the number format of weights and activations.")
    ] = "fp32",
    data: Annotated[
        Path | None, Option(help="Find the run's photos in this folder; by default where they were in training.")
    ] = None,
    splits: options.Splits = None,
    answers: Annotated[
        float,
        Option(
            min=0.0, max=1.0, help="Let the model abstain on unsure photos so that this share of its answers is right."
        ),
    ] = 0.95,
    force: Annotated[bool, Option("--force", help="Write the file even if it has lost too much accuracy.")] = False,
    batch: Annotated[
        int | None,
        Option(min=1, max=1, help="Fix the batch size of an .onnx file to 1, for tract, IREE and (in fp32) MNN."),
    ] = None,
    attention: Annotated[
        bool, Option("--attention", help="Add a second output to an .onnx file: a map of where the network looks.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Convert the network of a run to one file for a device, which normalises the pixels itself and returns logits.

    The file and the network are compared on the run's validation photos. The file is not written if it has lost too
    much accuracy.
    """
    if format is not None:
        out = out.with_suffix(_SUFFIX[format]) if out.name and not out.suffix else out
        if out.name and out.suffix != _SUFFIX[format]:
            raise typer.BadParameter(f"--format {format} writes {_SUFFIX[format]} files, not '{out.name}'")
    layout = labels.layout()
    with output.progress_bar("reading photos") as progress:
        from agridistill.evaluation.verdict import judge_artefact
        from agridistill.export.artefact import export as write
        from agridistill.manifest import read_manifest
        from agridistill.runtime.backends import manifest_path

        result = write(
            run,
            out,
            precision=precision,
            micro=format == "micro",
            batch=batch,
            attention=attention,
            data=data,
            layout=layout,
            split_file=splits,
            answers=answers,
            force=force,
            progress=progress,
        )
    manifest = read_manifest(manifest_path(result.out))
    verdict = judge_artefact(
        photos=result.parity.photos,
        accuracy=result.parity.accuracy,
        coverage=result.abstention.coverage,
        accuracy_of_answers=result.abstention.accuracy,
        classes=len(manifest.classes),
        run=verdict_on_run(run),
    )
    if json:
        output.print_json(result.to_json() | {"verdict": verdict.to_json()})
    else:
        stderr.print(_summary(result, out))
    print_verdict(verdict, json=True)
    if format == "micro" and not json:
        stderr.print(_micro(out, manifest.measured["micro"]))
    if precision == "int8" and (best := better_form(run, known_forms(run))) is not None:
        output.next_command(*export_of(best, assume_int8=True))
    elif verdict.usable:
        output.next_command("predict", out, "IMAGE")


def _summary(result: ExportResult, out: Path) -> str:
    parity, abstention = result.parity, result.abstention
    answers = "answers no photo"
    if abstention.threshold == 0:
        answers = f"never answers unsure, because {100 * abstention.accuracy:.1f} % of all answers are right"
    elif abstention.coverage:
        answers = (
            f"abstains below {abstention.threshold:.2f}: answers {100 * abstention.coverage:.0f} %, "
            f"{100 * abstention.accuracy:.1f} % of them right"
        )
    return (
        f"{out}: {result.size_bytes / 1e6:.2f} MB, accuracy {100 * parity.accuracy:.2f} % on {parity.photos} "
        f"validation photos (network {100 * parity.network_accuracy:.2f} %), same answer on "
        f"{100 * parity.top1_agreement:.1f} %; {answers}"
    )


def _micro(out: Path, needs: Mapping[str, Any]) -> str:
    arena = needs["arena_bytes"]
    memory = f"{arena / 1024:.0f} kB of arena" if arena else "arena unknown (to measure it, pip install tflite-micro)"
    return f"{out.with_suffix('.c')}, {out.with_suffix('.h').name}: {memory}; operators {', '.join(needs['operators'])}"


def print_verdict(verdict: ModelVerdict, *, json: bool = False) -> None:
    """Prints a verdict with its advice on stdout; with `json`, on stderr, because stdout then holds a JSON document."""
    console = stderr if json else stdout
    console.print(printable(verdict.headline), style=_STYLES[verdict.level])
    for line in verdict.remarks:
        console.print(f"  {printable(line)}")
    if verdict.advice:
        console.print("What helps:", style="bold")
    for line in verdict.advice:
        console.print(f"  - {printable(line)}")


def verdict_on(result: EvaluationResult, model: Path) -> ModelVerdict:
    """Returns the verdict about a model (run folder or exported file) from its evaluation and its training record."""
    from agridistill.evaluation.learning import read_learning
    from agridistill.evaluation.verdict import judge

    return judge(result, learning=read_learning(model, result.classes) if model.is_dir() else None)


def verdict_on_run(run: Path) -> ModelVerdict | None:
    """Returns the verdict about a finished run, read from its files; None if they cannot be read."""
    from agridistill.evaluation.evaluate import EvaluationResult

    try:
        return verdict_on(EvaluationResult.from_json(_read_json(run / "evaluation.json")), run)
    except (OSError, ValueError, RunError):
        return None


def _read_json(file: Path) -> Any:
    return json_format.loads(file.read_text(encoding="utf-8"))


def measure_forms(run: Path, teacher: Path, *, data: Path) -> tuple[DeviceForm, ...]:
    """Exports a student and its teacher in int8, measures both files and stores the figures in the student's folder.

    Returns the measurements, the better model first; () if one has no int8 form, or after an error, which is printed
    and not raised, because the training itself has succeeded.
    """
    from agridistill.storage import write_json

    try:
        from agridistill.export.forms import device_forms

        with output.progress_bar("measuring student and teacher in int8") as progress:
            forms = device_forms(run, teacher, data=data, progress=progress)
        if forms:
            write_json(run / _FORMS, {"forms": [form.to_json() for form in forms]})
    except (AgriDistillError, OSError) as error:
        stderr.print(f"Student and teacher were not compared as int8 files for a device: {error}")
        return ()
    return forms


def known_forms(run: Path) -> tuple[DeviceForm, ...]:
    """Reads what `measure_forms` stored in a run folder; empty if there is nothing, or if a run is missing."""
    try:
        from agridistill.export.forms import DeviceForm

        forms = tuple(DeviceForm.from_json(each) for each in _read_json(run / _FORMS)["forms"])
    except (ImportError, KeyError, OSError, TypeError, ValueError):
        return ()
    return forms if all((form.run / "manifest.json").exists() for form in forms) else ()


def better_form(run: Path, forms: Sequence[DeviceForm]) -> Path | None:
    """Prints the accuracy, latency and size in int8 of a student and its teacher, and names the one to use on a device.

    `forms` has the measurements of both, the better one first. Returns the teacher's run folder if the teacher is the
    better one and usable, else None.
    """
    for line in form_lines(forms):
        stderr.print(line)
    if not forms or forms[0].misses or forms[0].run.resolve() == run.resolve():
        return None
    best = forms[0].run
    verdict = verdict_on_run(best)
    if verdict is None or verdict.usable:
        return best
    stderr.print(f"  but {verdict.headline[0].lower()}{verdict.headline[1:]}.")
    return None


def form_lines(forms: Sequence[DeviceForm]) -> list[str]:
    """Returns one line of text for each int8 measurement, and one that names the better run for a device and why."""
    from agridistill.evaluation.learning import percent
    from agridistill.evaluation.metrics import wilson_interval

    lines = []
    for form in forms:
        low, high = wilson_interval(form.accuracy, form.photos)
        misses = f"; cannot be exported in int8: {form.misses}" if form.misses else ""
        lines.append(
            f"int8 on this machine: {printable(form.model)} ({printable(str(form.run))}): {percent(form.accuracy)} of "
            f"{form.photos} validation photos (95 % interval {percent(low)} to {percent(high)}), "
            f"{form.latency_ms:.1f} ms, {form.size_bytes / 1e6:.1f} MB{misses}"
        )
    if len(forms) > 1 and not forms[0].misses:
        lines.append(f"Better for a device: {printable(str(forms[0].run))}, {_reason(forms[0], forms[1])}.")
    return lines


def _reason(best: DeviceForm, other: DeviceForm) -> str:
    if other.misses:
        return "the only one whose answers stay the same in int8"
    if best.accuracy > other.accuracy:
        return "more accurate and faster" if best.latency_ms < other.latency_ms else "more accurate"
    if best.accuracy < other.accuracy:
        return f"faster; with {best.photos} photos, the difference in accuracy is not significant"
    return f"faster; on {best.photos} photos as accurate"


def export_of(run: Path, *, assume_int8: bool = False) -> Words:
    """Returns the words of the command that exports a run for a device, in int8 if the network can be rounded to it."""
    from agridistill.export.forms import has_int8

    precision = ("--precision", "int8") if assume_int8 or has_int8(run) else ()
    return ("export", run, "--out", output.sibling(run, f"{run.resolve().name}.onnx"), *precision)
