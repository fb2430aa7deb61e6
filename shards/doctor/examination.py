"""The examination: folders, then every shard in a process of its own, then what only all of them show."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from shards.bar import open_bar
from shards.doctor import across
from shards.doctor.across import Part
from shards.doctor.findings import SEVERITIES, Examination, Face, Finding, Notebook
from shards.doctor.folder import examine_folder, find_splits, loose_tars
from shards.doctor.shard import ShardJob, ShardRecord, examine_shard
from shards.labels import DataError
from shards.manifest import ShardEntry
from shards.tars import scan_tar
from shards.workers import Died, Report, num_cores, run_jobs


@dataclass(frozen=True)
class ExamineConfig:
    """How a set is examined.

    Attributes:
        workers: processes; 0 = one for each core, and a single one for a small set.
        num_faces: samples kept to be looked at, over all splits.
        num_twins: pairs of equal pictures that are kept.
        single_below: samples below which one process is quicker than starting several.
    """

    workers: int = 0
    num_faces: int = 24
    num_twins: int = 12
    single_below: int = 10_000


def examine(
    folders: Sequence[Path], config: ExamineConfig = ExamineConfig(), quiet: bool = False
) -> Examination:
    """Examines all splits of one or several sets that are to be joined.

    Memory: under 1 kB for each sample, and one decoded sample for each process.

    Args:
        folders: sets (a folder per split), or split folders.
        config: processes, how much is kept to be shown.
        quiet: no progress bar.

    Raises:
        DataError: a folder that does not exist, or holds no shards at all. Damage never raises.
    """
    start = time.perf_counter()
    parts = [Part(record) for folder in dict.fromkeys(folders) for record in find_splits(folder)]
    if not parts:
        raise DataError("no shards given: set SHARDS=folder (or SHARDS=a,b to join sets)")
    findings: list[Finding] = []
    jobs: list[tuple[Part, ShardJob]] = []
    for part in parts:
        book = Notebook(part.record.name)
        examine_folder(part.record, book)
        jobs += [(part, job) for job in _jobs(part)]
        if part.record.manifest is None:
            _scan_loose(part, book)
        findings += book.close()
    total = sum(job.entry.num_samples for _, job in jobs)
    workers = config.workers or (1 if total < config.single_below else num_cores())
    records: dict[int, ShardRecord] = {}
    with open_bar(total=total, desc="examine", unit="img", disable=quiet) as bar:
        for number, record in _run([job for _, job in jobs], workers):
            records[number] = record
            bar.update(jobs[number][1].entry.num_samples)
    for number, (part, _) in enumerate(jobs):
        _add(part, records[number])
        findings += records[number].findings
    findings += across.check_manifests(parts) + across.check_keys(parts) + across.check_people(parts)
    overlaps, twins, said = across.check_pictures(parts, config.num_twins)
    findings += said + [finding for part in parts for finding in across.check_labels(part)]
    findings.sort(key=lambda finding: SEVERITIES.index(finding.severity))
    return Examination(
        splits=tuple(part.record for part in parts),
        findings=tuple(findings),
        overlaps=tuple(overlaps),
        twins=tuple(twins),
        faces=tuple(face for part in parts for face in _some_faces(part, -(-config.num_faces // len(parts)))),
        seconds=time.perf_counter() - start,
    )


def _jobs(part: Part) -> list[ShardJob]:
    """A job per shard that the manifest lists."""
    manifest = part.record.manifest
    if manifest is None:
        return []
    names = {entry.tar_sha256: entry.tar for entry in manifest.shards}
    return [
        ShardJob(part.record.folder, entry, manifest.kind, manifest.label_space, names)
        for entry in manifest.shards
    ]


def _scan_loose(part: Part, book: Notebook) -> None:
    """Without a manifest nothing can be compared; the tars are at least read through."""
    for tar in loose_tars(part.record.folder):
        try:
            rows = scan_tar(tar).rows
        except (DataError, OSError) as error:
            book.add("error", str(error).removeprefix(f"{tar}: "), "fetch or make it again", str(tar))
        else:
            part.record.num_tars += 1
            part.record.num_bytes += tar.stat().st_size
            book.add("note", f"readable, {len(rows)} samples, but no manifest lists it", "", str(tar))


def _run(jobs: Sequence[ShardJob], workers: int) -> Iterator[tuple[int, ShardRecord]]:
    """(number, record) of every job, as they are done; one that brings its process down has an error's."""
    if workers <= 1 or len(jobs) <= 1:
        for number, job in enumerate(jobs):
            yield number, examine_shard(job)
        return
    for number, outcome in run_jobs(_open_examiner, jobs, workers):
        job = jobs[number]
        yield number, _fatal(job.folder, job.entry) if isinstance(outcome, Died) else outcome


def _open_examiner() -> Callable[[ShardJob, Report], ShardRecord]:
    """What a worker process does; for `run_jobs`."""
    torch.set_num_threads(1)  # there is a worker for each core
    return lambda job, report: examine_shard(job)


def _fatal(folder: Path, entry: ShardEntry) -> ShardRecord:
    tar = folder / entry.tar
    text = "brought the process that examined it down (a damaged image, or too little memory)"
    finding = Finding("error", str(tar), text, "restore it from a copy, or build the set again")
    return ShardRecord(tar, [finding], num_lost=entry.num_samples)


def _add(part: Part, shard: ShardRecord) -> None:
    """Adds one shard to what is known of its split."""
    record = part.record
    part.shards.append(shard)
    record.num_samples += len(shard.keys)
    record.num_lost += shard.num_lost
    record.num_damaged += shard.num_damaged
    record.num_bytes += shard.num_bytes
    record.num_tars += shard.num_bytes > 0
    record.labels.merge(shard.labels)
    record.sizes.update(shard.sizes)
    record.num_flat += int(shard.pictures["flat"].sum())


def _some_faces(part: Part, count: int) -> list[Face]:
    """Up to `count` samples of a split, evenly spread."""
    places = [(shard, i) for shard in part.shards for i in shard.pictures["seen"].nonzero()[0].tolist()]
    chosen = places[:: max(1, -(-len(places) // count))]
    return [
        Face(
            part.record.name,
            shard.tar,
            shard.keys[i],
            int(shard.pictures[i]["offset"]),
            int(shard.pictures[i]["size"]),
        )
        for shard, i in chosen
    ]
