"""The local page with its JSON, and Prometheus's metrics."""

from agridistill.edge.page.server import PageServer

__all__ = ["PageServer"]
