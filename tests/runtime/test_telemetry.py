"""No engine reports to anybody, nor keeps an id of the machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_a_prediction_leaves_nothing_of_an_engines_maker(colour_model: Path, tmp_path: Path) -> None:
    # What could hide the id is left out.
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("ORT_", "XDG_"))}
    script = "import sys, agridistill; agridistill.load(sys.argv[1], engine='onnxruntime')"
    subprocess.run(
        [sys.executable, "-c", script, str(colour_model)],
        env=environment | {"HOME": str(tmp_path)},
        check=True,
    )
    assert not list(tmp_path.rglob("*onnxruntime*"))
