"""Starts the command `agridistill`. Ctrl-C prints one line, even while the first modules are imported."""

from __future__ import annotations

import gc
import sys


def main() -> None:
    """Runs the command line and exits with its code; Ctrl-C exits with 130."""
    # While modules are imported, there is no garbage, and after the end the system frees all memory: without these
    # searches a first answer takes a tenth less time. A command switches them on when its modules are there.
    gc.disable()
    try:
        from agridistill.cli import main as command_line

        command_line.main()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)
    finally:
        gc.freeze()


if __name__ == "__main__":
    main()
