"""From a source to a shard set: in parallel, resumable after a kill, the same bytes each time.

Shard number k of a split is made from items [k·n, (k+1)·n) of the source, whatever happened to the others.
So any process can make any shard (`part`), a killed build goes on with the first shard that is not whole,
and the bytes do not depend on who made what when. The manifest is written last.
"""

from __future__ import annotations

import functools
import json
import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from shards.bar import open_bar
from shards.files import clear_disk_errors, locked, write_atomic
from shards.labels import DataError
from shards.manifest import NAME, Manifest, ShardEntry, load_manifest, save_manifest
from shards.quarantine import QUARANTINE, quarantine_csv
from shards.records import Item, LabelSpace, Source, canonical_json, fingerprint, info_to_json
from shards.shardjob import PARTS, ShardJob, finished_record, forget, make_shard
from shards.workers import Died, num_cores, run_jobs

_LOG = logging.getLogger(__name__)
_LOCK = ".lock"  # parts share it; a whole build and `merge` hold it alone
_FEW = 3  # pictures of a split that may be left out, however small it is
_VERSION = 1


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


@dataclass(frozen=True)
class BuildConfig:
    """How a shard set is written.

    Attributes:
        shard_size: items to a shard (a shard holds fewer samples where some were left out).
        workers: processes; 0 = one for each core.
        part: "i/n" makes only shards i, i+n, … (from 1), to be joined by `merge`.
        max_quarantined: refuse the result if a larger share of a split's items was left out, and more than
            three; 0 = if any was.
        chunk_size: items handed to a maker at once.
        again: make all shards anew, though they are finished: for pictures that were replaced.

    Raises:
        DataError: a number out of range, or no part.
    """

    shard_size: int = 1000
    workers: int = 0
    part: str = ""
    max_quarantined: float = 0.05
    chunk_size: int = 32
    again: bool = False

    def __post_init__(self) -> None:
        for name, low in (("shard_size", 1), ("workers", 0), ("chunk_size", 1)):
            if getattr(self, name) < low:
                raise DataError(f"build.{name}={getattr(self, name)}: must be {low} or more")
        if not 0 <= self.max_quarantined <= 1:
            raise DataError(f"build.max_quarantined={self.max_quarantined}: must be from 0 to 1")
        parse_part(self.part)


@dataclass(frozen=True)
class _Plan:
    """What is left to be made of one split.

    Attributes:
        out: its folder.
        num_items: of this part.
        jobs: shards to make.
        num_done: items of the shards that are made.
        is_whole: the split is made, manifest and all.
    """

    out: Path
    num_items: int
    jobs: Sequence[ShardJob] = ()
    num_done: int = 0
    is_whole: bool = False


def build(source: Source, out: Path, config: BuildConfig = BuildConfig(), quiet: bool = False) -> list[Path]:
    """Makes every split of `source` under `out`; what is already whole is kept.

    Shards are kept as they were made of the pictures of then, even if these have changed: what decides is
    the list of keys and the settings. `config.again` makes them anew; so does another call after one that was
    refused for what was left out, for the shards with something left out.

    Args:
        source: what to read.
        out: folder that gets a folder per split.
        config: sizes, processes, part.
        quiet: no progress bar.

    Returns:
        The folders of the splits.

    Raises:
        DataError: no items, an unusable folder, a folder made from something else or in which another
            process works, a picture that cannot be read or brings processes down, or too much quarantined.
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
            open_bar(total=total, initial=done, desc=str(out), unit=source.info.unit, disable=quiet),
        )
        if num_parts == 1:
            for plan in plans:
                if not plan.is_whole:
                    _merge(plan.out, config.max_quarantined)
    return [plan.out for plan in plans]


def _plan_split(source: Source, split: str, out: Path, config: BuildConfig, locks: ExitStack) -> _Plan:
    """What is left to be made of one split's part; holds its lock until `locks` is closed."""
    items = source.items(split)
    _check_items(items, f"{source.info.name}/{split}")
    description = _description(source, split, items, config)
    part, num_parts = parse_part(config.part)
    wanted = range(part - 1, description["num_shards"], num_parts)
    sizes = {k: min(config.shard_size, len(items) - k * config.shard_size) for k in wanted}
    whole = _Plan(out, num_items=sum(sizes.values()), num_done=sum(sizes.values()), is_whole=True)
    if _already_made(out, description) and not config.again:
        _LOG.info("%s: already made; build.again=true makes it anew, should pictures have changed", out)
        return whole
    with clear_disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    locks.enter_context(locked(out / _LOCK, shared=num_parts > 1))
    if _already_made(out, description) and not config.again:
        return whole  # by another process, in the meantime
    mark = fingerprint(description)
    with clear_disk_errors(out):
        (out / PARTS).mkdir(exist_ok=True)
        unmade = _unmade(out, wanted, description, config)
        for number in unmade:
            forget(out, number)
    asked = {"description": description, "max_quarantined": config.max_quarantined}
    write_atomic(_part_path(out, config.part), canonical_json(asked))
    size = config.shard_size
    jobs = [
        ShardJob(
            out,
            number,
            items[number * size : (number + 1) * size],
            config.chunk_size,
            mark,
            source.info.kind,
        )
        for number in unmade
    ]
    return _Plan(out, whole.num_items, jobs, whole.num_items - sum(sizes[number] for number in unmade))


