"""Tells Home Assistant of the device (MQTT discovery), so that its sensors appear by themselves."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from agridistill.edge.delivery.broker import BrokerSettings, plot_level
from agridistill.edge.delivery.mqtt_client import OFFLINE, ONLINE
from agridistill.version import __version__

_UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")


def discovery(settings: BrokerSettings, plots: Iterable[str], prefix: str = "homeassistant") -> dict[str, bytes]:
    """Retained topics with the configurations of the device's sensors.

    Args:
        settings: of the broker, which name the device's topics.
        plots: that have been seen; each becomes a sensor.
        prefix: Home Assistant's own.

    Returns:
        Payloads by topic, as described in Home Assistant's "MQTT discovery".
    """
    node = _name(settings.base.replace("/", "_"))
    sensors: list[tuple[str, str, dict[str, Any]]] = [
        (
            "binary_sensor",
            "alert",
            {
                "name": "Disease alert",
                "device_class": "problem",
                "state_topic": settings.state_topic,
                "value_template": "{{ 'ON' if value_json.open_alerts > 0 else 'OFF' }}",
            },
        ),
        (
            "sensor",
            "open_alerts",
            {
                "name": "Open alerts",
                "state_topic": settings.state_topic,
                "value_template": "{{ value_json.open_alerts }}",
                "state_class": "measurement",
                "icon": "mdi:sprout",
            },
        ),
        ("sensor", "waiting", _diagnostic(settings, "Waiting messages", "value_json.outbox.waiting")),
        ("sensor", "skipped", _diagnostic(settings, "Skipped frames", "value_json.skipped")),
        (
            "sensor",
            "temperature",
            _diagnostic(settings, "Processor temperature", "value_json.processor_celsius")
            | {"device_class": "temperature", "unit_of_measurement": "°C"},
        ),
    ]
    for plot in plots:
        level = plot_level(plot)
        sensors.append(
            (
                "sensor",
                f"plot_{_name(level)}",
                {
                    "name": f"Plot {plot}" if plot else "Plants",
                    "state_topic": settings.plot_topic(plot),
                    "value_template": "{{ value_json.label }}",
                    "json_attributes_topic": settings.plot_topic(plot),
                    "icon": "mdi:leaf",
                },
            )
        )
    return {
        f"{prefix}/{kind}/{node}/{name}/config": _config(settings, node, name, config) for kind, name, config in sensors
    }


def _name(text: str) -> str:
    """Home Assistant takes ASCII alone; names that have to be changed stay apart by a digest."""
    safe = _UNSAFE.sub("_", text)
    return safe if safe == text else f"{safe}_{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def _diagnostic(settings: BrokerSettings, name: str, value: str) -> dict[str, Any]:
    return {
        "name": name,
        "state_topic": settings.state_topic,
        "value_template": f"{{{{ {value} }}}}",
        "state_class": "measurement",
        "entity_category": "diagnostic",
    }


def _config(settings: BrokerSettings, node: str, name: str, config: Mapping[str, Any]) -> bytes:
    document = {
        **config,
        "unique_id": f"{node}_{name}",
        "availability_topic": settings.status_topic,
        "payload_available": ONLINE.decode(),
        "payload_not_available": OFFLINE.decode(),
        "device": {
            "identifiers": [node],
            "name": settings.device,
            "manufacturer": "AgriDistill",
            "sw_version": __version__,
        },
    }
    return json.dumps(document, ensure_ascii=False).encode()
