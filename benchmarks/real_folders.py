"""What AgriDistill makes of folders as people have them: each is built, checked, and held against its right answer.

    python benchmarks/real_folders.py [WORD …]

Prints a row for each layout: its classes with photos, the photos of each split, and the verdict of `data check`, or the
refusal. A refusal is right where it names what to pass instead. Exits with 1 where an answer is not the right one.
Words choose the layouts whose names hold one of them.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from agridistill.data.check import CheckResult, check
from agridistill.data.labels import Layout
from agridistill.errors import AgriDistillError

CLASSES = ("healthy", "rust")
PHOTOS = 4


class Folder:
    """A folder that is being built; each photo is a drawing of its own.

    Args:
        root: of it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir()
        self._drawn = 0

    def photo(self, path: str, *, like: int | None = None) -> None:
        """Draws a photo: coarse coloured patches, whose looks differ by the seed `like`."""
        self._drawn += 1
        rng = np.random.default_rng(like if like is not None else self._drawn)
        image = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8)).resize((48, 48), Image.Resampling.BICUBIC)
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        image.save(file, "PNG" if file.suffix == ".png" else "JPEG")

    def classes(self, *tops: str, classes: Iterable[str] = CLASSES, photos: int = PHOTOS) -> Folder:
        """Class folders in each of some folders; "" is the folder itself."""
        for top in tops or ("",):
            for name in classes:
                for number in range(photos):
                    self.photo(f"{top}/{name}/{number}.jpg".lstrip("/"))
        return self

    def flat(self, *folders: str, photos: int = PHOTOS) -> Folder:
        """Photos directly in each of some folders, with numbers that go on from folder to folder."""
        for index, folder in enumerate(folders):
            for number in range(photos):
                self.photo(f"{folder}/{index * photos + number}.jpg".lstrip("/"))
        return self

    def file(self, path: str, content: str | bytes = b"not a photo") -> Folder:
        """Writes a file."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        return self


@dataclass(frozen=True)
class Case:
    """A layout and its right answer.

    Attributes:
        name: of the layout.
        build: makes it.
        classes: class -> photos.
        splits: train/val/test -> photos; None where no split is given.
        problem: part of a problem that `data check` finds; "" where nothing is wrong.
        note: part of a note that `data check` gives, where one is right.
        refusal: part of the refusal; the other answers then do not count.
        nested: as the option.
        labels: label file in the folder.
        columns: of the label file.
    """

    name: str
    build: Callable[[Folder], object]
    classes: Mapping[str, int] | None = None
    splits: Mapping[str, int] | None = None
    problem: str = ""
    note: str = ""
    refusal: str = ""
    nested: bool | None = None
    labels: str | None = None
    columns: tuple[str, ...] = ()

    def layout(self, root: Path) -> Layout:
        return Layout(self.nested, root / self.labels if self.labels else None, self.columns)


TWO = {"healthy": PHOTOS, "rust": PHOTOS}
FOUR = {"healthy": 2 * PHOTOS, "rust": 2 * PHOTOS}
SIX = {"healthy": 3 * PHOTOS, "rust": 3 * PHOTOS}


def split(**parts: int) -> dict[str, int]:
    return {name: parts.get(name, 0) for name in ("train", "val", "test")}


HALVES, THIRDS = 2 * PHOTOS, split(train=2 * PHOTOS, val=2 * PHOTOS, test=2 * PHOTOS)


def table(folder: Folder, rows: Iterable[str], name: str = "train.csv", header: str = "image_id,label") -> None:
    folder.file(name, "\n".join((header, *rows)) + "\n")


def cassava(folder: Folder) -> None:
    folder.flat("train_images", "test_images", photos=8)
    folder.file("sample_submission.csv", "image_id,label\n8.jpg,4\n")
    table(folder, (f"{number}.jpg,{3 * (number % 2)}" for number in range(8)))


def semicolons(folder: Folder) -> None:
    folder.flat("Fotos", photos=8)
    rows = "".join(f"{number}.jpg;{CLASSES[number % 2]}\r\n" for number in range(8))
    folder.file("Labels.csv", b"\xef\xbb\xbf" + f"Dateiname;Befund\r\n{rows}".encode())


def split_column(folder: Folder) -> None:
    folder.flat("images", photos=24)
    parts = ("Training", "valid", "test")
    rows = (f"images/{number}.jpg\t{CLASSES[number % 2]}\t{parts[number % 3]}" for number in range(24))
    table(folder, rows, "labels.tsv", "path\tdisease\tsplit")


def without_suffix(folder: Folder) -> None:
    folder.flat("images", photos=8)
    table(folder, (f"{number},{CLASSES[number % 2]}" for number in range(8)), header="Id,Class")


def lacking_photos(folder: Folder) -> None:
    folder.flat("images", photos=9)
    table(folder, (*(f"{number}.jpg,{CLASSES[number % 2]}" for number in range(8)), "77.jpg,rust"))


def two_labels(folder: Folder) -> None:
    folder.flat("images", photos=8)
    table(folder, (*(f"{number}.jpg,{CLASSES[number % 2]}" for number in range(8)), "0.jpg,rust"))


def listed(
    row: str, header: str = "image,label", *, name: str = "train.csv", photos: int = 8, images: str = "images/{n}.jpg"
) -> Callable[[Folder], object]:
    """Photos in one folder and a table, with a row for each photo n of class c, whose index is k."""

    def build(folder: Folder) -> None:
        for number in range(photos):
            folder.photo(images.format(n=number))
        rows = (
            row.format(n=number, m=photos - 1 - number, k=number % 2, c=CLASSES[number % 2]) for number in range(photos)
        )
        table(folder, rows, name, header)

    return build


def one_of_each(folder: Folder) -> None:
    """As the competition "plant pathology 2020" has it: a column for each class."""
    folder.flat("images", photos=16)
    rows = (f"{number},{','.join(str(int(number % 4 == place)) for place in range(4))}" for number in range(16))
    table(folder, rows, header="image_id,healthy,multiple_diseases,rust,scab")


def several_of_each(folder: Folder) -> None:
    """As the competition "plant pathology 2021" has it: labels with spaces between them."""
    folder.flat("train_images", photos=12)
    names = ("scab", "frog_eye_leaf_spot", "scab frog_eye_leaf_spot")
    table(folder, (f"{number}.jpg,{names[number % 3]}" for number in range(12)), header="image,labels")


def boxes(folder: Folder) -> None:
    folder.flat("train", photos=8)
    rows = [f"{number}.jpg,48,48,{CLASSES[number % 2]},1,1,9,9" for number in range(8)]
    table(
        folder, [*rows, "3.jpg,48,48,healthy,2,2,8,8"], "boxes.csv", "filename,width,height,class,xmin,ymin,xmax,ymax"
    )


def by_farm(folder: Folder) -> None:
    """Names that begin anew in each folder, and paths of another computer."""
    folder.classes("north", "south")
    farms = [(farm, name, number) for farm in ("north", "south") for name in CLASSES for number in range(PHOTOS)]
    rows = (f"C:\\Users\\me\\{farm}\\{name}\\{number}.JPG,{name}" for farm, name, number in farms)
    table(folder, rows, header="path,label")


def takeout(folder: Folder) -> None:
    folder.classes("Takeout/Google Photos").file("Takeout/Google Photos/rust/0.jpg.supplemental-metadata.json", "{}")


def checkpoints(folder: Folder) -> None:
    folder.classes()
    folder.photo(".ipynb_checkpoints/0-checkpoint.jpg", like=1)
    folder.photo("rust/.ipynb_checkpoints/0-checkpoint.jpg", like=2)


def thumbnails_beside(folder: Folder) -> None:
    folder.classes()
    for number in range(2):
        for end in ("", "_thumb"):
            folder.photo(f"rust/photo_{number}@01-05-2024_10-00-00{end}.jpg", like=50 + number)


def copied_class(folder: Folder) -> None:
    folder.classes(classes=("healthy",))
    for number in range(PHOTOS):
        folder.photo(f"rust/{number}.jpg", like=60 + number)
        folder.photo(f"rust - Copy/{number}.jpg", like=60 + number)


def missing_disk(folder: Folder) -> None:
    folder.classes()
    (folder.root / "scab").symlink_to("/media/missing/scab", target_is_directory=True)


def linked_to_another(folder: Folder) -> None:
    folder.classes()
    (folder.root / "blight").symlink_to(folder.root / "rust", target_is_directory=True)


def same_test(folder: Folder) -> None:
    for top in ("train", "test"):
        for index, name in enumerate(CLASSES):
            for number in range(PHOTOS):
                folder.photo(f"{top}/{name}/{number}.jpg", like=80 + 10 * index + number)


def own_words(folder: Folder) -> None:
    """Copies that only their names join, as a script calls them."""
    for number, (top, end) in enumerate((("train", ""), ("test", "_GaussNoise1"))):
        for name in CLASSES:
            for photo in range(PHOTOS):
                folder.photo(f"{top}/{name}/IMG_{PHOTOS * number * (name == 'rust') + photo}{end}.jpg")


def old_mac(folder: Folder) -> None:
    folder.flat("images", photos=8)
    folder.file("train.csv", "image,label\r" + "".join(f"{number}.jpg,{CLASSES[number % 2]}\r" for number in range(8)))


def machines(folder: Folder) -> None:
    folder.classes()
    trash = ("#recycle", "$RECYCLE.BIN", "lost+found")
    for name in ("@eaDir", "#snapshot", "System Volume Information", "__MACOSX", *trash):
        folder.photo(f"{name}/1.jpg")


def thumbnails(folder: Folder) -> None:
    folder.classes()
    for size in ("S", "M", "XL"):
        folder.photo(f"rust/@eaDir/0.jpg/SYNOPHOTO_THUMB_{size}.jpg", like=9)


def machine_files(folder: Folder) -> None:
    folder.classes().file("rust/Thumbs.db").file("rust/._0.jpg").file("rust/.DS_Store").file("healthy/desktop.ini")


def linked_class(folder: Folder) -> None:
    folder.classes(classes=("healthy",)).classes("../elsewhere", classes=("rust",))
    (folder.root / "rust").symlink_to(folder.root.parent / "elsewhere" / "rust", target_is_directory=True)


def linked_inside(folder: Folder) -> None:
    folder.classes().flat("../elsewhere")
    (folder.root / "rust" / "more").symlink_to(folder.root.parent / "elsewhere", target_is_directory=True)


def loop(folder: Folder) -> None:
    folder.classes()
    (folder.root / "rust" / "again").symlink_to(folder.root / "rust", target_is_directory=True)


def odd_suffixes(folder: Folder) -> None:
    for name in CLASSES:
        for suffix in ("jfif", "jpe", "JPEG", "mpo"):
            folder.photo(f"{name}/1.{suffix}")


def heic(folder: Folder) -> None:
    folder.classes()
    for number in range(3):
        folder.file(f"scab/{number}.HEIC")


def normal_forms(folder: Folder) -> None:
    folder.classes("train", classes=(unicodedata.normalize("NFC", "Mehltau grün"), "rust"))
    folder.classes("test", classes=(unicodedata.normalize("NFD", "Mehltau grün"), "rust"))


def copies(folder: Folder) -> None:
    folder.classes()
    folder.photo("healthy/copy.jpg", like=700)
    folder.photo("rust/copy.jpg", like=700)


def new_plant_diseases(folder: Folder) -> None:
    top = "New Plant Diseases Dataset(Augmented)"
    folder.classes(f"{top}/{top}/train", f"{top}/{top}/valid").flat("test/test")


def sessions(folder: Folder) -> None:
    folder.flat("healthy/2025-05-01", "healthy/2025-06-01", "rust/2025-05-01", "rust/2025-06-01")


def yolo(folder: Folder) -> None:
    folder.flat("train/images", "valid/images").file("train/labels/0.txt").file("valid/labels/0.txt")


def classed(*tops: str, classes: Iterable[str] = CLASSES) -> Callable[[Folder], object]:
    return lambda folder: folder.classes(*tops, classes=classes)


def flat(*folders: str) -> Callable[[Folder], object]:
    return lambda folder: folder.flat(*folders)


NESTED = {f"{crop}/{name}": PHOTOS for crop in ("Potato", "Tomato") for name in CLASSES}
CASES = (
    Case("class folders", classed(), TWO),
    Case("Training + Test", classed("Training", "Test"), FOUR, split(train=HALVES, test=HALVES)),
    Case("train_set + val_set", classed("train_set", "val_set"), FOUR, split(train=HALVES, val=HALVES)),
    Case("train + dev", classed("train", "dev"), FOUR, split(train=HALVES, val=HALVES)),
    Case("TRAIN + Valid-Set + Testing", classed("TRAIN", "Valid-Set", "Testing"), SIX, THIRDS),
    Case("training + validation + evaluation", classed("training", "validation", "evaluation"), SIX, THIRDS),
    Case(
        "train_images + test_images of class folders",
        classed("train_images", "test_images"),
        FOUR,
        split(train=HALVES, test=HALVES),
    ),
    Case("tomato_train + tomato_test", classed("tomato_train", "tomato_test"), FOUR, split(train=HALVES, test=HALVES)),
    Case("classes valid and invalid", flat("valid", "invalid"), {"invalid": PHOTOS, "valid": PHOTOS}),
    Case("classes train and bus", flat("train", "bus"), {"bus": PHOTOS, "train": PHOTOS}),
    Case(
        "test photos without labels beside train",
        lambda folder: folder.classes("train").flat("test"),
        TWO,
        split(train=HALVES),
        note="4 photos without a label",
    ),
    Case("test photos beside class folders", lambda folder: folder.classes().flat("test"), refusal="move 'test' away"),
    Case("raw beside train and test", classed("train", "test", "raw"), refusal="'raw' beside 'test' and 'train'"),
    Case("raw/{color,grayscale,segmented}", classed("raw/color", "raw/grayscale", "raw/segmented"), refusal="/raw'"),
    Case("{color,grayscale,segmented}", classed("color", "grayscale", "segmented"), refusal="/color', or --nested"),
    Case("crops/{Tomato,Potato}", classed("Tomato", "Potato"), refusal="--nested for classes such as 'Potato/healthy'"),
    Case("crops/{Tomato,Potato} --nested", classed("Tomato", "Potato"), NESTED, nested=True),
    Case(
        "crops/{Tomato,Potato} --flat",
        classed("Tomato", "Potato"),
        {"Potato": 2 * PHOTOS, "Tomato": 2 * PHOTOS},
        nested=False,
    ),
    Case(
        "train/{Tomato,Potato} + test/… --nested",
        classed("train/Tomato", "train/Potato", "test/Tomato", "test/Potato"),
        dict.fromkeys(NESTED, 2 * PHOTOS),
        split(train=4 * PHOTOS, test=4 * PHOTOS),
        nested=True,
    ),
    Case("PlantVillage beside the same classes", classed("", "PlantVillage"), refusal="/PlantVillage'"),
    Case("a folder around the class folders", classed("download/PlantVillage"), refusal="/download/PlantVillage'"),
    Case(
        "New Plant Diseases",
        new_plant_diseases,
        refusal="/New Plant Diseases Dataset(Augmented)/New Plant Diseases Dataset(Augmented)'",
    ),
    Case(
        "splits in class folders",
        flat("rust/train", "rust/test", "scab/train", "scab/test"),
        refusal="move the photos to 'test/rust'",
    ),
    Case("sessions in class folders", sessions, refusal="--flat to make 'healthy'"),
    Case("sessions in class folders --flat", sessions, FOUR, nested=False),
    Case("images + masks", flat("images", "masks"), refusal="--labels FILE"),
    Case(
        "images_001 + images_002",
        lambda folder: folder.flat("images_001", "images_002").file("labels.csv"),
        refusal="/labels.csv'",
    ),
    Case("boxes for a detector", yolo, refusal="at least two class folders"),
    Case("cassava", cassava, refusal="/train.csv'"),
    Case("cassava --labels", cassava, {"0": 4, "3": 4}, labels="train.csv", note="8 photos without a label"),
    Case(
        "a table with semicolons and a byte order mark",
        semicolons,
        TWO,
        labels="Labels.csv",
        columns=("Dateiname", "Befund"),
    ),
    Case("a table with other names", semicolons, labels="Labels.csv", refusal="--label-columns IMAGE,LABEL"),
    Case(
        "a table with a column of splits",
        split_column,
        {"healthy": 12, "rust": 12},
        split(train=8, val=8, test=8),
        labels="labels.tsv",
    ),
    Case("a table of names without suffix", without_suffix, TWO, labels="train.csv"),
    Case(
        "a table that lacks photos",
        lacking_photos,
        TWO,
        labels="train.csv",
        problem="the first '77.jpg'",
        note="1 photo without a label",
    ),
    Case("a table with two labels of a photo", two_labels, labels="train.csv", refusal="one label for each photo"),
    Case(
        "an empty class folder",
        lambda folder: (folder.classes(), (folder.root / "scab").mkdir()),
        TWO,
        problem="'scab' without photos",
    ),
    Case("folders of machines", machines, TWO),
    Case("thumbnails of a photo server", thumbnails, TWO),
    Case("files of machines", machine_files, TWO),
    Case("a linked class folder", linked_class, TWO),
    Case("a linked folder in a class folder", linked_inside, {"healthy": PHOTOS, "rust": 2 * PHOTOS}),
    Case("a link to a folder above", loop, TWO),
    Case(".jfif, .jpe, .JPEG, .mpo", odd_suffixes, TWO),
    Case("a class in HEIC that cannot be read", heic, problem=".heic"),
    Case(
        "one class in two normal forms",
        normal_forms,
        {"Mehltau grün": 2 * PHOTOS, "rust": 2 * PHOTOS},
        split(train=HALVES, test=HALVES),
    ),
    Case("Rust beside rust", classed(classes=("healthy", "rust", "Rust")), {"Rust": PHOTOS, **TWO}, problem="'Rust'"),
    Case(
        "identical photos under two labels",
        copies,
        {"healthy": PHOTOS + 1, "rust": PHOTOS + 1},
        problem="identical files in several classes",
    ),
    # Tables as competitions and annotation tools write them.
    Case(
        "a column of 0 and 1 for each class",
        one_of_each,
        dict.fromkeys(("healthy", "multiple_diseases", "rust", "scab"), 4),
        labels="train.csv",
    ),
    Case(
        "labels with spaces between them",
        several_of_each,
        dict.fromkeys(("frog_eye_leaf_spot", "scab", "scab frog_eye_leaf_spot"), 4),
        labels="train.csv",
        note="each such combination is a class of its own",
    ),
    Case(
        "a class in each row, more than once",
        listed("{n}.jpg,1,1", "image,rust,scab"),
        labels="train.csv",
        refusal="labels",
    ),
    Case(
        "numbers of rows beside an odd column",
        listed("{n},{m}.jpg,{c}", "id,fname,label"),
        TWO,
        labels="train.csv",
        note="'fname'",
    ),
    Case("an index by pandas", listed("{n},{m}.jpg,{c}", ",image,label"), TWO, labels="train.csv"),
    Case("quotes after a space", listed('{n}.jpg, "{c}"', "image, label"), TWO, labels="train.csv"),
    Case("a line sep=;", listed("{n}.jpg;{c}", "sep=;\nimage;label"), TWO, labels="train.csv"),
    Case("line ends of old Macs", old_mac, TWO, labels="train.csv"),
    Case(
        "no line of names",
        listed("{n}.jpg,{c}", "8.jpg,rust"),
        labels="train.csv",
        refusal="a first line of column names",
    ),
    Case(
        "a list with spaces",
        listed("{n}.jpg {k}", "8.jpg 0", name="train.txt"),
        labels="train.txt",
        refusal="a first line",
    ),
    Case(
        "a table in JSON",
        listed('"{n}.jpg": "{c}",', "{", name="train.json"),
        labels="train.json",
        refusal="save it as CSV",
    ),
    Case(
        "zeros lost by a spreadsheet",
        listed("{n},{c}", "id,label", images="images/000{n}.jpg"),
        labels="train.csv",
        refusal="none for 8 of its 8 rows",
    ),
    Case(
        "a column is_valid",
        listed("{n}.jpg,{c},True", "name,label,is_valid"),
        TWO,
        labels="train.csv",
        note="'is_valid' names no",
    ),
    Case(
        "two columns of one name",
        listed("{n}.jpg,{c},{k}{n}", "image,label,label"),
        labels="train.csv",
        refusal="which differ",
    ),
    Case(
        "a task of Label Studio",
        listed("/data/local-files/?d=images/{n}.jpg,{n},{c}", "image,id,choice"),
        TWO,
        labels="train.csv",
        columns=("image", "choice"),
    ),
    Case(
        "regions of VIA",
        listed('{n}.jpg,"{{""a"":""{c}""}}"', "filename,region_attributes"),
        labels="train.csv",
        refusal="a column of labels",
    ),
    Case("boxes with a class in each", boxes, labels="boxes.csv", refusal="one label for each photo"),
    Case("paths of another computer", by_farm, FOUR, labels="train.csv"),
    # Folders as cameras, phones, clouds and scripts leave them.
    Case("folders of a camera", flat("100CANON", "101CANON"), refusal="a folder for each class"),
    Case("folders of a drone", flat("100MEDIA", "101MEDIA", "PANORAMA"), refusal="got '100MEDIA', '101MEDIA'"),
    Case("folders of days", flat("2024-05-01", "2024-05-02"), refusal="a folder for each class"),
    Case("folders of days with classes", classed("2024-05-01", "2024-05-02"), refusal="a folder for each class"),
    Case(
        "a class in two parts of a download",
        flat(
            "Healthy-20240301T100000Z-001/Healthy", "Rust-20240301T100000Z-001/Rust", "Rust-20240301T100000Z-002/Rust"
        ),
        refusal="a folder for each class",
    ),
    Case(
        "a set in two parts of a download",
        flat("drive-download-20240301T100000Z-001/healthy", "drive-download-20240301T100000Z-002/rust"),
        refusal="a folder for each class",
    ),
    Case("each class unpacked into its own name", flat("healthy/healthy", "rust/rust"), TWO),
    Case("Google Takeout", takeout, refusal="/Takeout/Google Photos'"),
    Case(
        "train_rust beside test_rust",
        flat("train_healthy", "train_rust", "test_healthy", "test_rust"),
        refusal="to 'test/healthy'",
    ),
    Case("train/train + test/test", classed("train/train", "test/test"), refusal="one level up"),
    Case(
        "masks in class folders",
        flat("healthy/images", "healthy/masks", "rust/images", "rust/masks"),
        refusal="move masks",
    ),
    Case("original + augmented", classed("Original Images", "Augmented Images"), refusal="--nested"),
    Case("folds", classed("fold1/train", "fold1/val", "fold2/train", "fold2/val"), refusal="/fold2'"),
    Case("train_1 + train_2", classed("train_1", "train_2", "test"), refusal="merge them"),
    Case("splits in Spanish", classed("entrenamiento", "prueba"), refusal="/entrenamiento'"),
    Case("degrees of severity", flat("0", "1", "2"), {"0": PHOTOS, "1": PHOTOS, "2": PHOTOS}),
    Case(
        "weights beside the classes",
        lambda folder: folder.classes().file("models/best.pt"),
        TWO,
        problem="'models' without photos",
    ),
    Case("checkpoints of a notebook", checkpoints, TWO),
    Case(
        "thumbnails of a messenger",
        thumbnails_beside,
        {"healthy": PHOTOS, "rust": 2 * PHOTOS},
        note="identical files (4 photos)",
    ),
    Case(
        "a copied class folder",
        copied_class,
        {"healthy": PHOTOS, "rust": PHOTOS, "rust - Copy": PHOTOS},
        problem="identical files in several classes",
    ),
    Case("a class on a disk that is missing", missing_disk, refusal="correct the link"),
    Case(
        "a class linked to another",
        linked_to_another,
        {"blight": PHOTOS, **TWO},
        problem="identical files in several classes",
    ),
    Case("the test is a copy of train", same_test, FOUR, split(train=HALVES, test=HALVES), problem="in several splits"),
    Case(
        "copies under words of their own",
        own_words,
        FOUR,
        split(train=HALVES, test=HALVES),
        problem="4 leaves in several",
    ),
)


@dataclass(frozen=True)
class Answer:
    """What came out for a layout, as it is printed."""

    classes: str
    splits: str
    verdict: str
    wrong: str


def answer(case: Case, root: Path) -> Answer:
    """Builds and checks a layout."""
    case.build(Folder(root))
    try:
        found = check(root, layout=case.layout(root))
    except AgriDistillError as error:
        text = str(error).replace(str(root), "…")
        return Answer("", "", f"refused: {text}", "" if case.refusal and case.refusal in text else "refused")
    classes = {unicodedata.normalize("NFC", one.name): one.photos for one in found.classes}
    splits = _splits(found)
    wrong = [
        name
        for name, right in (
            ("not refused", not case.refusal),
            ("classes", case.classes is None or classes == dict(case.classes)),
            ("splits", case.classes is None or splits == case.splits),
            ("problems", _is_among(case.problem, found.problems)),
            ("notes", not case.note or _is_among(case.note, found.notes)),
        )
        if not right
    ]
    return Answer(
        ", ".join(f"{name} {photos}" for name, photos in classes.items()),
        ", ".join(f"{name} {photos}" for name, photos in (splits or {}).items()),
        "; ".join((*found.problems, *(f"note: {note}" for note in found.notes))) or "nothing wrong",
        ", ".join(wrong),
    )


def _is_among(part: str, sentences: Iterable[str]) -> bool:
    found = list(sentences)
    return any(part.casefold() in sentence.casefold() for sentence in found) if part else not found


def _splits(found: CheckResult) -> dict[str, int] | None:
    counts = [one.photos_per_split for one in found.classes]
    if None in counts:
        return None
    return {name: sum(one[name] for one in counts if one is not None) for name in ("train", "val", "test")}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*")
    words = parser.parse_args().words
    cases = [case for case in CASES if not words or any(word in case.name for word in words)]
    shown = Table("layout", "classes with photos", "splits", "verdict", "right", show_lines=True)
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        for number, case in enumerate(cases):
            place = Path(folder) / str(number)
            place.mkdir()
            found = answer(case, place / "data")
            wrong += bool(found.wrong)
            right = f"NO: {found.wrong}" if found.wrong else "yes"
            shown.add_row(case.name, found.classes, found.splits, found.verdict, right)
    Console(width=None if sys.stdout.isatty() else 200).print(shown, markup=False)
    print(f"{len(cases) - wrong} of {len(cases)} layouts have the right answer")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
