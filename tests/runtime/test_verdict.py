"""One verdict and one wording of a photo, wherever a model is asked."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from agridistill.api import load
from agridistill.cli.watch import _detection_line
from agridistill.data.folder import scan
from agridistill.edge.events import Frame
from agridistill.edge.verdict import Decider
from agridistill.errors import ModelError
from agridistill.export.artefact import export
from agridistill.runtime.verdict import (
    FIGURES,
    Familiarity,
    Prediction,
    QualitySettings,
    figures,
    fit_familiarity,
    verdict_words,
)


def test_the_four_verdicts_in_words() -> None:
    top = [("Tomato___Late_blight", 0.93), ("healthy", 0.02)]
    assert verdict_words("answer", "", top[:1]) == "Tomato: Late blight 93 %"
    assert verdict_words("unsure", "any", top) == "unsure (Tomato: Late blight 93 %, healthy 2 %)"
    assert verdict_words("unfamiliar", "odd", top[:1]) == "unfamiliar: odd (Tomato: Late blight 93 %)"
    assert verdict_words("unusable", "too dark", top) == "unusable: too dark"


def test_what_is_wrong_with_the_photo_comes_before_doubts_of_the_model() -> None:
    def verdict(problem: str, ood_score: float, *, abstained: bool) -> str:
        return Prediction("a", 0.5, (("a", 0.5),), abstained, ood_score, problem=problem).verdict

    assert verdict("too dark", 2.0, abstained=True) == "unusable"
    assert verdict("", 2.0, abstained=True) == "unfamiliar"
    assert verdict("", 1.0, abstained=True) == "unsure"
    assert verdict("", 1.0, abstained=False) == "answer"


def test_run_artefact_and_agent_give_one_verdict_in_the_same_words(
    student_run: Path, leaves: Path, tmp_path: Path
) -> None:
    pytest.importorskip("onnx")
    file = tmp_path / "leaf.onnx"
    export(student_run, file, force=True)
    photos = [np.array(Image.open(leaves / sample.path).convert("RGB")) for sample in scan(leaves).samples[::8]]
    photos += [photos[0] // 12, np.full((64, 64, 3), 255, np.uint8), 255 - photos[0]]
    run, exported = load(student_run), load(file)
    agent = Decider(exported, QualitySettings(), device="pi", source="photos")
    seen = set()
    for photo in photos:
        answer, other = run.predict(photo), exported.predict(photo)
        detection = agent.decide(Frame(photo, "leaf.jpg", "", 0.0))
        assert answer.verdict == other.verdict == detection.verdict
        assert answer.words == other.words
        assert _detection_line(detection).endswith(f"leaf.jpg: {answer.words}")
        seen.add(answer.verdict)
    assert "unusable" in seen
    assert len(seen) > 1


SIZE = 64


def leaf(rng: np.random.Generator) -> np.ndarray:
    """Green in the middle, grey around it, with some noise."""
    photo = np.full((SIZE, SIZE, 3), 130.0)
    photo[12:52, 12:52] = (60 + rng.normal(0, 8), 120 + rng.normal(0, 8), 40 + rng.normal(0, 8))
    return np.clip(photo + rng.normal(0, 10, photo.shape), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def known() -> Familiarity:
    rng = np.random.default_rng(0)
    photos = [figures(leaf(rng)) for _ in range(300)]
    return fit_familiarity(photos[:200], photos[200:])


def test_photos_of_the_same_kind_are_familiar(known: Familiarity) -> None:
    rng = np.random.default_rng(1)
    unfamiliar = [known.ood_score(leaf(rng)) > 1 for _ in range(200)]
    assert 0.005 < np.mean(unfamiliar) < 0.1


@pytest.mark.parametrize("kind", ["noise", "black", "stripes", "leaf at the rim", "blue"])
def test_other_pictures_are_strange(known: Familiarity, kind: str) -> None:
    rng = np.random.default_rng(2)
    photo = leaf(rng)
    other = {
        "noise": rng.integers(0, 256, photo.shape).astype(np.uint8),
        "black": np.zeros_like(photo),
        "stripes": np.where((np.arange(SIZE) // 8 % 2)[:, None, None] == 0, 255, 0).astype(np.uint8)
        + np.zeros_like(photo),
        "leaf at the rim": np.roll(photo, SIZE // 2, axis=1),
        "blue": photo[:, :, [2, 0, 1]],
    }[kind]
    assert known.ood_score(other) > 1


def test_the_distance_is_mahalanobis(known: Familiarity) -> None:
    covariance = np.linalg.inv(known.whitening.T @ known.whitening)
    photo = leaf(np.random.default_rng(3))
    deviation = figures(photo) - known.mean
    expected = deviation @ np.linalg.solve(covariance, deviation) / known.limit
    assert known.ood_score(photo) == pytest.approx(expected, rel=1e-6)


def test_the_figures_are_what_they_are_called() -> None:
    flat = np.full((SIZE, SIZE, 3), (100, 150, 50), np.uint8)
    found = figures(flat)
    assert found.shape == (FIGURES,)
    total = 300 / 255
    assert found[:2] == pytest.approx([300 / 255 / (total + 0.2), 450 / 255 / (total + 0.2)], rel=1e-5)
    assert found[18:27] == pytest.approx([total] * 9, rel=1e-5)
    assert found[27:36] == pytest.approx([np.log(0.01)] * 9, abs=0.02)
    assert found[36:45] == pytest.approx([np.log(0.003)] * 9, rel=1e-5)


def test_a_manifest_keeps_it(known: Familiarity) -> None:
    again = Familiarity.from_json(json.loads(json.dumps(known.to_json())))
    photo = leaf(np.random.default_rng(4))
    assert again.ood_score(photo) == pytest.approx(known.ood_score(photo), rel=1e-3)
    assert len(json.dumps(known.to_json())) < 40_000


@pytest.mark.parametrize(
    "changes",
    [
        {"mean": [1.0]},
        {"whitening": [1.0] * 3},
        {"limit": 0},
        {"limit": "x"},
        {"mean": [float("nan")] * FIGURES},
        {"limit": None},
    ],
)
def test_a_damaged_manifest_is_refused(known: Familiarity, changes: dict[str, object]) -> None:
    with pytest.raises(ModelError, match="in the manifest's familiarity"):
        Familiarity.from_json(known.to_json() | changes)


def test_photos_that_are_too_small_are_refused() -> None:
    with pytest.raises(ModelError, match="an image_size of at least 3 px"):
        figures(np.zeros((2, 2, 3), np.uint8))
