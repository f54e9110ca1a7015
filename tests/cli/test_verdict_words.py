"""One verdict has the same words everywhere: `predict`, `watch`, `status` and the page."""

from __future__ import annotations

import os
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from tests.edge.looks import detection, state

from agridistill.cli import status as status_module
from agridistill.cli.watch import _detection_line
from agridistill.edge.page.view import Page, page_html
from agridistill.edge.state import HISTORY_FILE, write_state
from agridistill.edge.store.history import History
from agridistill.runtime.verdict import Prediction

BLIGHT = "Tomato___Late_blight"


@pytest.mark.parametrize(
    ("probability", "changes", "words"),
    [
        (0.9312, {}, "Tomato: Late blight 93 %"),
        (0.9999, {}, "Tomato: Late blight over 99 %"),
        (0.41, {"abstained": True}, "unsure (Tomato: Late blight 41 %)"),
        (
            0.41,
            {"ood_score": 2.0},
            "unfamiliar: unlike the photos that the model learnt from (Tomato: Late blight 41 %)",
        ),
        (0.41, {"problem": "too dark"}, "unusable: too dark"),
    ],
)
def test_a_verdict_has_the_same_words_everywhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], probability: float, changes: dict[str, Any], words: str
) -> None:
    fields: dict[str, Any] = {"abstained": False, "ood_score": None, "threshold": 0.6} | changes
    prediction = Prediction(BLIGHT, probability, ((BLIGHT, probability),), **fields)
    asked = prediction.verdict != "unusable"
    seen = detection(
        1,
        verdict=prediction.verdict,
        reason=prediction.reason,
        label=BLIGHT if asked else None,
        probability=probability if asked else None,
    )
    assert prediction.words == words
    assert _detection_line(seen).endswith(f"north/leaf-0001.jpg: {words}")
    write_state(tmp_path, state(pid=os.getpid()))
    with History(tmp_path / HISTORY_FILE) as history:
        history.add(seen)
        assert f"<h3>{words}</h3>" in unescape(page_html(Page(history, state), "nonce"))
    status_module.status(tmp_path)
    assert words in " ".join(capsys.readouterr().out.split())


def test_a_line_of_watch_names_the_plot_once() -> None:
    assert _detection_line(detection(1)).split(" ", 1)[1].startswith("north/leaf-0001.jpg: ")
    assert _detection_line(detection(1, photo="000012")).split(" ", 1)[1].startswith("north 000012: ")
