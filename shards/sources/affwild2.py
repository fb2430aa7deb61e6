"""Aff-Wild2, its static multi-task set: frames with valence, arousal, expression and action units."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from shards.files import sha256_file
from shards.labels import AU12, EXPR8, DataError, FaceLabels
from shards.records import Item, SourceInfo
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
from shards.sources.pictures import Pictures
from shards.sources.raw import Reader
from shards.sources.splits import check_keys, key_of
from shards.sources.tables import LabelCodes, Row, labels_of
from shards.template import TEMPLATE, TEMPLATE_NAME

KNOWN = {"train": 142_000, "val": 27_000, "test": 51_000}
TOLERANCE = 0.02  # the published numbers are round
HEADER = ("image", "valence", "arousal", "expression", "aus")

_COLUMNS = ("valence", "arousal", "expression", *AU12)
_CODES = LabelCodes(EXPR8, ("-5", "-1"), official=True)
_LISTS = {
    "train": ("training_set_annotations.txt",),
    "val": ("validation_set_annotations.txt",),
    "test": ("MTL_Challenge_test_set_release.txt", "*test_set*.txt"),
}
_IMAGES = ("cropped_aligned",)
_TEST_IMAGES = ("cropped_aligned_2022_MTL_test", "testset/cropped_aligned", "test_set/cropped_aligned")
_PEOPLE = ("_left", "_right")
_LAYOUT = "SRC should hold training_set_annotations.txt, validation_set_annotations.txt and cropped_aligned/"


class AffWild2(ListedSplits):
    """About 142K, 27K and 51K frames, cut out and aligned at 112×112 by their authors: used as they are.

    A folder of frames is one person in one video: it becomes `identity` and `group`. `extra` has the `video`
    (the folder without `_left` or `_right`), the `frame`'s number and the official `name`, VIDEO/00001.jpg.
    −5 (valence, arousal) and −1 (expression, action units) mean missing. The test split has no labels.
    """

    has_landmarks = False

    def __init__(
        self,
        path: Path,
        test_list: str = "",
        images: str = "",
        test_images: str = "",
        max_unused: float = 0.01,
        allow_partial: bool = False,
    ) -> None:
        """
        Args:
            path: the folder with the lists (there or one folder below) and the pictures.
            test_list: the list of the test split, names only; by default
                MTL_Challenge_test_set_release.txt or the only *test_set*.txt, if there is one.
            images: folder or zip of the frames; by default cropped_aligned or cropped_aligned.zip.
            test_images: that of the test split; by default cropped_aligned_2022_MTL_test or
                testset/cropped_aligned if there is one, else that of the others.
            max_unused: share of a list's rows without an image, invalid or repeated, above which it is an
                error, in [0, 1].
            allow_partial: accept a list that is not there, or one of another length than it is known to have.

        Raises:
            DataError: lists or pictures are not where they should be.
        """
        check_folder(path, _LAYOUT)
        check_share(max_unused)
        self.max_unused, self.allow_partial = max_unused, allow_partial
        found = {split: find_file(path, _LISTS[split]) for split in ("train", "val")}
        found["test"] = find_file(path, _LISTS["test"], "test_list", test_list)
        self.lists = {split: file for split, file in found.items() if file is not None}
        absent = [_LISTS[split][0] for split in ("train", "val") if split not in self.lists]
        if not self.lists or (absent and not allow_partial):
            raise DataError(
                f"{path}: no {absent[0]}; {_LAYOUT}, or use what is there with allow_partial=true"
            )
        pictures = find_pictures(path, _IMAGES, "images", images)
        test_pictures = find_pictures(path, _TEST_IMAGES, "test_images", test_images) or pictures
        self.places: dict[str, Pictures] = {}
        for split in self.lists:
            place = test_pictures if split == "test" else pictures
            if place is None:
                raise DataError(f"{path}: no cropped_aligned or cropped_aligned.zip; {_LAYOUT}")
            self.places[split] = place

    @property
    def info(self) -> SourceInfo:
        return SourceInfo(
            "Aff-Wild2",
            "Aff-Wild2 end-user licence: academic, non-commercial research only, no redistribution",
            alignment={
                "made_by": "Aff-Wild2: cropped_aligned",
                "margin": 0.0,
                "template": TEMPLATE_NAME,
                "points": TEMPLATE.tolist(),
                "transform": "similarity",
            },
            settings=self._listing.settings,
        )

    def open_reader(self) -> Reader:
        return labelled_reader(self.places)

    @cached_property
    def _listing(self) -> Listing:
        ledgers = {split: Ledger(path.name) for split, path in self.lists.items()}
        rows = {
            split: _read_rows(path, split != "test", ledgers[split]) for split, path in self.lists.items()
        }
        # The folders hold every frame of every video, millions: each is listed once.
        files = {}
        for place in {pictures.path: pictures for pictures in self.places.values()}.values():
            splits = [split for split in rows if self.places[split].path == place.path]
            files[place.path] = by_official_name(place, {name for split in splits for name in rows[split]})
        items: dict[str, list[Item]] = {}
        counts = {}
        for split, ledger in ledgers.items():
            path = self.places[split].path
            items[split] = _items(split, rows[split], files[path], ledger)
            check_keys(items[split], (item.ref.name for item in items[split]), f"{path} ({split})")
            check_total(ledger.name, ledger.num_rows, KNOWN[split], TOLERANCE, self.allow_partial)
            counts[split] = ledger.close(self.max_unused)
        lists = {path.name: sha256_file(path) for path in self.lists.values()}
        return Listing(items, {"source": "affwild2", "lists": lists, "counts": counts})


def _read_rows(path: Path, labelled: bool, ledger: Ledger) -> dict[str, tuple[str, FaceLabels]]:
    """Official name -> (line, labels) of the rows that can be read; the ledger gets the others.

    Raises:
        DataError: another header than the official one.
    """
    lines = list(read_list(path))
    if labelled and (not lines or tuple(lines[0][1][:4]) != HEADER[:4]):
        shown = ",".join(lines[0][1]) if lines else ""
        raise DataError(f"{path.name} line 1: expected the header {','.join(HEADER)}, got {shown!r:.80}")
    rows: dict[str, tuple[str, FaceLabels]] = {}
    for where, fields in without_header(lines):
        if fields[0] in rows:
            ledger.refuse("repeated", f"{where}: {fields[0]!r:.80}, first: {rows[fields[0]][0]}")
            continue
        try:
            rows[fields[0]] = where, _labels(where, fields, labelled)
        except DataError as error:
            ledger.refuse("invalid", str(error))
    return rows


def _labels(where: str, fields: list[str], labelled: bool) -> FaceLabels:
    """The labels of one row.

    Raises:
        DataError: not VIDEO/NUMBER.jpg, another number of fields, or a value out of range.
    """
    folder, _, file = fields[0].partition("/")
    number = file.partition(".")[0]
    if not folder or not (number.isascii() and number.isdecimal()):
        raise DataError(f"{where}: image must be like video/00001.jpg, got {fields[0]!r:.80}")
    labels = FaceLabels()
    if labelled:
        if len(fields) != len(_COLUMNS) + 1:
            raise DataError(f"{where}: {len(fields)} fields instead of {len(_COLUMNS) + 1}")
        labels = labels_of(Row(where, dict(zip(_COLUMNS, fields[1:]))), _CODES)
    video = next((folder.removesuffix(word) for word in _PEOPLE if folder.endswith(word)), folder)
    extra = {"video": video, "frame": int(number), "name": fields[0]}
    return replace(labels, identity=folder, group=folder, extra=extra)


def _items(
    split: str, rows: Mapping[str, tuple[str, FaceLabels]], files: Mapping[str, str], ledger: Ledger
) -> list[Item]:
    """Items of the rows that have a picture (`files`: official name -> picture), in the order of the list."""
    items = []
    for name, (where, labels) in rows.items():
        if name not in files:
            ledger.refuse("no image", f"{where}: {name!r:.80}")
            continue
        ledger.use(labels)
        items.append(labelled_item(key_of(name.rpartition(".")[0]), split, files[name], labels))
    return items
