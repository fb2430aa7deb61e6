"""RAF-DB: the list with labels from 1, aligned pictures, a val split of our own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shards.labels import DataError
from shards.records import Encoded
from shards.sources import AlignedFaces, build_source
from tests.shards.sources.affect_layouts import rafdb_files
from tests.shards.sources.layouts import drawn, labels, made, write_files, write_zip

CLASSES = ("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral")
LIST = "list_patition_label.txt"


def source(path: Path, **options: Any) -> AlignedFaces:
    return build_source("rafdb", path, None, **({"allow_partial": True, "val_fraction": 0.0} | options))


def test_labels_count_from_one(tmp_path: Path) -> None:
    faces = source(write_files(tmp_path, rafdb_files()))
    assert faces.info.label_space.expr == CLASSES
    records = made(faces)
    assert [labels(record)["expr"] for record in records.values()] == [*CLASSES, *CLASSES]
    assert [r.expr for r in records.values() if isinstance(r, Encoded)] == [*range(7), *range(7)]
    assert list(made(faces, "test")) == [f"test_{n:04d}" for n in range(1, 8)]
    counts = faces.info.settings["counts"]
    assert counts["train"]["labels"] == {f"expr {name}": 2 for name in sorted(CLASSES)}


@pytest.mark.parametrize("layout", ["flat", "basic", "zip", "plain names"])
def test_every_layout_gives_the_same_faces(tmp_path: Path, layout: str) -> None:
    files = rafdb_files()
    expected = made(source(write_files(tmp_path / "official", files)))
    if layout == "flat":
        files = {n.removeprefix("EmoLabel/").removeprefix("Image/"): c for n, c in files.items()}
    elif layout == "basic":
        files = {f"basic/{n}": c for n, c in files.items()}
    elif layout == "plain names":
        files = {n.replace("_aligned", ""): c for n, c in files.items()}
    root = write_files(
        tmp_path / "other", {n: c for n, c in files.items() if n.endswith("txt") or layout != "zip"}
    )
    if layout == "zip":
        (root / "Image").mkdir()
        pictures = {n.removeprefix("Image/"): c for n, c in files.items() if n.startswith("Image/")}
        write_zip(root / "Image" / "aligned.zip", pictures)
    assert made(source(root)) == expected


def test_pictures_are_taken_as_they_are_at_our_size(tmp_path: Path) -> None:
    faces = source(write_files(tmp_path, rafdb_files()))
    assert faces.align.mode == "none"
    assert faces.info.alignment["geometry"] == {"size": 112, "made_by": "RAF-DB: aligned"}


def test_val_is_a_share_of_train_by_key(tmp_path: Path) -> None:
    root = write_files(tmp_path, rafdb_files(200, 10))
    keys = {
        s: {item.key for item in source(root, val_fraction=0.3).items(s)} for s in ("train", "val", "test")
    }
    assert 30 < len(keys["val"]) < 90
    assert keys["train"] | keys["val"] == {f"train_{n:05d}" for n in range(1, 201)}
    assert not keys["train"] & keys["val"] and len(keys["test"]) == 10
    assert source(root, val_fraction=0.0).splits() == ["train", "test"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("train_00002.jpg 2", "train_00002.jpg 0", r"line 2: label must be from 1 to 7, got '0'"),
        ("train_00002.jpg 2", "train_00002.jpg", r"line 2: 1 cells instead of 2"),
        ("train_00002.jpg 2", "val_00002.jpg 2", r"line 2: image must be train_NUMBER.jpg"),
        ("train_00002.jpg 2", "train_00001.jpg 2", r"line 2: 'train_00001.jpg' occurs twice"),
        (
            "train_00002.jpg 2",
            "train_99999.jpg 2",
            r"1 no image .*line 2: train_99999.jpg\).*1 not in the list",
        ),
    ],
)
def test_bad_lists_name_the_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    files = rafdb_files()
    files[f"EmoLabel/{LIST}"] = str(files[f"EmoLabel/{LIST}"]).replace(old, new)
    with pytest.raises(DataError, match=message):
        source(write_files(tmp_path, files))


def test_totals_and_parts_are_checked(tmp_path: Path) -> None:
    path = write_files(tmp_path, rafdb_files())
    with pytest.raises(DataError, match=r"14 faces instead of 12271"):
        source(path, allow_partial=False)
    with pytest.raises(DataError, match=r"no list_patition_label\.txt"):
        source(write_files(tmp_path / "a", {"Image/aligned/train_00001_aligned.jpg": drawn(0)}))
    with pytest.raises(DataError, match="no Image/aligned/"):
        source(write_files(tmp_path / "b", {LIST: "train_00001.jpg 5\n"}))
