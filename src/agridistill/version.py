"""The version of AgriDistill. This module imports nothing, so reading the version is fast."""

__version__ = "0.2.0"
