"""The command `agridistill review`: label photos fast in a browser, and turn the labels into data for training."""

from __future__ import annotations

import contextlib
import getpass
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from agridistill.cli import options, output
from agridistill.cli.output import UNDEFINED, percent, printable, stderr, stdout

if TYPE_CHECKING:
    from agridistill.data.labels import Layout
    from agridistill.review import Action, Choice, Judgements, ReviewLog
    from agridistill.runtime.predictor import Predictor

RECORD = "review.csv"
_LISTED = 20


@options.with_groups
def review(
    labels: options.LabelOptions,
    folder: Annotated[
        Path | None, Argument(metavar="FOLDER", help="Review the photos in this folder and the folders below it.")
    ] = None,
    model: Annotated[
        Path | None,
        Option(metavar="MODEL", help="Show what this model says, and ask first where it is least sure."),
    ] = None,
    classes: Annotated[
        Path | None,
        Option(
            metavar="PHOTOS",
            help="Offer the classes of this labelled folder as labels.",
            show_default="the model's classes",
        ),
    ] = None,
    teacher: Annotated[
        Path | None,
        Option(metavar="MODEL", help="Ask first where this second model disagrees with --model."),
    ] = None,
    suspects: Annotated[
        Path | None,
        Option(metavar="PHOTOS", help="Review the photos of this labelled folder whose labels are most doubtful."),
    ] = None,
    reviewer: Annotated[
        str | None, Option(metavar="NAME", help="Record the choices under this name.", show_default="the user's name")
    ] = None,
    out: Annotated[
        Path | None, Option(metavar="FILE", help="Record the choices in this CSV.", show_default="FOLDER/review.csv")
    ] = None,
    agreement: Annotated[
        bool, Option("--agreement", help="Print how far the reviewers agree, and where they do not.")
    ] = False,
    import_: Annotated[
        Path | None,
        Option(
            "--import",
            metavar="FILE",
            help="Add the choices of a Label Studio export, of another review.csv or of a table of labels.",
        ),
    ] = None,
    export: Annotated[
        Path | None, Option(metavar="FILE", help="Write all choices for Label Studio, as .json or .csv.")
    ] = None,
    into: Annotated[
        Path | None, Option(metavar="DIR", help="Copy the labelled photos into this folder, one folder for each class.")
    ] = None,
    table: Annotated[
        Path | None, Option(metavar="FILE", help="Write the labels to this CSV, for `train FOLDER --labels FILE`.")
    ] = None,
    port: Annotated[int, Option(min=0, max=65_535, help="Serve at this port; 0 chooses a free one.")] = 8573,
    host: Annotated[str, Option(help="Serve at this address; others than this machine need the printed token.")] = (
        "127.0.0.1"
    ),
    json: options.Json = False,
) -> None:
    """Label photos fast in a browser on this machine, the most worthwhile ones first.

    Each choice is on the disk before the next one. With --agreement, --import, --export, --into or --table no page is
    served. Photos on which reviewers disagree get no label, nor do those judged as several, not a leaf or cannot tell.
    """
    from agridistill.data.folder import files_in, require_folder
    from agridistill.data.labels import FOLDERS, read_layout
    from agridistill.errors import DataError, RunError
    from agridistill.review import ReviewLog

    root = suspects or folder
    if root is None or (suspects is not None and folder is not None):
        raise typer.BadParameter("pass either FOLDER or --suspects PHOTOS")
    layout = labels.layout() or FOLDERS
    if suspects is None and classes is None and layout != FOLDERS:
        options_of_labels = "--labels, --label-columns, --nested and --flat"
        raise typer.BadParameter(f"{options_of_labels} say where --suspects or --classes finds labels")
    require_folder(root, "a folder of photos" if suspects is None else "a folder of class folders")
    if table is not None and layout.label_file is not None and table.resolve() == layout.label_file.resolve():
        raise RunError("another file for --table than for --labels", f"'{table}' for both", "choose another --table")
    given: Mapping[str, str] = {}
    splits: Mapping[str, str] = {}
    if suspects is not None:
        labelled = read_layout(suspects, layout)
        given = {sample.path: labelled.classes[sample.label] for sample in labelled.samples}
        if not labelled.in_split_folders:
            splits = labelled.given_split or {}
    photos = sorted(given) or sorted(files_in(root)[0])
    if not photos:
        raise DataError("photos to review", f"none in '{root}'", "check the path")
    log = ReviewLog(out or root / RECORD)
    name = reviewer or _user()
    if agreement or import_ or export or into or table:
        if import_ is not None:
            _import(import_, root, photos, name, log)
        results = {"export": export, "into": into, "table": table}
        _results(root, photos, log, given, splits, agreement=agreement, json=json, **results)
        return
    if model is None and classes is None and suspects is None:
        raise typer.BadParameter("pass --model MODEL, --classes PHOTOS or both")
    if teacher is not None and model is None:
        raise typer.BadParameter("--teacher needs --model, with which it is compared")
    _serve(root, photos, model, classes, teacher, given, layout, name, log, host, port)


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a user without a name, as in some containers
        return "reviewer"


