"""EmotioNet: a table of image addresses with action units, and the images as img2dataset fetched them."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from shards.files import sha256_file
from shards.labels import DataError, FaceLabels
from shards.records import SPLITS, Item, LabelSpace, SourceInfo
from shards.sources.raw import Listed, RawFace, Reader
from shards.sources.splits import check_fraction
from shards.sources.tables import LabelCodes, read_csv, split_units, unit_name, unit_state
from shards.sources.tars import list_samples, read_image, read_json

_LOG = logging.getLogger(__name__)
_URL = ("url", "image_url")


@dataclass(frozen=True)
class _Listing:
    items: Mapping[str, list[Item]]
    settings: Mapping[str, Any]


class EmotioNet(Listed):
    """Faces in the wild with action units 1, 2, 4, 5, 6, 9, 12, 17, 20, 25, 26, 43 and others.

    The table has a column `url` and columns AU1 … (1 active, 0 not, 999 unlabelled). The units of the label
    space become `au`, the others `extra.au`. An image is matched to its row by the `url` in img2dataset's
    json. Images without a row stay, unlabelled; rows without an image (dead addresses) are counted.
    """

    has_landmarks = False

    def __init__(
        self,
        path: Path,
        table: str = "",
        val_fraction: float = 0.1,
        max_unmatched: float = 0.05,
        missing: Sequence[str] = ("999",),
    ) -> None:
        """
        Args:
            path: the folder with img2dataset's tars.
            table: the csv, a path of its own or one in `path`; by default the only csv in `path`.
            val_fraction: share of the val split where there are no split folders, in [0, 1).
            max_unmatched: share of images without a row above which it is an error, in [0, 1].
            missing: codes for "not labelled".

        Raises:
            DataError: no such folder, or not one table.
        """
        check_fraction(val_fraction)
        if not path.is_dir():
            raise DataError(f"{path}: no such folder; it should hold img2dataset's tars and the csv")
        self.path, self.val_fraction, self.max_unmatched = path, val_fraction, max_unmatched
        self.codes = LabelCodes(missing=tuple(str(code) for code in missing))
        self.table = self._find_table(table)

    @property
    def info(self) -> SourceInfo:
        return SourceInfo(
            "EmotioNet",
            "EmotioNet agreement: research only; images belong to their owners",
            label_space=LabelSpace(expr=(), va=False),
            settings=self._listing.settings,
        )

    def splits(self) -> Sequence[str]:
        return [split for split in SPLITS if self._listing.items[split]]

    def items(self, split: str) -> Sequence[Item]:
        return self._listing.items.get(split, [])

    def open_reader(self) -> Reader:
        def read(item: Item) -> RawFace:
            sample, url, units = item.ref
            known, others = split_units(_units_of(units))
            extra: dict[str, Any] = {"url": url} if url else {}
            if others:
                extra["au"] = others
            return RawFace(read_image(sample), FaceLabels(au=known, extra=extra))

        return read

    def _find_table(self, table: str) -> Path:
        if table:
            for path in (Path(table), self.path / table):
                if path.is_file():
                    break
            else:
                raise DataError(f"table={table}: no such file, neither by itself nor in {self.path}")
        else:
            found = sorted(self.path.glob("*.csv"))
            if len(found) != 1:
                sheets = ", ".join(file.name for file in sorted(self.path.glob("*.xls*")))
                raise DataError(
                    f"{self.path}: {len(found)} csv files; give the one with addresses and units as table=…"
                    + (f" (save {sheets} as csv first)" if sheets and not found else "")
                )
            path = found[0]
        if path.suffix.lower() in (".xlsx", ".xls"):
            raise DataError(f"{path}: spreadsheets are not read; save it as csv (UTF-8)")
        return path

    @cached_property
    def _listing(self) -> _Listing:
        rows, repeated = self._rows()
        listed, counts = list_samples(self.path, self.val_fraction, prefix_keys=False)
        items: dict[str, list[Item]] = {split: [] for split in SPLITS}
        matched: set[str] = set()
        bare = 0
        for split, members in listed.items():
            for item in members:
                url = _url(item)
                row = rows.get(url)
                bare += row is None
                if row is not None:
                    matched.add(url)
                items[split].append(Item(item.key, (item.ref, url, row[1] if row else "")))
        total = sum(len(members) for members in items.values())
        counts |= {
            "rows": len(rows),
            "repeated_rows": repeated,
            "rows_without_image": len(rows) - len(matched),
            "images_without_row": bare,
        }
        _LOG.info("%s: %s", self.path, counts)
        if not matched or bare > self.max_unmatched * total:
            raise DataError(
                f"{self.table}: {bare} of {total} images have a url that is not in the table; check that "
                f"table and tars belong together, or allow it with max_unmatched (now {self.max_unmatched})"
            )
        settings = {
            "source": "emotionet",
            "val_fraction": self.val_fraction,
            "table": sha256_file(self.table),
            "missing": self.codes.missing,
            **counts,
        }
        return _Listing(items, settings)

    def _rows(self) -> tuple[dict[str, tuple[str, str]], int]:
        """Address -> (line, labelled units as `_units_of` reads them), and how many rows only repeat another.

        Raises:
            DataError: no column of addresses or units, a bad value, or two rows that contradict each other.
        """
        rows: dict[str, tuple[str, str]] = {}
        repeated = 0
        has_units = False
        for row in read_csv(self.table.read_bytes(), self.table.name):
            url = next((cell for name, cell in row.cells.items() if name.lower() in _URL), "")
            if not url:
                raise DataError(f"{row.where}: no address; the table needs a header with a column `url`")
            units = []
            for column, cell in row.cells.items():
                unit = unit_name(column)
                if unit is not None:
                    has_units = True
                    state = unit_state(cell, self.codes, f"{row.where}: {unit}")
                    if state is not None:
                        units.append(f"{unit}={state}")
            text = sys.intern(" ".join(units))  # millions of rows, few of which differ
            if url in rows:
                if rows[url][1] != text:
                    raise DataError(
                        f"{row.where}: contradicts {rows[url][0]} on {url!r:.100}; remove one of them"
                    )
                repeated += 1
            rows[url] = (row.where, text)
        if not has_units:
            raise DataError(f"{self.table}: no columns of action units (AU1, AU2, …)")
        return rows, repeated


def _units_of(text: str) -> dict[str, int]:
    """ "AU1=1 AU2=0" -> {"AU1": 1, "AU2": 0}."""
    return {unit: int(state) for unit, _, state in (part.partition("=") for part in text.split())}


def _url(item: Item) -> str:
    """The image's address; empty (and so counted as without a row) where its json is absent or damaged."""
    try:
        url = read_json(item.ref).get("url")
    except DataError:
        return ""
    return url.strip() if isinstance(url, str) else ""
