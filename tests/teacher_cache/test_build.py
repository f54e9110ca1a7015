"""A student under a cached teacher learns what it would learn under the living one."""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agridistill.data.folder import Sample
from agridistill.data.loader import Batch, Viewing
from agridistill.data.prepare import prepare_data
from agridistill.data.views import Augmentation
from agridistill.errors import ModelError, RunError
from agridistill.manifest import ModelManifest, Preprocessing
from agridistill.models import LiveTeacher, TeacherOutputs
from agridistill.teacher_cache import CachedTeacher, store
from agridistill.teacher_cache.features import read_projections, write_projections
from agridistill.teacher_cache.store import TeacherCache, cache_key, differences, digest_of, read_document
from agridistill.training import parts
from agridistill.training.module import DistillationModule
from agridistill.training.parts import teacher_source
from agridistill.training.run import distill
from agridistill.training.settings import (
    MAX_VIEWS,
    DataSettings,
    DistillConfig,
    FitSettings,
    ObjectiveSettings,
    PairSettings,
)

STUDENT = "mobilenetv3_small_050"
CONFIG = DistillConfig(
    data=DataSettings(image_size=64),
    distill=FitSettings(model=STUDENT, epochs=3, batch_size=16, pretrained=False, workers=0, precision="fp32"),
    objective=ObjectiveSettings(method="hybrid"),
)


@pytest.fixture
def teacher(teacher_run: Path, tmp_path: Path) -> Path:
    """A teacher without caches."""
    copy = tmp_path / "teacher"
    shutil.copytree(teacher_run, copy, ignore=shutil.ignore_patterns("cache"))
    return copy


@pytest.fixture
def losses(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, float]]:
    """Every term of every training step."""
    steps: list[dict[str, float]] = []
    original = DistillationModule.loss_terms

    def recorded(self: DistillationModule, batch: Batch, progress: float) -> dict[str, torch.Tensor]:
        terms = original(self, batch, progress)
        steps.append({name: float(value.detach()) for name, value in terms.items()})
        return terms

    monkeypatch.setattr(DistillationModule, "loss_terms", recorded)
    return steps


def cache_of(teacher: Path) -> Path:
    (folder,) = (teacher / "cache").iterdir()
    return folder


@pytest.mark.parametrize(
    ("objective", "image_size"),
    [
        (ObjectiveSettings(method="hybrid", pairs=(PairSettings(16, 16), PairSettings(32, 16))), 64),
        (ObjectiveSettings(method="hybrid"), 48),  # the teacher has 64 px
        pytest.param(
            ObjectiveSettings(method="hybrid", attention="window", alignment="learned", distance="kl"),
            64,
            marks=pytest.mark.slow,
        ),
        pytest.param(ObjectiveSettings(method="kd"), 64, marks=pytest.mark.slow),
    ],
    ids=["activation", "another size", "window", "kd"],
)
def test_every_step_loses_what_it_loses_under_the_live_teacher(
    leaves: Path,
    teacher: Path,
    tmp_path: Path,
    losses: list[dict[str, float]],
    objective: ObjectiveSettings,
    image_size: int,
) -> None:
    # At the usual learning rate, where training from random weights multiplies whatever differs.
    config = replace(CONFIG, objective=objective, data=replace(CONFIG.data, image_size=image_size))
    distill(leaves, teacher, tmp_path / "live", config, cache=False)
    live = losses.copy()
    losses.clear()
    assert not (teacher / "cache").exists()
    distill(leaves, teacher, tmp_path / "cached", config)
    assert len(losses) == len(live) == 12
    assert losses == live
    assert (tmp_path / "cached/model.safetensors").read_bytes() == (tmp_path / "live/model.safetensors").read_bytes()
    assert all(step["kd"] > 0 for step in losses)


def test_the_number_of_workers_changes_no_byte(leaves: Path, teacher: Path, tmp_path: Path) -> None:
    once = replace(CONFIG, distill=replace(CONFIG.distill, epochs=1, views=2))
    distill(leaves, teacher, tmp_path / "a", once)
    alone = {path.name: path.read_bytes() for path in cache_of(teacher).iterdir()}
    shutil.rmtree(teacher / "cache")
    distill(leaves, teacher, tmp_path / "b", replace(once, distill=replace(once.distill, workers=2)))
    assert {path.name: path.read_bytes() for path in cache_of(teacher).iterdir()} == alone


