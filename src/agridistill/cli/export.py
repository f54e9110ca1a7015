"""`agridistill export`: a finished run as a file for devices."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from agridistill.cli import options
from agridistill.cli.output import next_command, print_json, progress_bar, sibling, stderr

if TYPE_CHECKING:
    from agridistill.evaluation.metrics import AbstentionPoint

_SUFFIX = {"onnx": ".onnx", "litert": ".tflite", "micro": ".tflite"}


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Finished run folder.")],
    out: Annotated[Path, typer.Option("--out", help="File to write; its manifest lies beside it.")],
    format: Annotated[  # noqa: A002 - the option's name
        Literal["onnx", "litert", "micro"] | None,
        typer.Option(
            "--format", help="The suffix of --out says it otherwise; micro: int8 .tflite and C source for TFLM."
        ),
    ] = None,
    precision: Annotated[Literal["fp32", "int8"], typer.Option("--precision", help="Of weights and activations.")] = (
        "fp32"
    ),
    data: Annotated[
        Path | None, typer.Option("--data", help="Photos that the run learnt from; by default where they were.")
    ] = None,
    labels: options.Labels = None,
    label_columns: options.LabelColumns = None,
    nested: options.Nested = None,
    splits: options.Splits = None,
    answers: Annotated[
        float, typer.Option("--answers", min=0.0, max=1.0, help="Share of right answers that abstaining aims at.")
    ] = 0.95,
    force: Annotated[bool, typer.Option("--force", help="Write it even if it misses its gate.")] = False,
    batch: Annotated[
        int | None, typer.Option("--batch", min=1, max=1, help="1 fixes the batch of an .onnx file (tract, ncnn, MNN).")
    ] = None,
    json: options.Json = False,
) -> None:
    """Write a run's network as one file that a device runs: photos as they are go in, logits come out.

    It is held against the network on the run's validation photos first, and not written if it lost too much.
    """
    if format is not None:
        out = out.with_suffix(_SUFFIX[format]) if out.name and not out.suffix else out
        if out.name and out.suffix != _SUFFIX[format]:
            raise typer.BadParameter(f"--format {format} writes {_SUFFIX[format]} files, not '{out.name}'")
    from agridistill.cli.device_forms import better_form, known_forms
    from agridistill.cli.verdicts import print_verdict, verdict_on_artefact

    layout = options.layout_of(labels, label_columns, nested)
    if earlier := _replaced_run(out, run):
        stderr.print(f"{out} replaces the artefact of the run '{earlier}'", markup=False)
    with progress_bar("reading photos") as progress:
        from agridistill.exporting.artefact import export as write

        result = write(
            run,
            out,
            precision=precision,
            micro=format == "micro",
            batch=batch,
            data=data,
            layout=layout,
            split_file=splits,
            answers=answers,
            force=force,
            progress=progress,
        )
    verdict = verdict_on_artefact(result, run)
    if json:
        print_json(result.to_json() | {"verdict": verdict.to_json()})
    else:
        parity = result.parity
        stderr.print(
            f"{out}: {result.size_bytes / 1e6:.2f} MB, accuracy {100 * parity.accuracy:.2f} % on {parity.photos} "
            f"validation photos (network {100 * parity.network_accuracy:.2f} %), same answer on "
            f"{100 * parity.top1_agreement:.1f} %; {_answers(result.abstention)}",
            markup=False,
        )
    print_verdict(verdict, json=True)
    if format == "micro" and not json:
        stderr.print(_micro(out), markup=False)
    if precision == "int8" and (best := better_form(run, known_forms(run))) is not None:
        next_command("export", best, "--out", sibling(best, f"{best.resolve().name}.onnx"), "--precision", "int8")
        return
    if verdict.usable:
        next_command("predict", out, "IMAGE")


def _replaced_run(out: Path, run: Path) -> str | None:
    """Name of the run whose artefact is at `out`; None where there is none, or it is of the same weights."""
    from agridistill.errors import ModelError
    from agridistill.manifest import MANIFEST_NAME, read_manifest
    from agridistill.runtime.artefacts import manifest_path

    if not out.is_file():
        return None
    try:
        lineage = read_manifest(manifest_path(out)).lineage
        weights = read_manifest(run / MANIFEST_NAME).weights_sha256
    except ModelError:
        return None  # the export says why, where it matters
    return str(lineage.get("run", "unknown")) if lineage.get("run_weights_sha256") != weights else None


def _answers(abstention: AbstentionPoint) -> str:
    if not abstention.coverage:
        return "answers no photo"
    share, right = 100 * abstention.coverage, 100 * abstention.accuracy
    return f"abstains below {abstention.threshold:.2f}: answers {share:.0f} %, {right:.1f} % of them right"


def _micro(out: Path) -> str:
    from agridistill.manifest import read_manifest
    from agridistill.runtime.artefacts import manifest_path

    needs = read_manifest(manifest_path(out)).measured["micro"]
    arena = needs["arena_bytes"]
    memory = f"{arena / 1024:.0f} kB of arena" if arena else "arena unknown (pip install tflite-micro measures it)"
    return f"{out.with_suffix('.c')}, {out.with_suffix('.h').name}: {memory}; operators {', '.join(needs['operators'])}"
