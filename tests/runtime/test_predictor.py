import errno
import math
import os
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.colour_backend import colour_backend, colour_photo

import agridistill
from agridistill.errors import ConfigError, DataError, ModelError, PhotoError
from agridistill.manifest import Preprocessing
from agridistill.runtime.backends import model_path
from agridistill.runtime.predictor import PhotoResult, Predictor, expand, read_source
from agridistill.runtime.verdict import figures, fit_familiarity


def plain(red: int, green: int) -> np.ndarray:
    return np.broadcast_to(np.array([red, green, 0], np.uint8), (20, 20, 3)).copy()


def test_label_and_probability_follow_from_the_logits() -> None:
    prediction = Predictor(colour_backend()).predict(plain(red=153, green=102), top=2)
    red = math.exp(6) / (math.exp(6) + math.exp(4))
    assert prediction.label == "red"
    assert prediction.probability == pytest.approx(red, abs=1e-6)
    assert prediction.top == (("red", pytest.approx(red)), ("green", pytest.approx(1 - red)))
    assert not prediction.abstained


def test_the_manifests_temperature_scales_the_logits() -> None:
    predictor = Predictor(colour_backend(temperature=4.0))
    assert predictor.predict(plain(red=153, green=102)).probability == pytest.approx(1 / (1 + math.exp(-2 / 4)))


def test_below_its_threshold_the_model_abstains() -> None:
    even, clear = plain(red=102, green=102), plain(red=153, green=102)
    predictor = Predictor(colour_backend(threshold=0.6))
    assert predictor.predict(even).abstained
    assert not predictor.predict(clear).abstained
    assert not Predictor(colour_backend(threshold=0.5)).predict(even).abstained


def test_a_threshold_of_1_answers_nothing_however_sure_the_model_is() -> None:
    certain = plain(red=255, green=0)
    sure = colour_backend(temperature=0.01)
    assert Predictor(sure).predict(certain).probability == 1.0
    assert not Predictor(sure).predict(certain).abstained
    assert Predictor(colour_backend(temperature=0.01, threshold=1.0)).predict(certain).abstained


def test_a_photo_unlike_the_training_photos_is_reported(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (8, 8, 3)).astype(np.uint8) for _ in range(80)]
    known = fit_familiarity([figures(photo) for photo in noise[:60]], [figures(photo) for photo in noise[60:]])
    knowing = Predictor(colour_backend(familiarity=known.to_json()))
    assert knowing.predict(np.zeros((8, 8, 3), np.uint8)).unfamiliar
    unfamiliar = sum(knowing.predict(rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)).unfamiliar for _ in range(40))
    assert unfamiliar < 20
    assert Predictor(colour_backend()).predict(noise[0]).ood_score is None


def test_top_names_as_many_classes_as_there_are() -> None:
    predictor = Predictor(colour_backend())
    assert [label for label, _ in predictor.predict(plain(10, 20), top=1).top] == ["green"]
    assert [label for label, _ in predictor.predict(plain(10, 20), top=9).top] == ["green", "red"]
    with pytest.raises(ConfigError, match=r"expected a whole number of at least 1 for 'top'; got 0 \(int\); correct"):
        predictor.predict(plain(10, 20), top=0)


def test_path_text_bytes_array_and_pillow_image_give_one_answer(tmp_path: Path) -> None:
    path = colour_photo(tmp_path / "a.png", "green")
    predictor = Predictor(colour_backend())
    opened = Image.open(path)
    sources = [path, str(path), path.read_bytes(), np.asarray(Image.open(path)), opened]
    answers = [predictor.predict(source) for source in sources]
    assert answers == [answers[0]] * 5
    assert [result.prediction for result in predictor.predict_many(sources)] == answers


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_a_pillow_image_is_converted_as_its_file_is(tmp_path: Path, mode: str) -> None:
    image = Image.open(colour_photo(tmp_path / "a.png", "red")).convert(mode)
    if mode == "RGBA":
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    # In a TIFF a gradient would be a fourth band.
    path = tmp_path / ("b.png" if mode == "RGBA" else "b.tif")
    image.save(path)
    predictor = Predictor(colour_backend())
    assert predictor.predict(image) == predictor.predict(path)
    assert image.mode == mode


