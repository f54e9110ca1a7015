"""What Python users and the commands start from: `load` a model, `evaluate` it on a folder.

This is the one place that decides what kind of model a path is.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from agridistill.errors import MissingExtraError
from agridistill.progress import ProgressCallback, silent

if TYPE_CHECKING:
    from agridistill.evaluation.result import EvaluationResult
    from agridistill.runtime.backends import Backend
    from agridistill.runtime.predictor import Predictor


def load(model: Path | str, *, engine: str | None = None, threads: int = 0, photos: int | None = None) -> Predictor:
    """Loads a model for prediction.

    Args:
        model: a finished run folder, an exported `.onnx` or `.tflite` file, or the name of a shipped model ("tomato").
        engine: runs an exported file: "onnxruntime" or "openvino", "litert"; None takes the fastest that is installed.
        threads: of one prediction with an exported file; 0 takes one for each core.
        photos: that will be classified, where that is known: for a few, an engine that starts fast is taken.

    Raises:
        ModelError: not there, unfinished or damaged, or no such engine.
        MissingExtraError: a run folder needs the `train` extra, an engine its own package.
    """
    from agridistill.runtime.predictor import Predictor
    from agridistill.runtime.shipped import missing_model, model_path

    path = model_path(model)
    if not path.exists():
        raise missing_model(path)
    if not path.is_dir():
        from agridistill.runtime.artefacts import open_artefact

        return Predictor(open_artefact(path, engine=engine, threads=threads, photos=photos))
    try:
        from agridistill.models.saved import load_backend
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "torch, to run a model that is not exported",
            f"no module '{error.name}'",
            "pip install 'agridistill[train]'",
        ) from None
    return Predictor(load_backend(path))


def evaluate(
    model: Path | str,
    data: Path | str,
    *,
    split: Literal["train", "val", "test", "all"] = "test",
    split_file: Path | None = None,
    engine: str | None = None,
    progress: ProgressCallback = silent,
) -> EvaluationResult:
    """Scores a model on labelled photos.

    Args:
        model: a finished run folder, an exported file, or the name of a shipped model.
        data: a folder of class folders, or of train/val/test folders of them.
        split: which photos. On the data that the model was trained on this is the run's own split.
        split_file: a split made by `data split`, instead.
        engine: as for `load`.
        progress: told twice, while the photos are checked and while they are classified.

    Raises:
        AgriDistillError: the model, the data or the split cannot be used.
    """
    from agridistill.runtime.shipped import model_path

    try:
        from agridistill.data.learnt import learnt_path
        from agridistill.evaluation.held_out import evaluate_folder
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "the training part of AgriDistill, to score a model",
            f"no module '{error.name}'",
            "pip install 'agridistill[train]'",
        ) from None

    path = model_path(model)
    backend = load(path, engine=engine).backend
    parameters, macs = model_cost(backend)
    return evaluate_folder(
        backend,
        Path(data),
        split=split,
        split_file=split_file,
        run=path if path.is_dir() else None,
        learnt=learnt_path(path),
        parameters=parameters,
        macs=macs,
        progress=progress,
    )


def model_cost(backend: Backend) -> tuple[int | None, int | None]:
    """Parameters and MACs: as the artefact's manifest says, or counted where torch runs the network."""
    from agridistill.runtime.artefacts import ENGINES

    if Path(backend.manifest.weights_file).suffix in ENGINES:
        measured = backend.manifest.measured
        return measured.get("parameters"), measured.get("macs")
    from agridistill.models.complexity import complexity
    from agridistill.models.saved import TorchBackend

    if not isinstance(backend, TorchBackend):
        return None, None
    cost = complexity(backend.model, backend.manifest.preprocessing.image_size)
    return cost.parameters, cost.macs
