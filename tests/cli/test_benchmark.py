import csv
import json
from pathlib import Path

import pytest
from tests.cli.running import Capture, run

from agridistill.benchmark import run as benchmark_run
from agridistill.benchmark.result import PUBLISHED, Accuracy, BenchmarkResult, ModelResult, Percentiles, PhotoSet
from agridistill.cli.benchmark import print_benchmark
from agridistill.host import Host


def model(**changes: object) -> ModelResult:
    fields: dict[str, object] = {
        "model": "a[b].onnx",
        "engine": "onnxruntime",
        "architecture": "mobilenetv3_large_100",
        "precision": "int8",
        "image_size": 128,
        "size_bytes": 5_400_000,
        "parameters": 4_210_000,
        "macs": 72_160_640,
        "latency": Percentiles(2.311, 12.34, 123.4),
        "latency_ms_p50_of_turns": (2.3, 2.4),
        "end_to_end": Percentiles(3.3, 3.4, 3.5),
        "throughput_photos_per_s": 456.7,
        "throughput_batch_size": 32,
        "peak_memory_bytes": 86_400_000,
        "energy_j": 0.01234,
        "load_s": 0.2,
        "accuracy": Accuracy(0.9022, (0.889, 0.914), 1881),
    }
    return ModelResult(**(fields | changes))  # type: ignore[arg-type]


def benchmark_of(*models: ModelResult) -> BenchmarkResult:
    versions = {"agridistill": "0.1.0", "onnxruntime": "1.32.0"}
    host = Host("Some Processor", 4, ("avx2",), "Linux", "3.12.1", versions, "2026-01-01T00:00:00+00:00")
    return BenchmarkResult(
        models, PUBLISHED, host, 1, 1024, 16, 8, PhotoSet("drawn", 16, 65536, 17_000), 9_000_000, "test of photos"
    )


def test_the_table_shows_each_figure_with_its_unit(capsys: Capture) -> None:
    print_benchmark(benchmark_of(model()))
    out = capsys.readouterr().out
    for figure in (
        "one photo at a time, 1 thread, Some Processor",
        "a[b].onnx",
        "onnxruntime, int8",
        "90.2 %",
        "(88.9–91.4)",
        "5.40 MB",
        "4.21 M",
        "72.2 M",
        "144 M",
        "2.31 / 12.3 / 123",
        "3.30 / 3.40 / 3.50",
        "457",
        "(x32)",
        "86.4 MB",
        "12.3 mJ",
        "0.20 s",
        "1,024 queries of each kind in 16 turns, with 8 untimed queries before each turn",
        "16 photos (drawn leaves) of 0.066 megapixels and 17 kB on average",
        "Python 3.12.1, 4 cores (avx2); agridistill 0.1.0, onnxruntime 1.32.0; 2026-01-01",
        "accuracy (95 % interval): test of photos",
    ):
        assert figure in out


def test_the_papers_rows_stand_below_and_say_that_they_are_published(capsys: Capture) -> None:
    print_benchmark(benchmark_of(model()))
    lines = capsys.readouterr().out.splitlines()
    for name, figures in {
        "Swin-L": ("95.9 %", "34.1 G"),
        "distilled MobileNetV3 on a PC": ("92.4 %", "13.0 MB", "220 M", " 23 "),
        "distilled MobileNetV3 on a smartphone": ("92.4 %", "13.0 MB", "220 M", " 86 "),
    }.items():
        (number,) = (n for n, line in enumerate(lines) if line.strip().startswith(f"{name}  "))
        assert all(figure in lines[number] for figure in figures)
        assert lines[number + 1].strip().startswith("published, not measured")
    assert any(line.startswith("published: arXiv 2504.16128") for line in lines)


def test_what_was_not_measured_is_said_and_never_zero(capsys: Capture) -> None:
    unknown = model(energy_j=None, peak_memory_bytes=None, parameters=None, macs=None, accuracy=None)
    print_benchmark(benchmark_of(unknown))
    row = next(line for line in capsys.readouterr().out.splitlines() if "a[b].onnx" in line)
    assert "unmeasured" in row
    assert row.count("–") == 4


def test_json_is_one_document_and_the_files_say_the_same(colour_model: Path, tmp_path: Path, capsys: Capture) -> None:
    files = ("--out", tmp_path / "a.json", "--csv", tmp_path / "a.csv")
    # A second time: earlier results are replaced.
    for _ in range(2):
        code, out, err = run(capsys, "benchmark", colour_model, "--queries", 2, "--published", "--json", *files)
    document = json.loads(out)
    assert code == 0
    assert json.loads((tmp_path / "a.json").read_text()) == document
    assert [row["source"] for row in document["models"] + document["published"]] == ["measured"] + 3 * ["published"]
    with (tmp_path / "a.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert float(rows[0]["latency_ms_p50"]) == document["models"][0]["latency_ms_p50"]
    assert "2 queries are too few for figures to publish: pass --queries 1024 or more" in err
    assert err.splitlines()[-1] == f"Next: agridistill predict {colour_model} IMAGE"


def test_the_papers_rows_are_shown_only_on_request(colour_model: Path, capsys: Capture) -> None:
    code, out, _ = run(capsys, "benchmark", colour_model, "--queries", 2, "--threads", 2)
    assert code == 0
    assert "2 threads" in out
    assert colour_model.name in out
    assert "published" not in out


def test_a_machine_that_was_busy_is_told(colour_model: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    steady, shaken = model(model="steady"), model(model="shaken", latency_ms_p50_of_turns=(2.0, 3.1))
    monkeypatch.setattr(benchmark_run, "benchmark", lambda *_, **__: benchmark_of(steady, shaken))
    _, _, err = run(capsys, "benchmark", colour_model)
    assert (
        "repeated measurements of shaken with onnxruntime had medians from 2.00 to 3.10 ms. Stop other programs" in err
    )
    assert "steady" not in err
