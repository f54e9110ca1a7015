"""Writes the phone page of a model as a static folder, and updates one that is being served.

Nearly every file has its hash in its name, so a page loads exactly the files that it was made with, or none.
`release.json` lists these files. The page and its service worker contain a copy of the list, and the service worker
installs a release completely or not at all.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import html
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from agridistill.app.engine_files import PinnedPackage, engine_files, packed_code, read_pinned
from agridistill.app.words import read_words, words_file
from agridistill.errors import ConfigError, ModelError, RunError
from agridistill.manifest import ModelManifest, read_manifest
from agridistill.runtime.backends import manifest_path, missing_model, model_path, open_artefact
from agridistill.runtime.predictor import Predictor
from agridistill.runtime.verdict import plain_label
from agridistill.storage import json_text, replacing, replacing_folder, require_writable

RELEASE_FORMAT = 1
_ENGINES = {".onnx": "onnx", ".tflite": "litert"}
_LONGEST_NAME = 40
_ADDRESSED = re.compile(r"[0-9a-f]{16}-.+")
# The manifest has the same name in each release, because browsers recognise an installed page by this name.
_MANIFEST = "app.webmanifest"

PAGE = Path(__file__).parent / "page"
"""The folder into which `make web` builds the page; a wheel contains it, too."""
TEMPLATES = ("index.html", "sw.js", _MANIFEST)
RELEASE_NAME = "release.json"
"""Name of the file in a page's folder that lists the files of its release."""
# In the order of writing: the worker, which brings a new release to phones, comes after all that it asks for.
_FIXED = (_MANIFEST, "index.html", "sw.js", RELEASE_NAME)
_PINNED = "runtime.json"
_NEEDED = (*TEMPLATES, "app.js", "app.css", _PINNED)
_FILE = re.compile("__FILES_(.+?)__")
_RELEASE, _NAME = '"__RELEASE__"', "__NAME__"
_REMEDY = "run make web in a checkout of AgriDistill (needs Node 20), or install a wheel that contains the page"


@dataclass(frozen=True)
class Site:
    """The phone page that `write_site` wrote."""

    out: Path
    release: str  # id of the release; it changes if any file of the page changes
    name: str  # the name below the icon on the phone
    model: str  # name of the model's file
    engine: str  # "onnx" or "litert"
    model_sha256: str
    languages: tuple[str, ...]  # languages of the words; empty if the page shows the plain labels of the classes
    files: int  # number of files that a phone fetches on its first visit
    first_visit_bytes: int  # size of all these files
    changed: bool  # False if the folder already had this release

    def to_json(self) -> dict[str, Any]:
        """Returns the result as a dict that `json.dumps` accepts; the keys are the names of the attributes."""
        return {**asdict(self), "out": str(self.out)}


@dataclass(frozen=True)
class _Content:
    """A file of a release, as it is served."""

    path: str
    content: bytes
    simd: str = ""  # as in `PinnedFile`

    @property
    def entry(self) -> dict[str, Any]:
        entry = {"path": self.path, "sha256": hashlib.sha256(self.content).hexdigest(), "bytes": len(self.content)}
        return entry | ({"simd": self.simd} if self.simd else {})


def write_site(
    model: Path | str,
    out: Path,
    *,
    words: Path | None = None,
    name: str | None = None,
    runtime: Path | None = None,
    page: Path = PAGE,
    force: bool = False,
) -> Site:
    """Writes the phone page of a model into a folder, or updates the one there.

    A server may send the page at the same time: new files are written before the page that needs them, and the files of
    the previous release stay until the next update.

    `words` is None for the file of words beside the model, if there is one; `name`, below the icon, is None for the
    crop that all classes begin with, or the model's name; `runtime` is the `folder` of `engine_files`. `force` also
    writes into a folder with other files, which stay.

    Raises:
        ModelError: the model does not exist, is damaged, or the page's engine cannot run it.
        ConfigError: the words or the name cannot be used.
        FetchError: the files of the engine cannot be fetched or are damaged.
        RunError: the page is not built, or `out` contains other files.
    """
    out = out.resolve()
    before = _release_in(out, force=force)
    built = read_page(page)
    path, manifest = _checked_model(model_path(model, for_page=True))
    engine = _ENGINES[path.suffix.lower()]
    texts = read_words(words or words_file(path, manifest), manifest.classes)
    name = _checked_name(name if name is not None else _crop(manifest.classes) or path.stem[:_LONGEST_NAME])
    if path == Path(model):
        _require_prediction(path, manifest)
    else:  # a shipped model is known to work, so its engine need not be installed here
        manifest.verified_weights(path.parent)
    contents = _contents(built, engine, path, texts, runtime)
    paths = {logical: each.path for logical, each in contents.items()}
    contents[_MANIFEST] = _Content(_MANIFEST, filled(_MANIFEST, built.templates[_MANIFEST], paths, name))
    release = _release(contents, built, engine, name, before)
    for each in ("index.html", "sw.js"):
        contents[each] = _Content(each, filled(each, built.templates[each], paths, name, release))
    # Browsers with relaxed SIMD fetch other files than those without it; the sizes differ by some kB.
    sent = [len(each.content) for each in contents.values() if each.simd != "relaxed"]
    contents[RELEASE_NAME] = _Content(RELEASE_NAME, json_text(release).encode())
    return Site(
        out=out,
        release=str(release["release"]),
        name=name,
        model=path.name,
        engine=engine,
        model_sha256=manifest.weights_sha256,
        languages=tuple(texts["languages"]),
        files=len(sent),
        first_visit_bytes=sum(sent),
        changed=_write(out, contents, before, release),
    )


