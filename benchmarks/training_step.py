"""What makes a training step faster on this processor: precision, compilation, memory, batch norm, optimiser.

    python benchmarks/training_step.py --out docs/performance/training_step.json

"as trained" is what `agridistill train` does. Each variant runs in a process of its own (some settings cannot be taken
back), in turns; medians of all turns. The loss after the steps tells which variants compute the same.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reporting import machine, publish

MODELS = ("mobilenetv3_large_100", "mobilenetv3_large_minimal_100", "swin_micro_patch4_window4_128")
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "as trained": {},
    "freed memory given back": {"keep": False},
    "channels first": {"channels_last": False},
    "bf16": {"precision": "bf16"},
    "compiled (inductor)": {"compiled": True},
    "batch norm frozen": {"frozen_norm": True},
    "denormal numbers as zero": {"flush": True},
    "fused AdamW": {"fused": True},
    "batches of 128": {"batch_size": 128},
}
IMAGE_SIZE, BATCH_SIZE, PHOTOS, TURNS = 128, 64, 512, 3


def measure(
    name: str,
    *,
    precision: str = "fp32",
    keep: bool = True,
    channels_last: bool = True,
    compiled: bool = False,
    frozen_norm: bool = False,
    flush: bool = False,
    fused: bool = False,
    batch_size: int = BATCH_SIZE,
) -> dict[str, float]:
    """Photos per second, seconds of the first step, and the last loss."""
    import torch

    from agridistill.models import create_model
    from agridistill.training.trainer import keep_freed_memory

    if keep:
        keep_freed_memory()
    torch.set_flush_denormal(flush)
    torch.manual_seed(0)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    model: Any = create_model(name, 10, image_size=IMAGE_SIZE).train().to(memory_format=memory_format)
    if frozen_norm:
        for module in model.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=fused)
    photos = torch.randn(batch_size, 3, IMAGE_SIZE, IMAGE_SIZE).to(memory_format=memory_format)
    target = torch.randint(0, 10, (batch_size,))
    if compiled:
        model = torch.compile(model)
    seconds = []
    loss = torch.tensor(0.0)
    for _ in range(PHOTOS // batch_size):
        torch.manual_seed(1)  # drop-out and stochastic depth draw the same in every variant
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = torch.nn.functional.cross_entropy(model(photos).float(), target)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        seconds.append(time.perf_counter() - start)
    return {
        "photos_per_s": batch_size / statistics.median(seconds[1:]),
        "first_step_s": seconds[0],
        "last_loss": loss.item(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS))
    parser.add_argument("--one", nargs=2, metavar=("MODEL", "VARIANT"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.one[0], **VARIANTS[given.one[1]])))
        return
    rows = []
    for name in given.models:
        taken: dict[str, list[dict[str, float]]] = {variant: [] for variant in given.variants}
        for _ in range(TURNS):
            for variant, values in taken.items():
                command = [sys.executable, __file__, "--one", name, variant]
                done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own file
                if done.returncode == 0:
                    values.append(json.loads(done.stdout))
                else:
                    print(f"{name}, {variant}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        plain = statistics.median(value["photos_per_s"] for value in taken["as trained"])
        for variant, values in taken.items():
            if not values:
                continue
            median = {key: statistics.median(value[key] for value in values) for key in values[0]}
            rows.append(
                {
                    "model": name,
                    "variant": variant,
                    "photos_per_s": round(median["photos_per_s"], 1),
                    "times_as_trained": round(median["photos_per_s"] / plain, 2),
                    "first_step_s": round(median["first_step_s"], 2),
                    "last_loss": round(median["last_loss"], 5),
                }
            )
            print(rows[-1], flush=True)
    shape = {"image_size": IMAGE_SIZE, "batch_size": BATCH_SIZE, "turns": TURNS}
    publish({"machine": machine(), **shape, "rows": rows}, given.out)


if __name__ == "__main__":
    main()
