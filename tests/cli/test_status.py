from __future__ import annotations

import json
import os
import shlex
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from tests.edge.looks import HOSTILE, KEPT, detection, filled_history, state

from agridistill.cli.status import status
from agridistill.cli.watch import _command, watch
from agridistill.edge import building
from agridistill.edge.state import HISTORY_FILE, read_state, write_state
from agridistill.errors import EdgeError

Capture = pytest.CaptureFixture[str]


def run(capsys: Capture, *words: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the command by itself."""
    app = typer.Typer()
    app.command()(status)
    capsys.readouterr()
    code = app(args=[str(word) for word in words], standalone_mode=False)
    out, err = capsys.readouterr()
    return code or 0, out, err


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The state folder of an agent, whose history it has open, as a running one would."""
    write_state(tmp_path, state(pid=os.getpid()))
    filled_history(tmp_path / HISTORY_FILE).close()
    return tmp_path


def test_a_running_agent_is_shown_with_its_state_its_alerts_and_its_last_detections(
    folder: Path, capsys: Capture
) -> None:
    with filled_history(folder / HISTORY_FILE):
        code, out, err = run(capsys, "--state", folder, "--last", 3)
    assert code == 0
    assert out.startswith(f"field-7: running for 2 h 3 min (process {os.getpid()})")
    for told in (
        "/photos/inbox",
        "121 (100 answers, 21 unsure)",
        "mobilenetv3_large_100 7 (abababababab)",
        "farm.example:8883: connected",
        "5 messages, the oldest for 1 min 5 s; 2 dropped",
        "54 °C",
        "8 of the last 20 leaves of plot north show Tomato: Late blight",
        HOSTILE,
    ):
        assert told in out, told
    rows = [line for line in out.splitlines() if "north/leaf-" in line]
    assert len(rows) == 3
    assert "unusable: too dark" in rows[0]
    assert "unsure (Tomato: Late blight 52 %)" in rows[2]
    assert err == ""


def test_an_agent_that_ended_is_not_running_since_its_last_word(folder: Path, capsys: Capture) -> None:
    at_s = time.time() - 3700
    write_state(folder, state(pid=os.getpid(), at_s=at_s))
    code, out, err = run(capsys, "--state", folder)
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at_s))
    assert code == 1
    assert out.startswith(f"field-7: not running since {when} (1 h 1 min ago)")
    assert "agridistill watch /photos/inbox --model MODEL" in err
    assert f"a process {os.getpid()} exists: if that is the agent, its disk may be full" in " ".join(out.split())
    write_state(folder, state(pid=2**22 + 1, at_s=at_s))  # above what Linux gives
    assert f"Problem: the agent has not run since {when}" in run(capsys, "--state", folder)[1]


def test_an_agent_that_came_to_the_end_of_its_source_is_no_problem_but_what_it_could_not_send_is(
    folder: Path, capsys: Capture
) -> None:
    ended = {"pid": 2**22 + 1, "at_s": time.time() - 3700, "finished": True}
    write_state(folder, state(**ended, broker=None, outbox=None))
    code, out, _ = run(capsys, "--state", folder)
    assert (code, "Problem" in out) == (0, False)
    assert out.startswith("field-7: all photos were classified by ")
    hook = {"waiting": 1, "waiting_bytes": 9, "oldest_s": 5.0, "delivered": 0, "dropped": {}}
    write_state(folder, state(**ended, outputs={"webhook": hook}, kept=KEPT))
    code, out, _ = run(capsys, "--state", folder)
    assert code == 1
    told = [line for line in out.splitlines() if line.startswith("Problem: ")]
    assert told == [
        "Problem: 5 messages not sent to the broker yet; the next run will send them",
        "Problem: 1 message not sent to the webhook yet; the next run will send them",
        "Problem: 2 kept photos not uploaded yet; the next run will send them",
    ]


