"""The server that tries a page: it sends the page's files, and no other file of the folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from tests.app.conftest import WriteSite

from agridistill.app import Site
from agridistill.app.server import serving_site

OTHERS = (".env", "notes.txt", "photos/leaf.jpg", "files/.token", "files/notes.txt", "files/sub/index.html")


@pytest.fixture
def site(write: WriteSite, tmp_path: Path) -> Site:
    """A page that `--force` has written into a folder with other files."""
    for name in OTHERS:
        path = tmp_path / "site" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("secret")
    (tmp_path / "outside.txt").write_text("secret")
    return write(force=True)


@pytest.fixture
def address(site: Site) -> Iterator[str]:
    with serving_site(site.out) as found:
        yield found


def ask(url: str, method: str = "GET") -> tuple[int, bytes]:
    try:
        with urlopen(Request(url, method=method)) as answer:  # noqa: S310 - our own
            return answer.status, answer.read()
    except HTTPError as error:
        return error.code, b""


def test_every_file_of_the_page_is_sent(site: Site, address: str) -> None:
    written = {path.relative_to(site.out).as_posix() for path in site.out.rglob("*") if path.is_file()} - set(OTHERS)
    assert len(written) == site.files + 1  # release.json is not fetched on a visit
    for name in written:
        assert ask(address + name) == (200, (site.out / name).read_bytes()), name
    page = (site.out / "index.html").read_bytes()
    assert ask(address) == ask(f"{address}?from=icon") == (200, page)
    assert ask(address, "HEAD") == (200, b"")


@pytest.mark.parametrize("name", [*OTHERS, "%2eenv", "files", "files/", "../outside.txt", "%2e%2e/outside.txt"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_no_other_file_of_the_folder_is_sent(address: str, name: str, method: str) -> None:
    assert ask(address + name, method) == (404, b"")
