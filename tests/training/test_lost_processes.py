"""Where one of two processes fails, both end with one line and exit code 2."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from agridistill.errors import DataError, PeerError, RunError
from agridistill.teacher_cache.build import sync_errors
from agridistill.training.fit import require_share_for_each
from agridistill.training.module import DistillationModule
from agridistill.training.run import train
from agridistill.training.settings import DataSettings, FitSettings, TrainConfig

pytestmark = pytest.mark.slow

# Fails in the process FAIL_RANK at FAIL_AT, and notes every process's exit code.
SCRIPT = """
import os
from pathlib import Path

from agridistill.cli.main import main
from agridistill.data import loader
from agridistill.errors import RunError
from agridistill.teacher_cache import build
from agridistill.training import module

rank = os.environ.get("LOCAL_RANK", "0")


def full(*_):
    raise RunError("room for the teacher cache", "No space left on device", "free some space")


def gone(*_):
    os._exit(9)


def unreadable(self, batch, number, step=module.DistillationModule.validation_step):
    step(self, None, number)


def no_view(self, key, read=loader.PhotoDataset.__getitem__):
    return None if self.augmentation is not None else read(self, key)


if rank == os.environ["FAIL_RANK"]:
    if os.environ["FAIL_AT"] == "write":
        build.TeacherCache.write = full
    elif os.environ["FAIL_AT"] == "open":
        build.CachedTeacher._open = full
    elif os.environ["FAIL_AT"] == "photos":
        loader.PhotoDataset.__getitem__ = no_view
    elif os.environ["FAIL_AT"] == "validation":
        module.DistillationModule.validation_step = unreadable
    else:
        module.DistillationModule.training_step = gone
try:
    main()
except SystemExit as error:
    Path(os.environ["CODES"], rank).write_text(str(error.code))
    raise
"""
OPTIONS = [
    "--no-pretrained",
    *("--image-size", "64"),
    *("--epochs", "1"),
    # Two blocks, one for each process.
    *("--views", "2"),
    *("--batch-size", "16"),
    *("--workers", "0"),
    *("--precision", "fp32"),
    *("--devices", "2"),
]


def run(leaves: Path, teacher: Path, folder: Path, rank: int, at: str) -> tuple[int, list[str], dict[str, str]]:
    """Exit code, the lines on stderr, and the exit code of each process that ended by itself."""
    script, codes = folder / "failing.py", folder / "codes"
    script.write_text(SCRIPT)
    codes.mkdir()
    command = [sys.executable, str(script), "distill", str(leaves), "--teacher", str(teacher), "--out"]
    command += [str(folder / "out"), "--student", "mobilenetv3_small_050", "--cache-dir", str(folder / "cache")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "FAIL_RANK": str(rank), "FAIL_AT": at, "CODES": str(codes)}
    done = subprocess.run(
        [*command, *OPTIONS], capture_output=True, text=True, env=environment, check=False, timeout=300
    )
    return done.returncode, done.stderr.splitlines(), {path.name: path.read_text() for path in codes.iterdir()}


@pytest.mark.parametrize(("rank", "at"), [(1, "write"), (0, "open")])
def test_a_full_disk_in_one_process_is_reported_once_and_ends_both(
    leaves: Path, teacher_run: Path, tmp_path: Path, rank: int, at: str
) -> None:
    code, lines, codes = run(leaves, teacher_run, tmp_path, rank, at)
    assert code == 2, lines
    assert codes == {"0": "2", "1": "2"}
    errors = [line for line in lines if "error" in line.lower() or "Traceback" in line]
    assert errors == ["error: expected room for the teacher cache; got No space left on device; free some space"]


def test_a_process_that_vanishes_is_reported_in_one_line(leaves: Path, teacher_run: Path, tmp_path: Path) -> None:
    code, lines, codes = run(leaves, teacher_run, tmp_path, 1, "step")
    assert code == 2, lines
    assert codes == {"0": "2"}
    assert not [line for line in lines if "Traceback" in line]
    (error,) = [line for line in lines if line.startswith("error: ")]
    assert "expected all processes of this run to work until its end; got a lost connection to a process" in error


def test_a_process_without_a_readable_training_photo_ends_both(leaves: Path, teacher_run: Path, tmp_path: Path) -> None:
    code, lines, codes = run(leaves, teacher_run, tmp_path, 1, "photos")
    assert code == 2, lines
    assert codes["1"] == "2"
    assert not [line for line in lines if "Traceback" in line]
    assert "expected a readable photo in the batch of every process; got a batch without one" in "".join(lines)


def test_a_process_without_a_readable_validation_photo_keeps_step(
    leaves: Path, teacher_run: Path, tmp_path: Path
) -> None:
    code, lines, codes = run(leaves, teacher_run, tmp_path, 1, "validation")
    assert code == 0, lines
    assert codes == {"0": "0", "1": "0"}


@pytest.mark.parametrize(("train", "val", "named"), [(3, 9, "training"), (9, 3, "validation")])
def test_every_process_needs_a_photo(train: int, val: int, named: str) -> None:
    fit = FitSettings(devices=2, nodes=2, batch_size=8)
    require_share_for_each(fit, train=4, val=4)
    with pytest.raises(DataError, match=f"expected at least 4 {named} photos, one for each process; got 3; lower"):
        require_share_for_each(fit, train=train, val=val)


def test_too_few_photos_are_reported_before_anything_is_built(leaves: Path, tmp_path: Path) -> None:
    fit = FitSettings(model="mobilenetv3_small_050", devices=16, batch_size=32, pretrained=False)
    with pytest.raises(DataError, match="at least 16 validation photos"):
        train(leaves, tmp_path / "out", TrainConfig(data=DataSettings(image_size=64), train=fit))
    assert not (tmp_path / "out").exists()


def test_of_several_errors_the_first_process_tells_its_own() -> None:
    ours, theirs = ("here", "full", "free some"), ("there", "NaN", "train again")

    def first_fails() -> None:
        with sync_errors(lambda own: [own, theirs], 0):
            raise RunError(*ours)

    def second_fails() -> None:
        with sync_errors(lambda own: [ours, own], 1):
            raise ValueError("NaN")

    with pytest.raises(RunError, match="expected here; got full") as caught:
        first_fails()
    assert not isinstance(caught.value, PeerError)
    with pytest.raises(PeerError, match="expected here; got full"):
        second_fails()
    with pytest.raises(PeerError, match="expected there; got NaN"), sync_errors(lambda own: [own, theirs], 0):
        pass
    with sync_errors(lambda own: [own, None], 0):
        pass


def test_validation_photos_that_have_all_gone_bad_stop_the_run(
    leaves: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = DistillationModule.validation_step
    monkeypatch.setattr(DistillationModule, "validation_step", lambda self, batch, number: step(self, None, number))
    fit = FitSettings(model="mobilenetv3_small_050", epochs=1, batch_size=16, pretrained=False, workers=0)
    with pytest.raises(RunError, match="expected readable validation photos; got none"):
        train(leaves, tmp_path / "out", TrainConfig(data=DataSettings(image_size=64), train=fit))
