"""The built page in a real browser: it decides as `predict` does, works without a network, and sends nothing away."""

from __future__ import annotations

import io
import json
import lzma
import os
import re
import shutil
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.app.interrupted import Version, seen_version, versions
from tests.app.phone import ENGINE, LITERT, Phone, SlowServer, decoded_view, serving, wait_for
from tests.app.photo_forms import forms, stored
from tests.edge.looks import filled_history, state
from tests.edge.looks import serving as device_page
from tests.needs import chromium

import agridistill
from agridistill.app import Site, engine_files, write_site
from agridistill.data.drawn_leaves import draw_leaves
from agridistill.runtime.backends import model_path

playwright = pytest.importorskip("playwright.sync_api")
pytestmark = [pytest.mark.slow, pytest.mark.needs("chromium", "page"), pytest.mark.timeout(600)]

MOST_BYTES = 6_000_000
_BEST_PACKING = engine_files._LZMA
_ROOT = Path(__file__).parents[2]
AXE = ENGINE.parent / "axe-core" / "axe.min.js"
WIDTHS = (360, 768, 1280)
# Chromium asks its maker about the fields of forms.
QUIET = "--disable-features=AutofillServerCommunication"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        found = started.chromium.launch(executable_path=chromium(), args=["--no-sandbox", QUIET])
        yield found
        found.close()


