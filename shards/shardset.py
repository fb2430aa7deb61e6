"""An opened shard set: sample number -> bytes, by position, every byte checked.

The one function that opens a shard is `ShardSet._handle`.
"""

from __future__ import annotations

import bisect
import functools
import hashlib
import os
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shards.index import Index, parse_index
from shards.labels import DataError
from shards.manifest import NAME, Manifest, load_manifest
from shards.records import LabelSpace, fingerprint

_MAX_OPEN = 64


@dataclass(frozen=True)
class RawSample:
    """The undecoded members of one sample, by extension; `where` names tar and key for messages."""

    key: str
    members: dict[str, bytes]
    where: str


class ShardSet:
    """Samples of one or several split folders, numbered through: 0 … len−1.

    Picklable; each process opens its own handles.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        """Reads manifests and indexes.

        Args:
            folders: split folders, each with a manifest.

        Raises:
            DataError: a folder without manifest, an index that is damaged or of another tar, a tar that is
                missing or of another size, sets that cannot be joined.
        """
        if not folders:
            raise DataError("no shards given: set SHARDS=folder (or SHARDS=a,b to join sets)")
        self.folders = [Path(folder) for folder in folders]
        self.manifests: list[Manifest] = [load_manifest(folder) for folder in self.folders]
        self.label_space = _joined_space(self.manifests, self.folders)
        self._tars: list[Path] = []
        self._indexes: list[Index] = []
        for folder, manifest in zip(self.folders, self.manifests, strict=True):
            for entry in manifest.shards:
                tar = folder / entry.tar
                _check_size(tar, entry.tar_size)
                self._indexes.append(_open_index(folder / entry.index, entry.index_sha256, tar.name))
                self._tars.append(tar)
        self.shard_sizes: NDArray[np.int64] = np.array([len(index) for index in self._indexes], np.int64)
        self._starts: list[int] = [0, *np.cumsum(self.shard_sizes).tolist()]
        self._handles: OrderedDict[int, int] = OrderedDict()
        if not len(self):
            raise DataError(f"{', '.join(map(str, folders))}: holds no sample")

    def __len__(self) -> int:
        return self._starts[-1]

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_handles": OrderedDict()}

    @property
    def hash(self) -> str:
        """Names this very data: the fingerprint of the manifests, in order."""
        return fingerprint([manifest.hash for manifest in self.manifests])

    @property
    def rendered(self) -> bool:
        """True if any of the faces were rendered."""
        return any(manifest.rendered for manifest in self.manifests)

    @functools.cached_property
    def expr(self) -> NDArray[np.int16]:
        """(N,) expression class of every sample from the index, −1 where missing."""
        return np.concatenate([index.samples["expr"] for index in self._indexes])

    def key(self, sample: int) -> str:
        """The key of a sample."""
        shard, row = self._locate(sample)
        return self._indexes[shard].key(row)

    def tar_of(self, sample: int) -> Path:
        """The tar a sample lies in."""
        return self._tars[self._locate(sample)[0]]

    def read(self, sample: int) -> RawSample:
        """All members of one sample in one read, each checked against its crc32.

        Raises:
            DataError: the tar is gone, cut short or changed since it was indexed.
        """
        shard, row = self._locate(sample)
        index = self._indexes[shard]
        first, count = int(index.samples[row]["first_member"]), int(index.samples[row]["num_members"])
        rows = index.members[first : first + count].tolist()
        key = index.key(row)
        where = f"{self._tars[shard]}: sample {key}"
        start = min(row[0] for row in rows)
        data = memoryview(self._pread(shard, start, max(row[0] + row[1] for row in rows) - start, where))
        members = {}
        for offset, size, crc, extension, _ in rows:
            member = data[offset - start : offset - start + size]
            if len(member) != size or zlib.crc32(member) != crc:
                raise DataError(
                    f"{where}: member {index.extensions[extension]} at byte {offset} is damaged "
                    "(its checksum does not match); run `faceprior doctor`, then restore or rebuild the tar"
                )
            members[index.extensions[extension]] = bytes(member)
        return RawSample(key, members, where)

    def _locate(self, sample: int) -> tuple[int, int]:
        if not 0 <= sample < len(self):
            raise IndexError(f"sample {sample} of {len(self)}")
        shard = bisect.bisect_right(self._starts, sample) - 1
        return shard, sample - self._starts[shard]

    def _handle(self, shard: int) -> int:
        """A file descriptor of one tar: at most `_MAX_OPEN` are open at once."""
        handle = self._handles.pop(shard, None)
        if handle is None:
            handle = os.open(self._tars[shard], os.O_RDONLY)
            if len(self._handles) >= _MAX_OPEN:
                os.close(self._handles.popitem(last=False)[1])
        self._handles[shard] = handle
        return handle

    def _pread(self, shard: int, offset: int, size: int, where: str) -> bytes:
        try:
            return os.pread(self._handle(shard), size, offset)
        except OSError as error:
            raise DataError(
                f"{where}: cannot be read ({error.strerror}); restore the tar or rebuild it"
            ) from error


def open_shards(shards: str | Sequence[str | Path], split: str) -> ShardSet:
    """Opens one split of one or several sets: `open_shards("a,b", "train")`.

    Args:
        shards: folders (comma-separated text, or a list); each holds split folders, or is one itself.
        split: "train", "val" or "test".

    Raises:
        DataError: no such folder, no such split in it, or a damaged set.
    """
    names = shards.split(",") if isinstance(shards, str) else list(shards)
    folders = [find_split(Path(name), split) for name in names if str(name).strip()]
    for name, folder in zip(names, folders):
        if folder is None:
            raise DataError(
                f"{name}: no finished shards for {split!r} there (looked for {split}/{NAME}); "
                "build them with `make shards SOURCE=… SRC=… OUT=…`"
            )
    return ShardSet([folder for folder in folders if folder is not None])


def find_split(folder: Path, split: str) -> Path | None:
    """The folder of one split of a set, or None."""
    if (folder / split / NAME).is_file():
        return folder / split
    if (folder / NAME).is_file() and load_manifest(folder).split == split:
        return folder
    return None


def _joined_space(manifests: Sequence[Manifest], folders: Sequence[Path]) -> LabelSpace:
    """The one label space of all sets that have labels.

    Raises:
        DataError: two sets order or name their classes differently, or hold different kinds of samples.
    """
    if len({manifest.kind for manifest in manifests}) > 1:
        raise DataError(f"{', '.join(map(str, folders))}: faces and clips cannot be joined")
    spaces = [manifest.label_space for manifest in manifests]
    for part in ("expr", "au"):
        if len({getattr(space, part) for space in spaces if getattr(space, part)}) > 1:
            raise DataError(
                f"{', '.join(map(str, folders))}: their {part} classes differ; train on one at a time"
            )
    return LabelSpace(
        next((space.expr for space in spaces if space.expr), ()),
        next((space.au for space in spaces if space.au), ()),
        any(space.va for space in spaces),
    )


def _check_size(tar: Path, size: int) -> None:
    try:
        actual = tar.stat().st_size
    except FileNotFoundError:
        raise DataError(
            f"{tar}: missing, though the manifest lists it; restore it or rebuild the set"
        ) from None
    if actual != size:
        raise DataError(f"{tar}: {actual} bytes, the manifest says {size}; restore it or rebuild the set")


def _open_index(path: Path, sha256: str, tar_name: str) -> Index:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: missing; restore it or build the set again") from None
    if hashlib.sha256(data).hexdigest() != sha256:
        raise DataError(
            f"{path}: not the index the manifest lists (checksum); restore it or build the set again"
        )
    index = parse_index(data, str(path))
    if index.tar_name != tar_name:
        raise DataError(
            f"{path}: index of {index.tar_name}, not of {tar_name}; restore it or build the set again"
        )
    return index
