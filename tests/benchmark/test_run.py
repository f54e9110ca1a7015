"""Real workers with a tiny exported model: few queries, no figure is judged by its size."""

import csv
import inspect
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from agridistill import benchmark
from agridistill.benchmark.result import CSV_COLUMNS, BenchmarkResult
from agridistill.benchmark.run import BenchmarkPlan, Target, worker_command
from agridistill.benchmark.worker import start_worker
from agridistill.errors import ModelError, PhotoError
from agridistill.manifest import read_manifest
from agridistill.runtime.backends import default_engine, engines_for

# Read by every Python that starts, the workers too: the training libraries are absent, as on a device.
WITHOUT = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision", "timm", "lightning", "torchmetrics", "sklearn", "imagehash"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
"""
FEW = BenchmarkPlan(queries=6, turns=3, warm_up=1, batch_size=4)


def leaf(path: Path, colour: tuple[int, int, int], seed: int = 0) -> Path:
    """Writes a 40 x 32 photo with a cast."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(-50, 50, (32, 40, 1))
    Image.fromarray((np.array(colour) + noise).astype(np.uint8)).save(path)
    return path


def test_the_package_has_the_signature_of_its_function() -> None:
    assert list(inspect.signature(benchmark).parameters)[:2] == ["models", "engines"]


@pytest.fixture(scope="module")
def result(colour_model: Path) -> BenchmarkResult:
    """A benchmark with nothing but the model and the engine given."""
    return benchmark([colour_model], engines=["onnxruntime"], plan=FEW)


def test_every_figure_of_an_exported_model_is_there(result: BenchmarkResult, colour_model: Path) -> None:
    (model,) = result.to_json()["models"]
    assert model["source"] == "measured"
    assert model["model"] == str(colour_model)
    assert (model["engine"], model["architecture"], model["precision"]) == ("onnxruntime", "mean_colour", "fp32")
    assert model["size_bytes"] == colour_model.stat().st_size
    assert (model["parameters"], model["macs"], model["flops"]) == (6, 774, 1548)
    for kind in ("latency", "end_to_end"):
        assert 0 < model[f"{kind}_ms_p50"] <= model[f"{kind}_ms_p90"] <= model[f"{kind}_ms_p99"]
    # Reading a file takes longer than averaging 256 pixels.
    assert model["end_to_end_ms_p50"] > model["latency_ms_p50"]
    assert len(model["latency_ms_p50_of_turns"]) == 3
    assert model["throughput_photos_per_s"] > 0
    assert model["throughput_batch_size"] == 4
    assert model["load_s"] > 0
    assert model["accuracy"] is None
    if sys.platform == "linux":
        assert 5_000_000 < model["peak_memory_bytes"] < 500_000_000
    document = result.to_json()
    assert (document["queries"], document["turns"], document["warm_up_queries"], document["threads"]) == (6, 3, 1, 1)
    assert document["photos"]["source"] == "drawn"
    assert document["photos"]["mean_pixels"] == 256 * 256
    assert document["host"]["versions"]["onnxruntime"]
    assert [row["source"] for row in document["published"]] == ["published"] * 3


def test_the_papers_rows_are_marked_and_are_the_papers() -> None:
    from agridistill.benchmark.result import PUBLISHED

    teacher, pc, phone = (row.to_json() for row in PUBLISHED)
    assert (teacher["accuracy"], teacher["macs"]) == (0.959, 34_100_000_000)
    for row, device, latency_ms in ((pc, "PC", 23), (phone, "smartphone", 86)):
        assert (row["accuracy"], row["macs"], row["size_bytes"]) == (0.924, 220_000_000, 13_000_000)
        assert (row["device"], row["latency_ms"]) == (device, latency_ms)
    for row in (teacher, pc, phone):
        assert row["source"] == "published"
        assert row["paper"] == "arXiv 2504.16128"
        assert not any(key.startswith(("latency_ms_p", "energy", "peak")) for key in row)


def test_the_csv_has_a_line_a_model_and_says_what_was_not_measured(result: BenchmarkResult) -> None:
    rows = list(csv.DictReader(io.StringIO(result.to_csv())))
    assert list(rows[0]) == list(CSV_COLUMNS)
    assert [row["source"] for row in rows] == ["measured", "published", "published", "published"]
    measured = rows[0]
    document = result.to_json()["models"][0]
    assert float(measured["latency_ms_p99"]) == document["latency_ms_p99"]
    assert measured["energy_j"] == ("unmeasured" if document["energy_j"] is None else str(document["energy_j"]))
    assert measured["processor"] == result.host.processor
    assert measured["latency_ms"] == ""
    assert rows[2]["latency_ms"] == "23"
    assert rows[2]["latency_ms_p50"] == rows[2]["energy_j"] == rows[2]["processor"] == ""


