"""Builds: whole, repeatable to the byte, resumable, and joined from parts."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import webdataset as wds

from shards.build import BuildConfig, build, merge, parse_part
from shards.indexing import index_tars
from shards.labels import DataError
from shards.manifest import load_manifest
from shards.shardset import open_shards
from tests.shards.faces import SmoothFaces, build_smooth


def digests(folder: Path) -> dict[str, str]:
    """sha256 of every file of a finished set, locks aside."""
    files = [p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".lock")]
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_every_sample_is_in_the_set_and_stock_webdataset_reads_it(tmp_path: Path) -> None:
    out = build_smooth(tmp_path / "set", shard_size=40)
    shards = open_shards(str(out), "train")
    assert len(shards) == 90 and [shards.key(i) for i in (0, 89)] == ["train-0000", "train-0089"]
    tars = sorted(str(p) for p in (out / "train").glob("*.tar"))
    stock = list(wds.DataPipeline(wds.SimpleShardList(tars), wds.tarfile_to_samples()))
    assert [s["__key__"] for s in stock] == [shards.key(i) for i in range(90)]
    assert stock[5]["jpg"] == shards.read(5).members["jpg"]


def test_repeated_in_one_process_or_several_gives_the_same_bytes(tmp_path: Path) -> None:
    build_smooth(tmp_path / "a")
    build(SmoothFaces(), tmp_path / "b", BuildConfig(shard_size=16, workers=2), quiet=True)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    before = digests(tmp_path / "a")
    build_smooth(tmp_path / "a")
    assert digests(tmp_path / "a") == before


def test_parts_merge_to_the_same_bytes_as_one_build(tmp_path: Path) -> None:
    whole = build_smooth(tmp_path / "whole")
    for part in ("2/3", "1/3"):
        build(SmoothFaces(), tmp_path / "parts", BuildConfig(16, 1, part), quiet=True)
    with pytest.raises(DataError, match="shard 2 is missing"):
        merge(tmp_path / "parts" / "train")
    build(SmoothFaces(), tmp_path / "parts", BuildConfig(16, 1, "3/3"), quiet=True)
    for split in ("train", "val"):
        merge(tmp_path / "parts" / split)
    assert digests(tmp_path / "parts") == digests(whole)


def test_a_killed_build_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    """SIGKILL after the first shard is there; run again; compare with a build that was left alone."""
    settings = "counts={'train': 400}, size=96"
    script = (
        "from pathlib import Path\nfrom shards.build import *\nfrom tests.shards.faces import SmoothFaces\n"
        f"build(SmoothFaces({settings}), Path({str(tmp_path / 'killed')!r}), BuildConfig(20, 1), quiet=True)"
    )
    root = Path(__file__).resolve().parents[2]
    process = subprocess.Popen([sys.executable, "-c", script], cwd=root)
    deadline = time.monotonic() + 60
    while not list((tmp_path / "killed").glob("train/faces-*.tar")) and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert 0 < len(list((tmp_path / "killed").glob("train/faces-*.tar"))) < 20
    assert not (tmp_path / "killed" / "train" / "manifest.json").exists()
    for name in ("killed", "whole"):
        faces = SmoothFaces(counts={"train": 400}, size=96)
        build(faces, tmp_path / name, BuildConfig(20, 1), quiet=True)
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")


def test_what_is_left_out_is_listed_with_its_reason(tmp_path: Path) -> None:
    out = build_smooth(tmp_path / "set", reject_every=9)
    manifest = load_manifest(out / "train")
    lines = (out / "train" / "quarantine.csv").read_text().splitlines()
    assert manifest.num_quarantined == 10 and manifest.num_samples == 80 and manifest.num_items == 90
    assert lines[0] == "key,reason" and lines[1] == "train-0000,no face" and len(lines) == 11


def test_too_much_quarantined_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"quarantine\.csv.*max_quarantined"):
        build_smooth(tmp_path / "set", reject_every=1)


def test_a_folder_of_another_build_is_not_mixed(tmp_path: Path) -> None:
    out = build_smooth(tmp_path / "set")
    with pytest.raises(DataError, match="other settings"):
        build_smooth(out, size=48, shard_size=8)
    build(SmoothFaces(), tmp_path / "part", BuildConfig(16, 1, "1/2"), quiet=True)
    with pytest.raises(DataError, match="unfinished build"):
        build(SmoothFaces(), tmp_path / "part", BuildConfig(8, 1, "2/2"), quiet=True)


def test_two_builds_of_one_folder_at_once_one_says_so(tmp_path: Path) -> None:
    import fcntl

    folder = tmp_path / "train"
    folder.mkdir()
    with (folder / ".lock-1-of-1").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="another process"):
            build(SmoothFaces(), tmp_path, BuildConfig(16, 1), quiet=True)


@pytest.mark.parametrize("text", ["0/2", "3/2", "x/2", "1", "1/", "-1/2"])
def test_a_part_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(DataError, match="i/n"):
        parse_part(text)


def test_no_items_and_equal_keys_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no images found"):
        build_smooth(tmp_path / "none", counts={"train": 0})

    class Twice(SmoothFaces):
        def items(self, split: str) -> list[object]:  # type: ignore[override]
            return [*super().items(split), super().items(split)[3]]

    with pytest.raises(DataError, match="train-0003"):
        build(Twice(), tmp_path / "twice", BuildConfig(16, 1), quiet=True)


def test_foreign_tars_become_a_set_where_they_lie(tmp_path: Path) -> None:
    out = build_smooth(tmp_path / "set") / "train"
    before = {p.name: p.read_bytes() for p in out.glob("*.tar")}
    for path in [*out.glob("*.idx"), out / "manifest.json", out / "quarantine.csv"]:
        path.unlink()
    manifest = index_tars(sorted(out.glob("*.tar")), out, "train", "foreign", "unknown")
    assert manifest.num_samples == 90 and {p.name: p.read_bytes() for p in out.glob("*.tar")} == before
    assert open_shards(str(out), "train").read(7).key == "train-0007"
