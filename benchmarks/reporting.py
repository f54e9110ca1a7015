"""What every benchmark says about its machine, and how it hands over its figures."""

from __future__ import annotations

import json
import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from agridistill.storage import write_json


def machine() -> dict[str, Any]:
    """What a figure was measured on. Imports nothing heavy: a start may be what is measured."""
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    described = {
        "processor": names[0].split(":", 1)[1].strip() if names else platform.processor(),
        "cores": os.cpu_count(),
        "torch": _version("torch"),
    }
    torch = sys.modules.get("torch")
    return described if torch is None else described | {"threads": torch.get_num_threads()}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def publish(document: dict[str, Any], out: Path | None) -> None:
    """Prints a result, and writes it where a file is named."""
    if out:
        write_json(out, document)
    print(json.dumps(document, indent=2))
