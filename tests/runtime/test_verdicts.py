"""One verdict and one wording of a photo, wherever a model is asked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from agridistill.api import load
from agridistill.cli.watch import _detection_line
from agridistill.data.samples import scan
from agridistill.edge.events import Frame
from agridistill.edge.verdict import Decider, Origin
from agridistill.exporting.artefact import export
from agridistill.runtime.quality import QualitySettings
from agridistill.runtime.verdicts import verdict_of, verdict_words


def test_the_four_verdicts_in_words() -> None:
    top = [("Tomato___Late_blight", 0.93), ("healthy", 0.02)]
    assert verdict_words("answer", "", top[:1]) == "Tomato: Late blight 93 %"
    assert verdict_words("unsure", "any", top) == "unsure (Tomato: Late blight 93 %, healthy 2 %)"
    assert verdict_words("unfamiliar", "odd", top[:1]) == "unfamiliar: odd (Tomato: Late blight 93 %)"
    assert verdict_words("unusable", "too dark", top) == "unusable: too dark"


def test_what_is_wrong_with_the_photo_comes_before_doubts_of_the_model() -> None:
    assert verdict_of("too dark", unfamiliar=True, abstained=True) == "unusable"
    assert verdict_of("", unfamiliar=True, abstained=True) == "unfamiliar"
    assert verdict_of("", unfamiliar=False, abstained=True) == "unsure"
    assert verdict_of("", unfamiliar=False, abstained=False) == "answer"


def test_run_artefact_and_agent_give_one_verdict_in_the_same_words(
    student_run: Path, leaves: Path, tmp_path: Path
) -> None:
    pytest.importorskip("onnx")
    file = tmp_path / "leaf.onnx"
    export(student_run, file, force=True)
    photos = [np.array(Image.open(leaves / sample.path).convert("RGB")) for sample in scan(leaves).samples[::8]]
    photos += [photos[0] // 12, np.full((64, 64, 3), 255, np.uint8), 255 - photos[0]]
    run, exported = load(student_run), load(file)
    agent = Decider(exported, QualitySettings(), Origin("pi", "photos"))
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
