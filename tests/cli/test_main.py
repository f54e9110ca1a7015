"""The command as a user meets it: one line for each failure, nothing half-written, the right exit code."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from tests.cli.running import run
from tests.cli.test_evaluate import result
from typer.testing import CliRunner

from agridistill.cli import main as cli
from agridistill.cli.commands import parser
from agridistill.errors import DataError
from agridistill.evaluation.verdict import ModelVerdict
from agridistill.manifest import read_manifest
from agridistill.runtime.backends import model_path

SMALL = [
    "--epochs",
    "1",
    "--image-size",
    "64",
    "--batch-size",
    "16",
    "--no-pretrained",
    "--workers",
    "0",
    "--precision",
    "fp32",
]


def one_line(text: str) -> str:
    lines = text.strip().splitlines()
    assert len(lines) == 1, text
    return lines[0]


def test_a_wrong_path_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, err = run(capsys, "train", tmp_path / "missing", "--out", tmp_path / "run", "--no-pretrained")
    assert code == 2
    assert out == ""
    assert "which does not exist; check the path" in one_line(err)
    assert not (tmp_path / "run").exists()


def test_an_empty_folder_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    code, _, err = run(capsys, "train", tmp_path / "data", "--out", tmp_path / "run", "--no-pretrained")
    assert code == 2
    assert "no photos in class folders" in one_line(err)


def test_one_class_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "data" / "rust").mkdir(parents=True)
    (tmp_path / "data" / "rust" / "1.jpg").write_bytes(b"")
    code, _, err = run(capsys, "train", tmp_path / "data", "--out", tmp_path / "run", "--no-pretrained")
    assert code == 2
    assert "at least two class folders with photos; got only 'rust'" in one_line(err)


def test_a_typo_in_a_model_name_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, _, err = run(capsys, "train", tmp_path, "--model", "swin_tny_patch4_window7_224", "--out", tmp_path / "run")
    assert code == 2
    assert "did you mean 'swin_tiny_patch4_window7_224'" in one_line(err)


@pytest.mark.parametrize(
    ("command", "recipe", "message"),
    [
        ("distill", "[distill]\nepoch = 3\n", "'epoch' in 'r.toml'; did you mean 'epochs'?"),
        (
            "train",
            "[distill]\nepochs = 3\n",
            "expected a recipe with a section [train]; got one with [distill]; use it with 'agridistill distill'",
        ),
    ],
)
def test_a_recipe_that_cannot_be_used_is_one_line(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    recipe: str,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("r.toml").write_text(recipe)
    code, _, err = run(capsys, command, tmp_path, "--recipe", "r.toml", "--out", tmp_path / "run")
    assert code == 2
    assert message in one_line(err)


@pytest.mark.parametrize("command", ["train", "distill", "compare"])
def test_a_recipe_is_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = run(capsys, command, "nowhere", "--recipe", "cpu", "--out", "run")
    assert code == 2
    # The recipe is read; what follows it is what is lacking.
    lacking = {
        "train": "'nowhere', which does not exist",
        "distill": "a teacher for the method 'hybrid'",
        "compare": "a recipe with a section [compare]; got one with [data]",
    }
    assert lacking[command] in one_line(err)
    code, _, err = run(capsys, command, "nowhere", "--recipe", "cpuu", "--out", "run")
    assert code == 2
    assert "got 'cpuu', which does not exist; check the path; shipped recipes: ablations, compare," in one_line(err)


def test_an_unknown_option_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, _, err = run(capsys, "train", tmp_path, "--out", tmp_path / "run", "--epoch", "3")
    assert code == 2
    assert "No such option: --epoch" in one_line(err)


def test_a_missing_option_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, _, err = run(capsys, "train", tmp_path)
    assert code == 2
    assert "--out" in one_line(err)


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "expected free disk space; got a full disk at '/x/model.safetensors'"),
        (errno.EACCES, "expected a path with permission to read and write"),
        (errno.ENOTDIR, "expected a usable path"),
        (errno.EIO, "got 'Input/output error' at '/x/model.safetensors'; check disk"),
        (errno.ELOOP, "expected a system that can read and write; got "),
        (errno.EMFILE, "got 'Too many open files'"),
    ],
)
def test_a_failing_disk_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: int, message: str
) -> None:
    def fail(*args: object, **options: object) -> None:
        raise OSError(number, os.strerror(number), "/x/model.safetensors")

    monkeypatch.setattr("agridistill.training.run.train", fail)
    code, _, err = run(capsys, "train", tmp_path, "--out", tmp_path / "run")
    assert code == 2
    assert message in one_line(err)


def test_of_a_copy_the_path_that_is_written_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*args: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/photos/a.jpg", None, b"/full/b.jpg")

    monkeypatch.setattr("agridistill.training.run.train", fail)
    assert "got a full disk at '/full/b.jpg'" in one_line(run(capsys, "train", tmp_path, "--out", tmp_path / "run")[2])


@pytest.mark.parametrize("command", ["train", "distill"])
@pytest.mark.parametrize(
    ("option", "expected"), [((), False), (("--balance",), True), (("--set", "balance=true"), True)]
)
def test_balance_reaches_the_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: str, option: tuple[str, ...], expected: bool
) -> None:
    configs = []

    def keep(*args: object, **options: object) -> None:
        configs.extend(arg for arg in args if hasattr(arg, "augmentation"))
        raise DataError("photos", "none", "add some")

    monkeypatch.setattr(f"agridistill.training.run.{command}", keep)
    model = ("--model", "resnet18") if command == "train" else ("--student", "resnet18", "--method", "ce")
    with pytest.raises(SystemExit):
        cli.main([command, str(tmp_path), "--out", str(tmp_path / "run"), *model, "--no-pretrained", *option])
    assert getattr(configs[0], command).balance is expected


def test_a_defect_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*args: object, **options: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("agridistill.training.run.train", fail)
    with pytest.raises(ZeroDivisionError):
        cli.main(["train", str(tmp_path), "--out", str(tmp_path / "run")])


def test_debug_shows_the_traceback_wherever_it_stands(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        cli.main(["train", str(tmp_path), "--out", str(tmp_path / "run"), "--no-pretrained", "--debug"])


def test_train_distill_evaluate_and_predict_follow_one_another(
    capsys: pytest.CaptureFixture[str], leaves: Path, tmp_path: Path
) -> None:
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    code, out, err = run(
        capsys, "train", leaves, "--model", "swin_nano_patch4_window4_64", "--out", teacher, *SMALL, "--json"
    )
    assert code == 0
    document = json.loads(out)
    assert document["split"] == "test"
    # One epoch teaches it nothing: that is told, and no command is proposed that would build on it.
    assert document["verdict"]["level"] == "unusable"
    assert document["verdict"] == json.loads((teacher / "evaluation.json").read_text())["verdict"]
    assert document["verdict"]["headline"] in err
    assert "Next:" not in err
    code, out, err = run(
        capsys,
        "distill",
        leaves,
        "--teacher",
        teacher,
        "--student",
        "mobilenetv3_small_050",
        "--method",
        "hybrid",
        "--out",
        student,
        *SMALL,
    )
    assert code == 0
    assert "mosaic" in out
    assert "Not usable: " in out
    assert "What helps:" in out
    assert "Next:" not in err
    trained = json.loads((student / "evaluation.json").read_text())
    better = trained["accuracy"] > json.loads((teacher / "evaluation.json").read_text())["accuracy"]
    assert ("is better than its teacher" in err) == better
    code, out, _ = run(capsys, "evaluate", student, leaves, "--json")
    assert code == 0
    again = json.loads(out)
    assert again["accuracy"] == pytest.approx(trained["accuracy"])
    assert again["photos"] == trained["photos"]
    code, out, _ = run(capsys, "predict", student, next(leaves.rglob("*.jpg")))
    assert code == 0
    assert "%" in one_line(out)


@pytest.mark.parametrize(
    ("recipe", "gpu", "carried"),
    [("[train]\n[distill]\nmodel = 'mobilenetv3_small_050'\n", False, " --recipe {file}"), ("[train]\n", True, "")],
)
def test_the_next_command_of_train_is_distill_with_a_recipe_for_it_or_a_gpu(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    recipe: str,
    gpu: bool,
    carried: str,
) -> None:
    file = tmp_path / "r.toml"
    file.write_text(recipe)

    def train(*args: object, **options: object) -> SimpleNamespace:
        file.unlink()  # the recipe is read before the training
        return SimpleNamespace(evaluation=result(parameters=10_000_000))

    monkeypatch.setattr("agridistill.training.run.train", train)
    monkeypatch.setattr("agridistill.cli.train.show_result", lambda *args, **options: ModelVerdict("usable", "Usable"))
    monkeypatch.setattr("agridistill.cli.train.gpu_at_hand", lambda: gpu)
    code, _, err = run(capsys, "train", "photos", "--recipe", file, "--out", tmp_path / "run")
    assert code == 0
    words = f"--teacher {tmp_path / 'run'}{carried.format(file=file)} --out {tmp_path / 'student'}"
    assert f"Next: agridistill distill photos {words}" in one_line(err)


def test_a_resume_of_a_finished_run_shows_its_result(capsys: pytest.CaptureFixture[str], teacher_run: Path) -> None:
    data = json.loads((teacher_run / "environment.json").read_text())["data"]
    code, out, err = run(capsys, "train", data, "--out", teacher_run, "--resume", "--json")
    assert code == 0
    assert json.loads(out)["accuracy"] == json.loads((teacher_run / "evaluation.json").read_text())["accuracy"]
    assert f"'{teacher_run}' has already finished; this is its stored result." in err
    code, out, err = run(capsys, "train", data, "--out", teacher_run, "--resume", "--epochs", "7")
    assert code == 2
    assert "train.epochs = 1 as in the run that is resumed; got 7" in one_line(err)


@pytest.mark.parametrize(("options", "told"), [((), True), (("--method", "ce"), False)])
def test_distill_says_where_the_student_is_better_than_its_teacher(
    capsys: pytest.CaptureFixture[str], leaves: Path, teacher_run: Path, tmp_path: Path, options: tuple[str], told: bool
) -> None:
    teacher = shutil.copytree(teacher_run, tmp_path / "teacher")
    document = json.loads((teacher / "evaluation.json").read_text())
    (teacher / "evaluation.json").write_text(json.dumps({**document, "accuracy": -1.0}))
    words = ("--teacher", teacher, "--student", "mobilenetv3_small_050", "--out", tmp_path / "run", *SMALL, *options)
    code, _, err = run(capsys, "distill", leaves, *words)
    assert code == 0
    assert ("learns only from labels (--method ce)" in err) == told


def test_resume_takes_the_runs_own_settings(capsys: pytest.CaptureFixture[str], leaves: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(capsys, "distill", leaves, "--method", "ce", "--student", "mobilenetv3_small_050", "--out", out, *SMALL)
    (out / "evaluation.json").unlink()
    code, _, _ = run(capsys, "distill", leaves, "--out", out, "--resume")
    assert code == 0
    assert (out / "evaluation.json").exists()


@pytest.mark.slow
def test_ctrl_c_is_one_line_and_the_run_goes_on_with_resume(leaves: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "agridistill.cli.main", "train", str(leaves), "--out", str(out)]
    options = ["--model", "mobilenetv3_small_050", *SMALL, "--epochs", "500"]
    process = subprocess.Popen([*command, *options], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    while not (out / "last.ckpt").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out_text, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out_text == ""
    told = [line for line in err.splitlines() if "epoch" not in line]
    assert told == ["interrupted: run the same command again with --resume to continue"]
    assert not list(out.glob("*.part"))


@pytest.mark.parametrize(
    ("words", "called", "told"),
    [
        (("demo", "--out"), "cli.demo.run_demo", "interrupted: run the same command again to continue"),
        (
            ("data", "fetch", "plantvillage-tomato", "--out"),
            "data.fetch.fetch_dataset",
            "interrupted",
        ),
        (("data", "check"), "data.check.check", "interrupted"),
        (
            ("--debug", "train", "photos", "--out"),
            "training.run.train",
            "interrupted: nothing was written",
        ),
    ],
)
def test_ctrl_c_names_only_what_the_command_has(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    words: tuple[str, ...],
    called: str,
    told: str,
) -> None:
    def stop(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"agridistill.{called}", stop)
    code, out, err = run(capsys, *words, tmp_path / "x")
    assert (code, out) == (130, "")
    assert err.splitlines()[-1] == told


@pytest.mark.parametrize(("command", "resumes"), [("train", True), ("data", False)])
@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "no space"), typer.Abort()])
def test_only_a_run_is_offered_resume_after_a_failure(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    failure: Exception,
    command: str,
    resumes: bool,
) -> None:
    def fail(*args: object, **options: object) -> None:
        raise failure

    monkeypatch.setattr("agridistill.training.run.train", fail)
    monkeypatch.setattr("agridistill.data.check.check", fail)
    rest = ("check",) if command == "data" else ("--out", tmp_path / "run")
    code, _, err = run(capsys, command, *rest, tmp_path)
    assert code == 2
    assert ("--resume" in one_line(err)) is resumes


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux to mount a small disk")
@pytest.mark.needs("root", "mount")
@pytest.mark.parametrize(("size", "fits"), [("400k", False), ("4m", True)])
def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(
    capsys: pytest.CaptureFixture[str], leaves: Path, tmp_path: Path, size: str, fits: bool
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)], check=False).returncode:
        pytest.skip("needs the right to mount, which a container has with --privileged")
    try:
        code, _, err = run(capsys, "train", leaves, "--model", "mobilenetv3_small_050", "--out", disk / "run", *SMALL)
        assert code == 2
        last = err.strip().splitlines()[-1]
        assert "expected free disk space; got a full disk" in last
        assert "--resume" in last
        assert "Traceback" not in err
        assert not list(disk.rglob("*.part"))
        # The larger disk has room for the weights, not for the checkpoint.
        assert (disk / "run" / "model.safetensors").exists() is fits
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


class OutOfMemoryError(RuntimeError):
    """Named as torch names its own."""


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (OutOfMemoryError("CUDA: tried to allocate 2 GiB"), "got 'CUDA: tried to allocate 2 GiB'; lower --batch-size"),
        (RuntimeError("CUDA error: out of memory\nmore"), "expected enough memory for this run; got 'CUDA error:"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "lower --batch-size or --image-size"),
        (MemoryError(), "got 'MemoryError'; lower --batch-size or --image-size"),
        (
            RuntimeError("DataLoader worker (pid 21207) is killed by signal: Killed. "),
            "free memory or lower --workers (--resume for a started run)",
        ),
        (
            RuntimeError("DataLoader worker (pid 21207) is killed by signal: Terminated. "),
            "another program stopped the command; run it again (--resume for a started run)",
        ),
        (typer.Abort(), "the command was aborted; run it again"),
        (ModuleNotFoundError("no", name="huggingface_hub"), "pip install 'agridistill[train]'"),
        (ModuleNotFoundError("no", name="tensorboard.compat"), "pip install 'agridistill[train]'"),
    ],
)
def test_a_failing_machine_is_one_line(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    failure: Exception,
    message: str,
) -> None:
    def fail(*args: object, **options: object) -> None:
        raise failure

    monkeypatch.setattr("agridistill.training.run.train", fail)
    code, _, err = run(capsys, "train", tmp_path, "--out", tmp_path / "run")
    assert code == 2
    assert message in one_line(err)


def test_an_output_that_nobody_reads_ends_quietly(tmp_path: Path) -> None:
    for name in ("rust", "scab"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.jpg").write_bytes(b"")
    command = [sys.executable, "-m", "agridistill", "data", "check", str(tmp_path), "--json"]
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert process.returncode == 1
    assert process.stderr == ""


def test_ctrl_c_during_the_first_imports_is_one_line() -> None:
    code = """
