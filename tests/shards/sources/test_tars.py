"""WebDataset tars from anywhere as raw pictures."""

from __future__ import annotations

import json
import pickle
import tarfile
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import webdataset

from shards.align import AlignConfig
from shards.labels import DataError
from shards.records import Encoded, Rejected
from shards.sources import AlignedFaces, build_source
from shards.sources.tars import list_samples
from tests.shards.sources.layouts import drawn, img2dataset_tar, labels, made, write_tar

NONE = AlignConfig(mode="none", size=32)


def source(path: Path, **options: Any) -> AlignedFaces:
    return build_source("tars", path, NONE, **({"val_fraction": 0.0} | options))


def test_what_img2dataset_writes(tmp_path: Path) -> None:
    img2dataset_tar(tmp_path / "00000.tar", {"000000000": "http://a/1.jpg", "000000001": "http://a/2.jpg"})
    img2dataset_tar(tmp_path / "00001.tar", {"000010000": "http://a/3.jpg"})
    for name in ("00000_stats.json", "00000.parquet"):
        (tmp_path / name).write_text("{}")
    faces = pickle.loads(pickle.dumps(source(tmp_path)))
    records = made(faces)
    assert list(records) == ["000000000", "000000001", "000010000"]
    assert labels(records["000000001"]) == {
        "extra": {"caption": "a face", "url": "http://a/2.jpg", "width": 48}
    }


def test_keys_end_at_the_first_dot_as_in_webdataset(tmp_path: Path) -> None:
    files = {
        "d/a.jpg": drawn(0),
        "d/a.json": '{"expr": "fear", "valence": 0.5, "note": 3}',
        "b.c.jpg": drawn(1),
        "e.jpg": drawn(2),
        "e.txt": " hello ",
        "README": "no dot",
    }
    path = write_tar(tmp_path / "x.tar", files)
    records = made(source(path))
    theirs = [sample["__key__"] for sample in webdataset.WebDataset(str(path), shardshuffle=False)]
    assert theirs == ["d/a", "b", "e"]
    assert list(records) == ["d_a", "e"]  # `b` has no member called jpg
    assert source(path).info.settings["samples_without_image"] == 1
    assert labels(records["d_a"]) == {"expr": "fear", "valence": 0.5, "extra": {"note": 3}}
    assert labels(records["e"]) == {"extra": {"caption": "hello"}}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("[1]", "cannot read labels: JSON list instead of object"),
        ("{", "cannot read labels: not valid JSON"),
        ("\xff", "cannot read labels: not valid JSON"),
        ("[" * 100_000, "cannot read labels: not valid JSON"),
        ('{"valence": 7}', "cannot read labels: valence must be a number in [-1, 1], got 7"),
        ('{"expr": "bored"}', "unknown expression 'bored'"),
        (" " * 1_000_001, "cannot read: member of 1000001 bytes, at most 1000000"),
    ],
)
def test_bad_labels_cost_one_sample(tmp_path: Path, content: str, reason: str) -> None:
    files = {"a.jpg": drawn(0), "a.json": content.encode("latin-1"), "b.jpg": drawn(1)}
    records = made(source(write_tar(tmp_path / "x.tar", files)))
    assert isinstance(records["a"], Rejected) and records["a"].reason.startswith(reason)
    assert isinstance(records["b"], Encoded)


def member(kind: bytes, name: str = "a.jpg", target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    ("info", "message"),
    [
        (member(tarfile.SYMTYPE, target="/etc/passwd"), "is a link, device or sparse file"),
        (member(tarfile.LNKTYPE, target="b.jpg"), "is a link, device or sparse file"),
        (member(tarfile.CHRTYPE), "is a link, device or sparse file"),
        (member(tarfile.FIFOTYPE), "is a link, device or sparse file"),
        (member(tarfile.REGTYPE, "../a.jpg"), "leaves the folder"),
        (member(tarfile.REGTYPE, "/etc/a.jpg"), "leaves the folder"),
    ],
)
def test_members_that_are_no_plain_files_inside_are_refused(
    tmp_path: Path, info: tarfile.TarInfo, message: str
) -> None:
    path = write_tar(tmp_path / "x.tar", {"b.jpg": drawn(0), "bad": info, "c.jpg": drawn(1)})
    with pytest.raises(DataError, match=message):
        source(path)


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_compressed_tars_are_refused_with_the_remedy(tmp_path: Path, mode: str) -> None:
    path = write_tar(tmp_path / "x.tar", {"a.jpg": drawn(0)}, mode)
    with pytest.raises(DataError, match="unpack it to a plain"):
        source(path)
    path.rename(tmp_path / "x.tar.gz")
    with pytest.raises(DataError, match="unpack it to a plain"):
        source(tmp_path)


