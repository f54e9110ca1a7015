"""What the agent must not lose, in SQLite files: the outbox (messages to deliver) and the history (what was seen)."""

from agridistill.edge.store.history import History, HistoryLimits
from agridistill.edge.store.outbox import Message, Outbox, OutboxCounts, OutboxLimits, Pending
from agridistill.edge.store.sqlite_file import StateRemovedError

__all__ = [
    "History",
    "HistoryLimits",
    "Message",
    "Outbox",
    "OutboxCounts",
    "OutboxLimits",
    "Pending",
    "StateRemovedError",
]
