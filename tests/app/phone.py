"""A phone for tests and benchmarks: Chromium with the page of a site, and a server that can be slow or away."""

from __future__ import annotations

import base64
import math
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tests.needs import chromium

from agridistill.app.server import page_answer
from agridistill.local_page import Answer
from agridistill.manifest import Preprocessing
from agridistill.preprocess import enough_pixels
from agridistill.runtime.predictor import read_source

_PACKAGES = Path(__file__).parents[2] / "web" / "node_modules"
ENGINE, LITERT = _PACKAGES / "onnxruntime-web", _PACKAGES / "@litertjs" / "core"
"""Where `make web` has installed the engines: no test needs a network."""
_ARGUMENTS = ("--headless=new", "--no-sandbox", "--no-first-run", "--disable-background-networking", "--mute-audio")
_START_S = 30.0

# All that a test compares; the arrays of a `Seen` would be large as JSON.
_SEE = """async ([encoded, kind, withView]) => {
  const bytes = Uint8Array.from(atob(encoded), (sign) => sign.charCodeAt(0));
  const inBase64 = (content) => new Promise((resolve) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.split(",")[1]);
    reader.readAsDataURL(new Blob([content]));
  });
  const begin = performance.now();
  try {
    const seen = await window.agridistill.see(new Blob([bytes], { type: kind }));
    const milliseconds = performance.now() - begin;
    const { label, probability, probabilities, oodScore, problem, verdict } = seen.prediction;
    const view = withView && { ...seen.view, data: await inBase64(seen.view.data) };
    return { label, probability, probabilities: [...probabilities], oodScore, problem, verdict, view,
      milliseconds, parts: seen.milliseconds };
  } catch (error) {
    return { error: `${error.name ?? "Error"}: ${error.message ?? error}` };
  }
}"""
_ACTIVE = """async () => {
  const registration = await navigator.serviceWorker.getRegistration();
  return Boolean(registration?.active && navigator.serviceWorker.controller);
}"""


