import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.edge.looks import state

from agridistill.edge.state import STATE_FILE, is_running, read_state, state_folder, write_state
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


def test_a_field_of_a_later_release_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / STATE_FILE).write_text(json.dumps(state().to_json() | {"humidity": 3}))
    assert read_state(tmp_path).device == "field-7"


@pytest.mark.parametrize(
    ("document", "told"),
    [
        ("{", "no JSON"),
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
    with pytest.raises(EdgeError, match="state folder that can be written"):
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
    with pytest.raises(EdgeError, match=r"expected an agent's state folder; got the file .*; name the folder with"):
        read_state(tmp_path / "file")
