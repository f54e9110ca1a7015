"""`agridistill export` as a user meets it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.cli.running import Capture, run


def test_it_tells_what_was_written_and_what_it_is_worth(student_run: Path, tmp_path: Path, capsys: Capture) -> None:
    code, out, err = run(capsys, "export", student_run, "--format", "onnx", "--out", tmp_path / "leaf", "--force")
    assert code == 0
    assert out == ""
    told = next(line for line in err.splitlines() if line.startswith(f"{tmp_path / 'leaf.onnx'}: "))
    assert "same answer on 100.0 %" in told
    # Two epochs taught its network nothing: no threshold reaches the target, so the best one is taken, with a warning.
    assert "answers no photo" not in told
    assert "warning: " in err
    assert "Not usable: " in err
    assert "Next:" not in err
    assert (tmp_path / "leaf.onnx").exists()

    before = (tmp_path / "leaf.onnx").read_bytes()
    code, out, err = run(capsys, "export", student_run, "--out", tmp_path / "leaf.onnx", "--force", "--json")
    assert code == 0
    document = json.loads(out)
    assert document["size_bytes"] == len(before)
    assert document["precision"] == "fp32"
    assert document["verdict"]["usable"] is False


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "leaf.tflite", "--format", "onnx"], "--format onnx writes .onnx files, not 'leaf.tflite'"),
        (["--out", ".", "--format", "onnx"], "expected a file name that ends in .onnx or .tflite; got '.'"),
        (["--out", "leaf.tflite", "--attention"], "expected an .onnx file for --attention; got 'leaf.tflite'"),
        (["--out", "leaf.pt"], "expected a file name that ends in .onnx or .tflite; got 'leaf.pt'"),
        (["--out", "leaf.onnx", "--data", "nowhere"], "'nowhere'"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    student_run: Path, capsys: Capture, words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, "export", student_run, *words)
    assert code == 2
    assert out == ""
    assert message in " ".join(err.split())
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_without_the_converter_the_error_names_the_extra(student_run: Path, tmp_path: Path) -> None:
    code = f"""
import sys
sys.modules["onnx"] = sys.modules["onnxscript"] = None
from agridistill.cli.main import main
main(["export", {str(student_run)!r}, "--out", {str(tmp_path / "leaf.onnx")!r}, "--force"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pip install 'agridistill[export]'" in done.stderr
    assert list(tmp_path.iterdir()) == []