def _unmade(
    out: Path, wanted: Sequence[int], description: Mapping[str, Any], config: BuildConfig
) -> Sequence[int]:
    """The shards to make of those `wanted`."""
    if config.again:
        (out / NAME).unlink(missing_ok=True)
        return wanted
    mark = fingerprint(description)
    unmade = [number for number in wanted if finished_record(out, number, mark) is None]
    if unmade:
        return unmade
    # All is made, so an earlier call ended with what `merge` says of it. If it would refuse it again, the
    # pictures left out are looked at once more: to be called again is to have mended them.
    records = [finished_record(out, number, mark) for number in range(description["num_shards"])]
    made = [record for record in records if record is not None]
    num_rejected = sum(len(record["rejected"]) for record in made)
    is_empty = all(record["entry"] is None for record in made)
    if len(made) < len(records) or not (
        is_empty or _too_many(num_rejected, description["num_items"], config.max_quarantined)
    ):
        return []
    return [number for number in wanted if made[number]["rejected"]]


def _too_many(num_rejected: int, num_items: int, max_quarantined: float) -> bool:
    """True if more was left out than may be."""
    return num_rejected > (max(max_quarantined * num_items, _FEW) if max_quarantined else 0)


def _part_path(out: Path, part: str) -> Path:
    return out / PARTS / "build-{}-of-{}.json".format(*parse_part(part))


def merge(out: Path, max_quarantined: float | None = None) -> Manifest:
    """Joins the parts of a split: checks that every shard is there, writes quarantine list and manifest.

    Args:
        out: folder of the split.
        max_quarantined: see `BuildConfig`; by default the largest that a part was given.

    Raises:
        DataError: parts of different builds or still at work, a shard that is missing, or too much
            quarantined.
    """
    if not (out / PARTS).exists():
        if (out / NAME).exists():
            return load_manifest(out)
        raise DataError(f"{out}: nothing to merge; run `shards build` with part=1/n … n/n first")
    with locked(out / _LOCK):
        return _merge(out, max_quarantined)


def _merge(out: Path, max_quarantined: float | None) -> Manifest:
    """`merge` for one who holds the lock."""
    asked = [json.loads(path.read_bytes()) for path in sorted((out / PARTS).glob("build-*-of-*.json"))]
    if not asked:
        raise DataError(f"{out}: nothing to merge; run `shards build` with part=1/n … n/n first")
    descriptions = [part.get("description") for part in asked]
    if any(d != descriptions[0] for d in descriptions):
        raise DataError(
            f"{out}: its parts were built with different settings; empty the folder and build again"
        )
    description = descriptions[0]
    mark = fingerprint(description)
    entries: list[ShardEntry] = []
    rejected: list[tuple[str, str]] = []
    counts: Counter[str] = Counter()
    for number in range(description["num_shards"]):
        record = finished_record(out, number, mark)
        if record is None:
            raise DataError(
                f"{out}: shard {number} is missing: run the part of the build that makes it, then merge"
            )
        if record["entry"] is not None:
            entries.append(ShardEntry(**record["entry"]))
        rejected += [(key, reason) for key, reason in record["rejected"]]
        counts.update(record.get("counts", {}))
    limit = max(part["max_quarantined"] for part in asked) if max_quarantined is None else max_quarantined
    return write_manifest(out, description, entries, rejected, limit, counts)


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
    for path in sorted((out / PARTS).glob("build-*-of-*.json")):
        if json.loads(path.read_bytes()).get("description") != description:
            raise DataError(f"{out}: holds an unfinished build with other settings; {remedy}")
    return False


