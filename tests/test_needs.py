"""On a machine with Python, pip and make alone no test fails for a missing program, and every skip names it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.needs import NEEDS, bare_path, missing, program

ROOT = Path(__file__).parents[1]
# Where programs are needed, and torch is not.
PROGRAMS_OF = {
    "tests/edge/delivery": "mosquitto",
    "tests/edge/test_torture.py": "mosquitto",
    "tests/edge/page/test_page_in_browser.py": "chromium",
    "tests/report/test_browser.py": "chromium",
    "tests/integration/test_deployment.py": "openssl",
    "tests/runtime/test_quality.py": "photos",
}
pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs a system with a shell, as make does")


def test_a_bare_machine_skips_with_reasons_and_fails_nothing(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "AGRIDISTILL_DATA"}
    environment |= {"PATH": str(bare_path(tmp_path / "bin")), "HOME": str(tmp_path)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--no-cov", "--no-fold-skipped"]
    command += ["-m", "needs", *PROGRAMS_OF]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not re.search(r"\d+ (failed|error)", done.stdout)
    skips = re.findall(r"^SKIPPED (\S+)::\S+ - Skipped: (.*)$", done.stdout, re.MULTILINE)
    for place, need in PROGRAMS_OF.items():
        reasons = [reason for file, reason in skips if file.startswith(place)]
        assert any(NEEDS[need].reason in reason for reason in reasons), (place, done.stdout)


def test_a_bare_path_holds_what_make_calls_and_no_servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = bare_path(tmp_path / "bin")
    assert bare_path(folder) == folder  # a second time over the first
    present = [name for name in ("python3", "sh", "grep", "sed", "touch", "rm") if shutil.which(name)]
    assert {"python3", "sh"} <= set(present)
    monkeypatch.setenv("PATH", str(folder))
    for name in present:
        assert subprocess.run(["sh", "-c", f"command -v {name}"], capture_output=True, check=False).returncode == 0
    for name in ("mosquitto", "chromium", "openssl", "mount", "systemd-analyze"):
        assert NEEDS[name].reason in missing([name])


def test_servers_are_found_beside_a_folder_of_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("bin", "sbin"):
        (tmp_path / folder).mkdir()
    server = tmp_path / "sbin" / "broker"
    server.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert program("none", "broker") == str(server)
    assert program("none") is None


def test_every_reason_says_what_is_missing_and_how_to_get_it() -> None:
    assert all(re.fullmatch(r"needs .+: .+", need.reason) for need in NEEDS.values())
