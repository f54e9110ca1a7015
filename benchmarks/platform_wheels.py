"""For which systems pip finds a ready-made wheel of each package that a device needs.

    python benchmarks/platform_wheels.py docs/performance/platform_wheels.json

Asks pip for each package of pyproject.toml's base dependencies, for LiteRT and for the field agent's, as if it ran on
the other system: which version would be installed, and, where none is new enough, which is the newest that has a wheel
at all. Nothing is installed. Conditions on the system inside packages (colorama on Windows) are read as on this
computer; they name packages of pure Python alone.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from reporting import publish

ROOT = Path(__file__).parents[1]
PYTHONS = ("3.11", "3.13")
GLIBC = range(17, 42)


def glibc(newest: int, processor: str) -> list[str]:
    """What pip takes on Linux with glibc 2.`newest`."""
    tags = [f"manylinux_2_{minor}_{processor}" for minor in GLIBC if minor <= newest]
    return [*reversed(tags), f"manylinux2014_{processor}", f"linux_{processor}"]


def musl(processor: str) -> list[str]:
    return [f"musllinux_1_{minor}_{processor}" for minor in (2, 1, 0)] + [f"linux_{processor}"]


PLATFORMS = {
    "Linux x86-64, glibc 2.36": glibc(36, "x86_64"),
    "Linux x86-64, glibc 2.28": glibc(28, "x86_64"),
    "Linux x86-64, glibc 2.26": glibc(26, "x86_64"),
    "Linux aarch64, glibc 2.36": glibc(36, "aarch64"),
    "Linux aarch64, glibc 2.28": glibc(28, "aarch64"),
    "Linux aarch64, glibc 2.26": glibc(26, "aarch64"),
    "Linux armv7l, glibc 2.36": glibc(36, "armv7l"),
    "Linux x86-64, musl 1.2": musl("x86_64"),
    "Linux aarch64, musl 1.2": musl("aarch64"),
    "macOS 15, Apple processor": ["macosx_15_0_arm64"],
    "macOS 14, Apple processor": ["macosx_14_0_arm64"],
    "macOS 13, Apple processor": ["macosx_13_0_arm64"],
    "macOS 12, Apple processor": ["macosx_12_0_arm64"],
    "macOS 15, Intel": ["macosx_15_0_x86_64"],
    "macOS 13, Intel": ["macosx_13_0_x86_64"],
    "macOS 12, Intel": ["macosx_12_0_x86_64"],
    "macOS 10.15, Intel": ["macosx_10_15_x86_64"],
    "Windows x86-64": ["win_amd64"],
    "Windows arm64": ["win_arm64"],
    "Windows 32-bit": ["win32"],
}
BESIDES = ("ai-edge-litert", "paho-mqtt>=2.0", "cryptography>=42")


def found(requirements: list[str], python: str, tags: list[str]) -> dict[str, str] | None:
    """Versions that pip would install; None where it finds none for all."""
    plain = python.replace(".", "")
    words = ["install", "--dry-run", "--quiet", "--ignore-installed", "--report", "-", "--target", "unused"]
    words += ["--only-binary=:all:", "--implementation", "cp", "--python-version", python]
    words += ["--abi", f"cp{plain}", "--abi", "abi3", "--abi", "none"]
    words += [word for tag in tags for word in ("--platform", tag)]
    done = subprocess.run(  # noqa: S603 - our own command line
        [sys.executable, "-m", "pip", *words, *requirements], capture_output=True, text=True, check=False
    )
    if done.returncode:
        if "No matching distribution" in done.stderr or "ResolutionImpossible" in done.stderr:
            return None
        raise SystemExit(done.stderr)
    told = [one["metadata"] for one in json.loads(done.stdout)["install"]]
    return {one["name"]: one["version"] for one in told}


def of_package(requirement: str, python: str, tags: list[str]) -> dict[str, Any]:
    """The version that would be installed, or the newest that would were no version asked for."""
    name = Requirement(requirement).name
    installed = found([requirement], python, tags)
    if installed is None:
        older = found([name], python, tags)
        return {"version": None, "newest_with_wheels": older and version(older, name)}
    return {"version": version(installed, name)}


def version(installed: dict[str, str], name: str) -> str:
    return next(each for one, each in installed.items() if canonicalize_name(one) == canonicalize_name(name))


def of_platform(base: list[str], python: str, tags: list[str]) -> dict[str, Any]:
    together = found(base, python, tags)
    names = [Requirement(one).name for one in base]
    return {
        "base_install": together is not None,
        "base": {one: {"version": version(together, one)} for one in names}
        if together
        else {Requirement(one).name: of_package(one, python, tags) for one in base},
        "extras": {Requirement(one).name: of_package(one, python, tags) for one in BESIDES},
    }


def main(out: Path) -> None:
    base: list[str] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    platforms: dict[str, Any] = {}
    for name, tags in PLATFORMS.items():
        platforms[name] = {python: of_platform(base, python, tags) for python in PYTHONS}
        print(name, platforms[name], file=sys.stderr, flush=True)
    publish({"asked_for": [*base, *BESIDES], "pip": metadata.version("pip"), "platforms": platforms}, out)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
