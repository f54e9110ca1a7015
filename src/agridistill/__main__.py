"""Starts the command `agridistill`. Ctrl-C prints one line, even while the first modules are imported."""

from __future__ import annotations

import sys


def main() -> None:
    """Runs the command line and exits with its code; Ctrl-C exits with 130."""
    try:
        from agridistill.cli import main as command_line

        command_line.main()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
