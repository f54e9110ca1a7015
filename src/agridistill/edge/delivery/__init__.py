"""Delivers the messages of the outboxes to their receivers: an MQTT broker (Home Assistant), a webhook, a command."""

from agridistill.edge.delivery.broker import BrokerAccess, BrokerSettings, Connection
from agridistill.edge.delivery.outputs import Command, Deliverer, Webhook

__all__ = ["BrokerAccess", "BrokerSettings", "Command", "Connection", "Deliverer", "Webhook"]
