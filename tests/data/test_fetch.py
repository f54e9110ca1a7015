from __future__ import annotations

import errno
import functools
import hashlib
import io
import json
import re
import tarfile
import threading
import zipfile
from collections.abc import Iterator, Sequence
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from agridistill.data import datasets
from agridistill.data import fetch as module
from agridistill.data.datasets import DATASETS, TOMATO_CLASSES, Dataset
from agridistill.data.fetch import FetchResult, fetch_dataset
from agridistill.data.folder import Sample, scan
from agridistill.data.inspection import inspect_photos
from agridistill.data.leaf_ids import assign_leaf_ids
from agridistill.errors import FetchError

UUID = "1a69b38b-c4eb-42c4-9584-bcb14fb8db0c___"


def fetch_tomatoes(out: Path, **options: Any) -> FetchResult:
    return fetch_dataset(DATASETS["plantvillage-tomato"], out, **options)


@functools.cache
def _jpeg(seed: int) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((24, 24)).save(file, "JPEG")
    return file.getvalue()


def _photos(prefix: str, classes: Sequence[str] = TOMATO_CLASSES, each: int = 2) -> dict[str, bytes]:
    return {
        f"{prefix}{name}/{UUID}RS_HL {number}.JPG": _jpeg(label * 10 + number)
        for label, name in enumerate(classes)
        for number in range(each)
    }


def _zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def _tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


