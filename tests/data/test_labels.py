"""Labels from a table, as people and programs write it."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.data.conftest import PhotoWriter

from agridistill.data.check import check
from agridistill.data.folder import PhotoFolder
from agridistill.data.labels import Layout, read_layout
from agridistill.data.prepare import prepare_data
from agridistill.errors import ConfigError, DataError

CASSAVA = "image_id,label\n1.jpg,0\n2.jpg,3\n3.jpg,0\n"


def make(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A competition's folder: flat photos, of which one has no label."""
    return make(tmp_path / "data", *(f"train_images/{number}.jpg" for number in (1, 2, 3)), "test_images/9.jpg")


def read(root: Path, table: str | bytes, *columns: str, name: str = "train.csv") -> PhotoFolder:
    (root / name).write_bytes(table if isinstance(table, bytes) else table.encode())
    return read_layout(root, Layout(label_file=root / name, label_columns=columns))


def labels(folder: PhotoFolder) -> dict[str, str]:
    return {sample.path.rpartition("/")[2]: folder.classes[sample.label] for sample in folder.samples}


WANTED = {"1.jpg": "0", "2.jpg": "3", "3.jpg": "0"}


def test_a_table_gives_the_labels(photos: Path) -> None:
    folder = read(photos, CASSAVA)
    assert folder.classes == ("0", "3")
    assert labels(folder) == WANTED
    assert folder.given_split is None
    assert folder.unlabelled == ("test_images/9.jpg",)
    assert folder.problems == ()
    assert folder.notes[0].endswith("photos from column 'image_id', labels from 'label'")
    assert "labels are numbers" in folder.notes[1]


@pytest.mark.parametrize(
    "table",
    [
        b"\xef\xbb\xbf" + CASSAVA.encode(),
        CASSAVA.replace(",", ";").replace("\n", "\r\n").encode(),
        CASSAVA.replace(",", "\t").encode("utf-16"),
        b"Label Name|File Name\n0|1.jpg\n3|2.jpg\n0|3.jpg\n",
        b'"Image","Class","Notes"\n"1.jpg","0","a, b"\n"2.jpg","3"\n\n"3.jpg","0",""\n',
        b"id,label\n1,0\n2,3\n3,0\n",
        b"path,label\ntrain_images\\1.jpg,0\n.\\train_images\\2.jpg,3\n./train_images/3.jpg,0\n",
        b"path,label\n/kaggle/input/imgs/1.jpg,0\n/kaggle/input/imgs/2.jpg,3\n/kaggle/input/imgs/3.jpg,0\n",
        b"filename,label\n1.JPG,0\n2.JPG,3\n3.JPG,0\n",
        b"image_id,filename,label\n77,1.jpg,0\n78,2.jpg,3\n79,3.jpg,0\n",
        # Numbers of rows that are names of other photos as well.
        b"id,fname,label\n3,1.jpg,0\n1,2.jpg,3\n2,3.jpg,0\n",
        b"id,fname,label\n3,1.jpg,0\n1,2.jpg,3\n2,3.jpg,0\n9,8.jpg,0\n",
        b"image_id,mask,label\n./1,9.jpg,0\n./2,9.jpg,3\n./3,9.jpg,0\n",
        b"id,photo_url,name,label\n1,a.com/m.jpg,x,0\n2,a.com/m.jpg,x,3\n3,a.com/m.jpg,y,0\n",
        b'image, label, note\n"1.jpg", "0", "a, b"\n2.jpg, "3"\n3.jpg, 0\n',
        CASSAVA.replace("\n", "\r").encode(),
        b"sep=;\r\nimage;label\r\n1.jpg;0\r\n2.jpg;3\r\n3.jpg;0\r\n",
        b"image_id,0,3,7\n1,1,0,0\n2,0,1,0,\n3,1,0,0\n",
    ],
)
def test_tables_of_other_programs_give_the_same(photos: Path, table: bytes) -> None:
    assert labels(read(photos, table)) == WANTED


