"""WebDataset tars from anywhere (those of img2dataset, say) as raw pictures, to be aligned into shards.

Tars whose faces are aligned already need no source: `shards index` takes them as they are.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from shards.labels import DataError, FaceLabels
from shards.records import Item, LabelSpace, SourceInfo
from shards.sources.pictures import SUFFIXES
from shards.sources.raw import Listed, RawFace, Reader
from shards.sources.splits import SPLITS, check_fraction, check_keys, key_of, keyed_split, split_named
from shards.tars import member_key

_MAX_IMAGE = 256_000_000  # bytes
_MAX_JSON = 1_000_000
_MAX_TEXT = 10_000
_IMAGES = tuple(suffix[1:] for suffix in SUFFIXES)
_DROPPED = ("exif", "key", "status", "error_message")  # img2dataset's book-keeping, and where people were
_PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"(\xb5/\xfd": "zstd"}


@dataclass(frozen=True)
class TarSample:
    """Where one sample's members lie.

    Attributes:
        tar: path of the tar.
        key: as webdataset has it: the member's name up to the first dot of its last part.
        members: extension -> (offset, size) in bytes.
    """

    tar: str
    key: str
    members: Mapping[str, tuple[int, int]]

    def image(self) -> tuple[int, int] | None:
        """Offset and size of its image: jpg before png and the others."""
        return next((self.members[name] for name in _IMAGES if name in self.members), None)


class TarFaces(Listed):
    """Pictures in plain WebDataset tars: an image and perhaps KEY.json (labels) and KEY.txt (caption).

    Of a JSON object the known fields become labels, the rest `extra` (without EXIF); KEY.txt becomes
    `extra.caption`. Splits: the folders train, val, test below `path`, else a share by a hash of the key.
    """

    has_landmarks = False

    def __init__(
        self,
        path: Path,
        val_fraction: float = 0.1,
        prefix_keys: bool = False,
        classes: Sequence[str] = LabelSpace().expr,
        name: str = "",
        licence: str = "not stated",
    ) -> None:
        """
        Args:
            path: one tar, or a folder of tars.
            val_fraction: share of the val split where there are no split folders, in [0, 1).
            prefix_keys: put the tar's name before each key, for tars that count their keys from 0 each.
            classes: the expression classes that may occur.
            name, licence: of the data set.

        Raises:
            DataError: nothing at `path`.
        """
        check_fraction(val_fraction)
        if not path.exists():
            raise DataError(f"{path}: no such tar or folder; check SRC")
        self.path, self.val_fraction, self.prefix_keys = path, val_fraction, prefix_keys
        self.classes = tuple(classes)
        self.name, self.licence = name or path.stem, licence

    @property
    def info(self) -> SourceInfo:
        settings = {
            "source": "tars",
            "val_fraction": self.val_fraction,
            "prefix_keys": self.prefix_keys,
            **self._listing[1],
        }
        return SourceInfo(
            self.name, self.licence, label_space=LabelSpace(expr=self.classes), settings=settings
        )

    def splits(self) -> Sequence[str]:
        return [split for split in SPLITS if self._listing[0].get(split)]

    def items(self, split: str) -> Sequence[Item]:
        return self._listing[0].get(split, [])

    def open_reader(self) -> Reader:
        def read(item: Item) -> RawFace:
            sample: TarSample = item.ref
            return RawFace(read_image(sample), _labels(sample))

        return read

    @cached_property
    def _listing(self) -> tuple[dict[str, list[Item]], dict[str, int]]:
        return list_samples(self.path, self.val_fraction, self.prefix_keys)


def list_samples(
    path: Path, val_fraction: float, prefix_keys: bool
) -> tuple[dict[str, list[Item]], dict[str, int]]:
    """Items by split (`ref` a TarSample), and how many samples had no image.

    Raises:
        DataError: no tars, no images, a tar that cannot be trusted, or a key twice in a split.
    """
    tars = find_tars(path)
    items: dict[str, list[Item]] = {split: [] for split in SPLITS}
    without = 0
    for tar, folder_split in tars:
        for sample in scan_samples(tar):
            if sample.image() is None:
                without += 1
                continue
            key = key_of(f"{tar.stem}_{sample.key}" if prefix_keys else sample.key)
            items[folder_split or keyed_split(key, val_fraction)].append(Item(key, sample))
    if not any(items.values()):
        raise DataError(f"{path}: {len(tars)} tars without an image (KEY.jpg, KEY.png, …); check SRC")
    for split, members in items.items():
        try:
            check_keys(members, (f"{m.ref.tar}:{m.ref.key}" for m in members), f"{path} ({split})")
        except DataError as error:
            raise DataError(f"{error}, or give prefix_keys=true") from None
    return items, {"samples_without_image": without}


def find_tars(path: Path) -> list[tuple[Path, str | None]]:
    """The tars at or below `path`, sorted, each with the split that its folder means.

    Raises:
        DataError: none, compressed ones, or some in split folders and some not.
    """
    if path.is_file():
        return [(path, None)]
    files = sorted(file for file in path.rglob("*") if file.is_file())
    packed = [file for file in files if file.name.endswith(_PACKED)]
    if packed:
        raise DataError(f"{min(packed)}: compressed tar: unpack it to a plain .tar (gunzip, unxz, unzstd)")
    found = []
    for file in files:
        if file.suffix == ".tar":
            parts = file.relative_to(path).parts
            found.append((file, split_named(parts[0]) if len(parts) > 1 else None))
    if not found:
        raise DataError(f"{path}: no .tar in it; check SRC")
    if len({split is None for _, split in found}) > 1:
        stray = next(file for file, split in found if split is None)
        raise DataError(f"{path}: has split folders, but {stray} lies in none of train, val, test; move it")
    return found


def scan_samples(path: Path) -> Iterator[TarSample]:
    """The samples of a tar, from its headers alone; no member's name becomes a path.

    Raises:
        DataError: compressed, cut short, damaged, a member that is no plain file, a name that leaves the
            folder, or the members of a sample apart.
    """
    seen: set[str] = set()
    current, members = "", dict[str, tuple[int, int]]()
    for name, offset, size in _members(path):
        parts = member_key(name)
        if parts is None:
            continue
        if parts[0] != current:
            if members:
                yield TarSample(str(path), current, members)
            current, members = parts[0], {}
            if current in seen:
                raise DataError(f"{path}: the members of {current!r:.80} are apart, or its key occurs twice")
            seen.add(current)
        members[parts[1]] = (offset, size)
    if members:
        yield TarSample(str(path), current, members)


def _members(path: Path) -> Iterator[tuple[str, int, int]]:
    """(name, offset, size) of each plain file in a tar."""
    total = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(6)
        for magic, packer in _MAGIC.items():
            if head.startswith(magic):
                raise DataError(f"{path}: compressed with {packer}: unpack it to a plain .tar")
        file.seek(0)
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                while (info := tar.next()) is not None:
                    _check_member(path, info, total)
                    if info.isreg():
                        yield info.name, info.offset_data, info.size
                    tar.members = []  # type: ignore[attr-defined]  # it would keep every header
                end = tar.offset
        except (tarfile.TarError, ValueError, OverflowError, EOFError) as error:
            raise DataError(f"{path}: not a readable tar ({error}); fetch or make it again") from None
        file.seek(min(end, total))
        rest = file.read(tarfile.BLOCKSIZE)
        # tarfile stops without a word at a header it cannot read, and at the end of a file cut short.
        if len(rest) < tarfile.BLOCKSIZE or rest.count(0) != len(rest):
            raise DataError(f"{path}: cut short or damaged near byte {end}; fetch or make it again")


def _check_member(path: Path, info: tarfile.TarInfo, total: int) -> None:
    name = f"{path}: member {info.name!r:.120}"
    if not (info.isdir() or (info.isreg() and not info.issparse())):
        raise DataError(f"{name} is a link, device or sparse file: only plain files are read; pack it again")
    if info.name.startswith("/") or ".." in info.name.split("/"):
        raise DataError(f"{name} leaves the folder; pack it again with plain names")
    if info.offset_data + info.size > total:
        raise DataError(f"{name} is cut short; fetch or make the tar again")


def read_member(tar: str, place: tuple[int, int], limit: int) -> bytes:
    """Bytes at (offset, size).

    Raises:
        DataError: more than `limit` bytes, or the tar has become shorter.
    """
    offset, size = place
    if size > limit:
        raise DataError(f"cannot read: member of {size} bytes, at most {limit}")
    with Path(tar).open("rb") as file:
        file.seek(offset)
        data = file.read(size)
    if len(data) != size:
        raise DataError("cannot read: the tar is cut short")
    return data


def read_image(sample: TarSample) -> bytes:
    """Its image's bytes."""
    place = sample.image()
    if place is None:
        raise DataError("no image in the sample")
    return read_member(sample.tar, place, _MAX_IMAGE)


def read_json(sample: TarSample) -> dict[str, Any]:
    """Its JSON object; empty if it has none.

    Raises:
        DataError: too large, no JSON, or another thing than an object.
    """
    place = sample.members.get("json")
    if place is None:
        return {}
    try:
        content = json.loads(read_member(sample.tar, place, _MAX_JSON))
    except (ValueError, RecursionError):
        raise DataError("cannot read labels: not valid JSON") from None
    if not isinstance(content, dict):
        raise DataError(f"cannot read labels: JSON {type(content).__name__} instead of object")
    return {name: value for name, value in content.items() if name not in _DROPPED and value is not None}


def _labels(sample: TarSample) -> FaceLabels:
    labels = FaceLabels.from_json(read_json(sample), "cannot read labels")
    place = sample.members.get("txt")
    if place is not None and "caption" not in labels.extra:
        text = read_member(sample.tar, place, _MAX_TEXT).decode(errors="replace").strip()
        labels = replace(labels, extra={**labels.extra, "caption": text})
    return labels
