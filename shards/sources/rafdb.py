"""RAF-DB, the basic set: seven expressions on aligned faces from the web."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from shards.files import sha256_file
from shards.labels import DataError, FaceLabels
from shards.records import SPLITS, Item, LabelSpace, SourceInfo
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
from shards.sources.pictures import is_picture
from shards.sources.raw import Reader
from shards.sources.splits import check_fraction, keyed_split
from shards.sources.tables import read_text_columns

CLASSES = ("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral")  # numbered from 1
KNOWN = {"train": 12_271, "test": 3_068}

_LIST = "list_patition_label.txt"  # spelt so
_IMAGES = ("Image/aligned", "aligned", "basic/Image/aligned")
_LAYOUT = f"SRC should hold EmoLabel/{_LIST} (or the list itself) and Image/aligned/"


class RafDB(ListedSplits):
    """12,271 faces for training, of which a share is set aside for validation, and 3,068 for the test.

    The pictures in `aligned` are cut out and aligned at 100×100 by their authors: used as they are.
    """

    has_landmarks = False

    def __init__(
        self,
        path: Path,
        images: str = "",
        val_fraction: float = 0.1,
        max_unused: float = 0.01,
        allow_partial: bool = False,
    ) -> None:
        """
        Args:
            path: the folder with the list (there or one folder below) and the pictures.
            images: folder or zip of the aligned pictures; by default Image/aligned, aligned or their zip.
            val_fraction: share of the official training set that becomes the val split, in [0, 1).
            max_unused: share of rows without a picture and pictures without a row, above which it is an
                error, in [0, 1].
            allow_partial: accept another number of faces than 12,271 and 3,068.

        Raises:
            DataError: list or pictures are not where they should be.
        """
        check_folder(path, _LAYOUT)
        check_share(max_unused)
        check_fraction(val_fraction)
        self.val_fraction, self.max_unused, self.allow_partial = val_fraction, max_unused, allow_partial
        table = find_file(path, (_LIST, f"basic/EmoLabel/{_LIST}"))
        pictures = find_pictures(path, _IMAGES, "images", images)
        if table is None or pictures is None:
            raise DataError(f"{path}: no {_LIST if table is None else 'Image/aligned/'}; {_LAYOUT}")
        self.table, self.places = table, {"": pictures}

    @property
    def info(self) -> SourceInfo:
        return SourceInfo(
            "RAF-DB",
            "RAF-DB terms: non-commercial research only, no redistribution",
            label_space=LabelSpace(expr=CLASSES, au=(), va=False),
            alignment={"made_by": "RAF-DB: aligned"},
            settings=self._listing.settings,
        )

    def open_reader(self) -> Reader:
        return labelled_reader(self.places)

    @cached_property
    def _listing(self) -> Listing:
        rows = _read_rows(self.table)
        pictures = self.places[""]
        # The pictures' names have a word more than the list's; both spellings are taken.
        spelt = {stem: (f"{stem}_aligned.jpg", f"{stem}.jpg") for stem in rows}
        files = by_official_name(pictures, {name for names in spelt.values() for name in names})
        items: dict[str, list[Item]] = {split: [] for split in SPLITS}
        ledgers = {part: Ledger(f"{self.table.name} ({part})") for part in KNOWN}
        for stem, (where, expr) in rows.items():
            part = stem.partition("_")[0]
            name = next((files[name] for name in spelt[stem] if name in files), None)
            if name is None:
                ledgers[part].refuse("no image", f"{where}: {stem}.jpg")
                continue
            labels = FaceLabels(expr=expr)
            ledgers[part].use(labels)
            split = part if part == "test" else keyed_split(stem, self.val_fraction)
            items[split].append(labelled_item(stem, "", name, labels))
        for part, ledger in ledgers.items():
            check_total(ledger.name, ledger.num_rows, KNOWN[part], 0, self.allow_partial)
        known = set(files.values())
        for name in pictures.names():
            if is_picture(name) and name not in known:
                part = "test" if name.rpartition("/")[2].startswith("test") else "train"
                ledgers[part].refuse("not in the list", repr(name))
        settings = {
            "source": "rafdb",
            "val_fraction": self.val_fraction,
            "list": sha256_file(self.table),
            "counts": {part: ledger.close(self.max_unused) for part, ledger in ledgers.items()},
        }
        return Listing(items, settings)


def _read_rows(path: Path) -> dict[str, tuple[str, str]]:
    """Name without suffix -> (line, class).

    Raises:
        DataError: a line that is not `train_00001.jpg 5`, or a picture twice.
    """
    rows: dict[str, tuple[str, str]] = {}
    for where, (image, label) in read_text_columns(path.read_bytes(), path.name, 2):
        stem, _, suffix = image.rpartition(".")
        part, _, number = stem.partition("_")
        if suffix != "jpg" or part not in KNOWN or not (number.isascii() and number.isdecimal()):
            raise DataError(f"{where}: image must be train_NUMBER.jpg or test_NUMBER.jpg, got {image!r:.40}")
        if label not in {str(n) for n in range(1, len(CLASSES) + 1)}:
            raise DataError(f"{where}: label must be from 1 to {len(CLASSES)}, got {label!r:.40}")
        if stem in rows:
            raise DataError(f"{where}: {image!r:.40} occurs twice (first: {rows[stem][0]}); fetch it again")
        rows[stem] = where, CLASSES[int(label) - 1]
    return rows