def test_damage_anywhere_in_the_headers_is_seen(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", {f"{n}.jpg": drawn(n) for n in range(4)})
    whole = path.read_bytes()
    with tarfile.open(path) as tar:
        third = tar.getmembers()[2].offset
        end = tar.offset
    for damaged in (
        whole[: third + 700],
        whole[:third],
        whole[:end],
        whole[:third] + b"\x07" * 512 + whole[third + 512 :],
        b"nonsense" * 200,
        b"",
    ):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"x\.tar"):
            source(path)


def test_members_apart_and_keys_twice(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", {"a.jpg": drawn(0), "b.jpg": drawn(1), "a.json": "{}"})
    with pytest.raises(DataError, match="the members of 'a' are apart"):
        source(path)
    path.unlink()
    for name in ("one", "two"):
        write_tar(tmp_path / f"{name}.tar", {"0.jpg": drawn(0)})
    with pytest.raises(DataError, match=r"have the same key '0'.*prefix_keys=true"):
        source(tmp_path)
    assert list(made(source(tmp_path, prefix_keys=True))) == ["one_0", "two_0"]


def test_what_the_indexer_refuses_is_refused_here_too(tmp_path: Path) -> None:
    """One reader of headers: nothing is dropped without a word."""
    one = write_tar(tmp_path / "x.tar", {"a.jpg": drawn(0)}).read_bytes()
    two = write_tar(tmp_path / "x.tar", {"b.jpg": drawn(1)}).read_bytes()
    (tmp_path / "x.tar").write_bytes(one + two)
    with pytest.raises(DataError, match="more members after the end mark"):
        source(tmp_path)
    write_tar(tmp_path / "x.tar", {"a.jpg": drawn(0), "a.JPG": drawn(1)})
    with pytest.raises(DataError, match=r"'a\.JPG' occurs twice"):
        source(tmp_path)


def test_no_person_or_group_is_in_two_splits(tmp_path: Path) -> None:
    files: dict[str, bytes | str] = {}
    for i in range(60):
        who = [{"identity": f"p{i % 10}", "group": f"v{i}"}, {"group": f"v{i % 10}"}, {}][i // 20]
        files |= {f"{i:02d}.jpg": drawn(i % 3), f"{i:02d}.json": json.dumps(who)}
    files |= {"60.jpg": drawn(0), "60.json": "{"}
    faces = source(write_tar(tmp_path / "x.tar", files), val_fraction=0.4)  # type: ignore[arg-type]
    split_of = {int(item.key): split for split in faces.splits() for item in faces.items(split)}
    assert len(split_of) == 61
    for first, unit in ((0, 10), (20, 10)):
        found = [{split_of[first + i], split_of[first + i + unit]} for i in range(10)]
        assert all(len(splits) == 1 for splits in found) and len(set.union(*found)) == 2
    assert {split_of[i] for i in range(40, 60)} == {"train", "val"}


def test_a_listing_is_small(tmp_path: Path) -> None:
    """Millions of samples are listed in one process."""
    write_tar(tmp_path / "x.tar", {f"{i:09d}.{e}": "{}" for i in range(1000) for e in ("jpg", "json", "txt")})
    listing, _ = list_samples(tmp_path, 0.1, False)
    tracemalloc.start()
    try:
        listing, _ = list_samples(tmp_path, 0.1, False)
        used = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert used / sum(map(len, listing.values())) < 700


def test_split_folders(tmp_path: Path) -> None:
    for name in ("train/0.tar", "val/0.tar"):
        write_tar(tmp_path / name, {"a.jpg": drawn(0)})
    assert source(tmp_path).splits() == ["train", "val"]
    write_tar(tmp_path / "1.tar", {"b.jpg": drawn(0)})
    with pytest.raises(DataError, match="lies in none of train, val, test"):
        source(tmp_path)


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such tar or folder"):
        source(tmp_path / "absent")
    with pytest.raises(DataError, match=r"no \.tar in it"):
        source(tmp_path)
    with pytest.raises(DataError, match="without an image"):
        source(write_tar(tmp_path / "x.tar", {"a.txt": "x"}))


def test_a_tar_cut_after_listing_costs_only_its_samples(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", {"a.jpg": drawn(0), "b.jpg": drawn(1)})
    faces = source(path)
    faces.items("train")
    path.write_bytes(path.read_bytes()[: 512 + len(drawn(0)) + 100])
    records = made(faces)
    assert isinstance(records["a"], Encoded)
    assert records["b"] == Rejected("b", "cannot read: the tar is cut short")
