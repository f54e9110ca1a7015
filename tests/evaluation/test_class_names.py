"""A farm has some of a model's conditions, in folders with names of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.colour_backend import ColourBackend

from agridistill.data.folder import scan
from agridistill.data.inspection import fingerprint, inspect_photos
from agridistill.data.split import Split, write_split
from agridistill.errors import ConfigError, DataError, ModelError
from agridistill.evaluation.evaluate import evaluate_folder
from agridistill.evaluation.evidence import gather_evidence
from agridistill.evaluation.held_out import labels_in_model, read_class_names, to_class_names
from agridistill.evaluation.verdict import judge

MakeBackend = Callable[..., Any]


class FourClasses(ColourBackend):
    """Knows two more classes, of which it names none."""

    def logits(self, pixels: np.ndarray) -> np.ndarray:
        green, red = super().logits(pixels).T
        nothing = np.zeros_like(green)
        return np.stack([nothing, red, nothing, green], axis=1)


@pytest.fixture
def model(colour_backend: MakeBackend) -> FourClasses:
    return FourClasses(colour_backend(classes=("black", "red", "white", "yellow or green")).manifest)


NAMES = {"green": "yellow or green"}


def test_a_model_is_scored_on_the_classes_that_are_there(model: FourClasses, colour_folder: Path) -> None:
    result = evaluate_folder(model, colour_folder, split="all", class_names=NAMES)
    assert result.classes == model.manifest.classes
    assert (result.photos, result.accuracy, result.macro_f1) == (20, 1.0, 1.0)
    assert [scores.photos for scores in result.per_class] == [0, 10, 0, 10]
    assert [scores.f1 for scores in result.per_class] == [None, 1.0, None, 1.0]
    assert result.confusion_matrix[1][1] == result.confusion_matrix[3][3] == 10
    verdict = judge(result)
    assert verdict.headline.endswith("of 2 of its 4 classes")
    assert "There are no photos of 'black' and 'white' here: nothing is known about them." in verdict.remarks


def test_a_mistake_for_an_absent_class_counts(model: FourClasses, colour_folder: Path) -> None:
    result = evaluate_folder(model, colour_folder, split="all", class_names={"green": "white"})
    assert result.accuracy == 0.5
    assert result.confusion_matrix[2] == (0, 0, 0, 10)
    assert result.macro_f1 == pytest.approx((1.0 + 0.0) / 2)


def test_several_folders_may_show_one_class(model: FourClasses, colour_folder: Path) -> None:
    (colour_folder / "old red").mkdir()
    for photo in sorted((colour_folder / "red").iterdir())[:4]:
        photo.rename(colour_folder / "old red" / photo.name)
    names = NAMES | {"old red": "red", "of another farm": "black"}
    result = evaluate_folder(model, colour_folder, split="all", class_names=names)
    assert (result.accuracy, result.per_class[1].photos) == (1.0, 10)


def test_evidence_follows_the_names(model: FourClasses, colour_folder: Path) -> None:
    found = gather_evidence(model, colour_folder, split="all", class_names={"green": "white"})
    assert {mistake["truth"] for mistake in found["mistakes"]} == {"white"}
    assert {mistake["predicted"] for mistake in found["mistakes"]} == {"yellow or green"}


def test_renamed_folders_of_its_own_photos_are_still_its_own(
    colour_backend: MakeBackend, colour_folder: Path, tmp_path: Path
) -> None:
    scanned = scan(colour_folder)
    known = fingerprint(scanned.classes, scanned.samples, inspect_photos(scanned))
    backend = FourClasses(
        colour_backend(
            classes=("black", "red", "white", "yellow or green"), lineage={"data_fingerprint": known}
        ).manifest
    )
    paths = tuple(sample.path for sample in scanned.samples)
    own = Split(paths[:16], paths[16:18], paths[18:])
    write_split(tmp_path / "splits.json", own, seed=0, val_fraction=0.1, test_fraction=0.1, fingerprint=known)
    result = evaluate_folder(backend, colour_folder, run=tmp_path, class_names=NAMES)
    assert (result.split, result.photos) == ("test", 2)


def test_a_class_that_the_model_lacks_is_refused_with_the_remedy() -> None:
    with pytest.raises(ModelError) as caught:
        labels_in_model(["Tomato___Late_blight", "Tomato___healthy"], ["Late blight", "Tomato___healthy"], {})
    assert str(caught.value) == (
        "expected photos of classes that the model knows; got 'Late blight'; did you mean 'Tomato___Late_blight'?; "
        'write a TOML file with one line for each such folder, as "Late blight" = "model class", and pass it as '
        "--map, or move the folder out of the data"
    )
    with pytest.raises(ModelError, match="one of the model's classes for 'a'; got 'Tomato___helthy'; did you mean"):
        labels_in_model(["Tomato___Late_blight", "Tomato___healthy"], ["a"], {"a": "Tomato___helthy"})


def test_names_are_read_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "names.toml"
    file.write_text('"late blight" = "Tomato___Late_blight"\nhealthy = "Tomato___healthy"\n', encoding="utf-8")
    wanted = {"late blight": "Tomato___Late_blight", "healthy": "Tomato___healthy"}
    assert read_class_names(file) == wanted
    assert to_class_names(str(file)) == to_class_names(file) == to_class_names(wanted) == wanted
    assert to_class_names(None) == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("late blight = x", 'expected a file of class names in TOML; got .*; write a line for each folder: "folder'),
        ("rust = 3", "expected a class name for 'rust' in '.*names.toml'; got 3 .int.; write"),
        ("[rust]\na = 'b'", "expected a class name for 'rust' in .*; got a dict of 1; write"),
    ],
)
def test_a_file_of_something_else_is_refused_in_one_line(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "names.toml"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_class_names(file)


def test_wrong_arguments_end_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="which does not exist"):
        to_class_names(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="a path as str or Path for 'class_names'"):
        to_class_names(3)
    with pytest.raises(DataError, match="folder names and classes as strings; got 'a': 3"):
        to_class_names({"a": 3})
