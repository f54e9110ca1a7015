"""Describes the device to Home Assistant (MQTT discovery, device-based), so that its sensors appear by themselves."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from agridistill.edge.delivery.broker import BrokerAccess, plot_level
from agridistill.edge.delivery.session import OFFLINE, ONLINE
from agridistill.version import __version__

_UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")
# The newest alert's plot, disease, since, text, … as attributes, and the newest ones as a list: attributes of more than
# 16 kB are not recorded, with a warning each time.
_ALERTS = "{% set all = value_json.alerts[:20] %}{{ dict(all[0] if all else {}, alerts=all) | tojson }}"
# Of a component: it is removed. One that is only left out would stay for ever.
_REMOVED = {"p": "sensor"}
_HAND_OVER = b'{"migrate_discovery": true}'


@dataclass(frozen=True)
class DeviceFacts:
    """What Home Assistant shows of the device itself."""

    model: str = ""  # name and version of the leaf model
    page_url: str | None = None  # of the local page, as another machine opens it
    has_temperature: bool = False  # whether the processor's temperature is known


def discovery(
    access: BrokerAccess,
    plots: Iterable[str],
    gone: Iterable[str] = (),
    facts: DeviceFacts | None = None,
) -> dict[str, bytes]:
    """The retained description of the device with all its sensors.

    Args:
        access: to the broker.
        plots: each becomes a sensor.
        gone: whose sensor Home Assistant removes.
        facts: of the device.

    Returns:
        The payload by topic, `PREFIX/device/ID/config`, as described in Home Assistant's "MQTT discovery"; Home
        Assistant takes it from 2024.11 on.
    """
    facts = facts or DeviceFacts()
    node = _name(access.base.replace("/", "_"))
    sensors = _device_sensors(access, facts) | {_plot_id(plot): _plot_sensor(access, plot) for plot in plots}
    removed: dict[str, dict[str, Any]] = {_plot_id(plot): _REMOVED for plot in gone} | {"temperature": _REMOVED}
    device = {
        "identifiers": [node],
        "name": access.device,
        "manufacturer": "AgriDistill",
        "model": facts.model or None,
        "sw_version": __version__,
        "configuration_url": facts.page_url,
    }
    document = {
        "dev": {key: value for key, value in device.items() if value is not None},
        "o": {"name": "AgriDistill", "sw_version": __version__},
        "cmps": removed | {name: config | {"unique_id": f"{node}_{name}"} for name, config in sensors.items()},
        "availability_topic": access.status_topic,
        "payload_available": ONLINE.decode(),
        "payload_not_available": OFFLINE.decode(),
    }
    topic = f"{access.settings.discovery_prefix}/device/{node}/config"
    return {topic: json.dumps(document, ensure_ascii=False).encode()}


def earlier_descriptions(description: Mapping[str, bytes]) -> dict[str, bytes]:
    """The topics on which earlier versions described each sensor alone, and what has to be sent there first.

    Home Assistant ignores the device's description as long as it knows a sensor from a topic of its own, and does not
    come back to it when that topic is cleared. So each sensor is asked to be handed over, then the device is described,
    and then these topics are cleared.

    Args:
        description: as `discovery` gives it.
    """
    found = {}
    for topic, payload in description.items():
        prefix, _, node, _ = topic.rsplit("/", 3)
        for name, config in json.loads(payload)["cmps"].items():
            is_kept = len(config) > len(_REMOVED)
            found[f"{prefix}/{config['p']}/{node}/{name}/config"] = _HAND_OVER if is_kept else b""
    return found


def _device_sensors(access: BrokerAccess, facts: DeviceFacts) -> dict[str, dict[str, Any]]:
    sensors = {
        "alert": {
            "p": "binary_sensor",
            "name": "Disease alert",
            "device_class": "problem",
            "state_topic": access.state_topic,
            "value_template": "{{ 'ON' if value_json.open_alerts > 0 else 'OFF' }}",
            "json_attributes_topic": access.state_topic,
            "json_attributes_template": _ALERTS,
        },
        "open_alerts": {
            "p": "sensor",
            "name": "Open alerts",
            "state_topic": access.state_topic,
            "value_template": "{{ value_json.open_alerts }}",
            "state_class": "measurement",
            "icon": "mdi:sprout",
        },
        # Null while the disk refuses; "None" is Home Assistant's word for an unknown value.
        "waiting": _diagnostic(access, "Waiting messages", "value_json.outbox.waiting if value_json.outbox else None"),
        "skipped": _diagnostic(access, "Skipped frames", "value_json.skipped"),
    }
    if facts.has_temperature:
        sensors["temperature"] = _diagnostic(access, "Processor temperature", "value_json.processor_celsius") | {
            "device_class": "temperature",
            "unit_of_measurement": "°C",
        }
    return sensors


def _plot_sensor(access: BrokerAccess, plot: str) -> dict[str, Any]:
    return {
        "p": "sensor",
        "name": f"Plot {plot}" if plot else "Plants",
        "state_topic": access.plot_topic(plot),
        "value_template": "{{ value_json.condition }}",
        "json_attributes_topic": access.plot_topic(plot),
        "icon": "mdi:leaf",
    }


def _plot_id(plot: str) -> str:
    return f"plot_{_name(plot_level(plot))}"


def _name(text: str) -> str:
    """Home Assistant takes ASCII alone; names that have to be changed stay apart by a digest."""
    safe = _UNSAFE.sub("_", text)
    return safe if safe == text else f"{safe}_{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def _diagnostic(access: BrokerAccess, name: str, value: str) -> dict[str, Any]:
    return {
        "p": "sensor",
        "name": name,
        "state_topic": access.state_topic,
        "value_template": f"{{{{ {value} }}}}",
        "state_class": "measurement",
        "entity_category": "diagnostic",
    }
