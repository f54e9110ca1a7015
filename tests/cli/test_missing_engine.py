"""Where ONNX Runtime cannot be imported (musl, 32-bit, a library that is too new): one line, and no traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from agridistill.runtime.backends import model_path

_NOT_THERE = "raise ModuleNotFoundError('of the test', name='onnxruntime')"
_DOES_NOT_LOAD = "raise ImportError('libm.so.6: version GLIBC_2.38 not found')"
# Else it runs int8 files in the place of ONNX Runtime.
_WITHOUT_OPENVINO = """
import importlib.util
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "openvino" else find_spec(name, package)
"""


@pytest.mark.slow
@pytest.mark.parametrize("command", ["predict", "watch", "benchmark", "evaluate"])
@pytest.mark.parametrize(
    ("module", "got"),
    [(_NOT_THERE, "no module 'onnxruntime'"), (_DOES_NOT_LOAD, "libm.so.6: version GLIBC_2.38 not found")],
)
def test_without_onnx_runtime_a_command_is_one_line(command: str, module: str, got: str, tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    (tmp_path / "photos" / "a").mkdir(parents=True)
    Image.fromarray(pixels).save(tmp_path / "photos" / "a" / "1.jpg")
    words = {
        "predict": ["tomato", "photos"],
        "watch": ["photos", "--model", "tomato", "--state", "state", "--once"],
        "benchmark": [str(model_path("tomato").resolve())],
        "evaluate": ["tomato", "photos", "--nested"],
    }[command]
    # In place of the package, for the processes that a command starts as well.
    (tmp_path / "modules" / "onnxruntime").mkdir(parents=True)
    (tmp_path / "modules" / "onnxruntime" / "__init__.py").write_text(module)
    (tmp_path / "modules" / "sitecustomize.py").write_text(_WITHOUT_OPENVINO)
    paths = os.pathsep.join([str(tmp_path / "modules"), *sys.path])
    done = subprocess.run(
        [sys.executable, "-m", "agridistill", command, *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": paths},
    )
    (line,) = [each for each in " ".join(done.stderr.split()).split("error: ") if each.startswith("expected")]
    assert "Traceback" not in done.stderr
    assert done.returncode == 2, done.stderr
    assert line.startswith(f"expected ONNX Runtime, to run .onnx files; got {got}")
    assert "pip install onnxruntime, on 64-bit Linux with glibc, macOS or Windows" in line
