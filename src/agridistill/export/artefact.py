"""Exports a finished run to an artefact (a model file with its manifest): converts, compares, measures, writes."""

from __future__ import annotations

import copy
import json
import logging
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from agridistill.data.folder import Sample
from agridistill.data.labels import Layout
from agridistill.data.likeness import learnt_path
from agridistill.data.split import digests_of, read_split
from agridistill.errors import AgriDistillError, DataError, MissingExtraError, ModelError
from agridistill.evaluation.calibration import (
    FEW_PHOTOS,
    Answering,
    familiarity_of,
    fit_answering,
    representative_batches,
)
from agridistill.evaluation.evaluate import LabelledLogits, predict_logits
from agridistill.evaluation.held_out import ChosenPhotos, choose_photos
from agridistill.evaluation.metrics import AbstentionPoint, accuracy_interval
from agridistill.export.litert import c_sources, micro_needs, require_micro_target
from agridistill.export.parity import GATES, Parity, compare
from agridistill.manifest import ModelManifest, Precision, read_manifest
from agridistill.models import TorchBackend, aligned_stride, complexity, load_network, with_attention
from agridistill.models.int8 import calibrate, folded, quantised, with_rounded_logits
from agridistill.progress import ProgressCallback, begin, silent
from agridistill.runtime.backends import engines_of_file, manifest_path, open_artefact
from agridistill.runtime.engines import LiteRtBackend
from agridistill.storage import replacing, require_writable, write_text

# For each format: the modules of its converter and of the engine that measures the file, the extra that installs
# them, and the converter's name for errors.
_CONVERTERS = {
    ".onnx": (("onnx", "onnxscript", "onnxruntime"), "export", "onnx and onnxscript"),
    ".tflite": (("litert_torch", "ai_edge_litert"), "litert", "litert-torch"),
}

# Number of photos to compare. Photos of other splits are added to reach it: agreement does not need held-out photos.
_COMPARED_PHOTOS = 400

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExportResult:
    """An exported model file, with everything that was measured on it.

    `parity` compares with the run's network, on validation photos and, if these are few, on other photos.
    `answering` is temperature and threshold, fitted on the validation photos, with the quality of the answers.
    """

    out: Path  # the file; its manifest lies beside it
    precision: Precision
    size_bytes: int
    parity: Parity
    answering: Answering

    @property
    def abstention(self) -> AbstentionPoint:
        """The abstention threshold, with the coverage and accuracy that result."""
        return self.answering.abstention

    def figures(self) -> dict[str, Any]:
        """Returns everything that was measured, under the keys of the manifest's `measured`."""
        return {"size_bytes": self.size_bytes, **asdict(self.parity), **self.answering.to_json()}

    def to_json(self) -> dict[str, Any]:
        """Returns a JSON document: "out", "precision" and the keys of `figures`."""
        return {"out": str(self.out), "precision": self.precision, **self.figures()}


