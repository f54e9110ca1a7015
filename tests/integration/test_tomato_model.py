"""The model that comes with the repository is the one that its card describes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import agridistill
from agridistill.data.likeness import read_learnt
from agridistill.manifest import read_manifest, sha256_of

pytestmark = pytest.mark.slow

MODELS = Path(__file__).parents[2] / "models" / "tomato"
# By what follows "evaluation-" in the name of its evaluation.
FILES = {"fp32": "tomato-fp32.onnx", "int8": "tomato-int8.onnx", "tflite-int8": "tomato-tflite-int8.tflite"}
TESTED_ON_CORRUPTED_PHOTOS = ("fp32", "int8")


def recorded(name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((MODELS / f"{name}.json").read_text())
    return document


def test_the_artefacts_are_small_and_those_that_were_measured() -> None:
    assert sum(file.stat().st_size for file in MODELS.iterdir()) < 28e6
    for form, name in FILES.items():
        assert recorded(f"tomato-{form}")["weights_sha256"] == sha256_of(MODELS / name)
    for form in TESTED_ON_CORRUPTED_PHOTOS:
        assert recorded(f"evidence-{form}")["weights_sha256"] == sha256_of(MODELS / FILES[form])


@pytest.mark.parametrize("form", FILES)
def test_the_card_says_what_was_measured(form: str) -> None:
    card = " ".join((MODELS / "README.md").read_text().split())
    figures = recorded(f"evaluation-{form}")
    low, high = (f"{100 * end:.1f}" for end in figures["accuracy_ci95"])
    assert f"{100 * figures['accuracy']:.1f} % ({low}–{high})" in card
    assert f"{figures['calibration_error']:.3f}" in card
    if form in TESTED_ON_CORRUPTED_PHOTOS:
        under = recorded(f"evidence-{form}")["robustness"]["mean_corrupted_accuracy"]
        assert f"{100 * under:.1f} %" in card
    assert "CC BY-SA 3.0" in card


def test_it_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    manifest = agridistill.load("tomato").manifest
    assert manifest.precision == "int8"
    assert len(manifest.classes) == 10


@pytest.mark.parametrize("form", FILES)
def test_it_knows_the_photos_that_it_learnt_from(form: str) -> None:
    known = read_learnt(MODELS / f"tomato-{form}.learnt", read_manifest(MODELS / f"tomato-{form}.json"))
    assert known is not None
    # 8,929 photos to train and 1,881 to choose the epoch, a few of which look alike.
    assert 10_700 < len(known) <= 10_810


@pytest.mark.parametrize("form", FILES)
def test_it_knows_which_real_photos_it_learnt_from(
    form: str, real_photos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from agridistill.data.likeness import learnt_path
    from agridistill.evaluation.held_out import choose_photos

    artefact = MODELS / FILES[form]
    manifest = read_manifest(artefact.with_suffix(".json"))
    choose_photos(manifest, real_photos, split="all", learnt=learnt_path(artefact))
    assert "the model has learnt from at least 10810 of these 12700 photos" in caplog.text


@pytest.mark.parametrize("form", FILES)
def test_it_is_as_accurate_on_the_test_photos_as_its_card_says(form: str, real_photos: Path) -> None:
    from agridistill.data.prepare import prepare_data
    from agridistill.evaluation.evaluate import evaluate
    from agridistill.runtime.backends import open_artefact

    if FILES[form].endswith(".tflite"):
        pytest.importorskip("ai_edge_litert", reason="needs ai-edge-litert: pip install 'agridistill[litert]'")
    backend = open_artefact(MODELS / FILES[form])
    prepared = prepare_data(real_photos)
    found = evaluate(backend, prepared.test, prepared.root, split="test")
    figures = recorded(f"evaluation-{form}")
    assert found.photos == figures["photos"]
    # Processors round in ways of their own: a handful of photos lie on an edge.
    assert found.accuracy == pytest.approx(figures["accuracy"], abs=0.005)
