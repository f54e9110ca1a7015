"""Runs exported `.onnx` files with ONNX Runtime, or with OpenVINO, which is faster on many Intel processors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from agridistill.manifest import ModelManifest
from agridistill.preprocess import Pixels
from agridistill.runtime.backends import loading, require_input

# Larger batches are no faster on a CPU, and each photo needs memory for activations: 3 MB at 128 px, 9 MB at 224 px.
PHOTOS_AT_ONCE = 4


class OnnxRuntimeBackend:
    """Runs an `.onnx` file with ONNX Runtime.

    Args:
        path: the file; its sha256 has been checked.
        manifest: its manifest.
        threads: number of threads; 0 takes one for each core.

    Raises:
        MissingExtraError: the engine is not installed, or does not load on this machine.
        ModelError: the engine cannot run the file.
    """

    def __init__(self, path: Path, manifest: ModelManifest, *, threads: int = 0) -> None:
        self.manifest = manifest
        remedy = "pip install onnxruntime, on 64-bit Linux with glibc, macOS or Windows"
        with loading("ONNX Runtime", path, remedy):
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = threads
            options.inter_op_num_threads = 1
            # Errors are raised as exceptions; users do not need the rest of the engine's log.
            options.log_severity_level = 4
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        inputs, size = self._session.get_inputs(), manifest.preprocessing.image_size
        fits = [(each.type, list(each.shape)[1:]) for each in inputs] == [("tensor(uint8)", [size, size, 3])]
        require_input(path, [f"{each.name} {each.type} {each.shape}" for each in inputs], manifest, fits=fits)
        self._input, self._at_once = str(inputs[0].name), 1 if inputs[0].shape[0] == 1 else PHOTOS_AT_ONCE

    def logits(self, pixels: Pixels) -> NDArray[np.float32]:
        """Computes logits `(N, K)` float32 for photos `(N, S, S, 3)` uint8."""
        parts = [np.empty((0, len(self.manifest.classes)), np.float32)] if not len(pixels) else []
        for start in range(0, len(pixels), self._at_once):
            parts += self._session.run(None, {self._input: pixels[start : start + self._at_once]})
        return np.concatenate(parts).astype(np.float32, copy=False)


class OpenVinoBackend:
    """Runs an `.onnx` file with OpenVINO.

    Args:
        path: the file; its sha256 has been checked.
        manifest: its manifest.
        threads: number of threads; 0 takes one for each core.
        exact: computes the file's fp32 operators in fp32; otherwise OpenVINO may use bf16 if that is faster.

    Raises:
        MissingExtraError: the engine is not installed.
        ModelError: the engine cannot run the file.
    """

    def __init__(self, path: Path, manifest: ModelManifest, *, threads: int = 0, exact: bool = True) -> None:
        self.manifest = manifest
        options: dict[str, str | int] = {"PERFORMANCE_HINT": "LATENCY"}
        if threads:
            options["INFERENCE_NUM_THREADS"] = threads
        if exact:
            options["INFERENCE_PRECISION_HINT"] = "f32"
        with loading("OpenVINO", path, "pip install openvino"):
            import openvino

            compiled = openvino.Core().compile_model(str(path), "CPU", options)
        size = manifest.preprocessing.image_size
        inputs = [f"{each.element_type.get_type_name()} {each.partial_shape}" for each in compiled.inputs]
        fits = inputs in ([f"u8 [?,{size},{size},3]"], [f"u8 [1,{size},{size},3]"])
        require_input(path, inputs, manifest, fits=fits)
        self._one_by_one = compiled.inputs[0].partial_shape[0].is_static
        self._request = compiled.create_infer_request()

    def logits(self, pixels: Pixels) -> NDArray[np.float32]:
        """Computes logits `(N, K)` float32 for photos `(N, S, S, 3)` uint8."""
        if self._one_by_one and len(pixels) != 1:
            rows = [self.logits(photo[None]) for photo in pixels]
            return np.concatenate([np.empty((0, len(self.manifest.classes)), np.float32), *rows])
        result = self._request.infer([pixels])
        return np.array(next(iter(result.values())), np.float32)