@pytest.fixture(scope="module")
def quickly_packed() -> Iterator[None]:
    """The best packing takes a quarter of a minute; for all tests but that of the size a quick one will do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_files, "_LZMA", [{"id": lzma.FILTER_LZMA1, "preset": 0}])
        yield


@pytest.fixture(scope="module")
def site(quickly_packed: None, tmp_path_factory: pytest.TempPathFactory) -> Site:
    """The page of an `.onnx` model."""
    return write_site(model_path("tomato"), tmp_path_factory.mktemp("tomato") / "site", runtime=ENGINE)


@pytest.fixture(scope="module")
def server(site: Site) -> Iterator[SlowServer]:
    with serving(site.out) as found:
        yield found


@pytest.fixture(scope="module")
def two_versions(
    quickly_packed: None, colour_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Version, Version]:
    return versions(colour_model, tmp_path_factory.mktemp("versions"))


@pytest.fixture(scope="module")
def leaf(tmp_path_factory: pytest.TempPathFactory) -> Image.Image:
    """A drawn leaf with lesions, of 256 px; far from the threshold, where no form of it gets another verdict."""
    folder = draw_leaves(tmp_path_factory.mktemp("drawn") / "leaves", leaves_per_class=1, image_size=256)
    with Image.open(sorted((folder / "round_spots").rglob("*.jpg"))[-1]) as image:
        return image.convert("RGB")


@pytest.fixture
def phone(browser: Any, server: SlowServer) -> Iterator[Phone]:
    """A phone that visits the page for the first time."""
    context = browser.new_context(viewport={"width": 360, "height": 740}, locale="en-GB")
    found = Phone.of(context.new_page())
    found.open(server.address)
    yield found
    context.close()


def shoot(phone: Phone, photo: bytes, name: str = "leaf.jpg", kind: str = "image/jpeg") -> None:
    """Chooses a photo as a user does, and waits for an answer or a problem."""
    phone.page.get_by_test_id("gallery-input").set_input_files({"name": name, "mimeType": kind, "buffer": photo})
    phone.page.locator("[data-testid=verdict], [data-testid=problem]").first.wait_for(timeout=60_000)


def test_the_page_decides_as_predict_does_whatever_form_a_photo_has(phone: Phone, leaf: Image.Image) -> None:
    _decides_as(agridistill.load("tomato", engine="onnxruntime"), phone, leaf)


def test_so_does_the_page_of_the_tomato_model(
    browser: Any, quickly_packed: None, leaf: Image.Image, tmp_path: Path
) -> None:
    pytest.importorskip("ai_edge_litert", reason="needs ai-edge-litert: pip install 'agridistill[litert]'")
    site = write_site("tomato", tmp_path / "site", runtime=LITERT)
    with serving(site.out) as server:
        phone = Phone.of(browser.new_page()).open(server.address)
        assert phone.engine()["name"] == "LiteRT.js, relaxed SIMD"
        _decides_as(agridistill.load(model_path("tomato", for_page=True)), phone, leaf)
        phone.wait_until_installed()
        phone.page.close()
        assert [path for path in server.asked if path.endswith(("engine.js", "compat_internal.wasm.lzma"))] == []


def test_so_does_its_other_build_where_the_faster_one_cannot_be_had(
    browser: Any, quickly_packed: None, leaf: Image.Image, tmp_path: Path
) -> None:
    pytest.importorskip("ai_edge_litert", reason="needs ai-edge-litert: pip install 'agridistill[litert]'")
    site = write_site("tomato", tmp_path / "site", runtime=LITERT)
    next((site.out / "files").glob("*-engine-relaxed.js")).unlink()
    with serving(site.out) as server:
        phone = Phone.of(browser.new_page()).open(server.address)
        assert phone.engine()["name"] == "LiteRT.js"
        photo, _ = stored(leaf)
        expected = agridistill.load(model_path("tomato", for_page=True)).predict(photo)
        seen = phone.see(photo)
        assert (seen["verdict"], seen["label"]) == (expected.verdict, expected.label)
        assert seen["probabilities"] == pytest.approx(expected.probabilities, abs=0.01)
        phone.page.close()


def _decides_as(predictor: agridistill.Predictor, phone: Phone, leaf: Image.Image) -> None:
    same_pixels = 0
    made = forms(np.random.default_rng(1))
    for form, make in made.items():
        photo, kind = make(leaf)
        seen, expected = phone.see(photo, kind, view=True), predictor.predict(photo)
        assert "error" not in seen, (form, seen)
        assert (seen["verdict"], seen["problem"]) == (expected.verdict, expected.problem), form
        assert seen["label"] == expected.label, form
        difference = np.abs(np.array(seen["probabilities"]) - expected.probabilities).max()
        view = decoded_view(photo, predictor.manifest.preprocessing)
        assert np.abs(seen["view"].astype(int) - view).mean() < 1, form
        if (seen["view"] == view).all():
            same_pixels += 1
            assert difference < 0.01, form
            assert seen["oodScore"] == pytest.approx(expected.ood_score, rel=0.01), form
    # Decoders of large JPEGs and conversions of colours differ by a level here and there.
    assert same_pixels >= 0.6 * len(made)
    assert phone.complaints == []


@pytest.mark.filterwarnings("ignore")
def test_a_tflite_model_decides_as_predict_does_also_without_a_network(
    browser: Any, quickly_packed: None, leaf: Image.Image, tmp_path: Path
) -> None:
    reason = "needs litert-torch, which is not installed: pip install 'agridistill[litert]'"
    pytest.importorskip("litert_torch", reason=reason)
    model = tflite_model(tmp_path / "leaf.tflite")
    site = write_site(model, tmp_path / "site", runtime=LITERT)
    predictor = agridistill.load(model)
    with serving(site.out) as server:
        context = browser.new_context()
        phone = Phone.of(context.new_page()).open(server.address)
        assert phone.engine()["name"] == "LiteRT.js, relaxed SIMD"
        phone.wait_until_installed()
        server.stop()
        phone.page.reload()
        labels = set()
        for degrees in range(0, 360, 45):
            photo, _ = stored(leaf.rotate(degrees))
            seen, expected = phone.see(photo), predictor.predict(photo)
            assert (seen["verdict"], seen["label"]) == (expected.verdict, expected.label)
            assert seen["probabilities"] == pytest.approx(expected.probabilities, abs=0.001)
            labels.add(round(seen["probability"], 3))
        assert len(labels) > 4  # the model looks at the photo
        assert phone.complaints == []
        context.close()


def tflite_model(file: Path) -> Path:
    """A network with random weights, whose answers differ from photo to photo."""
    import torch

    from agridistill.export.litert import to_litert
    from agridistill.manifest import ModelManifest, Preprocessing
    from agridistill.models import create_model

    torch.manual_seed(0)
    network = create_model("mobilenetv3_small_050", 5, image_size=64)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.5, 0.5)
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    manifest = ModelManifest("mobilenetv3_small_050", tuple("abcde"), Preprocessing(64), "", "")
    file.write_bytes(to_litert(network.eval(), manifest.preprocessing, int8=False))
    manifest.with_weights(file).write(file.with_suffix(".json"))
    return file


def test_a_first_visit_fetches_each_file_once(browser: Any, site: Site) -> None:
    with serving(site.out) as server:
        context = browser.new_context()
        phone = Phone.of(context.new_page())
        phone.open(server.address)
        phone.wait_until_installed()
        context.close()
        # The page itself and its worker are asked for again by the worker that checks them.
        twice = {path for path in server.asked if server.asked.count(path) > 1}
        assert twice <= {"/", "/sw.js", "/index.html"}
        assert server.sent_bytes <= site.first_visit_bytes + 60_000
        assert all(path.lstrip("/") in {"", *(_listed(site))} for path in server.asked), server.asked


def _listed(site: Site) -> set[str]:
    return {str(path.relative_to(site.out)) for path in site.out.rglob("*")}


def test_a_first_visit_takes_at_most_six_megabytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_files, "_LZMA", _BEST_PACKING)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    written = write_site("tomato", tmp_path / "site", runtime=LITERT)
    assert written.first_visit_bytes <= MOST_BYTES
    assert written.files <= 20


def test_without_a_network_the_page_starts_and_answers(browser: Any, site: Site, leaf: Image.Image) -> None:
    photo, _ = stored(leaf)
    with serving(site.out) as server:
        context = browser.new_context()
        phone = Phone.of(context.new_page()).open(server.address)
        online = phone.see(photo)
        phone.wait_until_installed()
        server.stop()
        # Once in the page that was open, and once in a new one.
        phone.page.reload()
        phone.engine()
        again = Phone.of(context.new_page()).open(server.address)
        for each in (phone, again):
            offline = each.see(photo)
            assert offline["label"] == online["label"]
            assert offline["probabilities"] == pytest.approx(online["probabilities"], abs=1e-6)
        assert all(entry.startswith(server.address) for entry in phone.asked if not _is_inside(entry))
        context.close()


@pytest.mark.parametrize("token", [None, "a-token-of-some-length"])
def test_the_page_works_below_the_page_of_a_device(
    browser: Any, site: Site, leaf: Image.Image, tmp_path: Path, token: str | None
) -> None:
    photo, _ = stored(leaf)
    context = browser.new_context()
    phone = Phone.of(context.new_page())
    with filled_history(tmp_path / "history.sqlite") as history:
        with device_page(history, state, token=token, app=site.out) as device:
            phone.page.goto(device.address)
            if token:
                phone.page.get_by_label("Token").fill(token)
                phone.page.get_by_role("button").click()
            phone.page.get_by_role("link", name="phone page").click()
            phone.page.wait_for_url("**/app/")
            phone.engine()
            online = phone.see(photo)
            phone.wait_until_installed()
        phone.page.reload()
        phone.engine()
        assert phone.see(photo)["label"] == online["label"]
    assert [each for each in phone.complaints if "401" not in each] == []
    context.close()


def _is_inside(url: str) -> bool:
    return url.startswith(("blob:", "data:"))


class Elsewhere(socketserver.ThreadingTCPServer):
    """A proxy for all addresses but the page's own; notes who comes."""

    daemon_threads = True

    def __init__(self) -> None:
        self.asked: list[bytes] = []
        super().__init__(("127.0.0.1", 0), socketserver.BaseRequestHandler)

    def finish_request(self, request: Any, client_address: Any) -> None:
        self.asked.append(request.recv(1000))


