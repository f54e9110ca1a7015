"""LiteRT (.tflite): the same graph and the same scales as the ONNX file."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import nn

from agridistill.errors import MissingExtraError
from agridistill.export.deployed import Deployed, DeployedInt8
from agridistill.export.flatbuffer import with_pixel_levels
from agridistill.export.quiet import quiet
from agridistill.manifest import Preprocessing


def to_litert(network: nn.Module, preprocessing: Preprocessing, *, int8: bool) -> bytes:
    """Converts a network.

    Args:
        network: takes normalised photos; for int8 one from `models.quantised`, calibrated.
        preprocessing: of its input; becomes part of the graph (an int8 network has taken it in already).
        int8: writes the roundings of the network.

    Returns:
        A file's content, with the input `(1, S, S, 3)` uint8 and the output `(1, K)` float32; int8 of a
        network from `models.quantised.with_rounded_logits`.

    Raises:
        MissingExtraError: litert-torch is not installed.
    """
    try:
        with quiet():
            import litert_torch
            from litert_torch.quantize.pt2e_quantizer import PT2EQuantizer, get_symmetric_quantization_config
            from litert_torch.quantize.quant_config import QuantConfig
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "litert-torch, to write .tflite files", f"no module '{error.name}'", "pip install 'agridistill[litert]'"
        ) from None
    size = preprocessing.image_size
    deployed: nn.Module
    if int8:
        # The converter knows only these operators; it registers them by itself.
        deployed = DeployedInt8(network, unsigned=False, operators=torch.ops.quantized_decomposed).eval()
    else:
        deployed = Deployed(network, preprocessing).eval()
    # Only tells the converter that pairs of quantise and dequantise are to be merged into int8 operators.
    static = QuantConfig(pt2e_quantizer=PT2EQuantizer().set_global(get_symmetric_quantization_config()))
    with quiet(), tempfile.TemporaryDirectory() as folder:
        example = (torch.zeros(1, size, size, 3, dtype=torch.uint8),)
        file = Path(folder) / "model.tflite"
        litert_torch.convert(deployed, example, quant_config=static if int8 else None).export(str(file))
        content = file.read_bytes()
    return with_pixel_levels(content) if int8 else content
