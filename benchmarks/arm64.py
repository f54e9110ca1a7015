"""Installs AgriDistill on an emulated arm64 Debian 12 as docs/device.md says; compares its answers with this computer.

    sudo apt-get install qemu-user-static debootstrap
    sudo .venv/bin/python benchmarks/arm64.py PHOTOS MODEL [MODEL ...] --out docs/performance/arm64.json

PHOTOS is a folder with one folder for each class; the first ten of each are taken. Models are exported files (.onnx, or
.tflite where LiteRT is installed here too) and lie beside their manifests. They are compared with the Python that runs
this script, so its numpy, Pillow and ONNX Runtime should be those that pip would install today.

QEMU runs the programs, not a system: the kernel is this computer's, and its time says nothing about a device. Only
this script's processes see the emulation (a binfmt_misc of their own, Linux 6.7 or newer); what it writes lies in a
temporary folder of 0.7 GB. Exits with 1 where a label or a verdict differs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

from reporting import machine, publish

ROOT = Path(__file__).parents[1]
A_CLASS, WATCHED = 10, 6
# What /proc/cpuinfo says of a Raspberry Pi 4 (part, variant, revision, features) and of a 5, which adds dot products:
# ONNX Runtime picks its kernels by it, and QEMU 7.2 shows this computer's.
PROCESSORS = {
    "cortex-a72": ("0xd08", "0x0", "3", "fp asimd evtstrm crc32 cpuid"),
    "cortex-a76": (
        "0xd0b",
        "0x4",
        "1",
        "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp",
    ),
}
TAGS = [f"manylinux_2_{minor}_aarch64" for minor in range(36, 16, -1)] + ["manylinux2014_aarch64"]
IN_THE_GUEST = """
set -e
mount -t binfmt_misc none /proc/sys/fs/binfmt_misc
cat /usr/lib/binfmt.d/qemu-aarch64.conf > /proc/sys/fs/binfmt_misc/register
root=$1 processor=$2
shift 2
mount -t proc none "$root/proc"
mount --rbind /dev "$root/dev"
mount --rbind /sys "$root/sys"
mount --bind "$root/work/cpuinfo-$processor" "$root/proc/cpuinfo"
exec env -i HOME=/root PATH=/usr/sbin:/usr/bin LANG=C.UTF-8 QEMU_CPU="$processor" \\
  chroot "$root" sh -c 'cd /work && exec "$@"' sh "$@"
"""
SYSTEM = "import platform as p; print(p.machine(), *p.libc_ver(), 'Python', p.python_version())"
APART = ("unshare", "--user", "--map-root-user", "--mount", "--pid", "--fork", "--kill-child")
LITERT = ("ai-edge-litert",)
OURS = ("venv/bin/agridistill",)


def run(*words: str | Path, codes: Iterable[int] = (0,), **options: Any) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(  # noqa: S603 - our own command lines
        words, check=False, text=True, capture_output=True, **options
    )
    if done.returncode not in codes:
        raise SystemExit(f"{' '.join(map(str, words))}: {done.returncode}\n{done.stdout}{done.stderr}")
    return done


def cpuinfo(part: str, variant: str, revision: str, features: str) -> str:
    rows = {
        "BogoMIPS": "108.00",
        "Features": features,
        "CPU implementer": "0x41",
        "CPU architecture": "8",
        "CPU variant": variant,
        "CPU part": part,
        "CPU revision": revision,
    }
    told = "".join(f"{name}\t: {value}\n" for name, value in rows.items())
    return "".join(f"processor\t: {core}\n{told}\n" for core in range(os.cpu_count() or 1))


class Guest:
    """Debian's arm64 programs in a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.work = root / "work"

    def unpack(self) -> None:
        run(
            "debootstrap",
            "--foreign",
            "--arch=arm64",
            "--variant=minbase",
            "--include=python3-venv",
            "bookworm",
            self.root,
        )
        # The second stage would set up services and users; unpacked packages are all that Python needs.
        for package in sorted((self.root / "var/cache/apt/archives").glob("*.deb")):
            with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE) as content:  # noqa: S603, S607
                run("tar", "-x", "--keep-directory-symlink", "-C", self.root, stdin=content.stdout)
        # In a container debootstrap makes it a link to /proc, and so to itself.
        if (self.root / "proc").is_symlink():
            (self.root / "proc").unlink()
            (self.root / "proc").mkdir()
        self.work.mkdir()
        for name, told in PROCESSORS.items():
            (self.work / f"cpuinfo-{name}").write_text(cpuinfo(*told), encoding="utf-8")

    def run(
        self, *words: str, processor: str = next(iter(PROCESSORS)), codes: Iterable[int] = (0,)
    ) -> subprocess.CompletedProcess[str]:
        return run(*APART, "sh", "-c", IN_THE_GUEST, "sh", self.root, processor, *words, codes=codes)

    def install(self, *extras: str) -> list[str]:
        """As docs/device.md says, from wheels that were fetched before; what pip says that it installed."""
        wheels = self.work / "wheels"
        pip = (sys.executable, "-m", "pip", "--quiet")
        run(*pip, "wheel", "--no-deps", "--wheel-dir", wheels, ROOT)
        own = next(wheels.glob("agridistill-*.whl"))
        tags = [word for tag in TAGS for word in ("--platform", tag)]
        tags += [
            "--implementation",
            "cp",
            "--python-version",
            "3.11",
            "--abi",
            "cp311",
            "--abi",
            "abi3",
            "--abi",
            "none",
        ]
        run(*pip, "download", "--only-binary=:all:", *tags, "--dest", wheels, f"{own}[edge]", *extras)
        self.run("python3", "-m", "venv", "venv")
        offline = ("--no-index", "--find-links", "wheels")
        self.run("venv/bin/pip", "install", *offline, f"wheels/{own.name}[edge]", *extras)
        return self.run("venv/bin/pip", "list", "--format", "freeze").stdout.split()


