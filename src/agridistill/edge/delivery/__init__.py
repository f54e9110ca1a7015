"""From the outbox to whoever listens: MQTT, Home Assistant, webhooks, commands."""
