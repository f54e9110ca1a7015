"""The folder that `agridistill app` writes: complete, in one release, and safe to update while it is served."""

from __future__ import annotations

import gzip
import hashlib
import json
import lzma
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.app import standin
from tests.app.conftest import WriteSite

from agridistill.app import site as site_module
from agridistill.errors import AgriDistillError, ConfigError, ModelError, RunError
from agridistill.runtime import backends
from agridistill.runtime.backends import model_path


def release_of(site: Path) -> dict[str, Any]:
    return dict(json.loads((site / "release.json").read_text()))


def addressed(site: Path) -> set[str]:
    return {f"files/{path.name}" for path in (site / "files").iterdir()}


def listed(release: dict[str, Any]) -> set[str]:
    return {entry["path"] for entry in release["files"].values() if entry["path"].startswith("files/")}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_listed_file_is_there_with_its_hash_in_its_name(write: WriteSite, tmp_path: Path) -> None:
    written, site = write(), tmp_path / "site"
    release = release_of(site)
    assert release["release"] == written.release
    assert set(release["files"]) == {
        *("app.js", "app.css", "icons/icon-192.png", "app.webmanifest", "engine.js"),
        *("model", "model.json", "words.json", "runtime/engine.wasm", "runtime/engine.mjs"),
    }
    for logical, entry in release["files"].items():
        content = (site / entry["path"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == entry["sha256"], logical
        assert len(content) == entry["bytes"], logical
        if logical != "app.webmanifest":
            assert entry["path"].startswith(f"files/{entry['sha256'][:16]}-"), logical
    assert addressed(site) == listed(release)
    sent = sum(path.stat().st_size for path in site.rglob("*") if path.is_file() and path.name != "release.json")
    assert written.first_visit_bytes == sent


def test_the_model_and_the_engine_are_in_the_site_as_they_were(
    write: WriteSite, tmp_path: Path, colour_model: Path
) -> None:
    write()
    files = release_of(tmp_path / "site")["files"]
    read = {logical: (tmp_path / "site" / entry["path"]).read_bytes() for logical, entry in files.items()}
    assert gzip.decompress(read["model"]) == colour_model.read_bytes()
    assert gzip.decompress(read["model.json"]) == colour_model.with_suffix(".json").read_bytes()
    assert lzma.decompress(read["runtime/engine.wasm"], lzma.FORMAT_ALONE) == standin.WASM
    assert read["runtime/engine.mjs"] == standin.CODE
    assert read["engine.js"] == b"// onnx\n"
    assert files["model"]["path"].endswith("-model.onnx.gz")
    assert files["runtime/engine.wasm"]["path"].endswith("-engine.wasm.lzma")


def test_a_tflite_model_gets_the_engine_that_runs_it(
    write: WriteSite, tmp_path: Path, colour_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site_module, "_require_prediction", lambda path, manifest: None)
    model = tmp_path / "leaf.tflite"
    model.write_bytes(b"TFL3")
    shutil.copy(colour_model.with_suffix(".json"), tmp_path / "leaf.json")
    assert write(model=model).engine == "litert"
    files = release_of(tmp_path / "site")["files"]
    assert (tmp_path / "site" / files["engine.js"]["path"]).read_bytes() == b"// litert\n"
    assert files["model"]["path"].endswith("-model.tflite.gz")


def test_browsers_with_relaxed_simd_get_a_faster_build_of_the_engine_instead_of_the_other(
    write: WriteSite, tmp_path: Path, colour_model: Path, page: Path
) -> None:
    (page / "engine-onnx-relaxed.js").write_text("// relaxed\n")
    pinned = json.loads((page / "runtime.json").read_text())
    pinned["onnx"]["files"]["engine.wasm"]["simd"] = "plain"
    (page / "runtime.json").write_text(json.dumps(pinned))
    written = write()
    files = release_of(tmp_path / "site")["files"]
    marked = {logical: entry["simd"] for logical, entry in files.items() if "simd" in entry}
    assert marked == {"engine.js": "plain", "engine-relaxed.js": "relaxed", "runtime/engine.wasm": "plain"}
    assert (tmp_path / "site" / files["engine-relaxed.js"]["path"]).read_bytes() == b"// relaxed\n"
    sent = sum(path.stat().st_size for path in (tmp_path / "site").rglob("*") if path.is_file())
    release = (tmp_path / "site" / "release.json").stat().st_size
    assert written.first_visit_bytes == sent - release - len(b"// relaxed\n")


def test_the_tomato_model_comes_in_the_form_that_a_browser_runs_fastest_also_without_its_engine_here(
    write: WriteSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    written = write(model="tomato")
    assert (written.model, written.engine, written.name) == ("tomato-tflite-int8.tflite", "litert", "Tomato")
    assert written.languages == ("en", "es", "ar")


def test_a_damaged_tomato_model_is_refused(write: WriteSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = model_path("tomato", for_page=True)
    damaged = tmp_path / "tomato" / file.name
    damaged.parent.mkdir()
    damaged.write_bytes(file.read_bytes()[:-1])
    shutil.copy(file.with_suffix(".json"), damaged.parent)
    monkeypatch.setattr(backends, "_FOLDERS", (tmp_path,))
    assert "expected weights with sha256" in refused(write, tmp_path, ModelError, model="tomato")


def test_the_page_and_its_worker_hold_the_release(write: WriteSite, tmp_path: Path) -> None:
    write()
    release, site = release_of(tmp_path / "site"), tmp_path / "site"
    page, worker = (site / "index.html").read_text(), (site / "sw.js").read_text()
    embedded = page.split('id="release">')[1].split("</script>")[0]
    assert json.loads(embedded) == release
    assert json.loads(worker.split("release = ")[1].split(", name")[0]) == release
    assert release["files"]["app.js"]["path"] in page
    icon = json.loads((site / "app.webmanifest").read_text())["icons"][0]["src"]
    assert icon == release["files"]["icons/icon-192.png"]["path"]
    assert "__" not in page + worker


def test_a_name_cannot_break_out_of_the_page(write: WriteSite, tmp_path: Path) -> None:
    name = "</script>\"<b> & 'x'"
    written, site = write(name=name), tmp_path / "site"
    page = (site / "index.html").read_text()
    assert written.name == name
    assert "<b>" not in page
    assert page.count("</script>") == 2
    assert json.loads((site / "app.webmanifest").read_text())["name"] == name
    assert json.loads((site / "sw.js").read_text().split("name = ")[1].rstrip(";\n")) == name


def test_the_same_input_gives_the_same_files(write: WriteSite, tmp_path: Path) -> None:
    assert write().changed
    before = contents(tmp_path / "site")
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "site").rglob("*") if path.is_file()}
    assert not write().changed
    assert contents(tmp_path / "site") == before
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps


@pytest.mark.parametrize("changed", ["app.js", "index.html", "sw.js", "app.webmanifest"])
def test_each_change_of_the_page_is_a_new_release(write: WriteSite, page: Path, changed: str) -> None:
    before = write().release
    (page / changed).write_text((page / changed).read_text().replace("__NAME__", "of __NAME__") + " \n")
    assert write().release != before


def test_a_change_of_name_is_a_new_release(write: WriteSite) -> None:
    assert write(name="one").release != write(name="two").release


def test_files_of_the_release_before_stay_for_one_release(write: WriteSite, page: Path, tmp_path: Path) -> None:
    site, releases = tmp_path / "site", []
    for number in range(3):
        (page / "app.js").write_text(f"// {number}\n")
        write()
        write()  # the same release again takes nothing away
        releases.append(release_of(site))
        kept = set().union(*(listed(release) for release in releases[-2:]))
        assert addressed(site) == kept
    gone = listed(releases[0]) - listed(releases[1]) - listed(releases[2])
    assert len(gone) == 1


def test_a_browser_finds_a_whole_release_at_each_moment_of_an_update(
    write: WriteSite, page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, states = tmp_path / "site", []
    write()
    first = release_of(site)["release"]
    replacing = site_module.replacing

    def watched(path: Path) -> Any:
        page_release = json.loads((site / "index.html").read_text().split('id="release">')[1].split("</script>")[0])
        worker_release = json.loads((site / "sw.js").read_text().split("release = ")[1].split(", name")[0])
        states.append((page_release["release"], worker_release["release"]))
        for release in (page_release, worker_release):
            for path_ in listed(release):
                assert (site / path_).is_file()
        return replacing(path)

    monkeypatch.setattr(site_module, "replacing", watched)
    (page / "app.js").write_text("// new\n")
    (page / "app.css").write_text("p {}\n")
    second = write().release
    # A page without its worker is whole; a worker that is ahead of its page would refuse it.
    assert {(first, first), (second, first)} <= set(states)
    assert (first, second) not in states


def test_an_update_that_was_interrupted_anywhere_is_completed_by_the_next(
    write: WriteSite, page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write()
    start = tmp_path / "start"
    (tmp_path / "site").rename(start)
    (page / "app.js").write_text("// new\n")
    replacing = site_module.replacing
    completed = False
    for stop in range(20):
        shutil.rmtree(tmp_path / "site", ignore_errors=True)
        shutil.copytree(start, tmp_path / "site")
        written: list[Path] = []

        def stopping(path: Path, stop: int = stop, written: list[Path] = written) -> Any:
            if len(written) == stop:
                raise KeyboardInterrupt
            written.append(path)
            return replacing(path)

        monkeypatch.setattr(site_module, "replacing", stopping)
        try:
            write()
            completed = True
        except KeyboardInterrupt:
            monkeypatch.setattr(site_module, "replacing", replacing)
            write()
        release = release_of(tmp_path / "site")
        assert addressed(tmp_path / "site") == listed(release) | listed(release_of(start))
        if completed:
            break
    assert completed
    assert stop >= 4


def test_a_damaged_file_of_a_site_is_written_again(write: WriteSite, tmp_path: Path) -> None:
    write()
    before = contents(tmp_path / "site")
    next((tmp_path / "site" / "files").glob("*-model.onnx.gz")).write_bytes(b"cut off")
    assert write().changed
    assert contents(tmp_path / "site") == before


def test_a_folder_of_something_else_is_left_alone(write: WriteSite, tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    (site / "index.html").write_text("mine")
    with pytest.raises(RunError, match="which holds other files; choose another --out, or add --force"):
        write()
    assert contents(site) == {"index.html": b"mine"}
    (site / "index.html").rename(site / "about.html")
    assert write(force=True).changed
    assert (site / "about.html").read_text() == "mine"
    assert not write().changed


def refused(write: WriteSite, tmp_path: Path, kind: type[AgriDistillError], **given: Any) -> str:
    """The error of a call that writes nothing."""
    with pytest.raises(kind) as error:
        write(**given)
    assert not (tmp_path / "site").exists()
    assert not list(tmp_path.glob("*.part"))
    return str(error.value)


def test_a_model_that_cannot_be_served_is_refused(write: WriteSite, tmp_path: Path, colour_model: Path) -> None:
    line = refused(write, tmp_path, ModelError, model=tmp_path)
    assert line.startswith("expected an exported model (.onnx or .tflite); got the run folder")
    line = refused(write, tmp_path, ModelError, model=Path("tomatoe"))
    assert line.endswith("'tomatoe', which does not exist; check the path; shipped models: tomato")
    (tmp_path / "leaf.h5").write_bytes(b"")
    assert "agridistill export RUN --out leaf.onnx" in refused(write, tmp_path, ModelError, model=tmp_path / "leaf.h5")
    micro = json.loads(colour_model.with_suffix(".json").read_text()) | {"measured": {"micro": {}}}
    (tmp_path / "leaf.tflite").write_bytes(b"TFL3")
    (tmp_path / "leaf.json").write_text(json.dumps(micro))
    line = refused(write, tmp_path, ModelError, model=tmp_path / "leaf.tflite")
    assert "which is for microcontrollers" in line
    damaged = tmp_path / "leaf.onnx"
    damaged.write_bytes(colour_model.read_bytes() + b"x")
    shutil.copy(colour_model.with_suffix(".json"), tmp_path / "leaf.json")
    assert "weights with sha256" in refused(write, tmp_path, ModelError, model=damaged)


def test_a_page_that_is_not_built_says_how_to_get_it(write: WriteSite, tmp_path: Path, page: Path) -> None:
    assert "run make web in a checkout" in refused(write, tmp_path, RunError, page=tmp_path / "none")
    (page / "app.css").unlink()
    assert "got no 'app.css' in" in refused(write, tmp_path, RunError)


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "x" * 41])
def test_a_name_that_no_icon_can_have_is_refused(write: WriteSite, tmp_path: Path, name: str) -> None:
    assert "for the icon" in refused(write, tmp_path, ConfigError, name=name)


def test_the_name_is_the_crop_that_all_classes_share() -> None:
    assert site_module._crop(("Tomato___Late_blight", "Tomato___healthy")) == "Tomato"
    assert site_module._crop(("Tomato___Late_blight", "Potato___healthy")) == ""
    assert site_module._crop(("Tomato___Late_blight", "healthy")) == ""