def test_with_data_the_accuracy_of_each_engine_is_measured(colour_model: Path, tmp_path: Path) -> None:
    for number in range(3):
        leaf(tmp_path / "green" / f"{number}.png", (60, 160, 60), number)
        leaf(tmp_path / "red" / f"{number}.png", (160, 60, 60), number)
    leaf(tmp_path / "red" / "3.png", (60, 160, 60), 3)  # green, in the wrong folder
    scored = benchmark([colour_model], data=tmp_path, split="all", photos=tmp_path / "green", plan=FEW)
    (model,) = scored.models
    assert model.accuracy is not None
    assert model.accuracy.share == pytest.approx(6 / 7)
    assert model.accuracy.photos == 7
    low, high = model.accuracy.ci95
    assert low < 6 / 7 < high
    assert scored.data == f"all of {tmp_path}"
    assert (scored.photos.photos, scored.photos.mean_pixels) == (3, 40 * 32)


def test_a_model_that_is_named_twice_is_measured_once(colour_model: Path, tmp_path: Path) -> None:
    photo = leaf(tmp_path / "a.png", (60, 160, 60))
    assert len(benchmark([colour_model, colour_model], photos=photo, plan=FEW).models) == 1


def test_each_model_is_run_by_the_wanted_engines_that_can(colour_model: Path, tmp_path: Path) -> None:
    tflite = tmp_path / "a.tflite"
    tflite.write_bytes(b"")
    assert engines_for(tmp_path) == ("torch",)
    with pytest.raises(ModelError, match="which does not exist"):
        engines_for(tmp_path / "nowhere.onnx")
    assert engines_for(colour_model, ["openvino", "litert", "onnxruntime"]) == ("onnxruntime", "openvino")
    assert engines_for(tflite, ["openvino", "litert"]) == ("litert",)
    assert "onnxruntime" in engines_for(colour_model, ["all"])


@pytest.mark.parametrize(
    ("precision", "machine", "installed", "expected"),
    [
        ("int8", "x86_64", True, "openvino"),
        ("int8", "AMD64", True, "openvino"),
        ("int8", "x86_64", False, "onnxruntime"),
        ("int8", "aarch64", True, "onnxruntime"),
        ("fp32", "x86_64", True, "onnxruntime"),
    ],
)
def test_the_default_engine_is_the_fastest_that_is_there(
    colour_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
    machine: str,
    installed: bool,
    expected: str,
) -> None:
    model = Path(shutil.copy(colour_model, tmp_path))
    manifest = json.loads(colour_model.with_suffix(".json").read_text())
    model.with_suffix(".json").write_text(json.dumps(manifest | {"precision": precision}))
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr("agridistill.runtime.backends.find_spec", lambda name: name if installed else None)
    assert engines_for(model) == (expected,)
    found = read_manifest(model.with_suffix(".json"))
    assert default_engine(model, found, photos=100_000) == expected
    assert default_engine(model, found, photos=1) == "onnxruntime"  # it starts in a third of the time


