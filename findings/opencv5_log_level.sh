#!/usr/bin/env bash
# OpenCV 5.0.0 (opencv-python-headless), Linux: cv2.setLogLevel is gone; warnings cannot be silenced the documented way.
#
# In 4.10 cv2.setLogLevel is there alone, in 5.0 cv2.utils.logging.setLogLevel alone. The usual
# `if hasattr(cv2, "setLogLevel")` or `except AttributeError: pass` then silences nothing, and each attempt to open a camera
# that is away writes a warning to stderr.
#
# Output seen:
#   5.0.0 setLogLevel: False utils.logging.setLogLevel: True
#   lines on stderr, as it comes: 1
#   lines on stderr, after cv2.utils.logging.setLogLevel(0): 0
#
# What it means for us: edge/sources/cameras.py asks both.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "opencv-python-headless==5.0.0.93" numpy
lines() {
    "$folder/venv/bin/python" -c "import cv2; $1; cv2.VideoCapture('/dev/video97', cv2.CAP_V4L2)" 2>&1 | grep -c WARN || true
}
found=$(
    "$folder/venv/bin/python" -c "
import cv2
print(cv2.__version__, 'setLogLevel:', hasattr(cv2, 'setLogLevel'),
      'utils.logging.setLogLevel:', hasattr(cv2.utils.logging, 'setLogLevel'))"
    echo "lines on stderr, as it comes: $(lines pass)"
    echo "lines on stderr, after cv2.utils.logging.setLogLevel(0): $(lines 'cv2.utils.logging.setLogLevel(0)')"
)
echo "$found"
expected="5.0.0 setLogLevel: False utils.logging.setLogLevel: True
lines on stderr, as it comes: 1
lines on stderr, after cv2.utils.logging.setLogLevel(0): 0"
[ "$found" = "$expected" ] || { echo "the behaviour has changed" >&2; exit 1; }
