"""A student that goes on learning as its int8 artefact computes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from agridistill import api
from agridistill.errors import ConfigError, ModelError
from agridistill.export.artefact import export
from agridistill.manifest import read_manifest
from agridistill.models import load_network
from agridistill.models.rounding import ActivationRounding
from agridistill.training.run import distill
from agridistill.training.settings import DataSettings, DistillConfig, FitSettings, ObjectiveSettings


def recipe(student_run: Path, method: str = "kd") -> DistillConfig:
    fit = FitSettings(
        model="mobilenetv3_small_050",
        epochs=1,
        batch_size=16,
        lr=1e-4,
        weights=str(student_run),
        int8=True,
        pretrained=False,
        workers=0,
        precision="fp32",
    )
    return DistillConfig(
        data=DataSettings(image_size=64), distill=fit, objective=ObjectiveSettings(method=method, temperature=2.0)
    )


@pytest.fixture(scope="module")
def int8_run(leaves: Path, teacher_run: Path, student_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "int8"
    distill(leaves, teacher_run, out, recipe(student_run))
    return out


def test_the_run_says_that_it_is_rounded(int8_run: Path) -> None:
    assert read_manifest(int8_run / "manifest.json").precision == "int8"
    network, _ = load_network(int8_run)
    scales = [float(part.scale) for part in network.modules() if isinstance(part, ActivationRounding)]
    assert len(scales) > 20
    assert min(scales) > 0


@pytest.mark.slow
def test_its_scales_go_into_the_artefact(int8_run: Path, tmp_path: Path) -> None:
    photos = np.random.default_rng(0).integers(0, 256, (6, 64, 64, 3), np.uint8)
    result = export(int8_run, tmp_path / "leaf.onnx", precision="int8", force=True)
    expected = api.load(int8_run).backend.logits(photos)
    found = api.load(result.out).backend.logits(photos)
    assert np.abs(found - expected).std() < 0.1 * expected.std()


def test_no_fp32_artefact_comes_from_a_rounded_run(int8_run: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="trained for int8"):
        export(int8_run, tmp_path / "leaf.onnx", force=True)


def test_a_method_with_attention_is_refused(leaves: Path, teacher_run: Path, student_run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--method kd"):
        distill(leaves, teacher_run, tmp_path / "run", recipe(student_run, "hybrid"))


def test_an_untrained_network_is_refused() -> None:
    with pytest.raises(ConfigError, match="weights of a trained network"):
        replace(FitSettings(), int8=True)


def test_photos_of_another_size_than_the_student_learnt_are_refused(
    leaves: Path, teacher_run: Path, student_run: Path, tmp_path: Path
) -> None:
    config = replace(recipe(student_run), data=DataSettings(image_size=96))
    with pytest.raises(ConfigError, match=r"the image size of 64 px with which .*; got 96 px; pass --image-size 64"):
        distill(leaves, teacher_run, tmp_path / "run", config)
