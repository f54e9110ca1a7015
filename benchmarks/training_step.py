"""What a training step gains from bf16 and from keeping freed memory, on this processor.

    python benchmarks/training_step.py --out docs/performance/training_step.json

Each variant runs in a process of its own (glibc's thresholds cannot be taken back), in turns; medians of all turns.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

from reporting import machine, publish

MODELS = ("mobilenetv3_large_100", "swin_micro_patch4_window4_128")
VARIANTS = (("fp32", False), ("fp32", True), ("bf16", False), ("bf16", True))
IMAGE_SIZE, BATCH_SIZE, STEPS, TURNS = 128, 64, 6, 5


def measure(name: str, precision: str, keep: bool) -> float:
    import torch

    from agridistill.models import create_model
    from agridistill.training.trainer import keep_freed_memory

    if keep:
        keep_freed_memory()
    model = create_model(name, 10, image_size=IMAGE_SIZE).train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    photos = torch.randn(BATCH_SIZE, 3, IMAGE_SIZE, IMAGE_SIZE).to(memory_format=torch.channels_last)
    target = torch.randint(0, 10, (BATCH_SIZE,))
    seconds = []
    for _ in range(STEPS):
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = torch.nn.functional.cross_entropy(model(photos).float(), target)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        seconds.append(time.perf_counter() - start)
    return BATCH_SIZE / statistics.median(seconds[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", nargs=3, metavar=("MODEL", "PRECISION", "KEEP"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(measure(given.one[0], given.one[1], given.one[2] == "True"))
        return
    rows = []
    for name in MODELS:
        taken: dict[tuple[str, bool], list[float]] = {variant: [] for variant in VARIANTS}
        for _ in range(TURNS):
            for precision, keep in VARIANTS:
                command = [sys.executable, __file__, "--one", name, precision, str(keep)]
                done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603 - our own file
                taken[precision, keep].append(float(done.stdout))
        plain = statistics.median(taken["fp32", False])
        for (precision, keep), values in taken.items():
            speed = statistics.median(values)
            rows.append(
                {
                    "model": name,
                    "precision": precision,
                    "keep_freed_memory": keep,
                    "photos_per_s": round(speed, 1),
                    "ratio_to_plain_fp32": round(speed / plain, 2),
                }
            )
            print(rows[-1])
    shape = {"image_size": IMAGE_SIZE, "batch_size": BATCH_SIZE, "turns": TURNS}
    publish({"machine": machine(), **shape, "rows": rows}, given.out)


if __name__ == "__main__":
    main()
