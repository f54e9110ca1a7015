"""What `pip install` of the wheel with an extra puts on a disk: by package, with Python's caches, without pip itself.

python benchmarks/install_size.py edge docs/performance/edge_install.json
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

from agridistill.storage import write_json

ROOT = Path(__file__).parents[1]
# Every environment has them, with or without us.
NOT_OURS = ("pip", "setuptools", "pkg_resources", "_distutils_hack")


def megabytes(path: Path) -> float:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files) / 1e6


def main(extra: str, out: Path) -> None:
    with tempfile.TemporaryDirectory() as work:
        folder, wheels = Path(work) / "environment", Path(work) / "wheels"
        pip = [sys.executable, "-m", "pip", "--quiet"]
        subprocess.run([*pip, "wheel", "--wheel-dir", wheels, f"{ROOT}[{extra}]"], check=True)  # noqa: S603 - our own command line
        venv.create(folder, with_pip=True)
        python = folder / "bin" / "python"
        own = next(wheels.glob("agridistill-*.whl"))
        install = [python, "-m", "pip", "--quiet", "install", "--no-index", "--find-links", wheels]
        subprocess.run([*install, f"agridistill[{extra}] @ {own.as_uri()}"], check=True)  # noqa: S603 - as above
        packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
        sizes = {one.name: round(megabytes(one), 1) for one in packages.iterdir() if not one.name.startswith(NOT_OURS)}
        document = {
            "extra": extra,
            "fetched_mb": round(sum(megabytes(wheel) for wheel in wheels.iterdir()), 1),
            "of_which_agridistill_mb": round(megabytes(own), 1),
            "installed_mb": round(sum(sizes.values()), 1),
            "of_which_python_caches_mb": round(
                sum(file.stat().st_size for one in sizes for file in (packages / one).rglob("*.pyc")) / 1e6, 1
            ),
            "has_torch": "torch" in sizes,
            "packages_mb": dict(
                sorted(((name, size) for name, size in sizes.items() if size >= 1), key=lambda it: -it[1])
            ),
        }
    write_json(out, document)
    print(document)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
