"""`agridistill publish` as a user meets it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from PIL import Image
from tests.test_heic import HEIC
from typer.testing import CliRunner, Result

from agridistill.cli import watch as command
from agridistill.edge.updates.release import read_trusted_keys, verified_release
from agridistill.errors import AgriDistillError, EdgeError, ModelError, RunError

Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command by itself; progress and what is told comes on stderr."""
    app = typer.Typer()
    app.command()(command.publish)

    def invoke(*words: object) -> Result:
        told: list[str] = []
        with monkeypatch.context() as patch:
            patch.setattr(command.stderr, "print", lambda text, **style: told.append(text))
            patch.setattr(
                command.output, "next_command", lambda *more: told.append("Next: " + " ".join(map(str, more)))
            )
            result = CliRunner().invoke(app, [str(word) for word in words], standalone_mode=False)
        result.told = "\n".join(told)  # type: ignore[attr-defined]
        if isinstance(result.exception, AgriDistillError):
            raise result.exception
        return result

    return invoke


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    for name, colour in (("green", (10, 200, 10)), ("red", (200, 10, 10))):
        (tmp_path / "golden" / name).mkdir(parents=True)
        Image.new("RGB", (20, 20), colour).save(tmp_path / "golden" / name / "Photo 1.PNG")
    return tmp_path / "golden"


@pytest.fixture
def key(tmp_path: Path, run: Run) -> Path:
    assert run("--new-key", tmp_path / "keys" / "release.pem").exit_code == 0
    return tmp_path / "keys" / "release.pem"


