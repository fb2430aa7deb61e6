"""One shard of a build: made under its lock, and the record that says it is whole."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shards.files import atomic_write, locked, sha256_file, write_atomic
from shards.index import index_bytes
from shards.manifest import ShardEntry
from shards.records import Encoded, Item, Maker, Rejected, canonical_json
from shards.tars import write_tar

PARTS = ".parts"
"""Folder of a split in the making: a record and a lock per shard, a file per part; gone once it is whole."""


@dataclass(frozen=True)
class ShardJob:
    """One shard to make; picklable.

    Attributes:
        out: folder of the split.
        number: of the shard.
        items: all that belong to it.
        chunk_size: items handed to the maker at once.
        fingerprint: of the build.
        kind: "faces" or "clips": what the files are named after.
    """

    out: Path
    number: int
    items: Sequence[Item]
    chunk_size: int
    fingerprint: str
    kind: str = "faces"


def make_shard(maker: Maker, job: ShardJob, advance: Callable[[int], Any]) -> None:
    """Makes tar, index, and last the record; nothing where another process has made it by now.

    Args:
        maker: of the source.
        job: what to make.
        advance: told how many more items are done.

    Raises:
        DataError: the disk is full or cannot be written, or an item cannot be read.
    """
    with locked(job.out / PARTS / f"{job.number:06d}.lock", wait=True):
        if finished_record(job.out, job.number, job.fingerprint) is None:
            _remove_leftovers(job)
            _make(maker, job, advance)
        else:
            advance(len(job.items))


def finished_record(out: Path, number: int, mark: str) -> dict[str, Any] | None:
    """The record of a shard that is whole and of the build with fingerprint `mark`, else None.

    It has `entry`, the fields of its `ShardEntry` (None where every item was left out), and `rejected`, a
    list of [key, reason]; and `counts`, the sums of what its samples say of their frames, if they do.
    """
    try:
        record = json.loads(_record_path(out, number).read_bytes())
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


def forget(out: Path, number: int) -> None:
    """The shard counts as not made; it is made again over what is there."""
    _record_path(out, number).unlink(missing_ok=True)


def _record_path(out: Path, number: int) -> Path:
    return out / PARTS / f"{number:06d}.json"


def _remove_leftovers(job: ShardJob) -> None:
    """What a killed build left half-written of this shard."""
    names = f".{job.kind}-{job.number:06d}.*.tmp", f"{PARTS}/.{job.number:06d}.json.*.tmp"
    for leftover in (path for name in names for path in job.out.glob(name)):
        with contextlib.suppress(FileNotFoundError):
            leftover.unlink()


def _make(maker: Maker, job: ShardJob, advance: Callable[[int], Any]) -> None:
    rejected: list[Rejected] = []
    counts: Counter[str] = Counter()

    def samples() -> Iterator[Encoded]:
        for start in range(0, len(job.items), job.chunk_size):
            chunk = job.items[start : start + job.chunk_size]
            for record in maker(chunk):
                counts.update(record.counts)
                if isinstance(record, Rejected):
                    rejected.append(record)
                else:
                    yield record
            advance(len(chunk))

    name = f"{job.kind}-{job.number:06d}"
    tar, index = job.out / f"{name}.tar", job.out / f"{name}.idx"
    with atomic_write(tar) as file:
        written = write_tar(file, samples())
    entry = None
    if written.rows:
        write_atomic(index, index_bytes(tar.name, written.size, written.sha256, written.rows))
        digest = sha256_file(index)
        entry = asdict(
            ShardEntry(tar.name, written.size, written.sha256, index.name, digest, len(written.rows))
        )
    else:
        tar.unlink()
        index.unlink(missing_ok=True)
    record = {
        "fingerprint": job.fingerprint,
        "entry": entry,
        "rejected": [[r.key, r.reason] for r in rejected],
    }
    if counts:
        record["counts"] = dict(counts)
    write_atomic(_record_path(job.out, job.number), canonical_json(record))
