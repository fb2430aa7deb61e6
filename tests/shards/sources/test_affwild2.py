"""Aff-Wild2's static multi-task set: lists of frames, missing codes, frames used as they are."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from shards.align import AlignConfig
from shards.build import BuildConfig, build
from shards.labels import AU12, EXPR8, DataError
from shards.manifest import load_manifest
from shards.records import Encoded, Rejected
from shards.shardset import open_shards
from shards.sources import AlignedFaces, build_source
from shards.stream import eval_batches
from shards.template import TEMPLATE_NAME
from tests.shards.sources.affect_layouts import HEADER, TEST_LIST, TRAINING, affwild2_files, table
from tests.shards.sources.layouts import drawn, labels, made, write_files, write_zip

TRAIN_LIST = "training_set_annotations.txt"


def source(path: Path, align: AlignConfig | None = None, **options: Any) -> AlignedFaces:
    return build_source("affwild2", path, align, **({"allow_partial": True} | options))


def with_training(root: Path, *rows: str) -> Path:
    return write_files(root, affwild2_files() | {TRAIN_LIST: table(rows)})


def test_rows_become_labels_and_missing_ones_do_not(tmp_path: Path) -> None:
    faces = source(write_files(tmp_path, affwild2_files()))
    assert [len(faces.items(split)) for split in ("train", "val", "test")] == [4, 1, 2]
    records = made(faces)
    units = dict.fromkeys(AU12, 0) | {"AU2": 1, "AU10": 1, "AU25": 1}
    left = {"identity": "6-30-1920x1080_left", "group": "6-30-1920x1080_left"}
    assert labels(records["6-30-1920x1080_left_00001"]) == {
        "expr": "happiness",
        "valence": -0.25,
        "arousal": 0.5,
        "au": units,
        "extra": {"video": "6-30-1920x1080", "frame": 1, "name": "6-30-1920x1080_left/00001.jpg"},
        **left,
    }
    assert labels(records["6-30-1920x1080_left_00002"]) == {
        "au": units,
        "extra": {"video": "6-30-1920x1080", "frame": 2, "name": "6-30-1920x1080_left/00002.jpg"},
        **left,
    }
    right = labels(records["6-30-1920x1080_right_00001"])
    assert (right["expr"], right["valence"], right["arousal"]) == ("other", -1, 1) and "au" not in right
    assert right["identity"] == right["group"] == "6-30-1920x1080_right"
    alone = labels(records["video59_00231"])
    assert alone["extra"] == {"video": "video59", "frame": 231, "name": "video59/00231.jpg"}
    assert alone["expr"] == "neutral" and "valence" not in alone
    assert [record.expr for record in records.values() if isinstance(record, Encoded)] == [4, -1, 7, 0]


def test_test_frames_have_names_alone(tmp_path: Path) -> None:
    records = made(source(write_files(tmp_path, affwild2_files())), "test")
    assert labels(records["25-25-600x480_00010"]) == {
        "identity": "25-25-600x480",
        "group": "25-25-600x480",
        "extra": {"video": "25-25-600x480", "frame": 10, "name": "25-25-600x480/00010.jpg"},
    }


@pytest.mark.parametrize("layout", ["zip", "folders below", "named", "no header"])
def test_other_places_give_the_same(tmp_path: Path, layout: str) -> None:
    files = affwild2_files()
    expected = made(source(write_files(tmp_path / "official", files)), "test")
    options: dict[str, Any] = {}
    root = tmp_path / "other"
    if layout == "zip":
        for folder in ("cropped_aligned", "cropped_aligned_2022_MTL_test"):
            root.mkdir(exist_ok=True)
            inside = {n: files.pop(n) for n in list(files) if n.startswith(folder + "/")}
            write_zip(root / f"{folder}.zip", inside)
    elif layout == "folders below":
        files = {n if "/" in n else f"annotations/{n}": c for n, c in files.items()}
        files = {
            n.replace("cropped_aligned_2022_MTL_test", "testset/cropped_aligned"): c for n, c in files.items()
        }
    elif layout == "named":
        files = {
            n.replace("cropped_aligned_2022_MTL_test", "faces").replace(TEST_LIST, "names.csv"): c
            for n, c in files.items()
        }
        options = {"test_list": "names.csv", "test_images": "faces"}
    else:
        files[TEST_LIST] = str(files[TEST_LIST]).removeprefix(HEADER + "\n").replace("/", "\\")
    assert made(source(write_files(root, files), **options), "test") == expected


def test_test_frames_may_lie_with_the_others(tmp_path: Path) -> None:
    files = {
        n.replace("cropped_aligned_2022_MTL_test", "cropped_aligned"): c for n, c in affwild2_files().items()
    }
    assert len(made(source(write_files(tmp_path, files)), "test")) == 2


def test_frames_are_taken_as_they_are(tmp_path: Path) -> None:
    """No detector: the very bytes, and a recipe that says where the eyes lie."""
    files = affwild2_files()
    faces = source(write_files(tmp_path, files))
    assert faces.align.mode == "none"
    record = made(faces)["video59_00231"]
    assert isinstance(record, Encoded)
    assert record.members["jpg"] == files["cropped_aligned/video59/00231.jpg"]
    geometry = faces.info.alignment["geometry"]
    assert geometry["template"] == TEMPLATE_NAME and geometry["made_by"].startswith("Aff-Wild2")
    detected = source(tmp_path, AlignConfig(mode="detect")).info.alignment
    assert "made_by" not in detected["geometry"] and "detector" in detected


def test_the_manifest_accounts_for_every_row_and_label(tmp_path: Path) -> None:
    counts = source(write_files(tmp_path, affwild2_files())).info.settings["counts"]
    train = counts["train"]
    assert (train["rows"], train["used"], train["dropped"], train["unusable"]) == (4, 4, {}, {})
    assert train["labels"]["AU2"] == train["labels"]["AU2 active"] == 2
    assert train["labels"]["AU1"] == 2 and "AU1 active" not in train["labels"]
    assert train["labels"]["valence"] == train["labels"]["arousal"] == 2
    assert {name: n for name, n in train["labels"].items() if name.startswith("expr")} == {
        "expr happiness": 1,
        "expr neutral": 1,
        "expr other": 1,
    }
    assert counts["test"]["labels"] == {"none": 2}


def test_a_share_of_unusable_rows_is_counted_and_more_is_refused(tmp_path: Path) -> None:
    rows = (
        *TRAINING,
        "video59/00999.jpg,0,0,0" + ",0" * 12,
        "video59/00232.jpg,0,7,0" + ",0" * 12,
        TRAINING[0],
    )
    path = with_training(tmp_path, *rows)
    expected = (
        r"3 of 7 rows cannot be used: 1 invalid \(as .* line 7: arousal .*, got '7'\); "
        r"1 repeated \(as .* line 8: .*\); 1 no image \(as .* line 6: .*\)\. .*max_unused=0\.429"
    )
    with pytest.raises(DataError, match=expected):
        source(path)
    faces = source(path, max_unused=0.5)
    counts = faces.info.settings["counts"]["train"]
    assert counts["unusable"] == {"invalid": 1, "no image": 1, "repeated": 1}
    assert counts["rows"] == 7 and counts["used"] == len(made(faces)) == 4


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            "video59/00231.jpg,0,0,8" + ",0" * 12,
            r"line 2: expression must be one of neutral, .*, other or its number from 0, got '8'",
        ),
        ("video59/00231.jpg,0,0,happy" + ",0" * 12, r"line 2: expression must be"),
        (
            "video59/00231.jpg,1.5,0,0" + ",0" * 12,
            r"line 2: valence must be a number in \[-1, 1\], got '1.5'",
        ),
        ("video59/00231.jpg,0,nan,0" + ",0" * 12, r"line 2: arousal must be a number"),
        ("video59/00231.jpg,0,0,0" + ",2" * 12, r"line 2: AU1 must be 0 or 1, got '2'"),
        ("video59/00231.jpg,0,0,0" + ",0" * 11, r"line 2: 15 fields instead of 16"),
        ("video59_00231.jpg,0,0,0" + ",0" * 12, r"line 2: image must be like video/00001.jpg"),
        ("video59/first.jpg,0,0,0" + ",0" * 12, r"line 2: image must be like video/00001.jpg"),
    ],
)
def test_an_invalid_row_names_its_line(tmp_path: Path, row: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        source(with_training(tmp_path, row))


def test_another_length_than_the_known_one_is_refused(tmp_path: Path) -> None:
    path = write_files(tmp_path, affwild2_files())
    with pytest.raises(DataError, match=r"4 faces instead of about 142000.*allow_partial=true"):
        source(path, allow_partial=False)


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        ("training_set", "no training_set_annotations.txt"),
        ("validation_set", "no validation_set_annotations.txt"),
        ("cropped_aligned/", r"no cropped_aligned or cropped_aligned\.zip"),
    ],
)
def test_missing_parts_are_named(tmp_path: Path, gone: str, message: str) -> None:
    files = {name: c for name, c in affwild2_files().items() if not name.startswith(gone)}
    with pytest.raises(DataError, match=message):
        source(write_files(tmp_path, files), allow_partial=False)


def test_what_cannot_be_the_data_set_is_said(tmp_path: Path) -> None:
    path = write_files(tmp_path / "set", affwild2_files() | {"old/test_set.txt": "x\n"})
    (path / TEST_LIST).rename(path / "one_test_set.txt")
    with pytest.raises(DataError, match=r"could both be the list; give the one with test_list="):
        source(path)
    with pytest.raises(DataError, match=r"test_list=absent.txt: no such file"):
        source(path, test_list="absent.txt")
    with pytest.raises(DataError, match=r"images=absent: no such folder or zip"):
        source(path, test_list="one_test_set.txt", images="absent")
    with pytest.raises(DataError, match=r"max_unused=2"):
        source(path, max_unused=2)
    with pytest.raises(DataError, match=r"expected the header image,valence.*got 'a,b'"):
        source(write_files(tmp_path / "odd", affwild2_files() | {TRAIN_LIST: "a,b\nc,d\n"}))
    with pytest.raises(DataError, match=r"could both be the list; remove one of them"):
        source(write_files(tmp_path / "twice", {TRAIN_LIST: "", f"old/{TRAIN_LIST}": ""}))
    with pytest.raises(DataError, match="no such folder"):
        source(tmp_path / "absent")


def test_two_frames_of_one_name_are_refused(tmp_path: Path) -> None:
    files = affwild2_files() | {"cropped_aligned/batch2/video59/00231.jpg": drawn(7)}
    with pytest.raises(DataError, match=r"could both be 'video59/00231.jpg'"):
        source(write_files(tmp_path, files))


def test_a_damaged_frame_is_rejected_and_workers_need_no_listing(tmp_path: Path) -> None:
    path = write_files(tmp_path, affwild2_files())
    faces = source(path)
    items = faces.items("train")
    copy = pickle.loads(pickle.dumps(faces))
    (path / TRAIN_LIST).unlink()
    (path / "cropped_aligned/video59/00231.jpg").write_bytes(b"")
    records = {record.key: record for record in copy.open_maker()(items)}
    assert records["video59_00231"] == Rejected("video59_00231", "cannot decode: empty file")
    assert len(records) == 4 and "_listing" not in vars(copy.raw)


def test_from_the_lists_to_a_batch(tmp_path: Path) -> None:
    """Shards, their manifest, and the tensors that training sees."""
    faces = source(write_files(tmp_path / "raw", affwild2_files()))
    build(faces, tmp_path / "out", BuildConfig(workers=1), quiet=True)
    manifest = load_manifest(tmp_path / "out" / "train")
    assert (manifest.num_samples, manifest.num_quarantined) == (4, 0)
    assert manifest.label_space.expr == EXPR8 and manifest.label_space.au == AU12
    assert manifest.build["settings"]["counts"]["train"]["used"] == 4
    [batch] = eval_batches(open_shards(str(tmp_path / "out"), "train"), 4, (112, 112))
    assert batch.keys[0] == "6-30-1920x1080_left_00001"
    assert batch.labels.va.tolist()[0] == [-0.25, 0.5]
    assert batch.labels.va_valid.all(1).tolist() == [True, False, True, False]
    assert batch.labels.expr_valid.tolist() == [True, False, True, True]
    assert batch.labels.expr.tolist()[0] == 4
    assert batch.labels.au_valid.all(1).tolist() == [True, True, False, False]
    assert batch.labels.au.tolist()[0] == [0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0]
