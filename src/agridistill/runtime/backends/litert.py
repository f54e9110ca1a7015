"""Runs exported `.tflite` files with LiteRT (TensorFlow Lite)."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from agridistill.manifest import ModelManifest
from agridistill.preprocess import Pixels
from agridistill.progress import stderr_without_lines
from agridistill.runtime.backends import loading, require_input


class LiteRtBackend:
    """Runs an exported `.tflite` file one photo at a time, because its shapes are fixed.

    Args:
        path: the file; its sha256 has been checked.
        manifest: its manifest.
        threads: number of threads; 0 takes one for each core.
        reference: uses the reference kernels, which are slow and give results bit-identical to TensorFlow Lite Micro.

    Raises:
        MissingExtraError: the engine is not installed.
        ModelError: the engine cannot run the file.
    """

    def __init__(self, path: Path, manifest: ModelManifest, *, threads: int = 0, reference: bool = False) -> None:
        self.manifest = manifest
        with loading("LiteRT", path, "pip install ai-edge-litert"):
            from ai_edge_litert.interpreter import Interpreter, OpResolverType

            kernels = OpResolverType.BUILTIN_REF if reference else OpResolverType.AUTO
            cores = threads or os.cpu_count() or 1
            # No setting of the engine silences its INFO lines, such as XNNPACK's; users do not need them.
            with stderr_without_lines(b"INFO: "):
                self._interpreter = Interpreter(str(path), num_threads=cores, experimental_op_resolver_type=kernels)
                self._interpreter.allocate_tensors()
        inputs, output = self._interpreter.get_input_details(), self._interpreter.get_output_details()[0]
        size = manifest.preprocessing.image_size
        fits = [(each["dtype"], each["shape"].tolist()) for each in inputs] == [(np.uint8, [1, size, size, 3])]
        found = [f"{each['dtype'].__name__} {each['shape'].tolist()}" for each in inputs]
        require_input(path, found, manifest, fits=fits)
        self._input, self._output = inputs[0]["index"], output["index"]
        # Our files return float logits; files of other tools and for microcontrollers may return int8 levels.
        self._scale, self._zero_point = output["quantization"]

    def logits(self, pixels: Pixels) -> NDArray[np.float32]:
        """Computes logits `(N, K)` float32 for photos `(N, S, S, 3)` uint8."""
        rows = []
        for photo in pixels:
            self._interpreter.set_tensor(self._input, photo[None])
            self._interpreter.invoke()
            row = np.array(self._interpreter.get_tensor(self._output)[0], np.float32)
            rows.append((row - self._zero_point) * self._scale if self._scale else row)
        return np.stack(rows) if rows else np.empty((0, len(self.manifest.classes)), np.float32)
