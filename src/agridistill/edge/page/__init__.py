"""The agent's local web page, the same data as JSON, and metrics for Prometheus."""

from agridistill.edge.page.server import PageServer, page_address
from agridistill.edge.page.view import Page

__all__ = ["Page", "PageServer", "page_address"]
