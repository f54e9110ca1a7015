"""Reads and writes judgements in the formats of Label Studio: JSON of annotated tasks, and CSV.

The project in Label Studio has `<Image name="image" value="$image"/>` and `<Choices name="choice" toName="image">`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from agridistill.data.label_table import PhotoFinder, find_columns, name_one_folder, read_table
from agridistill.errors import DataError
from agridistill.review.record import COLUMNS, HEADER, LABEL, SPECIAL, UNDO, Action, Judgements, ReviewLog, moment
from agridistill.storage import csv_text, write_json, write_text

_FROM, _TO = "choice", "image"
CSV_COLUMNS = ("id", "image", "choice", "annotator", "annotation_id", "created_at", "updated_at")
# Label Studio puts eight hex digits before the name of an uploaded file.
_UPLOADED = re.compile(r"/data/upload/.*?/?[0-9a-f]{8}-([^/]+)\Z")
_OURS = re.compile(r"choice-\d+")
_FORMAT = "a Label Studio export (JSON, JSON-MIN or CSV) with an image and a choice, or a table with photos and labels"


def write_label_studio(judgements: Judgements, file: Path) -> None:
    """Writes all judgements for Label Studio: JSON tasks with an annotation for each reviewer, or CSV rows (`.csv`)."""
    tasks = _tasks(judgements)
    if file.suffix.lower() != ".csv":
        write_json(file, tasks)
        return
    rows: list[Sequence[object]] = [CSV_COLUMNS]
    for task in tasks:
        for annotation in task["annotations"]:
            result, times = annotation["result"][0], (annotation["created_at"], annotation["updated_at"])
            choice, reviewer = result["value"]["choices"][0], result["meta"]["text"][0]
            rows.append((task["id"], task["data"]["image"], choice, reviewer, annotation["id"], *times))
    write_text(file, csv_text(rows))


def _tasks(judgements: Judgements) -> list[dict[str, Any]]:
    tasks = []
    annotation_id = 0
    for number, (photo, actions) in enumerate(judgements.by_photo().items(), start=1):
        annotations = []
        for reviewer, action in actions.items():
            annotation_id += 1
            result = {
                "id": f"choice-{annotation_id}",  # as in `_OURS`
                "type": "choices",
                "from_name": _FROM,
                "to_name": _TO,
                "value": {"choices": [action.choice.words]},
                "meta": {"text": [reviewer]},
            }
            # Label Studio refuses to import the address of a user whom it does not know, and any other name.
            by = {"completed_by": {"email": reviewer}} if "@" in reviewer else {}
            times = {"created_at": action.time, "updated_at": action.time}
            annotations.append({"id": annotation_id, **by, **times, "was_cancelled": False, "result": [result]})
        tasks.append({"id": number, "data": {"image": photo}, "annotations": annotations})
    return tasks


def read_judgements(file: Path, root: Path, photos: Sequence[str], reviewer: str) -> tuple[list[Action], list[str]]:
    """Reads the judgements in a file of Label Studio, in the record of another review, or in a table of labels.

    Skipped annotations are left out. An annotation with several choices becomes "several". Of another record come the
    last choices, and an "undo" for each photo whose choices were all taken back. `reviewer` is used
    where the file names no reviewer.

    Returns the actions, and the entries for which the folder has no photo.

    Raises:
        DataError: the file has another format, none of its photos is in the folder, or it names two labels for a photo
            without a time.
    """
    finder = PhotoFinder(root, file, photos)
    rows: list[_Row]
    if file.suffix.lower() == ".json":
        try:
            rows = list(_json_rows(file, reviewer))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise DataError(_FORMAT, f"'{file}' with another form ({error!r})", "export it as JSON") from None
    elif (recorded := _recorded(file)) is not None:
        known = set(photos)
        last = _last_of_each(recorded)
        kept = [one for one in last if one.photo in known]
        return _some(kept, [one.photo for one in last if one.photo not in known], root, file)
    else:
        rows = _table_rows(file, finder, reviewer)
    one_folder = name_one_folder([row[0] for row in rows])
    # Not the present time: imported again, a table would replace what was chosen since.
    written = moment(file.stat().st_mtime)
    actions, absent = [], []
    undated: dict[tuple[str, str], list[str]] = {}
    for image, choices, name, time in rows:
        photo = finder.find(image, 0, one_folder=one_folder)
        if photo is None:
            absent.append(image)
        elif choices:
            verdict = _verdict(choices)
            actions.append(Action(time or written, name, verdict, choices[0] if verdict == LABEL else "", photo))
            if not time and (first := undated.setdefault((name, photo), choices)) != choices:
                got = f"'{first[0]}' and '{choices[0]}' for '{image}' in '{file}'"
                raise DataError("one label for each photo", got, "correct the file")
    return _some(sorted(actions, key=lambda action: action.time), absent, root, file)


def _recorded(file: Path) -> list[Action] | None:
    """Reads the record of another review, also one that a spreadsheet has saved; None if it is another table."""
    if file.is_file() and file.read_bytes().startswith(HEADER.rstrip().encode()):
        return ReviewLog(file).read()
    table = read_table(file)
    if tuple(table.header) != COLUMNS:
        return None
    rows = [cells[: len(COLUMNS)] for _, cells in table.rows]  # spreadsheets may add empty cells
    return [Action(*cells) for cells in rows if cells[2] in (LABEL, UNDO, *SPECIAL) and cells[4]]


def _last_of_each(actions: Sequence[Action]) -> list[Action]:
    """Returns the last action of each reviewer on each photo that has a choice left, or was taken back."""
    found = {(action.reviewer, action.photo): action for action in actions if action.verdict == UNDO}
    for choices in Judgements(actions).by_photo().values():
        found |= {(choice.reviewer, choice.photo): choice for choice in choices.values()}
    return sorted(found.values(), key=lambda action: action.photo)


def _some(actions: list[Action], absent: list[str], root: Path, file: Path) -> tuple[list[Action], list[str]]:
    if absent and not actions:
        raise DataError(f"photos of '{root}' in '{file}'", f"none, the first '{absent[0]}'", "check both")
    return actions, absent


def _verdict(choices: Sequence[str]) -> str:
    if len(set(choices)) > 1:
        return "several"
    plain = " ".join(choices[0].replace("_", " ").lower().split())
    return plain if plain in SPECIAL else LABEL


_Row = tuple[str, list[str], str, str]
"""Image, choices, reviewer and time."""


def _json_rows(file: Path, reviewer: str) -> Iterator[_Row]:
    try:
        document = json.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(_FORMAT, f"'{file}' ({error.strerror})", "check --import") from None
    except (ValueError, RecursionError):
        raise DataError(_FORMAT, f"'{file}', which is not JSON", "export it again") from None
    for task in document if isinstance(document, list) else [None]:
        if not isinstance(task, dict):
            raise DataError(_FORMAT, f"'{file}' with other JSON", "export it as JSON")
        if "annotations" not in task:  # JSON-MIN
            yield _plain_row(task, reviewer, file)
            continue
        image = _image(task.get("data"), file)
        for one in task["annotations"]:
            if not one.get("was_cancelled"):
                results = [each for each in one.get("result", ()) if each.get("type") == "choices"]
                choices = [choice for each in results for choice in each["value"]["choices"]]
                # The user who imports our annotations becomes their author; our own results name their reviewer.
                noted = [
                    each["meta"]["text"][0]
                    for each in results
                    if each.get("meta", {}).get("text") and _OURS.fullmatch(str(each.get("id")))
                ]
                who = noted[0] if noted else _who(one.get("completed_by"), reviewer)
                yield image, choices, who, _when(one)


def _plain_row(row: dict[str, Any], reviewer: str, file: Path) -> _Row:
    choice = row.get(_FROM, [])
    # Several choices are {"choices": [...]}, in CSV as JSON text.
    if isinstance(choice, str) and choice.startswith("{"):
        choice = json.loads(choice)
    if isinstance(choice, dict):
        choice = choice.get("choices", [])
    choices = [choice] if isinstance(choice, str) and choice else list(choice)
    return _image(row, file), choices, _who(row.get("annotator"), reviewer), _when(row)


def _table_rows(file: Path, finder: PhotoFinder, reviewer: str) -> list[_Row]:
    table = read_table(file)
    if {"image", _FROM} <= set(table.header):
        return [_plain_row(dict(zip(table.header, cells, strict=False)), reviewer, file) for _, cells in table.rows]
    image, label, _ = find_columns(table, (), finder)
    return [(cells[image].strip(), [cells[label].strip()], reviewer, "") for _, cells in table.rows if cells[label]]


def _image(data: object, file: Path) -> str:
    """Returns the path in a task's data: of a URL its path, of a local file in Label Studio its path there."""
    address = data.get("image") if isinstance(data, dict) else None
    if not isinstance(address, str):
        raise DataError(_FORMAT, f"a task without 'image' in '{file}'", "name the image 'image' in the project")
    parts = urlsplit(address)
    if not parts.scheme and not address.startswith("/data/"):
        return address
    if "d" in (query := parse_qs(parts.query)):
        return query["d"][0]
    path = unquote(parts.path)
    uploaded = _UPLOADED.search(path)
    return uploaded[1] if uploaded else path.lstrip("/")


def _when(row: Mapping[str, Any]) -> str:
    return str(row.get("updated_at") or row.get("created_at") or "")


def _who(given: object, reviewer: str) -> str:
    if isinstance(given, dict):
        given = given.get("email") or given.get("username") or given.get("id")
    return str(given) if given not in (None, "", {}) else reviewer
