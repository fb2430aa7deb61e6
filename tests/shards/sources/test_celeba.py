"""CelebA: the official layout, the copy with csv files, and what can be wrong with them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shards.align import AlignConfig
from shards.labels import DataError
from shards.records import Encoded, Rejected
from shards.sources import AlignedFaces, build_source
from tests.shards.sources.layouts import (
    ATTRIBUTES,
    celeba_csv_files,
    celeba_files,
    labels,
    made,
    write_files,
    write_zip,
)


def source(path: Path, align: AlignConfig | None = None, **options: Any) -> AlignedFaces:
    return build_source("celeba", path, align, **({"allow_partial": True} | options))


def zipped(root: Path) -> Path:
    files = celeba_files()
    lists = {name: content for name, content in files.items() if "/" not in name}
    write_zip(root / "img_align_celeba.zip", {n: c for n, c in files.items() if "/" in n})
    return write_files(root, lists)


@pytest.mark.parametrize("layout", ["folder", "official folders", "zip", "zip itself", "csv"])
def test_every_layout_gives_the_same_faces(tmp_path: Path, layout: str) -> None:
    if layout == "folder":
        path = write_files(tmp_path, celeba_files())
    elif layout == "official folders":
        places = {"img": "Img/", "list_eval_partition.txt": "Eval/"}
        files = {places.get(n, places.get(n[:3], "Anno/")) + n: c for n, c in celeba_files().items()}
        path = write_files(tmp_path, files)
    elif layout == "csv":
        path = write_files(tmp_path, celeba_csv_files())
    else:
        path = zipped(tmp_path) / ("img_align_celeba.zip" if layout == "zip itself" else "")
    faces = source(path)
    assert faces.align.mode == "given"
    assert [len(faces.items(split)) for split in ("train", "val", "test")] == [4, 1, 1]
    records = made(faces)
    assert list(records) == ["000001", "000002", "000003", "000004"]
    expected: dict[str, Any] = {"extra": {"attributes": dict(zip(ATTRIBUTES, (0, 1, 1)))}}
    if layout != "csv":  # that copy has no identities
        expected["identity"] = "2880"
    assert labels(records["000001"]) == expected
    assert isinstance(records["000001"], Encoded) and records["000001"].expr == -1


def test_workers_need_no_listing(tmp_path: Path) -> None:
    faces = source(write_files(tmp_path, celeba_files()))
    items = faces.items("train")
    copy = pickle.loads(pickle.dumps(faces))
    assert "_listing" not in vars(copy.raw)
    for name in ("list_eval_partition.txt", "list_attr_celeba.txt"):
        (tmp_path / name).unlink()
    assert all(isinstance(record, Encoded) for record in copy.open_maker()(items))
    assert copy.info == faces.info


def test_landmarks_are_those_of_the_list(tmp_path: Path) -> None:
    faces = source(write_files(tmp_path, celeba_files()))
    raw = faces.raw.open_reader()(faces.items("train")[0])
    assert np.asarray(raw.landmarks)[0].tolist() == [67, 117]


def test_without_landmarks_faces_are_detected(tmp_path: Path) -> None:
    files = celeba_files()
    del files["list_landmarks_align_celeba.txt"]
    assert source(write_files(tmp_path, files)).align.mode == "detect"


def test_another_count_is_an_error_with_both_numbers(tmp_path: Path) -> None:
    path = write_files(tmp_path, celeba_files())
    with pytest.raises(DataError, match=r"6 images instead of 202599.*allow_partial=true"):
        source(path, allow_partial=False)


def test_missing_images_are_named(tmp_path: Path) -> None:
    files = celeba_files()
    del files["img_align_celeba/000002.jpg"]
    path = write_files(tmp_path, files)
    with pytest.raises(DataError, match=r"5 images .* 1 named in list_eval_partition.txt .*as 000002.jpg"):
        source(path, allow_partial=False)
    assert list(made(source(path))) == ["000001", "000003", "000004"]


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("list_eval_partition.txt", "000003.jpg 0", "000003.jpg 7", r"line 3: partition must be .*got 7"),
        ("list_eval_partition.txt", "000003.jpg 0", "000003.jpg", r"line 3: 1 cells instead of 2"),
        ("list_eval_partition.txt", "000003.jpg 0", "000002.jpg 0", r"line 3: '000002.jpg' occurs twice"),
        ("list_eval_partition.txt", "000003.jpg 0", "000003.jpg x", r"line 3: expected whole .*'x'"),
        ("list_attr_celeba.txt", "000001.jpg -1", "000001.jpg 5", r"line 3: attributes must be .*got 5"),
        ("list_attr_celeba.txt", "6\n", "7\n", r"states 7 images, but has 6 rows"),
        ("list_attr_celeba.txt", "6\n", "six\n", r"line 1: expected the number of images, got 'six'"),
        ("list_landmarks_align_celeba.txt", "000002.jpg  ", "000002.jpg 1 ", r"line 4: 12 cells"),
    ],
)
def test_bad_lists_name_the_line(tmp_path: Path, name: str, old: str, new: str, message: str) -> None:
    files = celeba_files()
    files[name] = str(files[name]).replace(old, new, 1)
    with pytest.raises(DataError, match=message):
        source(write_files(tmp_path, files))


@pytest.mark.parametrize(
    ("name", "message"),
    [("list_eval_partition.txt", "no list_eval_partition"), ("img_align_celeba", "no CelebA images")],
)
def test_missing_parts_are_named(tmp_path: Path, name: str, message: str) -> None:
    files = {n: content for n, content in celeba_files().items() if not n.startswith(name)}
    with pytest.raises(DataError, match=message):
        source(write_files(tmp_path, files))


def test_marks_and_line_ends_do_not_matter(tmp_path: Path) -> None:
    files = {
        name: b"\xef\xbb\xbf" + content.replace("\n", " \r\n").encode()
        if isinstance(content, str)
        else content
        for name, content in celeba_files().items()
    }
    assert labels(made(source(write_files(tmp_path, files)))["000001"])["identity"] == "2880"


def test_damaged_image_is_rejected(tmp_path: Path) -> None:
    files = celeba_files()
    files["img_align_celeba/000002.jpg"] = bytes(files["img_align_celeba/000002.jpg"])[:300]  # type: ignore[arg-type]
    records = made(source(write_files(tmp_path, files)))
    assert records["000002"] == Rejected("000002", "cannot decode: cut short")
    assert len(records) == 4
