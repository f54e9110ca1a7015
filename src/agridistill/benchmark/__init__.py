"""`benchmark`: what models cost on this machine, each measured in a process of its own, in turns.

`agridistill.benchmark(...)` is the public function and `agridistill.benchmark` the package that holds it: Python keeps
only one of the two under a name, so the package itself can be called.
"""

from __future__ import annotations

import inspect
import sys
from types import ModuleType

from agridistill.benchmark.run import benchmark

__all__ = ["benchmark"]


class _CallablePackage(ModuleType):
    """This package, called like the function that it is named after."""

    __call__ = staticmethod(benchmark)
    __signature__ = inspect.signature(benchmark)


sys.modules[__name__].__class__ = _CallablePackage
