"""Runs a command as a user does, in this process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from agridistill.cli import main as cli

Capture = pytest.CaptureFixture[str]


def run(capsys: Capture, *words: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        cli.main([str(word) for word in words])
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def require_one_line(
    capsys: Capture, command: str, words: Sequence[str], named: Mapping[str, Path], message: str
) -> None:
    """The command ends with exit code 2 and one line that holds the message; words in capitals name a path."""
    code, out, err = run(capsys, command, *(named.get(word, word) for word in words))
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.strip().splitlines()) == 1
