"""Writes the phone page: a static folder with a model that runs in the browser, offline after the first visit.

`page/` in this package is the page as `make web` builds it from `web/`; it is no part of the repository.
"""

from __future__ import annotations

from agridistill.app.site import Site, write_site

__all__ = ["Site", "write_site"]
