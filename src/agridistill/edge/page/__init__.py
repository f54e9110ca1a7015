"""The local page with its JSON, and Prometheus's metrics."""

from agridistill.edge.page.server import PageServer, page_address
from agridistill.edge.page.view import Page

__all__ = ["Page", "PageServer", "page_address"]
