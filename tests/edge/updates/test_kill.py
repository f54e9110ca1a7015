"""A kill at any step of an update leaves the old model or the new one, and the next try succeeds."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import Device, Publisher, Server, model_like, wait_for_size

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
    pytest.mark.usefixtures("without_golden"),
]
DRIVER = Path(__file__).with_name("killed_updates.py")


def versions_after_kills(device: Device, publisher: Publisher, what: str) -> list[int]:
    state = device.slots.folder.parent
    keys = shutil.copytree(publisher.key_file.parent, state.with_name("device keys"))
    words = [sys.executable, DRIVER, state, publisher.folder, device.slots.first, keys, what]
    done = subprocess.run(words, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    versions: list[int] = json.loads(done.stdout)
    return versions


def install(device: Device, publisher: Publisher, version: int) -> None:
    publisher.publish(version)
    assert device.check().outcome == "installed"


def test_killed_at_any_step_of_an_update_it_runs_the_old_model_or_the_new_one(
    device: Device, publisher: Publisher
) -> None:
    install(device, publisher, 1)
    device.start()
    device.slots.confirm()
    publisher.publish(2)
    versions = versions_after_kills(device, publisher, "update")
    assert len(versions) > 20
    assert sorted(versions) == versions, "first the old one, from the switch on the new one"
    assert set(versions) == {1, 2}


def test_killed_at_any_step_of_the_first_update(device: Device, publisher: Publisher) -> None:
    device.slots.folder.parent.mkdir()
    publisher.publish(1)
    versions = versions_after_kills(device, publisher, "update")
    assert set(versions) == {0, 1}
    assert sorted(versions) == versions


@pytest.mark.parametrize(("what", "expected"), [("confirm", {2}), ("return", {1, 2})])
def test_killed_at_any_step_of_a_confirmation_or_a_return(
    device: Device, publisher: Publisher, what: str, expected: set[int]
) -> None:
    for version in (1, 2):
        install(device, publisher, version)
        device.start()
        if version == 1:
            device.slots.confirm()
    assert set(versions_after_kills(device, publisher, what)) == expected


def test_a_download_goes_on_after_a_kill(
    device: Device, publisher: Publisher, colour_model: Path, serve: object, tmp_path: Path
) -> None:
    publisher.model = model_like(colour_model, tmp_path / "new" / "large.onnx", padding=600_000)
    publisher.publish(1)
    server: Server = serve(publisher.folder)  # type: ignore[operator]
    server.hold_after = 300_000
    code = (
        "import sys; from pathlib import Path; from agridistill.edge.updates.updater import Updater\n"
        "from agridistill.edge.updates.slots import ModelSlots\n"
        "from agridistill.edge.updates.release import read_trusted_keys\n"
        "Updater(ModelSlots(Path(sys.argv[1]), Path('none')), read_trusted_keys(Path(sys.argv[2]))).check(sys.argv[3])"
    )
    words = [sys.executable, "-c", code, device.slots.folder, publisher.key_file.parent, server.url]
    part = device.slots.folder / "v1.part" / "large.onnx.part"
    process = subprocess.Popen(words)
    try:
        wait_for_size(part, 1)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    there = part.stat().st_size
    assert device.start().version == 0
    server.hold_after = None
    device.source = server.url
    assert device.check().outcome == "installed"
    assert server.starts[-1] == there or there in server.starts
    assert device.start().version == 1
