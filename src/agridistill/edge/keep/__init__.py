"""Keeps the photos that are worth a look by people: unsure, unfamiliar, of an alert, and a sample of the rest.

They lie in a folder within a limit of bytes, each with a JSON sidecar, and can be uploaded by HTTP PUT.
"""

from agridistill.edge.keep.choice import Keeper, KeepSettings
from agridistill.edge.keep.store import KeptPhotos
from agridistill.edge.keep.upload import Upload

__all__ = ["KeepSettings", "Keeper", "KeptPhotos", "Upload"]
