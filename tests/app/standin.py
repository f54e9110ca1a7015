"""A page and an engine's package that stand for the built ones: small, and the same on every machine."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import tarfile
from pathlib import Path

from agridistill.app.engine_files import PinnedPackage, read_pinned

WASM, CODE = b"\0asm" + bytes(1000), b"export default 1;\n"
MEMBERS = {"package/dist/engine.wasm": WASM, "package/dist/engine.mjs": CODE, "package/README.md": b"# engine\n"}


def tarball(folder: Path, members: dict[str, bytes] | None = None) -> Path:
    """An archive as npm packs it."""
    path = folder / "engine-1.2.3.tgz"
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        for name, content in (members or MEMBERS).items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def integrity(archive: Path) -> str:
    return "sha512-" + base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()


def pinned(archive: Path) -> dict[str, object]:
    files = {
        name: {"path": f"dist/{name}", "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in {"engine.wasm": WASM, "engine.mjs": CODE}.items()
    }
    return {"package": "engine", "version": "1.2.3", "integrity": integrity(archive), "files": files}


def package(archive: Path) -> PinnedPackage:
    return read_pinned({"onnx": pinned(archive)})["onnx"]


def page(folder: Path, archive: Path, *, script: str = "// the page\n") -> Path:
    """A page with all that `write_site` fills in, but nothing else."""
    (folder / "icons").mkdir(parents=True)
    (folder / "index.html").write_text(
        "<!doctype html><title>__NAME__</title><link href='__FILES_app.css__'>"
        '<script type="application/json" id="release">"__RELEASE__"</script>'
        "<script type=module src='__FILES_app.js__'></script>"
    )
    (folder / "sw.js").write_text('const release = "__RELEASE__", name = "__NAME__";\n')
    icons = [{"src": "__FILES_icons/icon-192.png__", "sizes": "192x192"}]
    (folder / "app.webmanifest").write_text(json.dumps({"name": "__NAME__", "icons": icons}))
    (folder / "app.js").write_text(script)
    (folder / "app.css").write_text("body {}\n")
    (folder / "icons" / "icon-192.png").write_bytes(b"png")
    engines = ("onnx", "litert")
    for engine in engines:
        (folder / f"engine-{engine}.js").write_text(f"// {engine}\n")
    (folder / "runtime.json").write_text(json.dumps(dict.fromkeys(engines, pinned(archive))))
    return folder
