"""A new model earns its place over any number of lives, and only by answers; an orderly end is no failure."""

from __future__ import annotations

import logging
import shutil
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from tests.edge.updates.conftest import Device, Publisher, make_device, make_publisher
from tests.edge.watched import ANY, GREEN

from agridistill.edge import verdict as verdict_module
from agridistill.edge.events import Frame
from agridistill.edge.verdict import CurrentModel, Decider
from agridistill.errors import AgriDistillError, ConfigError
from agridistill.runtime.backends import open_artefact
from agridistill.runtime.predictor import Predictor
from agridistill.runtime.verdict import QualitySettings

DARK = (0, 0, 0)
NOT_DARK = QualitySettings(darkest=0.1, brightest=1, blurriest=0, least_leaf=0)


def frame(colour: tuple[int, int, int] = GREEN) -> Frame:
    return Frame(np.full((20, 20, 3), colour, np.uint8), "1.jpg", "", 100.0)


def current(device: Device, quality: QualitySettings = ANY) -> CurrentModel:
    def create(path: Path) -> Decider:
        return Decider(Predictor(open_artefact(path, threads=1)), quality, device="pi", source="photos")

    return CurrentModel(device.slots, create)


@dataclass
class Life:
    """One turn of an agent."""

    device: Device

    def __call__(self, frames: int, colour: tuple[int, int, int] = GREEN, *, orderly: bool = True) -> int:
        """The version that ran."""
        model = current(self.device, NOT_DARK)
        with model if orderly else nullcontext():
            for _ in range(frames):
                assert (model.decide(frame(colour)).label is None) == (colour == DARK)
        version: int = model.info["version"]
        return version


@pytest.fixture
def publisher(tmp_path: Path, colour_model: Path) -> Publisher:
    return make_publisher(tmp_path, colour_model)


@pytest.fixture
def device(tmp_path: Path, colour_model: Path, publisher: Publisher, monkeypatch: pytest.MonkeyPatch) -> Device:
    """Version 1 is installed, on trial."""
    monkeypatch.setattr("agridistill.edge.updates.updater.check_golden", lambda *given: None)
    device = make_device(publisher, tmp_path / "state", colour_model)
    publisher.publish(1)
    assert device.check().outcome == "installed"
    return device


@pytest.fixture
def life(device: Device) -> Life:
    return Life(device)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A life counts as long from its beginning on."""
    monkeypatch.setattr(verdict_module, "_CONFIRM_S", 0.0)


def test_a_model_that_runs_in_short_turns_is_confirmed_after_twenty_answers(device: Device, life: Life) -> None:
    for _ in range(4):
        assert life(4) == 1
    assert device.slots.pointer().trial
    assert life(4) == 1
    assert not device.slots.pointer().trial
    assert [life(1) for _ in range(4)] == [1] * 4


def test_only_lives_that_ended_in_an_orderly_way_count_for_a_model(device: Device, life: Life) -> None:
    life(19)
    assert [life(19, orderly=False) for _ in range(4)] == [1, 1, 1, 0]
    assert "started 3 times" in device.slots.pointer().refused[1]


def test_turns_without_any_photo_are_nothing_against_a_model(device: Device, life: Life) -> None:
    assert [life(0) for _ in range(5)] == [1] * 5
    assert device.slots.pointer().trial


def test_a_model_that_answers_no_photo_is_taken_back(life: Life) -> None:
    assert [life(2, DARK) for _ in range(4)] == [1, 1, 1, 0]


def test_settings_that_no_model_fits_are_nothing_against_a_confirmed_model(device: Device, life: Life) -> None:
    for _ in range(5):
        life(4)
    assert not device.slots.pointer().trial

    def wrong(path: Path) -> Decider:
        raise ConfigError("a class of the model in 'healthy'", "'helthy'", "correct it")

    with pytest.raises(ConfigError, match="helthy"):
        CurrentModel(device.slots, wrong)
    assert device.slots.pointer().refused == {}
    assert life(1) == 1


@pytest.mark.usefixtures("at_once")
def test_a_model_is_not_confirmed_by_photos_that_it_was_not_asked_about(device: Device) -> None:
    model = current(device, NOT_DARK)
    for _ in range(30):
        model.decide(frame(DARK))
    for _ in range(19):
        model.decide(frame())
    assert device.slots.pointer().trial
    model.decide(frame())
    assert not device.slots.pointer().trial


@pytest.mark.usefixtures("at_once")
def test_a_long_life_confirms_with_the_answers_of_those_before(device: Device, life: Life) -> None:
    life(15)
    model = current(device)
    for _ in range(4):
        model.decide(frame())
    assert device.slots.pointer().trial
    model.decide(frame())
    assert not device.slots.pointer().trial


def test_within_one_life_answers_alone_confirm_nothing(device: Device) -> None:
    model = current(device)
    for _ in range(25):
        model.decide(frame())
    assert device.slots.pointer().trial


@pytest.mark.usefixtures("at_once")
def test_answers_of_one_model_never_confirm_the_next_one(
    device: Device, publisher: Publisher, life: Life, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    life(10)
    with current(device) as before:
        publisher.publish(2)
        assert device.check().outcome == "installed"
        device.slots.start()
        for _ in range(20):
            before.decide(frame())
    pointer = device.slots.pointer()
    assert (pointer.active, pointer.trial, pointer.starts, pointer.frames) == (2, True, 1, 0)
    life(10)
    assert device.slots.pointer().trial
    assert "its trial is over" not in caplog.text


def test_where_the_disk_refuses_an_orderly_end_it_is_told_and_the_start_counts(
    device: Device, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuses(*given: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, current(device) as model:
        model.decide(frame())
        patch.setattr("agridistill.edge.updates.slots.write_json", refuses)
    assert "No space left" in caplog.text
    assert (device.slots.pointer().starts, device.slots.pointer().frames) == (1, 0)


def test_an_ignored_model_is_told_once_also_where_it_cannot_be_loaded(
    device: Device, publisher: Publisher, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    device.slots.first = tmp_path / "broken.onnx"
    device.slots.first.write_bytes(b"no model")
    folder = device.slots.folder
    update = f"an update, model version 1 in {folder}, is used instead of --model {device.slots.first}"
    told = f"{update}; to use --model, delete {folder}"
    model = current(device)
    model.refresh()
    assert caplog.messages == [told]
    # The file that runs, by another path, is what was asked for.
    device.slots.first = Path(shutil.copy(publisher.model, tmp_path / "same.onnx"))
    current(device)
    shutil.rmtree(folder)
    assert current(make_device(publisher, tmp_path / "new", publisher.model)).info["version"] == 0
    assert caplog.messages == [told]


def test_a_first_model_that_cannot_be_loaded_is_an_error_where_it_has_to_run(device: Device, tmp_path: Path) -> None:
    shutil.rmtree(device.slots.folder)
    device.slots.first = tmp_path / "broken.onnx"
    device.slots.first.write_bytes(b"no model")
    with pytest.raises(AgriDistillError):
        current(device)
