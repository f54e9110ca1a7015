from __future__ import annotations

import os
import sys

import pytest

from agridistill.progress import STDERR, STDOUT, captured_output, stderr_without_lines

Capture = pytest.CaptureFixture[str]


def test_what_native_code_writes_is_held_back_until_the_block_ends(capfd: Capture) -> None:
    os.write(STDOUT, b"before\n")
    with captured_output(STDOUT, STDERR) as file:
        os.write(STDOUT, b"one\n")
        os.write(STDERR, b"two\n")
        file.seek(0)
        assert file.read() == b"one\ntwo\n"
    os.write(STDOUT, b"after\n")
    assert capfd.readouterr() == ("before\nafter\n", "")


def test_what_python_printed_before_and_after_is_not_lost(capfd: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", os.fdopen(STDOUT, "w", closefd=False))
    sys.stdout.write("before ")
    with captured_output(STDOUT):
        sys.stdout.write("within ")
    sys.stdout.write("after")
    sys.stdout.flush()
    assert capfd.readouterr().out == "before after"


def test_lines_of_noise_are_dropped_and_all_others_kept(capfd: Capture) -> None:
    def fail() -> None:
        with stderr_without_lines(b"INFO: "):
            os.write(STDERR, b"INFO: Created TensorFlow Lite XNNPACK delegate for CPU.\nwarning: disk\n")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert capfd.readouterr().err == "warning: disk\n"


def test_a_closed_descriptor_is_left_alone() -> None:
    saved = os.dup(STDERR)
    os.close(STDERR)
    try:
        with captured_output(STDERR):
            pass
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(STDERR)
    finally:
        os.dup2(saved, STDERR)
        os.close(saved)
