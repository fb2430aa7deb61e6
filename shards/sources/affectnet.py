"""AffectNet in both its layouts: a folder of npy files beside the pictures, or tables of all annotations."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shards.files import sha256_file
from shards.labels import DataError, FaceLabels, ReadError
from shards.records import Item, LabelSpace, SourceInfo, fingerprint
from shards.sources.listing import (
    Ledger,
    ListedSplits,
    Listing,
    by_official_name,
    check_folder,
    check_share,
    check_total,
    find_file,
    find_pictures,
    labelled_item,
    labelled_reader,
)
from shards.sources.pictures import Pictures, is_picture
from shards.sources.raw import RawFace, Reader
from shards.sources.splits import check_keys, key_of
from shards.sources.tables import LabelCodes, Row, labels_of

CLASSES = ("neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger", "contempt")
KNOWN = {"train": 287_651, "val": 4_000}  # with one of the eight classes
TOLERANCE = 0.001

_DROPPED = {8: "none", 9: "uncertain", 10: "no face"}
_CODES = LabelCodes(CLASSES, ("-2",), official=True)
_FOLDERS = {"train": ("train_set",), "val": ("val_set",)}
_TABLES = {"train": "training.csv", "val": "validation.csv"}
_IMAGES = ("Manually_Annotated_Images", "Manually_Annotated/Manually_Annotated_Images", "Manually_Annotated")
_COLUMNS = (
    "subDirectory_filePath",
    "face_x",
    "face_y",
    "face_width",
    "face_height",
    "facial_landmarks",
    "expression",
    "valence",
    "arousal",
)
_LAYOUT = (
    "SRC should hold train_set/ and val_set/ with images/ and annotations/, or training.csv and "
    "validation.csv with Manually_Annotated_Images/"
)


class NpyPicture(NamedTuple):
    """An item of the layout with npy files.

    Attributes:
        place: its split.
        name: of the picture.
        annotations: name of its annotations up to `_exp.npy`.
        expr: its class.
    """

    place: str
    name: str
    annotations: str
    expr: str


class AffectNet(ListedSplits):
    """Faces from the web with expression, valence and arousal; 287,651 and 4,000 with one of eight classes.

    "none", "uncertain" and "no face" (codes 8 to 10) are dropped; −2 (valence, arousal) means missing. The 68
    landmarks give the five points of the alignment, so that no detector runs.
    """

    def __init__(
        self,
        path: Path,
        num_classes: int = 8,
        landmarks: bool = True,
        images: str = "",
        max_unused: float = 0.01,
        allow_partial: bool = False,
    ) -> None:
        """
        Args:
            path: the folder with train_set and val_set, or with the tables and Manually_Annotated_Images.
            num_classes: 8, or 7 to drop contempt.
            landmarks: align by the data set's landmarks; if not, faces are detected.
            images: with the tables: folder or zip of the pictures.
            max_unused: share of a split's faces without picture or annotation, invalid or repeated, above
                which it is an error, in [0, 1].
            allow_partial: accept splits that are absent or of another size than they are known to have.

        Raises:
            DataError: neither layout, or another number of classes.
        """
        check_folder(path, _LAYOUT)
        check_share(max_unused)
        if num_classes not in (7, 8):
            raise DataError(f"num_classes={num_classes}: must be 8, or 7 to drop contempt")
        self.path, self.num_classes, self.has_landmarks = path, num_classes, landmarks
        self.max_unused, self.allow_partial = max_unused, allow_partial
        self.places: dict[str, Pictures] = {}
        self.tables: dict[str, Path] = {}
        for split, names in _FOLDERS.items():
            place = find_pictures(path, names)
            if place is not None:
                self.places[split] = place
        if not self.places:
            self._find_tables(images)
        absent = [split for split in _FOLDERS if split not in (self.tables or self.places)]
        if absent and not allow_partial:
            name = _TABLES[absent[0]] if self.tables else _FOLDERS[absent[0]][0]
            raise DataError(f"{path}: no {name}; {_LAYOUT}, or use what is there with allow_partial=true")

    def _find_tables(self, images: str) -> None:
        for split, name in _TABLES.items():
            table = find_file(self.path, [name])
            if table is not None:
                self.tables[split] = table
        pictures = find_pictures(self.path, _IMAGES, "images", images)
        if not self.tables or pictures is None:
            raise DataError(f"{self.path}: not in a layout of AffectNet; {_LAYOUT}")
        self.places = dict.fromkeys(self.tables, pictures)

    @property
    def info(self) -> SourceInfo:
        return SourceInfo(
            "AffectNet",
            "AffectNet agreement: non-commercial research only, no redistribution",
            label_space=LabelSpace(expr=CLASSES[: self.num_classes], au=()),
            settings=self._listing.settings,
        )

    def open_reader(self) -> Reader:
        if self.tables:
            return labelled_reader(self.places)
        places, has_landmarks = self.places, self.has_landmarks

        def read(item: Item) -> RawFace:
            ref: NpyPicture = item.ref
            pictures = places[ref.place]

            def annotation(kind: str) -> NDArray[Any]:
                return read_npy(pictures.read(f"{ref.annotations}_{kind}.npy"), kind)

            cells = {name: _text(annotation(name[:3]), name) for name in ("valence", "arousal")}
            labels = labels_of(Row("cannot read labels", {"expression": ref.expr, **cells}), _CODES)
            points = five_points(annotation("lnd"), "lnd") if has_landmarks else None
            return RawFace(pictures.read(ref.name), labels, points)

        return read

    @cached_property
    def _listing(self) -> Listing:
        items: dict[str, list[Item]] = {}
        counts, annotations = {}, {}
        for split, pictures in self.places.items():
            table = self.tables.get(split)
            ledger = Ledger(str(pictures.path) if table is None else table.name)
            if table is None:
                items[split] = list(self._from_npy(split, ledger))
                annotations[split] = fingerprint([[item.key, item.ref.expr] for item in items[split]])
            else:
                items[split] = list(self._from_table(split, table, ledger))
                annotations[table.name] = sha256_file(table)
            check_keys(items[split], (i.ref.name for i in items[split]), f"{pictures.path} ({split})")
            num_faces = ledger.num_rows - sum(ledger.dropped[name] for name in _DROPPED.values())
            check_total(ledger.name, num_faces, KNOWN[split], TOLERANCE, self.allow_partial)
            counts[split] = ledger.close(self.max_unused)
        settings = {
            "source": "affectnet",
            "num_classes": self.num_classes,
            "landmarks": self.has_landmarks,
            "annotations": annotations,
            "counts": counts,
        }
        return Listing(items, settings)

    def _kept_class(self, code: str, where: str, ledger: Ledger) -> str | None:
        """The class that a code stands for; None, and an entry in the ledger, where it is dropped.

        Raises:
            DataError: no whole number from 0 to 10.
        """
        try:
            number = float(code)
        except ValueError:
            number = -1.0
        if number not in range(len(CLASSES) + len(_DROPPED)):
            raise DataError(f"{where}: expression must be a whole number from 0 to 10, got {code!r:.40}")
        if number in _DROPPED:
            ledger.drop(_DROPPED[int(number)])
            return None
        if number >= self.num_classes:
            ledger.drop(CLASSES[int(number)])
            return None
        return CLASSES[int(number)]

    def _from_npy(self, split: str, ledger: Ledger) -> Iterator[Item]:
        """Items by number; only the expressions are read here, the rest where the picture is.

        Raises:
            DataError: an expression cannot be read: a fault of the disk, not of the face.
        """
        pictures = self.places[split]
        images: dict[str, str] = {}
        annotations: dict[str, str] = {}
        kinds = ("exp", "val", "aro", "lnd") if self.has_landmarks else ("exp", "val", "aro")
        num_found: Counter[str] = Counter()
        for name in pictures.names():
            file = name.rpartition("/")[2]
            stem, _, kind = file.removesuffix(".npy").rpartition("_")
            if is_picture(file):
                images[file.rpartition(".")[0]] = name
            elif file.endswith(".npy") and kind in kinds:
                num_found[stem] += 1
                if kind == "exp":
                    annotations[stem] = name.removesuffix("_exp.npy")
        for stem in sorted(images, key=_by_number):
            if stem not in annotations or num_found[stem] < len(kinds):
                ledger.refuse("no annotation", f"{images[stem]!r:.80}")
                continue
            name = f"{annotations[stem]}_exp.npy"
            try:
                expr = self._kept_class(_text(read_npy(pictures.read(name), "exp"), "exp"), name, ledger)
            except ReadError as error:
                raise DataError(f"{pictures.path}/{name}: {error}; mend it and run this again") from error
            except DataError as error:
                ledger.refuse("invalid", f"{name}: {error}")
                continue
            if expr is not None:
                ledger.use(FaceLabels(expr=expr))
                yield Item(key_of(stem), NpyPicture(split, images[stem], annotations[stem], expr))
        for stem in sorted(annotations.keys() - images.keys(), key=_by_number):
            ledger.refuse("no image", f"{annotations[stem]}_exp.npy")

    def _from_table(self, split: str, table: Path, ledger: Ledger) -> Iterator[Item]:
        pictures = self.places[split]
        rows: dict[str, tuple[str, FaceLabels, NDArray[np.float64] | None]] = {}
        for where, cells in read_table(table):
            name = cells["subDirectory_filePath"].replace("\\", "/")
            try:
                expr = self._kept_class(cells["expression"], where, ledger)
                if expr is None:
                    continue
                if name in rows:
                    ledger.refuse("repeated", f"{where}: {name!r:.80}, first: {rows[name][0]}")
                    continue
                affect = {column: cells[column] for column in ("valence", "arousal")}
                labels = labels_of(Row(where, {"expression": expr, **affect}), _CODES)
                rows[name] = where, labels, self._points(cells["facial_landmarks"], where)
            except DataError as error:
                ledger.refuse("invalid", str(error))
        files = by_official_name(pictures, rows.keys())
        for name, (where, labels, points) in rows.items():
            if name not in files:
                ledger.refuse("no image", f"{where}: {name!r:.80}")
                continue
            ledger.use(labels)
            yield labelled_item(key_of(name.rpartition(".")[0]), split, files[name], labels, points)

    def _points(self, cell: str, where: str) -> NDArray[np.float64] | None:
        if not self.has_landmarks:
            return None
        return five_points(np.array(cell.split(";")), f"{where}: facial_landmarks")


def read_npy(data: bytes, name: str) -> NDArray[Any]:
    """An array of numbers or text; nothing is unpickled.

    Raises:
        DataError: not an npy file, cut short, or one of Python objects.
    """
    try:
        return np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    except (ValueError, TypeError, EOFError, OSError, MemoryError) as error:
        raise DataError(f"{name} is not a plain npy file ({type(error).__name__})") from None


def five_points(landmarks: NDArray[Any], where: str) -> NDArray[np.float64]:
    """Eyes (left as seen first), tip of the nose and corners of the mouth from the usual 68 landmarks.

    Args:
        landmarks: 136 numbers, or texts that say them: x and y of each in turn.
        where: for messages.

    Returns:
        (5, 2) float64.

    Raises:
        DataError: another count, or no numbers.
    """
    try:
        points: NDArray[np.float64] = landmarks.astype(np.float64).reshape(68, 2)
    except (ValueError, TypeError):
        points = np.full((68, 2), np.nan)
    if not np.isfinite(points).all():
        raise DataError(f"{where} must be 68 points (136 numbers), got {landmarks.size} values")
    eyes = points[36:42].mean(0), points[42:48].mean(0)
    return np.stack([*eyes, points[30], points[48], points[54]])


def read_table(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """(file and line, cells) of a table of annotations; it is large, and may come without its header.

    Raises:
        DataError: a column is missing, a row of another length, or not UTF-8.
    """
    columns = list(_COLUMNS)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file)
        try:
            for cells in reader:
                where = f"{path.name} line {reader.line_num}"
                stripped = [cell.strip() for cell in cells]
                if reader.line_num == 1 and _COLUMNS[0] in stripped:
                    columns = stripped
                    absent = [name for name in _COLUMNS if name not in columns]
                    if absent:
                        raise DataError(f"{where}: no column {absent[0]!r}; fetch it again")
                elif any(stripped):
                    if len(stripped) != len(columns):
                        raise DataError(f"{where}: {len(stripped)} cells instead of {len(columns)}")
                    yield where, dict(zip(columns, stripped))
        except UnicodeDecodeError:
            raise DataError(f"{path.name} near line {reader.line_num}: not UTF-8; fetch it again") from None
        except csv.Error as error:
            raise DataError(f"{path.name} line {reader.line_num}: {error}; fetch it again") from None


def _text(array: NDArray[Any], name: str) -> str:
    """The one value of an array, as text: official files hold numbers as text.

    Raises:
        DataError: several values.
    """
    if array.size != 1:
        raise DataError(f"{name} must be one value, got {array.size}")
    value = array.reshape(-1)[0].item()
    return value.decode(errors="replace").strip() if isinstance(value, bytes) else str(value).strip()


def _by_number(stem: str) -> tuple[int, str]:
    return (int(stem) if stem.isascii() and stem.isdecimal() else -1, stem)
