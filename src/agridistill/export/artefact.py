"""A finished run -> an artefact: converted, held against its network, measured, and only then written."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from agridistill.data.folder import Sample
from agridistill.data.labels import FOLDERS, Layout
from agridistill.data.likeness import learnt_path, write_learnt
from agridistill.data.split import digests_of, read_split
from agridistill.errors import AgriDistillError, DataError, MissingExtraError, ModelError
from agridistill.evaluation.answering import FEW_PHOTOS, Answering, fit_answering
from agridistill.evaluation.evaluate import LabelledLogits, predict_logits
from agridistill.evaluation.familiar import familiarity_of
from agridistill.evaluation.held_out import ChosenPhotos, choose_photos
from agridistill.evaluation.metrics import AbstentionPoint, accuracy_interval
from agridistill.evaluation.representative import representative_batches
from agridistill.export.micro import c_sources, micro_needs, require_micro_target, write_sources
from agridistill.export.parity import GATES, Parity, compare
from agridistill.manifest import ModelManifest
from agridistill.models import TorchBackend, complexity, load_network
from agridistill.models.int8 import calibrate, folded, quantised, with_rounded_logits
from agridistill.progress import ProgressCallback, begin, silent
from agridistill.runtime.backends import engines_of_file, manifest_path, open_artefact
from agridistill.runtime.backends.litert import LiteRtBackend
from agridistill.storage import replacing, require_writable

Precision = Literal["fp32", "int8"]
SUFFIXES = {"onnx": ".onnx", "litert": ".tflite"}

# Of each format: modules of the converter and of the engine that measures the file, the extra that brings them.
_CONVERTERS = {
    ".onnx": (("onnx", "onnxscript", "onnxruntime"), "export", "onnx and onnxscript"),
    ".tflite": (("litert_torch", "ai_edge_litert"), "litert", "litert-torch"),
}

# So many are compared where the split has fewer: agreement asks for no labels and no photos that were held out.
_COMPARED_PHOTOS = 400

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExportResult:
    """An artefact that was written.

    Attributes:
        out: the file; its manifest lies beside it.
        precision: "fp32" or "int8".
        size_bytes: of the file.
        parity: with its network, on validation photos and, where these are few, on others.
        answering: temperature and threshold, fitted on the validation photos, and what they cost.
    """

    out: Path
    precision: Precision
    size_bytes: int
    parity: Parity
    answering: Answering

    @property
    def calibration_error(self) -> float:
        """On validation photos, with the artefact's own temperature."""
        return self.answering.calibration_error

    @property
    def temperature(self) -> float:
        """Fitted on the validation photos."""
        return self.answering.temperature

    @property
    def abstention(self) -> AbstentionPoint:
        """The threshold, and what it costs."""
        return self.answering.abstention

    def to_json(self) -> dict[str, Any]:
        """Every figure."""
        return {
            "out": str(self.out),
            "precision": self.precision,
            "size_bytes": self.size_bytes,
            **asdict(self.parity),
            **self.answering.to_json(),
        }


