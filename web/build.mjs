// Builds the page into src/agridistill/app/page: `npm run build`. With --pin it only rewrites runtime.json.
import { createHash } from "node:crypto";
import { cpSync, mkdirSync, readFileSync, renameSync, rmSync, statSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";
import { icons } from "./icons.mjs";
import "./kernels.mjs";

const here = dirname(fileURLToPath(import.meta.url));
const target = join(here, "..", "src", "agridistill", "app", "page");
const MOST_BYTES = 600_000;
/** What runs a model, by the engine's name: an npm package, and the files of it that a release has as they are. */
const ENGINES = {
  // The smallest build that runs on a processor: without WebGL, WebGPU and WebNN.
  onnx: { package: "onnxruntime-web", folder: "dist", files: ["ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"] },
  // The build for all browsers, and the one for those with relaxed SIMD, which all but Safari have.
  litert: {
    package: "@litertjs/core",
    folder: "wasm",
    files: ["litert_wasm_compat_internal.wasm", "litert_wasm_internal.wasm"],
    simd: { "litert_wasm_compat_internal.wasm": "plain", "litert_wasm_internal.wasm": "relaxed" },
  },
};
const LITERT = "@litertjs/core/wasm/litert_wasm_compat_internal.js";
/** The scripts of the engines: the module in src/engines, and what it is built with. */
const SCRIPTS = {
  "engine-onnx.js": { module: "onnx" },
  "engine-litert.js": { module: "litert", names: { LITERT_CODE: "litert_wasm_compat_internal", LITERT_NAME: "LiteRT.js" } },
  "engine-litert-relaxed.js": {
    module: "litert",
    names: { LITERT_CODE: "litert_wasm_internal", LITERT_NAME: "LiteRT.js, relaxed SIMD" },
    instead: { [LITERT]: join(here, "node_modules", "@litertjs", "core", "wasm", "litert_wasm_internal.js") },
  },
};

/** The npm packages with the hashes of their archives and of each file. */
function pinned() {
  const locked = JSON.parse(readFileSync(join(here, "package-lock.json"), "utf8")).packages;
  const engines = Object.entries(ENGINES).map(([engine, { package: name, folder, files, simd = {} }]) => {
    const { version, integrity } = locked[`node_modules/${name}`];
    const hashed = files.map((file) => {
      const path = `${folder}/${file}`;
      const content = readFileSync(join(here, "node_modules", name, path));
      const sha256 = createHash("sha256").update(content).digest("hex");
      return [file, { path, sha256, ...(file in simd && { simd: simd[file] }) }];
    });
    return [engine, { package: name, version, integrity, files: Object.fromEntries(hashed) }];
  });
  return JSON.stringify(Object.fromEntries(engines), null, 2) + "\n";
}

/** LiteRT's code is a script that declares `ModuleFactory`, in a package of modules. */
const litertCode = {
  name: "litert-code",
  setup: ({ onLoad }) =>
    onLoad({ filter: /litert_wasm_\w+\.js$/ }, ({ path }) => ({
      contents: `${readFileSync(path, "utf8")}\nexport default ModuleFactory;`,
    })),
};

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
  refuse(`expected runtime.json with the hashes of the installed engines, got others: run npm run pin and look at the change`);
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
});
for (const [script, { module, names = {}, instead = {} }] of Object.entries(SCRIPTS)) {
  await build({
    ...shared,
    entryPoints: [join(here, "src", "engines", `${module}.ts`)],
    outfile: join(folder, script),
    format: "esm",
    define: Object.fromEntries(Object.entries(names).map(([name, text]) => [name, JSON.stringify(text)])),
    plugins: [litertCode],
    // LiteRT's code also runs in Node; the page has no use for those parts.
    external: ["node:fs", "node:crypto"],
    alias: {
      // The package's entry without the .mjs of its WebAssembly part, which the page gets as a file of the release.
      "onnxruntime-web": join(here, "node_modules", "onnxruntime-web", "dist", "ort.wasm.min.mjs"),
      "@litertjs/wasm-utils": join(here, "src", "engines", "litertCode.ts"),
      ...instead,
    },
  });
}
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
const names = ["index.html", "app.js", ...Object.keys(SCRIPTS), "app.css", "sw.js", "app.webmanifest", ...Object.keys(drawn).map((name) => `icons/${name}`)];
const bytes = names.reduce((sum, name) => sum + statSync(join(folder, name)).size, 0);
if (bytes > MOST_BYTES) refuse(`expected a page of at most ${MOST_BYTES} bytes, got ${bytes}: drop something`);
rmSync(target, { recursive: true, force: true });
renameSync(folder, target);
for (const name of names) console.log(`${String(statSync(join(target, name)).size).padStart(8)}  ${name}`);
console.log(`${String(bytes).padStart(8)}  in all`);
