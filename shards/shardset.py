"""An opened shard set: sample number -> bytes, by position, every byte checked (see `shards.reading`)."""

from __future__ import annotations

import bisect
import copy
import functools
import hashlib
import logging
from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shards.index import Index, parse_index
from shards.labels import DataError
from shards.manifest import NAME, Manifest, load_manifest
from shards.reading import MemberError, TarBytes, places_of
from shards.records import LabelSpace, fingerprint
from shards.template import relative_geometry

_LOG = logging.getLogger(__name__)
_MAX_OPEN = 64
_MAX_BYTES = 256_000_000  # of one member, which is read at once
_INDEX_REMEDY = "restore it, or make it anew from its tar with `faceprior shards index {folder}`"


@dataclass(frozen=True)
class RawSample:
    """The undecoded members of one sample, by extension; `where` names tar and key for messages."""

    key: str
    members: dict[str, bytes]
    where: str


@dataclass(frozen=True)
class LeftOut:
    """A damaged sample, or shard, that is not to be used; see `shards.damage`.

    Attributes:
        folder: number of the split folder among those of the set.
        tar: its name.
        key: of the sample; "" = the whole shard.
        count: samples.
        reason: what is wrong with it.
    """

    folder: int
    tar: str
    key: str
    count: int
    reason: str


