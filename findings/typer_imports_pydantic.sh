#!/usr/bin/env bash
# typer 0.29.2: every command that runs imports pydantic, even one without any parameter. Importing typer and printing
# --help do not; typer 0.25.1 never does.
#
# So the import of pydantic, which took about a third of the time to a first answer of a small command here, comes back
# in a program that keeps it out of its own start on purpose, and a test of that program's imports does not see it:
# `import program` is as lean as before, only the running command is not.
#
# Output seen:
#   typer 0.25.1: import no, --help no, no parameters no, one option no
#   typer 0.29.2: import no, --help no, no parameters yes, one option yes
#
# What it means for us: the goal for the time to the first answer of `agridistill predict` has to be measured on the
# command, not on the modules that it needs; tests/architecture guards only the latter.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/app.py" <<'P'
import sys

import typer

seen = [("import", "pydantic" in sys.modules)]


def run(function, *words):
    app = typer.Typer(add_completion=False)
    app.command()(function)
    try:
        app(list(words), standalone_mode=False)
    except SystemExit:
        pass


def bare() -> None:
    pass


def option(name: str = "leaf") -> None:
    pass


for what, function, words in (
    ("--help", option, ["--help"]),
    ("no parameters", bare, []),
    ("one option", option, ["--name", "stem"]),
):
    out, sys.stdout = sys.stdout, open("/dev/null", "w")
    run(function, *words)
    sys.stdout = out
    seen.append((what, "pydantic" in sys.modules))
print(", ".join(f"{what} {'yes' if found else 'no'}" for what, found in seen))
P
found=""
for version in 0.25.1 0.29.2; do
  python3 -m venv "$folder/$version"
  "$folder/$version/bin/pip" install --quiet "typer==$version" "pydantic==2.12.5"
  found+="typer $version: $("$folder/$version/bin/python" "$folder/app.py")"$'\n'
done
printf %s "$found"
expected="typer 0.25.1: import no, --help no, no parameters no, one option no
typer 0.29.2: import no, --help no, no parameters yes, one option yes
"
[ "$found" = "$expected" ] || { echo "the behaviour has changed" >&2; exit 1; }
