"""LiteRT (TensorFlow Lite) behind the Backend interface."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agridistill.errors import MissingExtraError, ModelError
from agridistill.manifest import ModelManifest
from agridistill.native_output import without_lines
from agridistill.preprocess import Pixels


class LiteRtBackend:
    """Runs an exported `.tflite` file, one photo at a time: its shapes are fixed.

    Args:
        path: of the file, whose sha256 has been checked.
        manifest: of the file.
        threads: of one prediction; 0 takes one for each core.
        reference: runs the reference kernels, slow and bit-identical to TensorFlow Lite Micro.

    Raises:
        MissingExtraError: the engine is not installed.
        ModelError: the engine cannot run the file.
    """

    def __init__(self, path: Path, manifest: ModelManifest, *, threads: int = 0, reference: bool = False) -> None:
        self.manifest = manifest
        self._interpreter = _interpreter(path, threads or os.cpu_count() or 1, reference=reference)
        inputs, outputs = self._interpreter.get_input_details(), self._interpreter.get_output_details()
        size = manifest.preprocessing.image_size
        if len(inputs) != 1 or inputs[0]["dtype"] != np.uint8 or list(inputs[0]["shape"]) != [1, size, size, 3]:
            told = ", ".join(f"{each['dtype'].__name__} {each['shape'].tolist()}" for each in inputs)
            raise ModelError(
                f"one input of uint8 photos (1, {size}, {size}, 3)", f"{told} in '{path}'", "export it again"
            )
        self._input, self._output = inputs[0]["index"], outputs[0]["index"]
        # Ours give float logits; other tools' files may give levels.
        self._scale, self._zero_point = outputs[0]["quantization"]

    def logits(self, pixels: Pixels) -> NDArray[np.float32]:
        """Logits `(N, K)` float32 of photos `(N, S, S, 3)` uint8."""
        rows = []
        for photo in pixels:
            self._interpreter.set_tensor(self._input, photo[None])
            self._interpreter.invoke()
            row = np.array(self._interpreter.get_tensor(self._output)[0], np.float32)
            rows.append((row - self._zero_point) * self._scale if self._scale else row)
        return np.stack(rows) if rows else np.empty((0, len(self.manifest.classes)), np.float32)


def _interpreter(path: Path, threads: int, *, reference: bool) -> Any:
    try:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "LiteRT, to run a .tflite file", f"no module '{error.name}'", "pip install ai-edge-litert"
        ) from None
    try:
        # Its INFO lines, such as that of XNNPACK, speak to the engine's own developers, and no setting silences them.
        with without_lines(b"INFO: "):
            kernels = OpResolverType.BUILTIN_REF if reference else OpResolverType.AUTO
            interpreter = Interpreter(str(path), num_threads=threads, experimental_op_resolver_type=kernels)
            interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError("a model that LiteRT can run", f"'{path}' ({reason})", "export it again") from None
    return interpreter
