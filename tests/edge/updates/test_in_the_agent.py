"""Updates in the whole agent: a new model takes over while photos come."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.edge.conftest import Broker, Receiver, wait_for
from tests.edge.watched import GREEN, once, put, watching

from agridistill.edge.alerts.rules import Rule
from agridistill.edge.delivery.broker import BrokerSettings
from agridistill.edge.settings import UpdateSettings, WatchSettings
from agridistill.edge.state import read_state
from agridistill.edge.updates.publishing import PublishSettings, publish

from .conftest import Publisher, model_like, plain_photo


def test_a_new_model_takes_over_between_two_photos(
    photos: Path, settings: WatchSettings, state: Path, publisher: Publisher
) -> None:
    keys = publisher.key_file.parent
    publisher.publish(1)
    settings = replace(settings, updates=UpdateSettings(keys=keys, source=str(publisher.folder)))
    with watching(settings, state) as heard:
        put(photos, "a.jpg")
        wait_for(lambda: (state / "models" / "current.json").exists(), what="the update")
        # Each under a name of its own: the same content under the same name is the same photo.
        names = (f"b{number}.jpg" for number in itertools.count())
        wait_for(
            lambda: put(photos, next(names)) and len({item.model for item in heard.detections}) == 2, 30, "a model"
        )
        wait_for(lambda: read_state(state).model["version"] == 1, 30, "the state to tell it")
    again = once(replace(settings, updates=None), state)
    assert again.ends[0].model["version"] == 1  # type: ignore[union-attr]


def test_a_release_that_comes_over_mqtt_is_installed_and_told(
    photos: Path, settings: WatchSettings, state: Path, publisher: Publisher, broker: Broker, serve: Any
) -> None:
    server = serve(publisher.folder)
    publisher.publish(1, base_url=server.url.removesuffix("release.json"))
    broker.start()
    receiver = Receiver(broker.port)
    options = BrokerSettings(f"mqtt://127.0.0.1:{broker.port}")
    settings = replace(settings, broker=options, updates=UpdateSettings(keys=publisher.key_file.parent))
    with watching(settings, state):
        wait_for(lambda: ("agridistill/pi/status", b"online") in receiver.got)
        release = (publisher.folder / "release.json").read_bytes()
        receiver._client.publish("agridistill/pi/update/set", release, qos=1)
        wait_for(lambda: "agridistill/pi/update/result" in dict(receiver.got), what="the result")
    result = json.loads(dict(receiver.got)["agridistill/pi/update/result"])
    receiver.close()
    assert (result["outcome"], result["version"]) == ("installed", 1)


def test_a_model_whose_classes_a_rule_does_not_know_is_given_up(
    photos: Path, settings: WatchSettings, state: Path, publisher: Publisher, tmp_path: Path
) -> None:
    other = model_like(publisher.model, tmp_path / "other" / "leaf.onnx", classes=("rust", "scab"))
    golden = tmp_path / "golden 2"
    plain_photo(golden / "rust" / "1.png", GREEN)
    publish(other, golden, publisher.folder, [publisher.key], PublishSettings(1))
    updates = UpdateSettings(keys=publisher.key_file.parent, source=str(publisher.folder))
    settings = replace(settings, updates=updates, rules=(Rule("too red", ("red",)),))
    with watching(settings, state) as heard:
        wait_for(lambda: (state / "models" / "current.json").exists(), what="the update")
        wait_for(lambda: "1" in json.loads((state / "models" / "current.json").read_text())["refused"], 30)
        put(photos, "a.jpg")
        wait_for(lambda: heard.detections)
    assert heard.detections[0].label == "green"
