"""LiteRT (TensorFlow Lite)."""

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
    """Runs an exported `.tflite` file, whose sha256 has been checked, one photo at a time: its shapes are fixed.

    0 threads takes one for each core. `reference` runs the reference kernels, slow and bit-identical to TensorFlow Lite
    Micro.

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
            # Its INFO lines, such as that of XNNPACK, are for the engine's developers, and no setting silences them.
            with stderr_without_lines(b"INFO: "):
                self._interpreter = Interpreter(str(path), num_threads=cores, experimental_op_resolver_type=kernels)
                self._interpreter.allocate_tensors()
        inputs, output = self._interpreter.get_input_details(), self._interpreter.get_output_details()[0]
        size = manifest.preprocessing.image_size
        fits = [(each["dtype"], each["shape"].tolist()) for each in inputs] == [(np.uint8, [1, size, size, 3])]
        found = [f"{each['dtype'].__name__} {each['shape'].tolist()}" for each in inputs]
        require_input(path, found, manifest, fits=fits)
        self._input, self._output = inputs[0]["index"], output["index"]
        # Our files give float logits; those of other tools may give levels.
        self._scale, self._zero_point = output["quantization"]

    def logits(self, pixels: Pixels) -> NDArray[np.float32]:
        """Logits `(N, K)` float32 of photos `(N, S, S, 3)` uint8."""
        rows = []
        for photo in pixels:
            self._interpreter.set_tensor(self._input, photo[None])
            self._interpreter.invoke()
            row = np.array(self._interpreter.get_tensor(self._output)[0], np.float32)
            rows.append((row - self._zero_point) * self._scale if self._scale else row)
        return np.stack(rows) if rows else np.empty((0, len(self.manifest.classes)), np.float32)
