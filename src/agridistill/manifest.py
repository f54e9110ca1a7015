"""ModelManifest: what a model file needs beside it to be used rightly anywhere."""

from __future__ import annotations

import hashlib
import json
import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

from agridistill.errors import ModelError, nearest
from agridistill.storage import write_json

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
ResizeRule = Literal["crop", "stretch"]
WeightPrecision = Literal["fp32", "int8"]
# Far beyond any real one: what is larger was not written by an export and would only fill the memory.
_MAX_MANIFEST_BYTES = 4_000_000
_MAX_IMAGE_SIZE = 4096

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocessing:
    """From a decoded photo to the model's input.

    Attributes:
        image_size: height and width of the input, in pixels.
        resize: "crop" scales the shorter side and cuts the centre, "stretch" ignores the aspect ratio.
        mean: of each RGB channel, on the scale 0 to 1.
        std: of each RGB channel, on the scale 0 to 1.
    """

    image_size: int
    resize: ResizeRule = "crop"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        if not 1 <= self.image_size <= _MAX_IMAGE_SIZE:
            raise ModelError(f"an image size of 1 to {_MAX_IMAGE_SIZE} px", str(self.image_size), "correct it")
        if self.resize not in get_args(ResizeRule):
            raise ModelError("a resize rule", repr(self.resize), nearest(self.resize, get_args(ResizeRule)))
        if not all(math.isfinite(value) for value in self.mean):
            raise ModelError("finite means", str(self.mean), "correct the manifest")
        if not all(math.isfinite(value) and value > 0 for value in self.std):
            raise ModelError("positive standard deviations", str(self.std), "correct the manifest")


@dataclass(frozen=True)
class ModelManifest:
    """The contract that a model ships with.

    Attributes:
        model: timm's name of the architecture.
        classes: class names in the order of the logits.
        preprocessing: how a photo becomes the input.
        weights_file: name of the model's file beside this manifest.
        weights_sha256: of that file; a file that differs is refused.
        temperature: divides the logits before the softmax (fitted on the validation split; 1 where not fitted).
        threshold: probability below which the model abstains (0 never abstains).
        lineage: where the model comes from: method, teacher, data fingerprint, seed.
        precision: of the weights in the file: "fp32" or "int8".
        measured: an artefact's own figures on the validation split: accuracy, parity with its network, size, MACs.
        familiarity: what photos like the training photos look like; see `runtime.verdict`. Empty where not known.
    """

    model: str
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    weights_file: str
    weights_sha256: str
    temperature: float = 1.0
    threshold: float = 0.0
    lineage: dict[str, Any] = field(default_factory=dict)
    precision: str = "fp32"
    measured: dict[str, Any] = field(default_factory=dict)
    familiarity: dict[str, Any] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        if len(set(self.classes)) != len(self.classes) or len(self.classes) < 2:
            raise ModelError("at least two classes, each named once", str(self.classes), "correct the manifest")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ModelError("a positive temperature", str(self.temperature), "correct the manifest")
        if not 0 <= self.threshold <= 1:
            raise ModelError("a threshold from 0 to 1", str(self.threshold), "correct the manifest")
        if self.precision not in get_args(WeightPrecision):
            raise ModelError("a precision", repr(self.precision), nearest(self.precision, get_args(WeightPrecision)))

    def write(self, path: Path) -> None:
        """Writes the manifest as JSON, whole or not at all."""
        write_json(path, asdict(self))

    def with_weights(self, weights: Path) -> ModelManifest:
        """The same manifest for another weights file."""
        return replace(self, weights_file=weights.name, weights_sha256=sha256_of(weights))

    def verified_weights(self, folder: Path) -> Path:
        """The weights file in `folder`, after its sha256 was checked.

        Raises:
            ModelError: the file is missing, or is not the one that this manifest describes.
        """
        # Only a plain name: a manifest from elsewhere must not point outside its own folder.
        if Path(self.weights_file).name != self.weights_file:
            raise ModelError("a weights file beside its manifest", repr(self.weights_file), "use another model")
        path = folder / self.weights_file
        if not path.is_file():
            remedy = (
                "finish the training"
                if path.suffix == ".safetensors"
                else "an exported model's two files keep their names: give the one that is missing its name again"
            )
            raise ModelError(f"the weights {self.weights_file}", f"no such file in '{folder}'", remedy)
        found = sha256_of(path)
        if found != self.weights_sha256:
            raise ModelError(
                f"weights with sha256 {self.weights_sha256[:12]}…",
                f"{found[:12]}… in '{path}'",
                "the file was changed or damaged: restore it or train again",
            )
        return path


