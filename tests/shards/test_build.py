"""Builds: whole, repeatable to the byte, resumable, and joined from parts."""

from __future__ import annotations

import csv
import fcntl
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import webdataset as wds

from shards import shardjob
from shards.build import BuildConfig, build, merge, parse_part
from shards.indexing import index_tars
from shards.labels import DataError
from shards.manifest import load_manifest
from shards.quarantine import quarantine_csv
from shards.records import Encoded, Item, Maker, Rejected
from shards.shardset import open_shards
from tests.shards.faces import SmoothFaces, build_smooth, smooth_jpeg


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


def test_no_cell_of_the_quarantine_list_begins_a_formula() -> None:
    text = quarantine_csv([("a", "=1"), ("b", "x\r=1"), ("c", "@x")]).decode()
    cells = [cell for row in csv.reader(io.StringIO(text, newline="")) for cell in row]
    assert cells == ["key", "reason", "a", "'=1", "b", "x\\r=1", "c", "'@x"]


def test_a_manifest_that_was_changed_is_refused_and_one_without_checksum_is_read(tmp_path: Path) -> None:
    path = build_smooth(tmp_path / "set", counts={"train": 4}) / "train" / "manifest.json"
    whole, data = load_manifest(path.parent), json.loads(path.read_text())
    path.write_text(json.dumps(data | {"licence": "CC1"}))
    with pytest.raises(DataError, match="changed since it was written"):
        load_manifest(path.parent)
    del data["checksum"]
    path.write_text(json.dumps(data))
    assert load_manifest(path.parent) == whole


def test_too_much_quarantined_is_refused_with_the_remedy(tmp_path: Path) -> None:
    faces = SmoothFaces(reject_every=9)
    with pytest.raises(DataError, match=r"10 of 90 .*10 'no face'.*quarantine\.csv.*max_quarantined=0\.112"):
        build(faces, tmp_path / "set", BuildConfig(16, 1), quiet=True)
    build(faces, tmp_path / "set", BuildConfig(16, 1, max_quarantined=0.112), quiet=True)
    with pytest.raises(DataError, match=r"90 of 90 .*Mend them and build again$"):
        build_smooth(tmp_path / "none", reject_every=1)


def test_a_few_may_be_left_out_of_a_small_set(tmp_path: Path) -> None:
    """A photo without a face among a dozen is no reason to refuse them; unless none may be left out."""
    faces = SmoothFaces(counts={"train": 10}, reject_every=4)
    with pytest.raises(DataError, match="3 of 10"):
        build(faces, tmp_path / "set", BuildConfig(16, 1, max_quarantined=0), quiet=True)
    build(faces, tmp_path / "set", BuildConfig(16, 1), quiet=True)
    assert load_manifest(tmp_path / "set" / "train").num_quarantined == 3


@dataclass(frozen=True)
class FileFaces(SmoothFaces):
    """Pictures as files: missing ones are left out, and what was asked for is noted in `log`."""

    folder: Path = Path()
    counts: dict[str, int] = field(default_factory=lambda: {"train": 40})

    def _make(self, item: Item) -> Encoded | Rejected:
        with (self.folder / "log").open("a") as log:
            log.write(f"{item.key}\n")
        path = self.folder / f"{item.key}.jpg"
        return Encoded(item.key, {"jpg": path.read_bytes()}) if path.exists() else Rejected(item.key, "gone")

    def asked(self) -> int:
        """How many pictures were looked at since the last call."""
        log = self.folder / "log"
        count = len(log.read_text().split()) if log.exists() else 0
        log.unlink(missing_ok=True)
        return count


def write_pictures(folder: Path, numbers: Sequence[int], seed: int = 0) -> None:
    folder.mkdir(exist_ok=True)
    for number in numbers:
        (folder / f"train-{number:04d}.jpg").write_bytes(smooth_jpeg(number + seed))


def test_mended_pictures_are_taken_when_a_refused_build_is_run_again(tmp_path: Path) -> None:
    faces = FileFaces(folder=tmp_path / "in")
    write_pictures(tmp_path / "in", range(24))
    for config in (BuildConfig(10, 1), BuildConfig(10, 1)):
        with pytest.raises(DataError, match=r"16 of 40 .*Mend them and build again"):
            build(faces, tmp_path / "out", config, quiet=True)
    assert faces.asked() == 40 + 20  # the two shards with nothing left out are kept
    write_pictures(tmp_path / "in", range(40))
    build(faces, tmp_path / "out", BuildConfig(10, 1), quiet=True)
    assert load_manifest(tmp_path / "out" / "train").num_samples == 40
    build(faces, tmp_path / "new", BuildConfig(10, 1), quiet=True)
    assert digests(tmp_path / "out") == digests(tmp_path / "new")


