"""Folder names of a farm -> the classes of a model: fewer classes than it knows, under other names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from agridistill.arguments import described, to_path
from agridistill.data.samples import Sample
from agridistill.errors import DataError, ModelError, nearest
from agridistill.manifest import composed
from agridistill.settings_file import read_toml


def read_class_names(file: Path) -> dict[str, str]:
    """Reads a TOML file with a line for each folder: "late blight" = "Tomato___Late_blight".

    Raises:
        DataError: not there, not TOML, or with a value that is no text.
    """
    remedy = 'write a line for each folder: "folder name" = "model class"'
    document = read_toml(file, "a file of class names", damaged=remedy, error_type=DataError)
    for folder, name in document.items():
        if not isinstance(name, str):
            remedy = 'write "folder name" = "model class", with quotes around both'
            raise DataError(f"a class for '{folder}' in '{file}'", described(name), remedy)
    return document


def to_class_names(value: object) -> dict[str, str]:
    """Names as the Python API takes them: None, a mapping, or the path of such a file.

    Raises:
        ConfigError: another type.
        DataError: as `read_class_names`, or a mapping of something else than texts.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        return read_class_names(to_path("class_names", value))
    for folder, name in value.items():
        if not (isinstance(folder, str) and isinstance(name, str)):
            raise DataError(
                "folder names and classes as text", f"{folder!r}: {name!r}", "pass {'folder name': 'model class'}"
            )
    return dict(value)


def labels_in_model(model: Sequence[str], data: Sequence[str], names: Mapping[str, str]) -> list[int]:
    """The model's label for each class of the data; several may have one, and the model may know more.

    Args:
        model: the model's classes, in the order of its logits.
        data: the data's classes, in the order of its labels.
        names: the model's class for a class of the data, where the two have different names.

    Raises:
        ModelError: names each class of the data that the model lacks, or a name that it has none of.
    """
    place = {composed(name): label for label, name in enumerate(model)}
    names = {composed(folder): name for folder, name in names.items()}
    for folder, name in names.items():
        if composed(name) not in place:
            raise ModelError(f"a class of the model for '{folder}'", f"'{name}'", nearest(name, model))
    lacking = [name for name in data if composed(names.get(name, name)) not in place]
    if lacking:
        first, more = lacking[:5], ", …" if len(lacking) > 5 else ""
        raise ModelError(
            "photos of classes that the model knows",
            ", ".join(f"'{name}'" for name in first) + more,
            f"{nearest(lacking[0], model, count=3)}; write its class into a file for --map, one line a folder, as "
            f'"{lacking[0]}" = "{model[0]}", or take the folder out',
        )
    return [place[composed(names.get(name, name))] for name in data]


def unused_names(data: Sequence[str], names: Mapping[str, str]) -> list[str]:
    """One sentence on the renamed folders that the data does not hold; none where it holds all."""
    present = {composed(name) for name in data}
    unused = [folder for folder in names if composed(folder) not in present]
    if not unused:
        return []
    first, more = unused[:3], ", …" if len(unused) > 3 else ""
    return [f"not used: --map names folders that are not there: {', '.join(map(repr, first))}{more}"]


def relabelled(samples: Sequence[Sample], labels: Sequence[int]) -> tuple[Sample, ...]:
    """The samples with the model's labels, see `labels_in_model`."""
    return tuple(replace(sample, label=labels[sample.label]) for sample in samples)
