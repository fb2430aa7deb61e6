"""WebDataset tars from anywhere (those of img2dataset, say) as raw pictures, to be aligned into shards.

Tars whose faces are aligned already need no source: `shards index` takes them as they are.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from shards.labels import DataError, FaceLabels
from shards.records import SPLITS, Item, LabelSpace, SourceInfo
from shards.sources.pictures import SUFFIXES
from shards.sources.raw import Listed, RawFace, Reader
from shards.sources.splits import check_fraction, check_keys, key_of, keyed_split, split_named
from shards.tars import TarMember, walk_samples

_MAX_IMAGE = 256_000_000  # bytes
_MAX_JSON = 1_000_000
_MAX_TEXT = 10_000
_IMAGES = tuple(suffix[1:] for suffix in SUFFIXES)
_DROPPED = ("exif", "key", "status", "error_message")  # img2dataset's book-keeping, and where people were
_PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_PLACES = struct.Struct(
    "<6Q"
)  # of image, json and txt: offset and size in bytes; offset 0 where there is none


class TarSample(NamedTuple):
    """Where one sample's members lie. Small, for a source lists millions.

    Attributes:
        tar: path of the tar, one text for all of its samples.
        name: as webdataset has it: the member's name up to the first dot of its last part.
        places: see `_PLACES`.
    """

    tar: str
    name: str
    places: bytes

    @property
    def image(self) -> tuple[int, int]:
        """Offset and size of its image."""
        return _PLACES.unpack(self.places)[:2]

    @property
    def json(self) -> tuple[int, int]:
        """Offset and size of KEY.json; offset 0 if there is none."""
        return _PLACES.unpack(self.places)[2:4]

    @property
    def text(self) -> tuple[int, int]:
        """Offset and size of KEY.txt; offset 0 if there is none."""
        return _PLACES.unpack(self.places)[4:]


def _sample_of(tar: str, name: str, members: Sequence[TarMember]) -> TarSample | None:
    """The sample with these members, None without an image; jpg goes before png and the others."""
    places = {member.extension: (member.offset, member.size) for member in members}
    image = next((places[extension] for extension in _IMAGES if extension in places), None)
    if image is None:
        return None
    absent = (0, 0)
    return TarSample(tar, name, _PLACES.pack(*image, *places.get("json", absent), *places.get("txt", absent)))


class TarFaces(Listed):
    """Pictures in plain WebDataset tars: an image and perhaps KEY.json (labels) and KEY.txt (caption).

    Of a JSON object the known fields become labels, the rest `extra` (without EXIF); KEY.txt becomes
    `extra.caption`. Splits: the folders train, val, test below `path`, else a share by a hash of who it is
    (the JSON's `identity`, else its `group`), or of the key where that is not said.
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
        tar_name = str(tar)
        for name, members in walk_samples(tar):
            sample = _sample_of(tar_name, name, members)
            if sample is None:
                without += 1
                continue
            key = key_of(f"{tar.stem}_{name}" if prefix_keys else name)
            who = _who(sample) if val_fraction and not folder_split else ""
            split = folder_split or keyed_split(who or key, val_fraction)
            items[split].append(Item(key, sample))
    if not any(items.values()):
        raise DataError(f"{path}: {len(tars)} tars without an image (KEY.jpg, KEY.png, …); check SRC")
    for split, listed in items.items():
        try:
            check_keys(listed, (f"{item.ref.tar}:{item.ref.name}" for item in listed), f"{path} ({split})")
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


def _who(sample: TarSample) -> str:
    """Who it is, or its group; empty where that is not said, or its labels cannot be read."""
    try:
        labels = FaceLabels.from_json(read_json(sample))
    except DataError:
        return ""
    return labels.identity or labels.group or ""


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
    """Its image's bytes.

    Raises:
        DataError: too large, or the tar has become shorter.
    """
    return read_member(sample.tar, sample.image, _MAX_IMAGE)


def read_json(sample: TarSample) -> dict[str, Any]:
    """Its JSON object; empty if it has none.

    Raises:
        DataError: too large, no JSON, or another thing than an object.
    """
    if not sample.json[0]:
        return {}
    try:
        content = json.loads(read_member(sample.tar, sample.json, _MAX_JSON))
    except (ValueError, RecursionError):
        raise DataError("cannot read labels: not valid JSON") from None
    if not isinstance(content, dict):
        raise DataError(f"cannot read labels: JSON {type(content).__name__} instead of object")
    return {name: value for name, value in content.items() if name not in _DROPPED and value is not None}


def _labels(sample: TarSample) -> FaceLabels:
    labels = FaceLabels.from_json(read_json(sample), "cannot read labels")
    if sample.text[0] and "caption" not in labels.extra:
        text = read_member(sample.tar, sample.text, _MAX_TEXT).decode(errors="replace").strip()
        labels = replace(labels, extra={**labels.extra, "caption": text})
    return labels
