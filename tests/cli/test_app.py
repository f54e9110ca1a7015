"""`agridistill app` as a user runs it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from tests.app import standin
from tests.cli.running import Capture, run

from agridistill.app import site


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The stand-in page takes the place of the built one."""
    found = standin.tarball(tmp_path / "npm")
    page = standin.page(tmp_path / "page", found)
    monkeypatch.setitem(site.write_site.__kwdefaults__, "page", page)
    return found


def test_the_summary_says_what_was_written_and_what_comes_next(
    capsys: Capture, archive: Path, colour_model: Path, tmp_path: Path
) -> None:
    words = ("app", colour_model, "--out", tmp_path / "site", "--runtime", archive)
    code, out, err = run(capsys, *words)
    assert (code, out) == (0, "")
    assert f"{tmp_path / 'site'}: the page '{colour_model.stem}' with the model {colour_model.name}, release " in err
    assert "is written: a first visit fetches 12 files with 0.0" in err
    assert "because there is no file of words" in err
    assert err.endswith(f"Next: agridistill app {colour_model} --out {tmp_path / 'site'} --serve\n")
    code, out, err = run(capsys, *words, "--json")
    document = json.loads(out)
    assert code == 0
    assert document["changed"] is False
    assert document["languages"] == []
    assert set(document) == {
        *("out", "release", "name", "model", "engine", "model_sha256", "languages", "files", "first_visit_bytes"),
        "changed",
    }


def test_a_site_needs_a_place(capsys: Capture, colour_model: Path) -> None:
    code, _, err = run(capsys, "app", colour_model)
    assert code == 2
    assert "pass --out DIR to write the page, or --serve to try it" in err


def test_a_page_that_is_not_built_is_one_line(
    capsys: Capture, colour_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(site.write_site.__kwdefaults__, "page", tmp_path / "none")
    code, _, err = run(capsys, "app", colour_model, "--out", tmp_path / "site")
    assert code == 2
    assert "error: expected the built phone page; got no 'index.html' in" in err
    assert "run make web" in err
    assert len(err.splitlines()) == 1


SERVE = """
import sys
from agridistill.app import site
from agridistill.cli.main import main
site.write_site.__kwdefaults__["page"] = __import__("pathlib").Path(sys.argv[1])
main(sys.argv[2:])
"""


@pytest.mark.slow
def test_the_page_is_served_until_ctrl_c(archive: Path, colour_model: Path, tmp_path: Path) -> None:
    words = ["app", colour_model, "--serve", "--port", "0", "--runtime", archive]
    command = [sys.executable, "-c", SERVE, tmp_path / "page", *words]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [str(word) for word in command], stderr=subprocess.PIPE, text=True, env=environment
    ) as served:
        assert served.stderr is not None
        line = next(line for line in served.stderr if line.startswith("page: "))
        address = line.split()[1]
        assert address.startswith("http://localhost:")
        with urlopen(address) as answer:  # noqa: S310 - our own
            release = json.loads(answer.read().decode().split('id="release">')[1].split("</script>")[0])
            assert answer.headers["Cross-Origin-Embedder-Policy"] == "require-corp"
            assert answer.headers["Cache-Control"] == "no-cache"
        types = {}
        for logical in ("model", "runtime/engine.mjs", "app.webmanifest", "runtime/engine.wasm"):
            with urlopen(address + release["files"][logical]["path"]) as answer:  # noqa: S310
                types[logical] = answer.headers["Content-Type"]
                assert answer.headers["Content-Encoding"] is None
                assert len(answer.read()) == release["files"][logical]["bytes"]
        assert types == {
            "model": "application/gzip",
            "runtime/engine.wasm": "application/octet-stream",
            "runtime/engine.mjs": "text/javascript",
            "app.webmanifest": "application/manifest+json",
        }
        with pytest.raises(HTTPError, match="404"):
            urlopen(f"{address}files/")  # noqa: S310
        served.send_signal(signal.SIGINT)
        assert served.wait(20) == 0


def test_an_address_that_is_taken_is_one_line(
    capsys: Capture, archive: Path, colour_model: Path, tmp_path: Path
) -> None:
    code, _, err = run(capsys, "app", colour_model, "--serve", "--runtime", archive, "--host", "192.0.2.1")
    assert code == 2
    assert "error: expected a free address of this machine for the page; got host '192.0.2.1' and port 8572" in err


def test_the_page_is_where_the_wheel_carries_it() -> None:
    assert site.PAGE.relative_to(Path(site.__file__).parent) == Path("page")
