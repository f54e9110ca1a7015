"""Runs exported files in tract, IREE, MNN, ncnn and LiteRT.js, and compares them with ONNX Runtime and LiteRT.

    .venv/bin/python benchmarks/other_engines.py WORK --out docs/performance/other_engines.json

Trains a network for a few epochs on drawn leaves, exports it (fp32 and int8, `.onnx` with `--batch 1`, `.tflite`), and
gives 20 other drawn leaves to every engine; so with the shipped tomato model, whose batch is fixed here. Each engine
has an environment of its own in WORK, which keeps the runs and the environments for the next call; needs npm, and a
Chromium for LiteRT.js. A file that an engine does not run is a result too: its message is kept.
"""

from __future__ import annotations

import argparse
import functools
import http.server
import os
import re
import shutil
import subprocess
import sys
import threading
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from reporting import machine, publish

from agridistill import api
from agridistill.data.drawn_leaves import CLASSES, draw_leaf, draw_leaves
from agridistill.export.artefact import export
from agridistill.manifest import read_manifest
from agridistill.storage import write_json
from agridistill.training.run import train
from agridistill.training.settings import DataSettings, FitSettings, TrainConfig

SIZE, PHOTOS, LIMIT_S = 64, 20, 300
# Without squeeze-and-excitation and hard swish, trained here; the shipped tomato model has both.
MODELS = ("efficientnet_lite0_even", "tomato")
TOMATO = Path(__file__).parents[1] / "models" / "tomato"
PACKAGES = {
    "tract": ("tract", "numpy"),
    "IREE": ("iree-base-compiler[onnx]", "iree-base-runtime", "numpy"),
    "MNN": ("MNN", "numpy"),
    "ncnn": ("pnnx", "ncnn", "numpy"),
}
NPM = "@litertjs/core"
HEAD = """
import subprocess, sys
import numpy as np
by_hand = False
model, photos, out, bin, base = sys.argv[1], np.load(sys.argv[2]), sys.argv[3], sys.argv[4], sys.argv[5]

def tool(*command):
    done = subprocess.run([f"{bin}/{command[0]}", *command[1:]], capture_output=True, text=True)
    print(done.stdout[-20000:], done.stderr[-20000:])
    if done.returncode:
        lines = (done.stdout + done.stderr).splitlines()
        said = [line for line in lines if "error" in line.lower() or "not supported" in line.lower()]
        sys.exit(f"{command[0]} ended with {done.returncode}: " + " | ".join((said or lines[-1:])[:2]))
"""
SCRIPTS = {
    "tract": """
import tract
runnable = tract.onnx().load(model).into_model().into_runnable()
np.save(out, np.concatenate([runnable.run([photo[None]])[0].to_numpy() for photo in photos]))
""",
    "IREE": """
import iree.runtime as rt
tool("iree-import-onnx", model, "-o", base + ".mlir")
tool("iree-compile", base + ".mlir", "--iree-hal-target-backends=llvm-cpu", "--iree-llvmcpu-target-cpu=host",
     "-o", base + ".vmfb")
module = rt.load_vm_flatbuffer_file(base + ".vmfb", driver="local-task")
run = module[[name for name in module.vm_module.function_names if not name.startswith("__") and "$" not in name][0]]
np.save(out, np.concatenate([np.asarray(run(photo[None])) for photo in photos]))
""",
    "MNN": """
import MNN
tool("mnnconvert", "-f", "ONNX", "--modelFile", model, "--MNNModel", base + ".mnn", "--bizCode", "leaf")
net = MNN.nn.load_module_from_file(base + ".mnn", ["pixels"], ["logits"])
found = []
for photo in photos:
    pixels = MNN.expr.placeholder([1, *photo.shape], MNN.expr.NCHW, MNN.expr.uint8)
    pixels.write(photo[None].copy())
    answers = net.forward([pixels])
    if not answers:
        sys.exit("the file is converted, and gives no logits when it is run")
    found.append(np.array(MNN.expr.convert(answers[0], MNN.expr.NCHW).read()).reshape(1, -1))
np.save(out, np.concatenate(found))
""",
    "ncnn": """
import ncnn
size = photos.shape[1]
tool("pnnx", model, f"inputshape=[1,{size},{size},3]u8", f"ncnnparam={base}.param", f"ncnnbin={base}.bin",
     f"pnnxparam={base}.pnnx.param", f"pnnxbin={base}.pnnx.bin", f"pnnxpy={base}_p.py", f"pnnxonnx={base}.p.onnx",
     f"ncnnpy={base}_n.py")
kinds = {line.split()[0] for line in open(base + ".param")}
foreign = ("pnnx.", "aten", "onnx", "prim", "torch.", "F.", "nn.", "Tensor.")
unknown = sorted(kind for kind in kinds if kind.startswith(foreign))
if unknown == ["Tensor.to"] and by_hand:
    text = open(base + ".param").read()
    open(base + ".param", "w").write(text.replace("\\nTensor.to ", "\\nNoop "))
net = ncnn.Net()
if net.load_param(base + ".param") or net.load_model(base + ".bin"):
    sys.exit(f"ncnn does not load what pnnx wrote: {', '.join(unknown)}")
found = []
for photo in photos:
    extractor = net.create_extractor()
    pixels = np.ascontiguousarray(photo, np.float32)  # ncnn reads this memory: it has to outlive the call
    matrix = ncnn.Mat(pixels)
    extractor.input("in0", matrix)
    code, logits = extractor.extract("out0")
    if code:
        sys.exit(f"ncnn's extract ended with {code}")
    found.append(np.array(logits).reshape(1, -1))
np.save(out, np.concatenate(found))
""",
}
# ncnn's numbers are all floats: the cast that it lacks can be left out, by hand.
SCRIPTS["ncnn, cast taken out"] = "by_hand = True" + SCRIPTS["ncnn"]
PAGE = """<!doctype html><script type="importmap">{"imports": {
"@litertjs/core": "/node_modules/@litertjs/core/dist/index.js",
"@litertjs/wasm-utils": "/node_modules/@litertjs/wasm-utils/dist/index.js"}}</script><script type="module">
import * as litert from '@litertjs/core';
window.litert = litert;
</script>"""
IN_THE_PAGE = """async ([file, photos, shape]) => {
    if (!window.loaded) window.loaded = litert.loadLiteRt('/node_modules/@litertjs/core/wasm/');
    await window.loaded;
    const model = await litert.loadAndCompile(file, {accelerator: 'wasm'});
    const found = [];
    for (const photo of photos) {
        const pixels = new litert.Tensor(Uint8Array.from(photo), shape);
        const [logits] = await model.run([pixels]);
        found.push(Array.from(await logits.data()));
        pixels.delete();
        logits.delete();
    }
    model.delete();
    return found;
}"""


