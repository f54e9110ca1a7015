"""Kills a browser in the middle of an update, many times: it must never run a mixture of two releases.

    python -m tests.app.interrupted --kills 50 --out docs/performance/phone_updates.json

Needs the built page and Chromium. Each round starts from a phone that has the first release, lets it fetch the second
one over a slow network, kills the browser at a random moment, and opens the page again, half of the times without a
network. What the page is, what it runs and what it answers must then all be of one release.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from PIL import Image
from tests.app.phone import ENGINE, Phone, SlowServer, browser, kill, serving, wait_for, with_script
from tests.app.photo_forms import stored

from agridistill.app import Site, write_site
from agridistill.app.site import PAGE
from agridistill.manifest import read_manifest

_SLOW_BYTES_A_SECOND = 40_000
_LONGEST_S = 8.0
_MOST_VISITS = 1
# What a page is made of, from four files of its release, and the caches that are there.
_IDENTITY = """async () => ({
  release: window.agridistill.release,
  script: window.version,
  name: document.title,
  words: Object.keys(JSON.parse(document.getElementById("release").textContent).files).length,
  caches: await caches.keys(),
})"""


@dataclass(frozen=True)
class Version:
    """A release, and what a page of it must show."""

    site: Site
    script: str
    label: str


def versions(model: Path, folder: Path, page: Path = PAGE) -> tuple[Version, Version]:
    """Two releases that differ in the script, the name and the model's classes."""
    made = []
    for name, classes in (("first", ("green", "red")), ("second", ("verde", "rojo"))):
        home = folder / name
        home.mkdir(parents=True)
        shutil.copy(model, home / "leaf.onnx")
        document = json.loads(model.with_suffix(".json").read_text())
        (home / "leaf.json").write_text(json.dumps(document | {"classes": classes}))
        assert read_manifest(home / "leaf.json").classes == classes
        marked = with_script(page, home / "page", name)
        site = write_site(home / "leaf.onnx", home / "site", name=name, page=marked, runtime=ENGINE)
        made.append(Version(site, name, classes[1]))
    return made[0], made[1]


def seen_version(phone: Phone, of: tuple[Version, Version]) -> str:
    """Returns which release a page runs; raises an AssertionError if it is a mixture."""
    found: dict[str, Any] = phone.page.evaluate(_IDENTITY)
    red, _ = stored(Image.effect_noise((64, 64), 60).convert("RGB").point([255] * 256 + [0] * 512), "PNG")
    answer = phone.see(red, "image/png")
    parts = {found["script"], found["name"]}
    parts |= {each.script for each in of if each.site.release == found["release"]}
    parts |= {each.script for each in of if each.label == answer.get("label")}
    assert len(parts) == 1, f"a mixture: {found}, {answer}"
    assert "label" in answer, f"a page that does not answer: {found}, {answer}"
    return parts.pop()


def round_of_update(
    playwright: Any, profile: Path, server: SlowServer, of: tuple[Version, Version], random: Random
) -> dict[str, Any]:
    """One killed update; `profile` is that of a phone with the first release."""
    _, second = of
    server.folder, server.bytes_a_second = second.site.out, _SLOW_BYTES_A_SECOND
    with browser(playwright, profile) as (context, process):
        phone = Phone.of(context.new_page())
        phone.page.goto(server.address)
        begin, moment, taps, tapped = time.monotonic(), random.uniform(0, _LONGEST_S), random.random() < 0.5, False
        while time.monotonic() - begin < moment:
            time.sleep(0.02)
            if taps and not tapped and phone.page.locator("#update").is_visible():
                phone.page.locator("#update").click()
                begin, moment, tapped = time.monotonic(), random.uniform(0, 1.5), True
        before = _release(phone)
        assert before == of[0].site.release or (tapped and before in (None, second.site.release))
        kill(process)
    offline = random.random() < 0.5
    if offline:
        server.stop()
    with browser(playwright, profile) as (context, _):
        phone = Phone.of(context.new_page()).open(server.address)
        after = seen_version(phone, of)
        if offline:
            server.start()
        # A later visit takes the new release, whatever the interrupted one has left.
        server.bytes_a_second, visits = 0, 0
        while seen_version(phone, of) == "first":
            visits += 1
            assert visits <= _MOST_VISITS, "an update that never comes"
            phone.page.reload()
            with suppress(AssertionError):
                wait_for(lambda: phone.page.locator("#update").is_visible(), 20, what="the offer of an update")
                phone.page.locator("#update").click()
                wait_for(lambda: _release(phone) == second.site.release, what="the second release")
            phone.engine()
        assert seen_version(phone, of) == "second"
    seen = {"after": after, "tapped": tapped, "offline": offline, "visits_until_second": visits}
    return seen | {"killed_after_s": round(moment, 2)}


def _release(phone: Phone) -> str | None:
    """The release of the page; None while it is loaded again."""
    try:
        return phone.release()
    except Exception:
        return None


def installed(playwright: Any, profile: Path, server: SlowServer, first: Version) -> None:
    """Makes a phone that has the first release, with all of it on its disk."""
    server.folder, server.bytes_a_second = first.site.out, 0
    with browser(playwright, profile) as (context, _):
        phone = Phone.of(context.new_page()).open(server.address)
        phone.wait_until_installed()
        phone.page.reload()
        phone.engine()
        context.browser.close()
        time.sleep(1)  # Chromium writes what it has stored


def run(model: Path, kills: int, folder: Path, seed: int = 0) -> dict[str, Any]:
    """Kills so many updates; returns what the pages were after them."""
    from playwright.sync_api import sync_playwright

    random, rounds = Random(seed), []
    of = versions(model, folder / "versions")
    with sync_playwright() as playwright, serving(of[0].site.out) as server:
        installed(playwright, folder / "phone", server, of[0])
        for number in range(kills):
            profile = folder / f"phone-{number}"
            shutil.copytree(folder / "phone", profile, symlinks=True)
            rounds.append(round_of_update(playwright, profile, server, of, random))
            shutil.rmtree(profile, ignore_errors=True)
            print(f"{number + 1}: {rounds[-1]}", file=sys.stderr)  # noqa: T201 - progress of a long run
    counts = Counter(f"{each['after']}, {'without' if each['offline'] else 'with'} a network" for each in rounds)
    return {"kills": kills, "seed": seed, "mixtures": 0, "after_the_kill": dict(counts), "rounds": rounds}


def main() -> None:
    from tests.colour_model import colour_model_file

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        document = run(colour_model_file(Path(folder) / "model"), given.kills, Path(folder), given.seed)
    text = json.dumps(document, indent=2)
    if given.out:
        given.out.write_text(text + "\n")
    print(text)  # noqa: T201 - the result


if __name__ == "__main__":
    main()
