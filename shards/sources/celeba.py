"""CelebA in its official layout and the common copy with csv files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from shards.files import sha256_file
from shards.labels import DataError, FaceLabels
from shards.records import SPLITS, Item, LabelSpace, SourceInfo, safe_key
from shards.sources.pictures import FolderPictures, Pictures, is_picture, open_pictures
from shards.sources.raw import Listed, RawFace, Reader
from shards.sources.tables import read_csv, read_text_columns, text_of

NUM_IMAGES = 202_599

_LISTS = ("list_eval_partition", "identity_CelebA", "list_attr_celeba", "list_landmarks_align_celeba")
_FOLDERS = ("", "Anno", "Eval", "Img")  # the official download has the first level, or these
_IMAGES = ("img_align_celeba/img_align_celeba", "img_align_celeba", "Img/img_align_celeba")
_ZIPS = ("img_align_celeba.zip", "Img/img_align_celeba.zip")
_LAYOUT = (
    "expected img_align_celeba/ or img_align_celeba.zip with list_eval_partition.txt (or .csv) beside it"
)


@dataclass(frozen=True)
class _Table:
    """One of the lists: its columns, and for each image where it stands and its cells."""

    columns: tuple[str, ...]
    rows: Mapping[str, tuple[str, tuple[int, ...]]]


@dataclass(frozen=True)
class _Listing:
    items: Mapping[str, list[Item]]
    attributes: tuple[str, ...]
    settings: Mapping[str, Any]


class CelebA(Listed):
    """202,599 faces (178×218) of 10,177 people with 40 attributes and five landmarks; official splits.

    Attributes become `extra.attributes` {name: 0 or 1}; the number of the person becomes `identity`.
    """

    def __init__(self, path: Path, allow_partial: bool = False) -> None:
        """
        Args:
            path: the folder that holds the lists, or img_align_celeba.zip with the lists beside it.
            allow_partial: accept other than 202,599 images, and lists that name images that are not there.

        Raises:
            DataError: no images or no list of splits where they should be.
        """
        if not path.exists():
            raise DataError(f"{path}: no such folder or zip; check SRC")
        self.path, self.allow_partial = path, allow_partial
        self.root = path.parent if path.is_file() else path
        self.pictures = self._open_pictures()
        self.has_landmarks = self._find("list_landmarks_align_celeba") is not None

    @property
    def info(self) -> SourceInfo:
        return SourceInfo(
            "CelebA",
            "CelebA agreement: non-commercial research only, no redistribution",
            label_space=LabelSpace(expr=(), au=(), va=False),
            settings=self._listing.settings,
        )

    def splits(self) -> Sequence[str]:
        return [split for split in SPLITS if self._listing.items[split]]

    def items(self, split: str) -> Sequence[Item]:
        return self._listing.items.get(split, [])

    def open_reader(self) -> Reader:
        pictures = self.pictures

        def read(item: Item) -> RawFace:
            name, identity, names, bits, points = item.ref
            extra = {"attributes": {n: int(b) for n, b in zip(names, bits)}} if bits else {}
            landmarks = np.array(points, np.float64).reshape(5, 2) if points else None
            return RawFace(pictures.read(name), FaceLabels(identity=identity, extra=extra), landmarks)

        return read

    def _open_pictures(self) -> Pictures:
        if self.path.is_file():
            return open_pictures(self.path)
        for folder in _IMAGES:
            # The nested copy has no images in the outer folder.
            if (self.path / folder).is_dir():
                return FolderPictures(self.path / folder)
        for name in _ZIPS:
            if (self.path / name).is_file():
                return open_pictures(self.path / name)
        raise DataError(f"{self.path}: no CelebA images; {_LAYOUT}")

    def _find(self, stem: str) -> Path | None:
        """The list `stem`, as txt or csv."""
        for folder in _FOLDERS:
            for suffix in (".txt", ".csv"):
                path = self.root / folder / (stem + suffix)
                if path.is_file():
                    return path
        return None

    @cached_property
    def _listing(self) -> _Listing:
        partition_path = self._find("list_eval_partition")
        if partition_path is None:
            raise DataError(f"{self.root}: no list_eval_partition.txt or .csv; {_LAYOUT}")
        partition = _read_list(partition_path, ("partition",), counted=False)
        names = {PurePosixPath(name).name: name for name in self.pictures.names() if is_picture(name)}
        self._check_total(names, partition, partition_path.name)
        tables = {
            "identity": self._table("identity_CelebA", ("identity",), False, names),
            "attributes": self._table("list_attr_celeba", None, True, names),
            "landmarks": self._table("list_landmarks_align_celeba", None, True, names),
        }
        attributes = tables["attributes"]
        items: dict[str, list[Item]] = {split: [] for split in SPLITS}
        for image, (where, cells) in partition.rows.items():
            if cells[0] not in (0, 1, 2):
                raise DataError(f"{where}: partition must be 0 (train), 1 (val) or 2 (test), got {cells[0]}")
            if image not in names:
                continue
            values = {kind: _cells(table, image) for kind, table in tables.items()}
            ref = (
                names[image],
                str(values["identity"][0]) if values["identity"] else None,
                attributes.columns if attributes else (),
                _bits(values["attributes"], attributes, image),
                values["landmarks"],
            )
            items[SPLITS[cells[0]]].append(Item(safe_key(PurePosixPath(image).stem), ref))
        if not any(items.values()):
            raise DataError(f"{partition_path}: names none of the images in {self.pictures.path}")
        points = tables["landmarks"]
        if points and len(points.columns) != 10:
            raise DataError(
                f"{self.root}: the landmarks list has {len(points.columns)} columns instead of 10"
            )
        lists = [self._find(stem) for stem in _LISTS]
        settings = {
            "source": "celeba",
            "images": len(names),
            "lists": {path.name: sha256_file(path) for path in lists if path is not None},
        }
        return _Listing(items, attributes.columns if attributes else (), settings)

    def _check_total(self, names: Mapping[str, str], partition: _Table, list_name: str) -> None:
        absent = [name for name in partition.rows if name not in names]
        extra = [name for name in names if name not in partition.rows]
        if self.allow_partial or (len(names) == NUM_IMAGES and not absent and not extra):
            return
        example = f" (as {(absent or extra)[0]})" if absent or extra else ""
        raise DataError(
            f"{self.pictures.path}: {len(names)} images instead of {NUM_IMAGES}; {len(absent)} named in "
            f"{list_name} are not there, {len(extra)} are not named{example}. Fetch it again, or use what is "
            "there with allow_partial=true"
        )

    def _table(
        self, stem: str, columns: tuple[str, ...] | None, counted: bool, names: Mapping[str, str]
    ) -> _Table | None:
        """One of the lists that may be absent; if there, it must speak of every image."""
        path = self._find(stem)
        if path is None:
            return None
        table = _read_list(path, columns, counted)
        absent = [name for name in names if name not in table.rows]
        if absent and not self.allow_partial:
            raise DataError(
                f"{path}: no row for {len(absent)} images (as {absent[0]}); fetch it again, or use what is "
                "there with allow_partial=true"
            )
        return table


def _cells(table: _Table | None, image: str) -> tuple[int, ...]:
    return table.rows[image][1] if table and image in table.rows else ()


def _bits(cells: tuple[int, ...], table: _Table | None, image: str) -> str:
    """Attributes as text of 0 and 1: a fortieth of a dictionary's memory."""
    if table and not set(cells) <= {-1, 0, 1}:
        where = table.rows[image][0]
        wrong = next(cell for cell in cells if cell not in (-1, 0, 1))
        raise DataError(f"{where}: attributes must be 1 or -1, got {wrong}")
    return "".join("1" if cell == 1 else "0" for cell in cells)