def _import(file: Path, root: Path, photos: Sequence[str], reviewer: str, log: ReviewLog) -> None:
    from agridistill.review import UNDO, Judgements
    from agridistill.review.exchange import read_judgements

    actions, absent = read_judgements(file, root, photos, reviewer)
    recorded = log.read()
    newest = Judgements(recorded).by_photo()
    touched = {(action.reviewer, action.photo): action.time for action in recorded}

    def lines(action: Action) -> Sequence[Action]:
        """Returns what an imported action adds to the record."""
        before = newest.get(action.photo, {}).get(action.reviewer)
        if touched.get((action.reviewer, action.photo), "") >= action.time:
            return ()
        if action.verdict != UNDO:
            return () if before is not None and before.choice == action.choice else (action,)
        valid = Judgements(recorded).valid(action.reviewer)
        return [action for each in valid if each.photo == action.photo]  # one for each choice that is taken back

    new = [line for action in actions for line in lines(action)]
    if new:
        log.append(new)
    stderr.print(f"{len(new):,} new lines from '{printable(str(file))}' in '{printable(str(log.path))}'")
    if absent:
        stderr.print(f"left out: {len(absent):,} without a photo, the first '{printable(absent[0])}'", style="yellow")


def _results(
    root: Path,
    photos: Sequence[str],
    log: ReviewLog,
    given: Mapping[str, str],
    splits: Mapping[str, str],
    *,
    agreement: bool,
    export: Path | None,
    into: Path | None,
    table: Path | None,
    json: bool,
) -> None:
    from agridistill.review import LABEL, Judgements, agreements, settled
    from agridistill.review.exchange import CSV_COLUMNS, write_label_studio
    from agridistill.review.results import require_own_table, table_header, write_class_folders, write_label_table
    from agridistill.storage import require_result_file

    if export is not None:
        header = ",".join(CSV_COLUMNS) if export.suffix.lower() == ".csv" else "["
        require_result_file(export, "--export", header=header)
    if table is not None:
        require_result_file(table, "--table", header=table_header(splits))
    actions = log.read()
    judgements = Judgements(actions)
    agreed, disputed = settled(judgements)
    labels = {photo: choice.label for photo, choice in agreed.items() if choice.verdict == LABEL}
    # A record from elsewhere may name any path.
    present = set(photos)
    labels = {photo: label for photo, label in labels.items() if photo in present}
    unlabelled = {action.photo for action in actions if action.photo in present and action.photo not in labels}
    without = len(agreed) - len(labels)
    document: dict[str, Any] = {"labels": len(labels), "without_label": without}
    if agreement and not json:
        _print_agreement(judgements, disputed)
    if not actions:
        stderr.print(f"There are no choices in '{printable(str(log.path))}' yet.", style="yellow")
    if export is not None:
        write_label_studio(judgements, export)
        chosen = len(judgements.by_photo())
        stderr.print(f"{printable(str(export))}: {chosen:,} photos of {len(judgements.reviewers):,} reviewers")
    if into is not None:
        copied = write_class_folders(root, labels, into, without=unlabelled)
        document["copied"] = copied
        stderr.print(f"{printable(str(into))}: {copied:,} photos copied, {len(labels) - copied:,} were there already")
    if table is not None:
        kept = {photo: label for photo, label in given.items() if photo not in agreed and photo not in disputed}
        require_own_table(table, {*given, *(action.photo for action in actions)})
        write_label_table({**kept, **labels}, table, splits)
        stderr.print(f"{printable(str(table))}: {len({**kept, **labels}):,} labels")
    if into is not None or table is not None:
        _print_left_out(without, disputed)
        if into is not None and labels:
            nested = ("--nested",) if any("/" in label for label in labels.values()) else ()
            output.next_command("train", into, *nested, "--out", "model")
        elif table is not None and (labels or given):
            output.next_command("train", root, "--labels", table, "--out", "model")
    if json:
        rows = [
            {"photo": photo, "choices": {name: choice.words for name, choice in choices.items()}}
            for photo, choices in disputed.items()
        ]
        pairs = [pair._asdict() for pair in agreements(judgements)]
        output.print_json({**document, "agreement": pairs, "disagreements": rows})


