"""The same file in another engine."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from agridistill import api
from agridistill.errors import ModelError
from agridistill.export.onnx import to_onnx
from agridistill.manifest import ModelManifest, Preprocessing
from agridistill.models import with_attention
from agridistill.runtime import engines

pytestmark = pytest.mark.slow

pytest.importorskip("openvino", reason="needs OpenVINO, which is not installed: pip install 'agridistill[openvino]'")


@pytest.mark.parametrize(("int8", "batch"), [(False, None), (True, None), (True, 1)])
def test_openvino_computes_what_the_network_computes(
    deployable: Callable[[bool], tuple[Any, ...]],
    patches: NDArray[np.uint8],
    tmp_path: Path,
    int8: bool,
    batch: int | None,
) -> None:
    network, manifest, expected, exact = deployable(int8)
    file = tmp_path / "leaf.onnx"
    file.write_bytes(to_onnx(network, manifest.preprocessing, int8=int8, batch=batch).SerializeToString())
    manifest.with_weights(file).write(file.with_suffix(".json"))
    backend = api.load(file, engine="openvino", threads=1).backend
    found = backend.logits(patches)
    if int8:
        assert np.abs(found - expected).std() < np.abs(expected - exact).std()
    else:
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
    # Photo by photo as in a batch, and a result that the next call leaves alone.
    alone = [backend.logits(patch[None]) for patch in patches]
    np.testing.assert_allclose(np.concatenate(alone), found, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("int8", "batch"), [(False, None), (True, 1)])
def test_openvino_gives_the_attention_of_a_file_that_has_it(
    deployable: Callable[[bool], tuple[Any, ...]],
    patches: NDArray[np.uint8],
    tmp_path: Path,
    int8: bool,
    batch: int | None,
) -> None:
    network, manifest, *_ = deployable(int8)
    plain, file = tmp_path / "plain.onnx", tmp_path / "leaf.onnx"
    for out, form in ((plain, network), (file, with_attention(network, 16))):
        model = to_onnx(form, manifest.preprocessing, int8=int8, batch=batch, attention=out is file)
        out.write_bytes(model.SerializeToString())
        manifest.with_weights(out).write(out.with_suffix(".json"))
    of_plain, backend, other = (
        api.load(each, engine=engine, threads=1).backend
        for each, engine in ((plain, "openvino"), (file, "openvino"), (file, "onnxruntime"))
    )
    np.testing.assert_array_equal(backend.logits(patches), of_plain.logits(patches))
    expected, found = (each.attention(patches) for each in (other, backend))  # type: ignore[attr-defined]
    np.testing.assert_allclose(found, expected, atol=0.1 if int8 else 1e-4)
    with pytest.raises(ModelError, match="export it with --attention"):
        of_plain.attention(patches)  # type: ignore[attr-defined]


def test_a_file_that_openvino_cannot_run_is_one_error(tmp_path: Path) -> None:
    file = tmp_path / "leaf.onnx"
    file.write_bytes(b"no model")
    manifest = ModelManifest("mobilenetv3_small_050", tuple("abcdef"), Preprocessing(64), "", "")
    manifest.with_weights(file).write(file.with_suffix(".json"))
    with pytest.raises(ModelError, match="a model that OpenVINO can run"):
        api.load(file, engine="openvino")


@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory map of Linux")
def test_the_stack_for_signal_handlers_outlives_a_model_that_another_thread_releases(
    deployable: Callable[[bool], tuple[Any, ...]], tmp_path: Path
) -> None:
    # A new process: here, another test may have OpenVINO loaded in any thread.
    network, manifest, *_ = deployable(False)
    file = tmp_path / "leaf.onnx"
    file.write_bytes(to_onnx(network, manifest.preprocessing, int8=False).SerializeToString())
    manifest.with_weights(file).write(file.with_suffix(".json"))
    code = """
import ctypes, sys, threading
from agridistill import api

class Stack(ctypes.Structure):
    _fields_ = [("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]

held = [api.load(sys.argv[1], engine="openvino")]
thread = threading.Thread(target=held.clear)
thread.start()
thread.join()
stack = Stack()
ctypes.CDLL(None).sigaltstack(None, ctypes.byref(stack))
ranges = [line.split()[0].split("-") for line in open("/proc/self/maps")]
print(stack.start is None or any(int(a, 16) <= stack.start < int(b, 16) for a, b in ranges))
"""
    done = subprocess.run([sys.executable, "-c", code, str(file)], check=True, capture_output=True, text=True)
    assert done.stdout == "True\n"


def test_the_first_inference_of_a_process_runs_alone(
    deployable: Callable[[bool], tuple[Any, ...]],
    patches: NDArray[np.uint8],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network, manifest, *_ = deployable(False)
    file = tmp_path / "leaf.onnx"
    file.write_bytes(to_onnx(network, manifest.preprocessing, int8=False).SerializeToString())
    manifest.with_weights(file).write(file.with_suffix(".json"))
    first, second = api.load(file, engine="openvino").backend.copies(2)  # type: ignore[attr-defined]
    has_begun, may_end, begun = threading.Event(), threading.Event(), list[str]()
    wanted = threading.Semaphore(0)

    class Lock:
        def __init__(self) -> None:
            self.lock = threading.Lock()

        def __enter__(self) -> None:
            wanted.release()
            self.lock.acquire()

        def __exit__(self, *error: object) -> None:
            self.lock.release()

    monkeypatch.setattr(engines._OpenVinoStart, "is_over", False)
    monkeypatch.setattr(engines._OpenVinoStart, "lock", Lock())

    class Request:
        def __init__(self, name: str) -> None:
            self.name = name

        def infer(self, inputs: list[Any]) -> list[NDArray[np.float32]]:
            begun.append(self.name)
            has_begun.set()
            assert may_end.wait(30)
            return [np.zeros((len(inputs[0]), 2), np.float32)]

    first._request, second._request = Request("first"), Request("second")
    threads = [threading.Thread(target=each.logits, args=(patches,)) for each in (first, second)]
    threads[0].start()
    assert has_begun.wait(30)
    threads[1].start()
    assert wanted.acquire(timeout=30)
    assert wanted.acquire(timeout=30)  # the second thread is at the lock, too
    assert begun == ["first"]
    may_end.set()
    for thread in threads:
        thread.join(30)
    assert begun == ["first", "second"]
