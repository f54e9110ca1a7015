from __future__ import annotations

import io
import logging
from pathlib import Path

import pytest
from rich.console import Console

from agridistill.cli import output


@pytest.mark.parametrize("path", ["run", "a/run", "/a/run"])
def test_a_sibling_is_written_as_its_path_is(path: str) -> None:
    assert output.sibling(Path(path), "student") == Path(path).parent / "student"


def test_a_sibling_of_the_folder_one_stands_in_is_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    assert output.sibling(Path(), "student") == tmp_path / "a" / "student"
    assert output.sibling(Path(".."), "student") == tmp_path / "student"


def test_the_bar_goes_when_all_is_done_and_comes_back_with_the_next_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    bars: list[output.Progress] = []

    class Seen(output.Progress):
        def __init__(self, *columns: object, **options: object) -> None:
            super().__init__(*columns, **options)  # type: ignore[arg-type]
            bars.append(self)

    monkeypatch.setattr(output, "Progress", Seen)
    monkeypatch.setattr(output, "stderr", Console(file=io.StringIO(), force_terminal=True))
    with output.progress_bar("reading photos") as progress:
        seen = []
        for done in (1, 2, 1, 2):
            progress(done, 2)
            seen.append(bars[0].live.is_started)
    assert seen == [True, False, True, False]


def test_without_a_terminal_there_is_no_bar(capsys: pytest.CaptureFixture[str]) -> None:
    with output.progress_bar("reading photos") as progress:
        for done in (1, 2, 1, 2):
            progress(done, 2)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("blätt 1.jpg", "blätt 1.jpg"),
        ("葉\u3000\xa0.jpg", "葉\u3000\xa0.jpg"),
        ("a\x1b[2Jb", r"a\x1b[2Jb"),
        ("a\nb\rc\x9bd", r"a\nb\rc\x9bd"),
        ("gpj.\u202eexe", r"gpj.\u202eexe"),
        ("bl\udce4tt", r"bl\udce4tt"),
    ],
)
def test_what_would_command_a_terminal_is_shown_as_its_number(name: str, expected: str) -> None:
    assert output.shown(name) == expected


def test_a_log_line_cannot_command_the_terminal_or_pass_for_another(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.Logger("apart")
    logger.addHandler(output.LogLines())
    logger.warning("a photo is left out: %s", "\x1b]0;title\x07.jpg")
    logger.warning("a photo is left out: %s", "a\nerror: disk.jpg")
    try:
        raise ValueError("\x1b[2J")
    except ValueError:
        logger.exception("failed")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == r"warning: a photo is left out: \x1b]0;title\x07.jpg"
    assert lines[1:3] == ["warning: a photo is left out: a", "  error: disk.jpg"]
    assert lines[3:5] == ["error: failed", "  Traceback (most recent call last):"]
    assert lines[-1] == r"  ValueError: \x1b[2J"
