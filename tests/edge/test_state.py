"""The agent's state file, its reports to systemd, and what it measures of the device."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.edge.looks import state

from agridistill.edge.state import (
    STATE_FILE,
    disk_free_bytes,
    is_running,
    notify_systemd,
    processor_celsius,
    read_state,
    resident_bytes,
    state_folder,
    write_state,
)
from agridistill.errors import EdgeError


@pytest.mark.parametrize(
    "changes",
    [{}, {"broker": None, "outbox": None, "processor_celsius": None, "source_lost_s": 12.5, "device": "Hof Übersee"}],
)
def test_what_was_written_is_read_again(tmp_path: Path, changes: dict[str, Any]) -> None:
    written = state(**changes)
    write_state(tmp_path / "new", written)
    assert read_state(tmp_path / "new") == written
    assert [path.name for path in (tmp_path / "new").iterdir()] == [STATE_FILE]


def test_a_state_of_an_earlier_release_is_read_without_the_command(tmp_path: Path) -> None:
    earlier = state().to_json()
    del earlier["command"]
    (tmp_path / STATE_FILE).write_text(json.dumps(earlier))
    assert read_state(tmp_path).command == ()


def test_a_field_of_a_later_release_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / STATE_FILE).write_text(json.dumps(state().to_json() | {"humidity": 3}))
    assert read_state(tmp_path).device == "field-7"


@pytest.mark.parametrize(
    ("document", "told"),
    [
        ("{", "Expecting property name"),
        ("[]", "schema None"),
        (json.dumps(state().to_json() | {"schema": 2}), "schema 2"),
        (json.dumps(state().to_json() | {"pid": "many"}), "pid"),
        (json.dumps({"schema": 1}), "device"),
    ],
)
def test_a_damaged_state_is_told_in_one_line(tmp_path: Path, document: str, told: str) -> None:
    (tmp_path / STATE_FILE).write_text(document)
    with pytest.raises(EdgeError) as error:
        read_state(tmp_path)
    assert told in error.value.got
    assert "\n" not in str(error.value)


def test_a_folder_without_an_agent_says_how_to_start_one(tmp_path: Path) -> None:
    with pytest.raises(EdgeError, match="agridistill watch"):
        read_state(tmp_path)


def test_a_disk_that_refuses_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        write_state(tmp_path / "file", state())


def test_an_agent_runs_while_its_process_lives_and_writes() -> None:
    alive = state(pid=os.getpid())
    assert is_running(alive, alive.at_s + 29)
    assert not is_running(alive, alive.at_s + 31)
    # The clock was set back by an hour since.
    assert not is_running(alive, alive.at_s - 3600)


def test_a_state_just_written_by_a_process_that_has_ended_is_of_no_running_agent() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    found = state(pid=ended.pid)
    assert not is_running(found, found.at_s)
    for pid in (0, -1, 2**70):
        assert not is_running(replace(found, pid=pid), found.at_s)


def test_the_state_folder_is_systemds_then_xdgs_then_the_users_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/grower")
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    assert state_folder() == Path("/home/grower/.local/state/agridistill")
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert state_folder() == Path("/state/agridistill")
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/agridistill:/var/lib/other")
    assert state_folder() == Path("/var/lib/agridistill")


def test_a_file_in_place_of_the_state_folder_is_one(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EdgeError, match=r"got no file '.*state.json'; start one with .* --state"):
        read_state(tmp_path / "file")


linux = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")


def zone(thermal: Path, number: int, kind: str, temp: str) -> None:
    folder = thermal / f"thermal_zone{number}"
    folder.mkdir(parents=True)
    (folder / "type").write_text(kind + "\n")
    (folder / "temp").write_text(temp + "\n")


def test_the_hottest_zone_of_the_processor_counts_and_no_other_one(tmp_path: Path) -> None:
    zone(tmp_path, 0, "cpu-thermal", "48312")
    zone(tmp_path, 1, "soc_thermal", "51000")
    zone(tmp_path, 2, "battery", "80000")
    zone(tmp_path, 3, "x86_pkg_temp", "50999")
    assert processor_celsius(tmp_path) == 51.0


@pytest.mark.parametrize("temp", ["", "hot", "-274000", "200000"])
def test_a_sensor_that_tells_nonsense_is_passed_over(tmp_path: Path, temp: str) -> None:
    zone(tmp_path, 0, "cpu-thermal", temp)
    assert processor_celsius(tmp_path) is None
    zone(tmp_path, 1, "cpu-thermal", "40000")
    assert processor_celsius(tmp_path) == 40.0


def test_what_the_system_does_not_tell_is_none(tmp_path: Path) -> None:
    assert processor_celsius(tmp_path / "missing") is None
    assert resident_bytes(tmp_path / "missing") is None
    (tmp_path / "statm").write_text("12\n")
    assert resident_bytes(tmp_path / "statm") is None
    assert disk_free_bytes(tmp_path / "missing") is None


@linux
def test_memory_grows_by_what_is_taken() -> None:
    # In a process of its own: threads of earlier tests may take and free memory meanwhile.
    code = """if True:
        from agridistill.edge.state import resident_bytes
        before = resident_bytes()
        taken = b"1" * 60_000_000
        print(resident_bytes() - before)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 40_000_000 < int(done.stdout) < 100_000_000


def test_the_disk_has_room_within_its_size(tmp_path: Path) -> None:
    free = disk_free_bytes(tmp_path)
    assert free is not None
    assert 0 < free < 10**18


def test_systemd_hears_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(str(tmp_path / "notify"))
        heard.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        notify_systemd("READY=1")
        assert heard.recv(100) == b"READY=1"


def test_an_abstract_address_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind("\0agridistill-test-notify")
        heard.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", "@agridistill-test-notify")
        notify_systemd("WATCHDOG=1")
        assert heard.recv(100) == b"WATCHDOG=1"


def test_without_systemd_nothing_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify_systemd("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody listens"))
    notify_systemd("READY=1")