def export(
    run: Path,
    out: Path,
    *,
    precision: Precision = "fp32",
    micro: bool = False,
    batch: int | None = None,
    attention: bool = False,
    data: Path | None = None,
    split_file: Path | None = None,
    layout: Layout | None = None,
    answers: float = 0.95,
    force: bool = False,
    progress: ProgressCallback = silent,
) -> ExportResult:
    """Converts the network of a finished run to the file `out` (`.onnx` or `.tflite`) and writes its manifest.

    The network and the file classify the run's validation photos. If their results differ by more than `GATES` allow,
    nothing is written, unless `force` is set. `layout` describes where the labels of `data` are found; None takes the
    run's. `agridistill.export` documents the other arguments and the errors. A file for microcontrollers (`micro`) is
    measured with LiteRT's reference kernels, whose results are bit-identical to those of the device.
    """
    _require_target(out, precision, micro=micro, batch=batch, attention=attention)
    network, manifest = load_network(run)
    if attention:
        _require_attention(network, manifest, aligned_stride(run))
    if manifest.precision == "int8" and precision != "int8":
        raise ModelError("a run that was trained in fp32", f"'{run}', trained for int8", "pass --precision int8")
    if data is None or layout is None:
        own_data, own_layout = photos_of(run)
        data, layout = data or own_data, layout or own_layout
    choose = partial(choose_photos, manifest, data, layout=layout, split_file=split_file, own_split=run / "splits.json")
    val = choose(split="val", progress=progress)
    if not val.samples:
        raise DataError("validation photos to measure the exported model on", f"none in '{data}'", "pass --splits FILE")
    train = choose(split="train")
    if precision == "int8":
        begin(progress, "rounding to int8")
    converted = _as_wanted(network, manifest, precision, train, micro=micro)
    if attention:
        converted = with_attention(converted, aligned_stride(run))
    familiarity = familiarity_of(train.root, train.samples, val.samples, manifest.preprocessing, progress)
    manifest = replace(manifest, familiarity=familiarity.to_json() if familiarity else {})
    compared = (val.samples, _more_to_compare(val, train, choose))
    torch_backend = TorchBackend(network, manifest, torch.device("cpu"))
    expected = [predict_logits(torch_backend, samples, val.root, progress=progress) for samples in compared]
    if not len(expected[0].target):
        raise DataError("readable validation photos", f"none in '{data}'", "replace the unreadable photos")
    out.parent.mkdir(parents=True, exist_ok=True)
    # In the target's folder, because the rename at the end must not cross file systems.
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.stem}.") as folder:
        file = Path(folder) / out.name
        begin(progress, f"converting to {precision} {out.suffix}")
        int8 = precision == "int8"
        file.write_bytes(_converted(converted, manifest, out.suffix, int8=int8, batch=batch, attention=attention))
        draft = replace(manifest.with_weights(file), temperature=1.0, threshold=0.0)
        draft.write(manifest_path(file))
        engine = engines_of_file(file)[0]
        opened = LiteRtBackend(file, draft, reference=True) if micro else open_artefact(file, engine=engine)
        found = [predict_logits(opened, samples, val.root, progress=progress) for samples in compared]
        of_network, of_file = (np.concatenate([part.logits for part in parts]) for parts in (expected, found))
        parity = compare(of_network, of_file, found[0].target)
        result = ExportResult(out, precision, file.stat().st_size, parity, fit_answering(found[0], answers))
        failures = GATES[precision].failures(parity)
        if failures and not force:
            otherwise = "export fp32, or " if precision == "int8" else ""
            remedy = f"nothing was written: {otherwise}pass --force to write it anyway"
            raise ModelError(f"an {precision} export that predicts like the run's network", "; ".join(failures), remedy)
        _warn(result, found[0])
        _warn_about_replaced(out, manifest.weights_sha256)
        own = run / "splits.json"
        split = own if split_file is None or own.exists() else split_file
        final = _completed(draft, result, network, run, manifest.weights_sha256, split)
        if micro:
            needs = micro_needs(file.read_bytes())
            final = replace(final, measured={**final.measured, "micro": asdict(needs)})
            for suffix, text in c_sources(file.read_bytes(), needs, out.stem, manifest.classes).items():
                write_text(out.with_suffix(suffix), text)
        # Write both completely before either gets its final name: a model without its manifest is useless.
        with replacing(manifest_path(out)) as described, replacing(out) as temporary:
            shutil.copyfile(file, temporary)
            final.write(described)
    learnt = learnt_path(run)
    if learnt.exists():
        with replacing(learnt_path(out)) as temporary:
            shutil.copyfile(learnt, temporary)
    else:
        learnt_path(out).unlink(missing_ok=True)
    return result


def _require_target(out: Path, precision: str, *, micro: bool, batch: int | None, attention: bool) -> None:
    """Checks the arguments of an export, and that its converter is installed (without the slow import of it)."""
    if out.suffix not in _CONVERTERS:
        raise ModelError("a file name that ends in .onnx or .tflite", f"'{out}'", "correct --out")
    require_writable(out)
    _require_own_manifest(out)
    if micro:
        require_micro_target(out, precision)
    if batch is not None and (batch != 1 or out.suffix != ".onnx"):
        raise ModelError("a batch size of 1 and an .onnx file", f"{batch} for '{out.name}'", "leave out --batch")
    if attention and out.suffix != ".onnx":
        raise ModelError("an .onnx file for --attention", f"'{out.name}'", "leave out --attention")
    modules, extra, what = _CONVERTERS[out.suffix]
    missing = next((name for name in modules if find_spec(name) is None), None)
    if missing is not None:
        needed, remedy = f"{what}, to write {out.suffix} files", f"pip install 'agridistill[{extra}]'"
        raise MissingExtraError(needed, f"no module '{missing}'", remedy)


def _require_attention(network: nn.Module, manifest: ModelManifest, stride: int) -> None:
    """Refuses, before anything slow, a network without attention maps."""
    size = manifest.preprocessing.image_size
    try:
        # A copy, because eval mode and memory format of the network itself must stay as they are without attention.
        TorchBackend(copy.deepcopy(network), manifest, torch.device("cpu"), attention_stride=stride).attention(
            np.zeros((1, size, size, 3), np.uint8)
        )
    except ModelError as error:
        expected = f"a network with feature maps at stride {stride}, for --attention"
        raise ModelError(expected, f"'{manifest.model}' ({error.got})", "leave out --attention") from None


def _require_own_manifest(out: Path) -> None:
    """Refuses a name whose manifest NAME.json belongs to another model, as NAME.onnx and NAME.tflite in one folder."""
    manifest = manifest_path(out)
    if not manifest.exists():
        return
    try:
        described = json.loads(manifest.read_text(encoding="utf-8"))["weights_file"]
    except (OSError, ValueError, KeyError, TypeError):
        described = None
    if described is None or (described != out.name and (out.parent / str(described)).exists()):
        got = f"'{manifest}', which {'is another file' if described is None else f'belongs to {described!r}'}"
        raise ModelError(f"no other file where the manifest of '{out.name}' goes", got, "choose another name or folder")