def test_a_refused_build_that_is_then_allowed_does_no_work_again(tmp_path: Path) -> None:
    faces = FileFaces(folder=tmp_path / "in")
    write_pictures(tmp_path / "in", range(24))
    with pytest.raises(DataError, match="16 of 40"):
        build(faces, tmp_path / "out", BuildConfig(10, 1), quiet=True)
    assert faces.asked() == 40
    build(faces, tmp_path / "out", BuildConfig(10, 1, max_quarantined=0.4), quiet=True)
    assert faces.asked() == 0 and load_manifest(tmp_path / "out" / "train").num_samples == 24


def test_a_finished_set_says_how_to_take_replaced_pictures(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    faces = FileFaces(folder=tmp_path / "in")
    write_pictures(tmp_path / "in", range(38))
    build(faces, tmp_path / "out", BuildConfig(10, 1), quiet=True)
    write_pictures(tmp_path / "in", range(40), seed=500)
    caplog.set_level("INFO", "shards")
    build(faces, tmp_path / "out", BuildConfig(10, 1), quiet=True)
    assert "already made; build.again=true makes it anew" in caplog.text
    assert load_manifest(tmp_path / "out" / "train").num_samples == 38
    for out in ("out", "new"):
        build(faces, tmp_path / out, BuildConfig(10, 1, again=True), quiet=True)
    assert load_manifest(tmp_path / "out" / "train").num_samples == 40
    assert digests(tmp_path / "out") == digests(tmp_path / "new")


def test_the_limit_given_to_parts_holds_in_merge_and_another_can_be_given(tmp_path: Path) -> None:
    for out, limit in (("a", 0.2), ("b", 0.05)):
        for part in ("1/2", "2/2"):
            faces = SmoothFaces(counts={"train": 90}, reject_every=9)
            build(faces, tmp_path / out, BuildConfig(16, 1, part, limit), quiet=True)
    assert merge(tmp_path / "a" / "train").num_quarantined == 10
    with pytest.raises(DataError, match=r"build\.max_quarantined=0\.112"):
        merge(tmp_path / "b" / "train")
    assert merge(tmp_path / "b" / "train", 0.112).num_quarantined == 10


def test_a_folder_of_another_build_is_not_mixed(tmp_path: Path) -> None:
    out = build_smooth(tmp_path / "set")
    with pytest.raises(DataError, match="other settings"):
        build_smooth(out, size=48, shard_size=8)
    build(SmoothFaces(), tmp_path / "part", BuildConfig(16, 1, "1/2"), quiet=True)
    with pytest.raises(DataError, match="unfinished build"):
        build(SmoothFaces(), tmp_path / "part", BuildConfig(8, 1, "2/2"), quiet=True)


def test_two_builds_of_one_folder_at_once_one_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "train"
    folder.mkdir()
    with (folder / ".lock").open("w") as held:
        for kind, part in ((fcntl.LOCK_EX, ""), (fcntl.LOCK_EX, "1/2"), (fcntl.LOCK_SH, "")):
            fcntl.flock(held, kind)
            with pytest.raises(DataError, match="another process"):
                build(SmoothFaces(), tmp_path, BuildConfig(16, 1, part), quiet=True)
        build(SmoothFaces(), tmp_path, BuildConfig(16, 1, "1/2"), quiet=True)
        with pytest.raises(DataError, match="another process"):
            merge(folder)


@dataclass(frozen=True)
class MeetingFaces(SmoothFaces):
    """Calls `meet` before each picture."""

    meet: Any = None

    def open_maker(self) -> Maker:
        make = super().open_maker()

        def meeting(items: Sequence[Item]) -> Iterator[Encoded | Rejected]:
            self.meet()
            yield from make(items)

        return meeting


def test_parts_that_overlap_may_be_made_at_once(tmp_path: Path) -> None:
    """The second begins while the first has its first shard half-written, and leaves that alone."""
    faces = SmoothFaces(counts={"train": 90})
    begun, go_on = threading.Event(), threading.Event()
    failed: list[BaseException] = []

    def wait() -> None:
        begun.set()
        assert go_on.wait(30)

    def run(source: SmoothFaces, part: str) -> None:
        try:
            build(source, tmp_path / "parts", BuildConfig(16, 1, part), quiet=True)
        except BaseException as error:
            failed.append(error)

    first = threading.Thread(target=run, args=(MeetingFaces(faces.counts, meet=wait), "1/2"))
    first.start()
    assert begun.wait(30)
    second = threading.Thread(target=run, args=(MeetingFaces(faces.counts, meet=go_on.set), "1/3"))
    second.start()
    time.sleep(0.3)  # so that it stands at the lock of shard 0
    assert list((tmp_path / "parts" / "train").glob(".faces-000000.*.tmp"))
    with pytest.raises(DataError, match="another process"):
        merge(tmp_path / "parts" / "train")
    go_on.set()
    first.join()
    second.join()
    assert failed == []
    run(faces, "2/2")
    merge(tmp_path / "parts" / "train")
    build(faces, tmp_path / "whole", BuildConfig(16, 1), quiet=True)
    assert failed == [] and digests(tmp_path / "parts") == digests(tmp_path / "whole")


@dataclass(frozen=True)
class CrashingFaces(SmoothFaces):
    """Picture `deadly` ends the process that reads it: always, or only the first time."""

    deadly: str = ""
    once: Path | None = None

    def _make(self, item: Item) -> Encoded | Rejected:
        if item.key == self.deadly and not (self.once and self.once.exists()):
            if self.once:
                self.once.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._make(item)


def test_a_process_that_dies_once_costs_nothing(tmp_path: Path) -> None:
    faces = CrashingFaces(counts={"train": 90}, deadly="train-0037", once=tmp_path / "died")
    build(faces, tmp_path / "set", BuildConfig(16, 2), quiet=True)
    assert (tmp_path / "died").exists()
    build(SmoothFaces(counts={"train": 90}), tmp_path / "whole", BuildConfig(16, 1), quiet=True)
    assert digests(tmp_path / "set") == digests(tmp_path / "whole")


def test_a_picture_that_brings_processes_down_is_named_and_the_rest_is_made(tmp_path: Path) -> None:
    faces = CrashingFaces(counts={"train": 90}, deadly="train-0037")
    with pytest.raises(DataError, match=r"shard 2 brings its process down, at picture 'train-0037'"):
        build(faces, tmp_path / "set", BuildConfig(16, 2), quiet=True)
    made = sorted(path.name for path in (tmp_path / "set" / "train").glob("*.tar"))
    assert made == [f"faces-{number:06d}.tar" for number in (0, 1, 3, 4, 5)]
    build(replace(faces, deadly=""), tmp_path / "set", BuildConfig(16, 2), quiet=True)
    assert load_manifest(tmp_path / "set" / "train").num_samples == 90


def test_what_a_killed_build_left_half_written_is_removed(tmp_path: Path) -> None:
    faces = SmoothFaces(counts={"train": 90})
    build(faces, tmp_path / "set", BuildConfig(16, 1, "1/2"), quiet=True)
    folder = tmp_path / "set" / "train"
    (folder / shardjob.PARTS / "000001.json").unlink(missing_ok=True)
    leftovers = [folder / ".faces-000001.tar.99999.tmp", folder / shardjob.PARTS / ".000001.json.9.tmp"]
    for path in leftovers:
        path.write_bytes(b"half")
    build(faces, tmp_path / "set", BuildConfig(16, 1, "2/2"), quiet=True)
    assert not any(path.exists() for path in leftovers)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"shard_size": 0}, r"build\.shard_size=0: must be 1 or more"),
        ({"shard_size": -5}, r"build\.shard_size=-5"),
        ({"chunk_size": 0}, r"build\.chunk_size=0"),
        ({"workers": -1}, r"build\.workers=-1: must be 0 or more"),
        ({"max_quarantined": 1.5}, r"build\.max_quarantined=1\.5: must be from 0 to 1"),
        ({"max_quarantined": float("nan")}, r"build\.max_quarantined=nan"),
        ({"part": "3/2"}, "i/n"),
    ],
)
def test_settings_are_checked_at_the_door(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(DataError, match=named):
        BuildConfig(**settings)


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
