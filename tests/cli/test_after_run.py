"""Which command is proposed, and that it works: a usable model from `train` to a file that answers."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from tests.cli.running import Capture, run
from tests.colour_backend import colour_photo

from agridistill.cli import export
from agridistill.cli.output import next_command
from agridistill.evaluation.evaluate import EvaluationResult
from agridistill.evaluation.verdict import Level, ModelVerdict
from agridistill.export.forms import DeviceForm
from agridistill.training.run_folder import RunFolder

TINY = "mobilenetv3_small_050"
FAST = ["--image-size", "32", "--batch-size", "16", "--no-pretrained", "--workers", "0", "--precision", "fp32"]


def evaluation(folder: Path) -> EvaluationResult:
    return EvaluationResult.from_json(json.loads((folder / "evaluation.json").read_text()))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> bool:
    monkeypatch.setattr("agridistill.cli.train.gpu_at_hand", lambda: request.param)
    return bool(request.param)


@pytest.mark.parametrize(
    ("gpu", "recipe"),
    [
        (False, "[train]\n"),
        (True, "[train]\n"),  # the default student is larger than this network
        (False, '[train]\n[distill]\nmodel = "mobilenetv3_large_100"\n'),
    ],
    indirect=["gpu"],
)
def test_after_training_comes_the_export_without_a_gpu_or_a_smaller_student(
    student_run: Path, gpu: bool, recipe: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "r.toml").write_text(recipe)
    monkeypatch.setattr("agridistill.training.run.train", lambda *args, **options: RunFolder(student_run).read_result())
    monkeypatch.setattr("agridistill.cli.train.show_result", lambda *args, **options: ModelVerdict("usable", "Usable"))
    _, _, err = run(capsys, "train", "photos", "--recipe", tmp_path / "r.toml", "--out", student_run)
    assert f"Next: agridistill export {student_run} --out {student_run}.onnx --precision int8" in err.replace("\n", " ")


def test_a_network_that_cannot_be_rounded_is_exported_as_it_is(teacher_run: Path) -> None:
    words = export.export_of(teacher_run)
    assert words == ("export", teacher_run, "--out", teacher_run.with_name("teacher.onnx"))


def test_a_command_whose_extra_is_missing_is_proposed_with_it(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    next_command("export", "run", "--out", "leaf.onnx")
    next_command("predict", "leaf.onnx", "IMAGE")
    assert capsys.readouterr().err.splitlines() == [
        "Next: pip install 'agridistill[export]' && agridistill export run --out leaf.onnx",
        "Next: agridistill predict leaf.onnx IMAGE",
    ]


def test_a_verdict_reads_the_same_without_colours(capsys: Capture) -> None:
    verdict = ModelVerdict(
        "unusable", "Not usable: no better than [bold]chance", ("It never names '\x1b[2J'.",), ("Wait.",)
    )
    export.print_verdict(verdict)
    expected = "Not usable: no better than [bold]chance\n  It never names '\\x1b[2J'.\nWhat helps:\n  - Wait.\n"
    assert capsys.readouterr() == (expected, "")
    export.print_verdict(verdict, json=True)
    assert capsys.readouterr() == ("", expected)


@pytest.mark.slow
@pytest.mark.parametrize("gpu", [False], indirect=True)
def test_from_photos_to_a_file_that_answers_by_the_proposed_commands(
    gpu: bool, tmp_path: Path, capsys: Capture
) -> None:
    pytest.importorskip("onnxscript")
    for number in range(40):
        colour_photo(tmp_path / "photos" / "green" / f"{number}.jpg", "green", seed=number)
        colour_photo(tmp_path / "photos" / "red" / f"{number}.jpg", "red", seed=100 + number)
    words = ("train", tmp_path / "photos", "--model", TINY, "--epochs", 12, "--out", tmp_path / "leaf", *FAST)
    code, out, err = run(capsys, *words)
    assert code == 0
    assert "Usable: right on 100 % of new photos (95 % interval 76 to 100)" in out
    following = err.splitlines()[-1]
    assert following == f"Next: agridistill export {tmp_path / 'leaf'} --out {tmp_path / 'leaf.onnx'} --precision int8"
    code, _, err = run(capsys, *shlex.split(following)[2:], "--force")
    assert code == 0
    assert "Usable: it answers " in err
    following = err.splitlines()[-1]
    assert following == f"Next: agridistill predict {tmp_path / 'leaf.onnx'} IMAGE"
    code, out, err = run(capsys, "predict", tmp_path / "leaf.onnx", tmp_path / "photos" / "red" / "1.jpg")
    assert code == 0
    assert "red" in out
    assert err == f"Next: agridistill benchmark {tmp_path / 'leaf.onnx'}\n"


@pytest.mark.parametrize(("level", "proposed"), [("usable", True), ("weak", True), ("unusable", False)])
def test_a_teacher_is_proposed_for_the_device_only_where_it_is_usable(
    level: Level,
    proposed: bool,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
    leaves: Path,
    student_run: Path,
    tmp_path: Path,
) -> None:
    teacher = Path(shutil.copytree(student_run, tmp_path / "teacher"))
    monkeypatch.setattr(
        "agridistill.training.run.distill", lambda *args, **options: RunFolder(student_run).read_result()
    )
    forms = (DeviceForm(teacher, "a", 0.9, 100, 9.0, 4_000_000), DeviceForm(student_run, "b", 0.5, 100, 3.0, 3_000_000))
    monkeypatch.setattr("agridistill.cli.export.measure_forms", lambda *args, **options: forms)
    verdict = ModelVerdict(level, "Not usable: it guesses")
    monkeypatch.setattr("agridistill.cli.export.verdict_on_run", lambda run: verdict)
    code, _, err = run(capsys, "distill", leaves, "--teacher", teacher, "--out", tmp_path / "student", *FAST)
    assert code == 0, err
    assert (f"export {teacher}" in err.replace("\n", "")) == proposed
    assert ("but not usable: it guesses." in err) != proposed
