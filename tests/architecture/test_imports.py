"""Imports are a promise: what runs on a device needs no torch, and help needs nothing heavy."""

from __future__ import annotations

import subprocess
import sys

import pytest

import agridistill

HEAVY = ("torch", "torchvision", "timm", "lightning", "torchmetrics", "sklearn", "safetensors", "imagehash")

# A finder that makes every heavy library absent, as on a device with the base install.
WITHOUT = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {HEAVY!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
"""


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "command",
    [
        "--help",
        "--version",
        "train --help",
        "distill --help",
        "predict --help",
        "benchmark --help",
        "data check --help",
    ],
)
def test_help_and_version_work_without_the_training_libraries(command: str) -> None:
    done = python(f"{WITHOUT}\nfrom agridistill.cli.main import main\nmain({command.split()!r})")
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize(
    "module",
    [
        "agridistill",
        "agridistill.runtime.predictor",
        "agridistill.data.folder",
        "agridistill.config",
        "agridistill.api",
        "agridistill.runs",
        "agridistill.report",
        "agridistill.review.ranking",
        "agridistill.review.server",
        "agridistill.benchmark.run",
        "agridistill.benchmark.worker",
    ],
)
def test_light_modules_import_without_the_training_libraries(module: str) -> None:
    done = python(f"{WITHOUT}\nimport {module}")
    assert done.returncode == 0, done.stderr


def test_the_package_itself_imports_nothing_heavy() -> None:
    code = "import sys, agridistill; print([name for name in ('torch', 'numpy', 'pydantic') if name in sys.modules])"
    assert python(code).stdout == "[]\n"


def test_a_first_answer_does_not_wait_for_pydantic() -> None:
    code = "import sys, agridistill.manifest, agridistill.runtime.predictor; print('pydantic' in sys.modules)"
    assert python(code).stdout == "False\n"


def test_losses_need_torch_alone() -> None:
    others = WITHOUT.replace("'torch', ", "")
    done = python(f"{others}\nfrom agridistill.losses import *\nprint(KDLoss(), METHODS)")
    assert done.returncode == 0, done.stderr


def test_help_lists_what_the_base_install_has() -> None:
    # Here the libraries stand on the disk: only their absence from the search says that they are not installed.
    absent = "import importlib.util as u; found = u.find_spec\n"
    absent += f"u.find_spec = lambda name, *more: None if name in {(*HEAVY, 'jinja2')!r} else found(name, *more)\n"
    show = "import pydoc, agridistill; print(pydoc.render_doc(agridistill, renderer=pydoc.plaintext))"
    done = python(f"{WITHOUT}\n{absent}\n{show}")
    assert done.returncode == 0, done.stderr
    assert "predict_many(self" in done.stdout
    assert "class RunResult" not in done.stdout


def test_a_missing_training_part_is_one_line_with_its_remedy(tmp_path: object) -> None:
    done = python(
        f"{WITHOUT}\nfrom agridistill.cli.main import main\nmain(['train', {str(tmp_path)!r}, '--out', 'never'])"
    )
    assert done.returncode == 2
    assert "pip install 'agridistill[train]'" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_the_public_names_are_the_documented_ones_and_all_exist() -> None:
    functions = {"train", "distill", "evaluate", "export", "benchmark", "compare", "report", "load"}
    settings = {"TrainConfig", "DistillConfig", "FitSettings", "DataSettings", "ObjectiveSettings", "PairSettings"}
    settings |= {"Augmentation", "BenchmarkPlan"}
    results = {"RunResult", "EvaluationResult", "ProofResult", "ExportResult", "BenchmarkResult", "ReportResult"}
    prediction = {"Predictor", "Prediction", "PhotoResult", "Explanation"}
    errors = {"AgriDistillError", "ConfigError", "DataError", "PhotoError", "ModelError", "RunError"}
    errors |= {"MissingExtraError"}
    assert set(agridistill.__all__) == functions | settings | results | prediction | errors | {"__version__"}
    for name in functions:
        assert callable(getattr(agridistill, name))
    for name in settings | results | prediction | errors:
        assert isinstance(getattr(agridistill, name), type)
        assert getattr(agridistill, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'tain'"):
        _ = agridistill.tain


def test_only_public_names_are_listed() -> None:
    # Whatever has been imported meanwhile: modules are found by their paths, not here.
    assert dir(agridistill) == sorted(agridistill.__all__)
    assert agridistill.__all__ == sorted(agridistill.__all__)


@pytest.mark.parametrize(
    "call",
    [
        "train('photos', 'run')",
        "distill('photos', 'teacher', 'run', epochs=3)",
        "evaluate('tomato', 'photos')",
        "export('run', 'leaf.onnx')",
        "compare('photos', {'compare': {}}, 'study')",
        "load('.')",
    ],
)
def test_a_function_that_needs_the_training_part_says_how_to_get_it(call: str) -> None:
    code = f"import agridistill\ntry: agridistill.{call}\nexcept agridistill.MissingExtraError as error: print(error)"
    done = python(f"{WITHOUT}\n{code}")
    assert done.returncode == 0, done.stderr
    assert "pip install 'agridistill[train" in done.stdout


def test_settings_and_errors_can_be_imported_without_the_training_libraries() -> None:
    code = "from agridistill import AgriDistillError, TrainConfig, DistillConfig, FitSettings, Predictor, Prediction"
    done = python(f"{WITHOUT}\n{code}\nfrom agridistill import report, benchmark")
    assert done.returncode == 0, done.stderr


def test_a_result_type_that_needs_the_training_libraries_says_how_to_get_them() -> None:
    code = "import agridistill\ntry: agridistill.RunResult\nexcept agridistill.MissingExtraError as error: print(error)"
    done = python(f"{WITHOUT}\n{code}")
    assert done.stdout.startswith("expected the libraries of agridistill.RunResult; got no module '")
    assert done.stdout.strip().endswith("pip install 'agridistill[train]'")
