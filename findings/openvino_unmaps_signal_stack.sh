#!/usr/bin/env bash
# OpenVINO 2026.4.1, Linux: the first model on "CPU" changes sigaltstack of the thread that compiles it (the plugin maps a larger
# stack for signal handlers and does not ask whether there is one). When the last model and core are released, the plugin is
# unloaded and unmaps that stack, but it gives the thread its old stack back only if this very thread releases them. Released
# in another thread, the first one is left with a stack that is no longer mapped.
#
# Python's own signal handlers run on this stack. So in a program that replaces a model in a worker thread, the next signal with
# a handler (SIGTERM, Ctrl-C, the end of a child process where SIGCHLD is handled, as torch's data loader does) ends the
# process with SIGSEGV, without the traceback of faulthandler, whose handler needs the same stack. We met it as test workers
# that died a moment after a child process had ended, minutes after the last use of OpenVINO. This script only reads the
# stack's address and the memory map; it sends no signal.
#
# Output seen:
#   before: none
#   released in the same thread: none
#   released in another thread: unmapped
#
# What it means for us: the process has one ov.Core(), which is never released (runtime/engines.py), and a test reads the
# same two things after a model was released in another thread.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet openvino==2026.4.1 numpy==2.3.5
cat > "$folder/stack.py" <<'P'
import ctypes
import threading

import numpy as np
import openvino
from openvino import opset8


class Stack(ctypes.Structure):
    _fields_ = [("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]


def state():
    stack = Stack()
    ctypes.CDLL(None).sigaltstack(None, ctypes.byref(stack))
    if not stack.start or stack.flags & 2:
        return "none"
    ranges = [line.split()[0].split("-") for line in open("/proc/self/maps")]
    return "mapped" if any(int(a, 16) <= stack.start < int(b, 16) for a, b in ranges) else "unmapped"


def compiled():
    parameter = opset8.parameter([1, 3], np.float32)
    core = openvino.Core()
    return [core, core.compile_model(openvino.Model([opset8.relu(parameter)], [parameter], "relu"), "CPU")]


print("before:", state())
held = compiled()
held.clear()
print("released in the same thread:", state())
held = compiled()
thread = threading.Thread(target=held.clear)
thread.start()
thread.join()
print("released in another thread:", state())
P
"$folder/venv/bin/python" "$folder/stack.py" | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
before: none
released in the same thread: none
released in another thread: unmapped
SEEN
