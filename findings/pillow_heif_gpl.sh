#!/usr/bin/env bash
# pillow-heif 1.8.1 and pi-heif 1.4.0, Linux x86-64 wheels for Python 3.11: "BSD-3-Clause" is what their metadata say, but
# pillow-heif's wheel bundles the encoder x265, which is under the GPL 2.
#
# The field License and the classifiers of pillow-heif name no GPL; only LICENSES_bundled.txt inside the wheel does. A list
# of licences made from metadata misses x265. pi-heif is the same reader without encoders: libheif and libde265,
# both under the LGPL 3.
#
# Output seen:
#   pillow_heif: BSD-3-Clause; libde265 libheif libx265
#   pi_heif: BSD-3-Clause; libde265 libheif
#
# What it means for us: the extra `heic` is pi-heif.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip download --quiet --no-deps --only-binary :all: --python-version 3.11 --platform manylinux_2_28_x86_64 \
  --dest "$folder" "pillow-heif==1.8.1" "pi-heif==1.4.0"
found=$(python3 - "$folder" <<'P'
import email
import pathlib
import sys
import zipfile

for name in ("pillow_heif", "pi_heif"):
    (wheel,) = pathlib.Path(sys.argv[1]).glob(f"{name}-*.whl")
    with zipfile.ZipFile(wheel) as opened:
        names = opened.namelist()
        (metadata,) = (file for file in names if file.endswith(".dist-info/METADATA"))
        licence = email.message_from_bytes(opened.read(metadata))["License"]
    libraries = sorted(pathlib.PurePath(file).name.split("-")[0] for file in names if ".libs/lib" in file)
    print(f"{name}: {licence}; {' '.join(libraries)}")
P
)
echo "$found"
expected="pillow_heif: BSD-3-Clause; libde265 libheif libx265
pi_heif: BSD-3-Clause; libde265 libheif"
[ "$found" = "$expected" ] || { echo "the behaviour has changed" >&2; exit 1; }
