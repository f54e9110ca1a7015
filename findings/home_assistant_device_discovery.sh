#!/usr/bin/env bash
# Home Assistant 2024.11.3 (Python 3.12, Linux; amqtt 0.12.1): MQTT discovery, device-based. 2026.2.3 does the same.
#
# A sensor that Home Assistant knows from a topic of its own is not taken over by a later description of its device, which is
# known; what is not to be guessed is that it does not come back to the retained description when that topic is cleared: the
# sensor is gone until the description is sent again. Asked with {"migrate_discovery": true} on the sensor's own topic before,
# it hands the sensor over. A component that is left out of a later description stays; one that is sent with its platform
# alone is removed. No bytes on a sensor's topic, which clear what is retained there, are rendered as a message, with an error.
#
# Output seen:
#   described alone, then with its device: 1 sensor, 1 warning
#   then its own topic cleared: 0 sensors
#   described alone, handed over, described with its device, its own topic cleared: 1 sensor
#   left out of the description: 1 sensor
#   no bytes on its topic: 1 error
#   its platform alone: 0 sensors
#
# What it means for us: a plot that is gone and a temperature that is not known are sent with their platform; a plot's topic is
# cleared behind the description (edge/delivery/link.py).
set -euo pipefail
python=${PYTHON312:-python3.12}
folder=$(mktemp -d)
broker=
trap '[ -z "$broker" ] || kill "$broker"; rm -rf "$folder"' EXIT
"$python" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "homeassistant==2024.11.3" "paho-mqtt==1.6.1" "josepy==1.15.0"
"$python" -m venv "$folder/amqtt"
"$folder/amqtt/bin/pip" install --quiet "amqtt==0.12.1"
port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
cat > "$folder/amqtt.yaml" <<Y
listeners:
  default:
    type: tcp
    bind: 127.0.0.1:$port
plugins:
  amqtt.plugins.authentication.AnonymousAuthPlugin:
    allow_anonymous: true
Y
"$folder/amqtt/bin/amqtt" -c "$folder/amqtt.yaml" > "$folder/log" 2>&1 &
broker=$!
found=$("$folder/venv/bin/python" - "$folder/config" "$port" <<'P'
import asyncio
import json
import logging
import os
import pathlib
import socket
import sys
import time

from homeassistant import auth, bootstrap, config_entries, core, loader
from homeassistant.components.mqtt import async_publish
from homeassistant.helpers import entity_registry
from homeassistant.setup import async_setup_component

OWN, DEVICE = "homeassistant/sensor/farm/a/config", "homeassistant/device/farm/config"
SENSOR = {"name": "A", "unique_id": "farm_a", "state_topic": "farm/a", "value_template": "{{ value_json.x }}"}
ABOUT = {"device": {"identifiers": ["farm"], "name": "farm"}, "origin": {"name": "farm"}}
FURTHER = {"b": {"p": "binary_sensor", "name": "B", "unique_id": "farm_b", "state_topic": "farm/b"}}
ALONE = json.dumps(SENSOR | ABOUT)


def described(**sensors):
    return json.dumps(ABOUT | {"components": FURTHER | sensors})


class Lines(logging.Handler):
    def __init__(self):
        super().__init__(logging.WARNING)
        self.got = []

    def emit(self, record):
        self.got.append(record)


def number(count, thing):
    return f"{count} {thing}{'' if count == 1 else 's'}"


async def main(folder, port):
    folder.mkdir()
    (folder / "configuration.yaml").touch()
    lines = Lines()
    for name in ("homeassistant.components.mqtt", "homeassistant.helpers.template"):
        logging.getLogger(name).addHandler(lines)
    logging.getLogger("homeassistant").propagate = False
    hass = core.HomeAssistant(str(folder))
    hass.config.skip_pip = True
    hass.config_entries = config_entries.ConfigEntries(hass, {})
    loader.async_setup(hass)
    await bootstrap.async_load_base_functionality(hass)
    hass.auth = await auth.auth_manager_from_config(hass, [{"type": "homeassistant"}], [])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        web = {"server_host": "127.0.0.1", "server_port": free.getsockname()[1]}
    assert await async_setup_component(hass, "http", {"http": web})
    entry = config_entries.ConfigEntry(
        data={"broker": "127.0.0.1", "port": port},
        discovery_keys={},
        domain="mqtt",
        minor_version=2,
        options={},
        source="user",
        title="",
        unique_id=None,
        version=1,
    )
    await hass.config_entries.async_add(entry)
    await hass.async_start()

    async def tell(topic, payload):
        await async_publish(hass, topic, payload, 1, True)
        await asyncio.sleep(1)
        await hass.async_block_till_done()

    def sensors():
        known = entity_registry.async_get(hass).entities.values()
        return number(sum(each.domain == "sensor" and each.platform == "mqtt" for each in known), "sensor")

    await tell(OWN, ALONE)
    await tell(DEVICE, described(a={"p": "sensor", **SENSOR}))
    warnings = sum("conflicting" in line.getMessage() for line in lines.got)
    print(f"described alone, then with its device: {sensors()}, {number(warnings, 'warning')}")
    await tell(OWN, "")
    print(f"then its own topic cleared: {sensors()}")

    await tell(DEVICE, "")
    await tell(OWN, ALONE)
    await tell(OWN, '{"migrate_discovery": true}')
    await tell(DEVICE, described(a={"p": "sensor", **SENSOR}))
    await tell(OWN, "")
    print(f"described alone, handed over, described with its device, its own topic cleared: {sensors()}")

    await tell(DEVICE, described())
    print(f"left out of the description: {sensors()}")
    lines.got.clear()
    await tell("farm/a", "")
    print(f"no bytes on its topic: {number(sum(line.levelno == logging.ERROR for line in lines.got), 'error')}")
    await tell(DEVICE, described(a={"p": "sensor"}))
    print(f"its platform alone: {sensors()}")
    sys.stdout.flush()
    os._exit(0)  # without the minute that a stop may take


asyncio.run(main(pathlib.Path(sys.argv[1]), int(sys.argv[2])))
P
)
echo "$found"
expected="described alone, then with its device: 1 sensor, 1 warning
then its own topic cleared: 0 sensors
described alone, handed over, described with its device, its own topic cleared: 1 sensor
left out of the description: 1 sensor
no bytes on its topic: 1 error
its platform alone: 0 sensors"
[ "$found" = "$expected" ] || { echo "the behaviour has changed" >&2; exit 1; }
