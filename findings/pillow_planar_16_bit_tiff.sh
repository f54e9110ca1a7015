#!/usr/bin/env bash
# Pillow 13.0.0: a TIFF of 16 bits a sample with separate planes (PlanarConfiguration 2) and no compression is decoded to
# wrong pixels without an error. Each byte is taken for a sample, so a plane is read from half of its bytes.
#
# The same picture with compressed planes, with 8 bits, or with interleaved samples is read rightly: those go through
# libtiff or a raw mode for 16 bits; this one goes through the raw mode "R" (8 bits). Nothing in the picture's mode or
# metadata tells the difference. GIS tools and tifffile's planarconfig="separate" write such files.
#
# Output seen (largest difference to the picture that was written, of 255):
#   interleaved, none: 1
#   separate, zlib: 1
#   separate, none: 247
#
# What it means for us: such files are refused (colour.py::stored_form).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "Pillow==13.0.0" "tifffile==2026.3.3" numpy
found=$(cd "$folder" && "$folder/venv/bin/python" - <<'P'
import numpy as np
import tifffile
from PIL import Image

ramp = np.linspace(0, 65535, 48 * 40).astype(np.uint16).reshape(40, 48)
pixels = np.stack([ramp, ramp[::-1], ramp[:, ::-1]], axis=-1)
for planes, compression in (("contig", None), ("separate", "zlib"), ("separate", None)):
    stored = pixels if planes == "contig" else np.moveaxis(pixels, -1, 0).copy()
    tifffile.imwrite("a.tif", stored, photometric="rgb", planarconfig=planes, compression=compression)
    read = np.asarray(Image.open("a.tif").convert("RGB"))
    difference = int(np.abs(read - pixels / 65535 * 255).max().round())
    print(f"{'interleaved' if planes == 'contig' else planes}, {compression or 'none'}: {difference}")
P
)
echo "$found"
expected="interleaved, none: 1
separate, zlib: 1
separate, none: 247"
[ "$found" = "$expected" ] || { echo "the behaviour has changed" >&2; exit 1; }
