/** Runs `.onnx` models with ONNX Runtime Web. */

import * as ort from "onnxruntime-web";
import type { EngineModule } from "../engine";

const MOST_THREADS = 4;
const RUNTIME = "runtime/ort-wasm-simd-threaded";

export const open: EngineModule["open"] = async (files) => {
  const [wasmBinary, model] = await Promise.all([files.bytes(`${RUNTIME}.wasm`), files.bytes("model")]);
  // Threads share memory, which a browser allows only on isolated pages (the service worker makes this one isolated).
  const threads = globalThis.crossOriginIsolated ? Math.min(MOST_THREADS, navigator.hardwareConcurrency || 1) : 1;
  ort.env.wasm.numThreads = threads;
  ort.env.wasm.wasmBinary = wasmBinary.buffer;
  ort.env.wasm.wasmPaths = { mjs: files.url(`${RUNTIME}.mjs`) };
  ort.env.logLevel = "error";
  const session = await ort.InferenceSession.create(model, { executionProviders: ["wasm"] });
  const [input, hasAttention] = [session.inputNames[0]!, session.outputNames.includes("attention")];
  return {
    name: "onnxruntime-web",
    threads,
    async run({ width, height, data }) {
      const tensor = new ort.Tensor("uint8", data, [1, height, width, 3]);
      const outputs = await session.run({ [input]: tensor });
      const logits = (outputs["logits"]!.data as Float32Array).slice();
      const map = hasAttention ? outputs["attention"]! : null;
      const [mapHeight, mapWidth] = map?.dims.slice(-2) ?? [];
      const attention =
        map && mapHeight && mapWidth
          ? { width: mapWidth, height: mapHeight, data: (map.data as Float32Array).slice() }
          : null;
      for (const each of Object.values(outputs)) each.dispose();
      tensor.dispose();
      return { logits, attention };
    },
  };
};
