r"""Ways to 8 bits: what each costs in accuracy and how large its file is.

    python benchmarks/int8_variants.py PHOTOS --run STUDENT [--int8-run RUN] --work FOLDER \
        --out docs/performance/int8.json

The tools' own post-training quantisation beside ours, on the same fp32 network and the same 256 representative photos:
per tensor or per channel, min-max, percentile or least error, with and without equalised channels, and distilled on
with the roundings in place (`agridistill distill --int8`). Variants are chosen by the validation split; the test split
is reported beside it. Latency: one photo at a time on one core, all variants and engines in turns, the median. Every
file stays in the work folder, for `agridistill benchmark`. Needs the extras `export` and `litert`, and openvino.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from reporting import machine, publish

from agridistill.api import load
from agridistill.evaluation.calibration import REPRESENTATIVE_PHOTOS, representative_batches
from agridistill.evaluation.evaluate import LabelledLogits, predict_logits, score
from agridistill.evaluation.held_out import ChosenPhotos, choose_photos
from agridistill.evaluation.metrics import fit_temperature
from agridistill.export.litert import to_litert
from agridistill.export.onnx import to_onnx
from agridistill.models import TorchBackend, load_network
from agridistill.models.int8 import calibrate, folded, quantised
from agridistill.models.rounding import Ranges
from agridistill.preprocess import Pixels
from agridistill.runtime.backends import manifest_path
from agridistill.runtime.predictor import read_batches

TURNS, QUERIES, WARM_UP = 10, 30, 5


class Variants:
    """Makes each file once."""

    def __init__(self, run: Path, int8_run: Path | None, train: ChosenPhotos, work: Path) -> None:
        self.network, self.manifest = load_network(run)
        self.int8_run, self.train, self.work = int8_run, train, work

    def table(self) -> dict[str, Callable[[Path], None]]:
        """How each file is made, by its name."""
        tools: dict[str, Callable[[Path], None]] = {
            "tool-per-tensor.onnx": lambda path: self.onnx_tool(path, per_channel=False),
            "tool-per-channel.onnx": lambda path: self.onnx_tool(path),
            "tool-percentile.onnx": lambda path: self.onnx_tool(path, method="Percentile"),
            "tool-conv-gemm.onnx": lambda path: self.onnx_tool(path, operators=["Conv", "Gemm"]),
            "tool.tflite": self.litert_tool,
        }
        ours: dict[str, Callable[[Path], None]] = {}
        for suffix in (".onnx", ".tflite"):
            ours |= {
                f"fp32{suffix}": self.fp32,
                f"min-max{suffix}": lambda path: self.ours(path, "min_max", equalised=False),
                f"least-error{suffix}": lambda path: self.ours(path, "least_error", equalised=False),
                f"equalised-min-max{suffix}": lambda path: self.ours(path, "min_max", equalised=True),
                f"equalised{suffix}": lambda path: self.ours(path, "least_error", equalised=True),
            }
            if self.int8_run is not None:
                ours[f"distilled{suffix}"] = partial(self.distilled, self.int8_run)
        # The tools start from our fp32 files.
        return dict(sorted(ours.items(), key=lambda item: not item[0].startswith("fp32"))) | tools

    def write(self, path: Path, network: Any, *, int8: bool) -> None:
        shape = self.manifest.preprocessing
        convert = to_onnx if path.suffix == ".onnx" else to_litert
        made = convert(network, shape, int8=int8)
        path.write_bytes(made if isinstance(made, bytes) else made.SerializeToString())

    def fp32(self, path: Path) -> None:
        self.write(path, folded(self.network), int8=False)

    def ours(self, path: Path, ranges: Ranges, *, equalised: bool) -> None:
        rounded = quantised(self.network, self.manifest.preprocessing, equalised=equalised)
        batches = representative_batches(self.train.root, self.train.samples, self.manifest.preprocessing)
        calibrate(rounded, batches, ranges=ranges)
        self.write(path, rounded, int8=True)

    def distilled(self, run: Path, path: Path) -> None:
        self.write(path, load_network(run)[0], int8=True)

    def pixels(self) -> Iterator[Pixels]:
        """The photos that `representative_batches` takes, as an artefact gets them."""
        step = max(1, len(self.train.samples) // REPRESENTATIVE_PHOTOS)
        paths = [self.train.root / sample.path for sample in self.train.samples[::step]]
        for batch in read_batches(paths, self.manifest.preprocessing, batch_size=1):
            yield np.stack([pixels for _, pixels in batch])

    def onnx_tool(
        self, path: Path, *, per_channel: bool = True, method: str = "MinMax", operators: list[str] | None = None
    ) -> None:
        from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process

        prepared = self.work / "prepared.onnx"
        quant_pre_process(str(self.work / "onnx" / "fp32.onnx"), str(prepared))
        photos = self.pixels()

        class Reader:
            def get_next(self) -> dict[str, Pixels] | None:
                photo = next(photos, None)
                return None if photo is None else {"pixels": photo}

        quantize_static(
            str(prepared),
            str(path),
            Reader(),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=per_channel,
            calibrate_method=CalibrationMethod[method],
            op_types_to_quantize=operators,
        )
        prepared.unlink()

    def litert_tool(self, path: Path) -> None:
        from ai_edge_litert.interpreter import Interpreter
        from ai_edge_quantizer import quantizer, recipe

        source = str(self.work / "tflite" / "fp32.tflite")
        (signature, names), *_ = Interpreter(source).get_signature_list().items()
        tool = quantizer.Quantizer(source)
        tool.load_quantization_recipe(recipe.static_wi8_ai8())
        result = tool.calibrate({signature: [{names["inputs"][0]: photo} for photo in self.pixels()]})
        tool.quantize(result).export_model(str(path), overwrite=True)


def figures(val: LabelledLogits, test: LabelledLogits, manifest: Any) -> dict[str, Any]:
    """Accuracies in percent, and the calibration error after the variant's own temperature."""
    own = replace(manifest, temperature=fit_temperature(val.logits, val.target))
    tested = score(test, own, split="test")
    return {
        "val_accuracy_percent": round(100 * score(val, own, split="val").accuracy, 2),
        "test_accuracy_percent": round(100 * tested.accuracy, 2),
        "test_nll_nats": round(tested.nll_nats, 4),
        "test_calibration_error": round(tested.calibration_error, 4),
        "temperature": round(own.temperature, 3),
    }


