"""Starts the command `agridistill`. Ctrl-C prints one line, even while the first modules are imported."""

from __future__ import annotations

import gc
import sys

# Imports create 100,000 objects and hardly any garbage: to look for it every 700 objects costs each command 25 ms.
_GC_EVERY = 50_000


def main() -> None:
    """Runs the command line and exits with its code; Ctrl-C exits with 130."""
    gc.set_threshold(_GC_EVERY)
    try:
        from agridistill.cli import main as command_line

        command_line.main()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
