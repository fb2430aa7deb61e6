"""The index: a round trip, and no damage goes unseen."""

from __future__ import annotations

import pytest

from shards.index import IndexRow, index_bytes, parse_index
from shards.labels import DataError

ROWS = [
    IndexRow("a-1", [("jpg", 512, 100, 7), ("json", 1536, 20, 8)], 3),
    IndexRow("ключ", [("jpg", 2560, 5, 9)], -1),
]


def test_round_trip() -> None:
    index = parse_index(index_bytes("x.tar", 10240, "ab" * 32, ROWS), "x.idx")
    assert len(index) == 2 and [index.key(i) for i in range(2)] == ["a-1", "ключ"]
    assert index.extensions == ("jpg", "json") and index.tar_name == "x.tar" and index.tar_size == 10240
    assert index.members["offset"].tolist() == [512, 1536, 2560]
    assert index.samples["expr"].tolist() == [3, -1]


def test_every_single_byte_flip_and_every_cut_is_seen() -> None:
    data = index_bytes("x.tar", 10240, "ab" * 32, ROWS)
    for at in range(len(data)):
        broken = bytearray(data)
        broken[at] ^= 1
        with pytest.raises(DataError, match=r"x\.idx"):
            parse_index(bytes(broken), "x.idx")
        with pytest.raises(DataError, match=r"x\.idx"):
            parse_index(data[:at], "x.idx")


def test_members_outside_the_tar_are_refused() -> None:
    with pytest.raises(DataError, match="outside its tar"):
        parse_index(index_bytes("x.tar", 1000, "ab" * 32, ROWS), "x.idx")


def test_an_index_names_a_file_beside_it_only() -> None:
    with pytest.raises(DataError, match="header names"):
        parse_index(index_bytes("../x.tar", 10240, "ab" * 32, ROWS), "x.idx")