def test_columns_may_be_named(photos: Path) -> None:
    table = "Foto;Befund;Teil\n1.jpg;rust;Training\n2.jpg;scab;test\n3.jpg;rust;dev\n"
    with pytest.raises(DataError, match=r"a column of labels with a usual name; got 'Foto', 'Befund', 'Teil'"):
        read(photos, table)
    folder = read(photos, table, "Foto", "Befund", "Teil")
    assert folder.classes == ("rust", "scab")
    assert set((folder.given_split or {}).values()) == {"train", "val", "test"}
    assert read(photos, table, "Foto", "Befund").given_split is None
    with pytest.raises(DataError, match="got 'Befnd'; did you mean 'Befund'"):
        read(photos, table, "Foto", "Befnd")


def test_of_a_number_and_a_name_the_name_is_the_label(photos: Path) -> None:
    assert read(photos, "image,label,disease\n1.jpg,0,rust\n2.jpg,1,scab\n3.jpg,0,rust\n").classes == ("rust", "scab")
    with pytest.raises(DataError, match="got 'label' and 'disease', which have different classes"):
        read(photos, "image,label,disease\n1.jpg,0,rust\n2.jpg,1,scab\n3.jpg,1,rust\n")


def test_of_several_columns_of_one_name_all_count(photos: Path) -> None:
    with pytest.raises(DataError, match="got 'label' and 'Label', which have different classes"):
        read(photos, "image,label,Label\n1.jpg,a,b\n2.jpg,b,b\n3.jpg,a,a\n")


def test_labels_of_several_classes_are_reported(photos: Path) -> None:
    found = read(photos, "image,labels\n1.jpg,scab\n2.jpg,scab frog_eye\n3.jpg,frog_eye\n")
    assert "labels such as 'scab frog_eye' name several classes: each such combination" in " ".join(found.notes)
    assert not any("such as" in note for note in read(photos, "image,label\n1.jpg,a b\n2.jpg,c b\n3.jpg,b\n").notes)


def test_a_column_of_splits_is_taken(photos: Path) -> None:
    folder = read(photos, "image,label,split\n1.jpg,a,train\n2.jpg,b,Validation\n3.jpg,a,eval\n")
    parts = ("train", "val", "test")
    assert folder.given_split == {f"train_images/{n}.jpg": part for n, part in enumerate(parts, 1)}
    folds = read(photos, "image,label,fold\n1.jpg,a,0\n2.jpg,b,1\n3.jpg,a,2\n")
    assert folds.given_split is None
    assert "column 'fold' is not used, because it does not name train, val or test" in folds.notes
    with pytest.raises(DataError, match="train, val or test in column 'split'; got 'tarin' in line 3"):
        read(photos, "image,label,split\n1.jpg,a,train\n2.jpg,b,tarin\n3.jpg,a,test\n")


def test_a_column_of_splits_says_nothing_of_folders(tmp_path: Path, write_photo: PhotoWriter) -> None:
    root, lines = tmp_path / "data", ["image,label,split"]
    for number, farm in enumerate(("north", "south", "east")):
        for name in ("IMG_1", "IMG_1_flip"):
            write_photo(root / farm / f"{name}.png", seed=10 * number + len(name))
            lines.append(f"{farm}/{name}.png,rust,{('train', 'val', 'test')[number]}")
        write_photo(root / farm / "other.png", seed=100 + number)
        lines.append(f"{farm}/other.png,healthy,{('train', 'val', 'test')[number]}")
    (root / "train.csv").write_text("\n".join(lines))
    data = prepare_data(root, layout=Layout(label_file=root / "train.csv"))
    leaves = [{sample.leaf_id for sample in part} for part in (data.train, data.val, data.test)]
    assert [len(part) for part in leaves] == [2, 2, 2]
    assert len(set().union(*leaves)) == sum(map(len, leaves))


def test_split_folders_of_labelled_photos_are_obeyed(photos: Path) -> None:
    folder = read(photos, CASSAVA + "9.jpg,3\n")
    assert folder.given_split is not None
    assert folder.given_split["test_images/9.jpg"] == "test"
    assert folder.given_split["train_images/1.jpg"] == "train"


