"""`ModelManifest`: the description stored with every model file; it contains all that is needed to use the model."""

from __future__ import annotations

import hashlib
import json
import sys
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from agridistill.errors import ModelError, nearest
from agridistill.storage import write_json

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
ResizeRule = Literal["crop", "stretch"]
Precision = Literal["fp32", "int8"]
# Far larger than any real manifest: a larger file was not written by an export and would only fill the memory.
_MAX_MANIFEST_BYTES = 4_000_000

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocessing:
    """How a decoded photo is converted to the input of a model.

    Attributes:
        image_size: height and width of the input, in pixels.
        resize: "crop" scales the shorter side and cuts out the centre, "stretch" scales both sides and changes the
            aspect ratio.
        mean: value that is subtracted from each RGB channel, on the scale 0 to 1.
        std: value that each RGB channel is divided by, on the scale 0 to 1.
    """

    image_size: int
    resize: ResizeRule = "crop"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD


@dataclass(frozen=True)
class ModelManifest:
    """The description of a model file: its classes, preprocessing, thresholds and origin.

    Attributes:
        model: timm's name of the architecture.
        classes: class names in the order of the logits.
        preprocessing: how a photo is converted to the input.
        weights_file: name of the model file, in the same folder as this manifest.
        weights_sha256: sha256 of this file in hex; a file with another sha256 is refused.
        temperature: divides the logits before the softmax (fitted on the validation split; 1 if not fitted).
        threshold: the model abstains if its highest probability is lower (0 never abstains).
        lineage: where the model comes from: method, teacher, data fingerprint, seed.
        precision: number format of the weights in the file: "fp32" or "int8".
        measured: figures of an exported file on the validation split: accuracy, agreement with its network, size, MACs.
        familiarity: numbers that describe the training photos, to detect photos unlike them (see
            `runtime.verdict.Familiarity`); empty if unknown.
        format_version: version of the manifest's format.
    """

    model: str
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    weights_file: str
    weights_sha256: str
    temperature: float = 1.0
    threshold: float = 0.0
    lineage: dict[str, Any] = field(default_factory=dict)
    precision: Precision = "fp32"
    measured: dict[str, Any] = field(default_factory=dict)
    familiarity: dict[str, Any] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        if len(set(self.classes)) != len(self.classes) or len(self.classes) < 2:
            raise ModelError("at least two classes with different names", str(self.classes), "correct the manifest")

    def write(self, path: Path) -> None:
        """Writes the manifest as JSON, complete or not at all."""
        write_json(path, asdict(self))

    def with_weights(self, weights: Path) -> ModelManifest:
        """Returns a copy of the manifest with the name and sha256 of another weights file."""
        return replace(self, weights_file=weights.name, weights_sha256=sha256_of(weights))

    def verified_weights(self, folder: Path) -> Path:
        """Returns the weights file in `folder`; a ModelError if it is missing or has another sha256."""
        # Only a name without folders: a manifest from an unknown source must not point outside its own folder.
        if Path(self.weights_file).name != self.weights_file:
            raise ModelError(
                "a file name without folders for weights_file", repr(self.weights_file), "do not trust this model"
            )
        path = folder / self.weights_file
        if not path.is_file():
            remedy = "finish the training" if path.suffix == ".safetensors" else "check the path"
            raise ModelError(f"the weights file {self.weights_file}", f"no such file in '{folder}'", remedy)
        found = sha256_of(path)
        if found != self.weights_sha256:
            raise ModelError(
                f"weights with sha256 {self.weights_sha256[:12]}…",
                f"{found[:12]}… in '{path}'",
                "the file was changed or damaged, or the manifest belongs to another file: restore both",
            )
        return path


def read_manifest(path: Path) -> ModelManifest:
    """Reads a manifest from JSON and checks every field; a ModelError names what is missing or wrong."""
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_MANIFEST_BYTES + 1)
        if len(content) > _MAX_MANIFEST_BYTES:
            raise ValueError(f"more than {_MAX_MANIFEST_BYTES:,} bytes")
        raw = json.loads(content.decode("utf-8"))
    except FileNotFoundError:
        raise ModelError("a model manifest", f"no file '{path}'", "pass a finished run or an exported model") from None
    except NotADirectoryError:
        taken = next((parent for parent in path.parents if parent.is_file()), path.parent)
        raise ModelError("a run folder", f"the file '{taken}'", "pass the folder") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError("a model manifest in JSON", f"'{path}' ({error})", "restore the file") from None
    if not isinstance(raw, dict):
        raise ModelError("a model manifest", f"'{path}', which holds no JSON object", "restore the file")
    version = raw.get("format_version")
    if version != FORMAT_VERSION:
        raise ModelError(
            f"a manifest with format_version {FORMAT_VERSION}",
            f"{version!r} in '{path}'",
            "use the version of AgriDistill that wrote it",
        )
    _require_fields(_FIELDS, ModelManifest, raw, path)
    _require_fields(_PREPROCESSING_FIELDS, Preprocessing, raw["preprocessing"], path, "preprocessing.")
    preprocessing = Preprocessing(**_without_lists(raw["preprocessing"]))
    return ModelManifest(**_without_lists(raw) | {"preprocessing": preprocessing})


