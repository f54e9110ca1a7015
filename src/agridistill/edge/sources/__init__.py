"""Sources of frames: a watched folder, HTTP cameras, and cameras, streams and videos through OpenCV.

`open_source` creates the source that a text names, and `LatestFrame` reads it in a thread. To add a kind of source,
implement `Source` in a new module, and add the kind to `_kind` and `open_source` in `reader`.
"""

from agridistill.edge.sources.reader import LatestFrame, open_source, require_source, source_identity
from agridistill.edge.sources.source import SourceEndedError, SourceLostError, SourceRefusedError, SourceSettings

__all__ = [
    "LatestFrame",
    "SourceEndedError",
    "SourceLostError",
    "SourceRefusedError",
    "SourceSettings",
    "open_source",
    "require_source",
    "source_identity",
]
