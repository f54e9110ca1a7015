"""Where frames come from: a watched folder, HTTP cameras, and cameras, streams and videos through OpenCV.

`open_source` chooses one by its text; `LatestFrame` reads it in a thread. To add one, implement `Source` in a module of
its own and add its kind in `reader`.
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
