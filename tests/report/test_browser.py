"""The page in a real browser, offline: no error, no missing picture, nothing wider than a phone."""

from __future__ import annotations

import pytest
from tests.needs import chromium
from tests.report.conftest import Reported

pytestmark = pytest.mark.slow

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = chromium()
WIDER = "one => one.scrollWidth > one.clientWidth"
# Height of the smallest text of any plot, in pixels of the screen.
SMALLEST_LETTERS = """Math.min(...[...document.querySelectorAll('figure svg')].flatMap(svg => {
  const scale = svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
  return [...svg.querySelectorAll('text')].map(one => scale * parseFloat(getComputedStyle(one).fontSize));
}))"""


@pytest.mark.needs("chromium")
@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)])
def test_the_page_opens_offline_and_fits(reported: Reported, width: int, height: int) -> None:
    page_file = reported.result.page
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
        tables = page.evaluate(f"[...document.querySelectorAll('.scroll:not(.wide)')].filter({WIDER}).length")
        plots = page.evaluate(f"[...document.querySelectorAll('.wide')].filter({WIDER}).length")
        hints = page.evaluate("[...document.querySelectorAll('.hint')].filter(one => one.offsetHeight).length")
        drawn_px = page.evaluate(SMALLEST_LETTERS)
        browser.close()
    assert complaints == []
    assert len(pictures) == 5  # a photo with two overlays, and two mistakes
    assert all(pictures)
    assert len(drawn) >= 10
    assert min(drawn) > 50
    assert wide <= width
    assert tables == 0
    assert plots <= hints
    assert drawn_px > 6
