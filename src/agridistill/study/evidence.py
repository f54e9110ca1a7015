"""A study's evidence beyond its scores: for the best method, the baseline and the teacher, made once and kept."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agridistill.data.labels import FOLDERS, Layout
from agridistill.errors import ModelError
from agridistill.evaluation.evidence import FORMAT_VERSION, gather_evidence, read_evidence
from agridistill.evaluation.held_out import SplitChoice, choose_photos
from agridistill.evaluation.robustness import MOST_PHOTOS
from agridistill.manifest import read_manifest
from agridistill.models.saved import load_backend
from agridistill.progress import ProgressCallback, begin, silent
from agridistill.storage import write_json
from agridistill.study.gallery import gallery
from agridistill.training.run_folder import RunFolder

logger = logging.getLogger(__name__)


def gather_for(
    runs: Mapping[str, Path],
    data: Path,
    folder: Path,
    *,
    layout: Layout = FOLDERS,
    most_photos: int = MOST_PHOTOS,
    progress: ProgressCallback = silent,
) -> None:
    """Writes `NAME.json` for each run and one `gallery.json`; what is there already for the same weights is kept.

    Args:
        runs: run folders by name; all of one data folder.
        data: the photos.
        folder: to write to.
        layout: how the labels are found.
        most_photos: for robustness.
        progress: told how far each part is.

    Raises:
        AgriDistillError: a model, the data or what was kept cannot be used.
    """
    for name, run in runs.items():
        backend = load_backend(run)
        file = folder / f"{name}.json"
        kept = read_evidence(file)
        if kept is not None and kept["weights_sha256"] == backend.manifest.weights_sha256:
            continue
        splits = RunFolder(run).splits
        write_json(
            file,
            gather_evidence(backend, data, layout=layout, own_split=splits, most_photos=most_photos, progress=progress),
        )
    weights = {name: read_manifest(RunFolder(run).manifest).weights_sha256 for name, run in runs.items()}
    kept = read_evidence(folder / "gallery.json")
    if kept is None or kept["weights_sha256"] != weights:
        write_gallery(runs, data, folder / "gallery.json", layout=layout, progress=progress)


def write_gallery(
    runs: Mapping[str, Path],
    data: Path,
    file: Path,
    *,
    layout: Layout = FOLDERS,
    split: SplitChoice = "test",
    split_file: Path | None = None,
    class_names: Mapping[str, str] | None = None,
    progress: ProgressCallback = silent,
) -> None:
    """Writes the attention of several runs over the same photos.

    Args:
        runs: run folders by name, at least one; all of one data folder.
        data: the photos.
        file: to write.
        layout: how the labels are found.
        split: of the photos.
        split_file: the user's.
        class_names: as for `choose_photos`.
        progress: told how far the reading of the photos is.
    """
    weights = {name: read_manifest(RunFolder(run).manifest).weights_sha256 for name, run in runs.items()}
    first = RunFolder(next(iter(runs.values())))
    photos = choose_photos(
        read_manifest(first.manifest),
        data,
        layout=layout,
        split=split,
        split_file=split_file,
        own_split=first.splits,
        class_names=class_names,
        progress=progress,
    )
    begin(progress, "drawing attention maps")
    try:
        shown: list[dict[str, Any]] = gallery(runs, photos.samples, photos.root, photos.classes)
    except ModelError as error:
        logger.warning("no gallery of attention maps: %s", error)
        file.unlink(missing_ok=True)
        return
    write_json(file, {"format_version": FORMAT_VERSION, "weights_sha256": weights, "photos": shown})
