"""EmotioNet: a table of addresses with action units, images in img2dataset's tars."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

import pytest

from shards.align import AlignConfig
from shards.labels import DataError
from shards.sources import AlignedFaces, build_source
from tests.shards.sources.layouts import drawn, img2dataset_tar, labels, made, write_tar

TABLE = """\
URL,AU 1,AU 2,AU 5,AU 12
http://a/1.jpg,1,0,999,1
http://a/2.jpg,999,0,1,
http://a/dead.jpg,0,0,0,0
"""


def layout(root: Path, table: str = TABLE, urls: dict[str, str] | None = None) -> Path:
    (root / "emotionet.csv").write_text(table)
    img2dataset_tar(root / "00000.tar", urls or {"000": "http://a/1.jpg", "001": "http://a/2.jpg"})
    return root


def source(path: Path, **options: Any) -> AlignedFaces:
    return build_source(
        "emotionet", path, AlignConfig(mode="none", size=32), **({"val_fraction": 0} | options)
    )


def test_units_are_matched_by_address(tmp_path: Path) -> None:
    faces = source(layout(tmp_path))
    records = made(faces)
    assert labels(records["000"]) == {
        "au": {"AU1": 1, "AU2": 0, "AU12": 1},
        "extra": {"url": "http://a/1.jpg"},
    }
    assert labels(records["001"]) == {"au": {"AU2": 0}, "extra": {"au": {"AU5": 1}, "url": "http://a/2.jpg"}}
    assert faces.info.settings["rows_without_image"] == 1
    assert faces.info.settings["images_without_row"] == 0
    assert faces.info.label_space.expr == ()


def test_images_without_a_row_are_an_error_unless_allowed(tmp_path: Path) -> None:
    root = layout(tmp_path, urls={"000": "http://a/1.jpg", "001": "http://b/other.jpg"})
    with pytest.raises(DataError, match="1 of 2 images have a url that is not in the table"):
        source(root)
    faces = source(root, max_unmatched=0.6)
    assert labels(made(faces)["001"]) == {"extra": {"url": "http://b/other.jpg"}}
    assert faces.info.settings["images_without_row"] == 1


def test_a_damaged_json_counts_as_no_row(tmp_path: Path) -> None:
    root = layout(tmp_path)
    files: dict[str, bytes | str | tarfile.TarInfo] = {"009.jpg": drawn(9), "009.json": "{"}
    write_tar(root / "00001.tar", files)
    assert source(root, max_unmatched=0.5).info.settings["images_without_row"] == 1


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (TABLE.replace("1,0,999,1", "1,0,2,1"), r"line 2: AU5 must be 0 or 1, got '2'"),
        (TABLE.replace("1,0,999,1", "1,0,9.5,1"), r"line 2: AU5 .*missing=9.5"),
        (TABLE.replace("URL", "Link"), "needs a header with a column `url`"),
        ("url,caption\nhttp://a/1.jpg,x\n", "no columns of action units"),
        (TABLE + "http://a/1.jpg,0,0,0,0\n", r"line 5: contradicts emotionet.csv line 2"),
        (TABLE.replace("http://a", "http://b"), "2 of 2 images"),
    ],
)
def test_bad_tables_are_refused(tmp_path: Path, table: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        source(layout(tmp_path, table))


def test_a_repeated_row_is_counted(tmp_path: Path) -> None:
    faces = source(layout(tmp_path, TABLE + "http://a/1.jpg,1,0,999,1\n"))
    assert faces.info.settings["repeated_rows"] == 1


def test_one_table_is_needed(tmp_path: Path) -> None:
    root = layout(tmp_path)
    (root / "emotionet.csv").rename(root / "emotionet.xlsx")
    with pytest.raises(DataError, match=r"0 csv files.*save emotionet\.xlsx as csv"):
        source(root)
    with pytest.raises(DataError, match="spreadsheets are not read"):
        source(root, table="emotionet.xlsx")
    with pytest.raises(DataError, match="no such file"):
        source(root, table="absent.csv")
    for name in ("one.csv", "two.csv"):
        (root / name).write_text(TABLE)
    with pytest.raises(DataError, match="2 csv files"):
        source(root)
    assert len(made(source(root, table="one.csv"))) == 2
    with pytest.raises(DataError, match="no such folder"):
        source(root / "absent")


def test_units_of_a_row_are_one_small_text(tmp_path: Path) -> None:
    """Millions of items: rows that are alike share theirs."""
    table = TABLE.replace("http://a/2.jpg,999,0,1,", "http://a/2.jpg,1,0,999,1")
    first, second = (item.ref for item in source(layout(tmp_path, table)).items("train"))
    assert first[2] == "AU1=1 AU2=0 AU12=1" and first[2] is second[2]
