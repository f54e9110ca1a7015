#!/usr/bin/env bash
# torch 2.14.1 (CPU and CUDA builds alike), Linux: torch.save where the disk is full raises RuntimeError, not OSError.
#
# A program that handles full disks by `except OSError` (errno ENOSPC) does not see this one: the zip writer notices that
# fewer bytes were written than asked for and raises a RuntimeError that names no errno and no path. A plain write of the
# same bytes to the same place raises OSError. The partial file stays behind.
#
# Output seen:
#   plain write: OSError 27 File too large
#   torch.save: RuntimeError errno=None partial file: True
#
# A file-size limit stands in for the full disk: it needs no root, and both fail in the same call of the system.
# What it means for us: checkpoints are written to a temporary name, and the error is translated
# (training/trainer.py::WholeCheckpoints).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "torch==2.14.1" numpy
found=$(cd "$folder" && "$folder/venv/bin/python" - <<'P'
import os
import resource
import signal

import torch

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
content = {"weights": torch.zeros(1_000_000)}
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
try:
    with open("plain.bin", "wb", buffering=0) as file:
        while True:
            file.write(bytes(50_000))
except OSError as error:
    print("plain write: OSError", error.errno, error.strerror)
try:
    torch.save(content, "content.pt")
except Exception as error:
    kind, number = type(error).__name__, getattr(error, "errno", None)
    print(f"torch.save: {kind} errno={number} partial file: {os.path.exists('content.pt')}")
P
)
echo "$found"
expected="plain write: OSError 27 File too large
torch.save: RuntimeError errno=None partial file: True"
[ "$found" = "$expected" ] || { echo "the behaviour has changed" >&2; exit 1; }
