"""What an update may take, and what became of one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from agridistill.errors import ConfigError


@dataclass(frozen=True)
class UpdateSettings:
    """How updates are fetched and tried.

    Attributes:
        channel: releases of another one are refused.
        max_file_bytes: a release with a larger file is refused.
        spare_bytes: room on the disk that an update leaves free.
        timeout_s: for a connection with the header of its answer, and for each read of the body.
        patience_s: for a whole check; what came so far is kept, the next check goes on.
        attempts: tries in a row that bring nothing new before a file is given up.
        pause_s: before the second try; doubled before each further one.
        golden_limit_s: in which the new model has to answer all golden photos.
        engine: that runs the new model; None takes the one that is fastest here.
        threads: of one prediction; 0 takes one for each core.
        ca_file: certificates of the authorities to trust for https; None takes the system's.
    """

    channel: str = "default"
    max_file_bytes: int = 500_000_000
    spare_bytes: int = 50_000_000
    timeout_s: float = 30.0
    patience_s: float = 3600.0
    attempts: int = 4
    pause_s: float = 1.0
    golden_limit_s: float = 120.0
    engine: str | None = None
    threads: int = 0
    ca_file: Path | None = None

    def __post_init__(self) -> None:
        limits = (self.max_file_bytes, self.timeout_s, self.patience_s, self.attempts, self.golden_limit_s)
        if min(limits) <= 0 or min(self.spare_bytes, self.pause_s, self.threads) < 0:
            raise ConfigError("limits above 0 for updates", "less", "correct the settings")


UpdateOutcome = Literal["current", "installed", "refused", "postponed"]
"""current: there is nothing new. installed: the new model is on trial from its next start on. refused: the release must
not be used. postponed: it could not be fetched, or there is no room; the next check tries again."""


@dataclass(frozen=True)
class UpdateResult:
    """What became of a check.

    Attributes:
        outcome: see `UpdateOutcome`.
        version: of the release; None where no release could be believed.
        reason: one line; "" where there is nothing to say.
        patient: postponed for something that minutes do not mend: the next try had better come late.
    """

    outcome: UpdateOutcome
    version: int | None = None
    reason: str = ""
    patient: bool = False

    def to_json(self) -> dict[str, Any]:
        """What is told over MQTT."""
        return {"outcome": self.outcome, "version": self.version, "reason": self.reason}
