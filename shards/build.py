"""From a source to a shard set: in parallel, resumable after a kill, the same bytes each time.

Shard number k of a split is made from items [k·n, (k+1)·n) of the source, whatever happened to the others.
So any process can make any shard (`part`), a killed build goes on with the first shard that is not whole,
and the bytes do not depend on who made what when. The manifest is written last.
"""

from __future__ import annotations

import csv
import io
import json
import multiprocessing
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from shards.files import atomic_write, clear_disk_errors, locked, sha256_file, write_atomic
from shards.index import index_bytes
from shards.labels import DataError
from shards.manifest import NAME, Manifest, ShardEntry, load_manifest
from shards.records import (
    Encoded,
    Item,
    LabelSpace,
    Maker,
    Rejected,
    Source,
    canonical_json,
    fingerprint,
    info_to_json,
)
from shards.tars import write_tar

QUARANTINE = "quarantine.csv"
_PARTS = ".parts"
_VERSION = 1


@dataclass(frozen=True)
class BuildConfig:
    """How a shard set is written.

    Attributes:
        shard_size: items to a shard (a shard holds fewer samples where some were left out).
        workers: processes; 0 = one for each core.
        part: "i/n" makes only shards i, i+n, … (from 1), to be joined by `merge`.
        max_quarantined: refuse the result if a larger share of the items was left out.
        chunk_size: items handed to a maker at once.
    """

    shard_size: int = 1000
    workers: int = 0
    part: str = ""
    max_quarantined: float = 0.5
    chunk_size: int = 32


@dataclass(frozen=True)
class _Job:
    """One shard to make: picklable."""

    out: Path
    number: int
    items: Sequence[Item]
    chunk_size: int
    fingerprint: str


@dataclass(frozen=True)
class _Plan:
    """What is left to be made of one split: jobs, and how many of its items are done."""

    out: Path
    jobs: list[_Job]
    num_items: int
    num_done: int


_maker: Maker | None = None
_progress: Any = None


def build(source: Source, out: Path, config: BuildConfig = BuildConfig(), quiet: bool = False) -> list[Path]:
    """Makes every split of `source` under `out`; what is already whole is kept.

    Args:
        source: what to read.
        out: folder that gets a folder per split.
        config: sizes, processes, part.
        quiet: no progress bar.

    Returns:
        The folders of the splits.

    Raises:
        DataError: no items, an unusable folder, a folder made from something else, or too much quarantined.
    """
    num_parts = parse_part(config.part)[1]
    splits = list(source.splits())
    if not splits:
        raise DataError(f"{source.info.name}: no split to build")
    with ExitStack() as locks:
        plans = [_plan_split(source, split, out / split, config, locks) for split in splits]
        jobs = [job for plan in plans for job in plan.jobs]
        total, done = sum(plan.num_items for plan in plans), sum(plan.num_done for plan in plans)
        _run(
            source,
            jobs,
            config.workers,
            tqdm(total=total, initial=done, desc=str(out), unit="img", disable=quiet),
        )
        if num_parts == 1:
            for plan in plans:
                merge(plan.out, config.max_quarantined)
    return [plan.out for plan in plans]