def latencies(paths: Sequence[Path]) -> dict[Path, dict[str, float]]:
    """Milliseconds of one photo with each engine that runs the file."""
    backends = {}
    for path in paths:
        for engine in ("litert",) if path.suffix == ".tflite" else ("onnxruntime", "openvino"):
            backends[path, engine] = load(path, engine=engine, threads=1).backend
    spent: dict[tuple[Path, str], list[float]] = {key: [] for key in backends}
    for _ in range(TURNS):
        for (path, engine), backend in backends.items():
            size = backend.manifest.preprocessing.image_size
            photo = np.random.default_rng(0).integers(0, 256, (1, size, size, 3), np.uint8)
            for query in range(WARM_UP + QUERIES):
                begin = time.perf_counter()
                backend.logits(photo)
                if query >= WARM_UP:
                    spent[path, engine].append(1e3 * (time.perf_counter() - begin))
    found: dict[Path, dict[str, float]] = {path: {} for path in paths}
    for (path, engine), times in spent.items():
        found[path][engine] = round(median(times), 2)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--int8-run", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--only", nargs="*", help="names of files; all where left away")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    network, manifest = load_network(given.run)
    train, val, test = (
        choose_photos(manifest, given.photos, split=split, own_split=given.run / "splits.json")
        for split in ("train", "val", "test")
    )
    backend = TorchBackend(network, manifest)
    expected = predict_logits(backend, val.samples, val.root)
    rows = [{"variant": "network", **figures(expected, predict_logits(backend, test.samples, test.root), manifest)}]
    variants = Variants(given.run, given.int8_run, train, given.work)
    for name, make in variants.table().items():
        # A folder for each format: NAME.onnx and NAME.tflite would share NAME.json.
        path = given.work / name.rpartition(".")[2] / name
        path.parent.mkdir(exist_ok=True)
        if not path.exists():
            if given.only is not None and name not in given.only:
                continue
            make(path)
            manifest.with_weights(path).write(manifest_path(path))
        artefact = load(path).backend
        said = predict_logits(artefact, val.samples, val.root)
        row = figures(said, predict_logits(artefact, test.samples, test.root), manifest)
        agreement = float((said.logits.argmax(1) == expected.logits.argmax(1)).mean())
        rows.append({"variant": name, **row, "val_agreement": round(agreement, 4), "size_bytes": path.stat().st_size})
        print(rows[-1], flush=True)
    files = {row["variant"]: given.work / row["variant"].rpartition(".")[2] / row["variant"] for row in rows[1:]}
    timed = latencies(list(files.values()))
    for row in rows[1:]:
        row["latency_ms"] = timed[files[row["variant"]]]
    publish({"machine": machine(), "run": given.run.name, "photos": len(test.samples), "variants": rows}, given.out)


if __name__ == "__main__":
    main()