def test_rows_of_absent_photos_are_a_problem(photos: Path) -> None:
    make(photos, "train_images/8.dng")
    folder = read(photos, CASSAVA + "7.jpg,0\n8.dng,0\n")
    assert folder.problems[0].startswith("2 rows of '")
    assert folder.problems[0].endswith("without a photo that exists and can be read, the first '7.jpg' (line 5)")
    assert folder.non_photo_files == ("train_images/8.dng",)
    absent = r"got no photo for 2 of its 2 rows, the first 'x.jpg' \(column 'image', line 2\)"
    with pytest.raises(DataError, match=absent):
        read(photos, "image,label\nx.jpg,a\ny.jpg,b\n")


def test_rows_that_name_a_photo_again(photos: Path) -> None:
    folder = read(photos, CASSAVA + "train_images/1.jpg,0\n")
    assert "rows that have no label or repeat another row are ignored (1)" in folder.notes
    with pytest.raises(DataError, match=r"one label for each photo; got '0' and '3' for '.*1.jpg' in lines 2 and 5"):
        read(photos, CASSAVA + "1.jpg,3\n")


def test_rows_without_a_label_are_left_out(photos: Path) -> None:
    folder = read(photos, "image,label\n1.jpg,a\n2.jpg,b\n3.jpg,\n")
    assert labels(folder) == {"1.jpg": "a", "2.jpg": "b"}
    assert folder.unlabelled == ("test_images/9.jpg", "train_images/3.jpg")


def test_a_name_of_two_photos_is_refused_and_a_path_tells_them_apart(photos: Path) -> None:
    make(photos, "test_images/1.jpg")
    with pytest.raises(DataError, match=r"'1.jpg' in line 2 of .* fits 'test_images/1.jpg' and 'train_images/1.jpg'"):
        read(photos, CASSAVA)
    table = "path,label\ntrain_images/1.jpg,a\ntest_images/1.jpg,b\ntrain_images/2.jpg,b\n"
    assert read(photos, table).classes == ("a", "b")
    # Of the photos beside the table.
    assert labels(read(photos, CASSAVA, name="train_images/labels.csv")) == WANTED


