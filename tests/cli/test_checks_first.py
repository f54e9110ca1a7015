"""What can be known from names and paths is told before any photo is read or anything is computed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from agridistill.cli.main import main


@pytest.fixture(autouse=True)
def nothing_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whatever opens a photo, draws one or runs a network ends the test."""

    def too_late(*words: Any, **options: Any) -> None:
        raise AssertionError("work has begun")

    for name in ("data.inspection.inspect_photo", "runtime.predictor.read_photo", "data.drawn_leaves.draw_leaf"):
        monkeypatch.setattr(f"agridistill.{name}", too_late)
    monkeypatch.setattr("agridistill.data.fetch.download", too_late)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").touch()


def told(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    out, err = capsys.readouterr()
    assert ended.value.code == 2, err
    assert out == ""
    # Not the first line: `demo` says what it draws.
    (line,) = err.strip().splitlines()
    return line.removeprefix("error: ")


RUNS = {
    "train": ["train", "{data}", "--no-pretrained"],
    "distill": ["distill", "{data}", "--method", "ce", "--no-pretrained"],
    "compare": ["compare", "{data}", "--recipe", "compare"],
}
FOLDERS = {**RUNS, "demo": ["demo"]}
FILES = {
    "data split": ["data", "split", "{data}"],
    "evaluate": ["evaluate", "{model}", "{data}", "--split", "all"],
    "export": ["export", "{run}", "--data", "{data}"],
    "benchmark": ["benchmark", "{model}"],
}


@pytest.fixture
def words(leaves: Path, teacher_run: Path, colour_model: Path) -> Any:
    places = {"data": leaves, "run": teacher_run, "model": colour_model}
    return lambda command: [word.format(**places) for word in command]


@pytest.mark.parametrize("command", FOLDERS)
@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("file", "got the file 'file'; choose another --out"),
        ("file/run", "expected a folder to write 'run' in; got the file "),
    ],
)
def test_a_folder_that_cannot_be_made(
    capsys: pytest.CaptureFixture[str], words: Any, command: str, out: str, message: str
) -> None:
    assert message in told(capsys, *words(FOLDERS[command]), "--out", out)


@pytest.mark.parametrize("command", FILES)
@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("folder.onnx", "got the folder 'folder.onnx'; choose another --out"),
        ("file/x.onnx", "expected a folder to write 'x.onnx' in; got the file "),
    ],
)
def test_a_file_that_cannot_be_made(
    capsys: pytest.CaptureFixture[str], words: Any, tmp_path: Path, command: str, out: str, message: str
) -> None:
    (tmp_path / "folder.onnx").mkdir()
    line = told(capsys, *words(FILES[command]), "--out", out)
    assert message in line or "a new split file" in line


@pytest.mark.parametrize("command", [*RUNS, "data split"])
def test_results_among_the_photos(capsys: pytest.CaptureFixture[str], words: Any, leaves: Path, command: str) -> None:
    out = leaves / "runs" / "first"
    line = told(capsys, *words({**RUNS, **FILES}[command]), "--out", out)
    assert line == (
        f"expected --out outside the data folder, because each folder in it is a class; got '{out}' in '{leaves}'; "
        "choose another --out"
    )
    assert not (leaves / "runs").exists()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["evaluate", "{model}", "{data}", "--evidence", "file"], "expected a folder for --evidence; got the file"),
        (["evaluate", "{model}", "{data}", "--out", "{model}"], "a new file or an earlier result for --out; got '"),
        (["benchmark", "{model}", "--out", "file"], "got 'file', which is another file; choose another --out"),
        (["benchmark", "{model}", "--csv", "file"], "got 'file', which is another file; choose another --csv"),
        (["benchmark", "{model}", "--out", "a", "--csv", "./a"], "expected two files for --out and --csv; got 'a' for"),
        (["benchmark", "{model}", "--csv", "folder"], "expected a file for --csv; got the folder 'folder'"),
        (
            ["predict", "{model}", "{data}", "--explain-out", "file/x"],
            "expected a folder to write 'x' in; got the file",
        ),
        (["watch", "{data}", "--model", "{model}", "--plot", " "], "expected a plot's name for --plot; got ' '"),
        (["watch", "{data}", "--model", "{model}", "--app", "site"], "expected --page with --app; got --app alone"),
        (["report", "folder"], "expected a folder with compare.json or evaluation.json"),
        (
            ["train", "{data}", "--weights", "none.safetensors", "--out", "run"],
            "weights; got 'none.safetensors'",
        ),
        (["train", "{data}", "--weights", "folder", "--out", "run"], "pass a finished run"),
        (
            ["train", "{data}", "--splits", "none.json", "--out", "run"],
            "expected a split file; got no file 'none.json'",
        ),
        (
            ["distill", "{data}", "--teacher", "{run}", "--splits", "none.json", "--out", "run"],
            "expected a split file; got no file 'none.json'",
        ),
        (
            ["distill", "{data}", "--teacher", "{run}", "--cache-dir", "file", "--out", "run"],
            "expected a folder for --cache-dir; got the file 'file'",
        ),
        (
            ["distill", "{data}", "--teacher", "{run}", "--out", "{run}/student"],
            "expected --out outside the run folder of --teacher; got '",
        ),
        (["train", "{data}", "--weights", "{run}", "--out", "{run}/again"], "run folder of --weights; got '"),
        (["export", "{run}", "--splits", "none.json", "--out", "a.onnx"], "expected a split file; got no file"),
        (["compare", "{data}", "--recipe", "compare", "--splits", "none.json", "--out", "s"], "expected a split file"),
        (["data", "fetch", "plantvillage-tomato", "--out", "file/x"], "expected a folder to write 'x' in; got the"),
        (["data", "fetch", "plantvillage-tomato", "--out", "folder"], "expected a new or empty folder; got 'folder'"),
        (["train", "{data}", "--out", "folder"], "expected a new or empty folder; got 'folder'"),
    ],
)
def test_other_paths(capsys: pytest.CaptureFixture[str], words: Any, command: list[str], message: str) -> None:
    rest = ["--no-pretrained"] if command[0] in ("train", "distill") else []
    assert message in told(capsys, *words(command), *rest)


@pytest.mark.parametrize(
    ("out", "module", "extra"),
    [("a.onnx", "onnxscript", "export"), ("a.tflite", "litert_torch", "litert")],
)
def test_a_converter_that_is_not_installed(
    capsys: pytest.CaptureFixture[str],
    words: Any,
    monkeypatch: pytest.MonkeyPatch,
    out: str,
    module: str,
    extra: str,
) -> None:
    # As Python marks what cannot be imported.
    monkeypatch.setitem(sys.modules, module, None)
    line = told(capsys, *words(["export", "{run}", "--out", out]))
    assert f"no module '{module}'; pip install 'agridistill[{extra}]'" in line


def test_a_hidden_folder_of_the_photos_is_no_class(tmp_path: Path) -> None:
    from agridistill.data.folder import require_outside

    require_outside(tmp_path / ".runs" / "first", tmp_path)
    require_outside(tmp_path.parent / "run", tmp_path)
