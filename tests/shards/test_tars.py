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
    with pytest.raises(DataError, match="is a link, device or sparse file"):
        scan_tar(path)


def test_compressed_tars_are_refused_with_the_remedy(tmp_path: Path) -> None:
    plain = make_tar(tmp_path / "a.tar", [("1.jpg", b"abc")])
    (tmp_path / "b.tar").write_bytes(gzip.compress(plain.read_bytes()))
    with pytest.raises(DataError, match=r"gzip.*unpack"):
        scan_tar(tmp_path / "b.tar")


def test_no_cut_goes_unseen(tmp_path: Path) -> None:
    """Between two members as well, where tarfile takes the rest for a whole tar."""
    sizes = (2000, 1024, 700)
    path = make_tar(tmp_path / "a.tar", [(f"{i}.jpg", bytes([i]) * size) for i, size in enumerate(sizes)])
    data = path.read_bytes()
    starts = [0, 512 + 2048, 512 + 2048 + 512 + 1024]
    end = starts[2] + 512 + 1024
    assert data[end : end + 512] == bytes(512) and len(scan_tar(path).rows) == 3
    near = {at + step for at in (*starts, end) for step in range(-3, 516)}
    for cut in sorted({at for at in near if 0 <= at < end + 512} | set(range(0, end, 97))):
        (tmp_path / "cut.tar").write_bytes(data[:cut])
        with pytest.raises(DataError, match=r"cut\.tar"):
            scan_tar(tmp_path / "cut.tar")
    (tmp_path / "cut.tar").write_bytes(data[: end + 512])
    assert len(scan_tar(tmp_path / "cut.tar").rows) == 3


def test_a_tar_whose_writer_left_out_the_end_mark_is_refused_with_what_mends_it(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "a.tar", [("1.jpg", b"a"), ("2.jpg", b"b")])
    path.write_bytes(path.read_bytes()[:2048])
    with pytest.raises(DataError, match=r"cut short at byte 2048.*truncate -s \+1024 .*a\.tar"):
        scan_tar(path)
    path.write_bytes(path.read_bytes() + bytes(1024))
    assert [row.key for row in scan_tar(path).rows] == ["1", "2"]


def test_a_damaged_header_in_the_middle_does_not_end_the_tar_quietly(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "a.tar", [("1.jpg", b"a"), ("2.jpg", b"b"), ("3.jpg", b"c")])
    data = bytearray(path.read_bytes())
    data[1024 + 10] ^= 0xFF
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match="damaged header"):
        scan_tar(path)


def test_a_zeroed_header_and_tars_joined_by_cat_do_not_hide_what_follows(tmp_path: Path) -> None:
    one = make_tar(tmp_path / "a.tar", [(f"{i}.jpg", b"a") for i in range(6)]).read_bytes()
    two = make_tar(tmp_path / "b.tar", [("9.jpg", b"b")]).read_bytes()
    for number, data in enumerate((one[:2048] + bytes(512) + one[2560:], one + two)):
        path = tmp_path / f"{number}.tar"
        path.write_bytes(data)
        with pytest.raises(DataError, match="more members after the end mark"):
            scan_tar(path)


@pytest.mark.parametrize("name", ["../1.jpg", "/etc/1.jpg", "a/../../1.jpg"])
def test_names_that_leave_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="leaves the folder"):
        scan_tar(make_tar(tmp_path / "a.tar", [(name, b"a")]))


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
