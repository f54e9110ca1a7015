"""How long one network takes in the engines that run in a browser, and how many bytes each engine sends to a phone.

    agridistill export RUN --out models/onnx-fp32.onnx   # also onnx-int8.onnx, litert-fp32.tflite, litert-int8.tflite
    npm install --prefix engines onnxruntime-web@1.30.0 @litertjs/core@2.5.3
    PYTHONPATH=. python benchmarks/phone_engines.py models --engines engines --out docs/performance/phone_engines.json

One page in Chromium opens each model in each engine, on one core; the engines then take turns. With `--cores 2` there
are also those with two threads. Beside them, ONNX
Runtime runs the same file in this process with one thread. Bytes are those after packing as `agridistill app` packs.
"""

from __future__ import annotations

import argparse
import gzip
import os
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from playwright.sync_api import sync_playwright
from reporting import machine, publish
from tests.app.phone import browser, serving

from agridistill.app.engine_files import packed_code
from agridistill.manifest import read_manifest

ORT, LITERT = "node_modules/onnxruntime-web/dist", "node_modules/@litertjs/core"
ORT_CPU, ORT_GPU = "ort-wasm-simd-threaded", "ort-wasm-simd-threaded.asyncify"
LITERT_RELAXED, LITERT_PLAIN = "litert_wasm_internal", "litert_wasm_compat_internal"
LITERT_THREADS = "litert_wasm_threaded_internal"
PRECISIONS = ("fp32", "int8")


@dataclass(frozen=True)
class Case:
    """A way to run the network in a browser."""

    engine: str  # "ort" or "litert", the keys of `openers` in the page
    code: str
    model: str
    threads: int = 1
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        return f"{LITERT}/wasm" if self.engine == "litert" else ORT


CASES = {
    **{f"onnxruntime-web, {each}": Case("ort", ORT_CPU, f"onnx-{each}.onnx") for each in PRECISIONS},
    "onnxruntime-web, fp32, extended optimisation": Case(
        "ort", ORT_CPU, "onnx-fp32.onnx", options={"graphOptimizationLevel": "extended"}
    ),
    "onnxruntime-web, int8, extended optimisation": Case(
        "ort", ORT_CPU, "onnx-int8.onnx", options={"graphOptimizationLevel": "extended"}
    ),
    "onnxruntime-web, fp32, no memory pattern or arena": Case(
        "ort", ORT_CPU, "onnx-fp32.onnx", options={"enableMemPattern": False, "enableCpuMemArena": False}
    ),
    "onnxruntime-web with WebGPU, fp32": Case("ort", ORT_GPU, "onnx-fp32.onnx"),
    **{
        f"LiteRT.js, {simd}, {words}": Case("litert", code, f"litert-{each}.tflite")
        for simd, code in (("plain SIMD", LITERT_PLAIN), ("relaxed SIMD", LITERT_RELAXED))
        for each, words in (
            ("fp32", "fp32"),
            ("int8", "int8"),
            ("f16", "weights in fp16"),
            ("w8", "weights in int8"),
        )
    },
    **{
        f"onnxruntime-web, {each}, two threads": Case("ort", ORT_CPU, f"onnx-{each}.onnx", threads=2)
        for each in PRECISIONS
    },
    **{
        f"LiteRT.js, relaxed SIMD, {each}, two threads": Case(
            "litert", LITERT_THREADS, f"litert-{each}.tflite", threads=2
        )
        for each in PRECISIONS
    },
}
_PAGE = """<!doctype html><meta charset="utf-8"><body><script type="importmap">{"imports": {
  "@litertjs/wasm-utils": "/node_modules/@litertjs/wasm-utils/dist/index.js"}}</script>
<script type="module">
const bytes = async (url) => new Uint8Array(await (await fetch(url)).arrayBuffer());
window.gpu = async () => Boolean(await navigator.gpu?.requestAdapter());
const openers = {
  async ort({ code, model, threads, options }) {
    const gpu = code.includes("asyncify");
    const ort = await import(`/node_modules/onnxruntime-web/dist/ort.${gpu ? "webgpu" : "wasm"}.min.mjs`);
    ort.env.wasm.numThreads = threads;
    ort.env.logLevel = "error";
    const executionProviders = [gpu ? "webgpu" : "wasm"];
    const session = await ort.InferenceSession.create(await bytes(model), { executionProviders, ...options });
    return async (pixels, size) => {
      const tensor = new ort.Tensor("uint8", pixels, [1, size, size, 3]);
      const outputs = await session.run({ [session.inputNames[0]]: tensor });
      return Array.from(outputs.logits.data);
    };
  },
  async litert({ code, model, threads }) {
    const { loadLiteRt, loadAndCompile, Tensor } = await import("/node_modules/@litertjs/core/dist/index.js");
    await loadLiteRt(`/node_modules/@litertjs/core/wasm/${code}.js`);
    const options = { accelerator: "wasm", cpuOptions: { numThreads: threads } };
    const compiled = await loadAndCompile(await bytes(model), options);
    return async (pixels, size) => {
      const input = new Tensor(pixels, [1, size, size, 3]);
      const outputs = await compiled.run([input]);
      const [logits] = outputs.map((each) => Array.from(each.toTypedArray()));
      for (const each of [input, ...outputs]) each.delete();
      return logits;
    };
  },
};
window.load = async (row, size) => {
  const begin = performance.now();
  const run = await openers[row.engine](row);
  const pixels = new Uint8Array(3 * size * size);
  for (let i = 0; i < pixels.length; i++) pixels[i] = (i * 2654435761) >>> 13;
  window.again = () => run(pixels, size);
  const logits = await window.again();
  return { logits, open_ms: performance.now() - begin };
};
window.time = async (runs) => {
  const taken = [];
  for (let i = 0; i < runs; i++) {
    const begin = performance.now();
    await window.again();
    taken.push(performance.now() - begin);
  }
  return taken;
};
window.ready = true;
</script>"""