import sys
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == "agridistill.cli.main":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupt())
from agridistill.__main__ import main
main()
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (process.returncode, process.stdout, process.stderr) == (130, "", "interrupted\n")


def test_the_package_runs_as_a_module() -> None:
    process = subprocess.run([sys.executable, "-m", "agridistill", "--version"], capture_output=True, check=True)
    assert process.stdout.startswith(b"agridistill ")


def commands(group: Any = None, *words: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command and group below `agridistill`, with the words that call it."""
    group = group or typer.main.get_command(parser(""))
    yield words, group
    for name, command in getattr(group, "commands", {}).items():
        yield from commands(command, *words, name)


@pytest.mark.parametrize(("words", "command"), [pytest.param(*one, id=" ".join(one[0])) for one in commands()])
def test_help_shows_every_text_as_it_is(words: tuple[str, ...], command: Any) -> None:
    # Brackets are markup to whoever draws the help, which then loses them or fails.
    done = CliRunner().invoke(parser(""), [*words, "--help"], env={"COLUMNS": "100"}, catch_exceptions=False)
    assert done.exit_code == 0
    shown = re.sub(r"[\s│]+", "", done.output)
    texts = [getattr(option, "help", None) or "" for option in command.params]
    for text in [command.help or "", *texts]:
        assert re.sub(r"\s+", "", text.replace("\\[", "[")) in shown


def test_a_choice_that_is_none_is_told_in_plain_words(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "watch", "photos", "--after", "burn")
    assert code == 2
    told = "error: Invalid value for '--after': 'burn' is not one of 'keep', 'delete'; see agridistill watch --help"
    assert told in err


@pytest.mark.parametrize(
    ("words", "command"),
    [
        ("trian photos", ""),
        ("--quiet", ""),
        ("train photos", "train "),
        ("train photos --out run --epochs many", "train "),
        ("--debgu train photos", ""),
        ("data chek photos", "data "),
        ("data check", "data check "),
        ("data check photos --split x", "data check "),
        ("benchmark tomato --threads -1", "benchmark "),
    ],
)
def test_a_usage_error_names_the_help_of_its_own_command(
    capsys: pytest.CaptureFixture[str], words: str, command: str
) -> None:
    code, out, err = run(capsys, *words.split())
    assert (code, out) == (2, "")
    assert one_line(err).endswith(f"; see agridistill {command}--help")


@pytest.mark.parametrize("words", [(), ("data",)])
def test_without_a_command_there_is_help_and_no_empty_error(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    code, out, err = run(capsys, *words)
    assert code == 2
    assert "Usage: agridistill" in out + err
    assert "error" not in err


@pytest.mark.parametrize("words", [pytest.param(one[0], id=" ".join(one[0])) for one in commands()])
def test_h_is_help_everywhere(capsys: pytest.CaptureFixture[str], words: tuple[str, ...]) -> None:
    short, long = run(capsys, *words, "-h"), run(capsys, *words, "--help")
    assert short == long
    assert short[0] == 0
    assert "Usage: " + " ".join(("agridistill", *words)) in short[1]


def test_models_lists_what_is_shipped(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "models")
    assert code == 0
    file = model_path("tomato")
    manifest = read_manifest(file.with_suffix(".json"))
    accuracy = "96.5 %"  # as the README and the model card say
    assert re.search(rf"tomato +{file.stat().st_size / 1e6:.1f} MB +208 px +10 +{accuracy}", out)
    assert f"tomato: {file}\n" in out
    assert f"on the phone page: {model_path('tomato', for_page=True)}\n" in out
    assert all(name in out for name in manifest.classes)
    assert err == "Next: agridistill predict tomato IMAGE\n"


def test_models_as_json_is_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "models", "--json")
    (model,) = json.loads(out)["models"]
    assert (code, err) == (0, "")
    manifest = read_manifest(Path(model["file"]).with_suffix(".json"))
    assert model["name"] == "tomato"
    assert model["classes"] == list(manifest.classes)
    assert model["val_accuracy"] == manifest.measured["accuracy"]
    assert (
        model["test_accuracy"]
        == json.loads(Path(model["file"]).with_name("evaluation-int8.json").read_text())["accuracy"]
    )
    assert model["size_bytes"] == Path(model["file"]).stat().st_size


def test_a_command_collects_garbage_though_the_program_begins_without() -> None:
    code = "import gc; gc.disable()\nfrom agridistill.cli.main import main\n"
    code += "try: main(['--version'])\nfinally: assert gc.isenabled()"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
