"""The index: a round trip, and no damage goes unseen."""

from __future__ import annotations

import struct
import zlib

import pytest

from shards.index import SAMPLE, IndexRow, index_bytes, parse_index
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


def changed(field: str, value: int) -> bytes:
    """An index whose first sample says something else, with the checksum to match."""
    data = bytearray(index_bytes("x.tar", 10240, "ab" * 32, ROWS))
    keys = len("a-1ключ".encode())
    at = len(data) - 4 - keys - len(ROWS) * SAMPLE.itemsize
    dtype, offset = SAMPLE.fields[field][:2]  # type: ignore[index]
    data[at + offset : at + offset + dtype.itemsize] = value.to_bytes(dtype.itemsize, "little")
    return bytes(data[:-4]) + struct.pack("<I", zlib.crc32(data[:-4]))


@pytest.mark.parametrize(
    ("field", "value"),
    [("first_member", 2), ("num_members", 0), ("num_members", 9), ("key_offset", 9), ("key_size", 0)],
)
def test_samples_outside_the_tables_are_refused_though_the_checksum_is_right(field: str, value: int) -> None:
    assert parse_index(changed("expr", 5), "x.idx").samples["expr"][0] == 5
    with pytest.raises(DataError, match="a sample lies outside the tables"):
        parse_index(changed(field, value), "x.idx")


def test_keys_that_are_no_text_are_refused_though_the_checksum_is_right() -> None:
    data = bytearray(index_bytes("x.tar", 10240, "ab" * 32, ROWS))
    data[-5] = 0xFF
    data[-4:] = struct.pack("<I", zlib.crc32(data[:-4]))
    with pytest.raises(DataError, match="keys are not UTF-8"):
        parse_index(bytes(data), "x.idx")


@pytest.mark.parametrize(("field", "value"), [("key_size", 4), ("key_offset", 4)])
def test_keys_that_end_within_a_character_are_refused(field: str, value: int) -> None:
    with pytest.raises(DataError, match="ends within a character"):
        parse_index(changed(field, value), "x.idx")


def test_rows_are_what_the_index_was_made_of() -> None:
    index = parse_index(index_bytes("x.tar", 10240, "ab" * 32, ROWS), "x.idx")
    assert index.rows() == ROWS
    assert index_bytes("x.tar", 10240, "ab" * 32, index.rows()) == index_bytes(
        "x.tar", 10240, "ab" * 32, ROWS
    )


def test_more_members_than_can_be_counted_are_refused() -> None:
    rows = [IndexRow("k", [(f"color.{i:04d}.jpg", i, 1, 0) for i in range(70_000)])]
    with pytest.raises(DataError, match=r"t\.tar: a sample of 70000 members.*cut long recordings"):
        index_bytes("t.tar", 70_000, "0" * 64, rows)
