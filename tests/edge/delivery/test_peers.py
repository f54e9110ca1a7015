"""Against brokers other than Mosquitto, each with an access list that denies Home Assistant's topic."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from tests.edge.conftest import Receiver, free_port, wait_for
from tests.edge.delivery.conftest import DISCOVERY, STATE, STATUS, fill, numbers, publishing, warnings
from tests.needs import peers, program

from agridistill.edge.store.outbox import Outbox

pytestmark = pytest.mark.slow

_AEDES = """
import { createServer } from 'node:net'
import { Aedes } from 'MODULE'
const denies = (client, packet, done) => done(packet.topic.startsWith('homeassistant/') ? new Error('denied') : null)
const broker = await Aedes.createBroker({ authorizePublish: denies })
createServer(broker.handle).listen(PORT, '127.0.0.1')
"""
_AMQTT = """
listeners:
  default:
    type: tcp
    bind: 127.0.0.1:PORT
plugins:
  amqtt.plugins.authentication.AnonymousAuthPlugin:
    allow_anonymous: true
"""
_RABBITMQ = """
mqtt.listeners.tcp.default = 127.0.0.1:PORT
mqtt.allow_anonymous = true
"""


@contextlib.contextmanager
def running(words: list[str], log: Path, environment: Mapping[str, str] | None = None) -> Iterator[None]:
    with log.open("wb") as out:
        process = subprocess.Popen(words, stdout=out, stderr=out, env={**os.environ, **(environment or {})})
        try:
            yield
        finally:
            process.terminate()
            process.wait(30)


def receiver_at(port: int) -> Receiver:
    found: list[Receiver] = []

    def try_it() -> bool:
        with contextlib.suppress(OSError):
            found.append(Receiver(port))
        return bool(found)

    wait_for(try_it, 90, "the broker")
    return found[0]


def require_all_but_discovery(outbox: Outbox, port: int, caplog: pytest.LogCaptureFixture, **settings: str) -> None:
    receiver = receiver_at(port)
    fill(outbox, 60)
    with publishing(outbox, port, **settings):
        wait_for(lambda: not outbox.pending(), what="an empty outbox")
        wait_for(lambda: (STATE, b"{}") in receiver.got, what="the state")
        wait_for(lambda: f"refuses a retained message on '{DISCOVERY}'" in caplog.text, what="the line about discovery")
        wait_for(lambda: len(numbers(receiver)) == 60, what="all messages")
    receiver.close()
    assert numbers(receiver) == list(range(60))
    assert DISCOVERY not in dict(receiver.got)
    assert len([line for line in warnings(caplog) if "refuses a retained message" in line]) == 1


@pytest.mark.needs("aedes")
def test_aedes_closes_the_connection_on_a_denied_topic_and_gets_the_rest(
    tmp_path: Path, outbox: Outbox, caplog: pytest.LogCaptureFixture
) -> None:
    port, script = free_port(), tmp_path / "broker.mjs"
    module = (peers() / "node_modules" / "aedes" / "aedes.js").resolve().as_uri()
    script.write_text(_AEDES.replace("PORT", str(port)).replace("MODULE", module))
    with running([str(program("node")), str(script)], tmp_path / "log"):
        require_all_but_discovery(outbox, port, caplog)


@pytest.mark.needs("rabbitmq-server")
def test_rabbitmq_closes_the_connection_on_a_denied_topic_and_gets_the_rest(
    tmp_path: Path, outbox: Outbox, caplog: pytest.LogCaptureFixture
) -> None:
    port, plugins, config = free_port(), tmp_path / "plugins", tmp_path / "rabbitmq.conf"
    plugins.write_text("[rabbitmq_mqtt].")
    config.write_text(_RABBITMQ.replace("PORT", str(port)))
    node = f"agridistill{port}@localhost"
    environment = {
        "HOME": str(tmp_path),
        "RABBITMQ_NODENAME": node,
        "RABBITMQ_NODE_PORT": str(free_port()),
        "RABBITMQ_DIST_PORT": str(free_port()),
        "RABBITMQ_MNESIA_BASE": str(tmp_path / "data"),
        "RABBITMQ_LOG_BASE": str(tmp_path / "data"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(plugins),
        "RABBITMQ_CONFIG_FILE": str(config),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "ERL_EPMD_PORT": str(free_port()),
    }

    def control(*words: str) -> None:
        control = [str(program("rabbitmqctl")), "--node", node, *words]
        subprocess.run(control, env={**os.environ, **environment}, check=True, capture_output=True, timeout=60)

    with contextlib.ExitStack() as stack:
        # Erlang's port mapper outlives the broker that starts it.
        stack.callback(
            subprocess.run, [str(program("epmd")), "-port", environment["ERL_EPMD_PORT"], "-kill"], capture_output=True
        )
        stack.enter_context(running([str(program("rabbitmq-server"))], tmp_path / "log", environment))
        receiver_at(port).close()
        control("add_user", "pi", "secret")
        control("set_permissions", "pi", ".*", ".*", ".*")
        control("set_topic_permissions", "pi", "amq.topic", r"^agridistill\.pi\..*", ".*")
        require_all_but_discovery(outbox, port, caplog, username="pi", password="secret")  # noqa: S106


@pytest.mark.needs("amqtt")
def test_amqtt_is_silent_to_mqtt_5_and_gets_everything_by_3(
    tmp_path: Path, outbox: Outbox, caplog: pytest.LogCaptureFixture
) -> None:
    port, config = free_port(), tmp_path / "amqtt.yaml"
    config.write_text(_AMQTT.replace("PORT", str(port)))
    with running([str(peers() / "bin" / "amqtt"), "-c", str(config)], tmp_path / "log"):
        receiver = receiver_at(port)
        fill(outbox, 60)
        with publishing(outbox, port):
            wait_for(lambda: not outbox.pending(), what="an empty outbox")
            wait_for(lambda: (STATE, b"{}") in receiver.got, what="the state")
            wait_for(lambda: len(numbers(receiver)) == 60, what="all messages")
        wait_for(lambda: (STATUS, b"offline") in receiver.got, what="the goodbye")
        receiver.close()
    assert numbers(receiver) == list(range(60))
    assert "supports only MQTT 3.1.1" in caplog.text
