"""`benchmark`: what models cost on this machine, each measured in a process of its own, in turns.

The attribute `agridistill.benchmark` is this package's function; modules are imported from this package by its path.
"""

from __future__ import annotations

from agridistill.benchmark.run import benchmark

__all__ = ["benchmark"]