# The fields are checked without pydantic, whose import would take a third of the time to the first prediction.
_Check = tuple[str, Callable[[Any], bool]]


def _is_number(value: Any, low: float = -sys.float_info.max, high: float = sys.float_info.max) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def _are_three(value: Any, low: float = -sys.float_info.max) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(_is_number(each, low) for each in value)


_TINY = sys.float_info.min
_TEXT: _Check = ("text", lambda value: isinstance(value, str))
_OBJECT: _Check = ("an object", lambda value: isinstance(value, dict))
_FIELDS: Mapping[str, _Check] = {
    "model": _TEXT,
    "classes": (
        "a list of names",
        lambda value: isinstance(value, list) and all(isinstance(each, str) for each in value),
    ),
    "preprocessing": _OBJECT,
    "weights_file": _TEXT,
    "weights_sha256": _TEXT,
    "temperature": ("a number above 0", lambda value: _is_number(value, _TINY)),
    "threshold": ("a number from 0 to 1", lambda value: _is_number(value, 0, 1)),
    "lineage": _OBJECT,
    "precision": ("'fp32' or 'int8'", lambda value: isinstance(value, str) and value in get_args(Precision)),
    "measured": _OBJECT,
    "familiarity": _OBJECT,
    "format_version": (f"{FORMAT_VERSION}", lambda value: value == FORMAT_VERSION),
}
_PREPROCESSING_FIELDS: Mapping[str, _Check] = {
    "image_size": (
        "a whole number from 1 to 4,096",
        lambda value: isinstance(value, int) and _is_number(value, 1, 4096),
    ),
    "resize": ("'crop' or 'stretch'", lambda value: isinstance(value, str) and value in get_args(ResizeRule)),
    "mean": ("three numbers", _are_three),
    "std": ("three numbers above 0", lambda value: _are_three(value, _TINY)),
}


def _require_fields(
    checks: Mapping[str, _Check], kind: type[Any], table: Mapping[str, Any], path: Path, section: str = ""
) -> None:
    for key, value in table.items():
        if key not in checks:
            raise ModelError("a known manifest field", f"'{section}{key}' in '{path}'", nearest(key, checks))
        expected, holds = checks[key]
        if not holds(value):
            raise ModelError(f"{section}{key}: {expected}", f"{value!r:.60} in '{path}'", "restore the file")
    for each in fields(kind):
        if each.name not in table and each.default is MISSING and each.default_factory is MISSING:
            raise ModelError(f"a manifest with '{section}{each.name}'", f"'{path}' without it", "restore the file")


def _without_lists(table: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}


def require_same_classes(model: Sequence[str], data: Sequence[str], *, owner: str = "model") -> None:
    """Raises a ModelError unless a model and a data set have the same classes in the same order.

    Names that differ only in their Unicode normal form are equal. `owner` is a word for the model, such as "teacher".
    """
    model, data = list(map(composed, model)), list(map(composed, data))
    if model == data:
        return
    only_model = [name for name in model if name not in data]
    only_data = [name for name in data if name not in model]
    parts = [
        ", ".join(f"'{name}'" for name in names[:5]) + (", …" if len(names) > 5 else "") + f" in the {whose} only"
        for whose, names in ((owner, only_model), ("data", only_data))
        if names
    ]
    raise ModelError(
        f"a {owner} with the same classes as the data",
        " and ".join(parts) or "the same classes in another order",
        f"rename the class folders, or use a {owner} that is trained on this data",
    )


def composed(name: str) -> str:
    """Converts a name to Unicode's normal form C, so that equal names compare as equal.

    macOS and its archives write "é" as two characters, keyboards as one.

    Example:
        >>> composed("Rouille brule\\u0301e") == "Rouille brul\\u00e9e"
        True
    """
    return unicodedata.normalize("NFC", name)


def sha256_of(path: Path) -> str:
    """Computes the sha256 of a file's content, as 64 lower-case hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
