"""The order of photos: uncertain, unlike the others and disputed ones first, and each view of a leaf once."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.colour_backend import ColourBackend, colour_backend

from agridistill.review import ranking as ranking_module
from agridistill.review.ranking import Ranking
from agridistill.runtime.predictor import Predictor


def photo(path: Path, red: int, green: int, seed: int) -> None:
    """Writes a patterned photo whose mean is about (red, green, 60)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pattern = np.random.default_rng(seed).integers(-40, 40, (8, 8, 1)).repeat(8, axis=0).repeat(8, axis=1)
    pattern = pattern - pattern.mean()
    Image.fromarray((np.array([red, green, 60]) + pattern).clip(0, 255).astype(np.uint8)).save(path, quality=95)


def ranked(root: Path, predictor: Predictor | None, **more: Any) -> Ranking:
    photos = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.jpg"))
    with Ranking(root, photos, predictor, **more) as ranking:
        ranking._thread.join(60)
    assert ranking.work == ("", 0, 0)
    return ranking


class Swapped(ColourBackend):
    """Disagrees with the ColourBackend about every photo."""

    def logits(self, pixels: Any) -> Any:
        return super().logits(pixels)[:, ::-1]


def test_the_least_certain_photo_comes_first(tmp_path: Path) -> None:
    for name, red, green in (("a", 60, 170), ("b", 120, 118), ("c", 170, 60), ("d", 110, 116)):
        photo(tmp_path / f"{name}.jpg", red, green, ord(name))
    order = ranked(tmp_path, Predictor(colour_backend())).photos
    assert set(order[:2]) == {"b.jpg", "d.jpg"}
    assert sorted(order) == ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]


def test_a_photo_that_the_teacher_sees_otherwise_comes_before_one_on_which_it_agrees(tmp_path: Path) -> None:
    photo(tmp_path / "grey.jpg", 118, 118, 1)
    photo(tmp_path / "sure.jpg", 60, 170, 2)
    backend = Swapped(colour_backend().manifest)
    found = ranked(tmp_path, Predictor(colour_backend()), teacher=Predictor(backend))
    # Both models call the grey photo even; of the green one each says another class.
    assert found.teacher_label("sure.jpg") == "red"
    prediction = found.prediction("sure.jpg")
    assert prediction is not None
    assert prediction.label == "green"
    assert found._worth("sure.jpg") == pytest.approx(1, abs=0.02)


def test_photos_that_look_alike_come_once_and_judged_ones_stay(tmp_path: Path) -> None:
    for seed in range(4):
        photo(tmp_path / f"{seed}.jpg", 120, 130, seed)
    with Image.open(tmp_path / "0.jpg") as first, Image.open(tmp_path / "1.jpg") as second:
        first.save(tmp_path / "0-again.jpg", quality=60)
        second.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "1-turned.jpg")
    order = ranked(tmp_path, None, judged=["1-turned.jpg"]).photos
    assert len(order) == 4
    assert len({"0.jpg", "0-again.jpg"} & set(order)) == 1
    assert {"1.jpg", "1-turned.jpg"} & set(order) == {"1-turned.jpg"}


def test_equally_certain_photos_are_spread(tmp_path: Path) -> None:
    # Ten photos of nearly one look, and one of another, none of which the model finds harder.
    for seed in range(10):
        photo(tmp_path / f"many-{seed}.jpg", 60, 170, seed)
    rng = np.random.default_rng(99)
    fine = rng.integers(-80, 80, (64, 64, 1)) + np.array([60, 170, 60])
    Image.fromarray(fine.clip(0, 255).astype(np.uint8)).save(tmp_path / "rare.jpg", quality=95)
    order = ranked(tmp_path, Predictor(colour_backend()), judged=["many-0.jpg"]).photos
    assert next(name for name in order if name != "many-0.jpg") == "rare.jpg"


def test_a_photo_that_cannot_be_read_is_left_out_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    photo(tmp_path / "good.jpg", 120, 130, 1)
    (tmp_path / "bad.jpg").write_bytes(b"no photo")
    found = ranked(tmp_path, Predictor(colour_backend()))
    assert found.photos == ["good.jpg"]
    assert found.prediction("bad.jpg") is None
    assert "photos that cannot be read are left out: 1, the first 'bad.jpg' (" in caplog.text


def test_photos_have_an_order_and_predictions_while_the_work_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(3):
        photo(tmp_path / f"{seed}.jpg", 120, 130, seed)
    going, entered = threading.Event(), threading.Event()
    compute = ranking_module.compute_photos

    def slow(*words: Any, **options: Any) -> Any:
        entered.set()
        going.wait(60)
        yield from compute(*words, **options)

    monkeypatch.setattr(ranking_module, "compute_photos", slow)
    with Ranking(tmp_path, ["0.jpg", "1.jpg", "2.jpg"], Predictor(colour_backend())) as found:
        assert entered.wait(60)
        assert found.photos == ["0.jpg", "1.jpg", "2.jpg"]
        assert found.work == ("the model looks at the photos", 0, 3)
        prediction = found.prediction("1.jpg")
        assert prediction is not None
        assert prediction.label == "green"
        found._stop.set()  # as at the end of the command
        going.set()
    assert not found._thread.is_alive()
