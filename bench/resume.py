"""Reading in our order against reading from front to back; and what a resume costs, by number of samples.

    python -m bench.resume [--quick]

A set of 1 GB (faces of `bench.reading`, each under many keys) is read from the disk: ours in the order of
training, through the index and checked, against tarfile and webdataset from the first byte to the last. Then
sets of 10⁴, 10⁵ and 10⁶ samples (tiny pictures under as many keys, shards of the usual size) are opened in
the middle of an epoch, each time by a process that has done nothing yet but its imports.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import multiprocessing
import os
import tarfile
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch
import webdataset as wds
from PIL import Image

from bench.measure import Asked, Row, Spread, rates, run_alone, take_turns, times_as_fast
from bench.reading import face_jpegs
from shards.build import BuildConfig
from shards.config import AugmentConfig
from shards.draws import Layout, train_draws
from shards.index import IndexRow, index_bytes
from shards.labels import FaceLabels
from shards.manifest import Manifest, ShardEntry, load_manifest, save_manifest
from shards.order import EpochOrder
from shards.records import LabelSpace, canonical_json, fingerprint
from shards.shardset import ShardSet
from shards.stream import train_batches

SEED = 0
BATCH = 64
SIZE = (224, 224)
ORDER_GOAL = 0.9
RESUME_GOAL = 2.0
GROWTH_GOAL = 1.5
_DIGITS = 8  # of a key
_SUM = slice(148, 156)  # where a tar header has its checksum


def rows(asked: Asked) -> list[Row]:
    """The three lines; `asked.device` does not matter."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            order = _order_row(Path(folder), asked.quick)
        with tempfile.TemporaryDirectory() as folder:
            return [order, *_resume_rows(Path(folder), asked.quick)]
    finally:
        torch.set_num_threads(threads)


def _order_row(folder: Path, quick: bool) -> Row:
    faces = [{"jpg": face} for face in face_jpegs(16 if quick else 128)]
    num_samples = 4_000 if quick else 125_000
    write_set(folder, faces, num_samples)
    tars = sorted(folder.glob("*.tar"))
    num_bytes = sum(tar.stat().st_size for tar in tars)
    seconds = take_turns(
        {
            "cache dropped for ours": lambda: _drop(tars),
            "ours": lambda: _read_in_order(folder),
            "cache dropped for tarfile": lambda: _drop(tars),
            "tarfile": lambda: _read_by_tarfile(tars),
            "cache dropped for webdataset": lambda: _drop(tars),
            "webdataset": lambda: _read_by_webdataset(tars),
            "ours, cached": lambda: _read_in_order(folder),
        },
        turns=1 if quick else 3,
        warmups=0,
    )
    rate = {
        name: Spread.of(rates(seconds[name], num_bytes / 1e6))
        for name in ("ours", "tarfile", "webdataset", "ours, cached")
    }
    fastest = max(("tarfile", "webdataset"), key=lambda name: rate[name].median)
    other = "webdataset" if fastest == "tarfile" else "tarfile"
    ratio = times_as_fast(seconds["ours"], seconds[fastest])
    return Row(
        work=f"{num_bytes / 1e9:.2f} GB in {len(tars)} tars, {num_samples:,} samples, page cache dropped: "
        "their bytes in training order through the index",
        goal=f"{ORDER_GOAL} of sequential reading",
        ours=f"{rate['ours'].text()} MB/s",
        peer=f"{fastest}, front to back: {rate[fastest].text()} MB/s",
        ratio=ratio,
        reached=ratio.median >= ORDER_GOAL,
        note=f"{other} reads {rate[other].text()} MB/s. From the page cache ours makes "
        f"{rate['ours, cached'].text()} MB/s: the difference is the disk's.",
        settings={
            "ours": "ShardSet opened, then its read (crc32 of every member) in the order of EpochOrder, "
            f"seed {SEED}, a window of 16 shards",
            "tarfile": "tarfile.open(tar, 'r:'), each member's bytes, unchecked",
            "webdataset": "WebDataset(tars, shardshuffle=False), undecoded",
            "cache": "every tar fsynced once, then POSIX_FADV_DONTNEED before each contestant; what a "
            "hypervisor caches is the same for all",
        },
        values=seconds,
    )


def _read_in_order(folder: Path) -> None:
    shards = ShardSet([folder])
    order = EpochOrder(shards.shard_sizes, SEED)
    num_batches = len(order) // BATCH
    for draws in itertools.islice(train_draws(order, Layout(0, 1, BATCH, 1), 0), num_batches):
        for draw in draws:
            shards.read(draw.sample)