class ShardSet:
    """Samples of one or several split folders, numbered through: 0 … len−1.

    Picklable; each process opens its own handles.
    """

    def __init__(
        self, folders: Sequence[Path], left_out: Sequence[LeftOut] = (), check_sizes: bool = True
    ) -> None:
        """Reads manifests and indexes.

        Args:
            folders: split folders, each with a manifest.
            left_out: what is not to be used, as if it were not there: such samples have no number.
            check_sizes: of the tars; not of those of which something is left out.

        Raises:
            DataError: a folder without manifest, an index that is damaged or of another tar, a tar that is
                missing or of another size, a key twice in a folder, sets that cannot be joined.
        """
        if not folders:
            raise DataError("no shards given: set SHARDS=folder (or SHARDS=a,b to join sets)")
        self.folders = [Path(folder) for folder in folders]
        self.manifests: list[Manifest] = [load_manifest(folder) for folder in self.folders]
        self.label_space = _joined_space(self.manifests, self.folders)
        _check_geometry(self.manifests, self.folders)
        self.left_out = tuple(left_out)
        self._chosen = ""  # fingerprint of the samples chosen by `only`
        self._tars: list[Path] = []
        self._indexes: list[Index] = []
        self._rows: list[NDArray[np.int64]] = []
        self._folder_numbers: list[int] = []
        for number, (folder, manifest) in enumerate(zip(self.folders, self.manifests, strict=True)):
            keys = _KeyCheck(folder)
            for entry in manifest.shards:
                unused = {part.key for part in left_out if (part.folder, part.tar) == (number, entry.tar)}
                if "" in unused:
                    continue
                if check_sizes and not unused:
                    _check_size(folder / entry.tar, entry.tar_size)
                index = _open_index(folder / entry.index, entry.index_sha256, entry.tar)
                keys.add(index)
                self._indexes.append(index)
                self._tars.append(folder / entry.tar)
                rows = np.arange(len(index))
                self._rows.append(
                    rows[[index.key(row) not in unused for row in range(len(index))]] if unused else rows
                )
                self._folder_numbers.append(number)
            keys.check()
        self.shard_sizes: NDArray[np.int64] = np.array([len(rows) for rows in self._rows], np.int64)
        self._starts: list[int] = [0, *np.cumsum(self.shard_sizes).tolist()]
        self._opened: OrderedDict[int, TarBytes] = OrderedDict()
        if not len(self):
            raise DataError(f"{', '.join(map(str, folders))}: holds no sample")

    def __len__(self) -> int:
        return self._starts[-1]

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_opened": OrderedDict()}

    @property
    def hash(self) -> str:
        """Names this very data: the fingerprint of the manifests, in order, and what of them is not used."""
        unused = [[part.folder, part.tar, part.key] for part in self.left_out]
        rest = [*([unused] if unused else []), *([self._chosen] if self._chosen else [])]
        return fingerprint([*(manifest.hash for manifest in self.manifests), *rest])

    @property
    def rendered(self) -> bool:
        """True if any of the faces were rendered."""
        return any(manifest.rendered for manifest in self.manifests)

    @functools.cached_property
    def expr(self) -> NDArray[np.int16]:
        """(N,) expression class of every sample from the index, −1 where missing."""
        return np.concatenate(
            [index.samples["expr"][rows] for index, rows in zip(self._indexes, self._rows, strict=True)]
        )

    def only(self, samples: Sequence[int]) -> ShardSet:
        """These samples alone, numbered anew in the order in which they are stored.

        Args:
            samples: their numbers here, of one at least.
        """
        wanted = np.zeros(len(self), bool)
        wanted[np.asarray(samples, np.int64)] = True
        spans = zip(self._rows, self._starts, self._starts[1:])
        kept = [rows[wanted[start:end]] for rows, start, end in spans]
        used = [number for number, rows in enumerate(kept) if len(rows)]
        part = copy.copy(self)
        part.__dict__.pop("expr", None)
        part._tars = [self._tars[number] for number in used]
        part._indexes = [self._indexes[number] for number in used]
        part._rows = [kept[number] for number in used]
        part._folder_numbers = [self._folder_numbers[number] for number in used]
        part.shard_sizes = np.array([len(rows) for rows in part._rows], np.int64)
        part._starts = [0, *np.cumsum(part.shard_sizes).tolist()]
        part._opened = OrderedDict()
        part._chosen = fingerprint([self._chosen, np.flatnonzero(wanted).tolist()])
        return part

    def place(self, sample: int) -> tuple[int, str]:
        """Number of a sample's folder, and the name of its tar."""
        shard, _ = self._locate(sample)
        return self._folder_numbers[shard], self._tars[shard].name

    def key(self, sample: int) -> str:
        """The key of a sample."""
        shard, row = self._locate(sample)
        return self._indexes[shard].key(row)

    def read(self, sample: int, only: Collection[str] | None = None) -> RawSample:
        """Members of one sample, each checked against its crc32; nothing else is read.

        Args:
            sample: its number.
            only: extensions of the members wanted, of which the sample may lack some; None = all it has.

        Raises:
            DataError: the tar is gone, cut short or changed since it was indexed.
        """
        shard, row = self._locate(sample)
        index = self._indexes[shard]
        first, count = int(index.samples[row]["first_member"]), int(index.samples[row]["num_members"])
        rows = index.members[first : first + count]
        if only is not None:
            wanted = [index.numbers[extension] for extension in only if extension in index.numbers]
            rows = rows[np.isin(rows["extension"], wanted)]
        places = places_of(index.extensions, rows.tolist())
        key = index.key(row)
        where = f"{self._tars[shard]}: sample {key}"
        if any(place.size > _MAX_BYTES for place in places):
            raise DataError(f"{where}: a member larger than {_MAX_BYTES // 10**6} MB; pack it without")
        try:
            return RawSample(key, self._open(shard).read_members(places), where)
        except MemberError as damage:
            what = "is cut off" if damage.cut_off else "is damaged (its checksum does not match)"
            raise DataError(
                f"{where}: {damage} {what}; run `faceprior doctor`, then restore or rebuild the tar"
            ) from damage
        except OSError as error:
            raise DataError(
                f"{where}: cannot be read ({error.strerror}); restore the tar or rebuild it"
            ) from error

    def _locate(self, sample: int) -> tuple[int, int]:
        if not 0 <= sample < len(self):
            raise IndexError(f"sample {sample} of {len(self)}")
        shard = bisect.bisect_right(self._starts, sample) - 1
        return shard, int(self._rows[shard][sample - self._starts[shard]])

    def _open(self, shard: int) -> TarBytes:
        """One tar, to be read; at most `_MAX_OPEN` are open at once."""
        opened = self._opened.pop(shard, None) or TarBytes(self._tars[shard])
        if len(self._opened) >= _MAX_OPEN:
            self._opened.popitem(last=False)[1].close()
        self._opened[shard] = opened
        return opened