def run(*words: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603 - our own command lines
        [*map(str, words)], text=True, **{"capture_output": True, "check": True} | options
    )


def new_photos(side: int) -> NDArray[np.uint8]:
    """Leaves of which none was trained on: other seeds than `draw_leaves` makes."""
    return np.stack(
        [
            np.asarray(
                draw_leaf(
                    CLASSES[index % len(CLASSES)],
                    np.random.default_rng((7, index)),
                    np.random.default_rng((8, index)),
                    side,
                )
            )
            for index in range(PHOTOS)
        ]
    )


def tomato(work: Path) -> dict[str, Path]:
    """The shipped files as `--batch 1` writes them."""
    import onnx

    files = {}
    for precision in ("fp32", "int8"):
        network = onnx.load(TOMATO / f"tomato-{precision}.onnx")
        for value in (*network.graph.input, *network.graph.output, *network.graph.value_info):
            for size in value.type.tensor_type.shape.dim[:1]:
                if size.dim_param:
                    size.dim_value = 1
        file = work / f"tomato-{precision}-onnx.onnx"
        onnx.save(network, file)
        read_manifest(TOMATO / f"tomato-{precision}.json").with_weights(file).write(file.with_suffix(".json"))
        files[f"{precision}.onnx"] = file
    return files


def exported(work: Path, model: str) -> dict[str, Path]:
    """The files of a network, by `precision.suffix`; made where they are missing."""
    leaves, student = work / "leaves", work / f"run-{model}"
    if not leaves.exists():
        draw_leaves(leaves, leaves_per_class=40, shots_per_leaf=2, image_size=96)
    if not (student / "manifest.json").exists():
        fit = FitSettings(model=model, epochs=3, batch_size=32, workers=0, precision="fp32")
        train(leaves, student, TrainConfig(data=DataSettings(image_size=SIZE), train=fit))
    files = {}
    for precision in ("fp32", "int8"):
        for suffix, batch in ((".onnx", 1), (".tflite", None)):
            file = work / f"{model}-{precision}-{suffix[1:]}{suffix}"
            if not file.exists():
                export(student, file, precision=precision, batch=batch, force=True)  # type: ignore[arg-type]
            files[f"{precision}{suffix}"] = file
    return files


