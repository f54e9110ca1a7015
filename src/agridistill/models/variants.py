"""Networks of ours: timm's architectures with other options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Variant:
    """A network of ours: one of timm's architectures with other options.

    Attributes:
        architecture: timm's name.
        options: what differs.
        fits_hub: whether the tensors have the shapes of the architecture's weights on the model hub.
    """

    architecture: str
    options: Mapping[str, Any]
    fits_hub: bool


# All other names are timm's own.
VARIANTS: Mapping[str, Variant] = {
    # 6.9 M parameters; learns 128 px photos from scratch on two cores.
    "swin_micro_patch4_window4_128": Variant(
        "swin_tiny_patch4_window7_224",
        {"embed_dim": 48, "depths": (2, 2, 6, 2), "num_heads": (2, 4, 8, 16), "window_size": 4, "img_size": 128},
        fits_hub=False,
    ),
    # 1 M parameters; for the demo and for tests.
    "swin_nano_patch4_window4_64": Variant(
        "swin_tiny_patch4_window7_224",
        {"embed_dim": 32, "depths": (2, 2, 2), "num_heads": (2, 4, 8), "window_size": 4, "img_size": 64},
        fits_hub=False,
    ),
    # MobileNetV3 of ReLUs alone: no hard-swish and no squeeze-excite, which int8 engines compute slowly. Padded evenly,
    # where TensorFlow's own pads one side more: int8 engines fuse even padding. With weights from the hub
    # each of the five strides then samples one pixel further, which the first steps of training make good.
    "mobilenetv3_large_minimal_100": Variant("tf_mobilenetv3_large_minimal_100", {"pad_type": ""}, fits_hub=True),
    "mobilenetv3_small_minimal_100": Variant("tf_mobilenetv3_small_minimal_100", {"pad_type": ""}, fits_hub=True),
    # Padded evenly for int8 engines, as above. Measured: a linear layer on the frozen features of the packaged weights
    # is no worse than with TensorFlow's padding (90.7 against 89.6 %, black gram, 30 photos a class, 224 px).
    "efficientnet_lite0_even": Variant("tf_efficientnet_lite0", {"pad_type": ""}, fits_hub=True),
}
