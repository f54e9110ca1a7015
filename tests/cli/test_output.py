from __future__ import annotations

import io
import logging
import sys
from pathlib import Path

import pytest
from rich.console import Console

from agridistill.cli import display, output
from agridistill.progress import begin, hidden_displays


@pytest.mark.parametrize("path", ["run", "a/run", "/a/run"])
def test_a_sibling_is_written_as_its_path_is(path: str) -> None:
    assert output.sibling(Path(path), "student") == Path(path).parent / "student"


def test_a_sibling_of_the_folder_one_stands_in_is_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    assert output.sibling(Path(), "student") == tmp_path / "a" / "student"
    assert output.sibling(Path(".."), "student") == tmp_path / "student"


class Seen:
    """What the display of `progress_bar` shows on a screen of 60 columns, taken when asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bars: list[display.Progress] = []
        made = self.bars

        class Kept(display.Progress):
            def __init__(self, *columns: object, **options: object) -> None:
                super().__init__(*columns, **options)  # type: ignore[arg-type]
                made.append(self)

        monkeypatch.setattr(display, "Progress", Kept)
        monkeypatch.setenv("FORCE_COLOR", "1")
        console = Console(file=io.StringIO(), force_terminal=True, width=60)
        monkeypatch.setattr(output.stderr, "console", console)

    @property
    def is_drawn(self) -> bool:
        return self.bars[0].live.is_started

    @property
    def line(self) -> str:
        screen = Console(file=io.StringIO(), width=60, force_terminal=False)
        screen.print(self.bars[0].get_renderable())
        lines = screen.file.getvalue().splitlines()  # type: ignore[attr-defined]
        assert len(lines) == 1
        # Behind the spinner's sign.
        return str(lines[0][1:].strip())


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    return Seen(monkeypatch)


def test_work_is_seen_from_its_beginning_to_its_end(seen: Seen) -> None:
    with output.progress_bar("reading photos", then="preparing") as progress:
        assert seen.is_drawn
        assert seen.line == "starting 0:00:00"
        progress(1, 4)
        assert seen.line.startswith("reading photos ━")
        assert "1/4 -:--:--" in seen.line
        progress(4, 4)
        assert seen.line == "preparing 0:00:00"
        progress(0, 2)
        assert "0/2" in seen.line
        assert seen.is_drawn
    assert not seen.is_drawn


def test_a_stage_names_what_is_done(seen: Seen) -> None:
    with output.progress_bar("reading photos") as progress:
        begin(progress, "converting to int8")
        assert seen.line == "converting to int8 0:00:00"
        progress(1, 2)
        assert seen.line.startswith("converting to int8 ━")
        begin(progress, "measuring")
        assert seen.line == "measuring 0:00:00"
    begin(lambda done, total: None, "a plain callback has no use for it")


def test_a_download_of_unknown_size_is_a_spinner(seen: Seen) -> None:
    with output.progress_bar("fetching") as progress:
        progress(1000, 0)
        assert seen.line == "fetching 0:00:00"
        progress(2000, 4000)
        assert "2000/4000" in seen.line


def test_it_gives_way_to_a_display_of_the_work_itself(seen: Seen) -> None:
    with output.progress_bar("reading photos") as progress:
        progress(2, 2)
        with hidden_displays(then="evaluating"):
            assert not seen.is_drawn
        assert seen.is_drawn
        assert seen.line == "evaluating 0:00:00"
    with hidden_displays(then="no display is open any more"):
        pass


def test_stdout_stays_the_commands_own(seen: Seen, capsys: pytest.CaptureFixture[str]) -> None:
    with output.progress_bar("reading photos"):
        sys.stdout.write("result\n")
    assert capsys.readouterr().out == "result\n"


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
    assert output.printable(name) == expected


def test_a_log_line_cannot_command_the_terminal_or_pass_for_another(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.Logger("apart")
    logger.addHandler(output.LogLines())
    logger.warning("a photo is skipped: %s", "\x1b]0;title\x07.jpg")
    logger.warning("a photo is skipped: %s", "a\nerror: disk.jpg")
    try:
        raise ValueError("\x1b[2J")
    except ValueError:
        logger.exception("failed")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == r"warning: a photo is skipped: \x1b]0;title\x07.jpg"
    assert lines[1:3] == ["warning: a photo is skipped: a", "  error: disk.jpg"]
    assert lines[3:5] == ["error: failed", "  Traceback (most recent call last):"]
    assert lines[-1] == r"  ValueError: \x1b[2J"
