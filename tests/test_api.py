"""The public Python functions: paths as text, settings of any kind, and one line for whatever is wrong."""

from __future__ import annotations

import inspect
import pydoc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.conftest import TINY_STUDENT

import agridistill
from agridistill import AgriDistillError, DistillConfig, FitSettings, TrainConfig
from agridistill.config import recipe_from, train_config

SMALL: dict[str, Any] = {
    "model": TINY_STUDENT,
    "epochs": 1,
    "image_size": 64,
    "batch_size": 16,
    "pretrained": False,
    "workers": 0,
    "precision": "fp32",
}


def one_line(function: Any, *words: Any, **options: Any) -> str:
    with pytest.raises(AgriDistillError) as caught:
        function(*words, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_train_takes_text_paths_and_keyword_settings(leaves: Path, tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    result = agridistill.train(str(leaves), out=run, **SMALL)
    assert isinstance(result, agridistill.RunResult)
    assert result.out == Path(run)
    manifest = agridistill.load(run).manifest
    assert (manifest.model, manifest.preprocessing.image_size) == (TINY_STUDENT, 64)
    assert isinstance(agridistill.evaluate(run, str(leaves)), agridistill.EvaluationResult)


def test_distill_and_export_take_text_paths_and_a_dict(leaves: Path, teacher_run: Path, tmp_path: Path) -> None:
    sections = {
        "distill": {name: value for name, value in SMALL.items() if name != "image_size"},
        "data": {"image_size": 64},
        "objective": {"method": "hybrid"},
    }
    run, file = str(tmp_path / "student"), str(tmp_path / "leaf.onnx")
    agridistill.distill(str(leaves), str(teacher_run), run, sections, method="kd", cache_dir=str(tmp_path / "cache"))
    assert agridistill.load(run).manifest.lineage["method"] == "kd"
    written = agridistill.export(run, file, force=True)
    assert isinstance(written, agridistill.ExportResult)
    photo = next(leaves.rglob("*.jpg"))
    assert agridistill.load(file).predict(str(photo)).label == agridistill.load(run).predict(photo).label


def test_a_resume_without_settings_takes_those_of_the_run(leaves: Path, tmp_path: Path) -> None:
    agridistill.train(leaves, tmp_path / "run", **SMALL)
    (tmp_path / "run" / "evaluation.json").unlink()
    assert agridistill.train(leaves, tmp_path / "run", resume=True).best_epoch == 1


@pytest.mark.parametrize("part", ["config", "dict", "keywords", "recipe", "both"])
def test_settings_of_every_kind_are_the_same_settings(tmp_path: Path, part: str) -> None:
    (tmp_path / "r.toml").write_text("[train]\nepochs = 3\nweights = 'w.safetensors'\n[augmentation]\nflip = false\n")
    typed = TrainConfig(
        train=FitSettings(epochs=3, weights="w.safetensors"), augmentation=agridistill.Augmentation(flip=False)
    )
    config, settings = {
        "config": (typed, {}),
        "dict": ({"train": {"epochs": 3, "weights": Path("w.safetensors")}, "augmentation": {"flip": False}}, {}),
        "keywords": (None, {"epochs": np.int64(3), "train.weights": Path("w.safetensors"), "flip": False}),
        "recipe": (str(tmp_path / "r.toml"), {}),
        "both": (TrainConfig(train=FitSettings(epochs=9, weights="w.safetensors")), {"epochs": 3, "flip": False}),
    }[part]
    assert train_config(recipe_from("train", config, settings)) == typed


def test_settings_leave_what_was_passed_as_it_was() -> None:
    config = {"train": {"epochs": 3}}
    assert recipe_from("train", config, {"epochs": 4, "image_size": 96}) == {
        "train": {"epochs": 4},
        "data": {"image_size": 96},
    }
    assert config == {"train": {"epochs": 3}}


@pytest.mark.parametrize(
    ("config", "settings", "message"),
    [
        (None, {"epoch": 3}, "expected a known recipe key; got 'epoch' in the settings; did you mean 'epochs'?"),
        (None, {"epochs": "3"}, "expected train.epochs: input should be a valid integer; got '3'; correct the recipe"),
        (None, {"epochs": 0}, "expected train.epochs"),
        (None, {"epochs": None}, "expected train.epochs: input should be a valid integer; got None"),
        (None, {"lr": object()}, "expected train.lr: text, a finite number, true, false or a list of these; got"),
        (None, {"trian.lr": 1}, "got 'trian' in the settings trian.lr; did you mean 'train'?"),
        (None, {"distill.lr": 1}, "a section that train uses (train, data, augmentation); got 'distill.lr' in the"),
        ({"train": {"epoch": 3}}, {}, "expected a known key of [train]; got 'epoch' in the settings; did you mean 'ep"),
        ({"trian": {}}, {}, "expected a known recipe section; got [trian] in the settings; did you mean 'train'?"),
        ({"epochs": 3}, {}, "got [epochs] in the settings; write 'epochs' into the section [train]"),
        ({"train": 3}, {}, "expected a section [train]; got a single value in the settings; write it as a table"),
        ({"train": {3: 3}}, {}, "expected a known key of [train]; got '3' in the settings"),
        ({"distill": {}}, {}, "expected a recipe with a section [train]; got one with [distill]; use it with"),
        (DistillConfig(), {}, "expected a recipe with a section [train]; got one with [data], [augmentation], [dist"),
        (TrainConfig(train=FitSettings(precision="fp8")), {}, "expected train.precision"),  # type: ignore[arg-type]
        (3, {}, "a dict of sections or the path of a recipe; got 3 (int); pass one of these, or single settings as"),
        (
            "none.toml",
            {},
            "expected a recipe; got 'none.toml', which does not exist; check the path; shipped recipes: ",
        ),
    ],
)
def test_wrong_settings_are_one_line_before_any_work(
    tmp_path: Path, config: Any, settings: dict[str, Any], message: str
) -> None:
    assert message in one_line(agridistill.train, tmp_path, tmp_path / "run", config, **settings)
    assert not (tmp_path / "run").exists()


PATHS = "expected a path as str or Path for '{}'; got {}; pass the path of a file or folder"


@pytest.mark.parametrize(
    ("name", "words", "options", "message"),
    [
        ("train", (None, "run"), {}, PATHS.format("data", "None")),
        ("train", ("photos", 3), {}, PATHS.format("out", "3 (int)")),
        ("train", ("", "run"), {}, PATHS.format("data", "'' (str)")),
        ("train", (b"photos", "run"), {}, PATHS.format("data", "a value of type bytes")),
        ("train", ("photos", "run"), {"split_file": 1.5}, PATHS.format("split_file", "1.5 (float)")),
        ("train", ("photos", "run"), {"resume": "no"}, "expected True or False for 'resume'; got 'no' (str)"),
        ("train", ("photos", "run"), {"progress": 1}, "expected a function for 'progress'; got 1 (int)"),
        ("distill", ("photos", ["a"], "run"), {}, PATHS.format("teacher", "a list of 1")),
        ("distill", ("photos", None, "run"), {"cache": None}, "expected True or False for 'cache'; got None"),
        ("distill", ("photos", None, "run"), {"cache_dir": 0}, PATHS.format("cache_dir", "0 (int)")),
        ("distill", ("photos", None, "run"), {"mthod": "kd"}, "got 'mthod' in the settings; did you mean 'method'?"),
        ("load", (None,), {}, PATHS.format("model", "None")),
        ("load", (np.zeros((2, 2)),), {}, PATHS.format("model", "an array of shape (2, 2) and dtype float64")),
        ("load", ("tomato",), {"threads": -1}, "expected a whole number of at least 0 for 'threads'; got -1 (int)"),
        (
            "load",
            ("tomato",),
            {"threads": 3000},
            "(4 for each core), or 0 for one thread for each core; got 3000 (int); use fewer threads",
        ),
        ("load", ("x" * 5000,), {}, "which does not exist; check the path"),
        ("load", ("tomato",), {"engine": 3}, "expected a name or None for 'engine'; got 3 (int)"),
        ("load", ("tomato",), {"photos": "x"}, "a whole number of at least 0 for 'photos'; got 'x' (str)"),
        ("evaluate", ("tomato", None), {}, PATHS.format("data", "None")),
        ("evaluate", ("tomato", "photos"), {"split": "tst"}, "for 'split'; got 'tst'; did you mean 'test'?"),
        ("evaluate", ("tomato", "photos"), {"split": 1}, "a name for 'split'; got 1 (int); pass one of train, val"),
        ("export", (None, "leaf.onnx"), {}, PATHS.format("run", "None")),
        ("export", ("run", "leaf.onnx"), {"precision": "int4"}, "for 'precision'; got 'int4'; did you mean 'int8'?"),
        ("export", ("run", "leaf.onnx"), {"answers": 95}, "a number from 0 to 1 for 'answers'; got 95 (int)"),
        ("export", ("run", "leaf.onnx"), {"force": 1}, "expected True or False for 'force'; got 1 (int)"),
        ("export", ("run", "leaf.onnx"), {"attention": 1}, "expected True or False for 'attention'; got 1 (int)"),
        ("benchmark", (None,), {}, "expected a list of models for 'models'; got None"),
        ("benchmark", ([None],), {}, PATHS.format("models", "None")),
        ("benchmark", ([],), {}, "expected at least one model; got none"),
        ("benchmark", ("tomato",), {"plan": 3}, "a BenchmarkPlan or a dict of its fields for 'plan'; got 3 (int)"),
        (
            "benchmark",
            ("tomato",),
            {"plan": {"querys": 3}},
            "a known key of [plan]; got 'querys'; did you mean 'queries'?",
        ),
        ("benchmark", ("tomato",), {"plan": {"queries": 0}}, "expected plan.queries of at least 1; got 0"),
        ("compare", ("photos", None, "study"), {}, "expected a recipe with a section [compare]; got an empty one"),
        ("compare", ("photos", {"compare": {"cand": 1}}, "study"), {}, "a known key of [compare]; got 'cand' in the"),
        (
            "compare",
            ("photos", {"compare": {}}, "study"),
            {},
            "a folder of class folders; got 'photos', which does not",
        ),
        ("compare", ("photos", {"compare": {}}, "study"), {"jobs": 1.5}, "for 'jobs'; got 1.5 (float)"),
        ("report", (None,), {}, PATHS.format("folder", "None")),
    ],
)
def test_wrong_arguments_are_one_line(name: str, words: tuple[Any, ...], options: dict[str, Any], message: str) -> None:
    assert message in one_line(getattr(agridistill, name), *words, **options)


def test_an_engine_that_cannot_run_a_run_folder_is_refused(teacher_run: Path) -> None:
    message = one_line(agridistill.load, teacher_run, engine="openvino")
    assert message == f"expected an engine that runs '{teacher_run}'; got openvino; known: torch"


@pytest.mark.parametrize("kind", [str, Path, list])
def test_benchmark_takes_one_model_alone_and_its_plan_as_a_dict(colour_model: Path, kind: Any) -> None:
    models = [str(colour_model)] if kind is list else kind(colour_model)
    result = agridistill.benchmark(models, engines="onnxruntime", plan={"queries": 2, "turns": 1})
    assert isinstance(result, agridistill.BenchmarkResult)
    assert (len(result.models), result.queries) == (1, 2)


def test_report_is_a_function_however_the_package_was_imported(leaves: Path, teacher_run: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("jinja2")
    (tmp_path / "evaluation.json").write_bytes((teacher_run / "evaluation.json").read_bytes())
    for _ in range(2):
        result = agridistill.report(str(tmp_path))
        assert isinstance(result, agridistill.ReportResult)
        assert result.page == tmp_path / "report.html"
    from agridistill import report
    from agridistill.report import page

    assert report(tmp_path) == page.report(tmp_path)


@pytest.mark.parametrize(
    ("name", "home"),
    [
        ("train", "agridistill.training.run"),
        ("distill", "agridistill.training.run"),
        ("export", "agridistill.export.artefact"),
        ("compare", "agridistill.study.compare"),
    ],
)
def test_every_option_of_the_inner_functions_can_be_passed(name: str, home: str) -> None:
    module = __import__(home, fromlist=[name])
    inner = [one for one in inspect.signature(getattr(module, name)).parameters if one not in ("config", "plan")]
    outer = list(inspect.signature(getattr(agridistill, name)).parameters)
    # One object inside.
    start = outer.index("label_file")
    assert outer[start : start + 3] == ["label_file", "label_columns", "nested"]
    outer[start : start + 3] = ["layout"]
    assert [one for one in outer if one not in ("config", "recipe", "settings")] == inner


def test_help_shows_every_public_name_with_its_types() -> None:
    text = pydoc.render_doc(agridistill, renderer=pydoc.plaintext)
    functions = text[text.index("\nFUNCTIONS") :]
    for name in ("benchmark", "compare", "distill", "evaluate", "export", "load", "report", "train"):
        function = getattr(agridistill, name)
        assert inspect.isfunction(function)
        assert f"    {name}(" in functions
        assert inspect.signature(function).return_annotation != inspect.Signature.empty
        for parameter in inspect.signature(function).parameters.values():
            assert parameter.annotation is not parameter.empty
    for name in agridistill.__all__:
        if isinstance(getattr(agridistill, name), type):
            assert f"    class {name}(" in text