def _release_in(out: Path, *, force: bool) -> dict[str, Any] | None:
    """Returns a folder's `release.json`: None if the folder is new or empty, {} with `force` if it has other files.

    Without `force`, other files are a RunError.
    """
    require_writable(out, folder=True)
    if not out.exists() or not any(out.iterdir()):
        return None
    with contextlib.suppress(OSError, ValueError, AttributeError):
        release = json.loads((out / RELEASE_NAME).read_bytes())
        if release.get("format") == RELEASE_FORMAT and isinstance(release.get("files"), dict):
            return dict(release)
    if force:
        return {}
    remedy = "choose another --out, or add --force to write beside them"
    raise RunError("a new folder, or one that agridistill app wrote", f"'{out}', which holds other files", remedy)


def _checked_model(path: Path) -> tuple[Path, ModelManifest]:
    expected, remedy = "an exported model (.onnx or .tflite)", "run agridistill export RUN --out leaf.onnx"
    if not path.exists():
        raise missing_model(path)
    if path.is_dir() or path.suffix.lower() not in _ENGINES:
        raise ModelError(expected, f"the run folder '{path}'" if path.is_dir() else f"'{path}'", remedy)
    manifest = read_manifest(manifest_path(path))
    if "micro" in manifest.measured:
        raise ModelError(expected, f"'{path}', which is for microcontrollers", remedy)
    return path, manifest


def _require_prediction(path: Path, manifest: ModelManifest) -> None:
    """Checks the model's sha256, and that it predicts a photo; raises a ModelError otherwise."""
    side = manifest.preprocessing.image_size
    Predictor(open_artefact(path, photos=1, threads=1)).predict(np.full((side, side, 3), 128, np.uint8))


def _contents(
    built: BuiltPage, engine: str, model: Path, words: dict[str, Any], runtime: Path | None
) -> dict[str, _Content]:
    """Returns the files of a release that have their hash in their name; the keys are logical names."""
    contents = {
        logical: _addressed(logical, content)
        for logical, content in built.files.items()
        if not logical.startswith("engine-")
    }
    relaxed = built.files.get(f"engine-{engine}-relaxed.js")
    engine_script = _addressed("engine.js", built.files[f"engine-{engine}.js"])
    contents["engine.js"] = engine_script
    if relaxed is not None:
        contents["engine.js"] = replace(engine_script, simd="plain")
        contents["engine-relaxed.js"] = replace(_addressed("engine-relaxed.js", relaxed), simd="relaxed")
    pinned = built.engines[engine]
    for name, content in engine_files(pinned, folder=runtime).items():
        is_code = name.endswith(".wasm")
        file = _addressed(f"{name}.lzma", packed_code(content)) if is_code else _addressed(name, content)
        contents[f"runtime/{name}"] = replace(file, simd=pinned.files[name].simd)
    contents["model"] = _zipped(f"model{model.suffix.lower()}", model.read_bytes())
    contents["model.json"] = _zipped("model.json", manifest_path(model).read_bytes())
    contents["words.json"] = _zipped("words.json", json_text(words).encode())
    return contents


def _crop(classes: tuple[str, ...]) -> str:
    """Returns the crop ("Tomato") if the plain labels of all classes begin with the same one, else ""."""
    crops = {plain_label(each).split(": ")[0] for each in classes if ": " in plain_label(each)}
    return crops.pop() if len(crops) == 1 and all(": " in plain_label(each) for each in classes) else ""


