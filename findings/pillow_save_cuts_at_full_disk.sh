#!/usr/bin/env bash
# Pillow 13.0.0, Linux: Image.save to a path reports success for a JPEG, BMP or TIFF whose end did not fit on the disk.
#
# For these formats the encoder writes to the file's descriptor itself and does not look at how many bytes were written.
# If the disk ends in the last block, the file is cut, and no exception says so. PNG and WebP, which are written through
# the Python file object, raise OSError, as does a plain write of the same bytes.
#
# Output seen (the limit is 100 bytes below the size of the file):
#   jpeg: saved, 100 bytes missing
#   bmp: saved, 100 bytes missing
#   tiff: saved, 100 bytes missing
#   png: OSError 27
#   webp: OSError 27
#   plain write: OSError 27
#
# A file-size limit stands in for the full disk: it needs no root, and the system cuts the same call short.
# What it means for us: pictures that stay are encoded in memory and written by Python
# (storage.py::write_picture); tests/test_storage.py has the limit.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "Pillow==13.0.0"
found=$(cd "$folder" && "$folder/venv/bin/python" - <<'P'
import os
import resource

from PIL import Image

image = Image.effect_noise((64, 64), 50)
SHORT = 100


def limited(size, write):
    """Runs `write` where a file may have `size` bytes; returns the number of the error, or None."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    try:
        write()
    except OSError as error:
        return error.errno
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return None


def plain_write(content):
    with open("cut.bin", "wb") as file:
        file.write(content)


for kind in ("jpeg", "bmp", "tiff", "png", "webp"):
    image.save(f"whole.{kind}")
    size = os.path.getsize(f"whole.{kind}")
    number = limited(size - SHORT, lambda: image.save(f"cut.{kind}"))
    missing = size - os.path.getsize(f"cut.{kind}") if number is None else 0
    print(f"{kind}: " + (f"saved, {missing} bytes missing" if number is None else f"OSError {number}"))
with open("whole.jpeg", "rb") as file:
    content = file.read()
print(f"plain write: OSError {limited(len(content) - SHORT, lambda: plain_write(content))}")
P
)
echo "$found"
expected="jpeg: saved, 100 bytes missing
bmp: saved, 100 bytes missing
tiff: saved, 100 bytes missing
png: OSError 27
webp: OSError 27
plain write: OSError 27"
[ "$found" = "$expected" ] || { echo "the behaviour has changed" >&2; exit 1; }