def _plan_split(source: Source, split: str, out: Path, config: BuildConfig, locks: ExitStack) -> _Plan:
    """What is left to be made of one split's part; holds its lock until `locks` is closed."""
    items = source.items(split)
    _check_items(items, f"{source.info.name}/{split}")
    description = _description(source, split, items, config)
    part, num_parts = parse_part(config.part)
    wanted = range(part - 1, -(-len(items) // config.shard_size), num_parts)
    sizes = {k: min(config.shard_size, len(items) - k * config.shard_size) for k in wanted}
    num_items = sum(sizes.values())
    if _already_made(out, description):
        return _Plan(out, [], num_items, num_items)
    with clear_disk_errors(out):
        (out / _PARTS).mkdir(parents=True, exist_ok=True)
    locks.enter_context(locked(out / f".lock-{part}-of-{num_parts}"))
    write_atomic(out / _PARTS / f"build-{part}-of-{num_parts}.json", canonical_json(description))
    mark = fingerprint(description)
    jobs = []
    for number in wanted:
        if _finished(out, number, mark) is None:
            _remove_leftovers(out, number)
            part_items = items[number * config.shard_size : (number + 1) * config.shard_size]
            jobs.append(_Job(out, number, part_items, config.chunk_size, mark))
    return _Plan(out, jobs, num_items, num_items - sum(sizes[job.number] for job in jobs))


def _remove_leftovers(out: Path, number: int) -> None:
    """What a killed build left half-written of one shard."""
    for leftover in (
        *out.glob(f".faces-{number:06d}.*.tmp"),
        *(out / _PARTS).glob(f".{number:06d}.json.*.tmp"),
    ):
        leftover.unlink()


def parse_part(text: str) -> tuple[int, int]:
    """ "2/5" -> (2, 5); "" -> (1, 1).

    Raises:
        DataError: not of the form i/n with 1 <= i <= n.
    """
    if not text:
        return 1, 1
    first, slash, second = text.partition("/")
    if slash and first.isdecimal() and second.isdecimal() and 1 <= int(first) <= int(second):
        return int(first), int(second)
    raise DataError(f"part {text!r}: write it as i/n with i from 1 to n, as in part=2/8")


def merge(out: Path, max_quarantined: float = 0.5) -> Manifest:
    """Joins the parts of a split: checks that every shard is there, writes quarantine list and manifest.

    Raises:
        DataError: parts of different builds, a shard that is missing (names the part to run), or too much
            quarantined.
    """
    descriptions = [
        json.loads(path.read_bytes()) for path in sorted((out / _PARTS).glob("build-*-of-*.json"))
    ]
    if not descriptions:
        if (out / NAME).exists():
            return load_manifest(out)
        raise DataError(f"{out}: nothing to merge; run `shards build` with part=1/n … n/n first")
    if any(d != descriptions[0] for d in descriptions):
        raise DataError(
            f"{out}: its parts were built with different settings; empty the folder and build again"
        )
    description = descriptions[0]
    mark = fingerprint(description)
    entries: list[ShardEntry] = []
    rejected: list[tuple[str, str]] = []
    for number in range(description["num_shards"]):
        record = _finished(out, number, mark)
        if record is None:
            raise DataError(
                f"{out}: shard {number} is missing: run the part of the build that makes it, then merge"
            )
        if record["entry"] is not None:
            entries.append(ShardEntry(**record["entry"]))
        rejected += [(key, reason) for key, reason in record["rejected"]]
    return write_manifest(out, description, entries, rejected, max_quarantined)


def _check_items(items: Sequence[Item], where: str) -> None:
    if not items:
        raise DataError(f"{where}: no images found: check SRC and the layout it should have")
    if len({item.key for item in items}) != len(items):
        twice, _ = Counter(item.key for item in items).most_common(1)[0]
        raise DataError(
            f"{where}: key {twice!r} occurs twice: names must differ once cut down to letters and digits"
        )


def _description(source: Source, split: str, items: Sequence[Item], config: BuildConfig) -> dict[str, Any]:
    """What decides the bytes of a build. Folders of different descriptions are never mixed."""
    listing = fingerprint([item.key for item in items])
    description = {
        "version": _VERSION,
        "split": split,
        "num_items": len(items),
        "keys": listing,
        "shard_size": config.shard_size,
        "num_shards": -(-len(items) // config.shard_size),
        "info": info_to_json(source.info),
    }
    return dict(json.loads(canonical_json(description)))


def _already_made(out: Path, description: Mapping[str, Any]) -> bool:
    """True if `out` holds the whole of this very build; refuses a folder that holds another."""
    remedy = "choose another OUT, or remove it first"
    if (out / NAME).exists():
        manifest = load_manifest(out)
        if manifest.build.get("fingerprint") == fingerprint(description):
            return True
        raise DataError(f"{out}: holds shards of {manifest.source} made with other settings; {remedy}")
    for path in sorted((out / _PARTS).glob("build-*-of-*.json")):
        if path.read_bytes() != canonical_json(description):
            raise DataError(f"{out}: holds an unfinished build with other settings; {remedy}")
    return False


def _finished(out: Path, number: int, mark: str) -> dict[str, Any] | None:
    """The record of a shard that is whole and of this build, else None."""
    path = out / _PARTS / f"{number:06d}.json"
    try:
        record = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    if record["fingerprint"] != mark:
        return None
    entry = record["entry"]
    if entry is not None:
        tar, index = out / entry["tar"], out / entry["index"]
        if not tar.is_file() or not index.is_file() or tar.stat().st_size != entry["tar_size"]:
            return None
    return dict(record)


def _run(source: Source, jobs: Sequence[_Job], workers: int, bar: Any) -> None:
    """Makes the shards of `jobs`, in this process or in several."""
    workers = min(workers or os.cpu_count() or 1, len(jobs))
    with bar:
        if workers <= 1:
            maker = source.open_maker() if jobs else None
            for job in jobs:
                assert maker is not None
                _make_shard(maker, job, bar.update)
            return
        context = multiprocessing.get_context("spawn")
        counter = context.Value("q", 0)
        with ProcessPoolExecutor(workers, context, _start_worker, (source, counter)) as pool:
            pending: set[Future[None]] = {pool.submit(_work, job) for job in jobs}
            shown = 0
            try:
                while pending:
                    finished, pending = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
                    shown = _catch_up(bar, counter, shown)
                    for future in finished:
                        future.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
            _catch_up(bar, counter, shown)


def _catch_up(bar: Any, counter: Any, shown: int) -> int:
    """Moves the bar to what the workers have counted; returns that count."""
    counted = int(counter.value)
    if counted > shown:
        bar.update(counted - shown)
    return counted


def _start_worker(source: Source, counter: Any) -> None:
    global _maker, _progress
    torch.set_num_threads(1)  # there is a worker for each core
    _maker, _progress = source.open_maker(), counter


def _work(job: _Job) -> None:
    assert _maker is not None

    def advance(count: int) -> None:
        with _progress.get_lock():
            _progress.value += count

    _make_shard(_maker, job, advance)


def _make_shard(maker: Maker, job: _Job, advance: Any) -> None:
    """Makes one shard: tar, index, then the record that says both are whole."""
    rejected: list[Rejected] = []

    def samples() -> Iterator[Encoded]:
        for start in range(0, len(job.items), job.chunk_size):
            chunk = job.items[start : start + job.chunk_size]
            for record in maker(chunk):
                if isinstance(record, Rejected):
                    rejected.append(record)
                else:
                    yield record
            advance(len(chunk))

    name = f"faces-{job.number:06d}"
    tar = job.out / f"{name}.tar"
    with atomic_write(tar) as file:
        written = write_tar(file, samples())
    entry = None
    if written.rows:
        index = job.out / f"{name}.idx"
        write_atomic(index, index_bytes(tar.name, written.size, written.sha256, written.rows))
        digest = sha256_file(index)
        entry = asdict(
            ShardEntry(tar.name, written.size, written.sha256, index.name, digest, len(written.rows))
        )
    else:
        tar.unlink()
    record = {
        "fingerprint": job.fingerprint,
        "entry": entry,
        "rejected": [[r.key, r.reason] for r in rejected],
    }
    write_atomic(job.out / _PARTS / f"{job.number:06d}.json", canonical_json(record))


def write_manifest(
    out: Path,
    description: Mapping[str, Any],
    entries: Sequence[ShardEntry],
    rejected: Sequence[tuple[str, str]],
    max_quarantined: float,
) -> Manifest:
    """Writes quarantine list and manifest, then drops the records of the build."""
    write_atomic(out / QUARANTINE, _quarantine_csv(rejected))
    num_items = description["num_items"]
    if len(rejected) > max_quarantined * num_items or not entries:
        raise DataError(
            f"{out}: {len(rejected)} of {num_items} images were left out (reasons: {out / QUARANTINE}). "
            f"Mend the input, or allow it with max_quarantined={len(rejected) / num_items:.2f}"
        )
    info = description["info"]
    manifest = Manifest(
        split=description["split"],
        kind=info["kind"],
        source=info["name"],
        licence=info["licence"],
        rendered=info["rendered"],
        label_space=_label_space(info["label_space"]),
        alignment=info["alignment"],
        alignment_hash=fingerprint(info["alignment"]),
        num_samples=sum(entry.num_samples for entry in entries),
        num_items=num_items,
        num_quarantined=len(rejected),
        shards=tuple(entries),
        build={"fingerprint": fingerprint(description), "settings": info.get("settings", {})},
    )
    write_atomic(out / NAME, json.dumps(manifest.to_json(), indent=1).encode())
    for path in (out / _PARTS).glob("*"):
        path.unlink()
    if (out / _PARTS).exists():
        (out / _PARTS).rmdir()
    return manifest


def _label_space(data: Mapping[str, Any]) -> LabelSpace:
    return LabelSpace(tuple(data["expr"]), tuple(data["au"]), data["va"])


def _quarantine_csv(rejected: Sequence[tuple[str, str]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["key", "reason"])
    writer.writerows((_plain(key), _plain(reason)) for key, reason in rejected)
    return text.getvalue().encode()


def _plain(text: str) -> str:
    """Text that no spreadsheet takes for a formula."""
    return "'" + text if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text
