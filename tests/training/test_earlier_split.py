"""A split of an earlier run is used as it is, also where this version sees that it tears leaves apart."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from agridistill.data.prepare import prepare_data
from agridistill.data.split import Split, write_split
from agridistill.training.earlier import parted_beside
from agridistill.training.run_folder import RunFolder
from agridistill.training.settings import DataSettings


def _photo(seed: int) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (20, 20, 3), np.uint8)
    return Image.fromarray(coarse).resize((64, 64), Image.Resampling.BICUBIC)


def test_a_teachers_split_of_an_earlier_version_stays_and_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    photos, run = tmp_path / "photos", tmp_path / "run"
    for number in range(8):
        folder = photos / ("rust", "scab")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        _photo(number).save(folder / f"{number}.png")
    _photo(0).transpose(Image.Transpose.ROTATE_90).save(photos / "rust" / "again.png")
    prepared = prepare_data(photos)
    split = Split(
        ("rust/0.png", "rust/2.png", "scab/1.png", "scab/3.png"),
        ("rust/4.png", "scab/5.png"),
        ("rust/6.png", "rust/again.png", "scab/7.png"),
    )
    run.mkdir()
    write_split(run / "splits.json", split, seed=0, val_fraction=0.2, test_fraction=0.3, fingerprint="")
    (run / "environment.json").write_text(json.dumps({"data_fingerprint": prepared.fingerprint}))
    found = parted_beside({"the teacher": RunFolder(run)}, prepared, DataSettings())
    assert found.split == split
    assert "photos of the same leaf in several parts (leaves: 1; test photos of them: 1 of 3)" in caplog.text
