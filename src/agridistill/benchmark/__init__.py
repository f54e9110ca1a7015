"""Measures latency, memory and energy of models on this machine, each in a separate process, in turns.

The attribute `agridistill.benchmark` is the function `benchmark` of this package. To use a module of this package,
import it by its path, such as `from agridistill.benchmark.result import Percentiles`.
"""

from __future__ import annotations

from agridistill.benchmark.run import benchmark

__all__ = ["benchmark"]
