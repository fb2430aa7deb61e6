"""The shards of a run, and what of them it left out because it is damaged."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.data import open_split, open_splits
from pipelines.dataconfig import DataConfig
from pipelines.processes import Processes
from shards.labels import DataError
from tests.shards.doctor.sets import flip, made_set


@pytest.fixture
def config(tmp_path: Path) -> DataConfig:
    """A set with a damaged sample in each of its two splits."""
    folder = made_set(tmp_path / "set")
    for split in ("train", "val"):
        flip(folder / split / "faces-000000.tar", 700)
    return DataConfig(str(folder), damaged="quarantine", max_damaged=0.5)


def test_an_evaluation_leaves_out_what_the_run_left_out(config: DataConfig, tmp_path: Path) -> None:
    listed = tmp_path / "damaged.json"
    splits = open_splits(config, Processes(), listed=listed)
    assert splits.val is not None
    assert [len(part.left_out) for part in (splits.train, splits.val)] == [1, 1]
    for split, opened in (("train", splits.train), ("val", splits.val)):
        again = open_split(config, config.shards, split, listed)
        assert again.hash == opened.hash
        assert [again.read(number).key for number in range(len(again))] == [
            opened.key(number) for number in range(len(opened))
        ]


def test_without_a_list_damage_stops_an_evaluation(config: DataConfig, tmp_path: Path) -> None:
    val = open_split(config, config.shards, "val", tmp_path / "none.json")
    with pytest.raises(DataError, match="faces-000000"):
        [val.read(number) for number in range(len(val))]


def test_a_list_of_something_else_is_refused(config: DataConfig, tmp_path: Path) -> None:
    (tmp_path / "damaged.json").write_text("{}")
    with pytest.raises(DataError, match="remove it"):
        open_split(config, config.shards, "val", tmp_path / "damaged.json")
