"""The engine's files: fetched once, and used only with the hashes that the page pins."""

from __future__ import annotations

import http.server
import os
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.app import standin

from agridistill.app.engine_files import REGISTRY, engine_files, read_pinned
from agridistill.errors import ConfigError, FetchError, RunError

EXPECTED = {"engine.wasm": standin.WASM, "engine.mjs": standin.CODE}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(REGISTRY, raising=False)


class Registry(http.server.SimpleHTTPRequestHandler):
    """Serves the archive where a registry does, and counts how often it is asked."""

    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        super().do_GET()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


@pytest.fixture
def registry(tmp_path: Path, archive: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Registry]]:
    folder = tmp_path / "registry" / "engine" / "-"
    folder.mkdir(parents=True)
    (folder / archive.name).write_bytes(archive.read_bytes())
    handler = type("Counting", (Registry,), {"asked": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=tmp_path / "registry")) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv(REGISTRY, f"http://127.0.0.1:{server.server_port}/")
        yield handler
        server.shutdown()


def test_files_are_fetched_once_from_the_registry_of_the_environment(archive: Path, registry: type[Registry]) -> None:
    pinned = standin.package(archive)
    assert engine_files(pinned) == EXPECTED
    assert engine_files(pinned) == EXPECTED
    assert registry.asked == ["/engine/-/engine-1.2.3.tgz"]


def test_a_damaged_file_of_the_cache_is_fetched_again(archive: Path, registry: type[Registry], tmp_path: Path) -> None:
    pinned = standin.package(archive)
    engine_files(pinned)
    (cached,) = (path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.stat().st_size > 100)
    cached.write_bytes(b"cut off")
    assert engine_files(pinned) == EXPECTED
    assert len(registry.asked) == 2


def test_another_archive_than_the_pinned_one_is_refused(
    archive: Path, registry: type[Registry], tmp_path: Path
) -> None:
    pinned = standin.package(archive)
    bad = standin.tarball(tmp_path / "bad", standin.MEMBERS | {"package/dist/engine.mjs": b"steal();"})
    (tmp_path / "registry" / "engine" / "-" / archive.name).write_bytes(bad.read_bytes())
    with pytest.raises(FetchError, match=r"expected engine-1\.2\.3\.tgz with the hash sha512-"):
        engine_files(pinned)
    assert not (tmp_path / "cache").exists()


def test_a_registry_that_does_not_answer_is_one_line(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pinned = standin.package(archive)
    monkeypatch.setenv(REGISTRY, "http://127.0.0.1:9")
    with pytest.raises(FetchError, match=r"check the network, or run npm pack engine@1\.2\.3 .* --runtime FILE\.tgz"):
        engine_files(pinned)
    monkeypatch.setenv(REGISTRY, "file:///etc")
    with pytest.raises(FetchError, match="that does not start with http"):
        engine_files(pinned)


def test_without_npm_and_registry_the_error_says_what_to_do(archive: Path) -> None:
    with pytest.raises(FetchError, match="got neither npm nor the address of an npm registry in NPM_CONFIG_REGISTRY"):
        engine_files(standin.package(archive))


def program(folder: Path, body: str) -> None:
    folder.mkdir()
    (folder / "npm").write_text(f"#!/bin/sh\n{body}\n")
    (folder / "npm").chmod(0o755)


def test_npm_is_used_where_it_is_installed(
    archive: Path, registry: type[Registry], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path / "bin", f'[ "$1 $2" = "pack engine@1.2.3" ] && cp "{archive}" .')
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    assert engine_files(standin.package(archive)) == EXPECTED
    assert registry.asked == []


def test_a_failure_of_npm_is_one_line(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path / "bin", "echo 'E404 not found' >&2; exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(FetchError, match=r"got exit code 1 from npm pack \(E404 not found\)"):
        engine_files(standin.package(archive))


def test_a_folder_or_an_archive_replaces_the_network(archive: Path, tmp_path: Path) -> None:
    pinned = standin.package(archive)
    assert engine_files(pinned, folder=archive) == EXPECTED
    assert engine_files(pinned, folder=archive.parent) == EXPECTED
    loose = tmp_path / "loose"
    loose.mkdir()
    for name, content in EXPECTED.items():
        (loose / name).write_bytes(content)
    assert engine_files(pinned, folder=loose) == EXPECTED
    (loose / "engine.mjs").write_bytes(b"steal();")
    with pytest.raises(FetchError, match=r"expected 'engine.mjs' of engine 1\.2\.3 with the sha256"):
        engine_files(pinned, folder=loose)
    (loose / "engine.mjs").unlink()
    with pytest.raises(RunError, match=r"in --runtime; got no 'engine.mjs' in .*; run npm pack engine@1\.2\.3 there"):
        engine_files(pinned, folder=loose)


def test_a_page_with_an_unknown_pin_is_refused(archive: Path) -> None:
    with pytest.raises(ConfigError, match=r"got 'sha1' for onnx in the page's runtime\.json"):
        read_pinned({"onnx": standin.pinned(archive) | {"sha1": "x"}})
