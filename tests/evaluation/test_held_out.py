import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from agridistill.data.drawn_leaves import CLASSES, draw_leaf
from agridistill.data.folder import scan
from agridistill.data.inspection import fingerprint, inspect_photos, phashes_of
from agridistill.data.likeness import write_learnt
from agridistill.data.split import Split, digests_of, write_split
from agridistill.errors import DataError, ModelError
from agridistill.evaluation.evaluate import evaluate_folder
from agridistill.evaluation.held_out import choose_photos

MakeBackend = Callable[..., Any]

OWN = Split(
    train=tuple(f"{colour}/{n}.jpg" for colour in ("green", "red") for n in range(6)),
    val=tuple(f"{colour}/{n}.jpg" for colour in ("green", "red") for n in (6, 7)),
    test=tuple(f"{colour}/{n}.jpg" for colour in ("green", "red") for n in (8, 9)),
)


def data_fingerprint(folder: Path) -> str:
    scanned = scan(folder)
    return fingerprint(scanned.classes, scanned.samples, inspect_photos(scanned))


def save_split(path: Path, split: Split) -> Path:
    write_split(path, split, seed=0, val_fraction=0.2, test_fraction=0.2, fingerprint="any")
    return path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return save_split(tmp_path / "run" / "splits.json", OWN).parent


@pytest.fixture
def trained(colour_backend: MakeBackend, colour_folder: Path) -> Any:
    """A model that was trained on the colour folder."""
    return colour_backend(lineage={"data_fingerprint": data_fingerprint(colour_folder)})


def chosen(backend: Any, data: Path, **options: Any) -> tuple[str, ...]:
    return tuple(sample.path for sample in choose_photos(backend.manifest, data, **options).samples)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_on_its_own_data_a_model_gets_the_split_that_it_was_trained_with(
    trained: Any, colour_folder: Path, run: Path, split: Any
) -> None:
    assert chosen(trained, colour_folder, split=split, own_split=run / "splits.json") == OWN.parts()[split]


