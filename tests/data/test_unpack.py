from __future__ import annotations

import io
import stat
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

import pytest

from agridistill.data import fetch as module
from agridistill.data.fetch import list_files, unpack
from agridistill.errors import FetchError


def _zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def _tar(path: Path, files: dict[str, bytes], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def _tar_entry(path: Path, kind: bytes, link: str = "") -> Path:
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo("a.jpg")
        info.type = kind
        info.linkname = link
        archive.addfile(info)
    return path


def _zip_link(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        info = zipfile.ZipInfo("a.jpg")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    return path


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "target").mkdir()
    return tmp_path / "target"


def _unpack_all(archive: Path, target: Path) -> None:
    unpack(archive, target, {name: PurePosixPath(name) for name in list_files(archive)})


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz", "a.tar.xz"])
def test_chosen_files_are_unpacked_where_they_are_wanted(tmp_path: Path, target: Path, name: str) -> None:
    files = {"top/x/1.jpg": b"one", "top/x/2.jpg": b"two", "top/readme": b"no"}
    mode = {"a.tar": "w", "a.tar.gz": "w:gz", "a.tar.xz": "w:xz"}.get(name)
    archive = _tar(tmp_path / name, files, mode) if mode else _zip(tmp_path / name, files)
    seen: list[tuple[int, int]] = []
    places = {"top/x/1.jpg": PurePosixPath("x/1.jpg"), "top/x/2.jpg": PurePosixPath("y.jpg")}
    unpack(archive, target, places, progress=lambda done, total: seen.append((done, total)))
    found = {path.relative_to(target).as_posix(): path.read_bytes() for path in target.rglob("*") if path.is_file()}
    assert found == {"x/1.jpg": b"one", "y.jpg": b"two"}
    assert seen == [(1, 2), (2, 2)]


@pytest.mark.parametrize("pack", [_zip, _tar])
@pytest.mark.parametrize(
    "name",
    [
        *("../evil.jpg", "a/../../evil.jpg", "/etc/evil.jpg", "C:/evil.jpg"),
        *(
            "a\\..\\..\\evil.jpg",
            "..\\evil.jpg",
            "\\evil.jpg",
            "C:\\evil.jpg",
            "\\\\host\\share\\evil.jpg",
            "a/..\\../evil.jpg",
        ),
    ],
)
def test_an_archive_with_a_path_that_leads_out_is_refused(tmp_path: Path, target: Path, pack, name: str) -> None:
    archive = pack(tmp_path / "evil.archive", {"good.jpg": b"x", name: b"evil"})
    with pytest.raises(FetchError, match=r"expected an archive with relative paths and without '..'; got '.*evil.jpg'"):
        list_files(archive)
    # Also where only the harmless file is wanted.
    with pytest.raises(FetchError, match="relative paths"):
        unpack(archive, target, {"good.jpg": PurePosixPath("good.jpg")})
    assert not list(tmp_path.rglob("evil.jpg"))


@pytest.mark.parametrize(
    ("kind", "link"),
    [
        (tarfile.SYMTYPE, "/etc/passwd"),
        (tarfile.LNKTYPE, "/etc/passwd"),
        (tarfile.CHRTYPE, ""),
        (tarfile.FIFOTYPE, ""),
    ],
)
def test_links_and_devices_are_refused(tmp_path: Path, target: Path, kind: bytes, link: str) -> None:
    with pytest.raises(FetchError, match=r"without links and devices; got 'a.jpg' in 'evil.tar'"):
        _unpack_all(_tar_entry(tmp_path / "evil.tar", kind, link), target)
    assert not list(target.iterdir())


def test_a_link_in_a_zip_is_refused(tmp_path: Path, target: Path) -> None:
    with pytest.raises(FetchError, match=r"without links and devices; got 'a.jpg' in 'evil.zip'"):
        _unpack_all(_zip_link(tmp_path / "evil.zip"), target)


def test_a_bomb_is_stopped_at_the_limit_of_a_file(
    tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_FILE_BYTES", 2_000_000)
    archive = _zip(tmp_path / "bomb.zip", {"a.jpg": bytes(30_000_000)})
    assert archive.stat().st_size < 100_000
    with pytest.raises(FetchError, match=r"an archive within the size limits; got more than [0-9,]+ bytes in 'a.jpg'"):
        _unpack_all(archive, target)
    assert sum(path.stat().st_size for path in target.rglob("*")) <= 2_000_000


def test_a_bomb_that_lies_about_its_size_is_stopped_too(
    tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_FILE_BYTES", 2_000_000)
    content = bytes(3_000_000)
    archive = _zip(tmp_path / "bomb.zip", {"a.jpg": content})
    raw = archive.read_bytes().replace(len(content).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    archive.write_bytes(raw)
    with pytest.raises(FetchError):
        _unpack_all(archive, target)
    assert sum(path.stat().st_size for path in target.rglob("*")) <= 2_000_000


@pytest.mark.parametrize(
    ("limit", "enough", "little"),
    [
        ("MAX_TOTAL_BYTES", 300, 250),
        ("MAX_MEMBERS", 3, 2),
    ],
)
@pytest.mark.parametrize("pack", [_zip, _tar])
def test_archives_above_a_limit_are_refused(
    tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch, pack, limit: str, enough: int, little: int
) -> None:
    archive = pack(tmp_path / "large", {f"{number}.jpg": bytes(100) for number in range(3)})
    monkeypatch.setattr(module, limit, enough)
    _unpack_all(archive, target)
    monkeypatch.setattr(module, limit, little)
    with pytest.raises(FetchError, match="an archive within the size limits"):
        _unpack_all(archive, target / "again")


@pytest.mark.parametrize("share", [0.3, 0.9])
@pytest.mark.parametrize("pack", [_zip, _tar])
def test_a_cut_off_archive_is_told(tmp_path: Path, target: Path, pack, share: float) -> None:
    noise = bytes((number * 7919 + number // 251) % 256 for number in range(40_000))
    archive = pack(tmp_path / "cut", {f"{number}.jpg": noise[number:] for number in range(5)})
    archive.write_bytes(archive.read_bytes()[: int(archive.stat().st_size * share)])
    with pytest.raises(FetchError, match=r"expected an intact .zip or .tar archive; got 'cut'"):
        _unpack_all(archive, target)


def test_a_changed_byte_in_a_zip_is_told(tmp_path: Path, target: Path) -> None:
    archive = tmp_path / "changed.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("a.jpg", b"content" * 100)
    archive.write_bytes(archive.read_bytes().replace(b"contentcontent", b"contentCONTENT", 1))
    with pytest.raises(FetchError, match="CRC"):
        _unpack_all(archive, target)


def test_what_is_no_archive_is_told(tmp_path: Path) -> None:
    (tmp_path / "page.zip").write_text("<html>not found</html>")
    with pytest.raises(FetchError, match=r"an intact .zip or .tar archive; got 'page.zip'"):
        list_files(tmp_path / "page.zip")


def test_a_file_that_stands_twice_is_refused(tmp_path: Path, target: Path) -> None:
    archive = _tar(tmp_path / "twice.tar", {"a/1.jpg": b"x", "b/1.jpg": b"y"})
    with pytest.raises(FetchError, match=r"'1.jpg' twice"):
        unpack(archive, target, {"a/1.jpg": PurePosixPath("1.jpg"), "b/1.jpg": PurePosixPath("1.jpg")})


def test_an_encrypted_zip_is_refused(tmp_path: Path) -> None:
    archive = _zip(tmp_path / "locked.zip", {"a.jpg": b"x" * 50})
    raw = bytearray(archive.read_bytes())
    raw[raw.index(b"PK\x01\x02") + 8] |= 1
    archive.write_bytes(bytes(raw))
    with pytest.raises(FetchError, match="an archive without a password"):
        list_files(archive)


def test_a_zip_with_backslashes_is_unpacked_into_folders(tmp_path: Path, target: Path) -> None:
    archive = _zip(
        tmp_path / "windows.zip", {"top\\": b"", "top\\rust\\": b"", "top\\rust\\1.jpg": b"x", "top/2.jpg": b"y"}
    )
    assert list_files(archive) == ["top/rust/1.jpg", "top/2.jpg"]
    _unpack_all(archive, target)
    assert (target / "top" / "rust" / "1.jpg").read_bytes() == b"x"
    assert (target / "top" / "2.jpg").read_bytes() == b"y"


def test_one_file_by_slashes_and_by_backslashes_is_refused(tmp_path: Path, target: Path) -> None:
    archive = _zip(tmp_path / "twice.zip", {"a/1.jpg": b"x", "a\\1.jpg": b"y"})
    with pytest.raises(FetchError, match=r"'a/1.jpg' twice"):
        _unpack_all(archive, target)