class SlowServer:
    """Serves a folder, which may change; counts what it sends, can be slow, and can be away.

    With `all_files` it also serves other files and folders than those of one page, as a web host does.
    """

    def __init__(self, folder: Path, *, all_files: bool = False) -> None:
        self.folder, self.all_files, self.bytes_a_second, self.sent_bytes = folder, all_files, 0, 0
        self.asked: list[str] = []
        outer, lock = self, threading.Lock()

        class Handler(SimpleHTTPRequestHandler):
            def end_headers(self) -> None:
                for name, value in self._page().headers.items():
                    self.send_header(name, value)
                super().end_headers()

            def guess_type(self, path: Any) -> str:
                page = self._page()
                return page.content_type if page.status == HTTPStatus.OK else super().guess_type(path)

            def send_head(self) -> Any:
                self.directory = str(outer.folder)
                if not outer.all_files and self._page().status != HTTPStatus.OK:
                    return self.send_error(HTTPStatus.NOT_FOUND)
                return super().send_head()

            def _page(self) -> Answer:
                return outer.page_answer(self.path.split("?")[0].removeprefix("/"))

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
                """Logs nothing, unlike the base class."""

            def do_GET(self) -> None:
                with lock:
                    outer.asked.append(self.path)
                # Two versions that a test writes within one second have the same time.
                del self.headers["If-Modified-Since"]
                super().do_GET()

            def copyfile(self, source: Any, outputfile: Any) -> None:
                while chunk := source.read(max(1, outer.bytes_a_second // 20) if outer.bytes_a_second else 1 << 16):
                    outputfile.write(chunk)
                    with lock:
                        outer.sent_bytes += len(chunk)
                    if outer.bytes_a_second:
                        time.sleep(0.05)

        self._handler = Handler
        self._server: ThreadingHTTPServer | None = None
        self.port = 0
        self.start()

    @property
    def address(self) -> str:
        return f"http://localhost:{self.port}/"

    def page_answer(self, path: str) -> Answer:
        """What the product's server answers; with `all_files`, the page may lie in a folder of the host."""
        if not self.all_files:
            return page_answer(self.folder, path)
        folder, below, name = path.rpartition("files/") if "files/" in path else path.rpartition("/")
        return page_answer(self.folder / folder, below.removeprefix("/") + name)

    def start(self) -> None:
        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: Any) -> None:
                """A killed browser closes its connections early."""

        self._server = Server(("127.0.0.1", self.port), self._handler)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


@contextmanager
def serving(folder: Path, *, all_files: bool = False) -> Iterator[SlowServer]:
    server = SlowServer(folder, all_files=all_files)
    try:
        yield server
    finally:
        server.stop()


@dataclass
class Phone:
    """A page of the phone page in a browser, with everything that it asked for and complained about."""

    page: Any
    asked: list[str]
    complaints: list[str]

    @classmethod
    def of(cls, page: Any) -> Phone:
        phone = cls(page, [], [])
        page.context.on("request", lambda request: phone.asked.append(request.url))
        page.on("pageerror", lambda error: phone.complaints.append(str(error)))
        page.on("console", lambda message: message.type == "error" and phone.complaints.append(message.text))
        return phone

    def open(self, address: str) -> Phone:
        self.page.goto(address)
        self.engine()
        return self

    def engine(self) -> dict[str, Any]:
        """What runs the model; waits until it does."""
        return dict(self.page.evaluate("window.agridistill.engine()"))

    def release(self) -> str:
        return str(self.page.evaluate("window.agridistill.release"))

    def see(self, photo: bytes, kind: str = "image/jpeg", *, view: bool = False) -> dict[str, Any]:
        """What the page makes of a photo; with `view` also the decoded part of it that the model saw, `(H, W, 3)`."""
        seen = dict(self.page.evaluate(_SEE, [base64.b64encode(photo).decode(), kind, view]))
        if held := seen.get("view"):
            levels = np.frombuffer(base64.b64decode(held["data"]), np.uint8)
            seen["view"] = levels.reshape(held["height"], held["width"], 3)
        return seen

    def wait_until_installed(self, timeout_s: float = 60) -> None:
        """Waits until the service worker answers the page's requests."""
        wait_for(lambda: bool(self.page.evaluate(_ACTIVE)), timeout_s, what="an active service worker")


def wait_for(holds: Callable[[], bool], timeout_s: float = 30, *, what: str) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > deadline:
            raise AssertionError(f"no {what} after {timeout_s} s")
        time.sleep(0.05)


@contextmanager
def browser(playwright: Any, profile: Path, *arguments: str) -> Iterator[tuple[Any, subprocess.Popen[bytes]]]:
    """Starts a Chromium of its own with a profile that stays; yields its first context, and its process.

    Playwright starts none that can be killed and started again with what it has stored.
    """
    profile.mkdir(parents=True, exist_ok=True)
    port_file = profile / "DevToolsActivePort"
    port_file.unlink(missing_ok=True)
    for lock in profile.glob("Singleton*"):
        lock.unlink()  # of a browser that was killed
    command = [str(chromium()), *_ARGUMENTS, *arguments, "--remote-debugging-port=0", f"--user-data-dir={profile}"]
    process = subprocess.Popen(
        [*command, "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        wait_for(lambda: port_file.exists() and "\n" in port_file.read_text(), _START_S, what="start of Chromium")
        port = port_file.read_text().split("\n")[0]
        connected = playwright.chromium.connect_over_cdp(f"http://127.0.0.1:{port}")
        yield connected.contexts[0], process
    finally:
        kill(process)


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kills a browser with all its processes, as an empty battery does."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def decoded_view(photo: bytes, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """The part of a photo that the model sees, as `predict` decodes it: what `Phone.see` returns as `view`."""
    image = read_source(photo, shorter_side=enough_pixels(preprocessing))
    side = min(image.size)
    left, top = ((length - side) / 2 if preprocessing.resize == "crop" else 0.0 for length in image.size)
    x, y = math.ceil(left), math.ceil(top)  # the page shows whole pixels only
    right, bottom = math.floor(image.width - left), math.floor(image.height - top)
    return np.asarray(image.crop((x, y, max(x + 1, right), max(y + 1, bottom))))


def with_script(page: Path, target: Path, mark: str) -> Path:
    """A copy of a built page whose script differs, as the next version's does."""
    shutil.copytree(page, target)
    script = target / "app.js"
    script.write_text(re.sub(r"\s*$", f"\nglobalThis.version={mark!r};\n", script.read_text()))
    return target
