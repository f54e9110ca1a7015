"""Serves a page of this machine over HTTP, to this machine alone or to clients that send its token."""

from agridistill.local_page.requests import HTML, Access, Answer, PageHandler, to_bytes, to_json
from agridistill.local_page.server import LocalServer, is_loopback, page_url, serving_page

__all__ = [
    "HTML",
    "Access",
    "Answer",
    "LocalServer",
    "PageHandler",
    "is_loopback",
    "page_url",
    "serving_page",
    "to_bytes",
    "to_json",
]