def _run(source: Source, jobs: Sequence[ShardJob], workers: int, bar: Any) -> None:
    """Makes the shards of `jobs`, in this process or in several.

    Raises:
        DataError: a shard's processes died; all others are made.
    """
    workers = min(workers or num_cores(), len(jobs))
    with bar:
        if workers <= 1:
            maker = source.open_maker() if jobs else None
            for job in jobs:
                assert maker is not None
                make_shard(maker, job, bar.update)
            return
        before = bar.n
        outcomes = run_jobs(
            functools.partial(_open_work, source),
            jobs,
            workers,
            lambda done: bar.update(max(0, before + done - bar.n)),
            lambda job: replace(job, chunk_size=1),  # so that it is known which picture it was
        )
        died = [(jobs[number], outcome.done) for number, outcome in outcomes if isinstance(outcome, Died)]
    if died:
        job, done = died[0]
        where = f"picture {job.items[done].key!r}" if done < len(job.items) else "its end"
        raise DataError(
            f"{job.out}: shard {job.number} brings its process down, at {where}"
            + (f", and so do {len(died) - 1} others" if len(died) > 1 else "")
            + " (a picture that crashes the decoder, or too little memory). Mend it or put an empty file in "
            "its place, which is left out, and run the same command again, perhaps with fewer build.workers: "
            "finished shards are kept"
        )


def _open_work(source: Source) -> Callable[[ShardJob, Callable[[int], None]], None]:
    torch.set_num_threads(1)  # there is a worker for each core
    return functools.partial(make_shard, source.open_maker())


def write_manifest(
    out: Path,
    description: Mapping[str, Any],
    entries: Sequence[ShardEntry],
    rejected: Sequence[tuple[str, str]],
    max_quarantined: float,
    counts: Mapping[str, int] = {},
) -> Manifest:
    """Writes quarantine list and manifest, then drops the records of the build.

    Args:
        rejected: (key, reason) of what was left out.
        counts: of frames, for `build.frames`.

    Raises:
        DataError: too much quarantined, or nothing else.
    """
    write_atomic(out / QUARANTINE, quarantine_csv(rejected))
    num_items = description["num_items"]
    if not entries or _too_many(len(rejected), num_items, max_quarantined):
        kinds = Counter(reason for _, reason in rejected).most_common(3)
        reasons = ", ".join(f"{count} {reason!r:.60}" for reason, count in kinds)
        what = "clips" if description["info"]["kind"] == "clips" else "images"
        enough = math.ceil(1000 * len(rejected) / num_items) / 1000
        raise DataError(
            f"{out}: {len(rejected)} of {num_items} {what} were left out ({reasons}; all: "
            f"{out / QUARANTINE}). Mend them and build again"
            + (f", or allow it with build.max_quarantined={enough}" if entries else "")
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
        build={"fingerprint": fingerprint(description), "settings": info.get("settings", {})}
        | ({"frames": dict(sorted(counts.items()))} if counts else {}),
    )
    save_manifest(out, manifest)
    for path in (out / PARTS).glob("*"):
        path.unlink()
    if (out / PARTS).exists():
        (out / PARTS).rmdir()
    return manifest


def _label_space(data: Mapping[str, Any]) -> LabelSpace:
    return LabelSpace(tuple(data["expr"]), tuple(data["au"]), data["va"])
