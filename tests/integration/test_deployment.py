"""What `deploy/` and the documents give to the reader works as it stands."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion
from tests.edge.conftest import MOSQUITTO, free_port, let_go, wait_for
from tests.edge.looks import KEPT, state

from agridistill.edge.alerts.plots import AlertMessage
from agridistill.edge.alerts.rules import PlotHealth, ill_classes
from agridistill.edge.events import Alert, Detection, json_bytes
from agridistill.edge.keep.photo import sidecar
from agridistill.edge.settings import WatchSettings, read_settings
from agridistill.edge.state import AgentState

ROOT = Path(__file__).parents[2]
CLASSES = [
    *("Bacterial_spot", "Early_blight", "Late_blight", "Leaf_Mold", "Septoria_leaf_spot", "Target_Spot", "healthy"),
    *("Spider_mites Two-spotted_spider_mite", "Tomato_Yellow_Leaf_Curl_Virus", "Tomato_mosaic_virus"),
]


def test_the_example_settings_are_valid_and_name_the_tomato_models_classes() -> None:
    found = read_settings(ROOT / "deploy" / "watch.toml")
    classes = [f"Tomato___{name}" for name in CLASSES]
    assert found.rules == ()
    ill = ill_classes(classes, found.healthy)
    assert [len(rule.indices(classes)) for rule in found.rules_for(ill)] == [9]
    assert found.page is not None
    assert found.keeps_thumbnails


def test_what_is_commented_out_in_the_example_is_valid_too(tmp_path: Path) -> None:
    text = (ROOT / "deploy" / "watch.toml").read_text()
    whole = re.sub(r"^# (?=[\[a-z_]+( =|\]))", "", text, flags=re.MULTILINE)
    (tmp_path / "watch.toml").write_text(whole)
    found = read_settings(tmp_path / "watch.toml")
    assert [len(rule.indices([f"Tomato___{name}" for name in CLASSES])) for rule in found.rules] == [1, 9]
    assert found.broker is not None
    assert found.webhook is not None
    assert found.updates is not None
    assert found.keep is not None


def test_every_setting_is_explained_in_the_field_guide() -> None:
    guide = (ROOT / "docs" / "field.md").read_text()
    defaults = WatchSettings()
    names = [
        name
        for name in vars(defaults)
        if name not in ("rules", "broker", "webhook", "command", "updates", "page", "keep")
    ]
    from agridistill.edge import settings as module
    from agridistill.edge.alerts.rules import Rule
    from agridistill.edge.delivery.broker import BrokerSettings
    from agridistill.edge.keep import KeepSettings
    from agridistill.edge.store.outbox import OutboxLimits

    for kind in (BrokerSettings, module.PageSettings, module.UpdateSettings, KeepSettings, OutboxLimits, Rule):
        names += list(kind.__dataclass_fields__)
    names += [*vars(defaults.quality), *vars(defaults.history)]
    missing = [name for name in names if f"`{name}`" not in guide and f"[{name}]" not in guide]
    assert missing == []


@pytest.mark.parametrize("name", ["detection", "alert", "plot", "state"])
def test_real_messages_fit_their_schemas(name: str) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    alert = Alert("a" * 32, "blight", "north", "open", 1.0, 2.0, None, "blight", 0.5, 9, "text", "critical")
    detection = Detection(
        "b" * 32, 1.0, "pi", "photos", "1.jpg", "", "c" * 12, "answer", "", "blight", 0.9, {"blight": 0.9}
    )
    unusable = replace(detection, verdict="unusable", reason="dark", label=None, probability=None, probabilities={})
    without_broker: AgentState = state(broker=None, outbox=None, latency_ms={}, memory_bytes=None, source_lost_s=3.0)
    messages: dict[str, list[Any]] = {
        "detection": [detection, unusable],
        "alert": [AlertMessage("opened", alert, 0.0)],
        "plot": [
            PlotHealth("north", 1.0, 3600.0, 3, 0.8, "blight", shares={"blight": 0.8, "healthy": 0.2}),
            PlotHealth("south", 1.0),
        ],
        "state": [state(), without_broker, state(kept=KEPT)],
    }
    schema = json.loads((ROOT / "docs" / "schemas" / f"{name}.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    for message in messages[name]:
        document = json.loads(json_bytes(message.to_json()))
        jsonschema.validate(document, schema)
        assert set(document) == set(schema["properties"])
        for key in schema["required"]:
            with pytest.raises(jsonschema.ValidationError):
                jsonschema.validate({other: value for other, value in document.items() if other != key}, schema)


def test_a_kept_photos_sidecar_fits_its_schema() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads((ROOT / "docs" / "schemas" / "kept.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    found = Detection("b" * 32, 1.5, "pi", "p", "1.jpg", "", "c" * 12, "unsure", "", "rust", 0.5, {"rust": 0.5})
    document = json.loads(json_bytes(sidecar(found, "unsure", "d" * 64, b"photo")))
    jsonschema.validate(document, schema)
    assert list(document) == schema["required"] == list(schema["properties"])


@pytest.mark.needs("systemd-analyze")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    unit = (ROOT / "deploy" / "agridistill-watch.service").read_text()
    file = tmp_path / "agridistill-watch.service"
    file.write_text(unit.replace("/opt/agridistill/bin/agridistill", "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", str(file)], capture_output=True, text=True, check=False)
    complaints = [line for line in done.stderr.splitlines() if "agridistill-watch" in line]
    assert complaints == []


class Client:
    """A user of the broker, over TLS."""

    def __init__(self, port: int, ca: Path, user: str) -> None:
        self.got: list[str] = []
        self.refused: list[str] = []
        self._ready = threading.Event()
        self.client = paho.Client(CallbackAPIVersion.VERSION2)
        self.client.username_pw_set(user, f"{user}-secret")
        self.client.tls_set(str(ca))
        self.client.on_message = lambda client, data, message: self.got.append(message.topic)
        self.client.on_subscribe = lambda *rest: self._ready.set()
        self.client.on_connect = lambda client, *rest: client.subscribe("#", qos=1)
        self.client.connect("localhost", port)
        self.client.loop_start()
        assert self._ready.wait(10)

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()
        let_go(self.client)


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[tuple[int, Path]]:
    """A Mosquitto with the configuration, access list, passwords and certificates of the field guide."""
    assert MOSQUITTO is not None
    _run_the_guides_openssl(tmp_path)
    passwords = tmp_path / "passwords"
    passwords.touch(mode=0o600)
    for user in ("greenhouse-1", "greenhouse-2", "home-assistant", "operator"):
        subprocess.run(
            ["mosquitto_passwd", "-b", str(passwords), user, f"{user}-secret"], check=True, capture_output=True
        )
    shutil.copy(ROOT / "deploy" / "mosquitto.acl", tmp_path / "acl")
    (tmp_path / "acl").chmod(0o600)
    (tmp_path / "data").mkdir()
    port = free_port()
    # Debian's own file, which includes ours.
    (tmp_path / "conf.d").mkdir()
    user = "user root\n" if os.geteuid() == 0 else ""
    (tmp_path / "mosquitto.conf").write_text(
        f"{user}persistence true\npersistence_location {tmp_path}/data/\ninclude_dir {tmp_path}/conf.d\n"
    )
    text = (ROOT / "deploy" / "mosquitto.conf").read_text()
    text = text.replace("/etc/mosquitto/certs", str(tmp_path)).replace("/etc/mosquitto", str(tmp_path))
    text = text.replace("listener 8883", f"listener {port}")
    (tmp_path / "conf.d" / "agridistill.conf").write_text(text)
    process = subprocess.Popen([MOSQUITTO, "-c", str(tmp_path / "mosquitto.conf")], stderr=subprocess.PIPE)

    def answers() -> bool:
        import socket

        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        try:
            socket.create_connection(("localhost", port), 1).close()
        except OSError:
            return False
        return True

    wait_for(answers, what="mosquitto")
    yield port, tmp_path / "ca.crt"
    process.terminate()
    process.communicate(timeout=10)


def _run_the_guides_openssl(folder: Path) -> None:
    guide = (ROOT / "docs" / "field.md").read_text()
    whole = guide.replace("\\\n", " ")
    lines = [line for line in whole.splitlines() if line.startswith(("openssl ", "printf 'subjectAltName"))]
    assert len(lines) == 4
    script = "\n".join(lines).replace("broker.example", "localhost")
    subprocess.run(["sh", "-ec", script], cwd=folder, check=True, capture_output=True)
    # Python 3.13 asks for it.
    told = subprocess.run(
        ["openssl", "x509", "-in", "ca.crt", "-noout", "-text"], cwd=folder, capture_output=True, text=True
    )
    assert "Certificate Sign" in told.stdout


@pytest.mark.needs("mosquitto", "mosquitto_passwd", "openssl")
def test_the_brokers_access_list_keeps_devices_apart(guarded: tuple[int, Path]) -> None:
    port, ca = guarded
    reader, one, two = (Client(port, ca, user) for user in ("home-assistant", "greenhouse-1", "greenhouse-2"))
    for user, topic in (
        ("greenhouse-1", "agridistill/greenhouse-1/detections/north"),
        ("greenhouse-1", "agridistill/greenhouse-2/detections/forged"),
        ("greenhouse-1", "agridistill/greenhouse-2/update/set"),
        ("greenhouse-1", "homeassistant/sensor/agridistill_greenhouse-1/waiting/config"),
        ("greenhouse-1", "homeassistant/sensor/agridistill_greenhouse-2/waiting/config"),
        ("greenhouse-2", "agridistill/greenhouse-2/status"),
    ):
        sender = Client(port, ca, user)
        # Mosquitto may close the connection on what it denies.
        with contextlib.suppress(RuntimeError):
            sender.client.publish(topic, b"{}", qos=1).wait_for_publish(10)
        sender.close()
    operator = Client(port, ca, "operator")
    operator.client.publish("agridistill/greenhouse-2/update/set", b"{}", qos=1).wait_for_publish(10)
    wait_for(lambda: "agridistill/greenhouse-2/update/set" in reader.got)
    wait_for(lambda: "agridistill/greenhouse-2/update/set" in two.got)
    for client in (reader, one, two, operator):
        client.close()
    assert sorted(reader.got) == [
        "agridistill/greenhouse-1/detections/north",
        "agridistill/greenhouse-2/status",
        "agridistill/greenhouse-2/update/set",
        "homeassistant/sensor/agridistill_greenhouse-1/waiting/config",
    ]
    assert one.got == []
    assert two.got == ["agridistill/greenhouse-2/update/set"]
