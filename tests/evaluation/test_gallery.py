"""The gallery of attention maps: which photos it has, and when it is missing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agridistill.data.folder import Sample
from agridistill.data.split import read_split
from agridistill.errors import ModelError
from agridistill.evaluation import evidence
from agridistill.evaluation.evidence import write_gallery
from agridistill.losses import unit_peak
from agridistill.models import LiveTeacher, load_network
from agridistill.runtime.predictor import read_pixels


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The photos of each gallery that was drawn."""
    asked: list[list[str]] = []

    def gallery(runs: Mapping[str, Path], samples: Sequence[Sample], *rest: object) -> list[dict[str, Any]]:
        asked.append([sample.path for sample in samples])
        return [{"path": sample.path} for sample in samples]

    monkeypatch.setattr(evidence, "gallery", gallery)
    return asked


def test_a_gallery_is_of_the_photos_that_were_asked_for(
    teacher_run: Path, leaves: Path, tmp_path: Path, drawn: list[list[str]]
) -> None:
    split, file = read_split(teacher_run / "splits.json"), tmp_path / "gallery.json"
    for name, paths in (("test", split.test), ("val", split.val)):
        write_gallery({"teacher": teacher_run}, leaves, file, split=name)  # type: ignore[arg-type]
        assert [photo["path"] for photo in json.loads(file.read_text())["photos"]] == list(paths)
    assert len(drawn) == 2


def test_where_there_is_no_attention_an_earlier_gallery_goes(
    teacher_run: Path, leaves: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def none(*args: object) -> None:
        raise ModelError("a network with stages", "one without", "take another")

    file = tmp_path / "gallery.json"
    file.write_text("{}")
    monkeypatch.setattr(evidence, "gallery", none)
    write_gallery({"teacher": teacher_run}, leaves, file)
    assert not file.exists()
    assert "the report will show no attention maps" in caplog.text


def test_maps_and_answers_are_those_of_the_network(teacher_run: Path, leaves: Path, tmp_path: Path) -> None:
    write_gallery({"teacher": teacher_run}, leaves, tmp_path / "gallery.json")
    photos = json.loads((tmp_path / "gallery.json").read_text())["photos"]
    network, manifest = load_network(teacher_run)
    pixels = np.stack([read_pixels(leaves / photo["path"], manifest.preprocessing) for photo in photos])
    teacher = LiveTeacher(network, manifest.preprocessing, strides=(16,))
    found = teacher.outputs(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    maps = [photo["models"][0]["map"] for photo in photos]
    np.testing.assert_allclose(maps, unit_peak(found.maps[16]), atol=2e-3)
    answers = [manifest.classes[index] for index in found.logits.argmax(1)]
    assert [photo["models"][0]["predicted"] for photo in photos] == answers
