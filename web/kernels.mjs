// Compiles kernels/pixels.ts into build/kernels.js, a module with the WebAssembly as base64.
import { mkdirSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import asc from "assemblyscript/asc";

const here = dirname(fileURLToPath(import.meta.url));
let binary;
const options = ["--baseDir", here, "--runtime", "stub", "-O3", "--noAssert", "--enable", "simd", "--outFile", "pixels.wasm"];
const { error, stderr } = await asc.main(["kernels/pixels.ts", ...options], {
  writeFile(name, content) {
    if (name === "pixels.wasm") binary = content;
  },
});
if (error) {
  console.error(stderr.toString());
  process.exit(1);
}
mkdirSync(join(here, "build"), { recursive: true });
writeFileSync(join(here, "build", "kernels.js"), `export default "${Buffer.from(binary).toString("base64")}";\n`);
writeFileSync(join(here, "build", "kernels.d.ts"), "declare const code: string;\nexport default code;\n");
