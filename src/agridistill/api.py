"""The public functions for a finished model: `load`, `evaluate` and `export`.

Only this module decides whether a path is a run folder, an exported file or the name of a shipped model.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args, overload

from agridistill.arguments import (
    described,
    require_callable,
    require_choice,
    require_flag,
    require_number,
    require_threads,
    require_whole,
    to_optional_path,
    to_path,
)
from agridistill.errors import ConfigError, needs_extra
from agridistill.progress import ProgressCallback, silent

if TYPE_CHECKING:
    from agridistill.evaluation.evaluate import EvaluationResult
    from agridistill.evaluation.proof import ProofResult
    from agridistill.export.artefact import ExportResult
    from agridistill.runtime.engines import Backend
    from agridistill.runtime.predictor import Predictor

SplitName = Literal["train", "val", "test", "all"]


def load(model: Path | str, *, engine: str | None = None, threads: int = 0, photos: int | None = None) -> Predictor:
    """Loads a model for prediction.

    Args:
        model: a finished run folder, an exported `.onnx` or `.tflite` file, or the name of a shipped model ("tomato").
        engine: the library that runs an exported file: "onnxruntime" or "openvino" for `.onnx`, "litert" for `.tflite`;
            None takes the fastest one that is installed.
        threads: number of threads that compute one prediction with an exported file; 0 takes one for each core.
        photos: number of photos that will be classified, None if unknown; for fewer than 1,000, an engine that starts
            fast is chosen.

    Raises:
        ConfigError: an argument has a wrong type or range.
        ModelError: the model does not exist, is unfinished or damaged, or there is no such engine.
        MissingExtraError: the `train` extra (for a run folder) or the package of the engine is not installed.
    """
    from agridistill.runtime.backends import engines_for, missing_model, model_path, open_artefact
    from agridistill.runtime.predictor import Predictor

    path = model_path(to_path("model", model))
    _require_engine(engine)
    require_threads(threads)
    if photos is not None:
        require_whole("photos", photos, at_least=0)
    # Path.exists() raises an error if the name is too long.
    if not os.path.exists(path):  # noqa: PTH110
        raise missing_model(path)
    if not path.is_dir():
        return Predictor(open_artefact(path, engine=engine, threads=threads, photos=photos))
    if engine is not None:
        engines_for(path, (engine,))
    with needs_extra("torch, to run a model that is not exported"):
        from agridistill.models import load_backend
    return Predictor(load_backend(path))


@overload
def evaluate(
    model: Path | str,
    data: Path | str,
    *,
    against: None = None,
    split: SplitName = "test",
    split_file: Path | str | None = None,
    class_names: Mapping[str, str] | Path | str | None = None,
    label_file: Path | str | None = None,
    label_columns: Sequence[str] = (),
    nested: bool | None = None,
    engine: str | None = None,
    progress: ProgressCallback = silent,
) -> EvaluationResult: ...


@overload
def evaluate(
    model: Path | str,
    data: Path | str,
    *,
    against: Path | str,
    max_drop: float | None = ...,
    max_class_drop: float | None = ...,
    split: SplitName = "test",
    split_file: Path | str | None = None,
    class_names: Mapping[str, str] | Path | str | None = None,
    label_file: Path | str | None = None,
    label_columns: Sequence[str] = (),
    nested: bool | None = None,
    engine: str | None = None,
    progress: ProgressCallback = silent,
) -> ProofResult: ...


def evaluate(
    model: Path | str,
    data: Path | str,
    *,
    against: Path | str | None = None,
    max_drop: float | None = None,
    max_class_drop: float | None = None,
    split: SplitName = "test",
    split_file: Path | str | None = None,
    class_names: Mapping[str, str] | Path | str | None = None,
    label_file: Path | str | None = None,
    label_columns: Sequence[str] = (),
    nested: bool | None = None,
    engine: str | None = None,
    progress: ProgressCallback = silent,
) -> EvaluationResult | ProofResult:
    """Measures how well a model classifies labelled photos, or compares it with an older model on these photos.

    `label_file`, `label_columns` and `nested` mean the same as in `train`, and `engine` the same as in `load`.

    Args:
        model: a finished run folder, an exported file, or the name of a shipped model.
        data: a data folder as for `train`. Classes of the model without photos there get no scores and are left out of
            macro-F1.
        against: an older model, with which `model` is compared on the classes that both know.
        max_drop: with `against`: the loss of accuracy that is allowed, in percentage points; None means 3.
        max_class_drop: with `against`: the loss of recall that is allowed in each class, in percentage points; None
            means 10.
        split: "train", "val", "test" or "all": the part of the data to use. If it is the data that the model was
            trained on, the parts are those of the training run.
        split_file: a split made by `data split`, to use instead.
        class_names: folder name -> the model's class, for folders that are named differently; a mapping, or the path
            of a TOML file that holds one.
        progress: called with (done, total) while the photos are checked, then while they are classified.

    Returns:
        The scores; with `against`, the comparison, whose `holds` reports whether the new model may replace the old one.

    Raises:
        ConfigError: an argument has a wrong type or an unknown value.
        AgriDistillError: a model, the data or the split cannot be used.
    """
    from agridistill.runtime.backends import model_path

    path, folder = model_path(to_path("model", model)), to_path("data", data)
    old_path = None if against is None else model_path(to_path("against", against))
    splits = to_optional_path("split_file", split_file)
    require_choice("split", split, get_args(SplitName))
    _require_rule(old_path, split, max_drop, max_class_drop)
    _require_engine(engine)
    require_callable("progress", progress)
    with needs_extra("the training part of AgriDistill, to score a model"):
        from agridistill.data.labels import FOLDERS, to_layout
        from agridistill.data.likeness import learnt_path
        from agridistill.evaluation.evaluate import evaluate_folder
        from agridistill.evaluation.held_out import ModelOrigin, PhotoChoice, to_class_names
        from agridistill.evaluation.proof import MAX_CLASS_DROP_POINTS, MAX_DROP_POINTS, prove

    run = path if path.is_dir() else None
    choice: PhotoChoice = {
        "layout": to_layout(label_file, label_columns, nested) or FOLDERS,
        "split": split,
        "split_file": splits,
        "learnt": learnt_path(path),
        "class_names": to_class_names(class_names),
    }
    backend = load(path, engine=engine).backend
    if old_path is not None:
        old = load(old_path, engine=engine).backend
        own_split = old_path / "splits.json" if old_path.is_dir() else None
        return prove(
            backend,
            old,
            folder,
            names=(str(path), str(old_path)),
            run=run,
            old_origin=ModelOrigin(old.manifest, own_split, learnt_path(old_path)),
            max_drop=MAX_DROP_POINTS if max_drop is None else max_drop,
            max_class_drop=MAX_CLASS_DROP_POINTS if max_class_drop is None else max_class_drop,
            progress=progress,
            **choice,
        )
    result = evaluate_folder(backend, folder, run=run, progress=progress, **choice)
    parameters, macs = model_cost(backend)
    return replace(result, parameters=parameters, macs=macs)


def export(
    run: Path | str,
    out: Path | str,
    *,
    precision: Literal["fp32", "int8"] = "fp32",
    micro: bool = False,
    batch: int | None = None,
    attention: bool = False,
    data: Path | str | None = None,
    split_file: Path | str | None = None,
    label_file: Path | str | None = None,
    label_columns: Sequence[str] = (),
    nested: bool | None = None,
    answers: float = 0.95,
    force: bool = False,
    progress: ProgressCallback = silent,
) -> ExportResult:
    """Writes the network of a run to a file for devices, with its manifest in the same folder.

    `label_file`, `label_columns` and `nested` mean the same as in `train`; without them, the labels are found as in the
    run.

    Args:
        run: a finished run folder.
        out: the file to write, `NAME.onnx` or `NAME.tflite`.
        precision: number format of weights and activations.
        micro: writes an int8 `NAME.tflite` for microcontrollers, with int8 logits, and `NAME.c` and `NAME.h`.
        batch: 1 fixes the batch size of an `.onnx` file to 1; None allows any.
        attention: adds a second output to an `.onnx` file, "attention" `(N, H, W)` float32: how strongly the network
            responds at each place, divided by the largest value. It is the map of the deepest stage that the run
            aligned with its teacher's, or of stride 16. `Predictor.explain` uses it.
        data: the photos that the run was trained on; None takes the folder that is stored in the run.
        split_file: a split made by `data split`, needed only if the run has not stored its own.
        answers: the abstention threshold is chosen so that this share of the answers is right, 0 to 1.
        force: writes the file even if it loses more accuracy than is allowed.
        progress: called with (done, total) while photos are read and classified.

    Raises:
        ConfigError: an argument has a wrong type or range.
        ModelError: the run is unfinished, its network cannot be converted, or the file loses too much accuracy.
        DataError: the photos are not those of the run.
        MissingExtraError: the training part or the converter is not installed.
    """
    run_folder, file = to_path("run", run), to_path("out", out)
    photos, splits = to_optional_path("data", data), to_optional_path("split_file", split_file)
    require_choice("precision", precision, ("fp32", "int8"))
    require_number("answers", answers, high=1)
    require_flag("force", force)
    require_flag("micro", micro)
    require_flag("attention", attention)
    if batch is not None and batch != 1:
        raise ConfigError("1 or None for 'batch'", described(batch), "leave it out")
    require_callable("progress", progress)
    with needs_extra("the training part of AgriDistill, to export a run", "train,export"):
        from agridistill.data.labels import to_layout
        from agridistill.export.artefact import export as write
    return write(
        run_folder,
        file,
        precision=precision,
        micro=micro,
        batch=batch,
        attention=attention,
        data=photos,
        layout=to_layout(label_file, label_columns, nested),
        split_file=splits,
        answers=answers,
        force=force,
        progress=progress,
    )


def model_cost(backend: Backend) -> tuple[int | None, int | None]:
    """Returns (number of parameters, multiply-accumulate operations for one photo); each is None if unknown.

    They come from the manifest of an exported file, or are counted in the network of a run folder.
    """
    from agridistill.runtime.engines import SUFFIXES

    if Path(backend.manifest.weights_file).suffix in SUFFIXES:
        measured = backend.manifest.measured
        return measured.get("parameters"), measured.get("macs")
    from agridistill.models import TorchBackend, complexity

    if not isinstance(backend, TorchBackend):
        return None, None
    cost = complexity(backend.model, backend.manifest.preprocessing.image_size)
    return cost.parameters, cost.macs


def _require_engine(engine: object) -> None:
    if engine is not None and not isinstance(engine, str):
        raise ConfigError("a name or None for 'engine'", described(engine), "leave it out")


def _require_rule(against: Path | None, split: str, max_drop: object, max_class_drop: object) -> None:
    for name, value in (("max_drop", max_drop), ("max_class_drop", max_class_drop)):
        if value is not None and against is None:
            raise ConfigError(f"'{name}' only with 'against'", described(value), "pass the old model as 'against'")
        if value is not None:
            require_number(name, value, high=100)
    if against is not None and split == "train":
        raise ConfigError("a split of new photos to compare models", "'train'", "use 'test', 'val' or 'all'")
