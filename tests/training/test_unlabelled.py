"""Runs with photos without labels: what they learn from, what they record, and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tests.training.small_runs import DATA, FIT, rows, student

from agridistill.data import loader
from agridistill.data.drawn_leaves import draw_leaves
from agridistill.data.folder import scan
from agridistill.data.inspection import inspect_photos, turned_phashes_of
from agridistill.data.likeness import count_learnt, read_learnt
from agridistill.data.prepare import prepare_data
from agridistill.data.split import Split, write_split
from agridistill.errors import ConfigError, DataError, RunError
from agridistill.evaluation.held_out import choose_photos
from agridistill.manifest import read_manifest
from agridistill.training.run import distill, train
from agridistill.training.run_folder import RunFolder
from agridistill.training.settings import DistillConfig, TrainConfig


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """90 photos of leaves that the data folder does not show."""
    folder = tmp_path_factory.mktemp("others") / "new"
    return draw_leaves(folder, leaves_per_class=15, shots_per_leaf=1, image_size=64, seed=1)


def config_with(others: Path, method: str = "kd", **fit: Any) -> DistillConfig:
    whole = student(method)
    return replace(whole, data=replace(DATA, unlabelled=str(others)), distill=replace(FIT, **fit))


@pytest.fixture(scope="module")
def run(leaves: Path, teacher_run: Path, others: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two epochs."""
    out = tmp_path_factory.mktemp("runs") / "run"
    distill(leaves, teacher_run, out, config_with(others, epochs=2))
    return out


def test_a_run_records_its_photos_without_labels(run: Path, others: Path) -> None:
    folder = RunFolder(run)
    kept = folder.read_unlabelled()
    assert 80 <= len(kept) <= 90
    stored = folder.read_environment()["unlabelled"]
    assert (stored["folder"], stored["photos"]) == (str(others.resolve()), len(kept))
    manifest = read_manifest(folder.manifest)
    assert manifest.lineage["unlabelled"] == {"photos": len(kept), "fingerprint": stored["fingerprint"]}
    assert sum(folder.read_environment()["train_photos"].values()) == len(
        json.loads(folder.splits.read_text())["splits"]["train"]
    )
    scanned = scan(others)
    hashes = turned_phashes_of((each for each in scanned.samples if each.path in kept), inspect_photos(scanned))
    learnt = read_learnt(folder.learnt, manifest)
    assert learnt is not None
    assert count_learnt(learnt, hashes.values()) == len(kept)


def test_an_epoch_shows_all_photos_and_the_cache_holds_them(run: Path, teacher_run: Path) -> None:
    folder = RunFolder(run)
    photos = sum(folder.read_environment()["train_photos"].values()) + len(folder.read_unlabelled())
    documents = [json.loads(path.read_text()) for path in RunFolder(teacher_run).caches.glob("*/cache.json")]
    assert photos in [document["layout"]["photos"] for document in documents]
    assert all(float(row[f"train/{term}"]) > 0 for row in rows(run) for term in ("ce", "kd", "total"))


def test_a_stopped_run_resumes_to_the_same_weights(
    run: Path, leaves: Path, teacher_run: Path, others: Path, tmp_path: Path
) -> None:
    moved = Path(shutil.copytree(others, tmp_path / "moved"))
    begun = Path(shutil.copytree(run, tmp_path / "run"))
    for name in ("evaluation.json", "manifest.json", "last.ckpt", "model.safetensors", "learnt.bin"):
        (begun / name).unlink()
    shutil.copy(next(leaves.rglob("*.jpg")), moved / "arrived later.jpg")
    distill(leaves, teacher_run, begun, config_with(moved, epochs=2), resume=True)
    for (name, expected), got in zip(
        load_file(run / "model.safetensors").items(), load_file(begun / "model.safetensors").values(), strict=True
    ):
        assert expected.equal(got), name


