from __future__ import annotations

import pytest

from agridistill.data.datasets import archive


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Downloads give up after three tries within milliseconds."""
    for name, value in {"ATTEMPTS": 3, "PAUSE_S": 0.01, "TIMEOUT_S": 5}.items():
        monkeypatch.setattr(archive, name, value)
