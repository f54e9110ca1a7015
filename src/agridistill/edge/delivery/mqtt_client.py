"""paho's client as a session needs it, and how it ends."""

from __future__ import annotations

import contextlib
import socket
import ssl

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.reasoncodes import ReasonCode

from agridistill.edge.delivery.allowance import Allowance
from agridistill.edge.delivery.broker import BrokerSettings

ONLINE, OFFLINE = b"online", b"offline"
CONNECT_S = 10.0
_WITH_WILL = 0x04  # of MQTT 5's reasons


def create_client(
    settings: BrokerSettings, tls: ssl.SSLContext | None, protocol: MQTTProtocolVersion, allowance: Allowance
) -> paho.Client:
    """A client with the device's name and last will, not connected."""
    # A clean session: whatever an earlier connection left at the broker is not this one's. The same id: the broker
    # ends an earlier connection that only seems to be there now, and not, with its last will, after our "online".
    client = paho.Client(
        CallbackAPIVersion.VERSION2,
        client_id=settings.client_id,
        protocol=protocol,
        clean_session=None if protocol == MQTTProtocolVersion.MQTTv5 else True,
    )
    client.max_inflight_messages_set(0)  # the window is the session's
    client.connect_timeout = CONNECT_S
    if settings.username is not None:
        client.username_pw_set(settings.username, settings.password)
    if tls is not None:
        client.tls_set_context(tls)
    client.will_set(settings.status_topic, OFFLINE, qos=allowance.qos, retain=allowance.retain)
    return client


def hang_up(client: paho.Client, *, can_say_why: bool) -> None:
    """Ends a connection so that the broker publishes the last will: the device is not there any more.

    Args:
        client: whatever its state.
        can_say_why: the broker accepted the connection by MQTT 5. By 3.1.1 every DISCONNECT takes the last will back.
    """
    connection = client.socket()
    if can_say_why:
        client.disconnect(ReasonCode(PacketTypes.DISCONNECT, identifier=_WITH_WILL))
    elif isinstance(connection, socket.socket):
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)


def let_go(client: paho.Client) -> None:
    """Frees what a client holds.

    paho closes the pair of sockets that wakes it when the client is let go of. In a circle with its callbacks that is
    some day: a broker that refuses for hours would fill the table of open files before.
    """
    client.loop(0)
    client.on_connect = client.on_disconnect = client.on_message = None
    client.on_publish = client.on_subscribe = client.on_unsubscribe = None
