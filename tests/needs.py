"""What some tests need and a machine may lack. `python -m tests.needs FOLDER` makes a PATH of a bare machine."""

from __future__ import annotations

import os
import shutil
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from agridistill.photo_files import READS_HEIC

# What a machine with Python, pip and make has: the shell and the small programs that make's rules call.
_BARE = (
    *("python3", "pip", "pip3", "make", "sh", "bash", "env", "awk", "basename", "cat", "chmod", "cp", "cut", "date"),
    *("dirname", "echo", "expand", "expr", "false", "find", "grep", "head", "id", "ln", "ls", "mkdir", "mktemp", "mv"),
    *("nice", "nohup", "nproc", "pwd", "readlink", "rm", "rmdir", "sed", "sleep", "sort", "stat", "tail", "tar", "tee"),
    *("test", "touch", "tr", "true", "uname", "uniq", "wc", "xargs", "yes"),
)


@dataclass(frozen=True)
class Need:
    """Something that not every machine has.

    Attributes:
        reason: of a skip: what is missing, and how to get it.
        is_met: whether this machine has it.
    """

    reason: str
    is_met: Callable[[], bool]


def program(*names: str) -> str | None:
    """The path of the first of these programs that is there; servers lie in the `sbin` beside a `bin` of PATH."""
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    beside = [str(Path(folder).with_name("sbin")) for folder in folders if Path(folder).name == "bin"]
    path = os.pathsep.join(folders + beside)
    return next((found for name in names if (found := shutil.which(name, path=path))), None)


def chromium() -> str | None:
    return program("chromium", "chromium-browser", "google-chrome")


def peers() -> Path:
    """Where `make peers` puts servers that are no programs of the system."""
    return Path(os.environ.get("AGRIDISTILL_PEERS", Path(__file__).parents[1] / ".peers"))


def _peer(name: str, path: str, *needs: str) -> Need:
    return Need(
        f"needs {name}, which is not on this machine: make peers",
        lambda: (peers() / path).exists() and all(program(each) for each in needs),
    )


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def _program(name: str, how: str, *, find: Callable[[], str | None] | None = None) -> Need:
    return Need(
        f"needs {name}, which is not on this machine: {how}", lambda: (find or (lambda: program(name)))() is not None
    )


NEEDS = {
    "mosquitto": _program("mosquitto", "apt-get install mosquitto"),
    "mosquitto_passwd": _program("mosquitto_passwd", "apt-get install mosquitto"),
    "rabbitmq-server": _program("rabbitmq-server", "apt-get install rabbitmq-server"),
    "amqtt": _peer("amqtt", "bin/amqtt"),
    "aedes": _peer("aedes", "node_modules/aedes", "node"),
    "chromium": _program("Chromium", "apt-get install chromium", find=chromium),
    "rclone": _program("rclone", "apt-get install rclone"),
    "moto": _peer("moto", "moto/bin/moto_server"),
    "openssl": _program("openssl", "apt-get install openssl"),
    "cc": _program("cc", "apt-get install gcc"),
    "mount": _program("mount", "apt-get install mount"),
    "systemd-analyze": _program("systemd-analyze", "apt-get install systemd"),
    "root": Need(
        "needs the rights of root on Linux or another POSIX system: run the tests as root in a container",
        lambda: os.name == "posix" and os.geteuid() == 0,
    ),
    "no root": Need(
        "needs a user whom the system may refuse: run the tests as another user than root",
        lambda: os.name == "posix" and os.geteuid() != 0,
    ),
    "IPv6": Need("needs IPv6 on the loopback device, which this machine has not: enable IPv6", _has_ipv6),
    "heic": Need("needs pi-heif, which is not installed: pip install 'agridistill[heic]'", lambda: READS_HEIC),
    "page": Need(
        "needs the built phone page: make web",
        lambda: (Path(__file__).parents[1] / "src/agridistill/app/page/runtime.json").is_file(),
    ),
    "photos": Need(
        "needs real photos: set AGRIDISTILL_DATA to the folder of PlantVillage's tomatoes",
        lambda: bool(os.environ.get("AGRIDISTILL_DATA")),
    ),
}
# Whatever has one of these fixtures has its needs.
OF_FIXTURES = {"broker": ["mosquitto"], "real_photos": ["photos"]}


def missing(names: list[str]) -> str:
    """Why a test with these needs is skipped here; empty where it is not."""
    return "; ".join(NEEDS[name].reason for name in dict.fromkeys(names) if not NEEDS[name].is_met())


def bare_path(folder: Path) -> Path:
    """Fills a folder with links to what a bare machine has; as PATH it hides everything else."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in _BARE:
        found, link = shutil.which(name), folder / name
        if found is not None and not link.exists():
            link.symlink_to(found)
    return folder


if __name__ == "__main__":
    print(bare_path(Path(sys.argv[1]).resolve()))  # noqa: T201 - for make
