"""Whether the phone page and `agridistill predict` decide alike, over photos in many forms.

    PYTHONPATH=. python benchmarks/phone_parity.py PHOTOS --site site --out docs/performance/phone_parity.json

The site is one that `agridistill app MODEL` wrote; the page runs in Chromium. Each photo of the data is turned into one
of many forms (size, EXIF orientation, file format, colour profile, grey), in turns and with a fixed seed. A verdict is
the same if its word is, and for an answer or "unsure" also the class, and for an unusable photo also the reason. Where
both decode the same pixels, the probabilities are compared as well. Exits with 1 if a limit does not hold.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from phone_latency import engine_for
from PIL import Image
from playwright.sync_api import sync_playwright
from reporting import machine, publish
from tests.app.phone import Phone, browser, decoded_view, serving
from tests.app.photo_forms import File, forms

import agridistill
from agridistill.data.folder import scan
from agridistill.preprocess import enough_pixels
from agridistill.runtime.backends import model_path

LEAST_SAME, LARGEST_DIFFERENCE = 0.995, 0.01


def chosen(folder: Path, count: int, random: np.random.Generator) -> list[Path]:
    """So many photos, the same number of each class as far as possible."""
    scanned = scan(folder)
    by_class = defaultdict(list)
    for sample in scanned.samples:
        by_class[sample.label].append(folder / sample.path)
    queues = [list(random.permutation(np.array(paths, object))) for paths in by_class.values()]
    taken: list[Path] = []
    while len(taken) < count and any(queues):
        taken += [queue.pop() for queue in queues if queue][: count - len(taken)]
    return taken


def words(verdict: str, label: str, problem: str) -> str:
    return {"answer": f"answer {label}", "unsure": f"unsure {label}", "unusable": f"unusable: {problem}"}.get(
        verdict, verdict
    )


def row(form: str, photo: Path, file: File, phone: Phone, predictor: agridistill.Predictor) -> dict[str, Any]:
    """What both make of one file."""
    ours = predictor.predict(file[0])
    theirs = phone.see(*file, view=True)
    expected = words(ours.verdict, ours.label, ours.problem)
    found = {"form": form, "photo": "/".join(photo.parts[-2:]), "expected": expected}
    if "error" in theirs:
        return found | {"got": theirs["error"], "same": False}
    levels = np.abs(theirs["view"].astype(int) - decoded_view(file[0], predictor.manifest.preprocessing))
    difference = np.abs(np.array(theirs["probabilities"]) - np.array(ours.probabilities)).max()
    got = words(theirs["verdict"], theirs["label"], theirs["problem"])
    side = min(Image.open(io.BytesIO(file[0])).size)
    return found | {
        "got": got,
        "same": got == expected,
        "same_label": theirs["label"] == ours.label,
        "same_pixels": not levels.any(),
        "mean_pixel_difference": round(float(levels.mean()), 3),
        "largest_pixel_difference": int(levels.max()),
        "probability": round(ours.probability, 4),
        "probability_difference": round(float(difference), 6),
        "ood_score": None if ours.ood_score is None else round(ours.ood_score, 4),
        "ood_difference": None if ours.ood_score is None else round(abs(ours.ood_score - theirs["oodScore"]), 6),
        "decoded_smaller_by_predict": side >= 2 * enough_pixels(predictor.manifest.preprocessing),
    }


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    alike = [each for each in rows if each.get("same_pixels")]
    by_form = {
        form: {
            "photos": len(of_form),
            "same": sum(each["same"] for each in of_form),
            "same_pixels": sum(bool(each.get("same_pixels")) for each in of_form),
            "mean_pixel_difference": round(
                float(np.mean([each.get("mean_pixel_difference", 0) for each in of_form])), 3
            ),
            "largest_probability_difference": max(each.get("probability_difference", 0) for each in of_form),
        }
        for form in dict.fromkeys(each["form"] for each in rows)
        if (of_form := [each for each in rows if each["form"] == form])
    }
    return {
        "photos": len(rows),
        "same_verdicts": sum(each["same"] for each in rows),
        "same_verdict_share": round(sum(each["same"] for each in rows) / len(rows), 4),
        "same_pixels": len(alike),
        "same_verdicts_of_same_pixels": sum(each["same"] for each in alike),
        "largest_probability_difference_of_same_pixels": max(
            (each["probability_difference"] for each in alike), default=None
        ),
        "largest_ood_difference_of_same_pixels": max((each["ood_difference"] or 0 for each in alike), default=None),
        "verdicts": dict(Counter(each["expected"].split(" ")[0].rstrip(":") for each in rows)),
        "different": [each for each in rows if not each["same"]],
        "by_form": by_form,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--site", type=Path, required=True)
    parser.add_argument("--model", default=str(model_path("tomato", for_page=True)), help="the model of the page")
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    random = np.random.default_rng(given.seed)
    made = list(forms(random).items())
    predictor = agridistill.load(given.model, engine=engine_for(given.model), threads=1)
    rows = []
    with (
        tempfile.TemporaryDirectory() as profile,
        sync_playwright() as playwright,
        serving(given.site) as server,
        browser(playwright, Path(profile)) as (context, _),
    ):
        phone = Phone.of(context.new_page()).open(server.address)
        for number, path in enumerate(chosen(given.photos, given.count, random)):
            form, make = made[number % len(made)]
            with Image.open(path) as image:
                rows.append(row(form, path, make(image.convert("RGB")), phone, predictor))
            print(f"\r{number + 1}", end="", file=sys.stderr, flush=True)
        agent = phone.page.evaluate("navigator.userAgent.match(/Chrom[a-z]*.[0-9.]+/)[0]")
    document = {
        "machine": machine(),
        "browser": agent,
        "model": given.model.split("/")[-1],
        "seed": given.seed,
        **summary(rows),
    }
    publish(document, given.out)
    difference = document["largest_probability_difference_of_same_pixels"]
    holds = document["same_verdict_share"] >= LEAST_SAME and difference is not None and difference <= LARGEST_DIFFERENCE
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
