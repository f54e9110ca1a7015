"""The local page with its JSON, and Prometheus's metrics."""

from agridistill.edge.page.requests import Page
from agridistill.edge.page.server import PageServer, page_address

__all__ = ["Page", "PageServer", "page_address"]