def test_no_photo_and_nothing_else_leaves_the_page(browser: Any, server: SlowServer, leaf: Image.Image) -> None:
    with Elsewhere() as elsewhere:
        threading.Thread(target=elsewhere.serve_forever, args=(0.02,), daemon=True).start()
        proxy = {"server": f"http://127.0.0.1:{elsewhere.server_address[1]}", "bypass": "localhost"}
        context = browser.new_context(proxy=proxy)
        phone = Phone.of(context.new_page()).open(server.address)
        phone.wait_until_installed()
        # The proxy would see it: what the page itself cannot ask for is asked for here.
        phone.page.evaluate("fetch('http://elsewhere.test/').catch(() => null)")
        assert len(elsewhere.asked) == 1
        asked = len(server.asked)
        shoot(phone, stored(leaf)[0])
        shoot(phone, b"no photo")
        phone.page.wait_for_timeout(500)
        context.close()
        elsewhere.shutdown()
    assert server.asked[asked:] == []
    assert len(elsewhere.asked) == 1, elsewhere.asked


def test_an_open_page_keeps_its_release_until_the_user_takes_the_next(
    browser: Any, two_versions: tuple[Version, Version]
) -> None:
    first, second = two_versions
    with serving(first.site.out) as server:
        context = browser.new_context()
        phone = Phone.of(context.new_page()).open(server.address)
        phone.wait_until_installed()
        server.folder = second.site.out
        phone.page.reload()
        phone.engine()
        assert seen_version(phone, two_versions) == "first"
        phone.page.locator("#update").wait_for(timeout=30_000)
        assert seen_version(phone, two_versions) == "first"
        other = Phone.of(context.new_page()).open(server.address)
        assert seen_version(other, two_versions) == "first"
        with phone.page.expect_navigation(), other.page.expect_navigation():
            phone.page.locator("#update").click()
        for each in (phone, other):
            each.engine()
            assert seen_version(each, two_versions) == "second"
        server.stop()
        phone.page.reload()
        phone.engine()
        assert seen_version(phone, two_versions) == "second"
        wait_for(lambda: len(phone.page.evaluate("caches.keys()")) == 1, what="one cache alone")
        context.close()