def _read_list(path: Path, columns: tuple[str, ...] | None, counted: bool) -> _Table:
    """One of CelebA's lists.

    Args:
        path: txt (blanks between cells; with `counted` a line with the count, then the header) or csv.
        columns: of a txt without a header.

    Raises:
        DataError: a bad line, an image twice, or another count than stated.
    """
    data = path.read_bytes()
    if path.suffix == ".csv":
        lines: Iterator[tuple[str, list[str]]] = (
            (row.where, list(row.cells.values())) for row in read_csv(data, path.name)
        )
        header = text_of(data, path.name).lstrip().split("\n", 1)[0].strip()
        columns, stated = tuple(cell.strip() for cell in header.split(",")[1:]), None
    elif counted:
        head, _, body = data.partition(b"\n")
        first, _, rest = body.partition(b"\n")
        number = text_of(head, path.name).strip()
        if not (number.isdecimal() and len(number) < 10):
            raise DataError(f"{path.name} line 1: expected the number of images, got {number!r:.40}")
        stated, columns = int(number), tuple(text_of(first, path.name).split())
        lines = read_text_columns(b"\n\n" + rest, path.name, len(columns) + 1)
    else:
        assert columns is not None
        stated, lines = None, read_text_columns(data, path.name, len(columns) + 1)
    rows: dict[str, tuple[str, tuple[int, ...]]] = {}
    for where, cells in lines:
        image, values = cells[0], cells[1:]
        if image in rows:
            raise DataError(f"{where}: {image!r:.40} occurs twice (first: {rows[image][0]}); fetch it again")
        if len(values) != len(columns):
            raise DataError(f"{where}: {len(values)} values instead of {len(columns)}")
        try:
            rows[image] = (where, tuple(int(value) for value in values))
        except ValueError:
            raise DataError(f"{where}: expected whole numbers, got {' '.join(values)!r:.60}") from None
    if stated is not None and stated != len(rows):
        raise DataError(f"{path.name}: states {stated} images, but has {len(rows)} rows; fetch it again")
    return _Table(columns, rows)
