#!/usr/bin/env bash
# Pillow 13.0.0 resizes some tall pictures column by column first, then row by row; Pillow 12.0.0 always rows first.
# Each pass rounds to 8 bits, so the same picture gives other pixels (by up to 3 levels on noise) after an upgrade. What a
# network sees of a tall photo thus depends on Pillow's version. Wide pictures are equal in both.
# Output seen: "tall: differ, at most 3 levels; wide: equal"
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
for version in 12.0.0 13.0.0; do
  python3 -m pip install --quiet --target "$folder/$version" "pillow==$version" "numpy==2.3.5"
  PYTHONPATH="$folder/$version" python3 - "$folder/$version.npz" <<'PYTHON'
import sys
import numpy as np
from PIL import Image
rng = np.random.default_rng(0)
def resized(height, width):
    picture = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    return np.asarray(picture.resize((64, 64), Image.Resampling.BICUBIC))
np.savez(sys.argv[1], tall=resized(400, 100), wide=resized(100, 400))
PYTHON
done
PYTHONPATH="$folder/12.0.0" python3 - "$folder" <<'PYTHON'
import sys
import numpy as np
old, new = (np.load(f"{sys.argv[1]}/{version}.npz") for version in ("12.0.0", "13.0.0"))
gap = {name: int(np.abs(old[name].astype(int) - new[name]).max()) for name in ("tall", "wide")}
print(f"tall: differ, at most {gap['tall']} levels; wide: {'equal' if not gap['wide'] else 'differ'}")
assert gap == {"tall": 3, "wide": 0}, gap
PYTHON
