"""Runs the command `agridistill`, and prints every failure as one line."""

from __future__ import annotations

import errno
import gc
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from agridistill.cli.output import printable, show_logs, stderr
from agridistill.errors import AgriDistillError, MissingExtraError, PeerError

OK, CHECK_FAILED, UNUSABLE, INTERRUPTED = 0, 1, 2, 130

_RUNS = ("train", "distill")
_CONTINUABLE = ("demo", "compare", "watch")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command and exits with its code.

    The codes are 0 for success, 1 for a check that found problems, 2 for input that cannot be used, 130 for Ctrl-C.
    `arguments` are the words after `agridistill`; None uses those of the process.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    # Users expect --debug to work at any position.
    debug = "--debug" in given
    given = [word for word in given if word != "--debug"]
    sys.exit(_run((["--debug"] if debug else []) + given, debug))


def _run(arguments: list[str], debug: bool) -> int:
    command = _command_of(arguments)
    try:
        result = _call(arguments, command.partition(" ")[0])
    except Exception as error:
        line = _error_line(error, command)
        if debug or line is None:
            raise
        # Another process of the run reports its own failure. An empty line means that help was printed instead.
        if line and not isinstance(error, PeerError):
            stderr.quiet = False
            stderr.print(f"error: {printable(line)}", style="red")
        return UNUSABLE
    except KeyboardInterrupt:
        result = INTERRUPTED
    if result == INTERRUPTED:
        stderr.print(f"interrupted{_continuation(arguments, command)}", style="yellow")
    return result if isinstance(result, int) else OK


def _call(arguments: list[str], command: str) -> object:
    if command == "predict" and len(arguments) > 2 and not any(word.startswith("-") for word in arguments):
        # Without the parser and its imports, the first answer takes a twentieth less time.
        from agridistill.cli.predict import print_predictions

        show_logs(debug=False)
        return print_predictions(Path(arguments[1]), [Path(word) for word in arguments[2:]])
    from agridistill.cli.commands import parser

    gc.enable()
    return parser(command)(args=arguments, prog_name="agridistill", standalone_mode=False)


def _command_of(arguments: Sequence[str]) -> str:
    """Returns the command in a list of arguments, such as "train" or "data fetch"; "" if there is none."""
    words = [word for word in arguments if not word.startswith("-")][:2]
    return " ".join(words if words[:1] == ["data"] else words[:1])


def _continuation(arguments: Sequence[str], command: str) -> str:
    """Returns a text that explains how to continue an interrupted command; "" if it has to start again."""
    if command in _CONTINUABLE:
        return ": run the same command again to continue"
    if command not in _RUNS:
        return ""
    words = [part for word in arguments for part in (word.split("=", 1) if word.startswith("--out=") else [word])]
    out = words[words.index("--out") + 1] if "--out" in words[:-1] else ""
    if out and (Path(out) / "recipe.toml").exists():
        return ": run the same command again with --resume to continue"
    return ": nothing was written"


def _error_line(error: Exception, command: str) -> str | None:
    """Returns one line for a failure that a user can cause or fix; None for a defect of AgriDistill."""
    resume = " (--resume for a started run)" if command in _RUNS else ""
    text = " ".join(str(error).split())
    if isinstance(error, AgriDistillError):
        return str(error)
    if isinstance(error, OSError):
        return _system_error_line(error, resume)
    if isinstance(error, ModuleNotFoundError) and not (error.name or "").startswith("agridistill"):
        needed, got = "the training part of AgriDistill", f"no module '{error.name}'"
        return str(MissingExtraError(needed, got, "pip install 'agridistill[train]'"))
    if _is_out_of_memory(error):
        got = text[:200] or type(error).__name__
        return f"expected enough memory for this run; got '{got}'; lower --batch-size or --image-size"
    if isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker"):
        if "Terminated" in text[:120]:
            # `timeout` or a batch system sends its signal to all processes; the data loaders end first.
            return f"another program stopped the command; run it again{resume}"
        return (
            f"a data-loader process has crashed (often out of memory): '{text[:120]}'; free memory or lower "
            f"--workers{resume}"
        )
    if type(error).__name__ == "Abort":  # of Typer, which is not imported in each run
        return f"the command was aborted; run it again{resume}"
    # Usage errors of Typer, which come from its own copy of click or from the click package.
    message = getattr(error, "format_message", None)
    if not callable(message):
        return None
    # "Value error, " is added by the library with which Typer checks a choice.
    usage = " ".join(str(message()).split()).rstrip(".").replace("Value error, ", "")
    failed_command = getattr(getattr(error, "ctx", None), "command_path", "agridistill")
    # `agridistill` or `agridistill data` without a command has already printed its help.
    return f"{usage}; see {failed_command} --help" if usage else ""


def _is_out_of_memory(error: Exception) -> bool:
    """Recognises torch's errors by name and text, because importing torch would take seconds."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)


def _system_error_line(error: OSError, resume: str) -> str:
    # Of a copy or a rename, the second path is the one that is written.
    path = error.filename2 or error.filename
    where = f" at '{os.fsdecode(path)}'" if isinstance(path, (str, bytes)) and path else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"expected free disk space; got a full disk{where}; free some space and run the command again{resume}"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return (
            f"expected a path with permission to read and write; got '{error.strerror}'{where}; change its permissions "
            "or choose another path"
        )
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG):
        return f"expected a usable path; got '{error.strerror}'{where}; check the path"
    got = " ".join((error.strerror or str(error) or type(error).__name__).split())
    return f"expected a system that can read and write; got '{got}'{where}; check disk, path and limits, and run again"


if __name__ == "__main__":
    main()
