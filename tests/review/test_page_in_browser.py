"""The page of a review in a real browser: labels by keyboard, undo, a reload, two reviewers, small screens."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.edge.page.test_page_in_browser import CONTRASTS, Watched
from tests.needs import chromium
from tests.review.pages import CLASSES, leaf_photos, served

from agridistill.review.record import Judgements, ReviewLog

playwright = pytest.importorskip("playwright.sync_api")
pytestmark = [pytest.mark.slow, pytest.mark.needs("chromium")]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        found = started.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        yield found
        found.close()


class Reviewed(Watched):
    """A browser with the page of a review."""

    def __init__(self, browser: Any, address: str, **context: Any) -> None:
        super().__init__(browser, **context)
        self.asked_to_stay = 0
        self.requests: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url.removeprefix(address)))
        self.page.goto(address)

    def dialog(self, dialog: Any) -> None:
        if dialog.type == "beforeunload":
            # The page may still wait for the answer to a choice that is already saved: it leaves all the same.
            self.asked_to_stay += 1
            dialog.accept()
        else:
            super().dialog(dialog)

    def photo(self) -> str:
        """Waits for the next photo, and returns its name."""
        self.page.locator("#photo:not(.loading)").wait_for()
        return str(self.page.locator("#photo").get_attribute("alt")).removeprefix("Photo ")

    def press(self, key: str) -> None:
        before = self.photo()
        self.page.keyboard.press(key)
        self.page.locator(f"#photo[alt='Photo {before}']:visible").wait_for(state="detached")

    def text(self, selector: str) -> str:
        return str(self.page.locator(selector).inner_text())


def saved(folder: Path, name: str = "anna") -> dict[str, str]:
    return {
        photo: choice.words for photo, choice in Judgements(ReviewLog(folder / "review.csv").read()).of(name).items()
    }


def wait_for_lines(folder: Path, count: int) -> None:
    deadline, log = time.monotonic() + 20, folder / "review.csv"
    while not log.exists() or len(log.read_text().splitlines()) <= count:
        assert time.monotonic() < deadline, "the choices are not saved"
        time.sleep(0.02)


def test_thirty_photos_are_labelled_by_keyboard(browser: Any, tmp_path: Path, capsys: Any) -> None:
    names = leaf_photos(tmp_path, 31)
    with served(tmp_path, names) as address:
        opened = Reviewed(browser, address)
        opened.photo()
        asked = len(opened.requests)
        start = time.perf_counter()
        for _ in range(30):
            opened.press("1" if opened.photo().endswith("-green.jpg") else "2")
        taken_s = time.perf_counter() - start
        wait_for_lines(tmp_path, 30)
        requests = opened.requests[asked:]
        count = opened.text("#count")
        opened.context.close()
    with capsys.disabled():
        print(f"\n30 photos by keyboard: {60 * 30 / taken_s:.0f} per minute, {1000 * taken_s / 30:.0f} ms each")  # noqa: T201
    assert opened.complaints == []
    assert saved(tmp_path) == {name: CLASSES[number % 2] for number, name in enumerate(names[:30])}
    assert count.startswith("30 of 31")
    # One request saves a choice, one loads a photo, and the list of the next ones is asked for now and then.
    choices = [url for url in requests if url == "api/choice"]
    assert len(choices) == 30
    assert len([url for url in requests if url.startswith("photos/")]) <= 31
    assert len([url for url in requests if url.startswith("api/queue")]) <= 30


def test_undo_reload_and_the_end(browser: Any, tmp_path: Path) -> None:
    names = leaf_photos(tmp_path, 4)
    with served(tmp_path, names) as address:
        opened = Reviewed(browser, address)
        opened.press("1")
        opened.press("n")
        assert opened.photo() == names[2]
        opened.press("u")
        assert opened.photo() == names[1]
        opened.press("s")
        wait_for_lines(tmp_path, 4)
        opened.page.reload()
        assert opened.photo() == names[2]
        assert opened.text("#count").startswith("2 of 4")
        opened.press("c")
        opened.photo()
        opened.page.keyboard.press("2")
        opened.page.locator("#end").wait_for()
        assert opened.text("#count").startswith("4 of 4")
        # Of the end as well the last choice can be taken back, and after a reload too.
        opened.page.reload()
        opened.page.locator("#end").wait_for()
        opened.page.keyboard.press("Control+z")
        assert opened.photo() == names[3]
        opened.context.close()
    assert opened.complaints == []
    assert saved(tmp_path) == {names[0]: "green", names[1]: "several", names[2]: "cannot tell"}


def test_a_page_with_an_unsent_choice_asks_before_it_closes(browser: Any, tmp_path: Path) -> None:
    names = leaf_photos(tmp_path, 3)
    with served(tmp_path, names) as address:
        opened = Reviewed(browser, address)
        opened.photo()
        with opened.page.expect_response("**/api/choice"):
            opened.press("2")
        opened.page.evaluate("new Promise(done => setTimeout(done, 100))")  # until the page has read the answer
        opened.page.reload()
        opened.photo()
        assert opened.asked_to_stay == 0
        held: list[Any] = []
        opened.page.route("**/api/choice", lambda route: held.append(route))
        with opened.page.expect_request("**/api/choice"):
            opened.press("1")
        with opened.page.expect_event("dialog"):
            opened.page.reload()
        assert opened.asked_to_stay == 1
        opened.context.close()
    assert opened.complaints == []


def test_two_reviewers_judge_the_same_photos(browser: Any, tmp_path: Path) -> None:
    names = leaf_photos(tmp_path, 3)
    with served(tmp_path, names, "anna") as first, served(tmp_path, names, "ben") as second:
        both = [Reviewed(browser, first), Reviewed(browser, second)]
        assert [opened.text("#reviewer") for opened in both] == ["anna", "ben"]
        for keys in zip("112", "122", strict=True):
            for opened, key in zip(both, keys, strict=True):
                opened.photo()
                opened.page.keyboard.press(key)
        for opened in both:
            opened.page.locator("#end").wait_for()
            opened.context.close()
    assert list(saved(tmp_path, "anna").values()) == ["green", "green", "red"]
    assert list(saved(tmp_path, "ben").values()) == ["green", "red", "red"]


def test_a_choice_that_is_not_saved_is_reported_and_saved_later(browser: Any, tmp_path: Path) -> None:
    names = leaf_photos(tmp_path, 6)
    with served(tmp_path, names) as address:
        opened = Reviewed(browser, address)
        opened.page.clock.install()
        opened.photo()
        opened.context.set_offline(True)
        opened.press("2")
        opened.page.get_by_text("Not saved, trying again (1 waiting)").wait_for()
        before = opened.photo()
        opened.page.keyboard.press("1")  # waits: nothing is judged that may get lost
        assert opened.photo() == before
        opened.context.set_offline(False)
        opened.page.clock.run_for(3500)
        opened.page.locator("#trouble").wait_for(state="hidden")
        opened.press("1")
        wait_for_lines(tmp_path, 2)
        opened.context.close()
    assert list(saved(tmp_path).items()) == [(names[0], "red"), (names[1], "green")]


def test_a_list_of_photos_that_fails_once_does_not_end_the_review(browser: Any, tmp_path: Path) -> None:
    names = leaf_photos(tmp_path, 9)
    with served(tmp_path, names) as address:
        opened = Reviewed(browser, address)
        opened.page.clock.install()
        opened.photo()
        opened.page.route("**/api/queue*", lambda route: route.fulfill(status=503, body="too many connections"))
        for _ in range(3):
            opened.press("1")
        opened.page.get_by_text("All choices are saved. The next photos cannot be loaded, trying again").wait_for()
        opened.page.unroute("**/api/queue*")
        opened.page.clock.run_for(3500)
        opened.page.locator("#trouble").wait_for(state="hidden")
        for _ in range(5):
            opened.press("1")
        wait_for_lines(tmp_path, 8)
        opened.context.close()


def test_a_choice_made_while_the_next_photos_are_loaded_is_saved(browser: Any, tmp_path: Path) -> None:
    names = leaf_photos(tmp_path, 5)
    with served(tmp_path, names) as address:
        opened = Reviewed(browser, address)
        opened.photo()
        held: list[Any] = []
        opened.page.route("**/api/queue*", lambda route: held.append(route))
        for _ in range(3):
            with opened.page.expect_request("**/api/queue*") if not held else contextlib.nullcontext():
                opened.press("1")
        held[0].continue_()
        opened.page.unroute("**/api/queue*")
        wait_for_lines(tmp_path, 3)
        opened.context.close()


def test_many_classes_are_found_by_their_names(browser: Any, tmp_path: Path) -> None:
    names = leaf_photos(tmp_path, 4)
    classes = [f"class_{letter}" for letter in "abcdefghijklmno"]
    with served(tmp_path, names, classes=classes) as address:
        opened = Reviewed(browser, address)
        opened.press("9")
        opened.photo()
        opened.page.keyboard.press("/")
        opened.page.keyboard.type("class m")
        opened.press("Enter")
        opened.photo()
        opened.page.keyboard.press("/")
        opened.page.keyboard.type("s n")  # no keys for "several" and "not a leaf" while a name is typed
        opened.press("1")
        assert opened.photo() == names[3]
        assert opened.page.evaluate("document.activeElement.id") == "stage"
        wait_for_lines(tmp_path, 3)
        opened.context.close()
    assert list(saved(tmp_path).values()) == ["class_i", "class_m", "class_n"]


def test_the_photo_can_be_enlarged_and_explained(browser: Any, tmp_path: Path) -> None:
    names = leaf_photos(tmp_path, 2)
    with served(tmp_path, names) as address:
        opened = Reviewed(browser, address)
        opened.photo()
        opened.page.keyboard.press("z")
        place = "[document.querySelector('#stage').scrollLeft, document.querySelector('#stage').scrollTop]"
        x, y = opened.page.evaluate(place)
        opened.page.keyboard.press("ArrowRight")
        opened.page.keyboard.press("ArrowDown")
        assert opened.page.evaluate(place) == [x + 120, y + 120]
        opened.page.keyboard.press("z")
        assert opened.page.evaluate(place) == [0, 0]
        assert not any("looked" in url for url in opened.requests)
        opened.page.keyboard.press("l")
        opened.page.locator("#photo[src$='looked.jpg']:not(.loading)").wait_for()
        assert "grey" in opened.text("#caption")
        opened.press("1")
        opened.photo()
        assert opened.page.locator("#look").get_attribute("aria-pressed") == "false"
        opened.context.close()
    assert opened.complaints == []


def test_single_keys_can_be_switched_off(browser: Any, tmp_path: Path) -> None:
    names = leaf_photos(tmp_path, 2)
    with served(tmp_path, names) as address:
        opened = Reviewed(browser, address)
        opened.photo()
        opened.page.locator("summary").click()
        opened.page.get_by_label("Single keys are on").uncheck()
        opened.page.locator("#stage").focus()
        opened.page.keyboard.press("1")
        assert opened.photo() == names[0]
        opened.page.get_by_role("button", name="green").focus()
        opened.press("Enter")
        # The focus stays where it was, for the next photo.
        opened.photo()
        assert opened.page.evaluate("document.activeElement.innerText").endswith("green")
        wait_for_lines(tmp_path, 1)
        opened.context.close()
    assert saved(tmp_path) == {names[0]: "green"}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)])
def test_the_page_is_readable_on_every_screen(
    browser: Any, tmp_path: Path, scheme: str, width: int, height: int
) -> None:
    names = leaf_photos(tmp_path, 3)
    classes = ["late blight of the potato and the tomato", "rust", "healthy", "powdery mildew", "leaf mold"]
    with served(tmp_path, names, classes=classes) as address:
        touch = width < 500
        size = {"width": width, "height": height}
        opened = Reviewed(browser, address, viewport=size, color_scheme=scheme, has_touch=touch, is_mobile=touch)
        opened.photo()
        contrasts = opened.page.evaluate(CONTRASTS)
        wide = opened.page.evaluate("document.documentElement.scrollWidth")
        last = opened.page.locator("#special li").last.bounding_box()
        names_of = opened.page.evaluate("[...document.querySelectorAll('button')].map(one => one.innerText.trim())")
        opened.page.get_by_role("button", name="powdery mildew").click()
        opened.page.get_by_role("status").get_by_text("powdery mildew. Next: the model says red").wait_for()
        opened.context.close()
    assert opened.complaints == []
    assert wide <= width
    assert last["y"] + last["height"] <= height  # nobody scrolls between the photo and the choices
    assert all(names_of[:3])
    assert [(text, ratio) for text, ratio in contrasts if ratio < 4.5] == []
    assert all(url.startswith(address) for url in opened.asked if not url.startswith("data:"))