def packed_bytes(case: Case, engines: Path, models: Path) -> dict[str, int]:
    """What a phone fetches of an engine's code, packed as `agridistill app` does, and of the model."""
    folder = engines / case.folder
    glue = next(path for end in (".mjs", ".js") if (path := folder / f"{case.code}{end}").exists())
    code = (folder / f"{case.code}.wasm").read_bytes()
    return {
        "engine_bytes": len(code),
        "engine_packed_bytes": len(packed_code(code)) + len(gzip.compress(glue.read_bytes(), 9)),
        "model_packed_bytes": len(gzip.compress((models / case.model).read_bytes(), 9)),
    }


def lighter(models: Path) -> None:
    """Stores the weights of `litert-fp32.tflite` in fp16 and in int8; the engine computes in fp32 with them."""
    from ai_edge_quantizer import qtyping, quantizer

    integers, floats = qtyping.TensorDataType.INT, qtyping.TensorDataType.FLOAT
    by_channel = qtyping.QuantGranularity.CHANNELWISE
    for name, key, weights in (
        ("f16", "float_casting", qtyping.TensorQuantizationConfig(num_bits=16, dtype=floats)),
        ("w8", "min_max_uniform_quantize", qtyping.TensorQuantizationConfig(8, dtype=integers, granularity=by_channel)),
    ):
        config = qtyping.OpQuantizationConfig(
            weight_tensor_config=weights, compute_precision=qtyping.ComputePrecision.FLOAT, explicit_dequantize=True
        )
        made = quantizer.Quantizer(str(models / "litert-fp32.tflite"))
        made.update_quantization_recipe(".*", qtyping.TFLOperationName.ALL_SUPPORTED, config, key)
        (models / f"litert-{name}.tflite").write_bytes(made.quantize().quantized_model)


