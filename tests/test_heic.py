"""Photos as iPhones save them: read with the extra `heic`, named with the remedy without it."""

from __future__ import annotations

import base64
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from agridistill.data.check import check
from agridistill.data.folder import scan
from agridistill.data.inspection import inspect_photo
from agridistill.edge.sources import SourceSettings
from agridistill.edge.sources.folder import FolderSource
from agridistill.errors import DataError, PhotoError
from agridistill.photo_files import READS_HEIC, how_to_read
from agridistill.preprocess import photo_cost, photo_size, read_photo
from agridistill.runtime.predictor import expand

without_heic = pytest.mark.skipif(READS_HEIC, reason="of an installation without pi-heif")

# 64 x 48, red and green below a blue strip, to be turned by EXIF's 6: upright it is 48 x 64, and blue is at the right.
HEIC = base64.b64decode(
    """
    AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAchtZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAAADRpbG9jAAAA
    AERAAAIAAQAAAAAB7AABAAAAAAAAAKcAAgAAAAACkwABAAAAAAAAACQAAAA4aWluZgAAAAAAAgAAABVpbmZlAgAAAAABAABodmMxAAAAABVpbmZl
    AgAAAQACAABFeGlmAAAAAA5waXRtAAAAAAABAAABB2lwcnAAAADmaXBjbwAAAHZodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH/
    /wNwAAADAJAAAAMAAAMAHroCQGEAAQAqQgEBA3AAAAMAkAAAAwAAAwAeoCCBBZbq5Ka5uAhoMCAAAAMDIAAAAwAhYgABAAZEAcFzwIkAAAATY29s
    cm5jbHgAAQANAAaAAAAAFGlzcGUAAAAAAAAAQAAAAEAAAAAoY2xhcAAAAEAAAAABAAAAMAAAAAEAAAAAAAAAAv////AAAAACAAAAEHBpeGkAAAAA
    AwgICAAAAAlpcm90AwAAABlpcG1hAAAAAAAAAAEAAQaBAgMFhIYAAAAaaXJlZgAAAAAAAAAOY2RzYwACAAEAAQAAANNtZGF0AAAAoygBrwngZ8Du
    yW//YJ/e9/O/9mUkIoQL8RNoeYGvS+PeRXJ8NXN96gT+lm+XRH0b1oGRge1bEVKhAMG4LHqqWO9APeRagKOqJSLdb5SaaCLy3w2SnkVpOsRHAt+u
    DGhxj4AMwuBH8Rag/wFEyQ/kzs/AQFVpHuJtdwFp9apjPNgbowS7h5Gv4cNJflJcRn+NDa8PSwjy/NjtX1rvrez4iR8jy80AAAAGRXhpZgAATU0A
    KgAAAAgAAQESAAMAAAABAAYAAAAAAAA=
    """
)


def with_size(width: int, height: int) -> bytes:
    """The photo with another size of its picture; what is cut out of it, and named as its size, stays 64 x 48."""
    place = HEIC.index(b"ispe") + 8
    return HEIC[:place] + struct.pack(">II", width, height) + HEIC[place + 8 :]


@pytest.mark.needs("heic")
@pytest.mark.parametrize("name", ["a.heic", "a.HEIF", "a.hif", "a.jpg"])
def test_a_heic_photo_is_read_upright_by_its_content(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(HEIC)
    for source in (path, HEIC):
        image = read_photo(source)
        assert (image.size, image.mode) == ((48, 64), "RGB")
        pixels = np.asarray(image, np.int16)
        for place, colour in (((4, 4), (200, 30, 30)), ((60, 4), (30, 180, 40)), ((32, 44), (20, 30, 200))):
            assert np.abs(pixels[place] - colour).max() <= 8
    assert photo_size(path) == (48, 64)
    record = inspect_photo(path)
    assert (record.width, record.height, record.error) == (48, 64, None)


@pytest.mark.needs("heic")
def test_heic_photos_are_found_in_all_kinds_of_folders(tmp_path: Path) -> None:
    for name in ("rust/1.heic", "scab/2.HEIC"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(HEIC)
    assert [sample.path for sample in scan(tmp_path).samples] == ["rust/1.heic", "scab/2.HEIC"]
    assert len(expand([tmp_path])) == 2
    source = FolderSource(tmp_path, SourceSettings(), lambda identity: False, settle_s=0)
    source.open()
    frame = source.read(5)
    source.close()
    assert frame is not None
    assert frame.pixels.shape == (64, 48, 3)


@pytest.mark.needs("heic")
def test_the_limits_hold_for_heic(tmp_path: Path) -> None:
    with pytest.raises(PhotoError, match="with 48,000,000 pixels in 695 bytes, a decompression bomb"):
        read_photo(with_size(8000, 6000))
    assert photo_cost(with_size(8000, 6000)) == (48, 64, 48_000_000)
    with pytest.raises(PhotoError, match=r"at most 178,956,970 pixels"):
        read_photo(with_size(20_000, 20_000))
    with pytest.raises(PhotoError, match="a readable photo"):
        read_photo(with_size(16, 12))  # its content is larger than its header says
    with pytest.raises(PhotoError, match="a readable photo"):
        read_photo(HEIC[: len(HEIC) // 2])
    path = tmp_path / "large.heic"
    path.write_bytes(with_size(20_000, 20_000))
    assert "400,000,000" in str(inspect_photo(path).error)


@without_heic
def test_without_the_extra_a_heic_photo_is_named_with_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"  # as some programs name it
    path.write_bytes(HEIC)
    for source in (path, HEIC):
        for read in (read_photo, photo_size, photo_cost):
            with pytest.raises(PhotoError, match=r"a HEIC photo, which needs pip install 'agridistill\[heic\]'"):
                read(source)
    assert inspect_photo(path).error == "a HEIC photo, which needs pip install 'agridistill[heic]'"
    assert how_to_read(["a/1.txt", "a/1.HEIC"]) == "to read HEIC photos, run pip install 'agridistill[heic]'"


@pytest.mark.parametrize("suffix", [".mpo", ".jfif", ".jpe", ".jpg"])
def test_of_a_photo_of_two_the_first_is_read(tmp_path: Path, suffix: str) -> None:
    first, second = (Image.new("RGB", (40, 30), colour) for colour in ("red", "blue"))
    path = tmp_path / f"a{suffix}"
    first.save(path, "MPO", save_all=True, append_images=[second])
    assert [found.name for found in expand([tmp_path])] == [path.name]
    image = read_photo(path)
    assert image.size == (40, 30)
    assert np.abs(np.asarray(image, np.int16) - (254, 0, 0)).max() <= 4


@without_heic
def test_without_the_extra_folders_of_heic_photos_are_told_with_the_remedy(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("rust/1.heic", "scab/2.HEIC"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(HEIC)
    with pytest.raises(DataError, match=r"1 \.heic\); to read HEIC photos, run pip install"):
        scan(tmp_path)
    with pytest.raises(DataError, match=r"2 \.heic\); to read HEIC photos, run pip install"):
        expand([tmp_path])
    for name in ("rust/1.jpg", "scab/2.jpg"):
        Image.new("RGB", (40, 30)).save(tmp_path / name)
    expand([tmp_path])
    problems = check(tmp_path).problems
    for text in (caplog.text, problems[0]):
        assert "2 files that are not photos (2 .heic), the first " in text
        assert text.strip().endswith("; to read HEIC photos, run pip install 'agridistill[heic]'")
