"""Gets the files of the engine that runs a model in the browser, from a pinned npm package.

The page's `runtime.json` names the packages, their versions, the sha512 of their archives, and the sha256 of each file
that the page needs. They are fetched once and stored in the user's cache. Nothing is used before its hash is checked.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import lzma
import os
import re
import shutil
import subprocess
import tarfile
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from agridistill.errors import FetchError, RunError
from agridistill.settings_file import build_settings
from agridistill.storage import replacing, user_cache

_NPM_TIMEOUT_S = 600
_READ_TIMEOUT_S = 30.0
# WebAssembly becomes 40 % smaller than with gzip. This takes some seconds for each MB, so the result is stored.
_LZMA = [{"id": lzma.FILTER_LZMA1, "preset": 9 | lzma.PRESET_EXTREME, "lc": 4, "lp": 0, "pb": 0}]
REGISTRY = "NPM_CONFIG_REGISTRY"
"""The environment variable with the address of the npm registry; npm reads it as well."""


@dataclass(frozen=True)
class PinnedFile:
    """A file of the package that the page needs."""

    path: str  # in the package, such as "dist/ort.wasm"
    sha256: str
    simd: Literal["", "plain", "relaxed"] = ""  # not "": only browsers without or with relaxed SIMD need it


@dataclass(frozen=True)
class PinnedPackage:
    """An npm package in one version, and the files of it that the page needs."""

    package: str
    version: str
    integrity: str  # of the archive, as npm writes it: "sha512-" and base64
    files: dict[str, PinnedFile]  # by their names in the page

    @property
    def archive_name(self) -> str:
        """The archive's name in a registry's folder of the package, such as "onnxruntime-web-1.30.0.tgz"."""
        return f"{self.package.split('/')[-1]}-{self.version}.tgz"


def read_pinned(document: Mapping[str, Mapping[str, object]]) -> dict[str, PinnedPackage]:
    """Reads the packages from the content of the page's `runtime.json`, by engine: "onnx" and "litert"."""
    return {
        engine: build_settings(
            PinnedPackage, each, f"for {engine} in the page's runtime.json", remedy="run make web again"
        )
        for engine, each in document.items()
    }


def engine_files(pinned: PinnedPackage, *, folder: Path | None = None) -> dict[str, bytes]:
    """Returns the content of the files that the page needs, by their names in the page.

    `folder` has the package's archive or its files (also in `dist`), or is the archive. None takes them from the user's
    cache, and fetches what is not there.

    Raises:
        FetchError: the archive cannot be fetched, or a file has another hash.
        RunError: `folder` does not have the files.
    """
    if folder is not None:
        return _from_folder(pinned, folder)
    cache = _cache()
    # If a file in the cache is missing or damaged, the package is fetched below.
    with contextlib.suppress(OSError, FetchError):
        return _checked(pinned, lambda file: (cache / file.sha256).read_bytes(), str(cache))
    with TemporaryDirectory(prefix="agridistill-") as temporary:
        files = _from_archive(pinned, _fetched(pinned, Path(temporary)))
    for content in files.values():
        _store(hashlib.sha256(content).hexdigest(), content)
    return files


def packed_code(content: bytes) -> bytes:
    """Compresses a WebAssembly file to LZMA's format "alone", which the page decompresses; reuses a stored result."""
    name = f"{hashlib.sha256(content).hexdigest()}.lzma"
    with contextlib.suppress(OSError, lzma.LZMAError):
        packed = (_cache() / name).read_bytes()
        if lzma.decompress(packed, lzma.FORMAT_ALONE) == content:
            return packed
    packed = lzma.compress(content, lzma.FORMAT_ALONE, filters=_LZMA)
    _store(name, packed)
    return packed


def _cache() -> Path:
    return user_cache() / "engines"


def _store(name: str, content: bytes) -> None:
    with replacing(_cache() / name, durable=False) as path:
        path.write_bytes(content)