class Native:
    """ONNX Runtime in this process, with one thread."""

    def __init__(self, models: Path, size: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._sessions = {
            each: onnxruntime.InferenceSession(models / f"onnx-{each}.onnx", options) for each in PRECISIONS
        }
        # The same pixels as in the page.
        index = np.arange(3 * size * size, dtype=np.uint64)
        self._pixels = ((index * 2654435761 & 0xFFFFFFFF) >> 13).astype(np.uint8).reshape(1, size, size, 3)

    def logits(self, precision: str) -> NDArray[np.float32]:
        session = self._sessions[precision]
        (found,) = session.run(["logits"], {session.get_inputs()[0].name: self._pixels})
        return np.asarray(found[0])

    def time(self, precision: str, runs: int) -> list[float]:
        taken_ms = []
        for _ in range(runs):
            begin = time.perf_counter()
            self.logits(precision)
            taken_ms.append(1000 * (time.perf_counter() - begin))
        return taken_ms


def opened(page: Any, case: Case, size: int, native: Native) -> dict[str, Any] | None:
    """Opens a model in a page; None if the browser lacks what the engine needs."""
    page.wait_for_function("window.ready")
    if case.code == ORT_GPU and not page.evaluate("window.gpu()"):
        return None
    found = page.evaluate("([row, size]) => window.load(row, size)", [asdict(case), size])
    difference = np.abs(found["logits"] - native.logits("int8" if "int8" in case.model else "fp32")).max()
    return {"open_ms": round(found["open_ms"]), "largest_logit_difference": round(float(difference), 4)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, help="folder with onnx-fp32.onnx, onnx-int8.onnx and litert-….tflite")
    parser.add_argument("--engines", type=Path, required=True, help="folder with node_modules")
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--runs", type=int, default=10, help="in each turn")
    parser.add_argument("--cores", type=int, default=1, help="2 also runs the cases with two threads")
    parser.add_argument("--lighter", action="store_true", help="first make the files with weights in fp16 and in int8")
    parser.add_argument("--only", default="")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    os.sched_setaffinity(0, set(range(given.cores)))  # the browser inherits it
    if given.lighter:
        lighter(given.models)
    manifest = read_manifest(given.models / "onnx-fp32.json")
    size = manifest.preprocessing.image_size
    native = Native(given.models, size)
    found: dict[str, dict[str, Any]] = {}
    times: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as playwright:
        served = Path(temporary) / "served"
        served.mkdir()
        (served / "node_modules").symlink_to((given.engines / "node_modules").resolve())
        (served / "index.html").write_text(_PAGE)
        for path in given.models.iterdir():
            (served / path.name).symlink_to(path.resolve())
        with (
            serving(served, all_files=True) as server,
            browser(playwright, Path(temporary) / "profile") as (context, _),
        ):
            pages = {}
            for name, case in CASES.items():
                if given.only in name and case.threads <= given.cores:
                    page = context.new_page()
                    page.goto(server.address)
                    if row := opened(page, case, size, native):
                        pages[name] = page
                        found[name] = row | packed_bytes(case, given.engines, given.models)
                    else:
                        found[name] = {"left_out": "this browser has no WebGPU adapter"}
            for turn in range(given.turns + 1):
                taken = {name: page.evaluate("(runs) => window.time(runs)", given.runs) for name, page in pages.items()}
                taken |= {f"ONNX Runtime in Python, {each}": native.time(each, given.runs) for each in PRECISIONS}
                for name, each in taken.items() if turn else ():
                    times[name] += each
            agent = page.evaluate("navigator.userAgent.match(/Chrom[a-z]*.[0-9.]+/)[0]")
    for name, taken_ms in times.items():
        p50, p95 = (round(float(np.quantile(taken_ms, share)), 2) for share in (0.5, 0.95))
        found[name] = {"p50_ms": p50, "p95_ms": p95, **found.get(name, {})}
    document = {"machine": machine(), "browser": agent, "model": manifest.model, "image_size": size}
    document |= {"cores": given.cores, "runs": given.turns * given.runs, "engines": found}
    publish(document, given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