def export(
    run: Path,
    out: Path,
    *,
    precision: Precision = "fp32",
    micro: bool = False,
    batch: int | None = None,
    data: Path | None = None,
    split_file: Path | None = None,
    layout: Layout | None = None,
    answers: float = 0.95,
    force: bool = False,
    progress: ProgressCallback = silent,
) -> ExportResult:
    """Writes a run's network as a file for devices, and its manifest beside it.

    Args:
        run: a finished run.
        out: `NAME.onnx` or `NAME.tflite`.
        precision: of weights and activations.
        micro: an int8 `NAME.tflite` for TensorFlow Lite Micro: int8 logits, `NAME.c` and `NAME.h` beside it, and memory
            and operators in the manifest. Measured with the reference kernels, which compute the same to the bit.
        batch: 1 fixes the batch of an `.onnx` file, for engines that want every shape fixed; None leaves it open.
        data: the photos that the run learnt from; None takes the folder that it names.
        split_file: which of them are for training and validation, where the run does not know them.
        layout: how their labels are found; None takes the layout of the run.
        answers: share of right answers that the abstention threshold is chosen for, 0 to 1.
        force: writes an artefact that misses its gate.
        progress: called with (done, total) while photos are read and classified.

    Raises:
        ModelError: an unfinished run, a network that cannot be converted, or an artefact that misses its gate.
        DataError: photos that are not those of the run.
        MissingExtraError: the converter is not installed.
    """
    if out.suffix not in SUFFIXES.values():
        raise ModelError("a file NAME.onnx or NAME.tflite", f"'{out}'", "correct --out")
    require_writable(out)
    _require_own_manifest(out)
    if micro:
        require_micro_target(out, precision)
    if batch is not None and (batch != 1 or out.suffix != ".onnx"):
        raise ModelError("a batch of 1, of an .onnx file", f"{batch} for '{out.name}'", "leave --batch out")
    _require_converter(out.suffix)
    if split_file is not None:
        read_split(split_file)
    network, manifest = load_network(run)
    if manifest.precision == "int8" and precision != "int8":
        raise ModelError("an fp32 run for an fp32 artefact", f"'{run}', trained for int8", "pass --precision int8")
    photos = data or _photos_of(run)
    own_split = run / "splits.json"
    choose = partial(
        choose_photos, manifest, photos, layout=layout or layout_of(run), split_file=split_file, own_split=own_split
    )
    val = choose(split="val", progress=progress)
    if not val.samples:
        raise DataError("validation photos to measure the artefact on", f"none in '{photos}'", "pass --splits FILE")
    train = choose(split="train")
    if precision == "int8":
        begin(progress, "rounding to int8")
    converted = _as_wanted(network, manifest, precision, train)
    if micro:
        batches = representative_batches(train.root, train.samples, manifest.preprocessing)
        converted = with_rounded_logits(converted, batches)
    familiarity = familiarity_of(train.root, train.samples, val.samples, manifest.preprocessing, progress)
    size = complexity(network, manifest.preprocessing.image_size)
    more = _more_to_compare(val, train, choose)
    torch_backend = TorchBackend(network, manifest, torch.device("cpu"))
    expected = [predict_logits(torch_backend, samples, val.root, progress=progress) for samples in (val.samples, more)]
    if not len(expected[0].target):
        raise DataError("readable validation photos", "none", "replace them")
    out.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target: the rename at the end must not cross file systems.
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.stem}.") as folder:
        file = Path(folder) / out.name
        begin(progress, f"converting to {precision} {out.suffix}")
        file.write_bytes(_converted(converted, manifest, out.suffix, int8=precision == "int8", batch=batch))
        draft = replace(manifest.with_weights(file), temperature=1.0, threshold=0.0)
        draft.write(manifest_path(file))
        engine = engines_of_file(file)[0]
        opened = LiteRtBackend(file, draft, reference=True) if micro else open_artefact(file, engine=engine)
        found = [predict_logits(opened, samples, val.root, progress=progress) for samples in (val.samples, more)]
        result = _measured(out, precision, file.stat().st_size, expected, found, answers)
        failures = GATES[precision].failures(result.parity)
        if failures and not force:
            raise ModelError(
                f"an {precision} artefact that keeps its network's answers",
                "; ".join(failures),
                "nothing was written: export fp32, or pass --force",
            )
        needs = micro_needs(file.read_bytes()) if micro else None
        final = replace(
            draft,
            precision=precision,
            temperature=result.temperature,
            threshold=result.abstention.threshold,
            lineage={
                **manifest.lineage,
                "run": run.resolve().name,
                "run_weights_sha256": manifest.weights_sha256,
                # By which `evaluate` knows photos that the model did not learn from.
                **({"split_sha256": digests_of(read_split(own_split))} if own_split.exists() else {}),
            },
            measured={
                **{key: value for key, value in result.to_json().items() if key not in ("out", "precision")},
                "parameters": size.parameters,
                "macs": size.macs,
                **({"micro": needs.to_json()} if needs else {}),
            },
            familiarity=familiarity.to_json() if familiarity else {},
        )
        _warn(result, found[0])
        if needs:
            write_sources(out, c_sources(file.read_bytes(), needs, out.stem, manifest.classes))
        # Both are on the disk before either takes its name: they are of use only together.
        with replacing(manifest_path(out)) as described, replacing(out) as temporary:
            temporary.write_bytes(file.read_bytes())
            final.write(described)
    _write_learnt(run, out, manifest, (train, val))
    return result


def _write_learnt(run: Path, out: Path, manifest: ModelManifest, photos: Sequence[ChosenPhotos]) -> None:
    """Which photos the run has learnt from, in a file beside the artefact.

    A run of an earlier version has no such file; the photos themselves are taken, where they are the run's.
    """
    target, stored = learnt_path(out), learnt_path(run)
    if stored.exists():
        with replacing(target) as temporary:
            temporary.write_bytes(stored.read_bytes())
    elif photos[0].trained_here:
        phashes = (upright for each in photos for upright, *_ in each.phashes)
        write_learnt(target, manifest.lineage["data_fingerprint"], phashes)
    else:
        target.unlink(missing_ok=True)


def _require_converter(suffix: str) -> None:
    """Looks for what writes the format, without loading it, which takes seconds.

    Raises:
        MissingExtraError: it is not installed.
    """
    modules, extra, what = _CONVERTERS[suffix]
    missing = next((name for name in modules if find_spec(name) is None), None)
    if missing is not None:
        raise MissingExtraError(
            f"{what}, to write {suffix} files", f"no module '{missing}'", f"pip install 'agridistill[{extra}]'"
        )


