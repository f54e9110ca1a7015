"""The page in a real browser, offline: no error, no missing picture, nothing wider than a phone."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.needs import chromium

from agridistill.report.page import report

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = chromium()


@pytest.mark.needs("chromium")
@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)])
def test_the_page_opens_offline_without_an_error_or_a_missing_picture(study: Path, width: int, height: int) -> None:
    page_file = report(study).page
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        context = browser.new_context(offline=True, viewport={"width": width, "height": height})
        page = context.new_page()
        complaints: list[str] = []
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("requestfailed", lambda request: complaints.append(request.url[:80]))
        page.goto(page_file.as_uri())
        pictures = page.evaluate("[...document.images].map(one => one.complete && one.naturalWidth > 0)")
        drawn = page.evaluate("[...document.querySelectorAll('svg')].map(one => one.getBoundingClientRect().height)")
        wide = page.evaluate("document.documentElement.scrollWidth")
        browser.close()
    assert complaints == []
    assert len(pictures) == 5  # a photo with two overlays, and two mistakes
    assert all(pictures)
    assert len(drawn) >= 10
    assert min(drawn) > 50
    assert wide <= width