def test_an_update_over_a_slow_network_that_ends_leaves_the_release_before(
    browser: Any, two_versions: tuple[Version, Version]
) -> None:
    first, second = two_versions
    with serving(first.site.out) as server:
        context = browser.new_context()
        phone = Phone.of(context.new_page()).open(server.address)
        phone.wait_until_installed()
        server.folder, server.bytes_a_second = second.site.out, 20_000
        asked = len(server.asked)
        phone.page.reload()
        wait_for(lambda: any("-app.js" in path for path in server.asked[asked:]), what="the start of the update")
        phone.engine()
        assert seen_version(phone, two_versions) == "first"
        server.stop()
        phone.page.reload()
        phone.engine()
        assert seen_version(phone, two_versions) == "first"
        server.bytes_a_second = 0
        server.start()
        phone.page.reload()
        phone.page.locator("#update").wait_for(timeout=30_000)
        context.close()


@pytest.fixture
def host(two_versions: tuple[Version, Version], tmp_path: Path) -> Iterator[SlowServer]:
    """A web host with two pages, each in a folder of its own, and another file beside one of them."""
    for name, version in zip(("tomato", "potato"), two_versions, strict=True):
        shutil.copytree(version.site.out, tmp_path / "host" / name)
    (tmp_path / "host" / "tomato" / "guide.txt").write_text("a guide")
    with serving(tmp_path / "host", all_files=True) as found:
        yield found


def kept(phone: Phone) -> tuple[str, str]:
    """How many answers a page keeps, as it says, and the address to which it sends."""
    phone.page.wait_for_timeout(300)  # the history is read after the page has begun
    return phone.page.locator("#history-count").inner_text(), phone.page.get_by_test_id("address").input_value()


