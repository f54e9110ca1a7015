"""What is said about a frame, and how far it may be believed."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from agridistill.edge.events import Frame
from agridistill.edge.verdict import Decider, event_id, thumbnail
from agridistill.manifest import ModelManifest, Preprocessing
from agridistill.runtime.predictor import Predictor
from agridistill.runtime.verdict import QualitySettings, figures, fit_familiarity

ANY = QualitySettings(darkest=0, brightest=1, blurriest=0, least_leaf=0)
MANIFEST = ModelManifest("colour", ("green", "red"), Preprocessing(16), "colour.onnx", "ab" * 32, threshold=0.8)


class Colours:
    """Logits by the mean green and red."""

    def __init__(self, manifest: ModelManifest) -> None:
        self.manifest = manifest
        self.asked = 0

    def logits(self, pixels: np.ndarray) -> np.ndarray:
        self.asked += len(pixels)
        return np.stack([pixels[..., 1].mean((1, 2)), pixels[..., 0].mean((1, 2))], axis=1).astype(np.float32) / 20


def decider(quality: QualitySettings = ANY, **changes: object) -> tuple[Decider, Colours]:
    model = Colours(replace(MANIFEST, **changes))  # type: ignore[arg-type]
    return Decider(Predictor(model), quality, device="pi", source="photos"), model


def frame(red: int, green: int, identity: str = "", **changes: object) -> Frame:
    pixels = np.full((40, 30, 3), (red, green, 0), np.uint8)
    return replace(Frame(pixels, "north/1.jpg", "north", 100.0, identity), **changes)  # type: ignore[arg-type]


def test_an_answer_says_what_where_and_by_which_model() -> None:
    said = decider()[0].decide(frame(0, 200))
    assert (said.verdict, said.label, said.reason) == ("answer", "green", "")
    assert said.probability == pytest.approx(1 / (1 + np.exp(-10)), abs=1e-4)
    assert said.probabilities == pytest.approx({"green": 1.0, "red": 0.0}, abs=1e-4)
    assert (said.device, said.source, said.photo, said.plot, said.at_s) == (
        "pi",
        "photos",
        "north/1.jpg",
        "north",
        100.0,
    )
    assert said.model == "ab" * 6


def test_below_the_models_threshold_it_is_unsure() -> None:
    said = decider()[0].decide(frame(100, 110))
    assert (said.verdict, said.label) == ("unsure", "green")
    assert said.reason == "probability 0.62, threshold 0.80"


def test_a_photo_unlike_the_training_photos_is_unfamiliar_however_sure_the_model() -> None:
    rng = np.random.default_rng(0)
    seen = [figures(rng.integers(0, 256, (16, 16, 3)).astype(np.uint8)) for _ in range(80)]
    said = decider(familiarity=fit_familiarity(seen[:60], seen[60:]).to_json())[0].decide(frame(0, 250))
    assert (said.verdict, said.label) == ("unfamiliar", "green")
    assert said.probability is not None
    assert said.probability > 0.99


def test_a_photo_that_fails_the_quality_gate_never_reaches_the_model() -> None:
    made, model = decider(QualitySettings())
    said = made.decide(frame(3, 3))
    assert (said.verdict, said.reason, said.label, said.probability) == ("unusable", "too dark", None, None)
    assert said.probabilities == {}
    assert model.asked == 0


def test_the_event_id_is_the_photos_own_where_it_has_an_identity() -> None:
    one = frame(0, 200, "abc")
    assert event_id("pi", one) == event_id("pi", replace(one, at_s=999.0))
    assert event_id("pi", one) != event_id("pi 2", one)
    assert event_id("pi", one) != event_id("pi", frame(0, 200, "abd"))
    assert event_id("pi", frame(0, 200)) != event_id("pi", frame(0, 200))
    assert len(event_id("pi", one)) == len(event_id("pi", frame(0, 200))) == 32


def test_names_that_are_no_utf8_become_readable() -> None:
    said = decider()[0].decide(frame(0, 200, name="leaf\udce9.jpg", plot="n\udcff"))
    assert (said.photo, said.plot) == ("leaf\\udce9.jpg", "n\\udcff")


def test_a_thumbnail_is_small_and_without_metadata() -> None:
    big = Frame(np.full((900, 1200, 3), 90, np.uint8), "a.jpg", "", 0.0)
    image = Image.open(io.BytesIO(thumbnail(big)))
    assert image.size == (240, 180)
    assert not image.getexif()
