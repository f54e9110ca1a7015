from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from agridistill.cli.data import app
from agridistill.data.datasets import TOMATO_CLASSES
from agridistill.errors import DataError, FetchError

runner = CliRunner()


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def leaves(tmp_path: Path) -> Path:
    """Two class folders of ten photos that differ in what they show."""
    rng = np.random.default_rng(0)
    for name in ("rust", "scab"):
        (tmp_path / "leaves" / name).mkdir(parents=True)
        for number in range(10):
            coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8))
            coarse.resize((48, 48)).save(tmp_path / "leaves" / name / f"{number}.jpg")
    return tmp_path / "leaves"


def test_check_shows_counts_and_exits_0_on_good_data(leaves: Path) -> None:
    result = runner.invoke(app, ["check", str(leaves)])
    assert result.exit_code == 0
    assert "leaf groups" in result.stdout
    assert "nothing wrong" in result.stdout
    assert f"Next: agridistill data split {leaves} --out splits.json" in result.stderr


def test_check_exits_1_and_names_what_is_wrong(leaves: Path) -> None:
    (leaves / "rust" / "svn-r6Yb5c").write_bytes(b"")
    result = runner.invoke(app, ["check", str(leaves)])
    assert result.exit_code == 1
    assert "problem: 1 file that is not a photo (1 without suffix), the first 'rust/svn-r6Yb5c'" in result.stdout
    assert f"Next: agridistill data check {leaves} --json" in result.stderr


def test_check_prints_one_json_document(leaves: Path) -> None:
    result = runner.invoke(app, ["check", str(leaves), "--json"])
    document = json.loads(result.stdout)
    assert result.exit_code == 0
    assert document["problems"] == []
    assert sum(one["photos"] for one in document["classes"]) == 20


def test_split_writes_a_file_that_check_accepts(leaves: Path, tmp_path: Path) -> None:
    out = tmp_path / "splits.json"
    result = runner.invoke(app, ["split", str(leaves), "--out", str(out), "--seed", "3", "--json"])
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    assert document["out"] == str(out)
    assert all(one["train_photos"] and one["val_photos"] and one["test_photos"] for one in document["classes"])
    assert json.loads(out.read_text())["seed"] == 3
    checked = runner.invoke(app, ["check", str(leaves), "--splits", str(out)])
    assert checked.exit_code == 0
    assert f"--splits {out}" in checked.stderr


def test_split_shows_a_table_and_the_next_command(leaves: Path, tmp_path: Path) -> None:
    out = tmp_path / "splits.json"
    result = runner.invoke(app, ["split", str(leaves), "--out", str(out)])
    assert result.exit_code == 0
    assert "train" in result.stdout
    assert f"Next: agridistill train {leaves}" in result.stderr
    assert f"--splits {out}" in result.stderr


def test_split_does_not_replace_a_file_unasked(leaves: Path, tmp_path: Path) -> None:
    out = tmp_path / "splits.json"
    out.write_text("mine")
    with pytest.raises(DataError, match="which already exists; choose another name or pass --force"):
        runner.invoke(app, ["split", str(leaves), "--out", str(out)], catch_exceptions=False)
    assert out.read_text() == "mine"
    assert runner.invoke(app, ["split", str(leaves), "--out", str(out), "--force"]).exit_code == 0


def test_fetch_unpacks_a_local_archive(tmp_path: Path) -> None:
    archive = tmp_path / "tomato.zip"
    file = io.BytesIO()
    Image.linear_gradient("L").resize((16, 16)).save(file, "JPEG")
    with zipfile.ZipFile(archive, "w") as opened:
        for name in TOMATO_CLASSES:
            opened.writestr(f"{name}/1.jpg", file.getvalue())
    command = ["fetch", "plantvillage-tomato", "--source", str(archive), "--out"]
    result = runner.invoke(app, [*command, str(tmp_path / "data")])
    assert result.exit_code == 0
    assert "10 photos in 10 classes" in result.stdout
    assert f"Next: agridistill data check {tmp_path / 'data'}" in result.stderr
    document = json.loads(runner.invoke(app, [*command, str(tmp_path / "again"), "--json"]).stdout)
    assert (document["photos"], document["source"]) == (10, str(archive))


def test_a_mistyped_data_set_names_the_known_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="did you mean 'plantvillage-tomato'"):
        runner.invoke(app, ["fetch", "plantvilage-tomato", "--out", str(tmp_path / "x")], catch_exceptions=False)


def test_a_missing_archive_is_told(tmp_path: Path) -> None:
    command = ["fetch", "plantvillage-tomato", "--out", str(tmp_path / "x"), "--source", str(tmp_path / "none.zip")]
    with pytest.raises(FetchError, match=r"none.zip', which does not exist; correct --source"):
        runner.invoke(app, command, catch_exceptions=False)


def test_help_imports_neither_torch_nor_imagehash() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from agridistill.cli.data import app; "
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0; "
        "print([name for name in ('torch', 'timm', 'imagehash', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert done.stdout.strip() == "[]"


def test_the_data_layer_does_not_import_torch() -> None:
    code = "import sys; import agridistill.data.check, agridistill.data.fetch; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert done.stdout.strip() == "False"


def test_markup_in_names_is_shown_as_it_is(leaves: Path, tmp_path: Path) -> None:
    (leaves / "rust").rename(leaves / "[mosaic]")
    odd = tmp_path / "x[" / "red]"
    odd.parent.mkdir()
    leaves.rename(odd)
    checked = runner.invoke(app, ["check", str(odd)], catch_exceptions=False)
    assert "[mosaic]" in checked.stdout
    assert "x[/red]" in checked.stdout
    out = tmp_path / "y[" / "bold].json"
    divided = runner.invoke(app, ["split", str(odd), "--out", str(out)], catch_exceptions=False)
    assert "[mosaic]" in divided.stdout
    assert "y[/bold].json" in divided.stdout


def test_names_that_are_no_unicode_are_shown_and_given_as_json(leaves: Path) -> None:
    name = os.fsdecode(b"bl\xe4tt")
    try:
        (leaves / "rust").rename(leaves / name)
    except (OSError, UnicodeError):
        pytest.skip("this file system takes only Unicode names")
    checked = runner.invoke(app, ["check", str(leaves)], catch_exceptions=False)
    assert "bl\\udce4tt" in checked.stdout
    document = json.loads(runner.invoke(app, ["check", str(leaves), "--json"], catch_exceptions=False).stdout)
    assert name in [one["name"] for one in document["classes"]]