def test_pages_of_one_host_leave_each_other_alone(
    browser: Any, host: SlowServer, two_versions: tuple[Version, Version], leaf: Image.Image
) -> None:
    context = browser.new_context()
    tomato = Phone.of(context.new_page()).open(f"{host.address}tomato/")
    tomato.wait_until_installed()
    shoot(tomato, stored(leaf)[0])
    tomato.page.locator("[data-testid=settings] > summary").click()
    tomato.page.get_by_test_id("address").fill("https://farm.test/in")
    tomato.page.get_by_test_id("address").press("Tab")
    potato = Phone.of(context.new_page()).open(f"{host.address}potato/")
    potato.wait_until_installed()
    potato.page.reload()
    potato.engine()
    assert (kept(tomato), kept(potato)) == (("(1)", "https://farm.test/in"), ("", ""))
    host.stop()
    for each, version, expected in ((tomato, "first", ("(1)", "https://farm.test/in")), (potato, "second", ("", ""))):
        each.page.reload()
        each.engine()
        assert seen_version(each, two_versions) == version
        assert kept(each) == expected
    context.close()


def test_other_files_beside_an_installed_page_come_from_the_host(browser: Any, host: SlowServer) -> None:
    context = browser.new_context()
    phone = Phone.of(context.new_page()).open(f"{host.address}tomato/")
    phone.wait_until_installed()
    assert phone.page.evaluate("fetch('guide.txt').then((found) => found.text())") == "a guide"
    context.close()


# What a page of AgriDistill kept before names had the page's path.
_OLD = """() => new Promise((resolve) => {
  localStorage.setItem("agridistill", JSON.stringify({ send: true, address: "https://farm.test/in" }));
  const request = indexedDB.open("agridistill", 1);
  request.onupgradeneeded = () => {
    const answers = request.result.createObjectStore("answers", { keyPath: "id" });
    answers.createIndex("at", "at");
    request.result.createObjectStore("photos");
    answers.add({ id: "ab12", at: "2026-03-01T10:20:30.000Z", verdict: "unsure", problem: "", label: "red",
      probability: 0.5, probabilities: {}, oodScore: null, plant: "ab12", place: null, model: "", photo: "leaf.jpg",
      thumbnail: null });
  };
  request.onsuccess = () => { request.result.close(); resolve(); };
})"""


def test_the_history_and_settings_of_an_earlier_version_stay_with_one_page(browser: Any, host: SlowServer) -> None:
    context = browser.new_context()
    tomato, potato = Phone.of(context.new_page()), Phone.of(context.new_page())
    tomato.page.goto(f"{host.address}tomato/guide.txt")
    tomato.page.evaluate(_OLD)
    for _ in range(2):
        assert kept(tomato.open(f"{host.address}tomato/")) == ("(1)", "https://farm.test/in")
        assert kept(potato.open(f"{host.address}potato/")) == ("", "")
    assert tomato.page.get_by_test_id("send").is_checked()
    assert [each for each in tomato.complaints if "404" not in each] == []  # the guide has no icon
    context.close()


def test_updates_that_are_killed_never_mix_releases(site: Site, tmp_path: Path) -> None:
    # In a process of its own: Playwright runs once in a process, and here it has run since the first test. The site
    # has put its packed engine into the cache.
    out, kills = tmp_path / "updates.json", os.environ.get("AGRIDISTILL_KILLS", "3")
    command = [sys.executable, "-m", "tests.app.interrupted", "--kills", kills, "--out", str(out)]
    subprocess.run(command, check=True, cwd=_ROOT, stdout=subprocess.DEVNULL)
    found = json.loads(out.read_text())
    assert found["mixtures"] == 0
    assert len(found["rounds"]) == int(kills)


