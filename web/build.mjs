// Builds the page into src/agridistill/app/page: `npm run build`. With --pin it only rewrites runtime.json.
import { createHash } from "node:crypto";
import { cpSync, mkdirSync, readFileSync, renameSync, rmSync, statSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";
import { icons } from "./icons.mjs";

const here = dirname(fileURLToPath(import.meta.url));
const target = join(here, "..", "src", "agridistill", "app", "page");
const MOST_BYTES = 600_000;
const PACKAGE = "onnxruntime-web";
// The smallest build that runs on a processor: without WebGL, WebGPU and WebNN.
const FILES = ["ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"];

/** The npm package whose files run the model, with the hashes of the archive and of each file. */
function pinned() {
  const locked = JSON.parse(readFileSync(join(here, "package-lock.json"), "utf8")).packages[`node_modules/${PACKAGE}`];
  const files = FILES.map((name) => {
    const path = `dist/${name}`;
    const content = readFileSync(join(here, "node_modules", PACKAGE, path));
    return [name, { path, sha256: createHash("sha256").update(content).digest("hex") }];
  });
  const { version, integrity } = locked;
  return JSON.stringify({ engine: "onnx", package: PACKAGE, version, integrity, files: Object.fromEntries(files) }, null, 2) + "\n";
}

function refuse(message) {
  console.error(message);
  process.exit(1);
}

const pin = pinned();
if (process.argv.includes("--pin")) {
  writeFileSync(join(here, "runtime.json"), pin);
  process.exit(0);
}
if (readFileSync(join(here, "runtime.json"), "utf8") !== pin) {
  refuse(`expected runtime.json with the hashes of the installed ${PACKAGE}, got others: run npm run pin and look at the change`);
}

mkdirSync(dirname(target), { recursive: true });
const folder = join(here, "dist");
rmSync(folder, { recursive: true, force: true });
const shared = { bundle: true, minify: true, target: "es2022", legalComments: "inline", logLevel: "warning", charset: "utf8" };
await build({
  ...shared,
  entryPoints: [join(here, "src", "main.ts")],
  outfile: join(folder, "app.js"),
  format: "esm",
  // The package's entry without the .mjs of its WebAssembly part, which the page gets as a file of the release.
  alias: { "onnxruntime-web": join(here, "node_modules", PACKAGE, "dist", "ort.wasm.min.mjs") },
});
await build({ ...shared, entryPoints: [join(here, "src", "sw.ts")], outfile: join(folder, "sw.js"), format: "iife" });
await build({ ...shared, entryPoints: [join(here, "src", "app.css")], outfile: join(folder, "app.css") });
for (const name of ["index.html", "app.webmanifest"]) cpSync(join(here, "src", name), join(folder, name));
writeFileSync(join(folder, "runtime.json"), pin);
mkdirSync(join(folder, "icons"));
const drawn = icons();
for (const [name, content] of Object.entries(drawn)) writeFileSync(join(folder, "icons", name), content);

// agridistill app puts the list of files in place of this text, in each of the two files once.
for (const name of ["index.html", "sw.js"]) {
  const found = readFileSync(join(folder, name), "utf8").split('"__RELEASE__"').length - 1;
  if (found !== 1) refuse(`expected "__RELEASE__" once in ${name}, got it ${found} times: look at what the bundler made of it`);
}
const names = ["index.html", "app.js", "app.css", "sw.js", "app.webmanifest", ...Object.keys(drawn).map((name) => `icons/${name}`)];
const bytes = names.reduce((sum, name) => sum + statSync(join(folder, name)).size, 0);
if (bytes > MOST_BYTES) refuse(`expected a page of at most ${MOST_BYTES} bytes, got ${bytes}: drop something`);
rmSync(target, { recursive: true, force: true });
renameSync(folder, target);
for (const name of names) console.log(`${String(statSync(join(target, name)).size).padStart(8)}  ${name}`);
console.log(`${String(bytes).padStart(8)}  in all`);
