"""Runs from start to evaluation, and resumes that end where an uninterrupted run ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.conftest import TINY_STUDENT
from tests.training.small_runs import DATA, FIT, rows, student

from agridistill.api import load
from agridistill.data import loader
from agridistill.data.split import read_split
from agridistill.data.views import KeptViews
from agridistill.errors import ConfigError, DataError, ModelError, RunError
from agridistill.losses.methods import METHODS
from agridistill.manifest import Preprocessing, read_manifest
from agridistill.models import create_model
from agridistill.storage import only_one
from agridistill.training import fit as fit_module
from agridistill.training.run import distill, train
from agridistill.training.run_folder import RunFolder
from agridistill.training.settings import PairSettings, TrainConfig


def test_files_that_are_no_photos_are_counted_and_named(
    leaves: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = Path(shutil.copytree(leaves, tmp_path / "leaves"))
    for name in ("empty", "1.dng", "2.DNG"):
        (folder / "mosaic" / name).write_bytes(b"")

    def stop(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("agridistill.training.run.carry_out", stop)
    with pytest.raises(KeyboardInterrupt):
        train(folder, tmp_path / "run", TrainConfig(data=DATA, train=FIT))
    assert [record.getMessage() for record in caplog.records] == [
        "left out: 3 files that are not photos (2 .dng, 1 without suffix), the first 'mosaic/1.dng'"
    ]


def test_every_loss_term_is_logged_by_name(leaves: Path, teacher_run: Path, tmp_path: Path) -> None:
    config = student(pairs=(PairSettings(16, 16), PairSettings(8, 16)), alignment="learned")
    result = distill(leaves, teacher_run, tmp_path / "run", config)
    (row,) = rows(tmp_path / "run")
    for term in ("ce", "kd", "attention", "attention_s16_t16", "attention_s8_t16", "total"):
        assert float(row[f"train/{term}"]) > 0
    assert {"val/accuracy", "val/nll", "lr", "photos_per_s"} <= row.keys()
    assert result.evaluation.parameters == sum(
        v.numel()
        for k, v in load_file(tmp_path / "run" / "model.safetensors").items()
        if "running" not in k and "num_batches" not in k
    )


def test_the_student_is_saved_without_the_alignment_layers(leaves: Path, teacher_run: Path, tmp_path: Path) -> None:
    distill(leaves, teacher_run, tmp_path / "run", student(alignment="learned"))
    assert not [key for key in load_file(tmp_path / "run" / "model.safetensors") if "projection" in key]
    prediction = load(tmp_path / "run").predict(next(leaves.rglob("*.jpg")))
    assert prediction.label in read_manifest(tmp_path / "run" / "manifest.json").classes


@pytest.mark.parametrize("method", ["kd-std", "dkd", "dist"])
def test_every_logit_distance_is_learnt_from_the_cache(
    method: str, leaves: Path, teacher_run: Path, tmp_path: Path
) -> None:
    distill(leaves, teacher_run, tmp_path / "run", student(method))
    (row,) = rows(tmp_path / "run")
    weights = METHODS[method].weights({})
    expected = weights["w_ce"] * float(row["train/ce"]) + weights["w_kd"] * float(row["train/kd"])
    assert float(row["train/total"]) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("cache", [True, False])
def test_hints_come_first_and_then_the_rest(cache: bool, leaves: Path, teacher_run: Path, tmp_path: Path) -> None:
    whole = student("hybrid-hint", hint_share=0.5, att_warmup=0.0, att_decay="none")
    config = replace(whole, distill=replace(FIT, epochs=2))
    distill(leaves, teacher_run, tmp_path / "run", config, cache=cache, cache_dir=tmp_path / "cache")
    first, second = rows(tmp_path / "run")
    assert float(first["train/total"]) == pytest.approx(float(first["train/hint"]), rel=1e-3)
    assert not second["train/hint"]
    later = 0.1 * float(second["train/ce"]) + 0.9 * float(second["train/kd"]) + 5.0 * float(second["train/attention"])
    assert float(second["train/total"]) == pytest.approx(later, rel=1e-3)
    assert (tmp_path / "cache").exists() == cache
    assert not [key for key in load_file(tmp_path / "run" / "model.safetensors") if "regressor" in key]


def test_what_learns_only_after_the_features_takes_no_longer_steps(
    leaves: Path, teacher_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[float] = []
    update = torch.optim.AdamW.step

    def measured(optimizer: torch.optim.AdamW, *args: Any, **settings: Any) -> Any:
        group = optimizer.param_groups[1]  # vectors, which are not decayed: the head's bias is the last of the student
        (head,) = [value for value in group["params"] if value.shape == (6,)]
        before = head.detach().clone()
        result = update(optimizer, *args, **settings)
        steps.append(float((head.detach() - before).abs().max() / group["lr"]))
        return result

    monkeypatch.setattr(torch.optim.AdamW, "step", measured)
    config = replace(student("hybrid-hint", hint_share=0.8), distill=replace(FIT, epochs=10, clip_grad=0.0))
    distill(leaves, teacher_run, tmp_path / "run", config)
    first = len(steps) * 8 // 10
    assert max(steps[:first]) == 0
    # The very first step of AdamW is the learning rate itself.
    assert steps[first] == pytest.approx(1, rel=1e-2)
    assert max(steps[first : first + 10]) < 1.2


def test_window_attention_teaches_too(leaves: Path, teacher_run: Path, tmp_path: Path) -> None:
    distill(leaves, teacher_run, tmp_path / "run", student(attention="window", alignment="learned"))
    assert float(rows(tmp_path / "run")[0]["train/attention"]) > 0


def test_the_baseline_needs_no_teacher_and_the_others_say_so(leaves: Path, tmp_path: Path) -> None:
    # A recipe that holds the weights of all methods serves this one, too.
    distill(leaves, None, tmp_path / "ce", student("ce", w_ce=0.5, w_kd=0.5, w_att=5.0))
    assert "train/kd" not in rows(tmp_path / "ce")[0]
    with pytest.raises(ModelError, match="a teacher for the method 'kd'; got none; pass --teacher RUN, or --method ce"):
        distill(leaves, None, tmp_path / "kd", student("kd"))
    assert not (tmp_path / "kd").exists()


def test_photos_are_normalised_as_the_weights_learnt_them(
    leaves: Path, student_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = Path(shutil.copytree(student_run, tmp_path / "earlier"))
    manifest = read_manifest(earlier / "manifest.json")
    halves = (0.5, 0.5, 0.5)
    replace(manifest, preprocessing=Preprocessing(64, mean=halves, std=halves)).write(earlier / "manifest.json")
    config = TrainConfig(DATA, train=replace(FIT, weights=str(earlier)))
    train(leaves, tmp_path / "run", config)
    assert read_manifest(tmp_path / "run" / "manifest.json").preprocessing.mean == halves
    # A resume needs the earlier run no more.
    shutil.rmtree(earlier)
    for name in ("evaluation.json", "manifest.json"):
        (tmp_path / "run" / name).unlink()
    train(leaves, tmp_path / "run", config, resume=True)
    assert read_manifest(tmp_path / "run" / "manifest.json").preprocessing.std == halves
    # What the hub says of its weights, without fetching them.
    network = create_model(TINY_STUDENT, 6)
    monkeypatch.setattr("agridistill.models.factory._create", lambda *args: network)
    hub = TrainConfig(DATA, train=replace(FIT, model="mobilenetv3_large_minimal_100", pretrained=True))
    monkeypatch.setattr(fit_module, "train_parts", lambda plan, *args: plan.preprocessing)
    assert train(leaves, tmp_path / "hub", hub).mean == halves  # type: ignore[attr-defined]


def test_a_teacher_of_other_classes_is_refused_and_they_are_named(
    leaves: Path, teacher_run: Path, tmp_path: Path
) -> None:
    shutil.copytree(leaves, tmp_path / "data")
    (tmp_path / "data" / "mosaic").rename(tmp_path / "data" / "rust")
    with pytest.raises(ModelError, match="'mosaic' in the teacher only and 'rust' in the data only"):
        distill(tmp_path / "data", teacher_run, tmp_path / "run", student())


def test_a_bad_photo_is_named_counted_and_left_out(
    leaves: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(leaves, tmp_path / "data")
    (tmp_path / "data" / "mosaic" / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    (tmp_path / "data" / "mosaic" / "svn-r6Yb5c").touch()
    result = distill(tmp_path / "data", None, tmp_path / "run", student("ce"))
    assert [path for path, _ in result.skipped] == ["mosaic/broken.jpg"]
    assert "broken.jpg" in caplog.text
    assert "mosaic/broken.jpg" in (tmp_path / "run" / "environment.json").read_text()


def test_too_many_bad_photos_end_the_run_before_it_starts(leaves: Path, tmp_path: Path) -> None:
    shutil.copytree(leaves, tmp_path / "data")
    for number in range(8):
        (tmp_path / "data" / "mosaic" / f"broken{number}.jpg").write_bytes(b"")
    with pytest.raises(DataError, match="8 of 104"):
        train(tmp_path / "data", tmp_path / "run", TrainConfig(DATA, train=FIT))
    assert not (tmp_path / "run").exists()


def test_a_resume_of_a_finished_run_gives_its_result_and_trains_nothing(
    leaves: Path, teacher_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    first = distill(leaves, teacher_run, run, student())
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    assert distill(leaves, teacher_run, run, student(), resume=True) == first
    # No teacher is needed; a given one has to be the run's.
    assert distill(leaves, None, run, student(), resume=True) == first
    copy = shutil.copytree(leaves, tmp_path / "moved")
    assert distill(copy, teacher_run, run, student(), resume=True) == first
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()} == before


def test_a_resume_of_a_finished_run_with_other_settings_is_refused(
    leaves: Path, teacher_run: Path, student_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    distill(leaves, teacher_run, run, student())
    with pytest.raises(RunError, match=r"objective\.method = hybrid as in the run that is resumed; got kd"):
        distill(leaves, teacher_run, run, student("kd"), resume=True)
    with pytest.raises(RunError, match="the teacher that the run started with"):
        distill(leaves, student_run, run, student(), resume=True)
    copy = shutil.copytree(leaves, tmp_path / "other")
    next(copy.rglob("*.jpg")).unlink()
    with pytest.raises((DataError, RunError), match=r"photos do not exist|other photos in"):
        distill(copy, teacher_run, run, student(), resume=True)
    with pytest.raises(RunError, match="leave --splits out"):
        distill(leaves, teacher_run, run, student(), resume=True, split_file=run / "splits.json")
    (run / "evaluation.json").write_text("{}")
    with pytest.raises(RunError, match="the complete result of a finished run; got a missing or damaged"):
        distill(leaves, teacher_run, run, student(), resume=True)


def test_wrong_names_are_reported_before_photos_are_read(tmp_path: Path, teacher_run: Path) -> None:
    missing = tmp_path / "missing"
    with pytest.raises(ModelError, match="did you mean 'mobilenetv3_small_100'"):
        train(missing, tmp_path / "run", TrainConfig(train=replace(FIT, model="mobilenetv3_smal_100")))
    with pytest.raises(ConfigError, match="did you mean 'hybrid'"):
        distill(missing, teacher_run, tmp_path / "run", student("hybird"))
    with pytest.raises(ModelError, match="a model manifest"):
        distill(missing, tmp_path / "no-teacher", tmp_path / "run", student())
    assert not (tmp_path / "run").exists()


def test_a_teacher_that_no_term_needs_is_not_loaded(leaves: Path, teacher_run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "teacher"
    shutil.copytree(teacher_run, copy, ignore=shutil.ignore_patterns("cache"))
    distill(leaves, copy, tmp_path / "run", student(w_ce=1.0, w_kd=0.0, w_att=0.0))
    assert not (copy / "cache").exists()


def test_a_stopped_run_is_not_trained_further_by_a_resume(leaves: Path, tmp_path: Path) -> None:
    config = TrainConfig(DATA, train=replace(FIT, epochs=12, patience=1, lr=1e-9))
    first = train(leaves, tmp_path / "run", config)
    for name in ("evaluation.json", "manifest.json"):
        (tmp_path / "run" / name).unlink()
    epochs = len(rows(tmp_path / "run"))
    assert train(leaves, tmp_path / "run", config, resume=True).evaluation == first.evaluation
    assert len(rows(tmp_path / "run")) == epochs


def test_what_cannot_be_computed_leaves_no_run_behind(leaves: Path, teacher_run: Path, tmp_path: Path) -> None:
    config = replace(student(), distill=replace(FIT, model="vit_tiny_patch16_224"))
    with pytest.raises(ModelError, match="4-D output"):
        distill(leaves, teacher_run, tmp_path / "run", config)
    with pytest.raises(ModelError, match=r"the stride of a stage of .*; got 64"):
        distill(leaves, teacher_run, tmp_path / "run", student(pairs=(PairSettings(64, 16),)))
    assert not (tmp_path / "run").exists()


def test_a_diverged_run_stops_and_says_so(leaves: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"a finite loss; got ce .* in epoch 1; start a new run with a lower --lr"):
        train(leaves, tmp_path / "run", TrainConfig(DATA, train=replace(FIT, lr=1e30, clip_grad=0.0)))


def test_a_run_that_was_stopped_in_its_evaluation_is_not_trained_further(leaves: Path, tmp_path: Path) -> None:
    config = TrainConfig(DATA, train=replace(FIT, epochs=12, patience=1, lr=1e-9))
    first = train(leaves, tmp_path / "run", config)
    before = (tmp_path / "run" / "model.safetensors").read_bytes()
    (tmp_path / "run" / "evaluation.json").unlink()
    again = train(leaves, tmp_path / "run", config, resume=True)
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == before
    assert again.evaluation == first.evaluation
    assert (again.best_epoch, again.train_s) == (first.best_epoch, first.train_s)


def test_two_processes_do_not_train_one_run(leaves: Path, tmp_path: Path) -> None:
    config = TrainConfig(DATA, train=FIT)
    train(leaves, tmp_path / "run", config)
    (tmp_path / "run" / "evaluation.json").unlink()
    with (
        only_one(tmp_path / "run" / ".lock", "test"),
        pytest.raises(RunError, match="only one process that uses the run in"),
    ):
        train(leaves, tmp_path / "run", config, resume=True)
    train(leaves, tmp_path / "run", config, resume=True)


def test_a_start_that_comes_second_changes_nothing(
    leaves: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = TrainConfig(DATA, train=replace(FIT, epochs=2))

    def other_starts(*args: object, **options: object) -> torch.nn.Module:
        monkeypatch.setattr("agridistill.training.parts.create_model", create_model)
        (tmp_path / "run").mkdir()
        RunFolder(tmp_path / "run").write_recipe(first)
        return create_model(*args, **options)  # type: ignore[arg-type]

    # Another one starts while this one is at work on its photos and network.
    monkeypatch.setattr("agridistill.training.parts.create_model", other_starts)
    with pytest.raises(RunError, match="which holds an unfinished run"):
        train(leaves, tmp_path / "run", TrainConfig(DATA, train=replace(FIT, epochs=9)))
    assert tomllib.loads((tmp_path / "run" / "recipe.toml").read_text())["train"]["epochs"] == 2
    assert not (tmp_path / "run" / "splits.json").exists()


def test_two_classes_are_too_few_for_standardised_logits(leaves: Path, tmp_path: Path) -> None:
    for name in ("healthy", "mosaic"):
        shutil.copytree(leaves / name, tmp_path / "two" / name)
    train(tmp_path / "two", tmp_path / "teacher", TrainConfig(DATA, train=FIT))
    with pytest.raises(ConfigError, match="at least 3 classes for the method 'kd-std'; got 2; pass --method kd"):
        distill(tmp_path / "two", tmp_path / "teacher", tmp_path / "run", student("kd-std"))


def test_a_resume_under_another_teacher_or_split_is_refused(leaves: Path, teacher_run: Path, tmp_path: Path) -> None:
    distill(leaves, teacher_run, tmp_path / "run", student())
    (tmp_path / "run" / "evaluation.json").unlink()
    environment = tmp_path / "run" / "environment.json"
    document = json.loads(environment.read_text())
    environment.write_text(json.dumps({**document, "teacher_sha256": "0" * 64}))
    with pytest.raises(RunError, match="the teacher that the run started with"):
        distill(leaves, teacher_run, tmp_path / "run", student(), resume=True)
    environment.write_text("{")
    with pytest.raises(RunError, match="the environment of a run; got a missing or damaged"):
        distill(leaves, teacher_run, tmp_path / "run", student(), resume=True)
    with pytest.raises(RunError, match="leave --splits out"):
        distill(leaves, teacher_run, tmp_path / "run", student(), resume=True, split_file=tmp_path / "s.json")


RUN = """
import sys
from pathlib import Path
from agridistill.training.run import distill
from agridistill.training.settings import *
model, workers = sys.argv[4:6]
fit = FitSettings(
    model=model, epochs=3, batch_size=16, pretrained=False, workers=int(workers), precision="fp32", drop_path=0.2,
    balance=sys.argv[6] == "hybrid",
)
objective = ObjectiveSettings(method=sys.argv[6], hint_share=0.5, alignment="learned")
config = DistillConfig(DataSettings(image_size=64), distill=fit, objective=objective)
distill(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), config, resume=len(sys.argv) > 7)
"""


def test_a_resume_compares_the_features_of_its_start(leaves: Path, teacher_run: Path, tmp_path: Path) -> None:
    out, config = tmp_path / "run", student("hybrid-hint")
    distill(leaves, teacher_run, out, config)
    (out / "evaluation.json").unlink()
    with pytest.raises(RunError, match=r"features from the teacher's cache.*leave --no-cache out"):
        distill(leaves, teacher_run, out, config, resume=True, cache=False)
    environment = RunFolder(out).read_environment()
    del environment["teacher_features"]  # as in earlier versions, which cached no features
    (out / "environment.json").write_text(json.dumps(environment))
    with pytest.raises(RunError, match=r"features from the teacher's network.*pass --no-cache"):
        distill(leaves, teacher_run, out, config, resume=True)


# A network with stochastic depth and loaders of their own: whatever is random must be the same again. The second one is
# killed while it learns features. The first shows each class equally often.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "workers", "method"),
    [("mobilenetv3_small_050", "1", "hybrid"), ("swin_nano_patch4_window4_64", "0", "hybrid-hint")],
)
def test_a_killed_run_resumes_to_the_result_of_an_uninterrupted_one(
    leaves: Path, teacher_run: Path, tmp_path: Path, model: str, workers: str, method: str
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    command = [sys.executable, "-c", RUN, str(leaves), str(teacher_run)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, str(killed), model, workers, method], env=environment, stderr=subprocess.DEVNULL
    )
    while not (killed / "last.ckpt").exists():
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "evaluation.json").exists()
    with pytest.raises(RunError, match="continue it with --resume"):
        distill(leaves, teacher_run, killed, student())
    other_drop = student(method, alignment="learned", hint_share=0.5)
    other_drop = replace(other_drop, distill=replace(FIT, balance=method == "hybrid"))
    with pytest.raises(RunError, match=r"distill\.drop_path = 0.2 as in the run that is resumed; got None"):
        distill(leaves, teacher_run, killed, other_drop, resume=True)
    subprocess.run([*command, str(killed), model, workers, method, "resume"], env=environment, check=True)
    subprocess.run([*command, str(whole), model, workers, method], env=environment, check=True)
    one, other = load_file(whole / "model.safetensors"), load_file(killed / "model.safetensors")
    assert all(torch.equal(one[key], other[key]) for key in one)
    timing = {"train_s", "photos_per_s"}
    for expected, found in zip(rows(whole), rows(killed), strict=True):
        assert {k: v for k, v in expected.items() if k not in timing} == {
            k: v for k, v in found.items() if k not in timing
        }


def test_a_resume_on_other_photos_is_refused(leaves: Path, tmp_path: Path) -> None:
    shutil.copytree(leaves, tmp_path / "data")
    train(tmp_path / "data", tmp_path / "run", TrainConfig(DATA, train=FIT))
    (tmp_path / "run" / "evaluation.json").unlink()
    photo = next((tmp_path / "data" / "mosaic").glob("*.jpg"))
    shutil.copy(next((tmp_path / "data" / "healthy").glob("*.jpg")), photo)
    with pytest.raises(RunError, match="the data that the run started with; got other photos"):
        train(tmp_path / "data", tmp_path / "run", TrainConfig(DATA, train=FIT), resume=True)


@pytest.mark.slow
def test_kept_views_change_no_result_and_save_the_drawing(
    leaves: Path, teacher_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(KeptViews, "room_bytes", lambda _: 10**9)
    drawn: list[int] = []
    draw = loader.render_view

    def noted(image: Any, seed: int, *rest: Any) -> Any:
        drawn.append(seed)
        return draw(image, seed, *rest)

    monkeypatch.setattr(loader, "render_view", noted)
    plain = replace(FIT, epochs=3, views=2)
    counts, weights = {}, {}
    for name, keep in (("plain", False), ("first", True), ("again", True)):
        drawn.clear()
        config = replace(student(), distill=replace(plain, keep_views=keep))
        distill(leaves, teacher_run, tmp_path / name, config, cache_dir=tmp_path / f"cache of {name}")
        counts[name], weights[name] = len(drawn), load_file(tmp_path / name / "model.safetensors")
    photos = len(read_split(RunFolder(tmp_path / "plain").splits).train)
    # The teacher looks at every view, and the student's epochs draw them again; kept, all that is left is each once.
    assert counts["plain"] > 2 * photos
    assert (counts["first"], counts["again"]) == (2 * photos, 0)
    for name in ("first", "again"):
        assert all(torch.equal(weights["plain"][key], weights[name][key]) for key in weights["plain"])


@pytest.mark.slow
def test_keeping_views_says_where_it_saves_less_than_hoped(
    leaves: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    free = {"bytes": 10**9}
    monkeypatch.setattr(KeptViews, "room_bytes", lambda _: free["bytes"])

    def reported_by(name: str, **settings: Any) -> str:
        caplog.clear()
        train(leaves, tmp_path / name, TrainConfig(data=DATA, train=replace(FIT, keep_views=True, **settings)))
        return caplog.text

    assert "every epoch of this run uses new views (views = 1, epochs = 1)" in reported_by("all new")
    assert "views" not in reported_by("seen again", epochs=2, views=1)
    # The views of these two runs are the same, and kept by now, but for photos that fill no batch.
    free["bytes"] = 16 * 16384
    assert "views" not in reported_by("kept already", epochs=2, views=1)
    # 64 px: 12 KiB and a checksum, four blocks.
    photos = len(read_split(RunFolder(tmp_path / "all new").splits).train)
    free["bytes"] = photos * 16384 - 1
    assert f"room for only {photos - 1} of {2 * photos} views in" in reported_by("no room", epochs=3, views=2, seed=1)
    free["bytes"] = 2 * photos * 16384
    assert "views" not in reported_by("room", epochs=3, views=2, seed=2)


def test_a_resume_may_keep_views_or_not(leaves: Path, tmp_path: Path) -> None:
    config = TrainConfig(data=DATA, train=FIT)
    train(leaves, tmp_path / "run", config)
    (tmp_path / "run" / "evaluation.json").unlink()
    train(leaves, tmp_path / "run", replace(config, train=replace(FIT, keep_views=True)), resume=True)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"mixup": 0.2}, "a teacher without a cache for mixup and cutmix"),
        ({"start_size": 96}, "start_size of at most 64 px, the image size; got 96 px"),
    ],
)
def test_settings_of_views_that_do_not_fit_are_refused_before_anything_is_written(
    leaves: Path, teacher_run: Path, tmp_path: Path, changes: dict[str, Any], expected: str
) -> None:
    config = replace(student("kd"), distill=replace(FIT, **changes))
    with pytest.raises(ConfigError, match=expected):
        distill(leaves, teacher_run, tmp_path / "run", config)
    assert not (tmp_path / "run").exists()


def test_mixed_photos_are_answered_by_the_live_teacher(leaves: Path, teacher_run: Path, tmp_path: Path) -> None:
    config = replace(student("hybrid-hint"), distill=replace(FIT, cutmix=1.0, start_size=32))
    assert distill(leaves, teacher_run, tmp_path / "run", config, cache=False).evaluation.photos > 0