def read_manifest(path: Path) -> ModelManifest:
    """Reads and checks a manifest.

    Raises:
        ModelError: not there, not JSON, of a newer format, or with wrong fields.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_MANIFEST_BYTES + 1)
        if len(content) > _MAX_MANIFEST_BYTES:
            raise ValueError(f"more than {_MAX_MANIFEST_BYTES:,} bytes")
        raw = json.loads(content.decode("utf-8"))
    except FileNotFoundError:
        raise ModelError("a model manifest", f"no file '{path}'", "name a finished run or an exported model") from None
    except NotADirectoryError:
        taken = next((parent for parent in path.parents if parent.is_file()), path.parent)
        raise ModelError("a run folder", f"the file '{taken}'", "name the folder") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError("a model manifest in JSON", f"'{path}' ({error})", "restore the file") from None
    if not isinstance(raw, dict):
        raise ModelError("a model manifest", f"'{path}', which holds no JSON object", "restore the file")
    version = raw.get("format_version")
    if version != FORMAT_VERSION:
        raise ModelError(
            f"manifest format {FORMAT_VERSION}", f"{version!r} in '{path}'", "use the version that wrote it"
        )
    _refuse_unknown_fields(raw, ModelManifest, path)
    try:
        shape = _mapping(raw.pop("preprocessing"))
        _refuse_unknown_fields(shape, Preprocessing, path)
        return ModelManifest(
            model=_text(raw.pop("model")),
            classes=tuple(_text(name) for name in _listed(raw.pop("classes"))),
            preprocessing=Preprocessing(
                image_size=_whole(shape["image_size"]),
                resize=cast(ResizeRule, _text(shape["resize"])),
                mean=_triple(shape["mean"]),
                std=_triple(shape["std"]),
            ),
            weights_file=_text(raw.pop("weights_file")),
            weights_sha256=_text(raw.pop("weights_sha256")),
            temperature=_number(raw.pop("temperature", 1.0)),
            threshold=_number(raw.pop("threshold", 0.0)),
            lineage=_mapping(raw.pop("lineage", {})),
            precision=_text(raw.pop("precision", "fp32")),
            measured=_mapping(raw.pop("measured", {})),
            familiarity=_mapping(raw.pop("familiarity", {})),
        )
    except KeyError as error:
        raise ModelError("a complete manifest", f"'{path}' without {error}", "restore the file") from None
    except (TypeError, ValueError, OverflowError) as error:
        raise ModelError("a complete manifest", f"'{path}' ({error})", "restore the file") from None


def require_same_classes(model: Sequence[str], data: Sequence[str], *, owner: str = "model") -> None:
    """Checks that logit k of a model means the data's label k, whatever the normal form of the names.

    Args:
        model: the model's classes, in the order of its logits.
        data: the data's classes, in the order of its labels.
        owner: what the model is to the user, for the message.

    Raises:
        ModelError: names the classes that differ, or says that their order does.
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
    """A name in Unicode's normal form C: macOS and its archives write "é" as two characters, keyboards as one.

    Example:
        >>> composed("Rouille brule\\u0301e") == "Rouille brul\\u00e9e"
        True
    """
    return unicodedata.normalize("NFC", name)


def sha256_of(path: Path) -> str:
    """The sha256 of a file's content, as lower-case hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _refuse_unknown_fields(raw: Mapping[str, Any], manifest: type, path: Path) -> None:
    known = [item.name for item in fields(manifest)]
    unknown = sorted(set(raw) - set(known))
    if unknown:
        raise ModelError("a known manifest field", f"'{unknown[0]}' in '{path}'", nearest(unknown[0], known))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not text")
    return value


def _whole(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{value!r} is not a whole number")
    return value


def _number(value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{value!r} is not a number")
    return float(value)


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"{value!r} is not an object")
    return value


def _listed(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"{value!r} is not a list")
    return value


def _triple(values: Any) -> tuple[float, float, float]:
    red, green, blue = (_number(value) for value in _listed(values))
    return red, green, blue
