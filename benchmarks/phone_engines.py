"""How long one network takes in the engines that run in a browser, and how many bytes each engine sends to a phone.

    agridistill export RUN --out models/onnx-fp32.onnx   # also onnx-int8.onnx, litert-fp32.tflite, litert-int8.tflite
    npm install --prefix engines onnxruntime-web@1.30.0 @litertjs/core@2.5.3
    PYTHONPATH=. python benchmarks/phone_engines.py models --engines engines --out docs/performance/phone_engines.json

One page in Chromium opens each model in each engine, on one core; the engines then take turns. Beside them, ONNX
Runtime runs the same file in this process with one thread. Bytes are those after packing as `agridistill app` packs.
"""

from __future__ import annotations

import argparse
import gzip
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from playwright.sync_api import sync_playwright
from reporting import machine, publish
from tests.app.phone import browser, serving

from agridistill.app.engine_files import packed_code
from agridistill.manifest import read_manifest

ORT, LITERT = "node_modules/onnxruntime-web/dist", "node_modules/@litertjs/core"
ORT_CPU, ORT_GPU = "ort-wasm-simd-threaded", "ort-wasm-simd-threaded.asyncify"
LITERT_RELAXED, LITERT_PLAIN = "litert_wasm_internal", "litert_wasm_compat_internal"
# Row: the engine, its files, the model, and the options of the engine.
CASES: dict[str, dict[str, Any]] = {
    "onnxruntime-web, fp32": {"engine": "ort", "code": ORT_CPU, "model": "onnx-fp32.onnx"},
    "onnxruntime-web, int8": {"engine": "ort", "code": ORT_CPU, "model": "onnx-int8.onnx"},
    "onnxruntime-web, fp32, extended optimisation": {
        "engine": "ort", "code": ORT_CPU, "model": "onnx-fp32.onnx", "options": {"graphOptimizationLevel": "extended"},
    },
    "onnxruntime-web, fp32, no memory pattern or arena": {
        "engine": "ort", "code": ORT_CPU, "model": "onnx-fp32.onnx",
        "options": {"enableMemPattern": False, "enableCpuMemArena": False},
    },
    "onnxruntime-web, int8, extended optimisation": {
        "engine": "ort", "code": ORT_CPU, "model": "onnx-int8.onnx", "options": {"graphOptimizationLevel": "extended"},
    },
    "onnxruntime-web with WebGPU, fp32": {"engine": "ort-gpu", "code": ORT_GPU, "model": "onnx-fp32.onnx"},
    "LiteRT.js, relaxed SIMD, fp32": {"engine": "litert", "code": LITERT_RELAXED, "model": "litert-fp32.tflite"},
    "LiteRT.js, relaxed SIMD, int8": {"engine": "litert", "code": LITERT_RELAXED, "model": "litert-int8.tflite"},
    "LiteRT.js, plain SIMD, fp32": {"engine": "litert", "code": LITERT_PLAIN, "model": "litert-fp32.tflite"},
    "LiteRT.js, plain SIMD, int8": {"engine": "litert", "code": LITERT_PLAIN, "model": "litert-int8.tflite"},
}  # fmt: skip
_PAGE = """<!doctype html><meta charset="utf-8"><body><script type="importmap">{"imports": {
  "@litertjs/wasm-utils": "/node_modules/@litertjs/wasm-utils/dist/index.js"}}</script>
<script type="module">
const bytes = async (url) => new Uint8Array(await (await fetch(url)).arrayBuffer());
window.gpu = async () => Boolean(await navigator.gpu?.requestAdapter());
const openers = {
  async ort({ code, model, options }) {
    const gpu = code.includes("asyncify");
    const ort = await import(`/node_modules/onnxruntime-web/dist/ort.${gpu ? "webgpu" : "wasm"}.min.mjs`);
    ort.env.wasm.numThreads = 1;
    ort.env.logLevel = "error";
    const executionProviders = [gpu ? "webgpu" : "wasm"];
    const session = await ort.InferenceSession.create(await bytes(model), { executionProviders, ...options });
    return async (pixels, size) => {
      const tensor = new ort.Tensor("uint8", pixels, [1, size, size, 3]);
      const outputs = await session.run({ [session.inputNames[0]]: tensor });
      return Array.from(outputs.logits.data);
    };
  },
  async litert({ code, model }) {
    const { loadLiteRt, loadAndCompile, Tensor } = await import("/node_modules/@litertjs/core/dist/index.js");
    await loadLiteRt(`/node_modules/@litertjs/core/wasm/${code}.js`);
    const compiled = await loadAndCompile(await bytes(model), { accelerator: "wasm" });
    return async (pixels, size) => {
      const input = new Tensor(pixels, [1, size, size, 3]);
      const outputs = await compiled.run([input]);
      const [logits] = outputs.map((each) => Array.from(each.toTypedArray()));
      for (const each of [input, ...outputs]) each.delete();
      return logits;
    };
  },
};
openers["ort-gpu"] = openers.ort;
window.load = async (row, size, seed) => {
  const begin = performance.now();
  const run = await openers[row.engine](row);
  const pixels = new Uint8Array(3 * size * size);
  for (let i = 0; i < pixels.length; i++) pixels[i] = (i * 2654435761 + seed) >>> 13;
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


def packed_bytes(case: dict[str, Any], engines: Path, models: Path) -> dict[str, int]:
    """What a phone fetches of an engine's code, packed as `agridistill app` does, and of the model."""
    folder = engines / (f"{LITERT}/wasm" if case["engine"] == "litert" else ORT)
    glue = next(path for end in (".mjs", ".js") if (path := folder / f"{case['code']}{end}").exists())
    code = (folder / f"{case['code']}.wasm").read_bytes()
    return {
        "engine_bytes": len(code),
        "engine_packed_bytes": len(packed_code(code)) + len(gzip.compress(glue.read_bytes(), 9)),
        "model_packed_bytes": len(gzip.compress((models / case["model"]).read_bytes(), 9)),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, help="folder with onnx-fp32.onnx, onnx-int8.onnx and the same as .tflite")
    parser.add_argument("--engines", type=Path, required=True, help="folder with node_modules")
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--runs", type=int, default=10, help="in each turn")
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--only", default="")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    os.sched_setaffinity(0, {given.core})  # the browser inherits it
    import onnxruntime

    manifest = read_manifest(given.models / "onnx-fp32.json")
    size = manifest.preprocessing.image_size
    index = np.arange(3 * size * size, dtype=np.uint64)
    pixels = ((index * 2654435761 & 0xFFFFFFFF) >> 13).astype(np.uint8).reshape(1, size, size, 3)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    native = {
        f"ONNX Runtime in Python, {precision}": onnxruntime.InferenceSession(
            given.models / f"onnx-{precision}.onnx", options
        )
        for precision in ("fp32", "int8")
        if (given.models / f"onnx-{precision}.onnx").exists()
    }
    times: dict[str, list[float]] = {}
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as playwright:
        served = Path(temporary) / "served"
        served.mkdir()
        (served / "node_modules").symlink_to((given.engines / "node_modules").resolve())
        (served / "index.html").write_text(_PAGE)
        for path in given.models.iterdir():
            (served / path.name).symlink_to(path.resolve())
        with serving(served) as server, browser(playwright, Path(temporary) / "profile") as (context, _):
            pages = {}
            for name, case in CASES.items():
                if given.only not in name or not (given.models / case["model"]).exists():
                    continue
                page = context.new_page()
                page.goto(server.address)
                page.wait_for_function("window.ready")
                if case["engine"] == "ort-gpu" and not page.evaluate("window.gpu()"):
                    found[name] = {"left_out": "this browser has no WebGPU adapter"}
                    continue
                try:
                    opened = page.evaluate("([row, size]) => window.load(row, size, 0)", [case, size])
                except Exception as error:
                    found[name] = {"left_out": str(error).splitlines()[0][:200]}
                    continue
                precision = "int8" if "int8" in case["model"] else "fp32"
                session = native[f"ONNX Runtime in Python, {precision}"]
                (expected,) = session.run(["logits"], {session.get_inputs()[0].name: pixels})[0]
                found[name] = {
                    "open_ms": round(opened["open_ms"]),
                    "largest_logit_difference": round(float(np.abs(opened["logits"] - expected).max()), 4),
                    **packed_bytes(case, given.engines, given.models),
                }
                pages[name] = page
            for turn in range(given.turns + 1):
                for name, page in pages.items():
                    page.bring_to_front()
                    taken = page.evaluate("(runs) => window.time(runs)", given.runs)
                    times.setdefault(name, []).extend(taken if turn else [])
                for name, session in native.items():
                    for _ in range(given.runs):
                        begin = time.perf_counter()
                        session.run(None, {session.get_inputs()[0].name: pixels})
                        if turn:
                            times.setdefault(name, []).append(1000 * (time.perf_counter() - begin))
            agent = context.pages[-1].evaluate("navigator.userAgent.match(/Chrom[a-z]*.[0-9.]+/)[0]")
    base = np.median(times["ONNX Runtime in Python, int8" if len(native) > 1 else next(iter(native))])
    rows = {
        name: {
            "p50_ms": round(float(np.median(taken)), 2),
            "p95_ms": round(float(np.quantile(taken, 0.95)), 2),
            "ratio_to_onnxruntime_int8": round(float(np.median(taken) / base), 2),
            **found.get(name, {}),
        }
        for name, taken in times.items()
    }
    rows |= {name: row for name, row in found.items() if name not in rows}
    publish(
        {
            "machine": machine(),
            "browser": agent,
            "model": manifest.model,
            "image_size": size,
            "core": given.core,
            "runs": given.turns * given.runs,
            "engines": rows,
        },
        given.out,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