def in_an_environment(work: Path, engine: str, model: Path, photos: Path) -> NDArray[np.float32] | str:
    """Its logits, or what it said instead."""
    folder = work / f"venv-{engine.split(',')[0]}"
    if not folder.exists():
        run(sys.executable, "-m", "venv", folder)
        run(folder / "bin" / "pip", "install", "--quiet", *PACKAGES[engine.split(",")[0]])
    scratch = work / f"{engine}-{model.stem}"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    # mnnconvert installs a package with the first pip of the PATH and reports its use to a server: neither here.
    env = os.environ | {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
    env |= dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    env |= {"PIP_NO_INDEX": "1"}
    files = model, photos, scratch / "logits.npy", folder / "bin", scratch / "leaf"
    try:
        done = run(
            folder / "bin" / "python",
            "-c",
            HEAD + SCRIPTS[engine],
            *files,
            check=False,
            timeout=LIMIT_S,
            cwd=scratch,
            env=env,
        )
    except subprocess.TimeoutExpired:
        return f"not done after {LIMIT_S} s"
    (scratch / "log.txt").write_text(done.stdout + done.stderr)
    if done.returncode == 0:
        return np.asarray(np.load(scratch / "logits.npy"), np.float32)
    last = done.stderr.strip().splitlines()[-1:] or ["nothing"]
    end = f"ended by signal {-done.returncode}: " if done.returncode < 0 else ""
    return end + last[0].replace(str(work), "").replace(str(folder), "")[:400]


def in_a_browser(
    work: Path, files: list[Path], photos: NDArray[np.uint8], chromium: str
) -> tuple[list[NDArray[np.float32] | str], str]:
    """LiteRT.js's logits of each file, or what it said instead; and the browser's version."""
    from playwright.sync_api import Error, sync_playwright

    site = work / "site"
    site.mkdir(exist_ok=True)
    if not (site / "node_modules").exists():
        run("npm", "install", "--silent", NPM, cwd=site)
    (site / "index.html").write_text(PAGE)
    for file in files:
        shutil.copy(file, site)
    handler = functools.partial(_Quiet, directory=str(site))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    found: list[NDArray[np.float32] | str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        version = browser.version
        for file in files:
            page = browser.new_page()
            said: list[str] = []
            page.on("console", lambda message, said=said: said.append(message.text))
            page.goto(f"http://127.0.0.1:{server.server_port}/")
            page.wait_for_function("window.litert")
            shape = [1, *photos.shape[1:]]
            try:
                rows = page.evaluate(
                    IN_THE_PAGE, [f"/{file.name}", [photo.ravel().tolist() for photo in photos], shape]
                )
                found.append(np.asarray(rows, np.float32))
            except Error as error:
                found.append(" | ".join([*said[-3:], str(error).splitlines()[0]])[:400])
            page.close()
        browser.close()
    server.shutdown()
    return found, version


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Says nothing."""


def compared(found: NDArray[np.float32] | str, expected: NDArray[np.float32], temperature: float) -> dict[str, Any]:
    if isinstance(found, str):
        return {"runs": False, "said": re.sub(r"\s+", " ", found)}
    if found.shape != expected.shape or not np.isfinite(found).all():
        return {"runs": False, "said": f"logits of shape {found.shape}, finite: {bool(np.isfinite(found).all())}"}
    apart = np.abs(_softmax(found / temperature) - _softmax(expected / temperature)).max()
    return {
        "runs": True,
        "same_label": int((found.argmax(1) == expected.argmax(1)).sum()),
        "largest_difference_of_a_probability": float(f"{apart:.2g}"),
        "largest_difference_of_a_logit": float(f"{np.abs(found - expected).max():.2g}"),
    }


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    powers = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True))


def versions(work: Path, engine: str) -> list[str]:
    listed = run(work / f"venv-{engine}" / "bin" / "pip", "freeze")
    wanted = {name.split("[")[0].lower().replace("_", "-") for name in PACKAGES[engine]} | {"onnx"}
    return [line for line in listed.stdout.splitlines() if line.split("==")[0].lower().replace("_", "-") in wanted]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--engines", nargs="+", default=[*SCRIPTS, "LiteRT.js"])
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {}
    installed: dict[str, Any] = {
        "reference": [f"{name}=={metadata.version(name)}" for name in ("onnxruntime", "ai-edge-litert", "torch")]
    }
    for model in arguments.models:
        files = tomato(work) if model == "tomato" else exported(work, model)
        photos = new_photos(224 if model == "tomato" else SIZE)
        np.save(work / "photos.npy", photos)
        results[model] = {}
        expected, temperature = {}, {}
        for name, file in files.items():
            engine = "onnxruntime" if file.suffix == ".onnx" else None
            expected[name] = api.load(file, engine=engine).backend.logits(photos)  # type: ignore[arg-type]
            temperature[name] = read_manifest(file.with_suffix(".json")).temperature
        for engine in arguments.engines:
            names = [name for name in files if name.endswith(".tflite") == (engine == "LiteRT.js")]
            if not names:
                continue
            if engine == "LiteRT.js":
                answers, browser = in_a_browser(work, [files[name] for name in names], photos, arguments.chromium)
                said = run("npm", "ls", NPM, cwd=work / "site")
                installed[engine] = [*re.findall(rf"{NPM}@\S+", said.stdout), f"Chromium {browser}"]
            else:
                answers = [in_an_environment(work, engine, files[name], work / "photos.npy") for name in names]
                installed[engine.split(",")[0]] = versions(work, engine.split(",")[0])
            results[model][engine] = {
                name: compared(answer, expected[name], temperature[name])
                for name, answer in zip(names, answers, strict=True)
            }
            print(model, engine, results[model][engine], file=sys.stderr)
            write_json(work / "partial.json", results)
    document = {
        "machine": machine(),
        "photos": f"{PHOTOS} drawn leaves, of {SIZE} px for the network trained here, of 224 px for tomato",
        "compared_with": "ONNX Runtime (.onnx, --batch 1) and LiteRT (.tflite) on this computer, the same file",
        "installed": installed,
        "results": results,
    }
    publish(document, arguments.out)


if __name__ == "__main__":
    main()
