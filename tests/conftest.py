"""Drawn leaves and a tiny trained teacher, made once for each test process."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.needs import OF_FIXTURES, bare_path, missing

from agridistill.data.drawn_leaves import draw_leaves

TINY_SWIN = "swin_nano_patch4_window4_64"
TINY_STUDENT = "mobilenetv3_small_050"


_PATH = os.environ.get("PATH", os.defpath)
_bare = pytest.StashKey[str]()


def pytest_configure() -> None:
    """Restores Ctrl-C for the commands under test: a shell's background jobs, and their children, ignore it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what this machine lacks something for, and keeps tests that share a costly fixture in one process."""
    for item in items:
        if owners := _owners_of_shared_fixtures(item):
            item.add_marker(pytest.mark.xdist_group(min(owners, key=len)))  # the outermost
        for fixture in set(getattr(item, "fixturenames", ())) & OF_FIXTURES.keys():
            item.add_marker(pytest.mark.needs(*OF_FIXTURES[fixture]))
        reason = missing([name for mark in item.iter_markers("needs") for name in mark.args])
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))


def _owners_of_shared_fixtures(item: pytest.Item) -> set[str]:
    """Returns the files and folders that make fixtures for several of their tests, and whose fixtures a test uses."""
    known = item._fixtureinfo.name2fixturedefs if isinstance(item, pytest.Function) else {}
    last = [definitions[-1] for definitions in known.values()]
    return {each.baseid for each in last if each.scope in ("module", "session") and each.baseid not in ("", "tests")}


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Hides all programs that a bare machine lacks from each test that does not name its needs.

    A test that calls one without naming it fails here, and not first on a machine that lacks it.
    """
    stash = item.config.stash
    if _bare not in stash:
        folder = item.config._tmp_path_factory.mktemp("bare")  # type: ignore[attr-defined]
        stash[_bare] = str(bare_path(folder)) if os.name == "posix" else _PATH
    os.environ["PATH"] = _PATH if any(item.iter_markers("needs")) else stash[_bare]


@pytest.fixture(scope="session", autouse=True)
def cache_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache folder of the tests' own."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture(scope="session", autouse=True)
def converters_untraced() -> Iterator[None]:
    """Coverage looks at each instruction of torch's export, minutes of it, to find that none is ours."""
    import torch.onnx

    def untraced(*words: Any, **options: Any) -> Any:
        tracer = sys.gettrace()
        sys.settrace(None)
        try:
            return export(*words, **options)
        finally:
            sys.settrace(tracer)

    export = torch.onnx.export
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.onnx, "export", untraced)
        yield


@pytest.fixture(scope="session")
def leaves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six classes, 8 leaves each, 2 shots of each leaf, 64 px."""
    folder = tmp_path_factory.mktemp("data") / "leaves"
    return draw_leaves(folder, leaves_per_class=8, shots_per_leaf=2, image_size=64)


def trained(leaves: Path, out: Path, model: str, epochs: int) -> Path:
    """A finished run of a tiny network on labels alone."""
    from agridistill.training.run import train
    from agridistill.training.settings import DataSettings, FitSettings, TrainConfig

    fit = FitSettings(model=model, epochs=epochs, batch_size=16, pretrained=False, workers=0)
    train(leaves, out, TrainConfig(data=DataSettings(image_size=64), train=fit))
    return out


@pytest.fixture(scope="session")
def teacher_run(leaves: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a tiny Swin."""
    return trained(leaves, tmp_path_factory.mktemp("runs") / "teacher", TINY_SWIN, 1)


@pytest.fixture(scope="session")
def student_run(leaves: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a tiny student on labels alone."""
    return trained(leaves, tmp_path_factory.mktemp("runs") / "student", TINY_STUDENT, 2)


@pytest.fixture(scope="session")
def colour_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny exported model of 16 px photos, whose logits are their mean green and their mean red; "green", "red"."""
    pytest.importorskip("onnx")
    from tests.colour_model import colour_model_file

    return colour_model_file(tmp_path_factory.mktemp("artefact"))


@pytest.fixture(scope="session")
def real_photos() -> Path:
    """The folder that AGRIDISTILL_DATA names; tests of it are skipped where it names none."""
    return Path(os.environ["AGRIDISTILL_DATA"])