def test_a_folder_that_cannot_be_made_is_told_before_the_photos_are_read(
    run: Run, key: Path, golden: Path, colour_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_late(*words: object, **options: object) -> None:
        raise AssertionError("work has begun")

    monkeypatch.setattr("agridistill.edge.updates.publishing.open_artefact", too_late)
    (tmp_path / "file").touch()
    words = (colour_model, "--key", key, "--version", 1, "--golden", golden)
    with pytest.raises(RunError, match="a folder for --out; got the file"):
        run(*words, "--out", tmp_path / "file")
    with pytest.raises(RunError, match="a folder to write 'releases' in; got the file"):
        run(*words, "--out", tmp_path / "file" / "releases")


def test_a_key_is_made_and_told_what_to_do_with_it(run: Run, tmp_path: Path) -> None:
    result = run("--new-key", tmp_path / "a.pem", "--json")
    document = json.loads(result.stdout)
    assert document["public_key"] == f"{tmp_path / 'a.pem'}.pub"
    assert list(read_trusted_keys(tmp_path / "a.pem.pub").keys) == [document["key_id"]]
    assert result.told.startswith("Next: publish MODEL --key")  # type: ignore[attr-defined]
    with pytest.raises(EdgeError, match="which exists"):
        run("--new-key", tmp_path / "a.pem")


def test_a_release_is_written_that_its_key_vouches_for(
    run: Run, key: Path, golden: Path, colour_model: Path, tmp_path: Path
) -> None:
    words = (colour_model, "--key", key, "--version", 3, "--golden", golden, "--out", tmp_path / "served")
    result = run(*words)
    assert result.exit_code == 0
    assert result.stdout == ""
    told, following = result.told.splitlines()  # type: ignore[attr-defined]
    assert "version 3 is written, with 4 files" in told
    assert "answers 100.0 % of 2 golden photos correctly on this computer" in told
    assert following.startswith("Next: watch SOURCE --model")
    release = verified_release((tmp_path / "served" / "release.json").read_bytes(), read_trusted_keys(key.parent))
    assert [(photo.photo, photo.label) for photo in release.golden] == [
        ("golden-001.png", "green"),
        ("golden-002.png", "red"),
    ]
    document = json.loads(run(*words, "--json").stdout)
    assert document["unchanged"]
    assert document["agreement"] == 1.0


def test_a_repeated_release_is_unchanged_only_with_the_same_signers_and_intact_files(
    run: Run, key: Path, golden: Path, colour_model: Path, tmp_path: Path
) -> None:
    out, other = tmp_path / "served", tmp_path / "keys" / "other.pem"
    run("--new-key", other)
    words = (colour_model, "--version", 3, "--golden", golden, "--out", out, "--json", "--key", key)

    def signers() -> set[str]:
        return {one["key_id"] for one in json.loads((out / "release.json").read_text())["signatures"]}

    run(*words)
    both = json.loads(run(*words, "--key", other).stdout)
    assert not both["unchanged"]
    assert len(both["key_ids"]) == 2
    assert signers() == set(both["key_ids"])
    photo = out / "v3" / "golden-001.png"
    content = photo.read_bytes()
    for damage in (photo.unlink, lambda: photo.write_bytes(content[:-1] + b"x")):
        damage()
        assert not json.loads(run(*words, "--key", other).stdout)["unchanged"]
        assert photo.read_bytes() == content
    before = (out / "release.json").read_bytes()
    assert json.loads(run(*words, "--key", other).stdout)["unchanged"]
    assert (out / "release.json").read_bytes() == before


def test_a_damaged_release_in_the_folder_is_named_with_the_remedy(
    run: Run, key: Path, golden: Path, colour_model: Path, tmp_path: Path
) -> None:
    damaged = tmp_path / "served" / "release.json"
    damaged.parent.mkdir()
    damaged.write_text("{}")
    with pytest.raises(EdgeError) as error:
        run(colour_model, "--key", key, "--version", 2, "--golden", golden, "--out", damaged.parent)
    assert str(damaged) in error.value.got
    assert error.value.remedy == "restore it; or delete it, and use a --version above the last one"
    assert damaged.read_text() == "{}"


@pytest.mark.parametrize("name", ["a.jpg", pytest.param("a.HEIC", marks=pytest.mark.needs("heic"))])
def test_a_heic_golden_photo_is_refused_because_devices_may_not_read_it(
    run: Run, key: Path, golden: Path, colour_model: Path, tmp_path: Path, name: str
) -> None:
    (golden / "red" / name).write_bytes(HEIC)
    with pytest.raises(EdgeError, match=rf"every device can read; got the HEIC photo '.*{name}'; save it as JPEG"):
        run(colour_model, "--key", key, "--version", 1, "--golden", golden, "--out", tmp_path / "served")
    assert not (tmp_path / "served").exists()


def test_without_class_folders_the_models_own_answers_count(
    run: Run, key: Path, golden: Path, colour_model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "served"
    run(colour_model, "--key", key, "--version", 1, "--golden", golden / "red", "--out", out)
    release = verified_release((out / "release.json").read_bytes(), read_trusted_keys(key.parent))
    assert [photo.label for photo in release.golden] == ["red"]


def test_a_model_that_gets_its_golden_photos_wrong_is_not_published(
    run: Run, key: Path, golden: Path, colour_model: Path, tmp_path: Path
) -> None:
    (golden / "red" / "Photo 1.PNG").rename(golden / "green" / "2.png")
    words = (colour_model, "--key", key, "--version", 1, "--golden", golden, "--out", tmp_path / "served")
    with pytest.raises(ModelError, match=r"got 50\.0 % \(wrong: '.*2\.png'\)"):
        run(*words)
    assert not (tmp_path / "served").exists()
    assert run(*words, "--minimum-agreement", 0.5).exit_code == 0


def test_the_first_five_wrong_golden_photos_are_named(
    run: Run, key: Path, golden: Path, colour_model: Path, tmp_path: Path
) -> None:
    words = (colour_model, "--key", key, "--version", 1, "--golden", golden, "--out", tmp_path / "served")
    for number, told in ((5, r"w4\.png'\)"), (7, r"w4\.png' and 2 more\)")):
        for wrong in range(number):
            shutil.copyfile(golden / "red" / "Photo 1.PNG", golden / "green" / f"w{wrong}.png")
        with pytest.raises(ModelError, match=rf"\(wrong: '[^']*w0\.png', '[^']*w1\.png', .*{told}"):
            run(*words)


def test_what_cannot_be_published_is_told(
    run: Run, key: Path, golden: Path, colour_model: Path, tmp_path: Path
) -> None:
    assert "--version, --golden, --out missing" in str(run(colour_model, "--key", key).exception)
    whole = [colour_model, "--key", key, "--version", 1, "--golden", golden, "--out", tmp_path / "served"]
    assert "which devices can read" in str(run(*whole[:-1], tmp_path).exception)
    assert "16 hexadecimal digits" in str(run(*whole, "--revoke-key", "../x").exception)
    for more, message in (
        (["--base-url", "ftp://host/"], "base_url"),
        (["--channel", "a/b"], "channel"),
        (["--minimum-agreement", 0], "minimum_agreement"),
        (["--trust-key", key], "an Ed25519 public key"),
        (["--key", tmp_path / "none"], "a readable key file"),
    ):
        with pytest.raises(EdgeError, match=message):
            run(*whole, *more)
    (golden / "blue").mkdir()
    (golden / "red" / "Photo 1.PNG").rename(golden / "blue" / "1.png")
    with pytest.raises(EdgeError, match=r"a class of the model \(green, red\)"):
        run(*whole)
    assert not (tmp_path / "served").exists()
