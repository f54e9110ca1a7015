"""From a finished run to a file that a device runs.

The attribute `agridistill.export` is the function `agridistill.api.export`; modules are imported from this package by
its path.
"""
