"""A path that is not there, an empty folder or a value out of range ends a command in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.cli.running import Capture, run


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("evaluate", "RUN", "DATA", "--map", "nowhere.toml"),
            "expected a file of class names; got 'nowhere.toml', which does",
        ),
        (("evaluate", "nowhere", "DATA"), "got 'nowhere', which does not exist; check the path"),
        (
            ("evaluate", "RUN", "nowhere"),
            "expected a folder of class folders; got 'nowhere', which does not exist; check the path",
        ),
        (("evaluate", "RUN", "EMPTY"), "expected at least two class folders with photos"),
        (("evaluate", "RUN", "DATA", "--splits", "nowhere.json"), "expected a split file; got no file 'nowhere.json'"),
        (("evaluate", "RUN", "DATA", "--split", "dev"), "error: "),
        (
            ("predict", "RUN", "nowhere.jpg"),
            "error: expected photos or folders of photos; got 'nowhere.jpg', which does not exist;",
        ),
        (("predict", "RUN", "EMPTY"), "without photos; pass another folder, or the photo files"),
        (("predict", "nowhere", "DATA"), "got 'nowhere', which does not exist; check the path"),
        (("predict", "RUN", "DATA", "--top", "0"), "error: "),
        (
            ("benchmark", "nowhere.onnx"),
            "got 'nowhere.onnx', which does not exist; check the path",
        ),
        (("benchmark", "MODEL", "--engine", "onnxruntim"), "got 'onnxruntim'; did you mean 'onnxruntime'?"),
        (("benchmark", "MODEL", "--photos", "nowhere"), "got 'nowhere', which does not exist; check the path"),
        (("benchmark", "MODEL", "--data", "nowhere"), "got 'nowhere', which does not exist; check the path"),
        (("benchmark", "MODEL", "--queries", "0"), "error: "),
    ],
)
def test_unusable_input_ends_in_one_line(
    teacher_run: Path,
    leaves: Path,
    colour_model: Path,
    tmp_path: Path,
    capsys: Capture,
    words: tuple[str, ...],
    message: str,
) -> None:
    (tmp_path / "empty").mkdir()
    named = {"RUN": teacher_run, "DATA": leaves, "EMPTY": tmp_path / "empty", "MODEL": colour_model}
    code, out, err = run(capsys, *(named.get(word, word) for word in words))
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.strip().splitlines()) == 1
