"""What the machine at hand gains from: precision and memory."""

from __future__ import annotations

import copy
import ctypes
import platform
import statistics
import sys
import time
from typing import Literal

import torch
from torch import Tensor, nn

Precision = Literal["fp32", "bf16"]

# bf16 must pay for its coarser arithmetic: below this gain fp32 stays.
MIN_BF16_GAIN = 1.15
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def choose_precision(model: nn.Module, image_size: int, device: torch.device) -> Precision:
    """Measures whether training steps are faster in bf16 than in fp32.

    MobileNetV3 loses with bf16 on processors where a Swin doubles its speed, so the network itself is timed: three
    steps of each on a copy, in turns, medians.

    Args:
        model: takes `(B, 3, image_size, image_size)` float32.
        image_size: in pixels.
        device: where training will run.
    """
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if device.type != "cpu":
        return "fp32"
    with torch.random.fork_rng(devices=[]):
        trial = copy.deepcopy(model).train().to(memory_format=torch.channels_last)
        photos = torch.randn(8, 3, image_size, image_size).to(memory_format=torch.channels_last)
        seconds: dict[Precision, list[float]] = {"fp32": [], "bf16": []}
        for turn in range(4):
            for precision, taken in seconds.items():
                elapsed = _time_step(trial, photos, precision)
                if turn:  # the first turn only warms up
                    taken.append(elapsed)
    gain = statistics.median(seconds["fp32"]) / statistics.median(seconds["bf16"])
    return "bf16" if gain >= MIN_BF16_GAIN else "fp32"


def keep_freed_memory() -> None:
    """Tells glibc to keep freed tensors for the next step instead of handing them back to the system.

    By default each tensor over 32 MB is mapped anew in every step, and the kernel clears its pages again: up to a
    third of a MobileNetV3 training step on a CPU. Does nothing on other C libraries.
    """
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL("libc.so.6")
    libc.mallopt(_M_MMAP_THRESHOLD, 1 << 30)
    libc.mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


def _time_step(model: nn.Module, photos: Tensor, precision: Precision) -> float:
    start = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        loss = model(photos).float().square().mean()
    torch.autograd.backward(loss)
    model.zero_grad(set_to_none=True)
    return time.perf_counter() - start
