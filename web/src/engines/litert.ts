/** Runs `.tflite` models with LiteRT.js, on one thread. */

import { loadAndCompile, loadLiteRt, Tensor } from "@litertjs/core";
import type { EngineModule } from "../engine";
import { setCode } from "./litertCode";

export const open: EngineModule["open"] = async (files) => {
  const [code, model] = await Promise.all([files.bytes("runtime/litert_wasm_compat_internal.wasm"), files.bytes("model")]);
  setCode(code);
  await loadLiteRt("");
  const compiled = await loadAndCompile(model, { accelerator: "wasm" });
  return {
    name: "LiteRT.js",
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
