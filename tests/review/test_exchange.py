"""Label Studio's formats: what it exports is read, and what we write it can read."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from agridistill.errors import DataError
from agridistill.review import LABEL, Action, Judgements, ReviewLog
from agridistill.review.exchange import read_judgements, write_label_studio

PHOTOS = ["north/1.jpg", "north/2.jpg", "south/1.jpg", "south/3 b.jpg"]
ACTIONS = [
    Action("2026-06-01T08:00:00Z", "anna", LABEL, "Late_blight", "north/1.jpg"),
    Action("2026-06-01T08:01:00Z", "anna@farm.example", "several", "", "north/2.jpg"),
    Action("2026-06-01T08:02:00Z", "ben", LABEL, "healthy, old", "north/1.jpg"),
    Action("2026-06-01T08:03:00Z", "ben", "not a leaf", "", "south/1.jpg"),
]
CONFIG = """<View><Image name="image" value="$image"/>
<Choices name="choice" toName="image"><Choice value="Late_blight"/><Choice value="healthy, old"/>
<Choice value="several"/><Choice value="not a leaf"/></Choices></View>"""


def annotation(*choices: str, **fields: Any) -> dict[str, Any]:
    result = {"type": "choices", "from_name": "choice", "to_name": "image", "value": {"choices": list(choices)}}
    return {"created_at": "2026-06-01T09:00:00.1Z", "completed_by": 7, "result": [result], **fields}


def read(tmp_path: Path, document: Any, name: str = "export.json") -> list[Action]:
    file = tmp_path / name
    file.write_text(document if isinstance(document, str) else json.dumps(document))
    return read_judgements(file, tmp_path / "photos", PHOTOS, "me")[0]


@pytest.mark.parametrize("name", ["review.json", "review.csv"])
def test_all_choices_come_back(tmp_path: Path, name: str) -> None:
    write_label_studio(Judgements(ACTIONS), tmp_path / name)
    found, absent = read_judgements(tmp_path / name, tmp_path / "photos", PHOTOS, "me")
    assert (sorted(found), absent) == (sorted(ACTIONS), [])


def test_the_tasks_have_the_form_that_label_studio_documents(tmp_path: Path) -> None:
    write_label_studio(Judgements(ACTIONS), tmp_path / "review.json")
    tasks = json.loads((tmp_path / "review.json").read_text())
    assert [task["data"] for task in tasks] == [{"image": photo} for photo in PHOTOS[:3]]
    (result,) = tasks[0]["annotations"][0]["result"]
    assert {key: result[key] for key in ("type", "from_name", "to_name", "value")} == {
        "type": "choices",
        "from_name": "choice",
        "to_name": "image",
        "value": {"choices": ["Late_blight"]},
    }
    # An unknown user, or one that is no address, makes its import fail.
    users = [one.get("completed_by") for task in tasks for one in task["annotations"]]
    assert users == [None, None, {"email": "anna@farm.example"}, None]


def test_label_studio_converts_our_tasks(tmp_path: Path) -> None:
    converter = pytest.importorskip(
        "label_studio_sdk.converter", reason="needs label-studio-sdk, which is not installed: pip install it"
    ).Converter(CONFIG, str(tmp_path), download_resources=False)
    write_label_studio(Judgements(ACTIONS), tmp_path / "review.json")
    converter.convert_to_csv(str(tmp_path / "review.json"), str(tmp_path / "out.csv"), is_dir=False, sep=",")
    converter.convert_to_json_min(str(tmp_path / "review.json"), str(tmp_path / "min"), is_dir=False)
    with (tmp_path / "out.csv").open() as lines:
        rows = {(row["image"], row["choice"]) for row in csv.DictReader(lines)}
    assert rows == {(one.photo, one.choice.words) for one in ACTIONS}
    wanted = {(one.photo, one.verdict, one.label) for one in ACTIONS}
    for file in (tmp_path / "out.csv", tmp_path / "min" / "result.json"):
        found, absent = read_judgements(file, tmp_path / "photos", PHOTOS, "me")
        assert ({(one.photo, one.verdict, one.label) for one in found}, absent) == (wanted, [])


@pytest.mark.parametrize(
    ("image", "photo"),
    [
        ("north/2.jpg", "north/2.jpg"),
        ("/data/local-files/?d=farm/photos/south/1.jpg", "south/1.jpg"),
        ("/data/upload/3/0a1b2c3d-2.jpg", "north/2.jpg"),
        ("https://store.example/farm/south/3%20b.jpg?X-Amz-Date=1", "south/3 b.jpg"),
        ("s3://bucket/south/3%20b.jpg", "south/3 b.jpg"),
    ],
)
def test_each_kind_of_address_names_its_photo(tmp_path: Path, image: str, photo: str) -> None:
    assert [one.photo for one in read(tmp_path, [{"data": {"image": image}, "annotations": [annotation("rust")]}])] == [
        photo
    ]


def test_users_choices_and_skipped_tasks_are_understood(tmp_path: Path) -> None:
    tasks = [
        {
            "data": {"image": "north/1.jpg"},
            "annotations": [
                annotation("rust"),
                annotation("rust", "mildew", completed_by={"id": 3, "email": "b@farm.example"}),
                annotation("Not_a_leaf", completed_by=None),
                annotation("healthy", was_cancelled=True),
                annotation(completed_by=None),
            ],
            "predictions": [annotation("mildew")],
        }
    ]
    assert [(one.reviewer, one.verdict, one.label) for one in read(tmp_path, tasks)] == [
        ("7", LABEL, "rust"),
        ("b@farm.example", "several", ""),
        ("me", "not a leaf", ""),
    ]


def test_the_last_choices_of_a_colleagues_record_are_taken_over_with_their_times(tmp_path: Path) -> None:
    early = ACTIONS[0]._replace(time="2026-05-01T08:00:00Z", label="rust")
    undone = [
        ACTIONS[0]._replace(photo="north/2.jpg"),
        ACTIONS[0]._replace(photo="north/2.jpg", verdict="undo", label=""),
    ]
    ReviewLog(tmp_path / "other.csv").append([early, *undone, *ACTIONS, ACTIONS[0]._replace(photo="gone.jpg")])
    found, absent = read_judgements(tmp_path / "other.csv", tmp_path / "photos", PHOTOS, "me")
    assert (sorted(found), absent) == (sorted([*ACTIONS, undone[1]]), ["gone.jpg"])


@pytest.mark.parametrize(("start", "sign"), [("\ufeff", ","), ("", ";")])
def test_a_record_that_a_spreadsheet_saved_is_still_one(tmp_path: Path, start: str, sign: str) -> None:
    rows = [("time", "reviewer", "verdict", "label", "photo"), *(ACTIONS[number] for number in (0, 1, 3))]
    text = "\r\n".join(sign.join(row) + sign * (row is rows[1]) for row in rows)
    assert sorted(read(tmp_path, f"{start}{text}", "excel.csv")) == sorted(ACTIONS[number] for number in (0, 1, 3))


def test_a_choice_that_a_colleague_took_back_comes_as_such(tmp_path: Path) -> None:
    back = ACTIONS[0]._replace(verdict="undo", label="", time="2026-06-02T08:00:00Z")
    ReviewLog(tmp_path / "other.csv").append([ACTIONS[0], ACTIONS[3], back])
    assert read_judgements(tmp_path / "other.csv", tmp_path, PHOTOS, "me")[0] == [back, ACTIONS[3]]


def test_the_reviewers_of_our_own_export_survive_label_studio(tmp_path: Path) -> None:
    write_label_studio(Judgements(ACTIONS), tmp_path / "review.json")
    tasks = json.loads((tmp_path / "review.json").read_text())
    for task in tasks:
        for one in task["annotations"]:
            one["completed_by"] = 1  # who imported them there
    assert sorted(read(tmp_path, tasks)) == sorted(ACTIONS)
    tasks[0]["annotations"][0]["result"][0] |= {"id": "Xk3_a", "meta": {"text": ["a note"]}}
    assert {one.reviewer for one in read(tmp_path, tasks[:1])} == {"1", "ben"}


def test_a_correction_in_label_studio_is_newer_than_what_it_corrects(tmp_path: Path) -> None:
    task = {"data": {"image": "north/1.jpg"}, "annotations": [annotation("rust", updated_at="2026-07-01T09:00:00Z")]}
    assert [one.time for one in read(tmp_path, [task])] == ["2026-07-01T09:00:00Z"]


def test_two_labels_for_one_photo_are_no_table_of_labels(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"one label for each photo; got 'rust' and 'healthy' for 'north/1.jpg' in"):
        read(tmp_path, "image,label\nnorth/1.jpg,rust\nnorth/1.jpg,healthy\n", "labels.csv")


def test_a_plain_table_of_labels_is_read(tmp_path: Path) -> None:
    found = read(tmp_path, "filename,disease\nnorth/1.jpg,rust\nsouth/1.jpg,\n", "labels.csv")
    assert [(one.reviewer, one.photo, one.label) for one in found] == [("me", "north/1.jpg", "rust")]


@pytest.mark.parametrize(
    ("content", "name", "got"),
    [
        ("{", "x.json", "which is not JSON"),
        ('{"a": 1}', "x.json", "with other JSON"),
        ("[1]", "x.json", "with other JSON"),
        ('[{"data": {"image": "north/1.jpg"}, "annotations": null}]', "x.json", "with another form"),
        ('[{"data": {"photo": "1.jpg"}, "annotations": []}]', "x.json", "a task without 'image'"),
        ('[{"image": "elsewhere.jpg", "choice": "rust"}]', "x.json", "none, the first 'elsewhere.jpg'"),
    ],
)
def test_another_file_is_one_line(tmp_path: Path, content: str, name: str, got: str) -> None:
    with pytest.raises(DataError) as told:
        read(tmp_path, content, name)
    assert got in str(told.value)
