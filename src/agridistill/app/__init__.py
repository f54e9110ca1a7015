"""Writes the phone page: a static folder with a model that runs in the browser, offline after the first visit.

`page/` in this package contains the page that `make web` builds from `web/`; it is not in the repository.
"""

from __future__ import annotations

from agridistill.app.site import Site, write_site

__all__ = ["Site", "write_site"]
