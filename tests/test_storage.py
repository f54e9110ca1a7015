import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from agridistill.errors import RunError
from agridistill.storage import json_text, only_one, replacing, require_writable, write_json, write_picture, write_text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_in_folders_that_are_made_for_it(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "b" / "c.txt", "grün\n")
    assert (tmp_path / "a" / "b" / "c.txt").read_bytes() == "grün\n".encode()
    assert names(tmp_path / "a" / "b") == ["c.txt"]


def test_the_old_content_stays_until_the_new_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    write_text(target, "old")
    with replacing(target) as temporary:
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize(
    "failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt(), ValueError()]
)
def test_a_failure_leaves_the_old_content_and_nothing_half_written(tmp_path: Path, failure: BaseException) -> None:
    target = tmp_path / "a.txt"
    write_text(target, "old")

    def write_half() -> None:
        with replacing(target) as temporary:
            temporary.write_text("ne")
            raise failure

    with pytest.raises(type(failure)):
        write_half()
    assert target.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_write_that_fails_says_where(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left") as failed, replacing(tmp_path / "a.txt"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert failed.value.filename == str(tmp_path / "a.txt")


def test_no_two_writers_share_a_temporary_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As on two hosts that share a folder.
    monkeypatch.setattr("os.getpid", lambda: 7)
    target = tmp_path / "a.txt"
    with replacing(target) as ours, replacing(target) as theirs:
        assert ours != theirs
        for temporary in (ours, theirs):
            assert temporary.name.startswith(".a.txt.")
            assert temporary.suffix == ".part"
            temporary.write_text(temporary.name)
    assert target.read_text() == ours.name
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("path", ["new.json", "a/b/new.json", "file.json"])
def test_a_file_that_can_be_written_is_let_through_and_nothing_is_made(tmp_path: Path, path: str) -> None:
    (tmp_path / "file.json").touch()
    require_writable(tmp_path / path)
    assert names(tmp_path) == ["file.json"]


@pytest.mark.parametrize(
    ("path", "folder", "message"),
    [
        ("folder", False, r"a file for --x; got the folder '.*folder'; choose another --x"),
        ("file", True, r"a folder for --x; got the file '.*file'; choose another --x"),
        ("file/a/b.json", False, r"a folder to write 'b.json' in; got the file '.*file'; choose another --x"),
        ("file/a/b", True, r"a folder to write 'b' in; got the file '.*file'; choose another --x"),
    ],
)
def test_what_cannot_be_written_is_told_beforehand(tmp_path: Path, path: str, folder: bool, message: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=message):
        require_writable(tmp_path / path, "--x", folder=folder)


@pytest.mark.needs("mount")
def test_a_place_that_may_not_be_written_is_told_beforehand(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    mounted = False
    if os.geteuid() == 0:  # whom no permission stops, but a read-only disk does
        mounted = not subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", place], check=False).returncode
        if not mounted:
            pytest.skip("mounting is not allowed here")
    else:
        place.chmod(0o500)
    try:
        for path, folder in ((place / "a" / "b.json", False), (place / "b", True), (place, True)):
            with pytest.raises(RunError, match=r"a writable folder for --out; got '.*place' without write permission"):
                require_writable(path, folder=folder)
    finally:
        if mounted:
            subprocess.run(["umount", "-l", place], check=True)
        place.chmod(0o700)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_what_is_no_json_is_refused_and_nothing_is_written(tmp_path: Path, number: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"value": number})
    assert names(tmp_path) == []


def test_json_is_readable_by_people_and_by_programs(tmp_path: Path) -> None:
    document = {"class": "gesund – grün", "counts": [1, 2], "unknown": None}
    write_json(tmp_path / "a.json", document)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == document
    assert "grün" in text
    assert text.endswith("}\n")


@pytest.mark.parametrize("path", [".", "..", "/"])
def test_a_path_without_a_file_name_is_no_file(path: str) -> None:
    with pytest.raises(IsADirectoryError) as caught:
        write_text(Path(path), "text")
    assert caught.value.filename == path


def test_json_carries_names_that_are_no_unicode() -> None:
    text = json_text({"photo": "bl\udce4tt.jpg", "class": "grün"})
    text.encode("utf-8")
    assert json.loads(text) == {"photo": "bl\udce4tt.jpg", "class": "grün"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_lock_goes_with_its_process_though_a_forked_one_lives_on(tmp_path: Path) -> None:
    script = (
        "import os, sys, time\nfrom pathlib import Path\nfrom agridistill.storage import only_one\n"
        "with only_one(Path(sys.argv[1]), 'test'):\n"
        # The forked one tells: its parent can be ready before it has run at all.
        "    if os.fork() == 0:\n        print(os.getpid(), flush=True)\n"
        "    time.sleep(30)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "lock")], stdout=subprocess.PIPE, start_new_session=True
    )
    try:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(RunError, match="only one process that uses the test"), only_one(tmp_path / "lock", "test"):
            pass
        process.kill()
        process.wait()
        with only_one(tmp_path / "lock", "test"):
            pass
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit for the size of a file")
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_picture_that_does_not_fit_on_the_disk_is_an_error(tmp_path: Path, kind: str) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    write_picture(Image.linear_gradient("L"), whole, kind, quality=90)
    with Image.open(whole) as opened:
        assert (opened.format, opened.size) == (kind, (256, 256))
    code = f"""
import resource
from pathlib import Path
from PIL import Image
from agridistill.storage import write_picture
Image.init()
resource.setrlimit(resource.RLIMIT_FSIZE, ({whole.stat().st_size - 1},) * 2)
try:
    write_picture(Image.linear_gradient("L"), Path({str(cut)!r}), {kind!r}, quality=90)
except OSError:
    raise SystemExit(3)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 3