def _print_left_out(without: int, disputed: Mapping[str, Mapping[str, Choice]]) -> None:
    if without:
        stderr.print(f"left out: {without:,} photos judged as several, not a leaf or cannot tell, or not there")
    if disputed:
        first = next(iter(disputed))
        stderr.print(
            f"left out: {len(disputed):,} photos on which reviewers disagree, the first '{printable(first)}' "
            "(--agreement lists them)",
            style="yellow",
        )


def _print_agreement(judgements: Judgements, disputed: Mapping[str, Mapping[str, Choice]]) -> None:
    from agridistill.review import agreements

    pairs = agreements(judgements)
    table = output.new_table("agreement of the reviewers", "reviewers", "photos", "agreed", "Cohen's kappa")
    for pair in pairs:
        kappa = UNDEFINED if pair.kappa is None else f"{pair.kappa:.2f}"
        shares = percent(pair.agreed / pair.photos) if pair.photos else UNDEFINED
        table.add_row(printable(" and ".join(pair.reviewers)), f"{pair.photos:,}", shares, kappa)
    output.print_table(table)
    if not disputed:
        stdout.print("no disagreements")
        return
    table = output.new_table("disagreements", "photo", "choices")
    table.columns[1].justify = "left"
    for photo, choices in list(disputed.items())[:_LISTED]:
        words = ", ".join(f"{name}: {choice.words}" for name, choice in choices.items())
        table.add_row(printable(photo), printable(words))
    output.print_table(table)
    if len(disputed) > _LISTED:
        output.print_note(f"and {len(disputed) - _LISTED:,} more: --json prints all")


def _serve(
    root: Path,
    photos: Sequence[str],
    model: Path | None,
    classes: Path | None,
    teacher: Path | None,
    given: Mapping[str, str],
    layout: Layout,
    reviewer: str,
    log: ReviewLog,
    host: str,
    port: int,
) -> None:
    from agridistill.data.labels import read_layout
    from agridistill.errors import needs_extra
    from agridistill.local_page import is_loopback
    from agridistill.review import Judgements
    from agridistill.review.server import serving
    from agridistill.review.site import Review

    with needs_extra() if given else needs_extra("the search for photos that look alike", "review"):
        from agridistill.review.ranking import Order, Ranking
    order: Order
    with output.progress_bar("loading the model") as progress:
        from agridistill.api import load

        predictor = load(model) if model is not None else None
        names = predictor.manifest.classes if predictor is not None else ()
        if given:
            with needs_extra():
                from agridistill.evaluation.suspects import find_suspects
            found = find_suspects(root, layout=layout, progress=progress)
            stderr.print(f"{len(found.predictions):,} of {found.photos:,} labels are doubtful")
            order, names = Order(found.predictions), found.folder.classes
        else:
            second = _second_model(teacher, predictor) if teacher is not None else None
            order = Ranking(root, photos, predictor, second, Judgements(log.read()).of(reviewer))
        if classes is not None:
            names = read_layout(classes, layout, min_classes=1).classes
    page = Review(root, order, names, log, reviewer, predictor, given)
    token = None if is_loopback(host) else secrets.token_urlsafe(12)
    with contextlib.suppress(KeyboardInterrupt), serving(page, host, port, token) as address, order:
        stderr.print(f"page: {address} (Ctrl-C ends it)" + (f", token: {token}" if token else ""))
        output.wait_for_ctrl_c()
    stderr.print(f"The choices are in '{printable(str(log.path))}'.")
    words: list[str | Path] = ["--suspects", root, *layout.words()] if given else [root]
    record: list[str | Path] = [] if log.path == root / RECORD else ["--out", log.path]
    output.next_command("review", *words, *record, *(("--table", "corrected.csv") if given else ("--into", "reviewed")))


def _second_model(teacher: Path, predictor: Predictor | None) -> Predictor:
    from agridistill.api import load
    from agridistill.errors import ModelError

    second = load(teacher)
    if predictor is not None and second.manifest.classes != predictor.manifest.classes:
        expected = "a --teacher with the classes of --model in the same order"
        raise ModelError(expected, f"'{teacher}' with other classes", "pass another --teacher")
    return second
