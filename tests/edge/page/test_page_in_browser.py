"""The page in a real browser, without internet: it is read, refreshes itself, and runs nothing from outside."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.edge.conftest import wait_for
from tests.edge.looks import alert, detection, filled_history, picture, serving, state
from tests.needs import chromium

from agridistill.edge.alerts.rules import PlotHealth
from agridistill.edge.page import PageServer
from agridistill.edge.state import AgentState
from agridistill.edge.store.history import History

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = chromium()
pytestmark = [pytest.mark.slow, pytest.mark.needs("chromium")]
TOKEN = "a-token-of-some-length"  # noqa: S105 - of these tests alone


PLOTS = [
    PlotHealth("north-" + 12 * "long-", time.time(), 86_400.0, 20, 0.4, "Tomato___Late_blight", 10, 0.1),
    PlotHealth("south", time.time(), 86_400.0, 12, 0.02, "Tomato___Late_blight", 9, 0.4),
    PlotHealth("east", time.time(), 86_400.0, 10, 0.2, "Tomato___Late_blight", 10, 0.2),
    PlotHealth("", time.time(), 86_400.0, 2, 0.0, "Tomato___Late_blight"),
]


def silent() -> AgentState:
    return state(cannot_warn="No alert can open: there are no rules.")


class Watched:
    """A browser that notes what goes wrong, and whom else than the page it asks."""

    def __init__(self, browser: Any, **context: Any) -> None:
        self.complaints: list[str] = []
        self.context = browser.new_context(**context)
        self.page = self.context.new_page()
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", self.dialog)
        self.asked: set[str] = set()
        self.page.on("request", lambda request: self.asked.add(request.url))

    def dialog(self, dialog: Any) -> None:
        self.complaints.append(f"a dialog: {dialog.type}")
        dialog.dismiss()  # a page with an open dialog waits for ever

    def pictures_are_there(self) -> bool:
        # Not the browser's own waiting: it evaluates text, which the page's policy forbids.
        return bool(self.page.evaluate("[...document.images].every(one => one.complete && one.naturalWidth > 0)"))

    def count(self, selector: str) -> int:
        return int(self.page.locator(selector).count())


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        found = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    with filled_history(tmp_path / "history.sqlite") as found:
        yield found


@pytest.fixture
def server(history: History) -> Iterator[PageServer]:
    with serving(history, silent, plots=lambda: PLOTS) as found:
        yield found


# WCAG's relative luminance, of what stands on the nearest background.
CONTRASTS = """() => {
  const parts = (css) => css.match(/[0-9.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (node) => { for (; node; node = node.parentElement) {
    const colour = parts(getComputedStyle(node).backgroundColor);
    if (colour.length < 4 || colour[3]) return colour; } };
  const found = [];
  for (const node of document.querySelectorAll("body *")) {
    if (![...node.childNodes].some(one => one.nodeType === 3 && one.data.trim())) continue;
    if (!node.checkVisibility() || node.matches("script, style, noscript")) continue;
    const [a, b] = [light(parts(getComputedStyle(node).color)), light(ground(node))].sort((x, y) => y - x);
    found.push([node.textContent.trim().slice(0, 40), (a + 0.05) / (b + 0.05)]);
  }
  return found;
}"""

# Of each plot's card: its classes, and colour and words of its badge.
PLOT_COLOURS = """[...document.querySelectorAll("li.plot")].map(one => {
  const [, r, g] = getComputedStyle(one.querySelector(".badge")).color.match(/([0-9]+), ([0-9]+)/).map(Number);
  return [one.className, r > 1.3 * g ? "red" : g > 1.3 * r ? "green" : "grey", one.querySelector(".badge").innerText];
})"""

# Of each card's words: how far they end before the card does, and how wide they are.
WORDS = """[...document.querySelectorAll(".card .words")].map(one => {
  const [words, card] = [one.getBoundingClientRect(), one.parentElement.getBoundingClientRect()];
  return [card.right - words.right, words.width];
})"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)])
def test_the_page_is_readable_on_every_screen_and_asks_nobody_else(
    browser: Any, server: PageServer, scheme: str, width: int, height: int
) -> None:
    watched = Watched(browser, viewport={"width": width, "height": height}, color_scheme=scheme)
    watched.page.goto(server.address)
    watched.page.evaluate("scrollTo(0, document.body.scrollHeight)")
    wait_for(watched.pictures_are_there, what="the pictures")
    contrasts = watched.page.evaluate(CONTRASTS)
    words = watched.page.evaluate(WORDS)
    wide = watched.page.evaluate("document.documentElement.scrollWidth")
    plots = watched.page.evaluate(PLOT_COLOURS)
    watched.context.close()
    assert watched.complaints == []
    assert wide <= width
    assert plots[0] == ["plot ill", "red", "! Ill"]
    assert plots[2][1:] == ["green", "✓ Healthy"]
    assert len(words) == 8
    assert all(inside >= 0 and room > 150 for inside, room in words), words
    assert len(contrasts) > 50
    assert [(text, ratio) for text, ratio in contrasts if ratio < 4.5] == []
    assert len(watched.asked) == 1 + 7  # the page and the pictures
    assert all(url.startswith(server.address) for url in watched.asked if not url.startswith("data:"))


def test_names_from_outside_are_shown_and_do_not_run(browser: Any, server: PageServer) -> None:
    watched = Watched(browser)
    watched.page.goto(server.address)
    assert watched.page.get_by_text("onerror=").count() >= 3
    assert watched.count("img[src=x]") == 0
    # Also where something had got in, the page's policy would not let it run.
    watched.page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.ran = 1\">')")
    wait_for(lambda: watched.page.evaluate("document.querySelector('img[src=x]').complete"), what="the refusal")
    assert watched.page.evaluate("window.ran") is None
    watched.context.close()


def test_an_answer_looks_different_from_a_doubt(browser: Any, server: PageServer) -> None:
    watched = Watched(browser)
    watched.page.goto(server.address)
    assert [watched.count(f"li.{verdict}") for verdict in ("answer", "unsure", "unfamiliar", "unusable")] == [
        5,
        1,
        1,
        1,
    ]
    assert watched.count("li.doubt") == 3
    assert watched.count("li.answer .badge") == 5
    border = "one => getComputedStyle(one).borderStyle"
    assert watched.page.locator("li.unsure").evaluate(border) != watched.page.locator("li.answer").first.evaluate(
        border
    )
    watched.context.close()


def test_what_is_new_appears_by_itself_in_the_readers_time(browser: Any, history: History, server: PageServer) -> None:
    watched = Watched(browser, timezone_id="Africa/Kampala", locale="en-GB")
    watched.page.clock.install()
    watched.page.goto(server.address)
    kept = watched.page.locator("li.card").first.element_handle()
    watched.page.clock.run_for(5500)
    # What has not changed stays, with the reader's place in it.
    assert kept.evaluate("one => one.isConnected")
    history.add(detection(30, at_s=1_800_000_000.0, photo="new.jpg"), thumbnail=picture())
    history.put_alerts([(alert(30, text="something new"), 1.0)])
    watched.page.clock.run_for(5500)
    card = watched.page.locator("li.card", has_text="new.jpg")
    card.wait_for()
    watched.page.get_by_text("something new").wait_for()
    assert "15 Jan 2027, 11:00" in card.inner_text()
    wait_for(watched.pictures_are_there, what="the pictures")
    assert watched.complaints == []
    watched.context.close()


def test_an_agent_that_does_not_answer_is_told_until_it_does(browser: Any, server: PageServer) -> None:
    watched = Watched(browser)
    watched.page.clock.install()
    watched.page.goto(server.address)
    away = watched.page.locator("#away")
    assert not away.is_visible()
    watched.context.set_offline(True)
    watched.page.clock.run_for(5500)
    away.wait_for(state="visible")
    assert watched.count("li.card") == 8
    watched.context.set_offline(False)
    watched.page.clock.run_for(5500)
    away.wait_for(state="hidden")
    watched.context.close()


def test_the_page_is_whole_and_refreshes_without_a_script(browser: Any, history: History, server: PageServer) -> None:
    watched = Watched(browser, java_script_enabled=False)
    watched.page.goto(server.address)
    assert watched.count("li.card") == 8
    assert " UTC" in watched.page.locator("li.card").first.inner_text()
    history.add(detection(31, photo="new.jpg"))
    watched.page.get_by_text("new.jpg").wait_for(timeout=20_000)
    watched.context.close()


def test_a_reader_signs_in_with_the_token_once(browser: Any, history: History) -> None:
    with serving(history, state, token=TOKEN) as server:
        watched = Watched(browser)
        watched.page.goto(server.address)
        watched.page.get_by_label("Token").fill("not-the-right-token")
        watched.page.get_by_role("button").click()
        watched.page.get_by_text("This is not the token.").wait_for()
        watched.page.get_by_label("Token").fill(TOKEN)
        watched.page.get_by_role("button").click()
        watched.page.get_by_role("heading", name="Open alerts").wait_for()
        assert watched.page.url == server.address
        watched.page.goto(server.address)
        assert watched.count("li.card") == 8
        assert watched.page.evaluate("document.cookie") == ""
        watched.context.close()