def test_a_given_split_file_wins_and_what_the_model_learnt_from_is_told(
    trained: Any, colour_folder: Path, run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = save_split(tmp_path / "other.json", Split(OWN.test, OWN.val, OWN.train))
    paths = chosen(trained, colour_folder, split="test", split_file=other, own_split=run / "splits.json")
    assert paths == OWN.train
    assert caplog.messages == [
        "12 of these 12 photos are among those that the model was trained on: the result will be too high"
    ]


class TestExportedModels:
    """They have no split of their own beside them."""

    def test_all_photos_are_told_to_be_learnt(
        self, trained: Any, colour_folder: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        chosen(trained, colour_folder, split="all")
        assert [message.split(":")[0] for message in caplog.messages] == [
            "the model was trained on photos of this folder"
        ]

    def test_their_runs_split_is_known_and_another_one_told(
        self,
        colour_backend: MakeBackend,
        colour_folder: Path,
        run: Path,
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        lineage = {"data_fingerprint": data_fingerprint(colour_folder), "split_sha256": digests_of(OWN)}
        exported = colour_backend(lineage=lineage)
        assert chosen(exported, colour_folder, split="test", split_file=run / "splits.json") == OWN.test
        fewer = save_split(tmp_path / "fewer.json", Split(OWN.train[1:], OWN.val, OWN.test))
        assert chosen(exported, colour_folder, split="test", split_file=fewer) == OWN.test
        assert caplog.messages == []
        other = save_split(tmp_path / "other.json", Split(OWN.test, OWN.val, OWN.train))
        assert chosen(exported, colour_folder, split="test", split_file=other) == OWN.train
        assert len(caplog.messages) == 1
        assert "with another split" in caplog.messages[0]
        chosen(exported, colour_folder, split="train", split_file=other)
        assert len(caplog.messages) == 1


class TestPhotosThatAModelLearnt:
    """Known by their looks, wherever they lie."""

    @pytest.fixture
    def learnt(self, colour_folder: Path, tmp_path: Path) -> Path:
        scanned = scan(colour_folder)
        phashes = phashes_of(scanned.samples, inspect_photos(scanned))
        file = tmp_path / "model.learnt"
        write_learnt(file, data_fingerprint(colour_folder), [phashes[path] for path in OWN.train])
        return file

    def test_a_part_of_them_is_known_under_other_names(
        self, trained: Any, colour_folder: Path, learnt: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        for number, path in enumerate((*OWN.train[:3], *OWN.train[6:9], *OWN.test)):
            copy = tmp_path / "part" / Path(path).parent / f"other-{number}.jpg"
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(colour_folder / path, copy)
        chosen(trained, tmp_path / "part", split="all", learnt=learnt)
        assert caplog.messages == [
            "the model has learnt from at least 6 of these 10 photos (or their flipped, rotated or resized copies): "
            "the result will be too high; leave them out, or pass its run's splits.json as --splits"
        ]

    def test_flipped_and_turned_copies_are_known(
        self, trained: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        learnt, copies = tmp_path / "model.learnt", tmp_path / "copies"
        for number in range(14):
            leaf = np.random.default_rng((number, 0))
            copy = copies / ("green", "red")[number % 2] / f"{number}.png"
            copy.parent.mkdir(parents=True, exist_ok=True)
            draw_leaf("ringed_lesions", leaf, leaf, 128).save(copy)
        scanned = scan(copies)
        phashes = phashes_of(scanned.samples, inspect_photos(scanned))
        write_learnt(learnt, trained.manifest.lineage["data_fingerprint"], phashes.values())
        for path, turn in zip(sorted(phashes), 2 * list(Image.Transpose), strict=True):
            with Image.open(copies / path) as photo:
                turned = photo.transpose(turn)
            turned.save(copies / path)
        chosen(trained, copies, split="all", learnt=learnt)
        found = re.search(r"has learnt from at least (\d+) of these 14 photos", caplog.text)
        assert found is not None
        # Scaling rounds rows and columns in turn: a photo near a hash's limit may get another one.
        assert int(found[1]) >= 12

    def test_other_sizes_and_qualities_are_known(
        self, trained: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        learnt, copies = tmp_path / "model.learnt", tmp_path / "copies"
        for number in range(20):
            name = CLASSES[number % len(CLASSES)]
            leaf, shot = np.random.default_rng((number, 0)), np.random.default_rng((number, 1))
            copy = copies / ("green", "red")[number % 2] / f"{number}.jpg"
            copy.parent.mkdir(parents=True, exist_ok=True)
            draw_leaf(name, leaf, shot, 256).save(copy, quality=90)
        scanned = scan(copies)
        phashes = phashes_of(scanned.samples, inspect_photos(scanned))
        known = [path for path in phashes if int(Path(path).stem) < 10]
        write_learnt(learnt, trained.manifest.lineage["data_fingerprint"], [phashes[path] for path in known])
        for number, path in enumerate(phashes):
            with Image.open(copies / path) as photo:
                resized = photo.resize(((192, 192), (512, 512), (256, 256))[number % 3])
            resized.save(copies / path, quality=85)
        chosen(trained, copies, split="all", learnt=learnt)
        (message,) = caplog.messages
        found = re.match(r"the model has learnt from at least (\d+) of these 20 photos", message)
        assert found is not None
        # Of real photos about nine in ten; drawn leaves have less in them to be known by.
        assert 5 <= int(found[1]) <= 10

    def test_new_photos_need_no_warning(
        self,
        trained: Any,
        colour_photo: Callable[..., Path],
        learnt: Path,
        run: Path,
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        for colour, seed in (("green", 900), ("red", 901)):
            for number in range(3):
                colour_photo(tmp_path / "new" / colour / f"{number}.jpg", colour, seed=seed + 10 * number)
        # Names of photos that it learnt from, but other pictures.
        chosen(trained, tmp_path / "new", split="all", learnt=learnt, own_split=run / "splits.json")
        assert caplog.messages == []

    def test_a_folder_of_new_photos_alone_is_a_test(
        self, trained: Any, colour_folder: Path, colour_photo: Callable[..., Path], learnt: Path, tmp_path: Path
    ) -> None:
        new = tmp_path / "new"
        for colour, seed in (("green", 900), ("red", 901)):
            colour_photo(new / colour / "0.jpg", colour, seed=seed)
        result = evaluate_folder(trained, new, learnt=learnt)
        assert (result.split, result.photos) == ("all", 2)
        for split, file in (("val", learnt), ("test", None)):
            with pytest.raises(DataError, match=f"expected a '{split}' split"):
                evaluate_folder(trained, new, split=split, learnt=file)
        shutil.copy(colour_folder / OWN.train[0], new / "green" / "1.jpg")
        with pytest.raises(DataError, match="where the model has learnt from 1 of 3 photos; leave these out, pass"):
            evaluate_folder(trained, new, learnt=learnt)

    def test_the_held_out_photos_of_its_own_folder_need_no_warning(
        self, trained: Any, colour_folder: Path, learnt: Path, run: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        chosen(trained, colour_folder, split="test", split_file=run / "splits.json", learnt=learnt)
        chosen(trained, colour_folder, split="train", split_file=run / "splits.json", learnt=learnt)
        assert caplog.messages == []
        chosen(trained, colour_folder, split="all", learnt=learnt)
        assert "has learnt from at least 12 of these 20 photos" in caplog.text


def test_photos_that_a_split_file_does_not_name_are_reported(
    trained: Any, colour_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fewer = save_split(tmp_path / "fewer.json", Split(OWN.train, OWN.val, OWN.test[1:]))
    assert evaluate_folder(trained, colour_folder, split="all", split_file=fewer).photos == 19
    assert f"left out: 1 photo that the split file does not name, the first '{OWN.test[0]}'" in caplog.messages


def test_the_photos_of_one_class_alone_are_scored(
    colour_backend: MakeBackend, colour_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree(colour_folder / "red")
    result = evaluate_folder(colour_backend(), colour_folder, split="all", class_names={"rot": "red"})
    assert (result.photos, result.accuracy) == (10, 1.0)
    assert caplog.messages == ["not used: --map has lines for folders that do not exist: 'rot'"]


def test_a_photo_that_nobody_can_read_makes_no_other_split(
    colour_backend: MakeBackend, colour_folder: Path, run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (colour_folder / OWN.test[0]).write_bytes(b"no photo")
    readable = Split(OWN.train, OWN.val, OWN.test[1:])  # as the run wrote it down
    scanned = scan(colour_folder)
    found = inspect_photos(scanned)
    samples = [sample for sample in scanned.samples if sample.path != OWN.test[0]]
    lineage = {
        "data_fingerprint": fingerprint(scanned.classes, samples, found),
        "split_sha256": digests_of(readable),
    }
    exported = colour_backend(lineage=lineage)
    assert chosen(exported, colour_folder, split="test", split_file=run / "splits.json") == OWN.test[1:]
    assert caplog.messages == []
    other = save_split(run / "other.json", Split(OWN.test, OWN.val, OWN.train))
    chosen(exported, colour_folder, split="test", split_file=other)
    assert len(caplog.messages) == 1


def test_all_photos_of_its_own_data_are_told_to_flatter_the_model(
    trained: Any, colour_folder: Path, run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    result = evaluate_folder(trained, colour_folder, split="all", run=run)
    assert (result.photos, result.split, result.accuracy) == (20, "all", 1.0)
    assert "12 of these 20 photos are among those that the model was trained on" in caplog.text


def test_its_own_held_out_photos_need_no_warning(
    trained: Any, colour_folder: Path, run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        assert evaluate_folder(trained, colour_folder, run=run).photos == 4
    assert caplog.messages == []


def test_data_that_changed_since_the_training_has_no_split(trained: Any, colour_folder: Path, run: Path) -> None:
    shutil.copy(colour_folder / "green" / "0.jpg", colour_folder / "green" / "new.jpg")
    with pytest.raises(
        DataError,
        match=r"expected a 'test' split; got '.*', which is not the data that the model was trained on and has no "
        r"train/val/test folders; pass --splits FILE, or --split all for every photo",
    ):
        evaluate_folder(trained, colour_folder, run=run)
    assert chosen(trained, colour_folder, split_file=run / "splits.json") == OWN.test


def test_changed_data_with_the_names_of_training_photos_is_told(
    trained: Any, colour_folder: Path, run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (colour_folder / "green" / "9.jpg").unlink()
    assert len(chosen(trained, colour_folder, split="all", own_split=run / "splits.json")) == 19
    assert caplog.messages == [
        "12 of these 19 photos have the names of photos that the model was trained on: the result will be too high"
    ]


def test_a_model_that_lost_its_split_is_not_tested_on_its_own_data(
    trained: Any, colour_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        DataError, match=r"which the model was trained on, without the run's splits\.json; pass --splits FILE"
    ):
        evaluate_folder(trained, colour_folder, run=tmp_path)


def test_other_data_is_evaluated_in_full_when_asked(colour_backend: MakeBackend, colour_folder: Path) -> None:
    assert evaluate_folder(colour_backend(), colour_folder, split="all").photos == 20


def test_folders_of_train_val_and_test_are_a_split(
    colour_backend: MakeBackend, colour_photo: Callable[..., Path], tmp_path: Path
) -> None:
    for number, (split, colour) in enumerate((s, c) for s in ("train", "valid", "test") for c in ("green", "red")):
        colour_photo(tmp_path / "parted" / split / colour / "a.jpg", colour, seed=number)
    backend = colour_backend()
    assert chosen(backend, tmp_path / "parted", split="val") == ("valid/green/a.jpg", "valid/red/a.jpg")
    assert chosen(backend, tmp_path / "parted") == ("test/green/a.jpg", "test/red/a.jpg")
    assert len(chosen(backend, tmp_path / "parted", split="all")) == 6


def test_an_unreadable_photo_of_the_split_is_counted(
    colour_backend: MakeBackend, colour_folder: Path, run: Path
) -> None:
    (colour_folder / "red" / "8.jpg").write_bytes(b"")
    backend = colour_backend()
    for split, skipped in (("test", ("red/8.jpg: empty file",)), ("val", ())):
        result = evaluate_folder(backend, colour_folder, split=split, split_file=run / "splits.json")  # type: ignore[arg-type]
        assert result.skipped_photos == skipped
    assert evaluate_folder(backend, colour_folder, split="all").skipped == 1


def test_other_classes_are_told_before_the_photos_are_read(colour_backend: MakeBackend, colour_folder: Path) -> None:
    steps: list[tuple[int, int]] = []
    (colour_folder / "red").rename(colour_folder / "blue")
    with pytest.raises(ModelError, match="expected photos of classes that the model knows; got 'blue'; known: green"):
        evaluate_folder(colour_backend(), colour_folder, split="all", progress=lambda *step: steps.append(step))
    # An export and a teacher need all of their classes.
    with pytest.raises(ModelError, match="'red' in the model only and 'blue' in the data only"):
        choose_photos(colour_backend().manifest, colour_folder, progress=lambda *step: steps.append(step))
    assert steps == []


def test_photos_of_one_leaf_widen_the_interval(
    colour_backend: MakeBackend, colour_folder: Path, tmp_path: Path
) -> None:
    for colour in ("green", "red"):
        for number in range(10):
            # Identical files are one leaf.
            shutil.copy(colour_folder / colour / f"{number}.jpg", colour_folder / colour / f"{number} copy.jpg")
    result = evaluate_folder(colour_backend(), colour_folder, split="all")
    assert (result.photos, result.leaves) == (40, 20)
    assert result.accuracy_ci95.low == pytest.approx(20 / (20 + 1.959964**2))


def test_files_that_are_no_photos_are_told_once(
    trained: Any, colour_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("red/a.dng", "red/b.dng", "green/Thumbs.db", "green/@eaDir/1.jpg/SYNOFILE_THUMB_M.jpg"):
        (colour_folder / name).parent.mkdir(parents=True, exist_ok=True)
        (colour_folder / name).write_bytes(b"x")
    evaluate_folder(trained, colour_folder, split="all")
    told = [record.getMessage() for record in caplog.records if "not photos" in record.getMessage()]
    assert told == ["left out: 2 files that are not photos (2 .dng), the first 'red/a.dng'"]


@pytest.mark.parametrize(
    ("folders", "classes"),
    [
        (("z-vert", "e\u0301carlate"), ("z-vert", "\u00e9carlate")),
        # Sorted by their composed names, these folders come in another order than the model's classes.
        (("e\u0301meraude", "rouge"), ("e\u0301meraude", "rouge")),
    ],
)
def test_names_that_differ_in_normal_form_alone_are_one_class(
    colour_backend: MakeBackend, colour_folder: Path, folders: tuple[str, str], classes: tuple[str, str]
) -> None:
    folder = colour_folder.with_name("mac")
    for colour, name in zip(("green", "red"), folders, strict=True):
        shutil.copytree(colour_folder / colour, folder / name)
    result = evaluate_folder(colour_backend(classes=classes), folder, split="all")
    assert (result.accuracy, result.classes) == (1, classes)