def _as_wanted(network: nn.Module, manifest: ModelManifest, precision: Precision, train: ChosenPhotos) -> nn.Module:
    if manifest.precision == "int8":
        # Trained with its roundings, whose scales go into the file.
        return network
    if precision == "int8":
        rounded = quantised(network, manifest.preprocessing)
        calibrate(rounded, representative_batches(train.root, train.samples, manifest.preprocessing))
        return rounded
    try:
        return folded(network) if any(isinstance(module, nn.BatchNorm2d) for module in network.modules()) else network
    except ModelError:
        # Not to be traced by our means: the converter has its own.
        return network


def _converted(network: nn.Module, manifest: ModelManifest, suffix: str, *, int8: bool, batch: int | None) -> bytes:
    try:
        return _by_its_converter(network, manifest, suffix, int8=int8, batch=batch)
    except (AgriDistillError, OSError):
        raise
    except Exception as error:  # converters raise many types on networks that they do not know
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ModelError(
            f"a network that can be written as {suffix}", f"'{manifest.model}' ({reason})", "try another format"
        ) from error


def _by_its_converter(
    network: nn.Module, manifest: ModelManifest, suffix: str, *, int8: bool, batch: int | None
) -> bytes:
    if suffix == ".onnx":
        try:
            from agridistill.export.onnx import to_onnx
        except ModuleNotFoundError as error:
            raise MissingExtraError(
                "onnx and onnxscript, to write .onnx files",
                f"no module '{error.name}'",
                "pip install 'agridistill[export]'",
            ) from None
        model = to_onnx(network, manifest.preprocessing, int8=int8, batch=batch)
        content: bytes = model.SerializeToString()
        return content
    from agridistill.export.litert import to_litert

    return to_litert(network, manifest.preprocessing, int8=int8)


def _more_to_compare(val: ChosenPhotos, train: ChosenPhotos, choose: Callable[..., ChosenPhotos]) -> tuple[Sample, ...]:
    """Photos of the other splits, evenly taken, where the validation photos are few."""
    if len(val.samples) >= FEW_PHOTOS:
        return ()
    others = (*train.samples, *choose(split="test").samples)
    step = max(1, -(-len(others) // (_COMPARED_PHOTOS - len(val.samples))))
    return others[::step]


def _measured(
    out: Path,
    precision: Precision,
    size: int,
    expected: Sequence[LabelledLogits],
    found: Sequence[LabelledLogits],
    answers: float,
) -> ExportResult:
    """Validation photos come first; the second part has others, for the agreement alone."""
    network, artefact = (np.concatenate([part.logits for part in parts]) for parts in (expected, found))
    return ExportResult(
        out=out,
        precision=precision,
        size_bytes=size,
        parity=compare(network, artefact, found[0].target),
        answering=fit_answering(found[0], answers),
    )


def _warn(result: ExportResult, val: LabelledLogits) -> None:
    if len(val.target) < FEW_PHOTOS:
        interval = accuracy_interval(val.logits.argmax(1) == val.target, val.leaf_ids)
        logger.warning(
            "only %d validation photos: the accuracy of %.0f %% may be anything from %.0f to %.0f %% (95 %% interval); "
            "%d or more make it sharper",
            len(val.target),
            100 * result.parity.accuracy,
            100 * interval.low,
            100 * interval.high,
            FEW_PHOTOS,
        )
    unreached = result.answering.warning()
    if unreached:
        logger.warning("%s", unreached)


def _require_own_manifest(out: Path) -> None:
    """NAME.onnx and NAME.tflite in one folder would share NAME.json, and one of them be lost."""
    manifest = manifest_path(out)
    if not manifest.exists():
        return
    try:
        described = json.loads(manifest.read_text(encoding="utf-8"))["weights_file"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ModelError(
            f"'{manifest.name}' free for the manifest of '{out.name}'",
            f"another file at '{manifest}'",
            "choose another name or folder",
        ) from None
    if described != out.name and (out.parent / str(described)).exists():
        raise ModelError(
            f"a name of its own for '{out.name}'",
            f"'{manifest_path(out).name}', which belongs to '{described}'",
            "choose another name or folder",
        )


def layout_of(run: Path) -> Layout:
    """How the labels of a run's photos were found."""
    try:
        return Layout.from_json(json.loads((run / "environment.json").read_text(encoding="utf-8"))["layout"])
    except (OSError, ValueError, KeyError, TypeError):
        return FOLDERS  # a run of an earlier version


def _photos_of(run: Path) -> Path:
    try:
        return Path(json.loads((run / "environment.json").read_text(encoding="utf-8"))["data"])
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError("the photos that the run learnt from", "none named", "pass --data DATA") from None