def _checked_name(name: str) -> str:
    if not (0 < len(name.strip()) <= _LONGEST_NAME and name.isprintable()):
        expected = f"a name of 1 to {_LONGEST_NAME} characters for the icon"
        raise ConfigError(expected, repr(name), "pass another --name")
    return name.strip()


def _addressed(name: str, content: bytes) -> _Content:
    return _Content(f"files/{hashlib.sha256(content).hexdigest()[:16]}-{name.split('/')[-1]}", content)


def _zipped(name: str, content: bytes) -> _Content:
    # Without a time, so that the same file gives the same release.
    return _addressed(f"{name}.gz", gzip.compress(content, 9, mtime=0))


def _release(
    contents: Mapping[str, _Content], built: BuiltPage, engine: str, name: str, before: Mapping[str, Any] | None
) -> dict[str, Any]:
    files = {logical: each.entry for logical, each in sorted(contents.items())}
    hashes = [(entry["path"], entry["sha256"]) for entry in files.values()]
    # The page and its worker contain the id of the release, so it depends on their templates and not on the files.
    hashes += [(each, hashlib.sha256(built.templates[each]).hexdigest()) for each in ("index.html", "sw.js")]
    lines = "".join(f"{path} {sha256}\n" for path, sha256 in sorted([*hashes, ("name", name)]))
    identity = hashlib.sha256(lines.encode()).hexdigest()[:16]
    same = (before or {}).get("release") == identity
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {
        "format": RELEASE_FORMAT,
        "release": identity,
        "engine": engine,
        "built": (before or {}).get("built", now) if same else now,
        "name": name,
        "files": files,
    }


def _write(
    out: Path, contents: Mapping[str, _Content], before: dict[str, Any] | None, release: Mapping[str, Any]
) -> bool:
    """Writes the files of a release in an order that suits phones which load them now; returns whether one is new."""
    ordered = sorted(contents.values(), key=lambda each: _FIXED.index(each.path) if each.path in _FIXED else -1)
    if before is None:
        with replacing_folder(out) as folder:
            (folder / "files").mkdir()
            for each in ordered:
                (folder / each.path).write_bytes(each.content)
        return True
    changed = False
    for each in ordered:
        path = out / each.path
        if not path.is_file() or path.read_bytes() != each.content:
            changed = True
            with replacing(path) as temporary:
                temporary.write_bytes(each.content)
    if before.get("release") != release["release"]:
        kept = {entry.get("path") for entry in before.get("files", {}).values() if isinstance(entry, dict)}
        kept |= {each.path for each in ordered}
        for path in (out / "files").iterdir():
            if _ADDRESSED.fullmatch(path.name) and f"files/{path.name}" not in kept:
                path.unlink()
    return changed


class BuiltPage(NamedTuple):
    """The page as `make web` built it."""

    templates: dict[str, bytes]  # by their names in `TEMPLATES`
    files: dict[str, bytes]  # all others, by their paths in the page
    engines: dict[str, PinnedPackage]  # the packages that run models, by engine; the built page does not contain them


def read_page(folder: Path) -> BuiltPage:
    """Reads the built page; one that is not built completely is a RunError."""
    missing = next((name for name in _NEEDED if not (folder / name).is_file()), None)
    if missing is not None:
        raise RunError("the built phone page", f"no '{missing}' in '{folder}'", _REMEDY)
    files = {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }
    engines = read_pinned(json.loads(files.pop(_PINNED)))
    return BuiltPage({name: files.pop(name) for name in TEMPLATES}, files, engines)


def filled(
    template: str, content: bytes, paths: Mapping[str, str], name: str, release: Mapping[str, Any] | None = None
) -> bytes:
    """Fills the placeholders of a template, whose name says how the name is escaped.

    `paths` has the paths of the release's files by logical name, for `__FILES_<logical>__`; a missing one is a
    RunError. `name` stands for `__NAME__`, `release` (the content of `release.json`) for the text `"__RELEASE__"`.
    """

    def path_of(found: re.Match[str]) -> str:
        if found[1] not in paths:
            raise RunError("a phone page with all its files", f"no '{found[1]}' for '{template}'", _REMEDY)
        return paths[found[1]]

    text = _FILE.sub(path_of, content.decode())
    text = text.replace(_NAME, html.escape(name) if template.endswith(".html") else json.dumps(name)[1:-1])
    if release is not None:
        # "</script" in a text would end the script element. JSON's escape for "<" is also valid in JavaScript.
        text = text.replace(_RELEASE, json.dumps(release).replace("<", "\\u003c"))
    return text.encode()