class _QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Keeps the test's output clean."""


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and the address under which its files are served."""
    folder = tmp_path / "served"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_QuietHandler, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def _left_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("prefix", ["", "tomato/", "PlantVillage-Dataset-master/raw/color/"])
@pytest.mark.parametrize("pack", [_zip, _tar])
def test_class_folders_at_any_depth_become_a_data_folder(tmp_path: Path, prefix: str, pack) -> None:
    archive = pack(tmp_path / "a.archive", _photos(prefix))
    result = fetch_tomatoes(tmp_path / "data", source=str(archive))
    folder = scan(tmp_path / "data")
    assert folder.classes == TOMATO_CLASSES
    assert len(folder.samples) == result.photos == 20
    assert result.archive_sha256 == hashlib.sha256(archive.read_bytes()).hexdigest()
    assert (result.classes, result.unreadable, result.has_leaf_map) == (10, (), False)
    assert _left_in(tmp_path) == {"a.archive", "data"}


def test_of_the_public_repository_only_colour_photos_of_tomatoes_are_taken(tmp_path: Path) -> None:
    top = "PlantVillage-Dataset-master/"
    files = {
        **_photos(top + "raw/color/"),
        **_photos(top + "raw/grayscale/"),
        **_photos(top + "raw/segmented/"),
        **_photos(top + "raw/color/", ["Apple___Apple_scab"]),
        **_photos("__MACOSX/raw/color/"),
        **_photos(top + "samples/", TOMATO_CLASSES[:2]),
        f"{top}raw/color/Tomato___healthy/svn-r6Yb5c": b"",
        f"{top}raw/color/Tomato___healthy/._hidden.jpg": b"x",
        f"{top}leaf-map.json": json.dumps({"rs_hl 0": ["Tomato___healthy:::1.0"]}).encode(),
        f"{top}leaf_grouping/leaf-map.json": b"not this one",
        f"{top}README.md": b"# PlantVillage",
    }
    result = fetch_tomatoes(tmp_path / "data", source=str(_zip(tmp_path / "master.zip", files)))
    assert _left_in(tmp_path / "data") == {*TOMATO_CLASSES, "leaf-map.json"}
    assert scan(tmp_path / "data").non_photo_files == ()
    assert (result.photos, result.has_leaf_map) == (20, True)


def test_grey_and_segmented_photos_are_not_taken_for_the_data_set(tmp_path: Path) -> None:
    other = {**_photos("raw/grayscale/"), **_photos("raw/segmented/")}
    for name, files in (("grey", _photos("raw/grayscale/")), ("both", other)):
        with pytest.raises(FetchError, match=f"got none of them in '{name}.zip'"):
            fetch_tomatoes(tmp_path / name, source=str(_zip(tmp_path / f"{name}.zip", files)))
    archive = _zip(tmp_path / "mine.zip", {**_photos("mine/"), **other})
    assert fetch_tomatoes(tmp_path / "data", source=str(archive)).photos == 20


def test_a_download_is_verified_unpacked_and_cleared_away(tmp_path: Path, served: tuple[Path, str]) -> None:
    folder, address = served
    archive = _zip(folder / "tomato.zip", _photos("raw/color/"))
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    result = fetch_tomatoes(tmp_path / "data", source=f"{address}/tomato.zip#sha256={digest}")
    assert result.source == f"{address}/tomato.zip"
    assert result.photos == len(scan(tmp_path / "data").samples) == 20
    assert _left_in(tmp_path) == {"served", "data"}
    assert json.loads(json.dumps(result.to_json()))["archive_sha256"] == digest


def test_a_download_with_another_sha256_leaves_nothing(tmp_path: Path, served: tuple[Path, str]) -> None:
    folder, address = served
    _zip(folder / "tomato.zip", _photos(""))
    with pytest.raises(FetchError, match="an archive with the sha256 aaaaaaaaaaaa…"):
        fetch_tomatoes(tmp_path / "data", source=f"{address}/tomato.zip#sha256={'a' * 64}")
    assert _left_in(tmp_path) == {"served"}


def test_a_downloaded_page_that_is_no_archive_leaves_nothing(tmp_path: Path, served: tuple[Path, str]) -> None:
    folder, address = served
    (folder / "tomato.zip").write_text("<html>sign in</html>")
    with pytest.raises(FetchError, match=r"an intact .zip or .tar archive"):
        fetch_tomatoes(tmp_path / "data", source=f"{address}/tomato.zip")
    assert _left_in(tmp_path) == {"served"}


def test_a_missing_address_is_told(tmp_path: Path, served: tuple[Path, str]) -> None:
    with pytest.raises(FetchError, match="status 404"):
        fetch_tomatoes(tmp_path / "data", source=f"{served[1]}/none.zip")
    assert _left_in(tmp_path) == {"served"}


def test_a_local_archive_with_another_sha256_is_refused_and_kept(tmp_path: Path) -> None:
    archive = _zip(tmp_path / "a.zip", _photos(""))
    with pytest.raises(FetchError, match=r"an archive with the sha256 bbbbbbbbbbbb…; got .* of '.*a.zip'"):
        fetch_tomatoes(tmp_path / "data", source=f"{archive}#sha256={'b' * 64}")
    assert _left_in(tmp_path) == {"a.zip"}


def test_a_short_sha256_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="64 hex digits after '#sha256='; got 'abc'"):
        fetch_tomatoes(tmp_path / "data", source="a.zip#sha256=abc")


def test_a_folder_that_holds_something_is_not_touched(tmp_path: Path) -> None:
    archive = _zip(tmp_path / "a.zip", _photos(""))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine").write_text("x")
    with pytest.raises(FetchError, match=r"a new or empty folder; got '.*data', which is not empty"):
        fetch_tomatoes(tmp_path / "data", source=str(archive))
    assert _left_in(tmp_path / "data") == {"mine"}


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    result = fetch_tomatoes(tmp_path / "data", source=str(_zip(tmp_path / "a.zip", _photos(""))))
    assert result.photos == 20


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"readme.txt": b"x"}, "photos of the 10 classes of PlantVillage's tomatoes; got none of them in 'a.zip'"),
        (_photos("", ["Apple___healthy", "Apple___scab"]), "got none of them"),
        (_photos("", TOMATO_CLASSES[:8]), "got none of Tomato___Tomato_mosaic_virus, Tomato___healthy in 'a.zip'"),
        (
            {**_photos("train/"), **_photos("valid/")},
            "that holds the class folders of PlantVillage's tomatoes; got 2 such folders in 'a.zip' ('train' and",
        ),
        ({**_photos(""), "leaf-map.json": b"{"}, "an intact 'leaf-map.json'; got a damaged one in 'a.zip'"),
        ({**_photos(""), "leaf-map.json": b'{"rs_hl 0": [1]}'}, "got a damaged one in 'a.zip'; get the archive again"),
        ({**_photos(""), "Tomato___healthy/../../evil.jpg": b"x"}, "relative paths and without '..'"),
    ],
)
def test_wrong_content_is_told_and_leaves_nothing(tmp_path: Path, files: dict[str, bytes], message: str) -> None:
    with pytest.raises(FetchError) as raised:
        fetch_tomatoes(tmp_path / "data", source=str(_zip(tmp_path / "a.zip", files)))
    assert message in str(raised.value)
    assert _left_in(tmp_path) == {"a.zip"}


def test_a_few_unreadable_photos_are_named_and_many_are_an_error(tmp_path: Path) -> None:
    files = _photos("", each=4)
    bad = f"Tomato___healthy/{UUID}RS_HL 0.JPG"
    archive = _zip(tmp_path / "a.zip", {**files, bad: b"no photo"})
    assert fetch_tomatoes(tmp_path / "data", source=str(archive)).unreadable == (bad,)
    broken = {name: b"no photo" for name in files if "healthy" in name}
    archive = _zip(tmp_path / "b.zip", {**files, **broken})
    with pytest.raises(
        FetchError, match=r"at most 5% unreadable photos; got 4 of 40, the first 'Tomato___healthy/.*not a"
    ):
        fetch_tomatoes(tmp_path / "again", source=str(archive))
    assert not (tmp_path / "again").exists()


def test_a_bomb_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_FILE_BYTES", 1_000_000)
    archive = tmp_path / "bomb.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in {**_photos(""), "Tomato___healthy/bomb.jpg": bytes(5_000_000)}.items():
            opened.writestr(name, content)
    with pytest.raises(FetchError, match="an archive within the size limits"):
        fetch_tomatoes(tmp_path / "data", source=str(archive))
    assert _left_in(tmp_path) == {"bomb.zip"}


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_an_interrupt_or_a_full_disk_leaves_nothing(
    tmp_path: Path, served: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    folder, address = served
    _zip(folder / "tomato.zip", _photos(""))

    def fail(*_: object) -> int:
        raise failure

    monkeypatch.setattr(module, "_write", fail)
    with pytest.raises(type(failure)):
        fetch_tomatoes(tmp_path / "data", source=f"{address}/tomato.zip")
    assert _left_in(tmp_path) == {"served"}
    monkeypatch.undo()
    fetch_tomatoes(tmp_path / "data", source=f"{address}/tomato.zip")
    assert _left_in(tmp_path) == {"served", "data"}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("none.zip", "'none.zip', which does not exist"),
        (".", "the folder '.'"),
        ("ftp://host/a.zip", "starts with 'ftp:"),
    ],
)
def test_other_sources_are_told(tmp_path: Path, source: str, message: str) -> None:
    with pytest.raises(FetchError) as raised:
        fetch_tomatoes(tmp_path / "data", source=source)
    assert message in str(raised.value)
    assert _left_in(tmp_path) == set()


def test_the_folder_one_stands_in_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FetchError, match=r"ends with the name of a new folder; got '\.'"):
        fetch_tomatoes(Path(), source="none.zip")


def test_another_data_set_takes_one_row_and_the_names_of_its_leaves(
    tmp_path: Path, served: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def leaf_ids(root: Path, samples: Sequence[Sample], classes: Sequence[str]) -> dict[str, str]:
        """Files are named LEAF-SHOT.jpg."""
        names = {sample.path: sample.path.rpartition("/")[2] for sample in samples}
        return {path: f"bean {name.split('-')[0]}" for path, name in names.items() if "-" in name}

    folder, address = served
    names = ("healthy/7-1.jpg", "healthy/7-2.jpg", "healthy/8-1.jpg", "rust/9-1.jpg", "rust/9-2.jpg", "other/1.jpg")
    packed = _zip(folder / "beans.zip", {f"beans-1/{name}": _jpeg(100 + seed) for seed, name in enumerate(names)})
    sha256 = hashlib.sha256(packed.read_bytes()).hexdigest()
    row = Dataset(f"{address}/beans.zip", sha256, ("healthy", "rust"), leaf_ids, title="beans")
    monkeypatch.setattr(datasets, "DATASETS", {**DATASETS, "beans": row})
    fetched = fetch_dataset(row, tmp_path / "data")
    assert (fetched.photos, fetched.classes, fetched.archive_sha256) == (5, 2, sha256)
    scanned = scan(tmp_path / "data")
    samples = assign_leaf_ids(scanned, scanned.samples, inspect_photos(scanned))
    assert [sample.leaf_id for sample in samples] == ["bean 7", "bean 7", "bean 8", "bean 9", "bean 9"]


@pytest.mark.parametrize("dataset", DATASETS.values())
def test_addresses_name_a_commit_or_a_sha256(dataset: Dataset) -> None:
    assert dataset.sha256 is not None or re.search(r"/[0-9a-f]{40}\.(zip|tar\.gz)$", dataset.address)
