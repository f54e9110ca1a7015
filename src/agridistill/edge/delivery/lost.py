"""Why a connection to a broker ended, or never came to be."""

from __future__ import annotations


class LostError(Exception):
    """The connection ended, or never came to be."""


class OldProtocolError(LostError):
    """The broker answers that it does not speak MQTT 5."""


class UnansweredError(LostError):
    """The broker does not answer in MQTT 5: it speaks 3.1.1 alone, or the connection was lost."""


class RefusedError(LostError):
    """The broker is there and refuses the device, for instance its user name or password."""


class TermsError(LostError):
    """The broker refuses the last will for its quality of service or its being retained; the allowance knows now."""
