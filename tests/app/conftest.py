"""A site of the stand-in page for the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.app import standin

from agridistill.app import Site, write_site

WriteSite = Callable[..., Site]


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return standin.tarball(tmp_path / "npm")


@pytest.fixture
def page(tmp_path: Path, archive: Path) -> Path:
    return standin.page(tmp_path / "page", archive)


@pytest.fixture
def write(tmp_path: Path, colour_model: Path, page: Path, archive: Path) -> WriteSite:
    """`write_site` with a tiny model and the stand-in page; arguments override."""

    def run(**given: Any) -> Site:
        base = {"model": colour_model, "out": tmp_path / "site", "page": page, "runtime": archive}
        return write_site(**base | given)

    return run