def test_an_agent_that_its_user_stopped_is_no_problem(folder: Path, capsys: Capture) -> None:
    write_state(folder, state(pid=2**22 + 1, at_s=time.time() - 3700, stopped=True, broker=None, outbox=None))
    code, out, err = run(capsys, "--state", folder)
    assert (code, "Problem" in out) == (0, False)
    assert out.startswith("field-7: stopped by Ctrl-C at ")
    assert f"Next: agridistill watch /photos/inbox --model MODEL --state {folder}" in err.replace("\n", " ")


@pytest.mark.parametrize(
    ("words", "continues"),
    [
        (["PHOTOS", "--model", "MODEL"], ["PHOTOS", "--model", "MODEL"]),
        (["--config", "CONFIG"], ["--config", "CONFIG"]),
        (
            ["PHOTOS", "--config", "CONFIG", "--plot", "north east", "--no-thumbnails", "--quiet"],
            ["PHOTOS", "--config", "CONFIG", "--plot", "north east", "--no-thumbnails"],
        ),
    ],
)
def test_the_command_that_continues_has_the_options_of_the_one_that_ran(
    tmp_path: Path,
    colour_model: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    continues: list[str],
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "watch.toml").write_text(f'source = "photos"\nmodel = "{colour_model}"\n')
    places = {"PHOTOS": tmp_path / "photos", "CONFIG": tmp_path / "watch.toml", "MODEL": colour_model}
    monkeypatch.chdir(tmp_path)
    here = {"PHOTOS": "photos", "CONFIG": "./watch.toml"}  # the command is printed so that it works from anywhere
    given = [here.get(word, str(places.get(word, word))) for word in words]
    expected = [str(places.get(word, word)) for word in continues]
    monkeypatch.setattr(building, "_IDLE_S", 0.0)
    app = typer.Typer()
    app.command()(watch)
    app(args=[*given, "--state", str(tmp_path / "state"), "--once"], standalone_mode=False)
    # As after an update: the model in use is in the state folder, from which later updates remove it.
    ended = read_state(tmp_path / "state")
    updated = {**ended.model, "version": 1, "path": str(tmp_path / "state" / "models" / "v1" / "leaf.onnx")}
    write_state(tmp_path / "state", replace(ended, model=updated, pid=2**22 + 1))
    err = run(capsys, "--state", tmp_path / "state")[2]
    line = shlex.join(["agridistill", "watch", *expected, "--once", "--state", str(tmp_path / "state")])
    assert err.replace("\n", " ").strip() == f"Next: {line}"


def test_the_command_that_continues_has_no_secret_of_the_source() -> None:
    assert _command("rtsp://me:secret@camera/live", {"model": Path("leaf.onnx")}) == [
        "rtsp://camera/live",
        "--model",
        "leaf.onnx",
    ]
    assert _command("rtsp://camera/user=me&password=secret", {}) == ["SOURCE"]


def test_detections_of_another_model_than_the_present_one_name_it(folder: Path, capsys: Capture) -> None:
    assert "abababababab" not in run(capsys, "--state", folder)[1].split("Last 8")[1]
    with filled_history(folder / HISTORY_FILE) as history:
        history.add(detection(9, model="0123456789ab"))
    assert "0123456789ab" in run(capsys, "--state", folder)[1].split("Last 9")[1]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"source_lost_s": 299.0}, None),
        ({"source_lost_s": 301.0}, "the source has been away for 5 min 1 s"),
        ({"broker": {"host": "b", "port": 1, "connected": False}}, None),
        (
            {
                "broker": {"host": "b", "port": 1, "connected": False},
                "outbox": {"waiting": {"detection": 9}, "waiting_bytes": 9, "oldest_s": 700.0, "delivered": 0},
            },
            "the broker is away, and messages have waited for 11 min",
        ),
        ({"outputs": {"webhook": {"waiting": 2, "oldest_s": 299.0}}}, None),
        (
            {"outputs": {"webhook": {"waiting": 2, "oldest_s": 700.0}}},
            "alerts have waited for the webhook for 11 min",
        ),
        ({"kept": KEPT}, None),
        ({"kept": KEPT | {"oldest_s": 700.0}}, "kept photos have waited for the upload for 11 min"),
        ({"kept": KEPT | {"oldest_s": 700.0, "upload": False}}, None),
        ({"kept": KEPT | {"trouble": "photos cannot be kept: full"}}, "photos cannot be kept: full"),
    ],
)
def test_a_long_outage_is_a_problem_and_a_short_one_is_not(
    folder: Path, capsys: Capture, changes: dict[str, Any], problem: str | None
) -> None:
    write_state(folder, state(pid=os.getpid(), **changes))
    code, out, _ = run(capsys, "--state", folder, "--last", 0)
    assert code == (0 if problem is None else 1)
    assert (f"Problem: {problem}" in out) == (problem is not None)


