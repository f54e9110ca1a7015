"""Where a model looked: the right place, on a picture that can be read, and never over the photo."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.colour_backend import colour_backend, colour_photo

from agridistill.api import load
from agridistill.errors import ConfigError, PhotoError
from agridistill.manifest import Preprocessing
from agridistill.runtime.explanation import Explanation, occlusion_map, seen_part
from agridistill.runtime.predictor import Predictor


def spotted(side: int = 28) -> np.ndarray:
    """A grey photo with a red corner at the top left."""
    photo = np.full((side, side, 3), 124, np.uint8)
    photo[: side // 3, : side // 3] = (255, 0, 0)
    return photo


def spotting(side: int = 28, **changes: Any) -> Predictor:
    return Predictor(colour_backend(preprocessing=Preprocessing(side), **changes))


def test_covering_finds_the_part_that_the_answer_comes_from() -> None:
    found = spotting().explain(spotted())
    assert (found.prediction.label, found.method) == ("red", "occlusion")
    assert found.map.shape == (14, 14)
    assert found.map.dtype == np.float32
    assert 0 < found.map.max() <= 1
    inside, outside = found.map[:5, :5], found.map[9:, 9:]
    assert inside.min() > 5 * outside.max()


def test_the_map_is_the_change_of_the_probability() -> None:
    # With a patch on every place once, the reference is a plain loop.
    predictor, photo = spotting(), spotted()
    grey = np.array([124, 116, 104], np.uint8)
    whole = predictor.predict(photo).probability
    drops, covers = np.zeros((14, 14)), np.zeros((14, 14))
    for row in range(10):
        for column in range(10):
            covered = photo.copy()
            covered[2 * row : 2 * row + 10, 2 * column : 2 * column + 10] = grey
            probabilities = predictor.predict(covered).probabilities
            drops[row : row + 5, column : column + 5] += whole - probabilities[1]
            covers[row : row + 5, column : column + 5] += 1
    expected = (drops / covers).clip(min=0)
    np.testing.assert_allclose(occlusion_map(predictor.backend, photo, 1), expected, atol=1e-6)


def test_where_no_small_patch_matters_larger_ones_are_tried() -> None:
    # Every part says the same, so that only much of it hides the answer.
    class Sure:
        def __init__(self) -> None:
            self.manifest = colour_backend(preprocessing=Preprocessing(28)).manifest
            self.photos = 0

        def logits(self, pixels: np.ndarray) -> np.ndarray:
            self.photos += len(pixels)
            covered = (pixels == np.array([124, 116, 104])).all(axis=-1).mean(axis=(1, 2))
            return np.stack([np.zeros(len(pixels)), np.where(covered > 0.3, -5, 5)], axis=1).astype(np.float32)

    sure = Sure()
    found = Predictor(sure).explain(spotted())
    assert sure.photos == 1 + (1 + 100) + (1 + 49)
    assert found.map.max() > 0.98
    assert "by 99 percentage points on average" in found.caption


def test_a_model_that_misses_nothing_is_not_given_a_place() -> None:
    found = spotting(temperature=1000.0).explain(spotted())
    assert found.map.max() < 0.01
    assert found.caption.startswith("Right: no single part decides.")


def test_photos_go_to_the_model_in_batches() -> None:
    predictor = spotting()
    predictor.explain(spotted())
    assert predictor.backend.batch_sizes == [1, 1, *[10] * 10]  # type: ignore[attr-defined]


@pytest.mark.parametrize("side", [1, 3, 5, 16, 31])
def test_any_size_of_input_can_be_explained(side: int) -> None:
    found = spotting(side).explain(spotted(40))
    assert found.map.shape == (min(14, side),) * 2
    assert np.isfinite(found.map).all()


@pytest.mark.parametrize(
    ("size", "rule", "expected"),
    [
        ((60, 20), "crop", (20, 0, 40, 20)),
        ((20, 61), "crop", (0, 20, 20, 40)),
        ((60, 20), "stretch", (0, 0, 60, 20)),
    ],
)
def test_the_part_that_is_seen_follows_the_resize_rule(size: tuple[int, int], rule: Any, expected: Any) -> None:
    assert seen_part(size, Preprocessing(16, rule)) == expected


def test_a_run_folder_gives_its_own_attention(teacher_run: Path, leaves: Path) -> None:
    predictor, photo = load(teacher_run), next(leaves.rglob("*.jpg"))
    found = predictor.explain(str(photo))
    assert found.method == "attention"
    assert found.map.shape == (4, 4)
    assert found.map.max() == 1
    assert found.map.min() >= 0
    assert found.prediction.label == predictor.predict(photo).label


@pytest.mark.parametrize("engine", ["onnxruntime", pytest.param("openvino", marks=pytest.mark.slow)])
def test_a_file_with_attention_gives_it_for_one_more_prediction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip(engine)
    from tests.colour_model import colour_model_file

    predictor, photo = load(colour_model_file(tmp_path, attention=True), engine=engine), spotted(16)
    backend, runs = predictor.backend, []
    computed = backend._computed  # type: ignore[attr-defined]
    monkeypatch.setattr(backend, "_computed", lambda *words: (runs.append(words), computed(*words))[1])
    found = predictor.explain(photo)
    assert (found.method, found.prediction.label) == ("attention", "red")
    np.testing.assert_allclose(found.map, photo.max(axis=2) / 255, atol=1e-6)
    assert len(runs) == 2
    assert "(its attention map)" in found.caption


def test_a_file_without_attention_is_explained_by_covering(colour_model: Path) -> None:
    assert load(colour_model).explain(spotted(16)).method == "occlusion"


def test_a_network_without_stages_of_maps_is_explained_by_covering() -> None:
    timm = pytest.importorskip("timm")
    from agridistill.models import TorchBackend

    model = timm.create_model("test_vit", num_classes=2, img_size=160)
    manifest = colour_backend(preprocessing=Preprocessing(160)).manifest
    assert Predictor(TorchBackend(model, manifest)).explain(spotted(160)).method == "occlusion"


def test_the_picture_has_the_photo_and_beside_it_the_map(tmp_path: Path) -> None:
    file = spotting().explain(spotted()).save(str(tmp_path / "new" / "out.png"))
    assert file == tmp_path / "new" / "out.png"
    with Image.open(file) as picture:
        drawn = np.asarray(picture.convert("RGB")).astype(int)
    assert drawn.shape[1] == 2 * 440 + 3 * 16
    panels = drawn[-520:-80]
    left, right = panels[:, 16:456], panels[:, 472:912]
    assert np.abs(left[100, 50] - (255, 0, 0)).max() < 8
    assert right[60, 60, 0] > right[60, 60, 2]  # yellow over the corner
    assert right[400, 400, 2] > right[400, 400, 0]  # blue where nothing is


def test_what_the_model_does_not_see_is_dark() -> None:
    found = spotting().explain(np.full((40, 120, 3), 200, np.uint8))
    picture = np.asarray(found.picture())
    assert "does not see the dark part" in found.caption
    assert "dark" not in spotting().explain(spotted()).caption
    row = picture[picture.shape[0] // 2]
    assert row[16 + 10].min() > 190
    assert row[16 + 440 + 16 + 10].max() < 90


def test_a_long_class_name_and_one_of_another_script_fit(tmp_path: Path) -> None:
    def named(label: str) -> Explanation:
        return replace(found, prediction=replace(found.prediction, problem="", top=((label, 0.9),)))

    found = spotting().explain(spotted())
    long = named("a very long name of a disease that needs a second line " * 4).picture()
    assert long.width == found.picture().width
    assert long.height > found.picture().height
    named("बीमारी 病気 \U0001f345").save(tmp_path / "a.jpg")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (3, r"expected a path as str or Path for 'path'; got 3 \(int\)"),
        ("out.gif", "expected a file name that ends in .png, .jpg, .jpeg, .webp; got 'out.gif'; change the suffix"),
        ("out", "got 'out'; change the suffix"),
    ],
)
def test_a_wrong_path_of_a_picture_is_one_line(path: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        spotting().explain(spotted()).save(path)


def test_the_photo_is_never_overwritten(tmp_path: Path) -> None:
    photo = colour_photo(tmp_path / "leaf.png", "red")
    before = photo.read_bytes()
    found = Predictor(colour_backend()).explain(photo)
    with pytest.raises(ConfigError, match=r"expected a file other than the photo itself; got '.*leaf.png'; choose"):
        found.save(tmp_path / "x" / ".." / "leaf.png")
    assert photo.read_bytes() == before


def test_what_is_no_photo_is_refused() -> None:
    with pytest.raises(PhotoError, match="got None; pass one of these"):
        Predictor(colour_backend()).explain(None)  # type: ignore[arg-type]