class _KeyCheck:
    """Whether any key of a folder occurs twice: eight bytes a sample, until it is known."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._indexes: list[Index] = []
        self._hashes: list[NDArray[np.int64]] = []

    def add(self, index: Index) -> None:
        self._indexes.append(index)
        self._hashes.append(np.fromiter(map(hash, index.keys()), np.int64, len(index)))

    def check(self) -> None:
        """
        Raises:
            DataError: a key occurs twice.
        """
        hashes = np.sort(np.concatenate([np.zeros(0, np.int64), *self._hashes]))
        suspects = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
        seen: dict[str, str] = {}
        for index, hashed in zip(self._indexes, self._hashes, strict=True):
            for i in np.flatnonzero(np.isin(hashed, list(suspects))).tolist() if suspects else []:
                key = index.key(i)
                if key in seen:
                    raise DataError(
                        f"{self._folder / index.tar_name}: sample {key!r:.120} is in {seen[key]} too: keys "
                        "must be unique in a split; run `faceprior doctor`, then build the set again"
                    )
                seen[key] = index.tar_name


def whole_shards(folders: Sequence[Path]) -> list[LeftOut]:
    """The shards of split folders of which it is not known what is in them: index or tar cannot be used.

    Raises:
        DataError: a manifest cannot be read.
    """
    found = []
    for number, folder in enumerate(folders):
        for entry in load_manifest(folder).shards:
            try:
                _open_index(folder / entry.index, entry.index_sha256, entry.tar)
                if not (folder / entry.tar).is_file():
                    raise DataError(f"{folder / entry.tar}: missing, though the manifest lists it")
            except DataError as error:
                found.append(LeftOut(number, entry.tar, "", entry.num_samples, str(error)))
    return found


def open_shards(shards: str | Sequence[str | Path], split: str) -> ShardSet:
    """Opens one split of one or several sets: `open_shards("a,b", "train")`.

    Args:
        shards: folders (comma-separated text, or a list); each holds split folders, or is one itself.
        split: "train", "val" or "test".

    Raises:
        DataError: no such folder, no such split in it, or a damaged set.
    """
    return ShardSet(split_folders(shards, split))


def split_folders(shards: str | Sequence[str | Path], split: str) -> list[Path]:
    """The folders of one split of one or several sets; see `open_shards`.

    Raises:
        DataError: no such folder, or no such split in it.
    """
    folders = []
    for set_folder in set_folders(shards):
        folder = find_split(set_folder, split)
        if folder is None:
            raise DataError(
                f"{set_folder}: no finished shards for {split!r} there (looked for {split}/{NAME}); "
                "build them with `make shards SOURCE=… SRC=… OUT=…`"
            )
        folders.append(folder)
    return folders


def set_folders(shards: str | Sequence[str | Path]) -> list[Path]:
    """The folders that SHARDS names: "a, b" -> [a, b]; empty names are passed over."""
    names = shards.split(",") if isinstance(shards, str) else shards
    return [Path(text) for name in names if (text := str(name).strip())]


def find_split(folder: Path, split: str) -> Path | None:
    """The folder of one split of a set, or None.

    Raises:
        DataError: a manifest that is damaged, or of another split than the folder it lies in.
    """
    inner = folder / split
    if (inner / NAME).is_file():
        stated = load_manifest(inner).split
        if stated != split:
            raise DataError(
                f"{inner}: its manifest says that it is split {stated!r}: put each split into the folder of "
                f"its name (tars from elsewhere: `faceprior shards index {inner} --split {split}`)"
            )
        return inner
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


def _check_geometry(manifests: Sequence[Manifest], folders: Sequence[Path]) -> None:
    """Faces of joined sets must lie in the same place of their images, as far as the recipes say where.

    Raises:
        DataError: two sets whose faces are known to lie differently.
    """
    found = [(relative_geometry(manifest.alignment), folder) for manifest, folder in zip(manifests, folders)]
    known = [(geometry, folder) for geometry, folder in found if geometry is not None]
    for geometry, folder in known[1:]:
        if geometry != known[0][0]:
            raise DataError(
                f"{known[0][1]} and {folder}: their faces lie in different places of their images "
                f"({known[0][0]}; {geometry}): build one of them again with the other's align.margin"
            )
    unknown = [str(folder) for geometry, folder in found if geometry is None]
    if unknown and len(found) > 1:
        _LOG.warning(
            "%s: not said where in their images the faces lie; joined with the others all the same",
            ", ".join(unknown),
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
    remedy = _INDEX_REMEDY.format(folder=path.parent)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: missing; {remedy}") from None
    if hashlib.sha256(data).hexdigest() != sha256:
        raise DataError(f"{path}: not the index the manifest lists (checksum); {remedy}")
    index = parse_index(data, str(path))
    if index.tar_name != tar_name:
        raise DataError(f"{path}: index of {index.tar_name}, not of {tar_name}; {remedy}")
    return index
