"""Tars from anywhere: what cannot be trusted is refused by name."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import pytest

from shards.labels import DataError
from shards.records import Encoded
from shards.tars import member_key, scan_tar, write_tar


def make_tar(path: Path, members: list[tuple[str, bytes]], kind: bytes = tarfile.REGTYPE) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size, info.type, info.linkname = len(data), kind, "/etc/passwd"
            tar.addfile(info, io.BytesIO(data))
    return path


def test_keys_end_at_the_first_dot_of_the_last_part() -> None:
    assert member_key("a/b.c/d.color.0000.JPG") == ("a/b.c/d", "color.0000.jpg")
    assert member_key("000001.jpg") == ("000001", "jpg")
    assert member_key("README") is None and member_key("a/.hidden") is None


def test_scan_finds_members_where_they_are(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "a.tar", [("x/1.jpg", b"abc"), ("x/1.json", b"{}"), ("x/2.jpg", b"defg")])
    rows = scan_tar(path).rows
    assert [row.key for row in rows] == ["x/1", "x/2"]
    data = path.read_bytes()
    extension, offset, size, _ = rows[1].members[0]
    assert extension == "jpg" and data[offset : offset + size] == b"defg"


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(tmp_path: Path, kind: bytes) -> None:
    path = make_tar(tmp_path / "a.tar", [("1.jpg", b"")], kind)
    with pytest.raises(DataError, match="link or device"):
        scan_tar(path)


def test_compressed_tars_are_refused_with_the_remedy(tmp_path: Path) -> None:
    plain = make_tar(tmp_path / "a.tar", [("1.jpg", b"abc")])
    (tmp_path / "b.tar").write_bytes(gzip.compress(plain.read_bytes()))
    with pytest.raises(DataError, match=r"gzip.*unpack"):
        scan_tar(tmp_path / "b.tar")


def test_a_cut_at_any_block_is_seen(tmp_path: Path) -> None:
    path = make_tar(
        tmp_path / "a.tar", [("1.jpg", b"a" * 2000), ("2.jpg", b"b" * 2000), ("3.jpg", b"c" * 700)]
    )
    data = path.read_bytes()
    for end in range(100, 3 * 512 + 2000 + 2000, 300):
        (tmp_path / "cut.tar").write_bytes(data[:end])
        try:
            rows = scan_tar(tmp_path / "cut.tar").rows
        except DataError:
            continue
        assert end % 512 == 0 or len(rows) < 3, f"cut at {end} went unseen"


def test_a_damaged_header_in_the_middle_does_not_end_the_tar_quietly(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "a.tar", [("1.jpg", b"a"), ("2.jpg", b"b"), ("3.jpg", b"c")])
    data = bytearray(path.read_bytes())
    data[1024 + 10] ^= 0xFF
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match="damaged header"):
        scan_tar(path)


def test_scattered_or_doubled_members_are_refused(tmp_path: Path) -> None:
    scattered = make_tar(tmp_path / "a.tar", [("1.jpg", b"a"), ("2.jpg", b"b"), ("1.json", b"{}")])
    with pytest.raises(DataError, match="'1'"):
        scan_tar(scattered)
    doubled = make_tar(tmp_path / "b.tar", [("1.jpg", b"a"), ("1.jpg", b"b")])
    with pytest.raises(DataError, match=r"'1\.jpg' occurs twice"):
        scan_tar(doubled)


@pytest.mark.parametrize("key", ["a.b", "a/b", ""])
def test_keys_that_webdataset_would_misread_are_not_written(key: str) -> None:
    with pytest.raises(DataError, match="key"):
        write_tar(io.BytesIO(), [Encoded(key, {"jpg": b"x"})])