@pytest.mark.parametrize(
    ("named", "engines", "message"),
    [
        ("colour.onnx", ["openvin"], "expected the name of a known engine; got 'openvin'; did you mean 'openvino'?"),
        (
            "colour.onnx",
            ["litert"],
            "expected an engine that runs '.*colour.onnx'; got litert; known: onnxruntime, ope",
        ),
        (".", ["onnxruntime"], "expected an engine that runs '.*'; got onnxruntime; known: torch"),
        ("colour.json", [], r"expected a run folder or an exported model \(.onnx, .tflite\); got '.*colour.json'"),
        ("gone.onnx", [], "got '.*gone.onnx', which does not exist; check the path"),
    ],
)
def test_a_model_without_its_engine_is_reported_before_anything_runs(
    colour_model: Path, named: str, engines: list[str], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        benchmark([colour_model, colour_model.parent / named], engines=engines, plan=FEW)


def test_a_damaged_model_is_the_workers_error_reported_here(colour_model: Path, tmp_path: Path) -> None:
    shutil.copy(colour_model.with_suffix(".json"), tmp_path / "colour.json")
    (tmp_path / "colour.onnx").write_bytes(b"damaged")
    with pytest.raises(ModelError, match="the file was changed or damaged"):
        benchmark([tmp_path / "colour.onnx"], photos=leaf(tmp_path / "a.png", (60, 160, 60)), plan=FEW)


def test_a_photo_that_cannot_be_read_is_reported(colour_model: Path, tmp_path: Path) -> None:
    leaf(tmp_path / "a.png", (60, 160, 60))
    (tmp_path / "b.jpg").write_bytes(b"no photo")
    with pytest.raises(PhotoError, match=r"b\.jpg"):
        benchmark([colour_model], photos=tmp_path, plan=FEW)


@pytest.fixture
def without_training(tmp_path: Path) -> dict[str, str]:
    """An environment whose Pythons, and their children, find no training library."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(WITHOUT)
    paths = [str(tmp_path / "site"), *sys.path]
    return os.environ | {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}


def test_an_exported_model_is_measured_where_torch_is_absent(
    colour_model: Path, without_training: dict[str, str]
) -> None:
    command = [sys.executable, "-m", "agridistill", "benchmark", str(colour_model), "--queries", "2", "--json"]
    done = subprocess.run(command, env=without_training, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["models"][0]["latency_ms_p50"] > 0


@pytest.mark.parametrize(
    ("more", "remedy"), [(["--data", "DATA"], "pip install 'agridistill[train]'"), (["RUN"], "'agridistill[train]'")]
)
def test_what_needs_the_training_part_says_so_where_it_is_absent(
    colour_model: Path, tmp_path: Path, without_training: dict[str, str], more: list[str], remedy: str
) -> None:
    leaf(tmp_path / "data" / "green" / "0.png", (60, 160, 60))
    leaf(tmp_path / "data" / "red" / "0.png", (160, 60, 60))
    words = [{"DATA": str(tmp_path / "data"), "RUN": str(tmp_path)}.get(word, word) for word in more]
    photo = leaf(tmp_path / "a.png", (60, 160, 60))
    command = [sys.executable, "-m", "agridistill", "benchmark", str(colour_model), "--photos", str(photo), *words]
    done = subprocess.run(command, env=without_training, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.strip().splitlines()) == 1
    assert remedy in done.stderr


def test_what_an_engine_prints_does_not_disturb_the_answers(colour_model: Path, tmp_path: Path) -> None:
    photo = leaf(tmp_path / "a.png", (60, 160, 60))
    command = worker_command(Target(colour_model, "onnxruntime"), 1, [photo])
    loud = (
        "import os; from agridistill.benchmark import worker; load = worker.load; "
        "worker.load = lambda *a, **k: (os.system('echo from a library'), print('and more'), load(*a, **k))[2]; "
    )
    command[3] = command[3].replace("main(sys.argv[1])", loud + "main(sys.argv[1])")
    with start_worker(command, "a loud one") as worker:
        assert worker.ask("load")["load_s"] > 0


ENDLESS = """
import contextlib, sys
from agridistill.benchmark import run
from agridistill.benchmark.run import BenchmarkPlan
from agridistill.benchmark.worker import start_worker
@contextlib.contextmanager
def printing(*arguments):
    with start_worker(*arguments) as worker:
        print(worker.process_id, flush=True)
        yield worker
run.start_worker = printing
turn = lambda done, total: print("turn", flush=True)
run.benchmark([sys.argv[1]], plan=BenchmarkPlan(10**7, turns=10**5), progress=turn)
"""


def ended(process_id: int) -> bool:
    """Whether a process is gone, or only waits for its parent to collect it."""
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and process groups")
@pytest.mark.parametrize("ending", ["Ctrl-C", "kill"])
def test_no_worker_outlives_a_benchmark_that_is_stopped(colour_model: Path, ending: str) -> None:
    command = [sys.executable, "-c", ENDLESS, str(colour_model)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        worker = int(process.stdout.readline())
        assert process.stdout.readline() == "turn\n"
        assert not ended(worker)
        if ending == "Ctrl-C":
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does: parent and worker
        else:
            process.kill()
        process.wait(60)
        deadline = time.monotonic() + 60
        while not ended(worker):
            assert time.monotonic() < deadline
            time.sleep(0.05)
