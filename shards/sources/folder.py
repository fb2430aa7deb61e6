"""Any folder or zip of face pictures, with or without a table of labels."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from shards.labels import DataError, FaceLabels
from shards.records import SPLITS, Item, LabelSpace, SourceInfo, canonical_json, fingerprint
from shards.sources.pictures import SUFFIXES, open_pictures, pictures_in
from shards.sources.raw import Listed, RawFace, Reader
from shards.sources.splits import check_fraction, check_keys, key_of, keyed_split, split_named
from shards.sources.tables import (
    LabelCodes,
    Row,
    check_columns,
    label_space_names,
    labels_of,
    name_of,
    read_label_rows,
    split_in,
)

_LOG = logging.getLogger(__name__)
_FOUND_BY_ITSELF = ("labels.csv", "labels.json")


@dataclass(frozen=True)
class _Listing:
    """What is there: items by split, class names, and what the labels' fingerprint and counts are."""

    items: Mapping[str, list[Item]]
    expr_names: tuple[str, ...]
    settings: Mapping[str, Any]


class FolderFaces(Listed):
    """Pictures below a folder or in a zip.

    Splits: the top folders train, val (or valid, validation) and test where there are any; else the table's
    column `split`; else a share `val_fraction`, chosen by a hash of who it is (identity, or else group) where
    that is known, or of the key.

    Labels: a csv (or json) with a column `name`, `image` or `file` and any of expr, valence, arousal, AU1 …,
    identity (or person, subject), group (or video), split. Other columns go to `extra`; empty cells are
    missing. A row names its picture by path, with or without folders or suffix, as long as only one fits.
    """

    has_landmarks = False

    def __init__(
        self,
        path: Path,
        labels: str = "",
        val_fraction: float = 0.1,
        max_unmatched: float = 0.05,
        expr_names: Sequence[str] = (),
        missing: Sequence[str] = (),
        name: str = "",
        licence: str = "not stated",
    ) -> None:
        """
        Args:
            path: a folder or a zip.
            labels: the table of labels, a path of its own or one within `path`; by default labels.csv or
                labels.json in `path` if there is one; "none" for no labels.
            val_fraction: share of the val split where the data set has no splits, in [0, 1).
            max_unmatched: share of rows without a picture, and of pictures without a row, above which it is
                an error, in [0, 1].
            expr_names, missing: what numbers in the table stand for (see `LabelCodes`).
            name: of the data set; by default that of the folder.
            licence: its terms, one line.

        Raises:
            DataError: neither a folder nor a zip.
        """
        check_fraction(val_fraction)
        self.path, self.labels, self.val_fraction = path, labels, val_fraction
        self.max_unmatched = max_unmatched
        self.codes = LabelCodes(tuple(expr_names), tuple(str(code) for code in missing))
        self.name, self.licence = name or path.stem, licence
        self.pictures = open_pictures(path)

    @property
    def info(self) -> SourceInfo:
        listing = self._listing
        return SourceInfo(
            self.name,
            self.licence,
            label_space=LabelSpace(expr=listing.expr_names),
            settings={"source": "folder", "val_fraction": self.val_fraction, **listing.settings},
        )

    def splits(self) -> Sequence[str]:
        return [split for split in SPLITS if self._listing.items.get(split)]

    def items(self, split: str) -> Sequence[Item]:
        return self._listing.items.get(split, [])

    def open_reader(self) -> Reader:
        pictures = self.pictures

        def read(item: Item) -> RawFace:
            name, labels = item.ref
            return RawFace(
                pictures.read(name), FaceLabels.from_json(json.loads(labels)) if labels else FaceLabels()
            )

        return read

    @cached_property
    def _listing(self) -> _Listing:
        files = self.pictures.names()
        names = pictures_in(self.path, files)
        if not names:
            raise DataError(
                f"{self.path}: no pictures in it ({' '.join(SUFFIXES)}); check SRC"
                + (", or use SOURCE=tars" if any(name.endswith(".tar") for name in files) else "")
            )
        table = self._table(files)
        rows = self._match(table[0], table[1], names) if table else {}
        labels = {name: labels_of(row, self.codes) for name, row in rows.items()}
        found = [face.expr for face in labels.values() if face.expr is not None]
        settings: dict[str, Any] = {}
        if table:
            others = check_columns(table[1])
            _LOG.info(
                "%s: %s; columns kept as extra: %s",
                table[0],
                _what_is_labelled(labels.values()),
                ", ".join(others) or "none",
            )
            settings["labels"] = fingerprint([[row.where, dict(row.cells)] for row in table[1]])
            settings["codes"] = {"expr_names": self.codes.expr_names, "missing": self.codes.missing}
            settings["labels_without_picture"] = len(table[1]) - len(rows)
            settings["pictures_without_labels"] = len(names) - len(rows)
        return _Listing(self._split(names, rows, labels), label_space_names(found, self.codes), settings)

    def _table(self, files: Sequence[str]) -> tuple[str, list[Row]] | None:
        """The label file's name and rows, or None."""
        if self.labels == "none":
            return None
        if not self.labels:
            inside = set(files)
            top = _shared_folder(files) if self.path.is_file() else ""
            for candidate in (top + name for name in _FOUND_BY_ITSELF):
                if candidate in inside:
                    _LOG.info("%s: labels from %s", self.path, candidate)
                    return candidate, read_label_rows(self.pictures.read(candidate), candidate)
            return None
        path = Path(self.labels)
        if path.is_file():
            return path.name, read_label_rows(path.read_bytes(), path.name)
        if self.labels in files:
            return self.labels, read_label_rows(self.pictures.read(self.labels), self.labels)
        raise DataError(f"labels={self.labels}: no such file, neither by itself nor in {self.path}")

    def _match(self, table: str, rows: Sequence[Row], names: Sequence[str]) -> dict[str, Row]:
        """Picture -> row.

        Raises:
            DataError: an ambiguous name, two rows for a picture, or too many without a partner.
        """
        aliases: dict[str, str] = {}
        for name in names:
            for alias in _aliases(name):
                # "" marks an alias that several pictures answer to.
                aliases[alias] = name if aliases.get(alias, name) == name else ""
        aliases.update((name, name) for name in names)
        out: dict[str, Row] = {}
        strange: list[str] = []
        for row in rows:
            wanted = name_of(row).replace("\\", "/").removeprefix("./")
            match = aliases.get(wanted)
            if match is None:
                strange.append(f"{row.where}: {wanted!r:.80}")
            elif not match:
                raise DataError(
                    f"{row.where}: {wanted!r:.80} fits several pictures; give it with its folders"
                )
            elif match in out:
                raise DataError(
                    f"{row.where}: a second row for {match!r:.80} (first: {out[match].where}); remove one"
                )
            else:
                out[match] = row
        bare = len(names) - len(out)
        if strange or bare:
            _LOG.warning(
                "%s: %d rows without a picture, %d pictures without a row", table, len(strange), bare
            )
        remedy = f"mend the names, or allow it with max_unmatched (now {self.max_unmatched})"
        if len(strange) > self.max_unmatched * max(len(rows), 1):
            raise DataError(
                f"{table}: {len(strange)} of {len(rows)} rows name no picture, as {strange[0]}; {remedy}"
            )
        if bare > self.max_unmatched * len(names):
            first = next(name for name in names if name not in out)
            raise DataError(
                f"{table}: {bare} of {len(names)} pictures have no row, as {first!r:.80}; {remedy}"
            )
        return out

    def _split(
        self, names: Sequence[str], rows: Mapping[str, Row], labels: Mapping[str, FaceLabels]
    ) -> dict[str, list[Item]]:
        top = _shared_folder(names) if self.path.is_file() else ""
        by_folder = {
            name: split_named(name[len(top) :].split("/")[0]) for name in names if "/" in name[len(top) :]
        }
        folders = any(by_folder.values())
        if folders and not all(by_folder.get(name) for name in names):
            stray = next(name for name in names if not by_folder.get(name))
            raise DataError(
                f"{self.path}: has split folders, but {stray!r:.80} lies in none of train, val, test; move it"
            )
        members: dict[str, list[tuple[Item, str]]] = {split: [] for split in SPLITS}
        for name in names:
            relative = name[len(top) :]
            split = by_folder.get(name) if folders else None
            if split:
                relative = relative.split("/", 1)[1]
            key = key_of(str(PurePosixPath(relative).with_suffix("")))
            face = labels.get(name, FaceLabels())
            if not split:
                split = self._split_of(rows.get(name), face, key)
            ref = (name, canonical_json(face.to_json()).decode() if name in labels else "")
            members[split].append((Item(key, ref), name))
        for split, pairs in members.items():
            check_keys([item for item, _ in pairs], [name for _, name in pairs], f"{self.path} ({split})")
        return {split: [item for item, _ in pairs] for split, pairs in members.items()}

    def _split_of(self, row: Row | None, face: FaceLabels, key: str) -> str:
        word = split_in(row) if row else None
        if row is not None and word is not None:
            split = split_named(word)
            if split is None:
                raise DataError(f"{row.where}: split must be train, val or test, got {word!r:.40}")
            return split
        return keyed_split(face.identity or face.group or key, self.val_fraction)


def _what_is_labelled(labels: Iterable[FaceLabels]) -> str:
    """ "expr 90, valence 100, AU1 80", for the log."""
    counts: Counter[str] = Counter()
    for face in labels:
        present = ("expr", "valence", "arousal", "identity", "group")
        counts.update([name for name in present if getattr(face, name) is not None])
        counts.update(list(face.au))
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "no labels"


def _aliases(name: str) -> set[str]:
    """The ways in which a table may name a file."""
    path = PurePosixPath(name)
    return {name, str(path.with_suffix("")), path.name, path.stem}


def _shared_folder(names: Sequence[str]) -> str:
    """ "photos/" if all names begin with it and it is no split's; else ""."""
    tops = {name.split("/")[0] for name in names if "/" in name}
    if len(tops) == 1 and all("/" in name for name in names):
        top = tops.pop()
        return "" if split_named(top) else top + "/"
    return ""
