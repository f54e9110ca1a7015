"""`agridistill evaluate NEW DATA --against OLD`, and what `publish` does with its result."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.cli.running import Capture, run
from tests.colour_backend import colour_photo
from tests.edge.updates.conftest import model_like

import agridistill
from agridistill.edge.updates.release import stored_release
from agridistill.errors import ConfigError
from agridistill.evaluation.evaluate import EvaluationResult
from agridistill.manifest import sha256_of

SCHEMA = Path(__file__).parents[2] / "docs" / "schemas" / "proof.schema.json"
PHOTOS = 130  # models that never differ prove a loss of at most 3 points with 125 photos

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Green and red photos, each of a leaf of its own; ten of the red ones look green."""
    folder = tmp_path_factory.mktemp("reviewed")
    for number in range(PHOTOS // 2):
        colour_photo(folder / "green" / f"{number}.jpg", "green", seed=number)
        colour_photo(folder / "red" / f"{number}.jpg", "red" if number > 9 else "green", seed=100 + number)
    return folder


@pytest.fixture
def new(colour_model: Path, tmp_path: Path) -> Path:
    return model_like(colour_model, tmp_path / "new" / "leaf.onnx", padding=1000)


@pytest.fixture
def worse(colour_model: Path, tmp_path: Path) -> Path:
    """It calls green red, and red green."""
    return model_like(colour_model, tmp_path / "worse" / "leaf.onnx", padding=900, classes=("red", "green"))


@pytest.fixture
def prove(capsys: Capture, colour_model: Path, data: Path) -> Run:
    def compare(new: Path, *more: object, old: Path = colour_model) -> tuple[int, str, str]:
        return run(capsys, "evaluate", new, data, "--split", "all", "--against", old, *more)

    return compare


def test_a_model_that_is_as_good_holds_and_its_file_fits_the_schema(
    prove: Run, new: Path, colour_model: Path, data: Path, tmp_path: Path
) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    out = tmp_path / "proof.json"
    code, stdout, stderr = prove(new, "--out", out, "--json")
    document = json.loads(stdout)
    assert code == 0
    assert document == json.loads(out.read_text())
    schema = json.loads(SCHEMA.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(document, schema)
    assert set(document) == set(schema["properties"])
    assert [document[name]["sha256"] for name in ("new", "old")] == [sha256_of(new), sha256_of(colour_model)]
    assert EvaluationResult.from_json(document["new"]["evaluation"]).accuracy == pytest.approx(120 / 130)
    assert document["command"].startswith(f"agridistill evaluate {new} {data} --against {colour_model} --split all")
    assert document["command"].endswith("--max-drop 3 --max-class-drop 10")
    assert document["verdict"]["headline"] in stderr.splitlines()
    assert stderr.splitlines()[-1] == f"Next: agridistill publish {new} --against {out}"
    # The same photos have the same fingerprint, a further photo has another.
    shutil.copytree(data, tmp_path / "copy")
    again = agridistill.evaluate(new, tmp_path / "copy", split="all", against=colour_model)
    assert again.data_fingerprint == document["data"]["fingerprint"]
    colour_photo(tmp_path / "copy" / "red" / "more.jpg", "red", seed=1000)
    more = agridistill.evaluate(new, tmp_path / "copy", split="all", against=colour_model)
    assert more.data_fingerprint != again.data_fingerprint


def test_a_worse_model_does_not_hold(prove: Run, worse: Path, tmp_path: Path) -> None:
    code, stdout, stderr = prove(worse, "--out", tmp_path / "proof.json")
    assert code == 1
    assert "Does not hold: accuracy falls by more than 3 points: -84.6 points" in stdout
    assert "only the old is right  120 photos" in stdout
    assert "Next:" not in stderr
    assert json.loads((tmp_path / "proof.json").read_text())["verdict"]["holds"] is False


def test_too_few_photos_show_nothing(
    capsys: Capture, new: Path, colour_model: Path, data: Path, tmp_path: Path
) -> None:
    for name in ("green", "red"):
        for number in range(20, 40):
            (tmp_path / "few" / name).mkdir(parents=True, exist_ok=True)
            shutil.copy(data / name / f"{number}.jpg", tmp_path / "few" / name)
    words = ("evaluate", new, tmp_path / "few", "--split", "all", "--against", colour_model)
    code, out, _ = run(capsys, *words)
    assert code == 1
    assert "Not shown: with 40 photos, a loss of more than 3 points cannot be excluded: +0.0 points" in out
    assert "About 130 photos like these would exclude a loss of more than 3 points." in out
    assert run(capsys, *words, "--max-drop", 9)[0] == 0


def test_unusable_input_is_one_line(prove: Run, new: Path, colour_model: Path, tmp_path: Path) -> None:
    other = model_like(colour_model, tmp_path / "other" / "tree.onnx", classes=("oak", "elm"))
    for words, message in (
        ((new, "--split", "train"), "a split of new photos to compare models; got 'train'"),
        ((new, "--evidence", tmp_path / "e"), "--evidence is about one model"),
        ((new, "--max-drop", "-1"), "--max-drop"),
        ((tmp_path / "none.onnx",), "which does not exist"),
        ((new, "--out", new), "a new file or an earlier result for --out"),
    ):
        code, out, err = prove(*words)
        assert (code, out) == (2, ""), words
        assert message in err.replace("\n", " "), words
    code, out, err = prove(new, old=other)
    assert (code, out) == (2, "")
    assert "photos of a class that both models know; got classes of the old model: oak, elm" in err


def test_the_rule_needs_an_old_model(capsys: Capture, new: Path, data: Path) -> None:
    code, _, err = run(capsys, "evaluate", new, data, "--max-drop", 5)
    assert code == 2
    assert "need --against OLD" in err
    with pytest.raises(ConfigError, match="'max_drop' only with 'against'"):
        agridistill.evaluate(new, data, max_drop=5)  # type: ignore[call-overload]
    with pytest.raises(ConfigError, match="a number from 0 to 100 for 'max_class_drop'"):
        agridistill.evaluate(new, data, against=new, max_class_drop=101)


def test_photos_that_a_model_has_learnt_are_told(
    teacher_run: Path, student_run: Path, leaves: Path, capsys: Capture, caplog: pytest.LogCaptureFixture
) -> None:
    code, out, _ = run(capsys, "evaluate", student_run, leaves, "--against", teacher_run, "--split", "all", "--json")
    document = json.loads(out)
    learnt = len(json.loads((teacher_run / "splits.json").read_text())["splits"]["train"])
    assert code == 1
    assert document["old"]["learnt_photos"] == learnt
    assert "the old model was trained on: the result will be too high" in caplog.text
    assert any("the new model has learnt from" in each.lower() for each in told(document))
    # Its own test photos are new to both.
    _, out, _ = run(capsys, "evaluate", student_run, leaves, "--against", teacher_run, "--json")
    assert [json.loads(out)[name]["learnt_photos"] for name in ("new", "old")] == [0, 0]


def told(document: dict[str, Any]) -> list[str]:
    return [document["verdict"]["headline"], *document["verdict"]["remarks"]]


def test_long_names_leave_the_table_in_one_piece(
    prove: Run, new: Path, monkeypatch: pytest.MonkeyPatch, colour_model: Path
) -> None:
    from agridistill.cli import output

    monkeypatch.setattr(output, "has_room", lambda table: False)
    monkeypatch.setattr(output, "_parts", lambda table: [table])
    _, out, _ = prove(new)
    lines = [line.split() for line in out.splitlines()]
    assert ["1", "100.0", "%", "100.0", "%", "+0.0", "65"] in lines
    assert ["2", "red"] in lines


@pytest.fixture
def publish(capsys: Capture, tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Publishes a model in the version; of the reviewed photos, too many for a release, some become golden ones."""
    monkeypatch.setattr("agridistill.edge.updates.publishing.MAX_GOLDEN_PHOTOS", 100)
    run(capsys, "publish", "--new-key", tmp_path / "keys" / "release.pem")

    def release(model: Path, version: int, *more: object) -> tuple[int, str, str]:
        words = ("--key", tmp_path / "keys" / "release.pem", "--golden", data, "--minimum-agreement", 0.1)
        return run(
            capsys, "publish", model, *words, "--version", version, "--out", tmp_path / "served", "--json", *more
        )

    return release


def test_another_model_is_released_only_with_a_proof(
    prove: Run, publish: Run, new: Path, colour_model: Path, tmp_path: Path
) -> None:
    served, proof = tmp_path / "served", tmp_path / "proof.json"
    assert json.loads(publish(colour_model, 1)[1])["proof"] == "not needed"
    before = (served / "release.json").read_bytes()
    code, _, err = publish(new, 2)
    assert code == 2
    assert f"a proof that '{new}' is no worse than version 1; got none; run `agridistill evaluate {new} PHOTOS" in err
    assert f"--against {served / 'v1' / 'colour.onnx'} --out proof.json`" in err
    assert prove(new, "--out", proof, old=served / "v1" / "colour.onnx")[0] == 0
    assert json.loads(publish(new, 2, "--against", proof)[1])["proof"] == "holds"
    release = stored_release((served / "release.json").read_bytes())
    assert (served / "release.json").read_bytes() != before
    # Devices get the proof, signed; it does not say where the publisher keeps photos and models.
    assert "proof.json" in [file.name for file in release.files]
    content = (served / "v2" / "proof.json").read_text()
    assert str(tmp_path) not in content
    assert json.loads(content)["verdict"]["holds"] is True
    assert [golden.label for golden in release.golden] == ["green"] * 5 + ["red"] * 5
    # The same command again changes nothing, also without the old model.
    assert json.loads(publish(new, 2, "--against", proof)[1])["unchanged"] is True
    # The same model needs no proof, for example to change keys.
    assert json.loads(publish(new, 3)[1])["proof"] == "not needed"


def test_what_proves_nothing_is_refused(
    prove: Run, publish: Run, new: Path, worse: Path, colour_model: Path, tmp_path: Path
) -> None:
    proofs = {name: tmp_path / f"{name}.json" for name in ("bad", "good", "old")}
    prove(worse, "--out", proofs["bad"])
    prove(new, "--out", proofs["good"])
    prove(new, "--out", proofs["old"], old=worse)
    publish(colour_model, 1)
    release = (tmp_path / "served" / "release.json").read_bytes()
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "text.json").write_text("proof")
    (tmp_path / "evaluation.json").write_text('{"accuracy": 1}')
    for model, file, message in (
        (worse, proofs["bad"], "a proof that holds; got '" + str(proofs["bad"]) + "': Does not hold: accuracy falls"),
        (worse, proofs["good"], f"a proof about '{worse}' (sha256 {sha256_of(worse)[:12]}…); got '{proofs['good']}'"),
        (new, proofs["old"], f"a proof against the released model (sha256 {sha256_of(colour_model)[:12]}…)"),
        (new, tmp_path / "none.json", "No such file"),
        (new, tmp_path / "text.json", "which is not JSON"),
        (new, tmp_path / "list.json", "document: "),
        (new, tmp_path / "evaluation.json", "(format_version: Field required)"),
    ):
        code, out, err = publish(model, 2, "--against", file)
        assert (code, out) == (2, ""), file
        assert message in err, file
        assert "Traceback" not in err
    assert (tmp_path / "served" / "release.json").read_bytes() == release
    assert not (tmp_path / "served" / "v2").exists()
    assert "not both" in publish(new, 2, "--against", proofs["good"], "--without-proof")[2]


def test_a_release_without_proof_says_so(publish: Run, worse: Path, colour_model: Path, tmp_path: Path) -> None:
    publish(colour_model, 1)
    assert json.loads(publish(worse, 2, "--without-proof")[1])["proof"] == "without"
    assert json.loads((tmp_path / "served" / "v2" / "proof.json").read_text()) == {
        "format_version": 1,
        "without_proof": True,
    }


def test_a_release_of_another_channel_is_no_way_around_the_proof(
    publish: Run, worse: Path, colour_model: Path, tmp_path: Path
) -> None:
    publish(colour_model, 1)
    before = (tmp_path / "served" / "release.json").read_bytes()
    code, _, err = publish(worse, 2, "--channel", "potato")
    assert code == 2
    assert "a folder of its own for the releases of the channel 'potato'" in err
    assert "whose last release is for the channel 'default'; publish to another --out" in err
    assert (tmp_path / "served" / "release.json").read_bytes() == before
    assert publish(worse, 2, "--channel", "potato", "--without-proof")[0] == 0


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("data", None, "(data: Input should be a valid dictionary)"),
        ("mcnemar_p_value", float("nan"), "which is not JSON"),
        ("verdict", {"holds": True, "level": "fails", "headline": "Does not hold"}, "but level is 'fails'"),
        ("verdict", {"holds": 1, "level": "holds", "headline": "Holds"}, "(verdict.holds: Input should be a valid"),
    ],
)
def test_a_damaged_proof_is_one_line(
    prove: Run, publish: Run, new: Path, colour_model: Path, tmp_path: Path, part: str, value: object, message: str
) -> None:
    publish(colour_model, 1)
    file = tmp_path / "proof.json"
    prove(new, "--out", file)
    file.write_text(json.dumps({**json.loads(file.read_text()), part: value}))
    code, out, err = publish(new, 2, "--against", file)
    assert (code, out) == (2, "")
    assert message in err


def test_publish_prints_what_the_proof_allows(prove: Run, publish: Run, worse: Path, tmp_path: Path) -> None:
    file = tmp_path / "proof.json"
    assert prove(worse, "--out", file, "--max-drop", 100, "--max-class-drop", 100)[0] == 0
    _, out, _ = publish(worse, 1, "--against", file)
    assert json.loads(out)["proof_headline"].startswith("Holds: accuracy changes by -84.6 points")


def test_a_first_release_may_have_a_proof(prove: Run, publish: Run, new: Path, worse: Path, tmp_path: Path) -> None:
    prove(worse, "--out", tmp_path / "bad.json")
    prove(new, "--out", tmp_path / "good.json")
    assert "a proof that holds" in publish(worse, 1, "--against", tmp_path / "bad.json")[2]
    assert json.loads(publish(new, 1, "--against", tmp_path / "good.json")[1])["proof"] == "holds"


def test_a_model_with_the_proofs_name_is_refused(prove: Run, publish: Run, colour_model: Path, tmp_path: Path) -> None:
    model = model_like(colour_model, tmp_path / "named" / "proof.onnx", padding=500)
    prove(model, "--out", tmp_path / "out.json")
    assert "rename the model" in publish(model, 1, "--against", tmp_path / "out.json")[2]


def test_an_interrupted_write_leaves_the_last_proof(
    prove: Run, new: Path, worse: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "proof.json"
    prove(new, "--out", out)
    before = out.read_bytes()

    def full(self: Path, *words: object, **options: object) -> int:
        with self.open("w") as file:
            file.write('{"half": ')
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    code, _, err = prove(worse, "--out", out)
    assert code == 2
    assert "a full disk" in err
    assert out.read_bytes() == before
    assert [path.name for path in tmp_path.glob(".proof*")] == []


def test_a_release_does_not_name_the_photos_of_the_publisher(
    capsys: Capture, publish: Run, new: Path, colour_model: Path, data: Path, tmp_path: Path
) -> None:
    mine = Path(shutil.copytree(data, tmp_path / "mine"))
    (mine / "red" / "farm of a neighbour.jpg").write_bytes(b"no photo")
    words = ("evaluate", new, mine, "--split", "all", "--against", colour_model, "--out", tmp_path / "proof.json")
    assert run(capsys, *words)[0] == 0
    assert publish(new, 1, "--against", tmp_path / "proof.json")[0] == 0
    released = (tmp_path / "served" / "v1" / "proof.json").read_text()
    assert "neighbour" not in released
    assert json.loads(released)["new"]["evaluation"]["skipped"] == 1