def test_a_photos_name_cannot_command_the_terminal(folder: Path, capsys: Capture) -> None:
    with filled_history(folder / HISTORY_FILE) as history:
        history.add(detection(9, photo="a\x1b[2Jb[red]c"))
    _, out, _ = run(capsys, "--state", folder)
    assert "\x1b" not in out
    assert "a\\x1b[2Jb[red]c" in out


def test_a_history_that_cannot_be_read_leaves_the_state(folder: Path, capsys: Capture) -> None:
    for file in folder.glob(f"{HISTORY_FILE}*"):
        file.write_bytes(b"damaged " * 1000)
    code, out, _ = run(capsys, "--state", folder)
    assert code == 0
    assert "/photos/inbox" in out
    assert "Alerts and detections cannot be read: expected an event history" in out
    assert "No alert is open" not in out
    assert "no detections yet" not in out
    _, out, _ = run(capsys, "--state", folder, "--json")
    document = json.loads(out)
    assert (document["open_alerts"], document["detections"]) == (None, None)
    assert "not a database" in document["history_error"]


@pytest.mark.needs("root")
def test_a_state_that_may_only_be_read_is_shown(folder: Path, capsys: Capture) -> None:
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place) / "state"
        shutil.copytree(folder, copy)
        for path in (Path(place), copy, *copy.iterdir()):
            path.chmod(0o555 if path.is_dir() else 0o444)
        os.seteuid(65534)
        try:
            _, out, _ = run(capsys, "--state", copy)
        finally:
            os.seteuid(0)
    assert "/photos/inbox" in out


def test_json_is_one_document_with_everything(folder: Path, capsys: Capture) -> None:
    code, out, _ = run(capsys, "--state", folder, "--last", 2, "--json")
    document = json.loads(out)
    assert code == 0
    assert (document["running"], document["problems"]) == (True, [])
    assert document["state"]["outbox"]["waiting"] == {"detection": 4, "alert": 1}
    assert [one["verdict"] for one in document["detections"]] == ["unusable", "unfamiliar"]
    assert document["history_error"] is None
    assert [one["level"] for one in document["open_alerts"]] == ["critical", "warning"]


def test_an_agent_without_a_detection_yet_is_shown(tmp_path: Path, capsys: Capture) -> None:
    write_state(tmp_path, state(pid=os.getpid()))
    code, out, _ = run(capsys, "--state", tmp_path)
    assert code == 0
    assert "There are no detections yet." in out
    assert not (tmp_path / HISTORY_FILE).exists()


def test_no_state_folder_is_unusable_input(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "missing"))
    with pytest.raises(EdgeError, match="missing"):
        run(capsys)


def test_a_disk_that_refuses_is_a_problem(folder: Path, capsys: Capture) -> None:
    write_state(folder, state(pid=os.getpid(), trouble="detections cannot be stored: a full disk"))
    code, out, _ = run(capsys, "--state", folder)
    assert code == 1
    assert "detections cannot be stored: a full disk" in out
