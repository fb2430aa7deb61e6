"""LSD, "learning from synthetic data" (ABAW4): six expressions, synthetic training faces, real ones else."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path, PurePosixPath

from shards.files import sha256_file
from shards.labels import DataError, FaceLabels
from shards.records import Item, LabelSpace, SourceInfo
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
    read_list,
    without_header,
)
from shards.sources.pictures import Pictures, is_picture
from shards.sources.raw import Reader
from shards.sources.splits import check_keys, key_of

CLASSES = ("anger", "disgust", "fear", "happiness", "sadness", "surprise")
KNOWN = {"train": 277_000, "val": 4_600, "test": 106_000}
TOLERANCE = 0.02  # the published numbers are round

_SPELLINGS = {"angere": "anger"}  # as one official folder has it
_FOLDERS = {
    "train": ("training_set_synthetic_images",),
    "val": ("validation_set_real_images",),
    "test": ("test_set_real_images", "test_set_images", "test_set"),
}
_LISTS = {"train": "training_set*.txt", "val": "validation_set*.txt", "test": "test_set*.txt"}
_LAYOUT = "SRC should hold training_set_synthetic_images/CLASS/ and validation_set_real_images/"


class LSD(ListedSplits):
    """About 277K synthetic faces for training, 4.6K real ones for validation and 106K for the test.

    The faces are cut out and aligned at 112×112 by their authors: used as they are. The class is that of the
    list, if there is one (NAME,LABEL with a name or a number from 0 in alphabetical order), else that of the
    folder; where both are there they must agree. `extra.name` is the picture's official name.
    """

    has_landmarks = False

    def __init__(
        self,
        path: Path,
        train_list: str = "",
        val_list: str = "",
        test_list: str = "",
        test_images: str = "",
        max_unused: float = 0.01,
        allow_partial: bool = False,
    ) -> None:
        """
        Args:
            path: the folder with the folders (or zips) of pictures and perhaps the lists.
            train_list, val_list: NAME,LABEL; by default the only training_set*.txt, validation_set*.txt.
            test_list: names only; by default the only test_set*.txt, else all pictures of the test folder.
            test_images: folder or zip of the test pictures; by default test_set_real_images or test_set.
            max_unused: share of a split's rows and pictures that are invalid, repeated or without a partner,
                above which it is an error, in [0, 1].
            allow_partial: accept splits that are absent or of another size than they are known to have.

        Raises:
            DataError: no pictures where they should be.
        """
        check_folder(path, _LAYOUT)
        check_share(max_unused)
        self.max_unused, self.allow_partial = max_unused, allow_partial
        found = {split: find_pictures(path, _FOLDERS[split]) for split in ("train", "val")}
        found["test"] = find_pictures(path, _FOLDERS["test"], "test_images", test_images)
        self.places = {split: pictures for split, pictures in found.items() if pictures is not None}
        absent = [_FOLDERS[split][0] for split in ("train", "val") if split not in self.places]
        if not self.places or (absent and not allow_partial):
            raise DataError(
                f"{path}: no {absent[0]}; {_LAYOUT}, or use what is there with allow_partial=true"
            )
        options = {"train": train_list, "val": val_list, "test": test_list}
        self.lists = {
            split: find_file(path, [_LISTS[split]], f"{split}_list", options[split]) for split in self.places
        }

    @property
    def info(self) -> SourceInfo:
        return SourceInfo(
            "LSD",
            "ABAW4 LSD agreement: academic, non-commercial research only, no redistribution",
            label_space=LabelSpace(expr=CLASSES, au=(), va=False),
            alignment={"made_by": "LSD: cropped and aligned by its authors"},
            settings=self._listing.settings,
        )

    def open_reader(self) -> Reader:
        return labelled_reader(self.places)

    @cached_property
    def _listing(self) -> Listing:
        items: dict[str, list[Item]] = {}
        counts, lists = {}, {}
        for split, pictures in self.places.items():
            path = self.lists[split]
            ledger = Ledger(str(pictures.path) if path is None else path.name)
            if path is None:
                faces = _from_folders(pictures, split, ledger)
            else:
                faces = _from_list(path, pictures, split, ledger)
                lists[path.name] = sha256_file(path)
            items[split] = []
            for name, labels in faces:
                ledger.use(labels)
                key = key_of(str(PurePosixPath(labels.extra["name"]).with_suffix("")))
                items[split].append(labelled_item(key, split, name, labels))
            check_keys(items[split], (i.ref.name for i in items[split]), f"{pictures.path} ({split})")
            check_total(ledger.name, ledger.num_rows, KNOWN[split], TOLERANCE, self.allow_partial)
            counts[split] = ledger.close(self.max_unused)
        return Listing(items, {"source": "lsd", "lists": lists, "counts": counts})


def _from_folders(pictures: Pictures, split: str, ledger: Ledger) -> Iterator[tuple[str, FaceLabels]]:
    """(picture, labels): of the test split without a class, else with that of its folder."""
    for name in pictures.names():
        if not is_picture(name):
            continue
        parts = name.split("/")
        expr = _folder_class(name)
        if split == "test":
            yield name, FaceLabels(extra={"name": parts[-1]})
        elif expr is None:
            ledger.refuse(
                "without a class", f"{name!r:.80}: in no folder of {', '.join(CLASSES)}; give {split}_list=…"
            )
        else:
            yield name, FaceLabels(expr=expr, extra={"name": "/".join(parts[-2:])})


def _from_list(
    path: Path, pictures: Pictures, split: str, ledger: Ledger
) -> Iterator[tuple[str, FaceLabels]]:
    """(picture, labels) of the list's rows; the ledger gets the rows and pictures without a partner."""
    rows: dict[str, tuple[str, list[str]]] = {}
    for where, fields in without_header(read_list(path)):
        if fields[0] in rows:
            ledger.refuse("repeated", f"{where}: {fields[0]!r:.80}, first: {rows[fields[0]][0]}")
        else:
            rows[fields[0]] = where, fields[1:]
    files = by_official_name(pictures, rows.keys())
    for official, (where, fields) in rows.items():
        if official not in files:
            ledger.refuse("no image", f"{where}: {official!r:.80}")
            continue
        try:
            expr = None if split == "test" else _listed_class(where, fields, files[official])
        except DataError as error:
            ledger.refuse("invalid", str(error))
            continue
        yield files[official], FaceLabels(expr=expr, extra={"name": official})
    listed = set(files.values())
    for name in pictures.names():
        if is_picture(name) and name not in listed:
            ledger.refuse("not in the list", repr(name))


def _listed_class(where: str, fields: list[str], name: str) -> str:
    """The class that a row states.

    Raises:
        DataError: not one label, none of the classes, or another class than the picture's folder.
    """
    if len(fields) != 1:
        raise DataError(f"{where}: {len(fields)} labels instead of one")
    [label] = fields
    if label.isdecimal() and int(label) < len(CLASSES):
        expr: str | None = CLASSES[int(label)]
    else:
        expr = _class_named(label)
    if expr is None:
        raise DataError(
            f"{where}: label must be one of {', '.join(CLASSES)} or its number from 0, got {label!r:.40}"
        )
    folder = _folder_class(name)
    if folder not in (None, expr):
        raise DataError(f"{where}: {label!r:.40} ({expr}), but the picture lies in the folder of {folder}")
    return expr


def _folder_class(name: str) -> str | None:
    """The class that a picture's folder means; None if it means none."""
    parts = name.split("/")
    return _class_named(parts[-2]) if len(parts) > 1 else None


def _class_named(word: str) -> str | None:
    expr = _SPELLINGS.get(word.lower(), word.lower())
    return expr if expr in CLASSES else None
