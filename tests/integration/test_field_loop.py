"""From a device that is unsure to the fleet's new model (docs/field-loop.md): each step is a person's command."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.edge.conftest import wait_for
from tests.edge.keep.servers import PASSWORD, USER, WebDav
from tests.needs import chromium
from tests.review.test_page_in_browser import Reviewed, wait_for_lines

from agridistill.data.drawn_leaves import CLASSES, draw_leaves

playwright = pytest.importorskip("playwright.sync_api")
pytestmark = [pytest.mark.slow, pytest.mark.needs("chromium", "rclone")]

SIZE, LABELLED = 96, 8  # px; leaves of each class that a person labels, of each visit
LEARN, PROVE = 12, 10  # leaves of each class that the device sees before the two visits; a look-alike is not asked for


def run(*words: object, folder: Path) -> dict[str, Any]:
    """Runs a command; returns its JSON document."""
    command = [sys.executable, "-m", "agridistill", *map(str, words), "--json"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(json.loads(done.stdout))


def red_variety(folder: Path, leaves: int, seed: int) -> Path:
    """Draws leaves of a variety with red leaves: the same conditions, a look that no model has learnt."""
    draw_leaves(folder, leaves_per_class=leaves, shots_per_leaf=1, image_size=SIZE, seed=seed)
    for photo in folder.rglob("*.jpg"):
        pixels = np.asarray(Image.open(photo))[..., [1, 0, 2]]
        Image.fromarray(pixels).save(photo, quality=95)
    return folder


class Device:
    """`agridistill watch` as a process, and the lines that it prints."""

    def __init__(self, folder: Path) -> None:
        words = [sys.executable, "-m", "agridistill", "watch", "--config", "watch.toml", "--state", "state", "--json"]
        environment = os.environ | {"AGRIDISTILL_KEEP_PASSWORD": PASSWORD}
        self.lines: list[dict[str, Any]] = []
        self.process = subprocess.Popen(words, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.lines += map(json.loads, self.process.stdout)

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(30)
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()


@contextmanager
def device(folder: Path) -> Iterator[Device]:
    started = Device(folder)
    try:
        yield started
    finally:
        started.close()


def be_seen(drawn: Path, inbox: Path, leaves: int) -> dict[bytes, str]:
    """Draws red leaves and puts them into the inbox; returns their conditions by their pixels."""
    photos = sorted(red_variety(drawn, leaves, seed=leaves).rglob("*.jpg"))
    arrive(inbox, photos)
    return {pixels(photo): photo.parent.name for photo in photos}


def collect(server: WebDav, count: int, folder: Path) -> None:
    """Waits until the server has so many kept photos, and moves them to a folder."""
    wait_for(lambda: len(complete(server.folder)) == count, 60, "the kept photos on the server")
    shutil.move(server.folder / "greenhouse-1" / "kept", folder)


def arrive(inbox: Path, photos: list[Path]) -> None:
    for photo in photos:
        part = inbox / f".{photo.name}.part"
        shutil.copy(photo, part)
        part.rename(inbox / photo.name)


def label_by_keyboard(kept: Path, old: Path, lab: Path, truth: dict[bytes, str], folder: Path) -> None:
    """Labels `LABELLED` photos of each class in the browser; further ones stay without a label."""
    words = [sys.executable, "-m", "agridistill", "review", kept, "--model", old, "--classes", lab, "--port", "0"]
    with subprocess.Popen([*map(str, words)], cwd=folder, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        address = next(word for line in server.stderr for word in line.split() if word.startswith("http://"))
        drain = threading.Thread(target=server.stderr.read)
        drain.start()
        left = dict.fromkeys(CLASSES, LABELLED)
        with playwright.sync_playwright() as started:
            browser = started.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
            page = Reviewed(browser, address)
            pressed = 0
            while any(left.values()):
                label = truth[pixels(kept / page.photo())]
                page.press(str(sorted(CLASSES).index(label) + 1) if left[label] else "c")
                left[label] = max(0, left[label] - 1)
                pressed += 1
            wait_for_lines(kept, pressed)
            page.context.close()
            browser.close()
        server.terminate()
        drain.join()


def complete(folder: Path) -> list[Path]:
    """The photos whose sidecar, which is uploaded last, has arrived."""
    return [sidecar for sidecar in folder.rglob("*.json") if sidecar.with_suffix(".jpg").exists()]


def pixels(photo: Path) -> bytes:
    """The picture without its metadata, which the device strips."""
    with Image.open(photo) as image:
        return image.convert("RGB").tobytes()


@pytest.mark.timeout(1500)  # minutes where other tests compute beside it
def test_an_unsure_device_gets_a_model_that_is_surer(tmp_path: Path) -> None:
    lab = draw_leaves(tmp_path / "lab", leaves_per_class=25, shots_per_leaf=1, image_size=SIZE)
    fit = ("--image-size", SIZE, "--epochs", 6)

    # The device has a model that never saw a red leaf.
    run("train", lab, *fit, "--out", "runs/old", folder=tmp_path)
    run("export", "runs/old", "--out", "old/leaf.onnx", folder=tmp_path)
    run("publish", "--new-key", "keys/farm", folder=tmp_path)
    old = tmp_path / "old" / "leaf.onnx"
    release = ("--golden", lab, "--out", "releases", "--key", "keys/farm")
    run("publish", old, *release, "--version", 1, folder=tmp_path)

    server = WebDav(tmp_path / "server")
    server.start()
    (tmp_path / "inbox").mkdir()
    (tmp_path / "watch.toml").write_text(
        f"""
        source = "inbox"
        model = "old/leaf.onnx"
        device = "greenhouse-1"
        quality = {{ darkest = 0.0, brightest = 1.0, blurriest = 0.0, least_leaf = 0.0 }}
        [keep]
        one_in = 1
        upload = "{server.address}"
        user = "{USER}"
        [updates]
        keys = "keys/farm.pub"
        source = "releases"
        every_hours = 0.01
        """
    )
    try:
        with device(tmp_path) as watching:
            # What it keeps until the first visit is to learn from, what it keeps until the second to prove by.
            truth: dict[bytes, str] = {}
            for visit, leaves in (("learn", LEARN), ("prove", PROVE)):
                truth |= be_seen(tmp_path / f"red {visit}", tmp_path / "inbox", leaves)
                collect(server, leaves * len(CLASSES), tmp_path / visit)
                label_by_keyboard(tmp_path / visit, old, lab, truth, tmp_path)
            shutil.copytree(lab, tmp_path / "photos")
            for visit, into in (("learn", "photos"), ("prove", "reviewed")):
                labelled = run("review", visit, "--into", into, folder=tmp_path)
                assert labelled["copied"] == LABELLED * len(CLASSES)

            more = ("--image-size", SIZE, "--epochs", 10)
            run("train", "photos", *more, "--out", "runs/teacher", folder=tmp_path)
            words = ("--teacher", "runs/teacher", "--unlabelled", "learn", "--student", "efficientnet_lite0_even")
            run("distill", "photos", *words, *more, "--out", "runs/new", folder=tmp_path)
            run("export", "runs/new", "--out", "new/leaf.onnx", folder=tmp_path)

            # A release without a proof is refused; with it, the device takes the new model.
            new = tmp_path / "new" / "leaf.onnx"
            # Of eight photos of a class, one is more than the 10 points that the rule allows otherwise.
            rule = ("--out", "proof.json", "--split", "all", "--max-class-drop", 15)
            run("evaluate", new, "reviewed", "--against", old, *rule, folder=tmp_path)
            with pytest.raises(AssertionError, match="proof"):
                run("publish", new, *release, "--version", 2, folder=tmp_path)
            run("publish", new, *release, "--version", 2, "--against", "proof.json", folder=tmp_path)
            installed = tmp_path / "state" / "models" / "current.json"
            wait_for(lambda: installed.exists() and json.loads(installed.read_text())["active"] == 2, 90, "the update")
            later = sorted(red_variety(tmp_path / "later", 2, seed=2).rglob("*.jpg"))
            arrive(tmp_path / "inbox", later)
            wait_for(lambda: len(answers(watching)) == len(truth) + len(later), 60, "the later leaves")
    finally:
        server.stop()

    before, after = answers(watching)[: len(truth)], answers(watching)[len(truth) :]
    sure_before = np.mean([each["verdict"] == "answer" for each in before])
    sure_after = np.mean([each["verdict"] == "answer" for each in after])
    assert sure_after > sure_before
    names = {photo.name: photo.parent.name for photo in later}
    assert np.mean([each["label"] == names[each["photo"]] for each in after]) > 0.8


def answers(watching: Device) -> list[dict[str, Any]]:
    return [line for line in watching.lines if "event_id" in line and "verdict" in line]