def test_a_pillow_image_is_turned_upright_as_its_file_is(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    striped = np.zeros((20, 60, 3), np.uint8)
    striped[:, 20:40, 1] = 200
    Image.fromarray(striped).save(tmp_path / "a.png", exif=exif)
    opened = Image.open(tmp_path / "a.png")
    assert np.array_equal(np.asarray(read_source(opened)), np.asarray(read_source(tmp_path / "a.png")))
    assert read_source(opened).size == (20, 60)
    assert opened.size == (60, 20)


def test_a_pillow_image_that_cannot_be_decoded_is_a_photo_error(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    message = "expected a readable photo; got a Pillow image of mode RGB"
    with Image.open(path) as damaged, pytest.raises(PhotoError, match=message):
        Predictor(colour_backend()).predict(damaged)
    with pytest.raises(
        PhotoError, match=r"got a Pillow image of mode F \(32-bit grey values, whose range is unknown\)"
    ):
        Predictor(colour_backend()).predict(Image.new("F", (4, 4)))
    with pytest.raises(PhotoError, match=r"got a Pillow image of mode L \(without pixels\)"):
        Predictor(colour_backend()).predict(Image.new("L", (0, 4)))


@pytest.mark.parametrize(
    ("array", "remedy"),
    [
        (np.zeros((4, 4), np.uint8), "np.stack([photo] * 3, axis=-1)"),
        (np.zeros((4, 4, 4), np.uint8), "photo[..., :3]"),
        (np.zeros((3, 4, 4), np.uint8), "np.moveaxis(photo, 0, -1)"),
        (np.zeros((4, 4, 3), np.float32), "(255 * photo).astype(np.uint8)"),
        (np.zeros((4, 4, 3), np.int64), "convert it to this shape and dtype"),
        (np.zeros((0, 4, 3), np.uint8), "pass an array with pixels"),
        (np.zeros((2, 4, 4, 3), np.uint8), "predict_many"),
    ],
)
def test_an_array_that_is_no_rgb_photo_is_refused_with_what_makes_it_one(array: np.ndarray, remedy: str) -> None:
    message = r"expected an RGB array of shape \(H, W, 3\) and dtype uint8; got \(\d, 4.*" + re.escape(remedy)
    with pytest.raises(PhotoError, match=message):
        Predictor(colour_backend()).predict(array)


@pytest.mark.parametrize(
    ("value", "got"),
    [
        (None, "None; pass one of these"),
        (3, r"3 \(int\); pass one of these"),
        (1.5, r"1.5 \(float\)"),
        (["a.jpg"], "a list of 1; pass several photos to predict_many"),
        (object(), "a value of type object"),
    ],
)
def test_what_is_no_photo_is_refused_alone_and_is_an_error_among_many(value: Any, got: str) -> None:
    predictor = Predictor(colour_backend())
    with pytest.raises(PhotoError, match=f"expected a photo as a path .* or a Pillow image; got {got}"):
        predictor.predict(value)
    good, bad = predictor.predict_many([plain(200, 0), value])
    assert good.prediction is not None
    assert re.search(f"; got {got}", str(bad.error))


@pytest.mark.parametrize("value", ["leaf.jpg", Path("leaf.jpg"), b"", plain(1, 2), Image.new("RGB", (4, 4))])
def test_one_photo_is_not_taken_for_many(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"expected a list of photos for 'sources'; got .*; put it into a list, or"):
        Predictor(colour_backend()).predict_many(value)


@pytest.mark.parametrize(
    ("sources", "options", "message"),
    [
        (None, {}, "expected a list of photos for 'sources'; got None; pass a list"),
        (7, {}, r"got 7 \(int\); pass a list"),
        ([], {"top": "2"}, r"a whole number of at least 1 for 'top'; got '2' \(str\)"),
        ([], {"top": True}, r"for 'top'; got True \(bool\)"),
        ([], {"batch_size": 0}, r"a whole number of at least 1 for 'batch_size'; got 0 \(int\)"),
    ],
)
def test_wrong_arguments_of_many_photos_end_at_the_call(sources: Any, options: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Predictor(colour_backend()).predict_many(sources, **options)


def test_a_bad_photo_raises_alone_and_is_a_result_among_many(tmp_path: Path) -> None:
    paths = [
        colour_photo(tmp_path / f"{number}.jpg", colour, number)
        for number, colour in enumerate(["red", "green", "red", "red", "green"])
    ]
    paths[1].write_text("no photo")
    paths[4] = tmp_path / "nowhere.jpg"
    predictor = Predictor(colour_backend())
    with pytest.raises(PhotoError, match="not a JPEG"):
        predictor.predict(paths[1])
    results = list(predictor.predict_many(paths, batch_size=2))
    assert [result.name for result in results] == [str(path) for path in paths]
    assert [result.prediction.label if result.prediction else None for result in results] == [
        "red",
        None,
        "red",
        "red",
        None,
    ]
    assert [result.error is None for result in results] == [True, False, True, True, False]
    assert "(not a JPEG" in str(results[1].error)
    assert "which does not exist" in str(results[4].error)


def test_a_batch_without_a_readable_photo_never_reaches_the_model() -> None:
    backend = colour_backend()
    results = list(Predictor(backend).predict_many([b"", b"x", plain(1, 2)], batch_size=2))
    assert [(result.name, result.prediction is None) for result in results] == [
        ("photo 1", True),
        ("photo 2", True),
        ("photo 3", False),
    ]
    assert backend.batch_sizes == [1]


def test_many_photos_are_answered_as_one_by_one() -> None:
    rng = np.random.default_rng(0)
    photos = [rng.integers(0, 256, (18, 22, 3), dtype=np.uint8) for _ in range(23)]
    predictor = Predictor(colour_backend())
    results = list(predictor.predict_many(photos, top=2, batch_size=5))
    expected = [
        PhotoResult(f"photo {n}", predictor.predict(photo, top=2), None) for n, photo in enumerate(photos, start=1)
    ]
    assert results == expected
    assert len({result.prediction.label for result in results if result.prediction}) == 2


def test_photos_are_taken_as_they_are_needed() -> None:
    taken = 0

    def endless() -> Iterator[np.ndarray]:
        nonlocal taken
        while True:
            taken += 1
            yield plain(1, 2)

    backend = colour_backend()
    results = Predictor(backend).predict_many(endless(), batch_size=4)
    for answered in range(1, 30):
        next(results)
        assert taken <= answered + 2 * 4 + 1
    assert max(backend.batch_sizes) == 4


def test_an_abandoned_stream_stops_its_threads() -> None:
    results = Predictor(colour_backend()).predict_many([plain(1, 2)] * 50, batch_size=2)
    next(results)
    assert any(thread.name.startswith("photo-reader") for thread in threading.enumerate())
    results.close()  # type: ignore[attr-defined]
    assert not any(thread.name.startswith("photo-reader") for thread in threading.enumerate())


class BrokenBackend:
    def __init__(self, manifest: Any, logits: list[list[float]]) -> None:
        self.manifest, self._logits = manifest, logits

    def logits(self, pixels: np.ndarray) -> np.ndarray:
        return np.array(self._logits, np.float32)


@pytest.mark.parametrize(
    ("logits", "message"),
    [
        (
            [[1.0, 2.0, 3.0]],
            r"expected logits of shape \(1, 2\); got \(1, 3\); check that the manifest belongs to the model",
        ),
        (
            [[math.nan, 1.0]],
            "expected finite logits; got NaN or infinity from the model; train or export the model again",
        ),
        ([[math.inf, 1.0]], "expected finite logits"),
    ],
)
def test_unusable_logits_are_an_error_and_no_answer(logits: list[list[float]], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        Predictor(BrokenBackend(colour_backend().manifest, logits)).predict(plain(1, 2))


def test_the_manifests_resize_rule_is_followed() -> None:
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40, 1] = 200
    wide[:, :20, 0] = wide[:, 40:, 0] = 200
    cropping, stretching = (colour_backend(preprocessing=Preprocessing(16, rule)) for rule in ("crop", "stretch"))
    assert Predictor(cropping).predict(wide).label == "green"
    assert Predictor(stretching).predict(wide).label == "red"


def test_folders_expand_to_their_photos_and_files_stay_as_named(tmp_path: Path) -> None:
    photos = [colour_photo(tmp_path / name, "red") for name in ("b/2.JPG", "b/1.png", "a/deep/3.webp")]
    (tmp_path / "b" / "notes.txt").write_text("no photo")
    colour_photo(tmp_path / "b" / ".hidden.jpg", "red")
    colour_photo(tmp_path / "b" / ".cache" / "4.jpg", "red")
    bare = tmp_path / "bare"
    photos[0].rename(bare)
    assert expand([bare, tmp_path / "b", tmp_path / "a"]) == [bare, photos[1], photos[2]]
    assert expand([tmp_path]) == sorted(photos[1:])


def test_a_path_that_gives_no_photos_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"expected photos or folders of photos; got '.*gone', which does not exist; check"
    ):
        expand([tmp_path / "gone"])
    with pytest.raises(DataError, match=r"expected a folder with photos; got '.*' without photos; pass another folder"):
        expand([tmp_path])


def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"expected a folder that can be read; got '.+' \(Permission denied\); change"):
        expand([tmp_path])


def test_an_exported_file_answers_many_photos_as_one_by_one_in_their_order() -> None:
    rng = np.random.default_rng(0)
    # Of different sizes, so that they are not ready in their order.
    sizes = [(1400, 1900) if number % 4 == 0 else (60, 80) for number in range(12)]
    photos = [rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes]
    predictor = agridistill.load("tomato", engine="onnxruntime")
    results = list(predictor.predict_many([*photos, b"no photo"], top=3))
    assert [result.prediction for result in results[:-1]] == [predictor.predict(photo, top=3) for photo in photos]
    assert "not a JPEG" in str(results[-1].error)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_two_iterations_over_photos_do_not_disturb_each_other(engine: str) -> None:
    pytest.importorskip(engine)
    photos = [np.random.default_rng(seed).integers(0, 256, (60, 80, 3), np.uint8) for seed in range(24)]
    predictor = agridistill.load("tomato", engine=engine)
    expected = [predictor.predict(photo) for photo in photos]
    both = zip(predictor.predict_many(photos), predictor.predict_many(photos[::-1]), strict=True)
    results = [(first.prediction, second.prediction) for first, second in both]
    assert results == list(zip(expected, expected[::-1], strict=True))


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_model_file_that_is_replaced_after_loading_is_not_used_with_the_old_manifest(
    engine: str, tmp_path: Path
) -> None:
    pytest.importorskip(engine)
    shipped = model_path(Path("tomato"))
    for suffix in (".onnx", ".json"):
        shutil.copy(shipped.with_suffix(suffix), tmp_path / f"leaf{suffix}")
    predictor = agridistill.load(tmp_path / "leaf.onnx", engine=engine)
    shutil.copy(next(file for file in shipped.parent.glob("*.onnx") if file.stem != shipped.stem), tmp_path / "new")
    (tmp_path / "new").rename(tmp_path / "leaf.onnx")
    with pytest.raises(ModelError, match="sha256"):
        list(predictor.predict_many([plain(1, 2)] * 9))


def test_the_copies_of_an_engine_compute_at_the_same_time() -> None:
    backend = agridistill.load("tomato", engine="onnxruntime").backend
    met = threading.Barrier(2, timeout=30)
    threads = set()

    class Copy:
        manifest = backend.manifest

        def logits(self, pixels: np.ndarray) -> np.ndarray:
            met.wait()  # breaks unless another thread computes as well
            threads.add(threading.get_ident())
            return backend.logits(pixels)

    class Engine(Copy):
        threads = 2

        def copies(self, number: int) -> list[Copy]:
            return [Copy() for _ in range(number)]

    assert len(list(Predictor(Engine()).predict_many([plain(1, 2)] * 4))) == 4
    assert len(threads) == 2
