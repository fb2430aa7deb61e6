"""LSD: folders of classes, lists beside them, a test split without labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shards.labels import DataError
from shards.records import Encoded
from shards.sources import AlignedFaces, build_source
from tests.shards.sources.affect_layouts import lsd_files, lsd_lists
from tests.shards.sources.layouts import drawn, labels, made, write_files, write_zip

CLASSES = ("anger", "disgust", "fear", "happiness", "sadness", "surprise")


def source(path: Path, **options: Any) -> AlignedFaces:
    return build_source("lsd", path, None, **({"allow_partial": True} | options))


def test_folders_are_classes_however_they_are_spelt(tmp_path: Path) -> None:
    faces = source(write_files(tmp_path, lsd_files()))
    assert faces.info.label_space.expr == CLASSES and faces.info.label_space.au == ()
    assert [len(faces.items(split)) for split in faces.splits()] == [12, 6, 3]
    records = made(faces)
    assert labels(records["ANGERE_1"]) == {"expr": "anger", "extra": {"name": "ANGERE/1.jpg"}}
    assert labels(records["SURPRISE_2"])["expr"] == "surprise"
    assert [r.expr for r in records.values() if isinstance(r, Encoded)] == [n // 2 for n in range(12)]
    assert [labels(record)["expr"] for record in made(faces, "val").values()] == list(CLASSES)
    assert labels(made(faces, "test")["0"]) == {"extra": {"name": "0.jpg"}}
    counts = faces.info.settings["counts"]
    assert counts["train"]["labels"] == {f"expr {name}": 2 for name in CLASSES}
    assert counts["test"]["labels"] == {"none": 3}


def test_faces_are_taken_as_they_are(tmp_path: Path) -> None:
    files = lsd_files()
    faces = source(write_files(tmp_path, files))
    record = made(faces)["FEAR_1"]
    assert isinstance(record, Encoded)
    assert record.members["jpg"] == files["training_set_synthetic_images/FEAR/1.jpg"]
    assert faces.info.alignment["mode"] == "none"
    assert faces.info.alignment["geometry"]["made_by"].startswith("LSD")


def test_lists_say_the_same_as_folders(tmp_path: Path) -> None:
    """Numbers and names; a picture named with and without its folder."""
    by_folder = source(write_files(tmp_path / "folders", lsd_files()))
    by_list = source(write_files(tmp_path / "lists", lsd_files() | lsd_lists()))
    assert made(by_list) == made(by_folder)
    expected = [labels(record)["expr"] for record in made(by_folder, "val").values()]
    assert [labels(record)["expr"] for record in made(by_list, "val").values()] == expected
    assert list(by_list.info.settings["lists"]) == [
        "training_set_labels.txt",
        "validation_set_labels.txt",
        "test_set_names.txt",
    ]


def test_a_flat_folder_needs_its_list(tmp_path: Path) -> None:
    files = {
        name.replace("images/", "images/|").split("|")[0] + name.rsplit("/", 1)[1]
        if name.startswith("validation")
        else name: content
        for name, content in lsd_files().items()
    }
    path = write_files(tmp_path, files)
    with pytest.raises(DataError, match=r"6 of 6 rows .* 6 without a class .*give val_list="):
        source(path)
    (path / "val.txt").write_text(str(lsd_lists()["validation_set_labels.txt"]))
    faces = source(path, val_list="val.txt")
    assert [labels(record)["expr"] for record in made(faces, "val").values()] == list(CLASSES)


def test_zips_are_read_in_place(tmp_path: Path) -> None:
    files = lsd_files()
    expected = made(source(write_files(tmp_path / "folders", files)))
    for folder in ("training_set_synthetic_images", "validation_set_real_images"):
        write_zip(tmp_path / f"{folder}.zip", {n: c for n, c in files.items() if n.startswith(folder)})
    faces = source(tmp_path)
    assert faces.splits() == ["train", "val"] and made(faces) == expected


def test_the_test_list_says_which_pictures(tmp_path: Path) -> None:
    path = write_files(tmp_path, lsd_files() | {"test_set_names.txt": "2.jpg\n0.jpg\n"})
    with pytest.raises(DataError, match=r"1 of 3 rows .*1 not in the list \(as '1\.jpg'\)"):
        source(path)
    assert list(made(source(path, max_unused=0.5), "test")) == ["2", "0"]
    (path / "test_set_names.txt").unlink()
    assert list(made(source(path), "test")) == ["0", "1", "2"]
    (path / "test_set_real_images").rename(path / "track_2_test_data")
    assert source(path).splits() == ["train", "val"]
    assert len(made(source(path, test_images="track_2_test_data"), "test")) == 3


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "FEAR/1.jpg,2",
            "FEAR/1.jpg,0",
            r"line 6: '0' \(anger\), but the picture lies in the folder of fear",
        ),
        ("FEAR/1.jpg,2", "FEAR/1.jpg,6", r"line 6: label must be one of anger.*from 0, got '6'"),
        ("FEAR/1.jpg,2", "FEAR/1.jpg,calm", r"line 6: label must be one of .*got 'calm'"),
        ("FEAR/1.jpg,2", "FEAR/1.jpg", r"line 6: 0 labels instead of one"),
        ("FEAR/1.jpg,2", "FEAR/9.jpg,2", r"1 no image .*line 6.*1 not in the list \(as 'FEAR/1.jpg'\)"),
        ("FEAR/1.jpg,2", "FEAR/2.jpg,2", r"1 repeated .*line 7.*first: .*line 6"),
    ],
)
def test_bad_rows_name_the_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    lists = lsd_lists()
    lists["training_set_labels.txt"] = str(lists["training_set_labels.txt"]).replace(old, new)
    with pytest.raises(DataError, match=message):
        source(write_files(tmp_path, lsd_files() | lists))


def test_names_without_folders_must_be_unique(tmp_path: Path) -> None:
    lists = {"training_set_labels.txt": "1.jpg,anger\n"}
    with pytest.raises(DataError, match=r"could both be '1.jpg'; .* give the list with folders"):
        source(write_files(tmp_path, lsd_files() | lists))


def test_unknown_folders_and_wrong_totals_are_refused(tmp_path: Path) -> None:
    path = write_files(tmp_path, lsd_files())
    with pytest.raises(DataError, match=r"12 faces instead of about 277000"):
        source(path, allow_partial=False)
    write_files(path, {"training_set_synthetic_images/NEUTRAL/1.jpg": drawn(1)})
    with pytest.raises(DataError, match=r"1 without a class \(as 'NEUTRAL/1.jpg': in no folder of anger"):
        source(path)
    with pytest.raises(DataError, match=r"no training_set_synthetic_images; SRC should hold"):
        source(write_files(tmp_path / "bare", {"a.jpg": drawn(0)}))