def _read_by_tarfile(tars: Sequence[Path]) -> None:
    for path in tars:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                file.read()


def _read_by_webdataset(tars: Sequence[Path]) -> None:
    for _ in wds.WebDataset([str(tar) for tar in tars], shardshuffle=False):
        pass


def _drop(tars: Sequence[Path]) -> None:
    """Takes files that lie on the disk out of the page cache."""
    for tar in tars:
        handle = os.open(tar, os.O_RDONLY)
        try:
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)


@dataclass(frozen=True)
class Resumed:
    """What it took a new process to go on in the middle of an epoch.

    Attributes:
        open_s: seconds until the set was open. batch_s: from then until there was a batch.
        resident: bytes by which the process's resident memory grew.
    """

    open_s: float
    batch_s: float
    resident: int

    @property
    def seconds(self) -> float:
        return self.open_s + self.batch_s


def _resume_rows(folder: Path, quick: bool) -> list[Row]:
    counts = (1_000, 2_000, 4_000) if quick else (10_000, 100_000, 1_000_000)
    whole = folder / str(counts[-1])
    whole.mkdir()
    write_set(whole, [_tiny_sample(number) for number in range(64)], counts[-1])
    for count in counts[:-1]:
        _write_part(whole, folder / str(count), count)
    found: dict[int, list[Resumed]] = {count: [] for count in counts}
    with _new_processes() as call:
        for _ in range(1 if quick else 5):
            for count in counts:
                found[count].append(call(folder / str(count), count // 2 // BATCH * BATCH))
    values = {f"{count} samples": [one.seconds for one in found[count]] for count in counts}
    settings = {
        "set": f"{BuildConfig().shard_size} samples to a shard, a jpg of some 400 bytes and a json each",
        "process": "forked from one that has done its imports; one thread, no loader worker, page cache warm",
        "batch": f"{BATCH} pictures decoded, cropped to {SIZE[0]}×{SIZE[1]} and collated",
    }
    most = found[counts[-1]]
    resume = Spread.of([one.seconds for one in most])
    growths = [
        median(one.seconds for one in found[more])
        / median(one.seconds for one in found[fewer])
        / (more / fewer)
        for fewer, more in itertools.pairwise(counts)
    ]
    return [
        Row(
            work=f"resume in the middle of an epoch of {counts[-1]:,} samples: from the imports to the first "
            f"batch of {BATCH}",
            goal=f"{RESUME_GOAL:g} s",
            ours=f"{resume.text('.2f')} s",
            reached=resume.median <= RESUME_GOAL,
            note=f"Opening takes {median(one.open_s for one in most):.2f} s (indexes read and checked, keys "
            f"compared), the first batch {median(one.batch_s for one in most):.2f} s.",
            settings=settings,
            values={f"{counts[-1]} samples": values[f"{counts[-1]} samples"]},
        ),
        Row(
            work=f"the same against the number of samples: {', '.join(f'{count:,}' for count in counts)}",
            goal=f"linear or better: time per sample grows by no more than {GROWTH_GOAL:g} from size to size",
            ours=f"{_each(found, lambda one: one.seconds, '.2f')} s; time per sample "
            f"{', then '.join(f'× {growth:.2f}' for growth in growths)}",
            reached=max(growths) <= GROWTH_GOAL,
            note=f"Opening {_each(found, lambda one: one.open_s, '.3f')} s, the first batch "
            f"{_each(found, lambda one: one.batch_s, '.3f')} s; resident memory grows by "
            f"{_each(found, lambda one: one.resident / 1e6, '.0f')} MB.",
            settings=settings,
            values={
                **values,
                **{f"{count} samples, opening": [one.open_s for one in found[count]] for count in counts},
                **{f"{count} samples, bytes": [one.resident for one in found[count]] for count in counts},
            },
        ),
    ]


def _each(found: Mapping[int, Sequence[Resumed]], of: Callable[[Resumed], float], digits: str) -> str:
    return " / ".join(format(median(map(of, some)), digits) for some in found.values())


@contextmanager
def _new_processes() -> Iterator[Callable[[Path, int], Resumed]]:
    """Calls `_resume`, each time in a process of its own whose imports are done."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bench.reading"])  # and with it all that is imported here
    with ProcessPoolExecutor(1, context, max_tasks_per_child=1) as pool:
        yield lambda folder, position: pool.submit(_resume, folder, position).result()


def _resume(folder: Path, position: int) -> Resumed:
    torch.set_num_threads(1)
    before = _resident()
    start = time.perf_counter()
    shards = ShardSet([folder])
    opened = time.perf_counter()
    order = EpochOrder(shards.shard_sizes, SEED)
    batch = next(train_batches(shards, order, Layout(0, 1, BATCH, 1), position, SIZE, AugmentConfig()))
    done = time.perf_counter()
    assert batch.size == BATCH
    return Resumed(opened - start, done - opened, _resident() - before)


def _resident() -> int:
    """Bytes of this process that lie in memory; 0 where the system does not say."""
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if status.is_file() else 0


def _tiny_sample(number: int) -> dict[str, bytes]:
    pixels = np.random.default_rng(number).integers(0, 256, (1, 1, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).resize((16, 16)).save(data, "JPEG", optimize=True)
    labels = FaceLabels(identity=f"person-{number}").to_json()
    return {"jpg": data.getvalue(), "json": canonical_json(labels)}


@dataclass(frozen=True)
class _Block:
    """One sample as it lies in a tar, but for its key: what its members' headers are made of.

    Attributes:
        parts: of each member its header, the sum of that header's bytes, and its padded content.
        places: (extension, offset from the sample's start, size, crc32) of each member.
        size: bytes.
    """

    parts: Sequence[tuple[bytes, int, bytes]]
    places: Sequence[tuple[str, int, int, int]]
    size: int

    @classmethod
    def of(cls, members: Mapping[str, bytes]) -> _Block:
        parts, places, at = [], [], 0
        for extension, data in members.items():
            info = tarfile.TarInfo(f"{'0' * _DIGITS}.{extension}")
            info.size = len(data)
            header = info.tobuf(tarfile.USTAR_FORMAT)
            total = int(header[_SUM].rstrip(b"\0 "), 8)
            padded = data + bytes(-len(data) % tarfile.BLOCKSIZE)
            parts.append((header, total, padded))
            places.append((extension, at + len(header), len(data), zlib.crc32(data)))
            at += len(header) + len(padded)
        return cls(parts, places, at)


def write_set(folder: Path, samples: Sequence[Mapping[str, bytes]], count: int) -> None:
    """Writes a split of `count` samples, which repeat `samples` under keys of their own, and fsyncs its tars.

    Headers are made of one template each: tarfile takes minutes for 10⁶ samples.

    Args:
        folder: an empty one.
        samples: extension -> bytes of each.
        count: how many.
    """
    blocks = [_Block.of(sample) for sample in samples]
    size = BuildConfig().shard_size
    entries = [
        _write_shard(folder, number, range(start, min(start + size, count)), blocks)
        for number, start in enumerate(range(0, count, size))
    ]
    save_manifest(folder, _manifest(entries))


def _write_shard(folder: Path, shard: int, numbers: range, blocks: Sequence[_Block]) -> ShardEntry:
    parts: list[bytes] = []
    found: list[IndexRow] = []
    at = 0
    for number in numbers:
        block = blocks[number % len(blocks)]
        key = f"{number:0{_DIGITS}}"
        name = key.encode()
        more = sum(name) - sum(b"0" * _DIGITS)
        for header, total, content in block.parts:
            parts += (name, header[_DIGITS : _SUM.start], b"%06o\0 " % (total + more))
            parts += (header[_SUM.stop :], content)
        found.append(IndexRow(key, [(e, at + offset, size, crc) for e, offset, size, crc in block.places]))
        at += block.size
    parts.append(bytes(2 * tarfile.BLOCKSIZE))
    data = b"".join(parts)
    digest = hashlib.sha256(data).hexdigest()
    tar, index = f"faces-{shard:06}.tar", f"faces-{shard:06}.idx"
    with (folder / tar).open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    table = index_bytes(tar, len(data), digest, found)
    (folder / index).write_bytes(table)
    return ShardEntry(tar, len(data), digest, index, hashlib.sha256(table).hexdigest(), len(found))


def _write_part(whole: Path, part: Path, count: int) -> None:
    """The first `count` samples of a set as a set of its own, of the same files."""
    part.mkdir()
    entries = load_manifest(whole).shards[: count // BuildConfig().shard_size]
    for name in itertools.chain.from_iterable((entry.tar, entry.index) for entry in entries):
        (part / name).hardlink_to(whole / name)
    save_manifest(part, _manifest(entries))


def _manifest(entries: Sequence[ShardEntry]) -> Manifest:
    count = sum(entry.num_samples for entry in entries)
    return Manifest(
        split="train",
        kind="faces",
        source="benchmark",
        licence="CC0",
        rendered=True,
        label_space=LabelSpace(),
        alignment={},
        alignment_hash=fingerprint({}),
        num_samples=count,
        num_items=count,
        num_quarantined=0,
        shards=tuple(entries),
    )


if __name__ == "__main__":
    run_alone(__spec__.name, rows)