def _fetched(pinned: PinnedPackage, folder: Path) -> Path:
    """Fetches the package's archive into a folder; npm knows the user's registry, proxy and login."""
    npm, registry = shutil.which("npm"), os.environ.get(REGISTRY, "")
    expected = f"the archive of {pinned.package} {pinned.version}"
    by_hand = (
        f"run npm pack {pinned.package}@{pinned.version} on a computer with a network, and pass --runtime FILE.tgz"
    )
    if npm is None and not registry:
        got = f"neither npm nor the address of an npm registry in {REGISTRY}"
        raise FetchError(expected, got, f"install npm, or {by_hand}")
    archive = folder / pinned.archive_name
    if npm is not None:
        got = _packed_by_npm(npm, pinned, folder)
        archive = next(folder.glob("*.tgz"), archive)
    else:
        got = _downloaded(f"{registry.rstrip('/')}/{pinned.package}/-/{archive.name}", archive)
    if got:
        raise FetchError(expected, got, f"check the network, or {by_hand}")
    return archive


def _packed_by_npm(npm: str, pinned: PinnedPackage, folder: Path) -> str:
    """Runs `npm pack` in a folder; returns why it failed, or ""."""
    command = [npm, "pack", f"{pinned.package}@{pinned.version}", "--silent"]
    try:
        done = subprocess.run(  # noqa: S603 - the package's name comes with our own page
            command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=_NPM_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return f"an npm pack that did not end within {_NPM_TIMEOUT_S} s"
    return f"exit code {done.returncode} from npm pack ({done.stderr.strip()[:200]})" if done.returncode else ""


def _downloaded(url: str, target: Path) -> str:
    """Downloads a file from a registry; returns why this failed, or ""."""
    if not url.startswith(("http://", "https://")):
        return f"an address in {REGISTRY} that does not start with http:// or https://"
    try:
        with urllib.request.urlopen(url, timeout=_READ_TIMEOUT_S) as answer, target.open("wb") as file:  # noqa: S310
            shutil.copyfileobj(answer, file)
    except (OSError, HTTPException, ValueError) as error:
        return f"'{str(error) or type(error).__name__}' from the registry"
    return ""


def _from_folder(pinned: PinnedPackage, folder: Path) -> dict[str, bytes]:
    if folder.is_file():
        return _from_archive(pinned, folder)
    archives = sorted(folder.glob(f"*-{pinned.version}.tgz"))
    if archives:
        return _from_archive(pinned, archives[0])

    def content(file: PinnedFile) -> bytes:
        places = (folder / file.path, folder / Path(file.path).name)
        return next((place for place in places if place.is_file()), places[0]).read_bytes()

    try:
        return _checked(pinned, content, str(folder))
    except FileNotFoundError as error:
        expected = f"{pinned.archive_name}, or its files {', '.join(pinned.files)}, in --runtime"
        got = f"no '{Path(error.filename).name}' in '{folder}'"
        raise RunError(expected, got, f"run npm pack {pinned.package}@{pinned.version} there") from None


def _from_archive(pinned: PinnedPackage, archive: Path) -> dict[str, bytes]:
    with archive.open("rb") as file:
        found = "sha512-" + base64.b64encode(hashlib.file_digest(file, "sha512").digest()).decode()
    if found != pinned.integrity:
        got = f"{found[:19]}… of '{archive.name}'"
        raise FetchError(f"{pinned.archive_name} with the hash {pinned.integrity[:19]}…", got, "get the archive again")
    # npm packs everything below one folder, whose name may be any.
    wanted = {file.path: file for file in pinned.files.values()}
    contents: dict[PinnedFile, bytes] = {}
    with tarfile.open(archive, "r:gz") as opened:
        for member in opened:
            wanted_file = wanted.get(re.sub("^[^/]*/", "", member.name))
            if wanted_file is not None and member.isreg():
                source = opened.extractfile(member)
                contents[wanted_file] = source.read() if source else b""
    return _checked(pinned, lambda file: contents.get(file, b""), archive.name)


def _checked(pinned: PinnedPackage, content: Callable[[PinnedFile], bytes], where: str) -> dict[str, bytes]:
    files = {name: content(file) for name, file in pinned.files.items()}
    for name, each in files.items():
        found = hashlib.sha256(each).hexdigest()
        if found != pinned.files[name].sha256:
            raise FetchError(
                f"'{name}' of {pinned.package} {pinned.version} with the sha256 {pinned.files[name].sha256[:12]}…",
                f"{found[:12]}… in '{where}'",
                "get the package again",
            )
    return files
