"""OpenVINO: runs the same `.onnx` files, faster on many Intel processors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from agridistill.manifest import ModelManifest
from agridistill.preprocess import Pixels
from agridistill.runtime.backends import cannot_run, missing_engine, require_input


class OpenVinoBackend:
    """Runs an exported `.onnx` file, whose sha256 has been checked; 0 threads takes one for each core.

    `exact` computes in fp32 what the file has in fp32; otherwise OpenVINO may take bf16, where that is faster.

    Raises:
        MissingExtraError: the engine is not installed.
        ModelError: the engine cannot run the file.
    """

    def __init__(self, path: Path, manifest: ModelManifest, *, threads: int = 0, exact: bool = True) -> None:
        self.manifest = manifest
        try:
            import openvino
        except ImportError as error:
            raise missing_engine("OpenVINO", error, "pip install openvino") from None
        options: dict[str, str | int] = {"PERFORMANCE_HINT": "LATENCY"}
        if threads:
            options["INFERENCE_NUM_THREADS"] = threads
        if exact:
            options["INFERENCE_PRECISION_HINT"] = "f32"
        try:
            compiled = openvino.Core().compile_model(str(path), "CPU", options)
        except RuntimeError as error:
            raise cannot_run("OpenVINO", path, error) from None
        size = manifest.preprocessing.image_size
        inputs = [f"{each.element_type.get_type_name()} {each.partial_shape}" for each in compiled.inputs]
        fits = inputs in ([f"u8 [?,{size},{size},3]"], [f"u8 [1,{size},{size},3]"])
        require_input(path, inputs, manifest, fits=fits)
        self._one_by_one = compiled.inputs[0].partial_shape[0].is_static
        self._request = compiled.create_infer_request()

    def logits(self, pixels: Pixels) -> NDArray[np.float32]:
        """Logits `(N, K)` float32 of photos `(N, S, S, 3)` uint8."""
        if self._one_by_one and len(pixels) != 1:
            rows = [self.logits(photo[None]) for photo in pixels]
            return np.concatenate([np.empty((0, len(self.manifest.classes)), np.float32), *rows])
        result = self._request.infer([pixels])
        return np.array(next(iter(result.values())), np.float32)
