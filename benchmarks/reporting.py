"""What every benchmark says about its machine, and how it hands over its figures."""

from __future__ import annotations

import json
import os
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from agridistill.benchmark.result import peak_memory_bytes
from agridistill.host import processor_name
from agridistill.storage import write_json

# Every command is timed as an installation has it: with compiled modules. From the second turn on, they are there.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def machine() -> dict[str, Any]:
    """What a figure was measured on. Imports nothing heavy: a start may be what is measured."""
    described = {
        "processor": processor_name(),
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


def peak_memory_mb() -> int:
    """Of this process, in MiB; not ru_maxrss, which a new process inherits from the one that started it."""
    return (peak_memory_bytes() or 0) // 1024**2


def publish(document: dict[str, Any], out: Path | None) -> None:
    """Prints a result, and writes it where a file is named."""
    if out:
        write_json(out, document)
    print(json.dumps(document, indent=2))
