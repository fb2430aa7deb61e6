"""AffectNet: npy files beside the pictures, and the older tables."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shards.align import AlignConfig
from shards.labels import DataError, ReadError
from shards.records import Encoded, Rejected
from shards.sources import AlignedFaces, build_source
from shards.sources.affectnet import CLASSES, five_points, read_npy
from shards.sources.pictures import FolderPictures
from shards.template import TEMPLATE
from tests.shards.sources.affect_layouts import (
    affectnet_files,
    affectnet_tables,
    landmarks68,
    npy,
)
from tests.shards.sources.layouts import labels, made, write_files, write_zip


def source(path: Path, align: AlignConfig | None = None, **options: Any) -> AlignedFaces:
    return build_source("affectnet", path, align, **({"allow_partial": True} | options))


@pytest.mark.parametrize("as_text", [True, False])
def test_npy_files_hold_numbers_or_text(tmp_path: Path, as_text: bool) -> None:
    faces = source(write_files(tmp_path, affectnet_files(as_text)))
    assert faces.info.label_space.expr == CLASSES and faces.info.label_space.au == ()
    assert faces.splits() == ["train", "val"]
    records = made(faces)
    assert list(records) == [str(3 * expr) for expr in range(8)]
    assert [labels(record)["expr"] for record in records.values()] == list(CLASSES)
    assert [record.expr for record in records.values() if isinstance(record, Encoded)] == list(range(8))
    assert labels(records["6"]) == {"expr": "sadness", "valence": pytest.approx(-0.2), "arousal": 0.25}
    assert labels(records["3"]) == {"expr": "happiness", "valence": pytest.approx(-0.3)}
    assert [labels(record)["expr"] for record in made(faces, "val").values()] == ["contempt", "happiness"]
    assert faces.info.settings["counts"]["train"]["labels"] == {f"expr {name}": 1 for name in CLASSES}


def test_landmarks_spare_the_detector(tmp_path: Path) -> None:
    path = write_files(tmp_path, affectnet_files())
    faces = source(path)
    assert faces.align.mode == "given"
    raw = faces.raw.open_reader()(faces.items("train")[0])
    assert np.allclose(raw.landmarks, TEMPLATE * 2)
    assert source(path, landmarks=False).align.mode == "detect"
    unaligned = source(path, AlignConfig(mode="none"), landmarks=False)
    assert all(isinstance(record, Encoded) for record in made(unaligned).values())


@pytest.mark.parametrize("header", [True, False])
def test_tables_give_classes_affect_and_landmarks(tmp_path: Path, header: bool) -> None:
    faces = source(write_files(tmp_path, affectnet_tables(header)))
    assert faces.align.mode == "given"
    records = made(faces)
    assert [labels(record)["expr"] for record in records.values()] == list(CLASSES)
    assert labels(records["689_02ab"]) == {"expr": "sadness", "valence": -0.017253, "arousal": 0.25}
    assert [labels(record) for record in made(faces, "val").values()] == [
        {"expr": "contempt"},
        {"expr": "neutral", "valence": 0, "arousal": 0},
    ]
    raw = faces.raw.open_reader()(faces.items("train")[0])
    assert np.allclose(raw.landmarks, TEMPLATE * 2 + (40, 30), atol=0.01)
    train = faces.info.settings["counts"]["train"]
    assert (train["rows"], train["used"]) == (11, 8)
    assert train["dropped"] == {"no face": 1, "none": 1, "uncertain": 1}


@pytest.mark.parametrize("write", [affectnet_files, affectnet_tables])
def test_seven_classes_leave_out_contempt(tmp_path: Path, write: Any) -> None:
    faces = source(write_files(tmp_path, write()), num_classes=7)
    assert faces.info.label_space.expr == CLASSES[:7]
    assert [len(faces.items(split)) for split in ("train", "val")] == [7, 1]
    assert faces.info.settings["counts"]["train"]["dropped"]["contempt"] == 1
    with pytest.raises(DataError, match="num_classes=6: must be 8, or 7"):
        source(tmp_path, num_classes=6)


def test_a_zip_is_read_in_place(tmp_path: Path) -> None:
    files = affectnet_files()
    expected = made(source(write_files(tmp_path / "folders", files)))
    write_zip(tmp_path / "train_set.zip", {n: c for n, c in files.items() if n.startswith("train_set")})
    assert made(source(tmp_path)) == expected


def test_faces_without_a_partner_are_counted_and_many_refused(tmp_path: Path) -> None:
    files = affectnet_files()
    del files["train_set/images/0.jpg"], files["train_set/annotations/3_exp.npy"]
    files["train_set/annotations/6_exp.npy"] = npy("11")
    path = write_files(tmp_path, files)
    with pytest.raises(DataError, match=r"3 of 8 rows cannot be used: 1 no annotation \(as 'images/3.jpg'\)"):
        source(path)
    faces = source(path, max_unused=0.4)
    assert faces.info.settings["counts"]["train"]["unusable"] == {
        "invalid": 1,
        "no annotation": 1,
        "no image": 1,
    }
    assert len(made(faces)) == 5


def test_an_annotation_that_lacks_a_file_is_counted(tmp_path: Path) -> None:
    files = affectnet_files()
    del files["train_set/annotations/9_val.npy"], files["train_set/annotations/12_lnd.npy"]
    path = write_files(tmp_path, files)
    for landmarks, count in ((True, 2), (False, 1)):
        faces = source(path, max_unused=0.4, landmarks=landmarks)
        assert faces.info.settings["counts"]["train"]["unusable"] == {"no annotation": count}


def test_a_disk_that_fails_while_expressions_are_listed_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_files(tmp_path, affectnet_files())

    def failing(pictures: FolderPictures, name: str) -> bytes:
        raise ReadError("cannot read: Stale file handle")

    monkeypatch.setattr(FolderPictures, "read", failing)
    with pytest.raises(DataError, match=r"_exp\.npy: cannot read: Stale file handle"):
        source(path, max_unused=1.0)


@pytest.mark.parametrize(
    ("kind", "data", "reason"),
    [
        ("val", npy("loud"), "valence must be a number"),
        ("aro", npy(1.5), r"arousal must be a number in \[-1, 1\], got '1.5'$"),
        ("aro", npy([0.1, 0.2]), "arousal must be one value, got 2"),
        ("aro", b"", "aro is not a plain npy file"),
        ("lnd", npy(np.zeros(10)), r"lnd must be 68 points \(136 numbers\), got 10"),
        ("lnd", npy(["x"] * 136), "lnd must be 68 points"),
    ],
)
def test_a_damaged_annotation_costs_one_face(tmp_path: Path, kind: str, data: bytes, reason: str) -> None:
    files = affectnet_files()
    files[f"train_set/annotations/9_{kind}.npy"] = data
    record = made(source(write_files(tmp_path, files)))["9"]
    assert isinstance(record, Rejected)
    assert re.search(reason, record.reason)


def test_nothing_is_unpickled() -> None:
    objects = np.empty(1, object)
    objects[0] = {"a": 1}
    with pytest.raises(DataError, match="exp is not a plain npy file"):
        read_npy(npy(objects), "exp")
    for data in (b"", b"PK\x03\x04", npy(3)[:-4], b"\x80\x04K\x01."):
        with pytest.raises(DataError, match="not a plain npy file"):
            read_npy(data, "exp")


def test_five_points_from_sixty_eight() -> None:
    assert np.allclose(five_points(landmarks68().reshape(-1), "here"), TEMPLATE)
    with pytest.raises(DataError, match=r"here must be 68 points \(136 numbers\), got 1 values"):
        five_points(np.array(["NULL"]), "here")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            ",0,-0.017253",
            ",12,-0.017253",
            r"line 2: expression must be a whole number from 0 to 10, got '12'",
        ),
        (",0,-0.017253", ",joy,-0.017253", r"line 2: expression must be .*'joy'"),
        (",0,-0.017253", ",0,7", r"line 2: valence must be a number in \[-1, 1\], got '7'\)"),
        ("689/00ab", "689/ffab", r"1 no image \(as training.csv line 2: '689/ffab.jpg'\)"),
        ("689/02ab", "689/00ab", r"1 repeated .*line 4.*first: training.csv line 2"),
        (",face_y", ",face_why", r"line 1: no column 'face_y'"),
        (",134,134", ",134", r"line 2: 8 cells instead of 9"),
        (";", " ", r"line 2: facial_landmarks must be 68 points .*got 1 values"),
    ],
)
def test_bad_tables_name_the_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    files = affectnet_tables()
    name = "Manually_Annotated_file_lists/training.csv"
    files[name] = str(files[name]).replace(old, new)
    with pytest.raises(DataError, match=message):
        source(write_files(tmp_path, files))


def test_totals_and_layouts_are_checked(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"8 faces instead of about 287651"):
        source(write_files(tmp_path / "npy", affectnet_files()), allow_partial=False)
    path = write_files(tmp_path / "tables", affectnet_tables())
    with pytest.raises(DataError, match=r"training.csv: 8 faces instead of about 287651"):
        source(path, allow_partial=False)
    (path / "Manually_Annotated_file_lists/validation.csv").unlink()
    with pytest.raises(DataError, match=r"no validation.csv"):
        source(path, allow_partial=False)
    (path / "Manually_Annotated_Images").rename(path / "pictures")
    with pytest.raises(DataError, match="not in a layout of AffectNet"):
        source(path)
    assert len(made(source(path, images="pictures"))) == 8
