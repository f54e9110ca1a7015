from __future__ import annotations

import json

from agridistill.edge.delivery.broker import BrokerSettings
from agridistill.edge.delivery.home_assistant import discovery


def test_plots_whose_names_have_to_be_changed_stay_apart() -> None:
    settings = BrokerSettings("host", device="pi", prefix="farm")
    plots = ["北", "南", "a b", "a_b"]
    assert len({settings.plot_topic(plot) for plot in plots}) == 4
    assert len(discovery(settings, plots)) == len(discovery(settings, [])) + 4


def test_each_sensor_names_topics_that_the_agent_tells() -> None:
    settings = BrokerSettings("host", device="pi 1", prefix="farm")
    found = {topic: json.loads(payload) for topic, payload in discovery(settings, ["north", "", "a/b"]).items()}
    own = {settings.state_topic, settings.plot_topic("north"), settings.plot_topic(""), settings.plot_topic("a/b")}
    assert {config["state_topic"] for config in found.values()} == own
    assert len({config["unique_id"] for config in found.values()}) == len(found)
    for topic, config in found.items():
        prefix, component, node, _, last = topic.split("/")
        assert (prefix, last) == ("homeassistant", "config")
        assert component in ("sensor", "binary_sensor")
        assert config["availability_topic"] == settings.status_topic
        assert config["device"]["identifiers"] == [node]
        assert not set(node) & set(" /#+")
