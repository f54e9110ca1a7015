"""A report shows what its files say, and is one page that needs nothing else."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from tests.report.conftest import Reported

from agridistill.cli.main import main
from agridistill.errors import RunError
from agridistill.report import plots, words
from agridistill.report.page import overlay, provenance, read_documents, report
from agridistill.report.plots import Plot, pareto, series_style
from agridistill.report.words import glossary
from agridistill.version import __version__


def test_every_figure_of_the_study_stands_in_the_page(reported: Reported) -> None:
    page = reported.page
    for shown in ("86.00 ±", "90.00 ± 1.00", "+4.00", "+1.00 to +7.00", "resnet18", "600 M", "11.00 M", "p = 0.15"):
        assert shown in page
    assert "hybrid is the best method on the validation split; on the test split it reaches 90.0 %" in page
    assert "is above zero: hybrid is better than ce here" in page


def test_test_photos_that_the_teacher_has_learnt_are_reported(study: Path, reported: Reported) -> None:
    assert "that no model has learnt from" in reported.page
    assert "it learnt from 100 % of the labels" in reported.page
    shutil.rmtree(study / "evidence")
    document = json.loads((study / "compare.json").read_text())
    document["teacher"]["test_photos_learnt"] = 7
    (study / "compare.json").write_text(json.dumps(document))
    page = report(study).page.read_text()
    assert "that no model has learnt from" not in page
    assert "had learnt from 7 of the 20 test photos" in page


def test_single_models_are_named_with_their_budget_and_stale_evidence_is_left_out(reported: Reported) -> None:
    page = reported.page
    assert "Worst mistakes of hybrid (full, seed 0)" in page
    assert "old-best" not in page


def test_accuracy_above_chance_without_the_leaf_is_attributed_to_ground_or_outline(reported: Reported) -> None:
    page = reported.page
    assert page.count("it uses the ground, or the outline of the mask") == 1  # of ce; hybrid's interval holds it


def test_nothing_is_claimed_about_the_ground_where_masks_hold_on_few_photos() -> None:
    robust = {"photos": 20, "accuracy": 0.9, "mean_corrupted_accuracy": 0.6, "chance": 0.5, "masked_photos": 4}
    robust |= {"corruptions": [{"name": "blur", "accuracies": [0.9, 0.8]}], "leaf_masked_accuracy": None}
    lines = words.evidence_summary("kd", {"robustness": robust, "selective": {"accuracy": None}})
    assert not [line for line in lines if "with the leaf masked" in line]
    assert lines[1].startswith("It is not known whether kd uses the ground for its answers.")
    assert "4 of 20 photos, and at least half are needed" in lines[1]


def test_every_series_looks_different() -> None:
    looks = [tuple(str(value) for value in series_style(index).values()) for index in range(40)]
    assert len(set(looks)) == 40


def test_plots_have_labels_for_screen_readers_and_share_no_ids(reported: Reported) -> None:
    page = reported.page
    labels = re.findall(r'<svg role="img" aria-label="([^"]+)"', page)
    assert len(labels) == page.count("<svg")
    by_picture = [set(re.findall(r' id="([^"]+)"', svg)) for svg in re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)]
    clips = [{name for name in names if re.fullmatch(r"p[0-9a-f]{8,}", name)} for names in by_picture]
    assert sum(len(names) for names in clips) == len(set().union(*clips)) > 0


def test_odd_names_are_drawn_as_they_are(study: Path) -> None:
    document = json.loads((study / "compare.json").read_text())
    document["budgets"][1]["name"] = "../$\\frac$"
    document["evidence"]["budget"] = "../$\\frac$"
    (study / "compare.json").write_text(json.dumps(document))
    evidence = json.loads((study / "evidence/ce.json").read_text())
    evidence["mistakes"][0]["path"] = "late/\udce4.jpg"
    (study / "evidence/ce.json").write_text(json.dumps(evidence))
    evaluation = json.loads((study / "runs/full/hybrid-0/evaluation.json").read_text())
    evaluation["classes"][0] = "r\udcfcst"
    (study / "runs/full/hybrid-0/evaluation.json").write_text(json.dumps(evaluation))
    result = report(study)
    assert all(file.parent == study / "figures" for file in (*result.plots, *result.numbers))
    assert "late/\\udce4.jpg" in result.page.read_text()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("compare.json", "{}"),
        ("compare.json", '{"format_version": 99}'),
        ("compare.json", '{"format_version": 1, "budgets": []}'),
        ("evidence/ce.json", "{}"),
        ("evidence/gallery.json", "[]"),
    ],
)
def test_files_of_another_kind_are_refused(study: Path, name: str, content: str) -> None:
    (study / name).write_text(content)
    with pytest.raises(RunError, match="result files"):
        report(study)


def test_the_page_is_complete_in_itself_and_small(reported: Reported) -> None:
    page = reported.page
    assert len(page) < 10_000_000
    # Nothing is fetched: every source is data, and no sheet, script or font comes from elsewhere.
    assert all(source.startswith("data:") for source in re.findall(r'<img[^>]* src="([^"]*)"', page))
    assert not re.search(r"<script|<iframe|@import|url\(http|<link[^>]*href=\"(?!data:)", page)


def test_the_best_method_is_held_against_every_other_one(reported: Reported) -> None:
    page = reported.page
    found = (
        "Differences of hybrid, the best on the validation split, to the other methods, in points on the test split: "
    )
    assert f"{found}ce +4.00 (+1.00 to +7.00); kd +3.00 (-1.00 to +7.00)*." in page


def test_names_from_outside_are_text_and_not_markup(reported: Reported) -> None:
    page = reported.page
    assert "<b>1</b>" not in page
    assert "&lt;b&gt;1&lt;/b&gt;" in page
    assert "<healthy>" not in page
    assert "&lt;healthy&gt;" in "".join(re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL))


@pytest.mark.filterwarnings("error")
def test_classes_of_every_script_are_text_for_the_readers_fonts(study: Path) -> None:
    for file in study.rglob("*.json"):
        file.write_text(file.read_text().replace("Tomato___Late_blight", "稻瘟病 பூஞ்சை"))
    pictures = re.findall(r"<svg.*?</svg>", report(study).page.read_text(), flags=re.DOTALL)
    assert any(">稻瘟病 பூஞ்சை</text>" in picture for picture in pictures)


def test_each_plot_has_its_numbers_beside_it_and_in_the_page(reported: Reported) -> None:
    result, page = reported.result, reported.page
    names = {file.stem for file in result.numbers}
    assert names >= {
        "accuracy-against-mmacs",
        "accuracy-against-latency-ms-p50",
        "accuracy-against-size-mb",
        "differences-few",
        "differences-full",
        "learning-curves-full",
        "confusion-hybrid",
        "reliability",
        "coverage",
        "robustness",
    }
    for file in result.numbers:
        assert file.parent == reported.folder / "figures"
        link = re.search(rf'download="{file.name}" href="data:application/json;base64,([^"]*)"', page)
        assert link
        assert json.loads(base64.b64decode(link[1])) == json.loads(file.read_text())
    assert page.count("<svg") == len(result.numbers) == len(result.plots)
    for file in result.plots:  # each opens by itself
        assert ElementTree.parse(file).getroot().tag == "{http://www.w3.org/2000/svg}svg"  # noqa: S314 - our own
    shown = json.loads((reported.folder / "figures/differences-full.json").read_text())
    assert shown[0]["name"] == "hybrid"
    assert (shown[0]["points"], shown[0]["points_ci95"]) == (4.0, [1.0, 7.0])


def test_each_plot_of_a_budget_says_which(reported: Reported) -> None:
    page = reported.page
    captions = re.findall(r"<figcaption>(.*?) <a", page)
    assert [caption.split(": ")[0] for caption in captions if "Difference to" in caption] == ["few", "full"]
    assert [caption.split(": ")[0] for caption in captions if "by epoch" in caption] == ["few", "full"]


def test_bins_of_few_photos_are_in_the_numbers_only() -> None:
    few = {"from": 0.1, "to": 0.2, "photos": 9, "confidence": 0.15, "accuracy": 1.0}
    many = {"from": 0.8, "to": 0.9, "photos": 10, "confidence": 0.85, "accuracy": 0.8}
    both, one = (plots.reliability({"ce": {"reliability": bins}}) for bins in ([few, many], [many]))
    assert both.numbers == {"ce": [few, many]}
    assert both.svg == one.svg


def test_gallery_and_mistakes_name_classes_as_the_tables_do(reported: Reported) -> None:
    page = reported.page
    assert "is <b>Late blight</b>" in page  # a mistake
    assert "\n<b>Late blight</b>" in page  # the gallery
    assert ">Tomato " not in page


def test_the_same_files_give_the_same_page(reported: Reported) -> None:
    assert report(reported.folder).page.read_text() == reported.page


@pytest.mark.parametrize("missing", [["evidence"], ["benchmark.json", "runs", "evidence/gallery.json"]])
def test_what_is_not_there_is_left_out(study: Path, missing: list[str]) -> None:
    for path in (study / name for name in missing):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    page = report(study).page.read_text()
    assert ("are missing:" in page) == (missing == ["evidence"])
    assert ("<dt>Trained on</dt>" in page) == ("runs" not in missing)
    assert "90.00 ± 1.00" in page


def test_the_page_says_when_with_what_and_where_its_results_were_made(study: Path, reported: Reported) -> None:
    found = dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", reported.page))
    assert re.fullmatch(r"\d{2} \w+ \d{4}, \d{2}:\d{2} UTC", found["Results of"])
    assert found["Trained with"] == "AgriDistill 0.0.9, torch 2.9.0, python 3.12.1"
    assert found["Trained on"] == "NVIDIA H200; Cortex-A76, 4 cores"
    assert found["Speed measured on"] == "Raspberry Pi 5, 4 cores; Linux-6.6"
    data = "&#39;/data/my photos&#39;"
    assert found["By"] == f"agridistill compare {data} --recipe RECIPE --out {reported.folder}"
    assert found["This page by"] == f"agridistill report {reported.folder}, AgriDistill {__version__}"
    os.utime(study / "compare.json", (2_000_000_000, 2_000_000_000))
    assert dict(provenance(read_documents(study)))["Results of"] == "18 May 2033, 03:33 UTC"


def test_the_page_says_by_which_command_a_single_model_was_trained(student_run: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(student_run, tmp_path / "student"))
    environment = json.loads((folder / "environment.json").read_text())
    found = dict(provenance(read_documents(folder)))
    rest = f"--recipe {folder}/recipe.toml --out {folder}"
    assert found["By"] == f"agridistill train {environment['data']} {rest}"
    assert (folder / "recipe.toml").exists()
    (folder / "environment.json").write_text(json.dumps(environment | {"teacher": "runs/teacher"}))
    found = dict(provenance(read_documents(folder)))
    assert found["By"] == f"agridistill distill {environment['data']} --teacher runs/teacher {rest}"


def test_the_terms_of_the_page_are_explained_and_no_others(reported: Reported) -> None:
    terms = re.findall(r"<dt>(.*?)</dt>", reported.page.partition('<dl class="terms">')[2])
    assert {"F1", "macro-F1", "calibration error", "leaf-disjoint", "MACs", "McNemar", "p", "ce", "hybrid"} <= set(
        terms
    )
    assert not {"at", "fitnet", "student"} & set(terms)
    assert [term for term, _ in glossary("<p>Look at a hybrid of 2 M parameters.</p><svg>F1</svg>")] == ["parameters"]


def test_a_single_run_has_a_report_of_its_own(student_run: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(student_run, tmp_path / "student"))
    result = report(folder)
    assert {file.stem for file in result.numbers} == {"learning-curve", "confusion-student"}
    evaluation = json.loads((folder / "evaluation.json").read_text())
    assert (
        f"recognises {100 * evaluation['accuracy']:.1f} % of {evaluation['photos']} photos" in result.page.read_text()
    )
    curve = json.loads((folder / "figures/learning-curve.json").read_text())["student"][0]
    assert len(curve) == 2


def test_a_folder_whose_name_is_no_text_has_a_report(student_run: Path, tmp_path: Path) -> None:
    try:
        folder = Path(shutil.copytree(student_run, tmp_path / "br\udcfbche"))
    except OSError:
        pytest.skip("this file system takes names of text alone")
    assert "br\\udcfbche" in report(folder).page.read_text()


def test_a_term_that_an_epoch_did_not_have_is_no_damage(student_run: Path, tmp_path: Path) -> None:
    shutil.copytree(student_run, tmp_path / "run")
    metrics = tmp_path / "run" / "metrics.csv"
    header, first, second = metrics.read_text().splitlines()
    metrics.write_text(f"{header},train/hint\n{first},0.5\n{second},\n")
    curves = json.loads((report(tmp_path / "run").page.parent / "figures/learning-curve.json").read_text())
    assert len(curves["run"][0]) == 2


def test_evaluate_gathers_what_a_report_of_any_model_shows(
    student_run: Path, leaves: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "evidence-of-student"
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", str(student_run), str(leaves), "--evidence", str(folder)])
    assert ended.value.code == 0
    assert f"Next: agridistill report {folder}" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(["report", str(folder), "--json"])
    assert ended.value.code == 0
    page = Path(json.loads(capsys.readouterr().out)["page"]).read_text()
    document = json.loads((folder / "evidence" / "student.json").read_text())
    evaluation = json.loads((folder / "evaluation.json").read_text())
    assert document["robustness"]["accuracy"] == evaluation["accuracy"]
    assert document["selective"]["curve"][-1] == {"coverage": 1.0, "accuracy": evaluation["accuracy"]}
    gap = sum(one["photos"] * abs(one["confidence"] - one["accuracy"]) for one in document["reliability"])
    assert gap / evaluation["photos"] == pytest.approx(evaluation["calibration_error"], abs=1e-6)
    wrong = round((1 - evaluation["accuracy"]) * evaluation["photos"])
    assert 0 < len(document["mistakes"]) <= min(wrong, 12)
    assert page.count("attention of student") == evaluation["leaves"] == 6  # one photo of each leaf
    assert "further away" in page


@pytest.mark.parametrize("name", ["compare.json", "evidence/ce.json", "evidence/gallery.json", "benchmark.json"])
def test_a_damaged_file_is_named(study: Path, name: str) -> None:
    (study / name).write_text("{")
    with pytest.raises(RunError, match=rf"a result file in JSON; got a damaged '.*{name}'"):
        report(study)
    assert not (study / "report.html").exists()


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"compare.json or evaluation.json; got .*agridistill compare"):
        report(tmp_path)
    with pytest.raises(RunError, match="a folder with results; got"):
        report(tmp_path / "none")


def test_a_models_weakest_class_is_named_in_plain_words() -> None:
    labels = ["Tomato___Late_blight", "Tomato___healthy"]
    scores = [{"class": labels[0], "f1": 0.5, "photos": 7}, {"class": labels[1], "f1": 0.9, "photos": 9}]
    evaluation = {"model": "resnet18", "accuracy": 0.75, "accuracy_ci95": [0.5, 0.9], "photos": 16, "leaves": 4}
    lines = words.model_summary("student", {**evaluation, "split": "test", "classes": labels, "per_class": scores})
    assert lines[1] == "It is weakest on Late blight (F1 0.50 over 7 photos)."


def test_verdicts_claim_no_more_than_intervals() -> None:
    def verdict_of(low: float, high: float, alone: bool = False) -> str:
        found = {"points": (low + high) / 2, "points_ci95": [low, high], "of_leaves_alone": alone}
        return words.verdict({"name": "kd", "difference": found}, "ce")

    assert verdict_of(0.1, 2).endswith("kd is better than ce here.")
    assert verdict_of(-2, -0.1).endswith("kd is worse than ce here.")
    assert verdict_of(0.1, 2, alone=True).endswith("it may be chance in the training, so it is no evidence.")
    for low, high in ((-1, 2), (0.0, 2), (-2, 0.0)):
        assert verdict_of(low, high).endswith("there is no evidence that kd and ce differ.")


def test_equal_costs_have_two_ticks_to_be_read_by(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks: list[str] = []
    to_plot = plots._to_plot

    def kept(figure: Figure, *words: Any) -> Plot:
        figure.draw_without_rendering()
        low, high = figure.axes[0].get_xlim()
        ticks.extend(f"{tick:g}" for tick in figure.axes[0].get_xticks() if low <= tick <= high)
        return to_plot(figure, *words)

    monkeypatch.setattr(plots, "_to_plot", kept)
    plots.trade_off([{"name": name, "accuracy": 0.7, "macs": 18.8} for name in "ab"], x="macs", label="MACs")
    assert ticks == ["10", "20"]


def test_pareto_keeps_what_nothing_beats_in_both() -> None:
    rng = np.random.default_rng(0)
    points = [(float(cost), float(value)) for cost, value in rng.random((60, 2)).round(1)]
    kept = {points[index] for index in pareto(points)}
    for cost, value in points:
        beaten = any((c <= cost and v > value) or (c < cost and v >= value) for c, v in points)
        assert ((cost, value) in kept) != beaten


def test_an_overlay_is_yellow_where_the_model_looks() -> None:
    grey = Image.new("RGB", (40, 40), (128, 128, 128))
    held = io.BytesIO()
    grey.save(held, "JPEG")
    uri = "data:image/jpeg;base64," + base64.b64encode(held.getvalue()).decode()
    laid = overlay(uri, [[0.0, 0.0], [0.0, 9.0]])
    pixels = np.array(Image.open(io.BytesIO(base64.b64decode(laid.partition("base64,")[2]))).convert("RGB")).astype(int)
    assert pixels.shape == (40, 40, 3)
    assert pixels[35, 35, 0] > pixels[35, 35, 2] + 40  # yellow: red and green, no blue
    assert pixels[5, 5, 2] >= pixels[5, 5, 0]
    assert overlay(uri, [[1.0, 1.0]]).startswith("data:image/jpeg")  # a flat map has no range to divide by