@pytest.mark.slow
def test_a_second_student_never_loads_the_teacher(
    leaves: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distill(leaves, teacher, tmp_path / "a", CONFIG)
    monkeypatch.setattr(parts, "load_teacher", None)
    distill(leaves, teacher, tmp_path / "b", replace(CONFIG, distill=replace(CONFIG.distill, seed=1)))


@pytest.mark.slow
def test_another_recipe_has_its_own_cache_and_is_reported_why(
    leaves: Path, teacher: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one = replace(CONFIG, distill=replace(CONFIG.distill, epochs=1))
    distill(leaves, teacher, tmp_path / "a", one)
    first = cache_of(teacher)
    before = (first / "records.bin").read_bytes()
    with caplog.at_level(logging.WARNING):
        distill(leaves, teacher, tmp_path / "b", replace(one, augmentation=Augmentation(min_scale=0.9)))
    assert "augmentation.min_scale: 0.5 in the cache, 0.9 in this run" in caplog.text
    assert len(list((teacher / "cache").iterdir())) == 2
    assert (first / "records.bin").read_bytes() == before


SAMPLES = (Sample("a/1.jpg", 0, "1"), Sample("b/2.jpg", 1, "2"))
VIEWING = Viewing(Path("photos"), SAMPLES, "f" * 64, Preprocessing(64), Augmentation(), views=2)
MANIFEST = ModelManifest("swin", ("a", "b"), Preprocessing(64), "w", "0" * 64, lineage={"precision": "fp32"})
ATTENTION: dict[str, Any] = {"strides": (16,), "kind": "activation", "per_head": False}


@pytest.mark.parametrize(
    ("viewing", "manifest", "attention", "named"),
    [
        *[
            ({"augmentation": replace(Augmentation(), **{name: value})}, {}, {}, f"augmentation.{name}: ")
            for name, value in {
                "min_scale": 0.4,
                "max_aspect": 1.5,
                "flip": False,
                "turn": False,
                "brightness": 0.3,
                "contrast": 0.3,
                "saturation": 0.3,
                "cast": 0.3,
            }.items()
        ],
        ({"fingerprint": "e" * 64}, {}, {}, "photos: "),
        ({"seed": 7}, {}, {}, "views: "),
        ({"samples": SAMPLES[:1]}, {}, {}, "photos: "),
        ({"samples": SAMPLES[::-1]}, {}, {}, "photos: "),
        (
            {"preprocessing": Preprocessing(64, "stretch")},
            {},
            {},
            "data.resize: crop in the cache, stretch in this run",
        ),
        (
            {},
            {"weights_sha256": "1" * 64},
            {},
            "teacher weights: 000000000000… in the cache, 111111111111… in this run",
        ),
        ({}, {"model": "other"}, {}, "teacher model: swin in the cache, other in this run"),
        ({}, {"preprocessing": Preprocessing(96)}, {}, "teacher image_size: 64 in the cache, 96 in this run"),
        ({}, {"preprocessing": Preprocessing(64, mean=(0.5, 0.5, 0.5))}, {}, "teacher mean: "),
        ({}, {"preprocessing": Preprocessing(64, std=(0.5, 0.5, 0.5))}, {}, "teacher std: "),
        ({}, {"lineage": {"precision": "bf16"}}, {}, "teacher precision: fp32 in the cache, bf16 in this run"),
        ({}, {}, {"strides": (16, 32)}, "strides: 16 in the cache, 16, 32 in this run"),
        ({}, {}, {"kind": "window"}, "objective.attention: activation in the cache, window in this run"),
        ({}, {}, {"per_head": True}, "objective.attention: activation in the cache, activation, each head in this run"),
    ],
)
def test_whatever_changes_the_records_changes_the_key_and_is_named(
    viewing: dict[str, Any], manifest: dict[str, Any], attention: dict[str, Any], named: str
) -> None:
    key = cache_key(VIEWING, MANIFEST, **ATTENTION)
    other = cache_key(replace(VIEWING, **viewing), replace(MANIFEST, **manifest), **{**ATTENTION, **attention})
    assert digest_of(key) != digest_of(other)
    (reported,) = differences(key, other)
    assert named in reported


@pytest.mark.parametrize("library", ["torch", "timm", "Pillow", "numpy"])
def test_another_version_of_a_library_changes_the_key(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    key, version = cache_key(VIEWING, MANIFEST, **ATTENTION), metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "99" if name == library else version(name))
    (reported,) = differences(key, cache_key(VIEWING, MANIFEST, **ATTENTION))
    assert reported.startswith(f"version of {library}: ")
    assert reported.endswith("99 in this run")


@pytest.mark.parametrize("name", ["VIEWS_VERSION", "OUTPUTS_VERSION", "FORMAT_VERSION"])
def test_another_version_of_ours_changes_the_key(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    key = cache_key(VIEWING, MANIFEST, **ATTENTION)
    monkeypatch.setattr(store, name, 99)
    assert len(differences(key, cache_key(VIEWING, MANIFEST, **ATTENTION))) == 1


def test_students_of_every_image_size_share_a_cache(leaves: Path, teacher: Path, tmp_path: Path) -> None:
    one = replace(CONFIG, distill=replace(CONFIG.distill, epochs=1))
    records = []
    for size in (64, 48):
        distill(leaves, teacher, tmp_path / str(size), replace(one, data=replace(one.data, image_size=size)))
        records.append((cache_of(teacher) / "records.bin").read_bytes())
    assert records[0] == records[1]


def test_neither_the_number_of_views_nor_the_way_a_number_is_written_changes_the_key() -> None:
    key = cache_key(VIEWING, MANIFEST, **ATTENTION)
    assert cache_key(replace(VIEWING, views=5, root=Path("elsewhere")), MANIFEST, **ATTENTION) == key
    one = cache_key(replace(VIEWING, augmentation=Augmentation(min_scale=1)), MANIFEST, **ATTENTION)
    assert digest_of(one) == digest_of(
        cache_key(replace(VIEWING, augmentation=Augmentation(min_scale=1.0)), MANIFEST, **ATTENTION)
    )


@pytest.mark.parametrize(
    ("logits", "map_value", "message"),
    [(7e4, 1.0, "logits within"), (float("nan"), 1.0, "logits within"), (1.0, float("nan"), "finite attention maps")],
)
def test_what_float16_cannot_hold_is_reported_when_it_is_built(
    leaves: Path,
    teacher: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    logits: float,
    map_value: float,
    message: str,
) -> None:
    original = LiveTeacher.outputs

    def wild(self: LiveTeacher, pixels: torch.Tensor) -> TeacherOutputs:
        stored, maps, features = original(self, pixels)
        return TeacherOutputs(
            stored * 0 + logits, {stride: map_ * map_value for stride, map_ in maps.items()}, features
        )

    monkeypatch.setattr(LiveTeacher, "outputs", wild)
    with pytest.raises(RunError, match=message):
        distill(leaves, teacher, tmp_path / "run", CONFIG)


HINTS = replace(CONFIG, objective=ObjectiveSettings(method="hybrid-hint", hint_share=0.5))


def test_features_come_from_the_cache_compressed(
    leaves: Path, teacher: Path, tmp_path: Path, losses: list[dict[str, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    distill(leaves, teacher, tmp_path / "a", HINTS)
    layout = read_document(cache_of(teacher))[1]  # type: ignore[index]
    assert layout.features
    assert layout.dtype.itemsize <= 4000
    first, losses[:] = [*losses], []
    # The second run asks no teacher, and learns the same.
    monkeypatch.setattr(parts, "load_teacher", None)
    distill(leaves, teacher, tmp_path / "b", HINTS)
    assert losses == first
    assert any("hint" in terms for terms in first)


@pytest.mark.slow
def test_compressed_features_teach_what_the_live_ones_teach(
    leaves: Path, teacher: Path, tmp_path: Path, losses: list[dict[str, float]]
) -> None:
    distill(leaves, teacher, tmp_path / "cached", HINTS)
    cached, losses[:] = [terms["hint"] for terms in losses if "hint" in terms], []
    distill(leaves, teacher, tmp_path / "live", HINTS, cache=False)
    live = [terms["hint"] for terms in losses if "hint" in terms]
    assert len(cached) == len(live) > 3
    # Both fall, and what the projection leaves out of the loss is little.
    assert cached[-1] < cached[0]
    assert cached == pytest.approx(live, rel=0.1)


@pytest.mark.slow
def test_a_killed_build_continues_with_the_same_projection(leaves: Path, teacher: Path, tmp_path: Path) -> None:
    one = replace(HINTS, distill=replace(HINTS.distill, epochs=1))
    distill(leaves, teacher, tmp_path / "a", one)
    folder = cache_of(teacher)
    projection, records = (folder / "projection.npz").read_bytes(), (folder / "records.bin").read_bytes()
    (folder / "checksums.bin").write_bytes(b"")
    distill(leaves, teacher, tmp_path / "b", one)
    assert (folder / "projection.npz").read_bytes() == projection
    assert (folder / "records.bin").read_bytes() == records
    # Lost, it is fitted again, to the same photos.
    (folder / "projection.npz").unlink()
    (folder / "checksums.bin").write_bytes(b"")
    distill(leaves, teacher, tmp_path / "c", one)
    assert (folder / "records.bin").read_bytes() == records


def test_features_of_another_projection_are_built_again(leaves: Path, teacher: Path, tmp_path: Path) -> None:
    one = replace(HINTS, distill=replace(HINTS.distill, epochs=1))
    distill(leaves, teacher, tmp_path / "a", one)
    folder = cache_of(teacher)
    layout = read_document(folder)[1]  # type: ignore[index]
    before = np.fromfile(folder / "records.bin", layout.dtype)["features_s16"]
    projections = read_projections(folder / "projection.npz", layout.features)
    turned = {stride: each._replace(components=-each.components) for stride, each in projections.items()}
    write_projections(folder / "projection.npz", turned)
    distill(leaves, teacher, tmp_path / "b", replace(one, distill=replace(one.distill, views=2)))
    after = np.fromfile(folder / "records.bin", layout.dtype)["features_s16"]
    assert np.array_equal(after[: len(before)], -before)
    # Without its document, the projection is of unknown origin as well.
    (folder / "cache.json").unlink()
    distill(leaves, teacher, tmp_path / "c", one)
    assert np.array_equal(np.fromfile(folder / "records.bin", layout.dtype)["features_s16"], before)


def test_methods_without_features_share_a_cache_without_them(leaves: Path, teacher: Path, tmp_path: Path) -> None:
    one = replace(CONFIG, distill=replace(CONFIG.distill, epochs=1))
    distill(leaves, teacher, tmp_path / "a", one)
    distill(leaves, teacher, tmp_path / "b", replace(one, objective=HINTS.objective))
    distill(leaves, teacher, tmp_path / "c", replace(one, objective=ObjectiveSettings(method="kd")))
    layouts = [read_document(folder)[1] for folder in sorted((teacher / "cache").iterdir())]  # type: ignore[index]
    assert sorted(bool(layout.features) for layout in layouts) == [False, True]


@pytest.mark.slow
def test_a_cache_with_features_serves_methods_without_them(
    leaves: Path, teacher: Path, tmp_path: Path, losses: list[dict[str, float]]
) -> None:
    one = replace(CONFIG, distill=replace(CONFIG.distill, epochs=1))
    distill(leaves, teacher, tmp_path / "live", one, cache=False)
    live, losses[:] = [*losses], []
    distill(leaves, teacher, tmp_path / "hints", replace(one, objective=HINTS.objective))
    losses.clear()
    distill(leaves, teacher, tmp_path / "cached", replace(one, distill=replace(one.distill, views=2)))
    assert read_document(cache_of(teacher))[1].features  # type: ignore[index]  # extended by a view, and still the only one
    losses.clear()
    distill(leaves, teacher, tmp_path / "same", one)
    assert losses == live


def test_a_cache_that_holds_other_views_is_never_used(leaves: Path, teacher: Path, tmp_path: Path) -> None:
    # Whole, with right checksums, under the right key: only the seeds tell.
    one = replace(CONFIG, distill=replace(CONFIG.distill, epochs=1))
    distill(leaves, teacher, tmp_path / "a", one)
    folder = cache_of(teacher)
    document = read_document(folder)
    assert document is not None
    key, layout = document
    with TeacherCache(folder, key, layout, views=1) as cache:
        (block,) = layout.blocks(1)
        records = cache.read(np.arange(block.stop), np.zeros(block.stop, np.int64)).copy()
        records["seed"] += 1
        cache.write(block, records)
    with pytest.raises(RunError, match="expected the teacher's outputs for every photo of this batch"):
        distill(leaves, teacher, tmp_path / "b", one)
    distill(leaves, teacher, tmp_path / "b", one, resume=True)


def test_views_are_as_many_as_epochs_up_to_a_bound() -> None:
    fit = FitSettings(epochs=5)
    assert fit.views_of_each_photo(student=True) == fit.views_of_each_photo(student=False) == 5
    long = FitSettings(epochs=100)
    assert (long.views_of_each_photo(student=True), long.views_of_each_photo(student=False)) == (MAX_VIEWS, 100)
    assert FitSettings(epochs=5, views=2).views_of_each_photo(student=False) == 2


@pytest.mark.slow
def test_all_methods_share_one_cache(leaves: Path, teacher: Path, tmp_path: Path) -> None:
    one = replace(CONFIG, distill=replace(CONFIG.distill, epochs=1))
    for method in ("kd", "at", "hybrid"):
        distill(leaves, teacher, tmp_path / method, replace(one, objective=ObjectiveSettings(method=method)))
    assert cache_of(teacher)


def test_a_teacher_without_such_stages_gives_its_logits(leaves: Path, teacher: Path, tmp_path: Path) -> None:
    # This Swin ends at stride 16.
    one = replace(CONFIG, distill=replace(CONFIG.distill, epochs=1))
    pairs = (PairSettings(32, 32),)
    distill(leaves, teacher, tmp_path / "kd", replace(one, objective=ObjectiveSettings(method="kd", pairs=pairs)))
    with pytest.raises(ModelError, match="stride"):
        distill(leaves, teacher, tmp_path / "at", replace(one, objective=ObjectiveSettings(method="at", pairs=pairs)))


def test_caches_can_lie_elsewhere(leaves: Path, teacher: Path, tmp_path: Path) -> None:
    one = replace(CONFIG, distill=replace(CONFIG.distill, epochs=1))
    distill(leaves, teacher, tmp_path / "a", one, cache_dir=tmp_path / "caches")
    assert not (teacher / "cache").exists()
    assert len(list((tmp_path / "caches").iterdir())) == 1


class Gathering:
    """A `Gather` of threads instead of processes."""

    def __init__(self, world: int) -> None:
        self._passed: list[Any] = [None] * world
        self._barrier = threading.Barrier(world, timeout=60)

    def of(self, rank: int, own: Any) -> Sequence[Any]:
        self._passed[rank] = own
        self._barrier.wait()
        passed = list(self._passed)
        self._barrier.wait()
        return passed


def build_by_two(leaves: Path, teacher: Path, caches: Path, views: int) -> list[list[tuple[int, int]]]:
    """The progress that each of two processes reports; here they are threads."""
    prepared, gathering = prepare_data(leaves), Gathering(2)
    viewing = Viewing(leaves, prepared.train, prepared.fingerprint, Preprocessing(64), Augmentation(), views)

    sources = [teacher_source(teacher, caches, viewing, ObjectiveSettings(method="hybrid")) for _ in range(2)]

    def process(rank: int) -> list[tuple[int, int]]:
        reported: list[tuple[int, int]] = []
        source = sources[rank]
        assert isinstance(source, CachedTeacher)
        source.prepare(
            torch.device("cpu"),
            workers=0,
            rank=rank,
            world=2,
            gather=lambda own: gathering.of(rank, own),
            progress=lambda done, total: reported.append((done, total)),
        )
        source.close()
        return reported

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(process, range(2)))


def test_the_progress_of_a_build_is_that_of_all_processes(leaves: Path, teacher_run: Path, tmp_path: Path) -> None:
    photos = len(prepare_data(leaves).train)
    for reported in build_by_two(leaves, teacher_run, tmp_path, 2):
        assert reported[-1] == (2 * photos, 2 * photos)
        assert {total for _, total in reported} == {2 * photos}
    # A block more: the second process has none to build, but knows of the first one's.
    first, second = build_by_two(leaves, teacher_run, tmp_path, 3)
    assert first[-1] == (photos, photos)
    assert second == [(0, photos)]
    assert build_by_two(leaves, teacher_run, tmp_path, 3) == [[], []]
