"""Damaged samples are found, left out and counted; what is left is a set like any other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from shards.damage import check_limit, find_damaged, from_json, to_json
from shards.labels import DataError
from shards.manifest import load_manifest
from shards.order import EpochOrder
from shards.shardset import ShardSet, open_shards
from tests.shards.doctor.sets import cut, flip, made_set
from tests.shards.doctor.test_damage import repeat_key


@pytest.fixture
def train(tmp_path: Path) -> Path:
    return made_set(tmp_path / "set") / "train"


def test_nothing_is_left_out_of_a_whole_set(train: Path) -> None:
    assert find_damaged([train], quiet=True) == []
    assert ShardSet([train], []).hash == ShardSet([train]).hash


def test_what_is_damaged_is_left_out_and_the_rest_keeps_its_numbers(train: Path) -> None:
    whole = ShardSet([train])
    keys = [whole.key(number) for number in range(40)]
    flip(train / "faces-000000.tar", 700)
    (train / "faces-000002.idx").unlink()
    left_out = find_damaged([train], quiet=True)
    assert [(part.tar, part.key, part.count) for part in left_out] == [
        ("faces-000002.tar", "", 8),
        ("faces-000000.tar", "train-0000", 1),
    ]
    rest = ShardSet([train], from_json(to_json(left_out), "x"))
    assert rest.shard_sizes.tolist() == [15, 16] and len(rest) == 31
    assert [rest.read(number).key for number in range(31)] == keys[1:32]
    assert rest.expr.tolist() == whole.expr[1:32].tolist()
    assert rest.hash != whole.hash and rest.place(15) == (0, "faces-000001.tar")
    drawn = EpochOrder(rest.shard_sizes, 0).draw(np.arange(31)).samples
    assert sorted(drawn.tolist()) == list(range(31))
    assert len(rest) + sum(part.count for part in left_out) == load_manifest(train).num_samples


def test_of_a_tar_that_is_cut_only_what_is_missing_is_left_out(train: Path) -> None:
    cut(train / "faces-000001.tar")
    with pytest.raises(DataError, match=r"faces-000001\.tar: .* bytes, the manifest says"):
        open_shards([train], "train")
    left_out = find_damaged([train], quiet=True)
    assert {part.tar for part in left_out} == {"faces-000001.tar"} and 0 < len(left_out) < 16
    assert len(ShardSet([train], left_out)) == 40 - len(left_out)


def test_more_than_allowed_is_an_error(train: Path) -> None:
    (train / "faces-000002.tar").unlink()
    left_out = find_damaged([train], quiet=True)
    check_limit(left_out, [train], 0.2)
    with pytest.raises(DataError, match=r"8 of 40 samples are damaged.*data\.max_damaged=0\.1"):
        check_limit(left_out, [train], 0.1)


def test_a_key_twice_is_refused_when_a_set_is_opened(train: Path) -> None:
    repeat_key(train)
    with pytest.raises(DataError, match=r"'train-0007' is in faces-000000\.tar too"):
        open_shards([train], "train")


@pytest.mark.parametrize("data", [None, {}, [1], [{"folder": 0}], [{"folder": "0"}]])
def test_a_list_that_is_none_is_refused(data: object) -> None:
    with pytest.raises(DataError, match="remove it"):
        from_json(data, "damaged.json")
