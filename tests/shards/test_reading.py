"""Bytes by position: whole however they come, and tried twice before they are called damaged."""

from __future__ import annotations

import errno
import zlib
from pathlib import Path

import pytest

from shards.labels import DataError
from shards.reading import MemberError, Place, TarBytes
from shards.shardset import open_shards
from tests.shards.faces import build_smooth
from tests.shards.unsteady import failing

CONTENT = bytes(range(256)) * 8
PLACES = [
    Place("jpg", 100, 700, zlib.crc32(CONTENT[100:800])),
    Place("json", 1000, 50, zlib.crc32(CONTENT[1000:1050])),
]
MEMBERS = {"jpg": CONTENT[100:800], "json": CONTENT[1000:1050]}


@pytest.fixture
def file(tmp_path: Path) -> TarBytes:
    (tmp_path / "x.tar").write_bytes(CONTENT)
    return TarBytes(tmp_path / "x.tar")


def test_short_reads_are_gone_on_with(file: TarBytes, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, after=0, how="short")
    assert file.read_members(PLACES) == MEMBERS
    assert file.read(2000, 100) == CONTENT[2000:] and file.read(5000, 10) == b""


@pytest.mark.parametrize("how", ["error", "flip"])
def test_what_fails_once_is_read_again_through_a_fresh_handle(
    file: TarBytes, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    file.read(0, 1)
    failing(monkeypatch, after=0, how=how)
    moved = file.path.with_name("old")
    file.path.rename(moved)
    file.path.write_bytes(CONTENT)
    moved.write_bytes(bytes(2048))
    assert file.read_members(PLACES) == MEMBERS


def test_what_fails_twice_is_damage(file: TarBytes, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MemberError, match="member json at byte 1000") as caught:
        file.read_members([PLACES[0], PLACES[1]._replace(crc32=1)])
    assert not caught.value.cut_off
    with pytest.raises(MemberError) as caught:
        file.read_members([PLACES[0], PLACES[1]._replace(offset=2040)])
    assert caught.value.cut_off
    failing(monkeypatch, after=0, times=2)
    with pytest.raises(OSError, match="Input/output") as failed:
        file.read_members(PLACES)
    assert failed.value.errno == errno.EIO


def test_a_set_says_which_sample_is_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = open_shards(str(build_smooth(tmp_path / "set", counts={"train": 4})), "train")
    whole = shards.read(2)
    failing(monkeypatch, after=0)
    assert shards.read(2) == whole
    failing(monkeypatch, after=0, times=2)
    with pytest.raises(DataError, match="sample train-0002: cannot be read"):
        shards.read(2)
    failing(monkeypatch, after=0, times=2, how="flip")
    with pytest.raises(DataError, match=r"sample train-0002: member jpg at byte .* is damaged"):
        shards.read(2)


def test_what_lies_far_apart_is_read_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neighbours in one read, whatever their order; what lies between distant members is not touched."""
    data = bytes(range(256)) * 4096
    (tmp_path / "x.tar").write_bytes(data)
    spans = {"b": (900_000, 50), "a": (100, 700), "c": (1000, 50)}
    places = [Place(name, at, size, zlib.crc32(data[at : at + size])) for name, (at, size) in spans.items()]
    asked: list[tuple[int, int]] = []
    read = TarBytes.read

    def noted(self: TarBytes, offset: int, size: int) -> bytes:
        asked.append((offset, size))
        return read(self, offset, size)

    monkeypatch.setattr(TarBytes, "read", noted)
    found = TarBytes(tmp_path / "x.tar").read_members(places)
    assert list(found) == ["b", "a", "c"] and asked == [(100, 950), (900_000, 50)]
    assert all(found[name] == data[at : at + size] for name, (at, size) in spans.items())
    assert TarBytes(tmp_path / "x.tar").read_members([]) == {}
