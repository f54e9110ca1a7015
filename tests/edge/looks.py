"""What an agent might show: a state, detections and alerts, with names as hostile as files can carry them."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from agridistill.edge.events import Alert, Detection
from agridistill.edge.page import Page, PageServer
from agridistill.edge.state import AgentState
from agridistill.edge.store.history import History

HOSTILE = '<img src=x onerror="alert(1)">&\'"'


KEPT: dict[str, Any] = {
    "photos": 12,
    "bytes": 3_400_000,
    "upload": True,
    "waiting": 2,
    "waiting_bytes": 600_000,
    "oldest_s": 125.0,
    "uploaded": 40,
    "dropped": 3,
    "missed": 0,
    "trouble": None,
}


def state(**changes: Any) -> AgentState:
    now = time.time()
    fields: dict[str, Any] = {
        "device": "field-7",
        "version": "0.1.0",
        "pid": 1,
        "started_s": now - 7384,
        "at_s": now,
        "uptime_s": 7384.0,
        "source": "/photos/inbox",
        "source_lost_s": None,
        "frames": 121,
        "skipped": 3,
        "unreadable": 2,
        "verdicts": {"answer": 100, "unsure": 21},
        "open_alerts": 1,
        "model": {"name": "mobilenetv3_large_100", "version": "7", "sha256": "ab" * 32, "path": "models/ab"},
        "broker": {"host": "farm.example", "port": 8883, "connected": True},
        "outbox": {
            "waiting": {"detection": 4, "alert": 1},
            "waiting_bytes": 1200,
            "oldest_s": 65.0,
            "delivered": 116,
            "dropped": {"detection": 2},
        },
        "latency_ms": {"p50": 24.5, "p99": 61.0},
        "memory_bytes": 151_000_000,
        "processor_celsius": 54.25,
        "disk_free_bytes": 21_500_000_000,
    }
    return AgentState(**fields | changes)


def detection(number: int, **changes: Any) -> Detection:
    fields: dict[str, Any] = {
        "event_id": f"{number:032x}",
        "at_s": time.time() - 3600 + number,
        "device": "field-7",
        "source": "/photos/inbox",
        "photo": f"north/leaf-{number:04d}.jpg",
        "plot": "north",
        "model": "ab" * 6,
        "verdict": "answer",
        "label": "Tomato___Late_blight",
        "probability": 0.9312,
        "probabilities": {"Tomato___Late_blight": 0.9312, "Tomato___healthy": 0.0688},
    }
    return Detection(**fields | changes)


def alert(number: int, **changes: Any) -> Alert:
    now = time.time()
    fields: dict[str, Any] = {
        "alert_id": f"{number:032x}",
        "rule": "late blight",
        "plot": "north",
        "state": "open",
        "since_s": now - 7384,
        "updated_s": now - 60 + number,
        "resolved_s": None,
        "label": "Tomato___Late_blight",
        "share": 0.4,
        "leaves": 20,
        "text": "8 of the last 20 leaves of plot north show Tomato: Late blight",
        "level": "warning",
    }
    return Alert(**fields | changes)


def picture(seed: int = 0) -> bytes:
    ground = np.random.default_rng(seed).integers(60, 90, (120, 160, 3))
    rows, columns = np.mgrid[:120, :160]
    leaf = ((columns - 80) / 62) ** 2 + ((rows - 60) / 38) ** 2 < 1
    spots = ((columns - 60 - 9 * seed) / 10) ** 2 + ((rows - 55) / 10) ** 2 < 1
    ground[leaf] = ground[leaf] // 2 + (40, 110, 30)
    ground[leaf & spots] = (110, 80, 40)
    held = io.BytesIO()
    Image.fromarray(ground.astype(np.uint8)).save(held, "JPEG")
    return held.getvalue()


def serving(
    history: History,
    state: Callable[[], AgentState],
    *,
    token: str | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
    **page: Any,
) -> PageServer:
    return PageServer(Page(history, state, **page), token, host, port)


def filled_history(path: Path) -> History:
    """Eight detections of every verdict, the first and the last with hostile names; two open and one resolved alert."""
    history = History(path)
    history.add(detection(1, photo=HOSTILE, plot=HOSTILE, label=HOSTILE), thumbnail=picture())
    for number in (2, 3, 4):
        history.add(detection(number, probability=0.999 - number / 20), thumbnail=picture(number))
    healthy = {"label": "Tomato___healthy", "probability": 0.9876}
    history.add(detection(5, **healthy), thumbnail=picture(1))
    history.add(detection(6, verdict="unsure", probability=0.52, reason="52 % is below the threshold of 80 %"))
    unfamiliar = {"verdict": "unfamiliar", "reason": "unlike the photos that the model learnt from"}
    history.add(detection(7, **unfamiliar), thumbnail=picture(5))
    unusable: dict[str, Any] = {"verdict": "unusable", "reason": "too dark", "label": None, "probability": None}
    history.add(detection(8, **unusable, probabilities={}, plot=""), thumbnail=picture(6))
    history.put_alerts([(alert(1), 1.0)])
    history.put_alerts([(alert(2, level="critical", plot=HOSTILE, rule=HOSTILE, text=HOSTILE, label=HOSTILE), 1.0)])
    history.put_alerts([(alert(3, state="resolved", resolved_s=time.time() - 60, plot="south"), 1.0)])
    return history
