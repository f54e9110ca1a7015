"""Writes the tomato model as an int8 `.tflite` file, from the weights of `models/tomato/tomato-fp32.onnx`.

    python benchmarks/tomato_litert.py PHOTOS OUT

The run that trained the model is gone. Its weights are in the fp32 file, with the batch norms folded into the
convolutions and under the names of the network's parameters. They are put back beside batch norms that change nothing,
in the run folder OUT/run, with the split of the training (`split_seed` 0). Then `agridistill export` does all that it
does for a run. Stops if a weight is left over, if the photos or the split are not those of the training, if the
network's logits are not those of the fp32 file, or if the accuracy on the validation photos falls by more than half a
point.
"""

from __future__ import annotations

import argparse
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from reporting import machine, publish

import agridistill
from agridistill.data.likeness import LEARNT_NAME
from agridistill.data.prepare import PreparedData, prepare_data
from agridistill.data.split import write_split
from agridistill.errors import ModelError
from agridistill.evaluation.evaluate import predict_logits
from agridistill.manifest import MANIFEST_NAME, ModelManifest, read_manifest, sha256_of
from agridistill.models import TorchBackend, create_model, load_network
from agridistill.models.weights import save_weights
from agridistill.runtime.backends import open_artefact
from agridistill.storage import write_json

SOURCE = Path(__file__).parents[1] / "models" / "tomato" / "tomato-fp32.onnx"
NAME = "tomato-tflite-int8.tflite"
SPLIT_SEED, FRACTION, COMPARED = 0, 0.15, 200
LARGEST_DIFFERENCE, LARGEST_LOSS = 1e-3, 0.005


def unfolded(manifest: ModelManifest) -> torch.nn.Module:
    """The network with the weights of the fp32 file, whose batch norms only add."""
    folded = {
        each.name.removeprefix("network."): torch.from_numpy(numpy_helper.to_array(each).copy())
        for each in onnx.load(SOURCE).graph.initializer
        if each.name.startswith("network.")
    }
    network = create_model(manifest.model, len(manifest.classes), image_size=manifest.preprocessing.image_size)
    state, convolution = network.state_dict(), ""
    for key in state.keys() & folded.keys():
        state[key] = folded.pop(key)
    for name, module in network.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            convolution = name
        elif isinstance(module, torch.nn.BatchNorm2d):
            state[f"{name}.bias"] = folded.pop(f"{convolution}.bias")
            state[f"{name}.weight"] = torch.ones_like(module.weight)
            state[f"{name}.running_mean"] = torch.zeros_like(module.running_mean)
            state[f"{name}.running_var"] = torch.ones_like(module.running_var) - module.eps
    if folded:
        raise ModelError("a place for each weight of the fp32 file", f"none for {', '.join(folded)}", "correct this")
    network.load_state_dict(state)
    return network


def write_run(run: Path, photos: Path) -> PreparedData:
    """Writes what an export reads of a run folder."""
    manifest = read_manifest(SOURCE.with_suffix(".json"))
    prepared = prepare_data(photos, split_seed=SPLIT_SEED, val_fraction=FRACTION, test_fraction=FRACTION)
    if prepared.fingerprint != manifest.lineage["data_fingerprint"]:
        raise ModelError("the photos that the model was trained on", f"others in '{photos}'", "pass their folder")
    run.mkdir(parents=True, exist_ok=True)
    save_weights(unfolded(manifest), run / "model.safetensors")
    origin = {"file": SOURCE.name, "sha256": manifest.weights_sha256}
    lineage = {**manifest.lineage, "weights_from": origin}
    replace(manifest, lineage=lineage, measured={}).with_weights(run / "model.safetensors").write(run / MANIFEST_NAME)
    write_json(run / "environment.json", {"data": str(photos.resolve()), "layout": prepared.layout.to_json()})
    shutil.copyfile(SOURCE.with_suffix(".learnt"), run / LEARNT_NAME)
    fractions = {"val_fraction": FRACTION, "test_fraction": FRACTION}
    write_split(run / "splits.json", prepared.split, seed=SPLIT_SEED, fingerprint=prepared.fingerprint, **fractions)
    return prepared


def logit_difference(run: Path, prepared: PreparedData) -> float:
    """The largest difference between the logits of the run's network and of the fp32 file, on validation photos."""
    samples = prepared.val[:: max(1, len(prepared.val) // COMPARED)]
    backends = (TorchBackend(*load_network(run), torch.device("cpu")), open_artefact(SOURCE, engine="onnxruntime"))
    ours, theirs = (predict_logits(each, samples, prepared.root).logits for each in backends)
    return float(np.abs(ours - theirs).max())


def main() -> None:
    logging.basicConfig(format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    run, out = given.out / "run", given.out / NAME
    prepared = write_run(run, given.photos)
    difference = logit_difference(run, prepared)
    if difference > LARGEST_DIFFERENCE:
        raise ModelError("the logits of the fp32 file", f"a difference of {difference:.2g}", "correct this")
    exported = agridistill.export(run, out, precision="int8")
    if (loss := exported.parity.network_accuracy - exported.parity.accuracy) > LARGEST_LOSS:
        out.unlink()
        raise ModelError("at most half a point less on validation", f"{100 * loss:.2f} points", "do not ship it")
    counts = {name: len(paths) for name, paths in prepared.split.parts().items()}
    publish(
        {
            "machine": machine(),
            "split": counts,
            "largest_logit_difference_to_fp32_file": difference,
            "sha256": sha256_of(out),
            **exported.to_json(),
        },
        None,
    )


if __name__ == "__main__":
    main()