def test_a_folder_that_is_taken_away_stops_the_run_which_continues_when_it_is_back(
    run: Path, leaves: Path, teacher_run: Path, others: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stick = Path(shutil.copytree(others, tmp_path / "stick"))
    begun, config = tmp_path / "run", config_with(stick, epochs=2)
    draw = loader.render_view

    def taken_out(*given: Any) -> Any:
        if stick.exists():
            stick.rename(tmp_path / "unplugged")
        return draw(*given)

    with monkeypatch.context() as patch:
        patch.setattr(loader, "render_view", taken_out)
        with pytest.raises(DataError, match="which is away; bring it back and use --resume"):
            distill(leaves, teacher_run, begun, config)
    (tmp_path / "unplugged").rename(stick)
    (begun / ".last.ckpt.1-2.part").write_bytes(b"left by a kill")
    distill(leaves, teacher_run, begun, config, resume=True)
    assert load_file(begun / "model.safetensors").keys() == load_file(run / "model.safetensors").keys()
    assert list(begun.glob(".*.part")) == []


def test_a_resume_needs_the_photos_of_its_start(
    run: Path, leaves: Path, teacher_run: Path, others: Path, tmp_path: Path
) -> None:
    begun = Path(shutil.copytree(run, tmp_path / "run"))
    (begun / "evaluation.json").unlink()
    without = replace(config_with(others, epochs=2), data=DATA)
    with pytest.raises(RunError, match=r"photos without labels .* got none; pass them as --unlabelled"):
        distill(leaves, teacher_run, begun, without, resume=True)


def test_the_result_of_a_finished_run_is_not_that_of_other_photos_without_labels(
    run: Path, leaves: Path, teacher_run: Path, others: Path, tmp_path: Path
) -> None:
    config = config_with(others, epochs=2)
    assert distill(leaves, teacher_run, run, config, resume=True).out == run
    for unlabelled in (None, str(tmp_path)):
        changed = replace(config, data=replace(DATA, unlabelled=unlabelled))
        with pytest.raises(RunError, match=r"data.unlabelled = .* as in the run that is resumed"):
            distill(leaves, teacher_run, run, changed, resume=True)


@pytest.mark.parametrize("method", ["ce", "dkd"])
def test_a_method_that_needs_labels_is_refused(
    method: str, leaves: Path, teacher_run: Path, others: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=f"'{method}'.*pass --method kd, or leave --unlabelled out"):
        distill(leaves, teacher_run, tmp_path / "run", config_with(others, method))


def test_train_and_mixing_are_refused(leaves: Path, teacher_run: Path, others: Path, tmp_path: Path) -> None:
    config = TrainConfig(data=replace(DATA, unlabelled=str(others)), train=FIT)
    with pytest.raises(ConfigError, match="learns only from labels"):
        train(leaves, tmp_path / "run", config)
    with pytest.raises(ConfigError, match=r"mixup = 0.2, cutmix = 0.0; set both to 0"):
        distill(leaves, teacher_run, tmp_path / "run", config_with(others, mixup=0.2), cache=False)
    with pytest.raises(DataError, match=r"which does not exist; correct --unlabelled"):
        distill(leaves, teacher_run, tmp_path / "run", config_with(tmp_path / "absent"))


def test_the_folder_of_the_labels_itself_gives_the_photos_whose_labels_are_not_used(
    leaves: Path, teacher_run: Path, tmp_path: Path
) -> None:
    config = config_with(leaves)
    config = replace(config, data=replace(config.data, labels=0.4, val_fraction=0.4))
    distill(leaves, teacher_run, tmp_path / "run", config)
    folder = RunFolder(tmp_path / "run")
    split = json.loads(folder.splits.read_text())["splits"]
    kept = set(folder.read_unlabelled())
    assert kept
    assert not kept & {*split["train"], *split["val"], *split["test"]}
    # Some photos of validation leaves have lost their label.
    data = prepare_data(leaves)
    leaf_of = {sample.path: sample.leaf_id for sample in (*data.train, *data.val, *data.test)}
    assert not {leaf_of[path] for path in kept} & {leaf_of[path] for path in (*split["val"], *split["test"])}
    # A test on them is one on learnt photos, though the run's split does not name them.
    manifest, known = read_manifest(folder.manifest), {"own_split": folder.splits, "learnt": folder.learnt}
    theirs = Split((), (), tuple(sorted(kept)))
    write_split(tmp_path / "theirs.json", theirs, seed=0, val_fraction=0.0, test_fraction=1.0, fingerprint="")
    chosen = choose_photos(manifest, leaves, split_file=tmp_path / "theirs.json", **known)
    assert (chosen.learnt, len(chosen.samples)) == (len(kept), len(kept))
    assert len(choose_photos(manifest, leaves, split="all", **known).samples) == len(leaf_of)


@pytest.mark.slow
def test_with_head_first_and_balance_a_live_teacher_gives_the_same_as_its_cache(
    leaves: Path, teacher_run: Path, others: Path, tmp_path: Path
) -> None:
    config = config_with(others, "hybrid", head_first=True, balance=True)
    for cache in (True, False):
        distill(leaves, teacher_run, tmp_path / str(cache), config, cache=cache, cache_dir=tmp_path / "cache")
    first, second = (rows(tmp_path / str(cache))[0]["train/total"] for cache in (True, False))
    assert float(first) == pytest.approx(float(second), rel=1e-4)


@pytest.mark.slow
def test_an_int8_student_learns_from_photos_without_labels(
    student_run: Path, leaves: Path, teacher_run: Path, others: Path, tmp_path: Path
) -> None:
    config = config_with(others, "kd", weights=str(student_run), int8=True)
    result = distill(leaves, teacher_run, tmp_path / "run", config)
    assert read_manifest(result.out / "manifest.json").precision == "int8"


def test_a_later_run_warns_if_its_test_photos_had_no_labels_before(
    run: Path, teacher_run: Path, others: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = replace(student("kd"), distill=replace(FIT, weights=str(run)))
    distill(others, teacher_run, tmp_path / "run", config)
    test_photos = len(RunFolder(tmp_path / "run").test_photos()[1])
    messages = [record.getMessage() for record in caplog.records]
    (line,) = [message for message in messages if message.startswith("the run of --weights was trained on")]
    assert f"of the {test_photos} test photos" in line
