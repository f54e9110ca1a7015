"""The version, for whoever may not import the package's own front."""

__version__ = "0.2.0"
