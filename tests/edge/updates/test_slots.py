"""Whatever happens to the state, a start gives a model that runs; a new one has to earn its place."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest

from agridistill.edge.updates.slots import POINTER_NAME
from agridistill.errors import EdgeError

from .conftest import Device, Publisher

pytestmark = pytest.mark.usefixtures("without_golden")
Log = pytest.LogCaptureFixture


def installed(device: Device, publisher: Publisher, *versions: int) -> None:
    """Each was confirmed, but the last one."""
    for version in versions:
        publisher.publish(version)
        assert device.check().outcome == "installed"
        if version != versions[-1]:
            assert device.start().version == version
            device.slots.confirm()


def test_without_any_update_the_first_model_runs_and_nothing_is_written(device: Device) -> None:
    assert device.start().version == 0
    assert not device.slots.folder.exists()
    with pytest.raises(EdgeError, match="a --model that works"):
        device.slots.give_up(0, "it cannot be read")


def test_a_model_that_is_never_confirmed_is_taken_back_and_not_tried_again(
    device: Device, publisher: Publisher, caplog: Log
) -> None:
    installed(device, publisher, 1, 2)
    assert [device.start().version for _ in range(5)] == [2, 2, 2, 1, 1]
    told = [message for message in caplog.messages if "is used again" in message]
    assert told == [
        "model version 1 is used again instead of version 2: version 2 was started 3 times without being confirmed",
    ]
    result = device.check()
    assert result.outcome == "refused"
    assert "started 3 times" in result.reason
    assert not device.slots.slot(2).exists()
    publisher.publish(3)
    assert device.check().outcome == "installed"


def test_a_confirmed_model_stays_and_the_one_before_it_too(device: Device, publisher: Publisher) -> None:
    installed(device, publisher, 1, 2, 3)
    assert {path.name for path in device.slots.folder.glob("v*")} == {"v1", "v2", "v3"}
    device.start()
    device.slots.confirm()
    assert [device.start().version for _ in range(5)] == [3] * 5
    assert {path.name for path in device.slots.folder.glob("v*")} == {"v2", "v3"}


def test_one_returns_to_a_model_that_has_worked_never_to_one_on_trial(device: Device, publisher: Publisher) -> None:
    installed(device, publisher, 1, 2)
    device.start()
    publisher.publish(3)
    assert device.check().outcome == "installed"
    assert device.slots.give_up(3, "it fails").version == 1


@pytest.mark.parametrize("file", ["leaf.onnx", "leaf.json", "release.json"])
@pytest.mark.parametrize("how", ["gone", "empty", "changed", "folder gone"])
def test_a_damaged_model_gives_way_to_the_one_before_it(
    device: Device, publisher: Publisher, file: str, how: str
) -> None:
    installed(device, publisher, 1, 2)
    device.start()
    device.slots.confirm()
    path = device.slots.slot(2) / file
    content = bytearray(path.read_bytes())
    path.unlink()
    if how == "empty":
        path.touch()
    elif how == "changed":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif how == "folder gone":
        device.slots.slot(2).rename(device.slots.folder / "elsewhere")
    assert device.start().version == 1
    assert device.start().version == 1
    (device.slots.slot(1) / file).write_bytes(b"")
    assert device.start().version == 0


def test_a_damaged_golden_photo_is_no_reason_to_leave_a_model(device: Device, publisher: Publisher) -> None:
    installed(device, publisher, 1)
    next(device.slots.slot(1).glob("golden-*")).unlink()
    assert device.start().version == 1


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"null", b"[1]", b'{"format_version": 2}', b'{"else": 1}', b"\xff", b"[" * 99_999],
    ids=lambda content: repr(content[:9]),
)
def test_with_a_damaged_pointer_the_first_model_runs_and_no_update_is_taken(
    device: Device, publisher: Publisher, content: bytes, caplog: Log
) -> None:
    installed(device, publisher, 1, 2)
    (device.slots.folder / POINTER_NAME).write_bytes(content)
    caplog.clear()
    caplog.set_level(logging.ERROR)
    assert device.start().version == 0
    assert len(caplog.messages) == 1
    assert "delete" in caplog.messages[0]
    result = device.check()
    assert result.outcome == "refused"
    assert "a readable state of this device's model updates" in result.reason
    shutil.rmtree(device.slots.folder)
    assert device.check().outcome == "installed"


def test_a_version_that_cannot_run_gives_way_at_once(device: Device, publisher: Publisher) -> None:
    installed(device, publisher, 1, 2)
    assert device.start().version == 2
    assert device.slots.give_up(2, "expected LiteRT; got none; install it").version == 1
    assert device.start().version == 1
    assert "install it" in device.check().reason
    assert device.slots.give_up(1, "broken").version == 0


def test_where_starts_cannot_be_counted_a_model_on_trial_does_not_run(
    device: Device, publisher: Publisher, monkeypatch: pytest.MonkeyPatch, caplog: Log
) -> None:
    installed(device, publisher, 1, 2)

    def refuses(*given: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("agridistill.edge.updates.slots.write_json", refuses)
        assert device.start().version == 1
        assert "No space left" in caplog.text
        device.slots.confirm()
        assert device.slots.pointer().trial
        assert device.slots.give_up(2, "broken").version == 0
    assert device.start().version == 2
    device.slots.confirm()
    with monkeypatch.context() as patch:
        patch.setattr("agridistill.edge.updates.slots.write_json", refuses)
        assert device.start().version == 2


def test_what_killed_updates_left_is_swept_and_what_may_be_gone_on_with_is_kept(
    device: Device, publisher: Publisher
) -> None:
    installed(device, publisher, 1, 5)
    folder = device.slots.folder
    for name in ("v3.part", "v7.part", "v8"):
        (folder / name).mkdir()
        (folder / name / "leaf.onnx.part").touch()
    (folder / ".current.json.1-ab.part").touch()
    assert device.start().version == 5
    left = {path.name for path in folder.iterdir()}
    assert left == {"v1", "v5", "v7.part", "update.lock", POINTER_NAME}
    publisher.publish(9)
    assert device.check().outcome == "installed"
    assert not list(folder.glob("*.part"))


@pytest.mark.needs("no root")
def test_a_state_that_may_not_be_written_gives_the_first_model(device: Device, publisher: Publisher) -> None:
    installed(device, publisher, 1)
    device.slots.folder.chmod(0o500)
    assert device.start().version == 0
    device.slots.folder.chmod(0o700)


def test_a_file_in_the_place_of_the_state_gives_the_first_model(device: Device, publisher: Publisher) -> None:
    publisher.publish(1)
    device.slots.folder.parent.mkdir()
    Path(device.slots.folder).write_text("taken")
    assert device.start().version == 0
    assert device.check().outcome == "postponed"