def photos_of(run: Path) -> tuple[Path, Layout]:
    """Returns the data folder that a run was trained on, and the layout of its labels."""
    file = run / "environment.json"
    try:
        recorded = json.loads(file.read_text(encoding="utf-8"))
        return Path(recorded["data"]), Layout.from_json(recorded["layout"])
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError("the run's data folder and label layout", f"none in '{file}'", "restore the file") from None


def _as_wanted(
    network: nn.Module, manifest: ModelManifest, precision: Precision, train: ChosenPhotos, *, micro: bool
) -> nn.Module:
    """Returns the network in the form that is written: rounded to int8, or with batch norms folded if possible."""
    batches = partial(representative_batches, train.root, train.samples, manifest.preprocessing)
    if manifest.precision == "int8":
        converted = network  # it was trained with rounding, and its scales are written to the file
    elif precision == "int8":
        converted = quantised(network, manifest.preprocessing)
        calibrate(converted, batches())
    elif any(isinstance(module, nn.BatchNorm2d) for module in network.modules()):
        try:
            converted = folded(network)
        except ModelError:
            converted = network  # torch.fx cannot trace it; the converter folds batch norms by itself
    else:
        converted = network
    return with_rounded_logits(converted, batches()) if micro else converted


def _converted(
    network: nn.Module, manifest: ModelManifest, suffix: str, *, int8: bool, batch: int | None, attention: bool
) -> bytes:
    """Converts the network and returns the content of the file; a ModelError if the converter does not support it."""
    try:
        if suffix == ".onnx":
            from agridistill.export.onnx import to_onnx

            model = to_onnx(network, manifest.preprocessing, int8=int8, batch=batch, attention=attention)
            return bytes(model.SerializeToString())
        from agridistill.export.litert import to_litert

        return to_litert(network, manifest.preprocessing, int8=int8)
    except (AgriDistillError, OSError):
        raise
    except Exception as error:  # converters raise many types on networks that they do not know
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ModelError(
            f"a network that can be written as {suffix}", f"'{manifest.model}' ({reason})", "try another format"
        ) from error


def _more_to_compare(val: ChosenPhotos, train: ChosenPhotos, choose: Callable[..., ChosenPhotos]) -> tuple[Sample, ...]:
    """Returns evenly spaced photos of the other splits if there are fewer than 200 validation photos, otherwise ()."""
    if len(val.samples) >= FEW_PHOTOS:
        return ()
    others = (*train.samples, *choose(split="test").samples)
    step = max(1, -(-len(others) // (_COMPARED_PHOTOS - len(val.samples))))
    return others[::step]


def _completed(
    draft: ModelManifest, result: ExportResult, network: nn.Module, run: Path, run_weights_sha256: str, split: Path
) -> ModelManifest:
    """Returns the manifest with everything that was fitted and measured; `split` is the run's split file."""
    size = complexity(network, draft.preprocessing.image_size)
    return replace(
        draft,
        precision=result.precision,
        temperature=result.answering.temperature,
        threshold=result.abstention.threshold,
        lineage={
            **draft.lineage,
            "run": run.resolve().name,
            "run_weights_sha256": run_weights_sha256,
            # `evaluate` uses them to find photos that the model did not learn from.
            "split_sha256": digests_of(read_split(split)),
        },
        measured={**result.figures(), "parameters": size.parameters, "macs": size.macs},
    )


def _warn_about_replaced(out: Path, run_weights_sha256: str) -> None:
    """Logs a warning if `out` is an exported model of another run."""
    try:
        lineage = read_manifest(manifest_path(out)).lineage
    except ModelError:
        return
    if out.exists() and lineage.get("run_weights_sha256") not in (None, run_weights_sha256):
        logger.warning("'%s' of another run ('%s') is replaced", out, lineage.get("run"))


def _warn(result: ExportResult, val: LabelledLogits) -> None:
    """Logs a warning if there are few validation photos, and one if no threshold gives the wanted accuracy."""
    if len(val.target) < FEW_PHOTOS:
        interval = accuracy_interval(val.logits.argmax(1) == val.target, val.leaf_ids)
        logger.warning(
            "with only %d validation photos, the accuracy of %.0f %% is uncertain: the 95 %% interval is %.0f to "
            "%.0f %%; use at least %d photos for a better estimate",
            len(val.target),
            100 * result.parity.accuracy,
            100 * interval.low,
            100 * interval.high,
            FEW_PHOTOS,
        )
    if unreached := result.answering.warning():
        logger.warning("%s", unreached)