@pytest.mark.parametrize(
    ("name", "kind", "content"),
    [
        ("notes.txt", "text/plain", b"no photo"),
        ("empty.jpg", "image/jpeg", b""),
        ("cut-off.png", "image/png", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"),
        ("photo.heic", "image/heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)),
    ],
)
def test_a_file_that_is_no_photo_ends_in_one_plain_sentence(phone: Phone, name: str, kind: str, content: bytes) -> None:
    shoot(phone, content, name, kind)
    (problem,) = phone.page.get_by_test_id("problem").all_inner_texts()
    assert 10 < len(problem) < 200
    assert not re.search(r"Error|undefined|null|NaN|\{", problem), problem
    assert phone.complaints == []


def test_odd_photos_end_in_a_verdict(phone: Phone, leaf: Image.Image) -> None:
    screenshot = Image.new("RGB", (1080, 2400), "white")
    screenshot.paste(leaf, (400, 1000))
    large = leaf.resize((4000, 3000))
    for image in (Image.new("RGB", (1, 1), "green"), screenshot, large):
        seen = phone.see(*stored(image))
        assert seen.get("verdict") in ("answer", "unsure", "unfamiliar", "unusable"), seen
    shoot(phone, stored(large)[0])
    assert phone.page.get_by_test_id("verdict").count() == 1


WIDE = "document.documentElement.scrollWidth"
# Buttons and labels that a thumb must hit.
SMALL = """[...document.querySelectorAll("button, label.button, summary")].filter((each) => each.checkVisibility())
  .map((each) => [each.textContent.trim(), each.getBoundingClientRect().height]).filter(([, height]) => height < 40)"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("language", ["en", "es", "ar"])
def test_the_answer_is_readable_on_every_screen(
    browser: Any, server: SlowServer, leaf: Image.Image, language: str, scheme: str
) -> None:
    context = browser.new_context(color_scheme=scheme, viewport={"width": WIDTHS[0], "height": 740})
    phone = Phone.of(context.new_page()).open(server.address)
    phone.page.get_by_test_id("language").select_option(language)
    shoot(phone, stored(leaf)[0])
    assert phone.page.evaluate("document.documentElement.lang") == language
    assert phone.page.evaluate("getComputedStyle(document.body).direction") == ("rtl" if language == "ar" else "ltr")
    folder = os.environ.get("AGRIDISTILL_SCREENSHOTS")
    for width in WIDTHS:
        phone.page.set_viewport_size({"width": width, "height": 740 if width < 700 else 900})
        assert phone.page.evaluate(WIDE) <= width
        assert phone.page.evaluate(SMALL) == []
        if folder:
            phone.page.screenshot(path=Path(folder) / f"phone-{language}-{scheme}-{width}.png", full_page=True)
    if AXE.exists():
        phone.page.evaluate(AXE.read_text())
        violations = phone.page.evaluate("axe.run().then((found) => found.violations)")
        serious = [each for each in violations if each["impact"] in ("serious", "critical")]
        assert [(each["id"], each["nodes"][0]["html"]) for each in serious] == []
    assert phone.complaints == []
    context.close()


def test_the_words_of_a_class_are_shown_in_the_language_of_the_reader(
    browser: Any, server: SlowServer, site: Site
) -> None:
    folder = os.environ.get("AGRIDISTILL_DATA")
    if folder is None:
        pytest.skip("needs real photos: set AGRIDISTILL_DATA to the folder of PlantVillage's tomatoes")
    predictor = agridistill.load("tomato", engine="onnxruntime")
    photos = sorted(path for path in Path(folder).rglob("*") if "Late_blight" in str(path) and path.is_file())
    photo = next(path for path in photos if predictor.predict(path).verdict == "answer")
    context = browser.new_context(locale="es-ES")
    phone = Phone.of(context.new_page()).open(server.address)
    shoot(phone, photo.read_bytes())
    text = phone.page.get_by_test_id("result").inner_text()
    assert "Tizón tardío" in text
    assert "no fueron escritos por un agrónomo" in phone.page.locator("body").inner_text()
    context.close()


def test_photos_do_not_fill_the_memory(phone: Phone, leaf: Image.Image) -> None:
    photo = stored(leaf.resize((1000, 1000)))[0]
    held = io.BytesIO(photo).getvalue()
    used: list[float] = []
    session = phone.page.context.new_cdp_session(phone.page)
    for _ in range(3):
        for _ in range(8):
            phone.see(held)
        session.send("HeapProfiler.collectGarbage")
        used.append(phone.page.evaluate("performance.memory.usedJSHeapSize") / 1e6)
    assert used[-1] < used[0] + 10, used
