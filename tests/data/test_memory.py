"""Photos are read as they are needed: peak memory does not grow with their number."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.slow

EPOCH = """
import re, sys
from pathlib import Path
from agridistill.data.loader import PhotoDataModule, Viewing
from agridistill.data.prepare import prepare_data
from agridistill.data.views import Augmentation
from agridistill.manifest import Preprocessing
data = prepare_data(Path(sys.argv[1]))
viewing = Viewing(data.root, data.train, "", Preprocessing(32), Augmentation(), views=1)
module = PhotoDataModule(viewing, data.val, batch_size=16, seed=0, workers=0)
photos = sum(len(batch.target) for batch in module.train_dataloader())
# Not ru_maxrss: a new process inherits that of the process that started it.
print(photos, int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024)
"""


def folder_of(root: Path, photos: int) -> Path:
    """Two classes of links to twenty photos of 400 px, each 0.5 MB once it is decoded."""
    rng = np.random.default_rng(0)
    originals = []
    for number in range(20):
        path = root.parent / f"original{number}.jpg"
        if not path.exists():
            pixels = rng.integers(0, 256, (32, 32, 3), np.uint8)
            Image.fromarray(pixels).resize((400, 400), Image.Resampling.BICUBIC).save(path)
        originals.append(path)
    for label in ("a", "b"):
        (root / label).mkdir(parents=True)
    for number in range(photos):
        original = originals[number % 20]
        os.link(original, root / "ab"[number % 2] / f"{number}.jpg")
    return root


def peak_mb(root: Path) -> tuple[int, int]:
    done = subprocess.run([sys.executable, "-c", EPOCH, str(root)], capture_output=True, text=True, check=True)
    photos, megabytes = done.stdout.split()
    return int(photos), int(megabytes)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells a process its peak memory")
def test_reading_six_times_the_photos_needs_no_more_memory(tmp_path: Path) -> None:
    few, few_mb = peak_mb(folder_of(tmp_path / "few", 60))
    many, many_mb = peak_mb(folder_of(tmp_path / "many", 360))
    assert many > 5 * few
    # Kept in memory, the other photos would add 140 MB.
    assert many_mb - few_mb < 40
