"""The wheel and its base dependencies are all that a device needs: built, installed and run, without a network."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "src" / "agridistill" / "app" / "page"
HEAVY = ("torch", "torchvision", "timm", "lightning", "onnx", "sklearn", "safetensors")


def run(*command: str | Path, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    # What the tests' own Python is told to import must not reach the device's.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    words = [str(word) for word in command]
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=180)


def names_required(requirements: list[str], extra: str = "") -> set[str]:
    """What these requirements name, leaving out those of other extras and of other systems."""
    packaging = pytest.importorskip("packaging.requirements")
    parsed = [packaging.Requirement(line) for line in requirements]
    return {each.name.lower() for each in parsed if each.marker is None or each.marker.evaluate({"extra": extra})}


def with_all_they_require(names: set[str]) -> set[str]:
    found: set[str] = set()
    while names:
        name = names.pop()
        found.add(name)
        names |= names_required(metadata.requires(name) or []) - found
    return found


def link(distribution: str, folder: Path) -> None:
    """What an installed distribution consists of, seen from another folder."""
    tops = {Path(file).parts[0] for file in metadata.files(distribution) or []} - {"..", "__pycache__"}
    for top in tops:
        source = Path(str(metadata.distribution(distribution).locate_file(top)))
        if not (folder / top).exists():
            (folder / top).symlink_to(source)


@dataclass(frozen=True)
class Device:
    """An environment that holds the wheel, and what the wheel requires."""

    bin: Path
    wheel_requires: list[str]


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Device:
    pytest.importorskip("hatchling", reason="hatchling, which builds the wheel, is not installed (group dev)")
    home = tmp_path_factory.mktemp("device")
    built = run(
        sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", home / "dist", folder=ROOT
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = (home / "dist").glob("*.whl")
    venv.create(home / "env", with_pip=False, symlinks=True)
    binaries = home / "env" / "bin"
    installed = run(
        sys.executable, "-m", "pip", "--python", binaries / "python", "install", "--no-deps", "--no-index", wheel
    )
    assert installed.returncode == 0, installed.stderr
    (packages,) = (home / "env").glob("lib/python*/site-packages")
    (told,) = packages.glob("agridistill-*.dist-info/METADATA")
    required = re.findall(r"^Requires-Dist: (.+)$", told.read_text(), flags=re.MULTILINE)
    links = home / "base"
    links.mkdir()
    for name in with_all_they_require(names_required(required)):
        link(name, links)
    (packages / "base.pth").write_text(f"{links}\n")
    return Device(binaries, required)


def test_the_wheel_requires_nothing_of_the_training_part(device: Device) -> None:
    light = {"numpy", "pillow", "pydantic", "typer", "onnxruntime"}
    assert names_required(device.wheel_requires) == light


def test_the_environment_is_without_torch_and_holds_the_wheel(device: Device) -> None:
    code = (
        "import importlib.util, agridistill\n"
        f"print(agridistill.__file__, *(name for name in {HEAVY!r} if importlib.util.find_spec(name)))"
    )
    done = run(device.bin / "python", "-c", code)
    (package,) = device.bin.parent.glob("lib/python*/site-packages/agridistill/__init__.py")
    assert done.stdout.split() == [str(package)]


def test_the_installed_command_predicts(device: Device, colour_model: Path, tmp_path: Path) -> None:
    # Red, with the steps from pixel to pixel that the quality gate looks for.
    red = np.full((20, 30, 3), (200, 40, 0), np.uint8)
    red[::2, ::2] = (120, 10, 0)
    Image.fromarray(red).save(tmp_path / "leaf.png")
    done = run(device.bin / "agridistill", "predict", colour_model, tmp_path / "leaf.png")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'leaf.png'}: red over 99 %\n"
    done = run(device.bin / "agridistill", "predict", colour_model, "leaf.png", "--explain", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "leaf-explained.png") as picture:
        assert picture.format == "PNG"
    done = run(device.bin / "agridistill", "models")
    assert done.returncode == 0, done.stderr
    assert "shipped/tomato/tomato-int8.onnx" in done.stdout
    done = run(device.bin / "agridistill", "--help")
    assert done.returncode == 0, done.stderr


def test_the_wheel_brings_the_tomato_model(device: Device, tmp_path: Path) -> None:
    Image.fromarray(np.full((60, 60, 3), (60, 140, 60), np.uint8)).save(tmp_path / "leaf.jpg")
    done = run(device.bin / "agridistill", "predict", "tomato", tmp_path / "leaf.jpg", "--json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    (answer,) = json.loads(done.stdout)["photos"]
    assert answer["label"].startswith("Tomato___")
    (package,) = device.bin.parent.glob("lib/python*/site-packages/agridistill")
    assert sorted(path.name for path in (package / "shipped" / "tomato").iterdir()) == [
        "README.md",
        "evaluation-int8.json",
        "tomato-int8.json",
        "tomato-int8.learnt",
        "tomato-int8.onnx",
        "tomato-tflite-int8.json",
        "tomato-tflite-int8.tflite",
        "tomato.words.toml",
    ]


def test_the_wheel_brings_the_phone_page_if_it_is_built(device: Device, tmp_path: Path) -> None:
    (package,) = device.bin.parent.glob("lib/python*/site-packages/agridistill")
    built = {str(path.relative_to(PAGE)) for path in PAGE.rglob("*") if path.is_file()}
    carried = {str(path.relative_to(package / "app" / "page")) for path in (package / "app").rglob("page/**/*")}
    assert built <= carried
    done = run(device.bin / "agridistill", "app", "tomato", "--out", tmp_path / "site", "--runtime", tmp_path)
    assert done.returncode == 2
    if built:
        # The model was accepted without its engine, which is no part of a base install.
        assert "in --runtime; got no '" in done.stderr
    else:
        assert "expected the built phone page; got no 'index.html'" in done.stderr
        assert "run make web" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_wheel_brings_the_recipes(device: Device, tmp_path: Path) -> None:
    code = (
        "from agridistill.config import read_recipe, shipped_recipes\n"
        "print(*(name for name in shipped_recipes() if read_recipe(name)))"
    )
    done = run(device.bin / "python", "-c", code, folder=tmp_path)
    assert done.stdout.split() == sorted(path.stem for path in (ROOT / "recipes").glob("*.toml")), done.stderr
    done = run(
        device.bin / "agridistill", "train", tmp_path, "--recipe", "cpus", "--out", tmp_path / "run", folder=tmp_path
    )
    assert done.returncode == 2
    assert "got 'cpus', which does not exist; check the path; shipped recipes: ablations, compare, cpu, " in done.stderr


def test_what_needs_the_training_part_says_how_to_get_it(device: Device, tmp_path: Path) -> None:
    done = run(device.bin / "agridistill", "train", tmp_path, "--out", tmp_path / "run")
    assert done.returncode == 2
    assert "pip install 'agridistill[train]'" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.fixture
def field_device(device: Device, tmp_path: Path) -> Iterator[Device]:
    """The same environment with the extra `edge`."""
    links = tmp_path / "edge"
    links.mkdir()
    for name in with_all_they_require(names_required(device.wheel_requires, "edge")):
        link(name, links)
    (packages,) = device.bin.parent.glob("lib/python*/site-packages")
    (packages / "edge.pth").write_text(f"{links}\n")
    yield device
    (packages / "edge.pth").unlink()


def test_watching_needs_the_edge_extra_and_says_so(device: Device, tmp_path: Path) -> None:
    done = run(device.bin / "agridistill", "watch", tmp_path, "--model", "leaf.onnx", "--state", tmp_path / "state")
    assert done.returncode == 2
    assert "pip install 'agridistill[edge]'" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_agent_watches_without_torch(field_device: Device, colour_model: Path, tmp_path: Path) -> None:
    binaries = field_device.bin
    (tmp_path / "inbox").mkdir()
    Image.fromarray(np.full((20, 30, 3), (200, 190, 40), np.uint8)).save(tmp_path / "inbox" / "leaf.jpg")
    (tmp_path / "watch.toml").write_text("[quality]\nblurriest = 0\n")
    words = ("--config", tmp_path / "watch.toml", "--state", tmp_path / "state", "--once", "--page", "127.0.0.1:0")
    done = run(binaries / "agridistill", "watch", tmp_path / "inbox", "--model", colour_model, *words)
    assert done.returncode == 0, done.stderr
    assert "leaf.jpg: " in done.stdout
    told = run(binaries / "agridistill", "status", "--state", tmp_path / "state")
    assert told.returncode == 0, told.stderr  # it has come to the end of its photos
    assert "leaf.jpg" in told.stdout