def chosen(photos: Path, to: Path) -> int:
    """Copies the first photos of each class; how many there are."""
    count = 0
    for folder in sorted(each for each in photos.iterdir() if each.is_dir()):
        (to / folder.name).mkdir(parents=True)
        for photo in sorted(folder.iterdir())[:A_CLASS]:
            shutil.copy(photo, to / folder.name)
            count += 1
    return count


def told(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    return {one["photo"]: one for one in json.loads(done.stdout)["photos"]}


def compared(here: dict[str, dict[str, Any]], there: dict[str, dict[str, Any]]) -> dict[str, Any]:
    if here.keys() != there.keys():
        raise SystemExit("the two computers read different photos")
    pairs = [(here[name], there[name]) for name in here]

    def of_classes(answer: dict[str, Any]) -> dict[str, float]:
        return {one["label"]: one["probability"] for one in answer["top"]}

    gaps = [abs(of_classes(a)[label] - of_classes(b)[label]) for a, b in pairs for label in of_classes(a)]
    return {
        "photos": len(pairs),
        "same_label": sum(a["label"] == b["label"] for a, b in pairs),
        "same_verdict": sum(a["verdict"] == b["verdict"] for a, b in pairs),
        "largest_probability_difference": max(gaps),
        "photos_with_any_difference": sum(of_classes(a) != of_classes(b) for a, b in pairs),
    }


def watched(guest: Guest, model: str, predicted: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What `watch --once` with the last model decides on a few photos, and what `status` says afterwards."""
    few = guest.work / "few"
    few.mkdir()
    expected = {}
    for name in list(predicted)[:: len(predicted) // WATCHED][:WATCHED]:
        shutil.copy(guest.work / name, few)
        expected[Path(name).name] = predicted[name]["label"]
    done = guest.run(*OURS, "watch", "few", "--model", model, "--state", "state", "--once", "--json")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    decided = {one["photo"]: one["label"] for one in events if one["event"] == "detection"}
    status = json.loads(guest.run(*OURS, "status", "--state", "state", "--json").stdout)
    return {
        "photos": len(expected),
        "decided_as_predicted": sum(decided.get(name) == label for name, label in expected.items()),
        "alerts": sum(one["event"] == "alert" for one in events),
        "status_finished": status["state"]["finished"],
        "status_detections": len(status["detections"]),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        guest = Guest(Path(folder) / "arm64")
        guest.unpack()
        litert = any(model.suffix == ".tflite" for model in given.models)
        installed = guest.install(*LITERT * litert)
        chosen(given.photos, guest.work / "photos")
        answers: dict[str, Any] = {}
        here: dict[str, dict[str, Any]] = {}
        for model in given.models:
            place = Path(f"model-{len(answers)}")  # leaf.onnx and leaf.tflite have manifests of one name
            (guest.work / place).mkdir()
            for file in model.parent.glob(f"{model.stem}.*"):
                shutil.copy(file, guest.work / place)
            predict = ("predict", str(place / model.name), "photos", "--json", "--top", "1000")
            here = told(run(sys.executable, "-m", "agridistill", *predict, cwd=guest.work))
            answers[model.name] = {
                processor: compared(here, told(guest.run(*OURS, *predict, processor=processor)))
                for processor in PROCESSORS
            }
        document = {
            "here": machine()
            | {"versions": {one: metadata.version(one) for one in ("numpy", "pillow", "onnxruntime")}},
            "guest": {
                "qemu": run("qemu-aarch64-static", "--version").stdout.splitlines()[0],
                "system": guest.run("venv/bin/python", "-c", SYSTEM).stdout.strip(),
                "installed": installed,
            },
            "against_this_computer": answers,
            "watch_once": watched(guest, str(place / model.name), here),
        }
    publish(document, given.out)
    every: list[dict[str, int]] = [one for of_model in answers.values() for one in of_model.values()]
    return int(any(one["same_label"] < one["photos"] or one["same_verdict"] < one["photos"] for one in every))


if __name__ == "__main__":
    sys.exit(main())
