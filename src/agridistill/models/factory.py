"""Models by timm's name, with weights from the hub, from a file, or at random."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from timm.models import get_arch_pretrained_cfgs, get_pretrained_cfg
from torch import Tensor, nn

from agridistill.errors import ModelError, nearest
from agridistill.manifest import IMAGENET_MEAN, IMAGENET_STD, MANIFEST_NAME, read_manifest
from agridistill.models.hub import hub_access
from agridistill.storage import replacing


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
}


def create_model(
    name: str,
    num_classes: int,
    *,
    image_size: int | None = None,
    pretrained: bool = False,
    weights: Path | None = None,
    drop_path: float | None = None,
) -> nn.Module:
    """Creates a classifier.

    Args:
        name: timm's name, or one of `VARIANTS`.
        num_classes: size of the head.
        image_size: input size in pixels, for the models that are built for one size (Swin, ViT).
        pretrained: fetches timm's weights from the model hub; the head starts at random.
        weights: a safetensors file or a finished run to start from instead; a head for another number of classes is
            left out.
        drop_path: stochastic depth rate, 0 to 1, for the models that have it; None keeps the model's own.

    Raises:
        ModelError: unknown name, unreachable hub, unreadable or unfit weights.
    """
    architecture, options = _architecture(name)
    if drop_path is not None:
        options["drop_path_rate"] = drop_path
    if pretrained and weights is None and name in VARIANTS and not VARIANTS[name].fits_hub:
        raise ModelError(
            f"weights for {name}", "none: no hub holds this model", "pass --no-pretrained or --weights FILE"
        )
    model = _create(architecture, num_classes, image_size, pretrained and weights is None, options, name)
    if image_size is not None:
        _require_size(model, name, image_size)
    if weights is not None:
        load_weights(model, weights, allow_other_head=True)
    return model


def pretrained_normalisation(name: str) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation of each RGB channel, 0 to 1, with which the hub's weights of a model were trained.

    Raises:
        ModelError: unknown.
    """
    config = get_pretrained_cfg(_architecture(name)[0])
    if config is None or len(config.mean) != 3 or len(config.std) != 3:
        return IMAGENET_MEAN, IMAGENET_STD
    (red, green, blue), (red_std, green_std, blue_std) = config.mean, config.std
    return (red, green, blue), (red_std, green_std, blue_std)


def require_known_model(name: str) -> None:
    """Checks a model's name without building it.

    Raises:
        ModelError: unknown; names the nearest known ones.
    """
    if name not in VARIANTS and not timm.is_model(name.split(".", 1)[0]):
        known = [*VARIANTS, *timm.list_models()]
        raise ModelError("a model name of timm", f"'{name}'", nearest(name, known, count=3))
    try:
        get_pretrained_cfg(name)
    except RuntimeError:
        architecture = name.split(".", 1)[0]
        known = [f"{architecture}.{tag}" for tag in _tags(architecture)]
        raise ModelError(f"a known set of weights of {architecture}", f"'{name}'", nearest(name, known)) from None


def _tags(architecture: str) -> list[str]:
    return [full.partition(".")[2] for full in get_arch_pretrained_cfgs(architecture)]


def _architecture(name: str) -> tuple[str, dict[str, Any]]:
    require_known_model(name)
    if name in VARIANTS:
        return VARIANTS[name].architecture, dict(VARIANTS[name].options)
    return name, {}


def _create(
    architecture: str, num_classes: int, image_size: int | None, pretrained: bool, options: dict[str, Any], name: str
) -> nn.Module:
    sized = {**options, "img_size": image_size} if image_size else options
    try:
        try:
            return _timm(architecture, num_classes, pretrained, sized)
        except TypeError as error:
            # Convolutional networks take any size and have no such argument.
            if "img_size" not in str(error):
                raise
            return _timm(architecture, num_classes, pretrained, options)
    except TypeError as error:
        if "drop_path_rate" not in str(error):
            raise
        raise ModelError("a network with stochastic depth for drop_path", name, "leave drop_path away") from error
    except AssertionError as error:
        raise _unfit_size(name, image_size, error) from error
    except Exception as error:
        if pretrained:
            # Hub clients raise a dozen types for one fact: the weights cannot be had from here.
            raise ModelError(
                f"pretrained weights of '{name}' from the model hub",
                f"{type(error).__name__} (no network, or no such weights)",
                "pass --no-pretrained to train from scratch, or --weights FILE (safetensors)",
            ) from error
        raise


def _require_size(model: nn.Module, name: str, image_size: int) -> None:
    """Runs one empty photo: a size that does not fit must show now, not after the data were read."""
    training = model.training
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, 3, image_size, image_size))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise ModelError(
            f"an image size that {name} can take", f"{image_size} px ({error})", "choose another"
        ) from None
    finally:
        model.train(training)


def _unfit_size(name: str, image_size: int | None, error: Exception) -> ModelError:
    return ModelError(f"an image size that {name} can take", f"{image_size} px ({error})", "choose another")


def _timm(architecture: str, num_classes: int, pretrained: bool, options: Mapping[str, Any]) -> nn.Module:
    with hub_access() if pretrained else nullcontext():
        model: nn.Module = timm.create_model(architecture, pretrained=pretrained, num_classes=num_classes, **options)
    return model


def load_weights(model: nn.Module, path: Path, *, allow_other_head: bool = False) -> None:
    """Loads safetensors into a model.

    Args:
        path: of the file, or of a finished run.
        allow_other_head: leaves out the classifier's tensors where their shapes differ.

    Raises:
        ModelError: not safetensors, or tensors that do not fit.
    """
    if path.is_dir():
        path = read_manifest(path / MANIFEST_NAME).verified_weights(path)
    tensors = _read_safetensors(path)
    own = model.state_dict()
    if allow_other_head:
        head = _head_prefixes(model)
        tensors = {
            key: value
            for key, value in tensors.items()
            if not (key in own and own[key].shape != value.shape and key.startswith(head))
        }
    wrong = [key for key, value in tensors.items() if key not in own or own[key].shape != value.shape]
    missing = [
        key for key in own if key not in tensors and not (allow_other_head and key.startswith(_head_prefixes(model)))
    ]
    if wrong or missing:
        what = f"tensor '{wrong[0]}' that does not fit" if wrong else f"no tensor '{missing[0]}'"
        raise ModelError("weights of this architecture", f"{what} in '{path}'", "check model name and file")
    model.load_state_dict(tensors, strict=False)


def save_weights(model: nn.Module, path: Path) -> None:
    """Writes a model's tensors as safetensors, whole or not at all."""
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    # Not `save_file`: its Rust code hides a full disk in an error of its own.
    with replacing(path) as temporary:
        temporary.write_bytes(save(tensors))


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ModelError("a safetensors file", f"'{path}', which is not there", "check the path")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        if path.suffix == ".safetensors":
            raise ModelError(
                "weights in safetensors", f"the damaged file '{path}' ({error})", "copy or download it again"
            ) from None
        # Pickles (.pt, .pth, .bin) end here: reading them would run whatever code they carry.
        raise ModelError(
            "weights in safetensors", f"'{path}' ({error})", "convert pickled weights with safetensors first"
        ) from None


def _head_prefixes(model: nn.Module) -> tuple[str, ...]:
    config = getattr(model, "pretrained_cfg", None) or {}
    names = config.get("classifier") or "head"
    return tuple(f"{name}." for name in ((names,) if isinstance(names, str) else names))
