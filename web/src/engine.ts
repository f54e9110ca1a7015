/** Runs a model. An engine is one function and its row in `ENGINES`. */

import * as ort from "onnxruntime-web";
import { ModelError } from "./manifest";
import type { ReleaseFiles } from "./release";
import type { Pixels } from "./resample";

export interface Map2d {
  readonly width: number;
  readonly height: number;
  readonly data: Float32Array;
}

export interface Output {
  readonly logits: Float32Array;
  /** Where the model looked; null if the model does not tell. */
  readonly attention: Map2d | null;
}

export interface Engine {
  readonly name: string;
  readonly threads: number;
  run(pixels: Pixels): Promise<Output>;
}

const MOST_THREADS = 4;
const RUNTIME = "runtime/ort-wasm-simd-threaded";

async function openOnnx(files: ReleaseFiles): Promise<Engine> {
  const [wasmBinary, model] = await Promise.all([files.bytes(`${RUNTIME}.wasm`), files.bytes("model")]);
  // Threads share memory, which a browser allows only on isolated pages (the service worker makes this one isolated).
  const threads = globalThis.crossOriginIsolated ? Math.min(MOST_THREADS, navigator.hardwareConcurrency || 1) : 1;
  ort.env.wasm.numThreads = threads;
  ort.env.wasm.wasmBinary = wasmBinary.buffer;
  ort.env.wasm.wasmPaths = { mjs: files.url(`${RUNTIME}.mjs`) };
  ort.env.logLevel = "error";
  const session = await ort.InferenceSession.create(model, { executionProviders: ["wasm"] });
  const [input, hasAttention] = [session.inputNames[0]!, session.outputNames.includes("attention")];
  if (!session.outputNames.includes("logits")) throw new ModelError("expected a model with the output logits");
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
}

const ENGINES: Readonly<Record<string, (files: ReleaseFiles) => Promise<Engine>>> = { onnx: openOnnx };

/** Opens the model of a release with the engine that the release names. */
export async function openEngine(files: ReleaseFiles): Promise<Engine> {
  const open = ENGINES[files.release.engine];
  if (!open) throw new ModelError(`expected one of the engines ${Object.keys(ENGINES).join(", ")}, got ${files.release.engine}`);
  return open(files);
}
