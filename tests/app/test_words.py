"""Words for classes: every mistake in the file is one line, and what is missing has a substitute."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from tests.app.conftest import WriteSite

from agridistill.app.words import read_words, words_file
from agridistill.errors import ConfigError
from agridistill.manifest import read_manifest
from agridistill.runtime.backends import model_path

CLASSES = ("Tomato___Late_blight", "Tomato___healthy")


def read(tmp_path: Path, text: str) -> dict[str, dict[str, object]]:
    path = tmp_path / "leaf.words.toml"
    path.write_text(text, encoding="utf-8")
    return dict(read_words(path, CLASSES)["languages"])


def test_each_language_has_its_direction_and_its_words(tmp_path: Path) -> None:
    text = '[en.classes.Tomato___Late_blight]\nname = "Late blight"\nlook = "Look below."\n'
    text += '[ar]\nnote = "n"\n[ar.classes.Tomato___healthy]\nwarning = "w"\n[pt-BR]\n'
    words = read(tmp_path, text)
    blight = {"name": "Late blight", "look": "Look below.", "warning": ""}
    assert words["en"] == {"direction": "ltr", "note": "", "classes": {"Tomato___Late_blight": blight}}
    # A class without a name has the plain label's.
    healthy = {"name": "Tomato: healthy", "look": "", "warning": "w"}
    assert words["ar"] == {"direction": "rtl", "note": "n", "classes": {"Tomato___healthy": healthy}}
    assert words["pt-BR"]["classes"] == {}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            '[en.classes.Tomato___Late_blihgt]\nname = "x"',
            "expected a class of the model in [en.classes]; got 'Tomato___Late_blihgt' in '{file}'; "
            "did you mean 'Tomato___Late_blight'?",
        ),
        (
            '[en.classes.Tomato___healthy]\nnames = "x"',
            "expected a known key of [en.classes.Tomato___healthy]; got 'names' in '{file}'; did you mean 'name'?",
        ),
        ("[en]\nnotes = 'x'", "expected a known key of [en]; got 'notes' in '{file}'; did you mean 'note'?"),
        (
            "[English]\n",
            "expected a table for each language, with its code as name, such as [en] or [pt-BR]; got 'English' in "
            "'{file}'; correct it",
        ),
        (
            "note = 'x'",
            "expected a table for each language, with its code as name, such as [en] or [pt-BR]; got 'note' in "
            "'{file}'; correct it",
        ),
        ("", "expected a table for each language, such as [en]; got none in '{file}'; add one, or use no file"),
        (
            "[en.classes.Tomato___healthy]\nname = ''",
            "expected en.classes.Tomato___healthy.name: string should have at least 1 character; got '' in '{file}'; "
            "correct it",
        ),
        (
            "[en.classes.Tomato___healthy]\nname = 3",
            "expected en.classes.Tomato___healthy.name: input should be a valid string; got 3 in '{file}'; correct it",
        ),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, text: str, line: str) -> None:
    with pytest.raises(ConfigError) as error:
        read(tmp_path, text)
    assert str(error.value) == line.format(file=tmp_path / "leaf.words.toml")


def test_a_file_that_is_not_toml_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected a file of words in TOML; got"):
        read(tmp_path, "[en")
    with pytest.raises(ConfigError, match=r"expected a file of words; got '.*none\.toml', which does not exist"):
        read_words(tmp_path / "none.toml", CLASSES)


@pytest.mark.parametrize("for_page", [False, True])
def test_the_tomato_model_has_words_for_all_its_classes_in_three_languages(for_page: bool) -> None:
    model = model_path("tomato", for_page=for_page)
    manifest = read_manifest(model.with_suffix(".json"))
    file = words_file(model, manifest)
    assert file is not None
    words = read_words(file, manifest.classes)["languages"]
    assert {code: each["direction"] for code, each in words.items()} == {"en": "ltr", "es": "ltr", "ar": "rtl"}
    for code, each in words.items():
        assert set(each["classes"]) == set(manifest.classes), code
        assert each["note"], code
        assert len({texts["name"] for texts in each["classes"].values()}) == len(manifest.classes)
        assert all(text for texts in each["classes"].values() for text in texts.values()), code
    assert "NOT written by an agronomist" in file.read_text(encoding="utf-8")


def test_words_are_found_beside_the_model(write: WriteSite, colour_model: Path, tmp_path: Path) -> None:
    assert write().languages == ()
    folder = tmp_path / "models"
    folder.mkdir()
    model = folder / "leaf-fp32.onnx"
    model.write_bytes(colour_model.read_bytes())
    model.with_suffix(".json").write_bytes(colour_model.with_suffix(".json").read_bytes())
    (folder / "leaf.words.toml").write_text('[en.classes.red]\nname = "All red"\n')
    assert write(model=model).languages == ("en",)
    (folder / "leaf-fp32.words.toml").write_text("[es]\n")
    assert write(model=model).languages == ("es",)
    other = tmp_path / "other.toml"
    other.write_text('[fr.classes.red]\nname = "Rouge"\n')
    assert write(model=model, words=other).languages == ("fr",)
    release = json.loads((tmp_path / "site" / "release.json").read_text())
    words = json.loads(gzip.decompress((tmp_path / "site" / release["files"]["words.json"]["path"]).read_bytes()))
    assert words["languages"]["fr"]["classes"]["red"]["name"] == "Rouge"
