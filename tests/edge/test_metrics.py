"""The metrics against the rules of Prometheus's text format, by a strict little parser."""

from __future__ import annotations

import re

import pytest
from tests.edge.looks import KEPT, state

from agridistill.edge.state import metrics_text

_SAMPLE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (-?[0-9.]+(?:e[+-]?[0-9]+)?)")
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\["\\n])*)"(?:,(?=.)|$)')
_UNESCAPED = {r"\\": "\\", r"\"": '"', r"\n": "\n"}

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def labels_of(text: str) -> frozenset[tuple[str, str]]:
    found, at = {}, 0
    while at < len(text):
        label = _LABEL.match(text, at)
        assert label, f"labels {text!r}"
        assert label[1] not in found
        found[label[1]] = re.sub(r'\\["\\n]', lambda escape: _UNESCAPED[escape[0]], label[2])
        at = label.end()
    return frozenset(found.items())


def parse(text: str) -> tuple[Samples, dict[str, str]]:
    """Samples and types. Every family stands together, with its HELP and its TYPE before it; nothing comes twice."""
    assert text.endswith("\n")
    samples: Samples = {}
    types: dict[str, str] = {}
    helps: set[str] = set()
    family = ""
    for line in text[:-1].split("\n"):
        if line.startswith("# HELP "):
            family = line.split(" ", 3)[2]
            assert family not in helps, f"{family} comes twice"
            assert len(line.split(" ", 3)[3]) > 5
            helps.add(family)
        elif line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name == family
            assert kind in ("counter", "gauge")
            types[name] = kind
        else:
            sample = _SAMPLE.fullmatch(line)
            assert sample, f"line {line!r}"
            assert sample[1] == family
            assert family in types
            key = (sample[1], labels_of(sample[2] or ""))
            assert key not in samples
            samples[key] = float(sample[3])
    return samples, types


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[f"agridistill_{name}", frozenset(labels.items())]


def test_every_figure_of_the_state_is_told_in_base_units() -> None:
    given = state()
    samples, _ = parse(metrics_text(given))
    for name, expected in {
        "uptime_seconds": 7384,
        "start_time_seconds": given.started_s,
        "state_time_seconds": given.at_s,
        "source_lost_seconds": 0,
        "frames_skipped_total": 3,
        "photos_unreadable_total": 2,
        "open_alerts": 1,
        "broker_connected": 1,
        "memory_resident_bytes": 151_000_000,
        "processor_temperature_celsius": 54.25,
        "disk_free_bytes": 21_500_000_000,
    }.items():
        assert value(samples, name) == expected, name
    assert value(samples, "frames_total", verdict="unsure") == 21
    assert value(samples, "frame_latency_seconds", percentile="99") == pytest.approx(0.061)
    assert value(samples, "source_up", source="/photos/inbox") == 1
    assert len(samples) == 22


def test_each_receivers_outbox_is_told_apart() -> None:
    hook = {"waiting": 3, "waiting_bytes": 900, "oldest_s": 400.0, "delivered": 7, "dropped": {}}
    for given, receivers in (
        (state(), {"broker": (5, 1200, 65, 116, 2)}),
        (state(outputs={"webhook": hook}), {"broker": (5, 1200, 65, 116, 2), "webhook": (3, 900, 400, 7, 0)}),
        (state(broker=None, outbox=None, outputs={"command": hook}), {"command": (3, 900, 400, 7, 0)}),
    ):
        samples, _ = parse(metrics_text(given))
        names = ("messages", "bytes", "oldest_seconds", "delivered_total", "dropped_total")
        told = {to: tuple(value(samples, f"outbox_{name}", to=to) for name in names) for to in receivers}
        assert told == receivers
        assert sum("_outbox_" in name for name, _ in samples) == 5 * len(receivers)


def test_kept_photos_are_told_where_any_are_kept() -> None:
    samples, _ = parse(metrics_text(state(kept=KEPT)))
    names = ("photos", "bytes", "waiting", "oldest_seconds", "uploaded_total", "dropped_total", "missed_total")
    assert [value(samples, f"kept_{name}") for name in names] == [12, 3_400_000, 2, 125, 40, 3, 0]
    assert "kept" not in metrics_text(state())


def test_names_follow_prometheus_rules_for_counters_and_units() -> None:
    _, types = parse(metrics_text(state(kept=KEPT)))
    assert all(name.startswith("agridistill_") for name in types)
    assert all((kind == "counter") == name.endswith("_total") for name, kind in types.items())
    assert not [name for name in types if re.search(r"_(ms|s|mb|percent)$", name)]


def test_label_values_are_escaped() -> None:
    nasty = 'a "b"\\n\\\nc}'
    samples, _ = parse(metrics_text(state(source=nasty, device=nasty)))
    assert value(samples, "source_up", source=nasty) == 1
    assert any(name == "agridistill_info" and ("device", nasty) in labels for name, labels in samples)


def test_what_is_not_known_is_left_out_and_an_outage_shows() -> None:
    unknown = {"memory_bytes": None, "processor_celsius": None, "disk_free_bytes": None, "latency_ms": {}}
    away = {"source_lost_s": 12.5, "broker": {"host": "b", "port": 1, "connected": False}}
    samples, types = parse(metrics_text(state(**unknown, **away)))
    assert value(samples, "source_lost_seconds") == 12.5
    assert value(samples, "source_up", source="/photos/inbox") == 0
    assert value(samples, "broker_connected") == 0
    assert not [name for name in types if re.search("memory|processor|disk|latency", name)]
    _, types = parse(metrics_text(state(broker=None, outbox=None)))
    assert not [name for name in types if re.search("broker|outbox", name)]


def test_the_latency_says_between_which_moments_it_is() -> None:
    line = "# HELP agridistill_frame_latency_seconds Time from taking a frame to storing its detection."
    assert line in metrics_text(state()).splitlines()
