"""What `pip install` of the wheel with an extra puts on a disk: by package, with Python's caches, without pip itself.

python benchmarks/install_size.py edge docs/performance/edge_install.json
python benchmarks/install_size.py least docs/performance/edge_install_least.json   # Python 3.12 or older

"least" is no extra of ours: the smallest packages that the field agent could be built on, whatever else they cost.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tempfile
import venv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agridistill.storage import write_json

ROOT = Path(__file__).parents[1]
# Every environment has them, with or without us.
NOT_OURS = ("pip", "setuptools", "pkg_resources", "_distutils_hack")
LEAST = ("ai-edge-litert==1.2.0", "numpy", "Pillow", "pynacl", "paho-mqtt", "pydantic", "typer")
# Typer asks for them, and runs without.
NOT_IN_LEAST = ("rich", "pygments", "markdown-it-py", "mdurl")
PIP = ("-m", "pip", "--quiet")


def megabytes(path: Path, suffix: str = "") -> float:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files if file.name.endswith(suffix)) / 1e6


def run(python: Path | str, *words: Path | str) -> None:
    subprocess.run([python, *PIP, *words], check=True)  # noqa: S603 - our own command line


def environment(folder: Path) -> tuple[Path, Path]:
    """Its Python, and where its packages lie."""
    venv.create(folder, with_pip=True)
    return folder / "bin" / "python", Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))


def measured(packages: Path) -> dict[str, Any]:
    ours = [one for one in packages.iterdir() if not one.name.startswith(NOT_OURS)]
    sizes: Mapping[str, float] = {one.name: megabytes(one) for one in ours}
    return {
        "installed_mb": round(sum(sizes.values()), 1),
        "of_which_python_caches_mb": round(sum(megabytes(one, ".pyc") for one in ours), 1),
        "has_torch": "torch" in sizes,
        "packages_mb": {
            name: round(size, 1) for name, size in sorted(sizes.items(), key=lambda it: -it[1]) if size >= 0.95
        },
    }


def of_extra(extra: str, work: Path) -> dict[str, Any]:
    wheels = work / "wheels"
    run(sys.executable, "wheel", "--wheel-dir", wheels, f"{ROOT}[{extra}]")
    python, packages = environment(work / "environment")
    own = next(wheels.glob("agridistill-*.whl"))
    run(python, "install", "--no-index", "--find-links", wheels, f"agridistill[{extra}] @ {own.as_uri()}")
    return {
        "extra": extra,
        "fetched_mb": round(sum(megabytes(wheel) for wheel in wheels.iterdir()), 1),
        "of_which_agridistill_mb": round(megabytes(own), 1),
        **measured(packages),
    }


def of_least(work: Path) -> dict[str, Any]:
    python, packages = environment(work / "environment")
    run(python, "install", *LEAST)
    run(python, "uninstall", "--yes", *NOT_IN_LEAST)
    run(python, "install", "--no-deps", ROOT)
    model = megabytes(packages / "agridistill" / "shipped")
    return {"packages": LEAST, "without": NOT_IN_LEAST, "of_which_model_mb": round(model, 1), **measured(packages)}


# What a device on a mobile network pays for.
MAX_FETCHED_MB = 70


def main(extra: str, out: Path) -> None:
    with tempfile.TemporaryDirectory() as work:
        document = of_least(Path(work)) if extra == "least" else of_extra(extra, Path(work))
    write_json(out, document)
    print(document)
    if document.get("fetched_mb", 0) > MAX_FETCHED_MB:
        sys.exit(f"error: expected at most {MAX_FETCHED_MB} MB to fetch; got {document['fetched_mb']} MB")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
