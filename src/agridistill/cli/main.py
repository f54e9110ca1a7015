"""The command `agridistill`: its commands, and how every failure ends in one line."""

from __future__ import annotations

import errno
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from agridistill import __version__
from agridistill.cli import (
    benchmark,
    compare,
    data,
    demo,
    distill,
    evaluate,
    export,
    models,
    predict,
    publish,
    report,
    status,
    train,
    watch,
)
from agridistill.cli.output import LogLines, shown, stderr
from agridistill.errors import AgriDistillError, MissingExtraError, PeerError

OK, CHECK_FAILED, UNUSABLE, INTERRUPTED = 0, 1, 2, 130

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    # Every command inherits it.
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Distils a large vision model into one that recognises crop diseases on a field device.",
)
app.command()(demo.demo)
app.add_typer(data.app, name="data")
app.command()(train.train)
app.command()(distill.distill)
app.command()(compare.compare)
app.command()(evaluate.evaluate)
app.command()(export.export)
app.command()(predict.predict)
app.command()(models.models)
app.command()(benchmark.benchmark)
app.command()(report.report)
app.command()(watch.watch)
app.command()(status.status)
app.command()(publish.publish)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"agridistill {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show it.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
) -> None:
    root = logging.getLogger()
    root.setLevel(logging.INFO if debug else logging.WARNING)
    if not any(isinstance(handler, LogLines) for handler in root.handlers):
        root.addHandler(LogLines())


_RUNS = ("train", "distill")
_GOES_ON = {
    "demo": "the same command goes on where it stopped",
    "compare": "the same command goes on where it stopped",
    "watch": "the same command goes on where it stopped",
    "data fetch": "the same command goes on where it stopped",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command and exits: 0 done, 1 a check does not hold, 2 unusable input, 130 interrupted."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    # Anywhere on the line, as users expect it.
    debug = "--debug" in given
    given = [word for word in given if word != "--debug"]
    sys.exit(_run((["--debug"] if debug else []) + given, debug))


def _run(arguments: list[str], debug: bool) -> int:
    command = _command(arguments)
    try:
        result = app(args=arguments, prog_name="agridistill", standalone_mode=False)
    except Exception as error:
        line = _told(error, command)
        if debug or line is None:
            raise
        if line and not isinstance(error, PeerError):
            stderr.quiet = False
            stderr.print(f"error: {shown(line)}", markup=False, style="red")
        return UNUSABLE
    except KeyboardInterrupt:
        result = INTERRUPTED
    if result == INTERRUPTED:
        goes_on = _run_goes_on(arguments) if command in _RUNS else _GOES_ON.get(command)
        stderr.print(f"interrupted: {goes_on}" if goes_on else "interrupted", style="yellow")
    return result if isinstance(result, int) else OK


def _run_goes_on(arguments: Sequence[str]) -> str:
    """Whether the run's folder holds anything yet."""
    words = [part for word in arguments for part in (word.split("=", 1) if word.startswith("--out=") else [word])]
    out = words[words.index("--out") + 1] if "--out" in words[:-1] else ""
    if out and (Path(out) / "recipe.toml").exists():
        return "the run goes on with the same command and --resume"
    return "nothing was written"


def _command(arguments: Sequence[str]) -> str:
    """Which command a line names, as "train" or "data fetch"."""
    words = [word for word in arguments if not word.startswith("-")][:2]
    return " ".join(words if words[:1] == ["data"] else words[:1])


def _told(error: Exception, command: str) -> str | None:
    """The one line for a failure that a user can cause or cure; None for a defect of ours."""
    if isinstance(error, AgriDistillError):
        return str(error)
    if isinstance(error, OSError):
        return _told_system(error, command)
    if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] in _TRAIN_MODULES:
        return str(_missing_extra(error))
    if _is_out_of_memory(error):
        got = " ".join(str(error).split())[:200] or type(error).__name__
        return f"expected enough memory for this run; got '{got}'; lower --batch-size or --image-size"
    if isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker"):
        got, goes_on = " ".join(str(error).split())[:120], _with_resume(command)
        if "Terminated" in got:
            # A stop of the whole group, as by `timeout` or a batch system, reaches the loaders first.
            return f"expected the command to reach its end; got a stop from outside; run it again{goes_on}"
        # Mostly the system's own doing, when memory runs out.
        return f"expected loader processes that live; got '{got}'; free memory or lower --workers{goes_on}"
    if isinstance(error, typer.Abort):
        return f"expected the command to reach its end; got an abort; run it again{_with_resume(command)}"
    # Typer's usage errors: of its own vendored click, or of the click package.
    message = getattr(error, "format_message", None)
    if callable(message):
        # Those two words are of the library that Typer checks a choice with, and tell nobody anything.
        said = " ".join(str(message()).split()).rstrip(".").replace("Value error, ", "")
        # The command that the error arose in: "agridistill data check".
        found = getattr(getattr(error, "ctx", None), "command_path", "agridistill")
        # A group without a command has printed its help.
        return f"{said}; see {found} --help" if said else ""
    return None


def _is_out_of_memory(error: Exception) -> bool:
    """Told by name and text: torch, whose errors these are, must not be imported for that."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)


_TRAIN_MODULES = frozenset(
    {
        "torch",
        "torchvision",
        "timm",
        "huggingface_hub",
        "lightning",
        "torchmetrics",
        "sklearn",
        "safetensors",
        "tensorboard",
        "imagehash",
        "tomli_w",
    }
)


def _missing_extra(error: ModuleNotFoundError) -> MissingExtraError:
    return MissingExtraError(
        "the training part of AgriDistill", f"no module '{error.name}'", "pip install 'agridistill[train]'"
    )


def _with_resume(command: str) -> str:
    return " (--resume for a started run)" if command in ("train", "distill") else ""


def _told_system(error: OSError, command: str) -> str:
    where = f" at '{error.filename}'" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"expected room on the disk; got a full disk{where}; free some and run again{_with_resume(command)}"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"expected a place that may be written and read; got '{error.strerror}'{where}; choose another"
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG):
        return f"expected a usable path; got '{error.strerror}'{where}; check it"
    got = " ".join((error.strerror or str(error) or type(error).__name__).split())
    return f"expected a system that can read and write; got '{got}'{where}; check disk, path and limits, and run again"


if __name__ == "__main__":
    main()
