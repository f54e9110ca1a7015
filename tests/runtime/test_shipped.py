"""A shipped model is found by its name, unless a model of that name lies nearer."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import agridistill
from agridistill.errors import ModelError
from agridistill.runtime import backends
from agridistill.runtime.backends import model_path


@pytest.fixture
def models(tmp_path: Path, colour_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of shipped models, and an empty current folder."""
    folder = tmp_path / "models"
    (folder / "leafy").mkdir(parents=True)
    for file in (colour_model, colour_model.with_suffix(".json")):
        shutil.copy(file, folder / "leafy")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setattr(backends, "SHIPPED", {"leafy": f"leafy/{colour_model.name}"})
    monkeypatch.setattr(backends, "_FOLDERS", (tmp_path / "none", folder))
    return folder


def test_a_name_is_the_shipped_model(models: Path, colour_model: Path) -> None:
    assert model_path("leafy") == models / "leafy" / colour_model.name
    assert agridistill.load("leafy").manifest.classes == agridistill.load(colour_model).manifest.classes


def test_the_phone_page_takes_a_form_of_its_own(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (models / "leafy" / "page.tflite").write_bytes(b"")
    monkeypatch.setattr(backends, "_SHIPPED_FOR_PAGES", {"leafy": "leafy/page.tflite"})
    assert model_path("leafy", for_page=True) == models / "leafy" / "page.tflite"
    assert model_path("leafy").suffix == ".onnx"


def test_a_folder_of_photos_with_that_name_is_no_model(models: Path) -> None:
    Path("leafy").mkdir()
    assert model_path(Path("leafy")).is_file()


def test_a_model_in_the_current_folder_comes_first(models: Path, colour_model: Path) -> None:
    Path("leafy").mkdir()
    Path("leafy/manifest.json").write_text("{}")
    assert model_path("leafy") == Path("leafy")
    assert model_path(colour_model) == colour_model


def test_an_unknown_name_is_reported_as_a_path(models: Path) -> None:
    with pytest.raises(ModelError, match="'leavy', which does not exist"):
        agridistill.load("leavy")


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("leafi", "'leafi', which does not exist; check the path; shipped models: leafy"),
        ("runs/leafi", "which does not exist; check the path$"),
    ],
)
def test_a_name_of_nothing_names_what_there_is(models: Path, name: str, remedy: str) -> None:
    with pytest.raises(ModelError, match=remedy):
        agridistill.load(name)
