"""Opening sets: each split from its own folder, and only what belongs together is joined."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest

from shards.labels import DataError
from shards.records import SourceInfo
from shards.shardset import find_split, open_shards, set_folders
from shards.template import TEMPLATE, template_geometry
from tests.shards.faces import build_smooth


def lying(margin: float, size: int = 32) -> SourceInfo:
    return SourceInfo("smooth", "CC0", alignment={"geometry": template_geometry(size, margin)})


def test_a_folder_with_another_splits_manifest_is_refused(tmp_path: Path) -> None:
    out = build_smooth(tmp_path / "set", counts={"train": 4, "val": 3})
    shutil.rmtree(out / "train")
    (out / "val").rename(out / "train")
    for call in (lambda: open_shards(str(out), "train"), lambda: find_split(out, "train")):
        with pytest.raises(DataError, match=r"train: its manifest says that it is split 'val'"):
            call()


def test_names_with_blanks_and_empty_ones_are_understood(tmp_path: Path) -> None:
    a, b = (build_smooth(tmp_path / name, counts={"train": 4}) for name in "ab")
    assert set_folders(f" {a} ,, {b},") == [a, b] and set_folders([a, str(b)]) == [a, b]
    assert open_shards(f"{a},, {b}", "train").folders == [a / "train", b / "train"]
    with pytest.raises(DataError, match=r"absent: no finished shards for 'train'"):
        open_shards(f"{a},,{tmp_path / 'absent'}", "train")
    with pytest.raises(DataError, match="no shards given"):
        open_shards(" ,", "train")


def test_sets_whose_faces_lie_differently_are_not_joined(tmp_path: Path) -> None:
    a = build_smooth(tmp_path / "a", counts={"train": 4}, info=lying(0.0))
    b = build_smooth(tmp_path / "b", counts={"train": 4}, info=lying(0.25))
    with pytest.raises(DataError, match=r"a/train and .*b/train: .*margin 0; .*margin 0\.25.*align\.margin"):
        open_shards([a, b], "train")
    other = {**template_geometry(32, 0.0), "template": "own", "points": (TEMPLATE + 3).tolist()}
    c = build_smooth(
        tmp_path / "c", counts={"train": 4}, info=SourceInfo("c", "CC0", alignment={"geometry": other})
    )
    with pytest.raises(DataError, match=r"template arcface-112.*template own"):
        open_shards([a, c], "train")


def test_the_size_of_the_images_does_not_matter(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    a = build_smooth(tmp_path / "a", counts={"train": 4}, info=lying(0.0))
    b = build_smooth(tmp_path / "b", counts={"train": 4}, size=48, info=lying(0.0, 48))
    with caplog.at_level(logging.WARNING):
        assert len(open_shards([a, b], "train")) == 8
    assert not caplog.records


@pytest.mark.parametrize(
    "alignment", [{}, {"geometry": {"size": 32, "made_by": "somebody"}}, {"geometry": 3}]
)
def test_where_it_is_not_said_it_is_joined_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, alignment: dict[str, object]
) -> None:
    a = build_smooth(tmp_path / "a", counts={"train": 4}, info=lying(0.0))
    b = build_smooth(
        tmp_path / "b", counts={"train": 4}, info=SourceInfo("smooth", "CC0", alignment=alignment)
    )
    with caplog.at_level(logging.WARNING):
        assert len(open_shards([a, b], "train")) == 8
    assert "b/train: not said where" in caplog.text and "a/train" not in caplog.text