def test_a_path_into_another_folder_is_no_photo_of_that_name(photos: Path) -> None:
    table = "path,label\nval/1.jpg,a\ntrain_images/2.jpg,b\ntrain_images/3.jpg,a\n"
    folder = read(photos, table)
    assert labels(folder) == {"2.jpg": "b", "3.jpg": "a"}
    assert "'val/1.jpg'" in folder.problems[0]
    # The data folder's own name counts.
    (photos / "train.csv").write_text("path,label\ntrain_images/2.jpg,b\ntrain_images/3.jpg,a\nval/1.jpg,a\n")
    inside = read_layout(photos / "train_images", Layout(label_file=photos / "train.csv"))
    assert labels(inside) == {"2.jpg": "b", "3.jpg": "a"}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (b"\x89PNG\r\n\x1a\n\xff\xfa", "a CSV or TSV file in UTF-8"),
        ("image,label\n1.jpg,Rost grün\n".encode("cp1252"), "save it as CSV UTF-8"),
        (b"image,label\n", "got no rows"),
        (b"image,label\n1.jpg,a,b\n2.jpg,b\n", "2 cells in each row; got 3 in line 2"),
        (b'image,label\n"1.jpg,a\n2.jpg,b\n', "a CSV or TSV file"),
        (b"image,label\n1.jpg,a\n2.jpg,a\n", "at least two classes; got only 'a' in column 'label'"),
        (
            b"image,rust,scab\n1.jpg,1,1\n2.jpg,0,1\n",
            "a column of labels with a usual name; got 'image', 'rust', 'scab'",
        ),
        (b"1.jpg,a\n2.jpg,b\n", "names; got '1.jpg,a' in '"),
        (b"1.jpg 0\n2.jpg 1\n", "add a line such as image,label above it"),
        (b'{\n"1.jpg": "a",\n"2.jpg": "b"}\n', "(JSON, XML or not text); save it as CSV UTF-8"),
        ("image,label\n1.jpg,a\n".encode("utf-16-le"), "(JSON, XML or not text); save it as CSV UTF-8"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused_in_one_line(photos: Path, table: bytes, message: str) -> None:
    with pytest.raises(DataError) as caught:
        read(photos, table)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_table_is_named(photos: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere.csv' \(No such file or directory\); check --labels"):
        read_layout(photos, Layout(label_file=photos / "nowhere.csv"))


def test_options_that_exclude_each_other_are_refused(photos: Path) -> None:
    with pytest.raises(ConfigError, match="leave out --nested or --flat"):
        Layout(nested=True, label_file=photos / "train.csv")
    with pytest.raises(ConfigError, match="a label file for --label-columns"):
        Layout(label_columns=("a", "b"))
    with pytest.raises(ConfigError, match="IMAGE,LABEL or IMAGE,LABEL,SPLIT; got 'a'"):
        Layout(label_file=photos / "train.csv", label_columns=("a",))


@pytest.fixture
def drawn(tmp_path: Path, write_photo: PhotoWriter) -> Path:
    """24 different photos in one folder, and their labels."""
    root = tmp_path / "drawn"
    for number in range(24):
        write_photo(root / "images" / f"{number}.png", number)
    rows = (f"{number},{'rust' if number % 2 else 'scab'}\n" for number in range(24))
    (root / "labels.csv").write_text("id,class\n" + "".join(rows))
    return root


def test_labels_take_part_in_the_fingerprint(drawn: Path) -> None:
    layout = Layout(label_file=drawn / "labels.csv")
    first = prepare_data(drawn, layout=layout)
    assert (len(first.train), first.classes) == (16, ("rust", "scab"))
    text = layout.label_file.read_text().replace("\n23,rust", "\n23,scab")  # type: ignore[union-attr]
    (drawn / "labels.csv").write_text(text)
    assert prepare_data(drawn, layout=layout).fingerprint != first.fingerprint


def test_check_reports_what_the_table_lacks(drawn: Path, write_photo: PhotoWriter) -> None:
    write_photo(drawn / "images" / "new.png", 99)
    with (drawn / "labels.csv").open("a") as file:
        file.write("gone.jpg,rust\n")
    result = check(drawn, layout=Layout(label_file=drawn / "labels.csv"))
    assert [one.photos for one in result.classes] == [12, 12]
    assert len(result.problems) == 1
    assert "'gone.jpg' (line 26)" in result.problems[0]
    assert "left out: 1 photo without a label, the first 'images/new.png'" in result.notes


def test_only_test_photos_cannot_be_trained_on(drawn: Path) -> None:
    text = (drawn / "labels.csv").read_text().replace("\n", ",test\n").replace("class,test", "class,split")
    (drawn / "labels.csv").write_text(text)
    with pytest.raises(DataError, match="photos to train on; got none"):
        prepare_data(drawn, layout=Layout(label_file=drawn / "labels.csv"))


def test_a_row_of_another_farm_is_absent_and_alike_labels_are_named(tmp_path: Path) -> None:
    for name in ("farm1/day1/1.jpg", "farm1/day2/1.jpg", "farm1/day2/2.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    file = tmp_path / "labels.csv"
    rows = ("farm2/day1/1.jpg,scab", "farm1/day1/1.jpg,Rust", "farm1/day2/1.jpg,rust", "farm1/day2/2.jpg,a")
    file.write_text("\n".join(("path,label", *rows)))
    folder = read_layout(tmp_path, Layout(label_file=file))
    assert [sample.path for sample in folder.samples] == ["farm1/day1/1.jpg", "farm1/day2/1.jpg", "farm1/day2/2.jpg"]
    assert folder.classes == ("Rust", "a", "rust")
    assert folder.alike_names == (("Rust", "rust"),)
