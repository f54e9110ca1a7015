"""`agridistill export`: a finished run as a file for devices."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from typer import Argument, Option

from agridistill.cli import after_run, options
from agridistill.cli.output import next_command, print_json, progress_bar, stderr

if TYPE_CHECKING:
    from agridistill.export.artefact import ExportResult

_SUFFIX = {"onnx": ".onnx", "litert": ".tflite", "micro": ".tflite"}


@options.with_groups
def export(
    run: Annotated[Path, Argument(metavar="RUN", help="Finished run folder.")],
    out: Annotated[Path, Option(help="File to write; its manifest lies beside it.")],
    labels: options.LabelOptions,
    format: Annotated[  # noqa: A002 - the option's name
        Literal["onnx", "litert", "micro"] | None,
        Option("--format", help="By default the suffix of --out; micro: int8 .tflite and C source for TFLM."),
    ] = None,
    precision: Annotated[Literal["fp32", "int8"], Option(help="Of weights and activations.")] = ("fp32"),
    data: Annotated[Path | None, Option(help="Photos that the run was trained on; by default where they were.")] = None,
    splits: options.Splits = None,
    answers: Annotated[float, Option(min=0.0, max=1.0, help="Share of right answers that abstaining aims at.")] = 0.95,
    force: Annotated[bool, Option("--force", help="Write it even if it misses its gate.")] = False,
    batch: Annotated[
        int | None, Option(min=1, max=1, help="1 fixes the batch of an .onnx file (tract, IREE; MNN: fp32).")
    ] = None,
    json: options.Json = False,
) -> None:
    """Write a run's network as one file that a device runs: photos as they are go in, logits come out.

    The file is compared with the network on the run's validation photos, and not written if it lost too much accuracy.
    """
    if format is not None:
        out = out.with_suffix(_SUFFIX[format]) if out.name and not out.suffix else out
        if out.name and out.suffix != _SUFFIX[format]:
            raise typer.BadParameter(f"--format {format} writes {_SUFFIX[format]} files, not '{out.name}'")
    layout = labels.layout()
    if earlier := _replaced_run(out, run):
        stderr.print(f"{out} replaces the artefact of the run '{earlier}'")
    with progress_bar("reading photos") as progress:
        from agridistill.export.artefact import export as write

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
    verdict = after_run.verdict_on_artefact(result, run)
    if json:
        print_json(result.to_json() | {"verdict": verdict.to_json()})
    else:
        stderr.print(_summary(result, out))
    after_run.print_verdict(verdict, json=True)
    if format == "micro" and not json:
        stderr.print(_micro(out))
    if precision == "int8" and (best := after_run.better_form(run, after_run.known_forms(run))) is not None:
        next_command(*after_run.export_of(best))
    elif verdict.usable:
        next_command("predict", out, "IMAGE")


def _replaced_run(out: Path, run: Path) -> str | None:
    """Name of the run whose artefact is at `out`; None where there is none, or it is of the same weights."""
    from agridistill.errors import ModelError
    from agridistill.manifest import MANIFEST_NAME, read_manifest
    from agridistill.runtime.backends import manifest_path

    if not out.is_file():
        return None
    try:
        lineage = read_manifest(manifest_path(out)).lineage
        weights = read_manifest(run / MANIFEST_NAME).weights_sha256
    except ModelError:
        return None  # the export reports it, where it matters
    return str(lineage.get("run", "unknown")) if lineage.get("run_weights_sha256") != weights else None


def _summary(result: ExportResult, out: Path) -> str:
    parity, abstention = result.parity, result.abstention
    answers = "answers no photo"
    if abstention.coverage:
        answers = (
            f"abstains below {abstention.threshold:.2f}: answers {100 * abstention.coverage:.0f} %, "
            f"{100 * abstention.accuracy:.1f} % of them right"
        )
    return (
        f"{out}: {result.size_bytes / 1e6:.2f} MB, accuracy {100 * parity.accuracy:.2f} % on {parity.photos} "
        f"validation photos (network {100 * parity.network_accuracy:.2f} %), same answer on "
        f"{100 * parity.top1_agreement:.1f} %; {answers}"
    )


def _micro(out: Path) -> str:
    from agridistill.manifest import read_manifest
    from agridistill.runtime.backends import manifest_path

    needs = read_manifest(manifest_path(out)).measured["micro"]
    arena = needs["arena_bytes"]
    memory = f"{arena / 1024:.0f} kB of arena" if arena else "arena unknown (pip install tflite-micro measures it)"
    return f"{out.with_suffix('.c')}, {out.with_suffix('.h').name}: {memory}; operators {', '.join(needs['operators'])}"
