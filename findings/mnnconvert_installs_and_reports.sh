#!/usr/bin/env bash
# MNN 3.6.1 (PyPI, Python 3.11, Linux x86-64): `mnnconvert` installs a package while it runs, with whatever pip comes first
# on the PATH, and then reports to a server.
#
# The package is aliyun-log-python-sdk, unpinned, with its dependencies; the pip is that of the PATH, not the one of the
# environment that mnnconvert belongs to, so it may change another Python. With the package there, it asks a server in the
# cloud (its address is stored in base64) for credentials to write its log of use. Nothing asks, and no option turns it off.
# Here pip is a stand-in that writes down what it is told, the package is a stand-in too, and the proxy is on this computer:
# nothing is installed and nothing leaves.
#
# Output seen:
#   without the package: pip install -U aliyun-log-python-sdk
#   with the package: CONNECT to fc.aliyuncs.com:443
#
# What it means for us: docs/device.md says so, and benchmarks/other_engines.py runs it without a network.
set -euo pipefail
folder=$(mktemp -d)
trap 'kill "$proxy" 2> /dev/null || true; rm -rf "$folder"' EXIT
proxy=
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet MNN==3.6.1 numpy==2.4.6 onnx==1.23.2
"$folder/venv/bin/python" - "$folder/relu.onnx" <<'P'
import sys
from onnx import TensorProto, helper, save

ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3]) for name in ("in", "out")]
graph = helper.make_graph([helper.make_node("Relu", ["in"], ["out"])], "relu", ends[:1], ends[1:])
save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), sys.argv[1])
P
mkdir -p "$folder/bin" "$folder/stand-in/aliyun/log"
printf '#!/bin/sh\necho "pip $*" >> "%s/pip.txt"\n' "$folder" > "$folder/bin/pip"
chmod +x "$folder/bin/pip"
echo "LogClient = PutLogsRequest = None" > "$folder/stand-in/aliyun/log/__init__.py"
echo "LogItem = None" > "$folder/stand-in/aliyun/log/logitem.py"
"$folder/venv/bin/python" - "$folder" <<'P' &
import pathlib, socket, sys

folder, server = pathlib.Path(sys.argv[1]), socket.create_server(("127.0.0.1", 0))
(folder / "port").write_text(str(server.getsockname()[1]))
while True:
    with server.accept()[0] as asked, (folder / "asked.txt").open("ab") as out:
        out.write(b" ".join(asked.recv(4096).split()[:2]) + b"\n")
P
proxy=$!
while [ ! -s "$folder/port" ]; do sleep 0.1; done
export https_proxy=http://127.0.0.1:$(cat "$folder/port") PATH="$folder/bin:$PATH"
touch "$folder/pip.txt" "$folder/asked.txt"
convert() { "$folder/venv/bin/mnnconvert" -f ONNX --modelFile "$folder/relu.onnx" --MNNModel "$folder/relu.mnn" --bizCode x; }
convert > "$folder/log" 2>&1 || true
found="without the package: $(sort -u "$folder/pip.txt")"
PYTHONPATH="$folder/stand-in" convert >> "$folder/log" 2>&1 || true
found="$found
with the package: $(sed -E 's/ .*(fc\.aliyuncs\.com:443)/ to \1/' "$folder/asked.txt" | sort -u)"
echo "$found"
expected="without the package: pip install -U aliyun-log-python-sdk
with the package: CONNECT to fc.aliyuncs.com:443"
[ "$found" = "$expected" ] || { echo "the behaviour has changed" >&2; exit 1; }
