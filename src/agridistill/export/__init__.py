"""Converts a finished run to a file that a device runs.

The attribute `agridistill.export` is the function `agridistill.api.export`. To use a module of this package, import it
by its path, such as `from agridistill.export.parity import compare`.
"""
