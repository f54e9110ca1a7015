/** Runs `.tflite` models with LiteRT.js, on one thread. The bundler makes a script for each of its two builds. */

import { loadAndCompile, loadLiteRt, Tensor } from "@litertjs/core";
import type { EngineModule } from "../engine";
import { setCode } from "./litertCode";

/** Set by the bundler: the file of the build, and the build's name. */
declare const LITERT_CODE: string;
declare const LITERT_NAME: string;

export const open: EngineModule["open"] = async (files) => {
  const [code, model] = await Promise.all([files.bytes(`runtime/${LITERT_CODE}.wasm`), files.bytes("model")]);
  setCode(code);
  await loadLiteRt("");
  const compiled = await loadAndCompile(model, { accelerator: "wasm" });
  return {
    name: LITERT_NAME,
    threads: 1,
    async run({ width, height, data }) {
      const input = new Tensor(data as Uint8Array<ArrayBuffer>, [1, height, width, 3]);
      const outputs = await compiled.run([input]);
      const logits = (outputs[0]!.toTypedArray() as Float32Array).slice();
      for (const each of [input, ...outputs]) each.delete();
      return { logits, attention: null };
    },
  };
};
