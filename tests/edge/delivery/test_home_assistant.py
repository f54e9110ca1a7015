"""What Home Assistant reads: the device with its sensors, alerts with plot and disease, plots that come and go."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.edge.conftest import access_to
from tests.edge.looks import state

from agridistill.edge import page as page_module
from agridistill.edge.alerts.plots import open_alerts_json
from agridistill.edge.alerts.rules import PlotHealth
from agridistill.edge.delivery import link as link_module
from agridistill.edge.delivery.broker import BrokerAccess, Connection
from agridistill.edge.delivery.link import BrokerLink, PublishedPlots, discovery, plot_folders
from agridistill.edge.events import Alert, json_bytes
from agridistill.edge.page import page_address
from agridistill.edge.settings import PageSettings
from agridistill.edge.store.outbox import Outbox

TOPIC = "homeassistant/device/farm_pi/config"
REMOVED = {"p": "sensor"}
ALERT = Alert("a" * 32, "ill leaves", "north", "open", 1e9, 1e9, None, "Tomato___Late_blight", 0.5, 8, "text")


def described(access: BrokerAccess, *plots: str, **further: Any) -> dict[str, Any]:
    ((topic, payload),) = discovery(access, plots, **further).items()
    found: dict[str, Any] = json.loads(payload)
    assert topic == f"homeassistant/device/{found['dev']['identifiers'][0]}/config"
    return found


def test_plots_whose_names_have_to_be_changed_stay_apart() -> None:
    settings = access_to("host", device="pi", prefix="farm")
    plots = ["北", "南", "a b", "a_b"]
    assert len({settings.plot_topic(plot) for plot in plots}) == 4
    assert len(described(settings, *plots)["cmps"]) == len(described(settings)["cmps"]) + 4


def test_each_sensor_names_topics_that_the_agent_tells() -> None:
    settings = access_to("host", device="pi 1", prefix="farm")
    found = described(settings, "north", "", "a/b")
    own = {settings.topic("state"), settings.plot_topic("north"), settings.plot_topic(""), settings.plot_topic("a/b")}
    sensors = {name: config for name, config in found["cmps"].items() if config != REMOVED}
    assert {config["state_topic"] for config in sensors.values()} == own
    assert len({config["unique_id"] for config in sensors.values()}) == len(sensors)
    assert {config["p"] for config in sensors.values()} == {"sensor", "binary_sensor"}
    assert found["availability_topic"] == settings.topic("status")
    assert found["o"]["name"] == "AgriDistill"
    assert not set(found["dev"]["identifiers"][0]) & set(" /#+")


def test_the_device_has_its_models_name_its_page_and_no_temperature_that_it_cannot_measure() -> None:
    settings = access_to("host", device="pi", prefix="farm")
    bare = described(settings)
    # Home Assistant keeps what is only left out, so a temperature that an earlier start told is removed.
    assert bare["cmps"]["temperature"] == REMOVED
    assert not {"model", "configuration_url"} & set(bare["dev"])
    full = described(settings, model="tomato 7", page_url="http://192.0.2.7:8571/", has_temperature=True)
    assert full["cmps"]["temperature"]["device_class"] == "temperature"
    assert (full["dev"]["model"], full["dev"]["configuration_url"]) == ("tomato 7", "http://192.0.2.7:8571/")


def test_the_sensor_of_a_plot_that_is_gone_is_removed() -> None:
    found = described(access_to("host", device="pi", prefix="farm"), "south", gone=["north"])
    assert found["cmps"]["plot_north"] == REMOVED
    assert found["cmps"]["plot_south"]["name"] == "Plot south"


def test_the_alert_names_plot_disease_and_time() -> None:
    jinja2 = pytest.importorskip("jinja2")
    config = described(access_to("host", device="pi", prefix="farm"))["cmps"]["alert"]
    older = Alert(**{**vars(ALERT), "plot": "south", "since_s": 9e8})

    def rendered(key: str, *alerts: Alert) -> str:
        payload = json.loads(json_bytes(state(open_alerts=len(alerts), alerts=open_alerts_json(alerts)).to_json()))
        text: str = jinja2.Template(config[key]).render(value_json=payload)
        return text

    assert (rendered("value_template", ALERT), rendered("value_template")) == ("ON", "OFF")
    found = json.loads(rendered("json_attributes_template", older, ALERT))
    assert (found["plot"], found["disease"]) == ("north", "Tomato: Late blight")
    assert found["since"] == "2001-09-09T01:46:40+00:00"
    assert [alert["plot"] for alert in found["alerts"]] == ["north", "south"]
    assert json.loads(rendered("json_attributes_template")) == {"alerts": []}


def test_the_alerts_attributes_stay_small_enough_to_be_recorded() -> None:
    jinja2 = pytest.importorskip("jinja2")
    config = described(access_to("host", device="pi", prefix="farm"))["cmps"]["alert"]
    plot = "a rather long name of a plot " * 2
    many = [Alert(**{**vars(ALERT), "plot": f"{plot}{number}", "text": 2 * plot}) for number in range(60)]
    payload = json.loads(json_bytes(state(open_alerts=60, alerts=open_alerts_json(many)).to_json()))
    text = jinja2.Template(config["json_attributes_template"]).render(value_json=payload)
    assert len(text.encode()) < 16_384
    assert len(json.loads(text)["alerts"]) == 20


@pytest.mark.parametrize(("outbox", "shown"), [({"waiting": 3}, "3"), (None, "None")])
def test_an_outbox_that_cannot_be_read_is_an_unknown_number(outbox: dict[str, int] | None, shown: str) -> None:
    jinja2 = pytest.importorskip("jinja2")
    config = described(access_to("host", device="pi", prefix="farm"))["cmps"]["waiting"]
    payload = json.loads(json_bytes(state(outbox=outbox).to_json()))
    assert jinja2.Template(config["value_template"]).render(value_json=payload) == shown


def test_a_plots_message_counts_all_ill_leaves_as_its_alert_does() -> None:
    shares = {"healthy": 0.5, "Late_blight": 0.3, "rust": 0.2}
    found = PlotHealth("north", 9.0, 3600.0, 10, 0.5, "Late_blight", shares=shares).to_json()
    assert (found["condition"], found["leaves"], found["ill_leaves"], found["ill_share"]) == ("Late blight", 10, 5, 0.5)
    assert (found["label"], found["probability"]) == ("Late_blight", 0.3)
    assert found["schema"] == 2, "readers of version 1 take the label for the pooled one, which is never null"
    idle = PlotHealth("north", 9.0).to_json()
    assert (idle["condition"], idle["leaves"], idle["label"], idle["shares"]) == ("No recent leaves", 0, None, {})


class Link:
    """A link whose agent is what a test says; `told` is what the publisher would retain now."""

    def __init__(self, outbox: Outbox, monkeypatch: pytest.MonkeyPatch, **further: Any) -> None:
        self.clock = 1000.0
        monkeypatch.setattr(link_module.time, "monotonic", lambda: self.clock)
        self.agent = SimpleNamespace(state=state(), reports=[])
        there = Connection("127.0.0.1", 1883, connected=True)
        access, agent = access_to(device="pi", prefix="farm"), self.agent
        self._link = BrokerLink(access, outbox, lambda: agent.state, lambda: agent.reports, connection=there, **further)

    def told(self, *reports: PlotHealth) -> dict[str, Any]:
        self.agent.reports = list(reports)
        return {topic: json.loads(payload) if payload else None for topic, payload in self._link.retained().items()}


def test_a_plot_is_told_at_once_and_then_once_a_minute(outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    link = Link(outbox, monkeypatch)
    leaves = []
    for second in range(181):
        link.clock += 1
        health = PlotHealth("north", 1.0, 3600.0, 1 + second, shares={"healthy": 1.0})
        leaves.append(link.told(health)["farm/pi/plots/north"]["leaves"])
    assert leaves[0] == 1
    assert len(set(leaves)) == 4


def test_an_alert_is_told_at_once(outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    link = Link(outbox, monkeypatch)
    assert link.told()["farm/pi/state"]["alerts"] == []
    link.agent.state = state(open_alerts=1, alerts=open_alerts_json([ALERT]))
    assert link.told()["farm/pi/state"]["alerts"][0]["disease"] == "Tomato: Late blight"
    # Another alert in its place is news, too, although their number is the same.
    link.agent.state = state(open_alerts=1, alerts=open_alerts_json([Alert(**{**vars(ALERT), "plot": "south"})]))
    assert link.told()["farm/pi/state"]["alerts"][0]["plot"] == "south"


def test_a_plot_that_is_gone_is_cleared_also_after_a_restart(
    tmp_path: Path, outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = tmp_path / "photos"
    for plot in ("north", "south"):
        (photos / plot).mkdir(parents=True)
    link = Link(outbox, monkeypatch, photos=photos)
    # Also with leaves of today: a plot that was renamed would be there twice.
    reports = [PlotHealth("north", 1.0, 3600.0, 8, 0.9, "rust"), PlotHealth("south", 1.0)]
    assert link.told(*reports)["farm/pi/plots/south"]["condition"] == "No recent leaves"
    (photos / "north").rename(photos / "north-2")
    link.clock += 60
    for restarted in (False, True):
        link = Link(outbox, monkeypatch, photos=photos) if restarted else link
        found = link.told(*reports)
        assert found["farm/pi/plots/north"] is None
        assert found["farm/pi/plots/south"] is not None
        assert found[TOPIC]["cmps"]["plot_north"] == REMOVED
        # An empty message that came first would be an error in Home Assistant's log.
        assert list(found).index(TOPIC) < list(found).index("farm/pi/plots/north")


def test_a_sensor_of_the_temperature_that_sleeps_stays(outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    link = Link(outbox, monkeypatch)
    link.agent.state = state(processor_celsius=None)
    assert link.told()[TOPIC]["cmps"]["temperature"] == REMOVED
    for celsius in (41.5, None):
        link.agent.state = state(processor_celsius=celsius)
        assert link.told()[TOPIC]["cmps"]["temperature"]["name"] == "Processor temperature"


def test_an_empty_or_missing_folder_takes_no_plot_away(
    tmp_path: Path, outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert plot_folders(tmp_path / "missing") == frozenset()
    for photos in (tmp_path / "missing", None):
        link = Link(outbox, monkeypatch, photos=photos)
        assert link.told(PlotHealth("north", 1.0))["farm/pi/plots/north"] is not None
    (tmp_path / "photos" / "south").mkdir(parents=True)
    assert plot_folders(tmp_path / "photos") == {"south"}


def test_the_photos_folder_is_looked_into_once_a_minute(
    tmp_path: Path, outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[Path | None] = []
    monkeypatch.setattr(link_module, "plot_folders", lambda photos: looks.append(photos) or frozenset())
    link = Link(outbox, monkeypatch, photos=tmp_path)
    for _ in range(121):
        link.told(*(PlotHealth(f"plot {number}", 1.0) for number in range(5)))
        link.clock += 1
    assert len(looks) == 3


def test_what_was_cleared_long_ago_is_forgotten(tmp_path: Path) -> None:
    file, day = tmp_path / "plots.json", 86_400.0
    assert PublishedPlots(file).update(["north", "south"], now_s=0.0) == []
    assert PublishedPlots(file).update(["south"], now_s=day) == ["north"]
    assert PublishedPlots(file).update(["south"], now_s=9 * day, forget=False) == ["north"]
    assert PublishedPlots(file).update(["south"], now_s=9 * day) == []
    assert PublishedPlots(file).update(["north", "south"], now_s=10 * day) == []
    file.write_text("[1")
    assert PublishedPlots(file).update([], now_s=0.0) == []


@pytest.mark.parametrize(
    ("page", "address"),
    [
        (PageSettings(), None),
        (PageSettings(host="192.0.2.7"), "http://192.0.2.7:8571/"),
        (PageSettings(host="0.0.0.0", port=80), "http://10.0.0.7:80/"),  # noqa: S104
    ],
)
@pytest.mark.parametrize("by_broker", ["127.0.0.1", "::1", "fe80::1%eth0", None, "10.0.0.7"])
def test_the_pages_address_is_one_that_others_can_open(
    page: PageSettings, address: str | None, by_broker: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_peer = {"farm": by_broker, "192.0.2.1": "10.0.0.7"}
    monkeypatch.setattr(page_module, "_own_address", lambda host, port: by_peer[host])
    assert page_address(page.host, page.port, ("farm", 1883))() == address


def test_a_device_without_a_network_has_no_address_for_its_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_module, "_ELSEWHERE", ("127.0.0.1", 9))
    assert page_address("0.0.0.0", 8571, ("127.0.0.1", 1883))() is None  # noqa: S104
    assert page_module._own_address("127.0.0.1", 9) == "127.0.0.1"
