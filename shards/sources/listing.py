"""What sources of labelled pictures share: finding their lists, and an account of every row in them."""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from shards.labels import DataError, FaceLabels
from shards.records import SPLITS, Item, canonical_json
from shards.sources.pictures import Pictures, is_picture, open_pictures
from shards.sources.raw import Listed, RawFace, Reader
from shards.sources.tables import text_of

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Listing:
    """Items by split, and what the manifest says of how they were found."""

    items: Mapping[str, Sequence[Item]]
    settings: Mapping[str, Any]


class ListedSplits(Listed):
    """A raw source whose `_listing` is a `Listing`."""

    @cached_property
    def _listing(self) -> Listing:
        raise NotImplementedError

    def splits(self) -> Sequence[str]:
        return [split for split in SPLITS if self._listing.items.get(split)]

    def items(self, split: str) -> Sequence[Item]:
        return self._listing.items.get(split, [])


class LabelledPicture(NamedTuple):
    """An item's `ref`: small, for a source lists hundreds of thousands.

    Attributes:
        place: which of the source's folders or zips.
        name: of the picture in it.
        labels: JSON of its `FaceLabels`.
        landmarks: (5, 2) float32 as bytes; empty if there are none.
    """

    place: str
    name: str
    labels: str
    landmarks: bytes = b""


def labelled_item(
    key: str, place: str, name: str, labels: FaceLabels, landmarks: np.ndarray[Any, Any] | None = None
) -> Item:
    """An item that `labelled_reader` reads; `landmarks` (5, 2)."""
    points = b"" if landmarks is None else landmarks.astype(np.float32).tobytes()
    return Item(key, LabelledPicture(place, name, canonical_json(labels.to_json()).decode(), points))


def labelled_reader(places: Mapping[str, Pictures]) -> Reader:
    """Reads items whose `ref` is a `LabelledPicture`."""

    def read(item: Item) -> RawFace:
        ref: LabelledPicture = item.ref
        points = np.frombuffer(ref.landmarks, np.float32).reshape(5, 2) if ref.landmarks else None
        labels = FaceLabels.from_json(json.loads(ref.labels))
        return RawFace(places[ref.place].read(ref.name), labels, points)

    return read


class Ledger:
    """What became of each row of one split: used, dropped by the data set's own rules, or unusable."""

    def __init__(self, name: str) -> None:
        """
        Args:
            name: of the list or folder, for messages.
        """
        self.name = name
        self.num_used = 0
        self.labels: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self.unusable: Counter[str] = Counter()
        self._first: dict[str, str] = {}

    @property
    def num_rows(self) -> int:
        return self.num_used + self.dropped.total() + self.unusable.total()

    def use(self, labels: FaceLabels) -> None:
        """A row that became an item."""
        self.num_used += 1
        present = [name for name in ("valence", "arousal") if getattr(labels, name) is not None]
        present += [f"expr {labels.expr}"] if labels.expr is not None else []
        for name, state in labels.au.items():
            present += [name, f"{name} active"] if state else [name]
        self.labels.update(present or ["none"])

    def use_many(self, count: int, labels: Mapping[str, int]) -> None:
        """Rows that were used, and how many of them carry each label."""
        self.num_used += count
        self.labels.update({name: number for name, number in labels.items() if number})

    def drop(self, reason: str, count: int = 1) -> None:
        """Rows that the data set's rules leave out; any number of them is fine."""
        if count:
            self.dropped[reason] += count

    def refuse(self, reason: str, example: str) -> None:
        """A row that should have been usable.

        Args:
            reason: the same for all of a kind ("no image").
            example: the line and what is wrong there.
        """
        self.unusable[reason] += 1
        self._first.setdefault(reason, example)

    def close(self, max_unused: float) -> dict[str, Any]:
        """The counts, as plain JSON values.

        Args:
            max_unused: share of unusable rows above which it is an error, in [0, 1].

        Raises:
            DataError: too many.
        """
        count, total = self.unusable.total(), self.num_rows
        kinds = "; ".join(
            f"{number} {reason} (as {self._first[reason]})" for reason, number in self.unusable.items()
        )
        if count > max_unused * total:
            enough = math.ceil(1000 * count / total) / 1000
            raise DataError(
                f"{self.name}: {count} of {total} rows cannot be used: {kinds}. Fetch what is missing or "
                f"mend the list, or allow it with max_unused={enough} (now {max_unused:g})"
            )
        _LOG.info(
            "%s: %d of %d rows used%s; with %s",
            self.name,
            self.num_used,
            total,
            "".join(f", {number} dropped ({reason})" for reason, number in sorted(self.dropped.items())),
            ", ".join(f"{name} {number}" for name, number in sorted(self.labels.items())) or "no labels",
        )
        if count:
            _LOG.warning("%s: %d of %d rows are not used: %s", self.name, count, total, kinds)
        return {
            "rows": total,
            "used": self.num_used,
            "dropped": dict(sorted(self.dropped.items())),
            "unusable": dict(sorted(self.unusable.items())),
            "labels": dict(sorted(self.labels.items())),
        }


def check_total(
    name: str, count: int, known: int, tolerance: float, allow_partial: bool, what: str = "faces"
) -> None:
    """Compares a split with the size it is known to have.

    Args:
        name: of the list or folder, for messages.
        count: rows that are there.
        known: rows there should be.
        tolerance: how exactly that is known, as a fraction.
        allow_partial: accept any count.
        what: is counted.

    Raises:
        DataError: too far off; says both numbers.
    """
    if not allow_partial and abs(count - known) > tolerance * known:
        raise DataError(
            f"{name}: {count} {what} instead of {'about ' if tolerance else ''}{known}; fetch it again, or "
            "use what is there with allow_partial=true"
        )


def check_share(max_unused: float) -> None:
    """
    Raises:
        DataError: not in [0, 1].
    """
    if not 0 <= max_unused <= 1:
        raise DataError(f"max_unused={max_unused}: must be from 0 to 1")


def check_folder(path: Path, layout: str) -> None:
    """
    Raises:
        DataError: no folder; says what it should hold.
    """
    if not path.is_dir():
        raise DataError(f"{path}: no such folder; {layout}")


def find_file(root: Path, patterns: Sequence[str], option: str = "", value: str = "") -> Path | None:
    """A list's file in `root` or one folder below.

    Args:
        root: of the data set.
        patterns: names with wildcards, first come first.
        option: the source's option that names the file, if it has one.
        value: of that option: a path of its own or one in `root`; "" looks for `patterns`.

    Returns:
        The file; None where nothing fits.

    Raises:
        DataError: no file `value`, or several files fit a pattern.
    """
    if value:
        for path in (Path(value).expanduser(), root / value):
            if path.is_file():
                return path
        raise DataError(f"{option}={value}: no such file, neither by itself nor in {root}")
    for pattern in patterns:
        found = sorted(path for start in (pattern, f"*/{pattern}") for path in root.glob(start))
        found = [path for path in found if path.is_file()]
        if len(found) > 1:
            names = " and ".join(str(path.relative_to(root)) for path in found[:2])
            remedy = f"give the one with {option}=…" if option else "remove one of them"
            raise DataError(f"{root}: {names} could both be the list; {remedy}")
        if found:
            return found[0]
    return None


def find_pictures(root: Path, names: Sequence[str], option: str = "", value: str = "") -> Pictures | None:
    """A folder or zip of pictures in `root`.

    Args:
        root: of the data set.
        names: of folders, first come first; each may also be a zip NAME.zip.
        option: the source's option that names it, if it has one.
        value: of that option: a path of its own or one in `root`; "" looks for `names`.

    Returns:
        The pictures; None where there is nothing of these names.

    Raises:
        DataError: nothing at `value`, or a zip that cannot be trusted.
    """
    if value:
        for path in (Path(value).expanduser(), root / value):
            if path.exists():
                return open_pictures(path)
        raise DataError(f"{option}={value}: no such folder or zip, neither by itself nor in {root}")
    for name in names:
        for path in (root / name, root / f"{name}.zip"):
            if path.exists():
                return open_pictures(path)
    return None


def by_official_name(pictures: Pictures, wanted: Collection[str]) -> dict[str, str]:
    """Official name -> name in `pictures`, whatever folders lie above it; those not there are left out.

    Raises:
        DataError: two pictures answer to one official name.
    """
    found: dict[str, str] = {}
    depths = sorted({name.count("/") + 1 for name in wanted})
    for name in pictures.names():
        parts = name.split("/")
        for depth in depths:
            tail = "/".join(parts[-depth:])
            if tail in wanted and found.setdefault(tail, name) != name:
                raise DataError(
                    f"{pictures.path}: {found[tail]!r:.120} and {name!r:.120} could both be {tail!r:.80}; "
                    "remove one of them, or give the list with folders"
                )
    return found


def read_list(path: Path) -> Iterator[tuple[str, list[str]]]:
    """(file and line, fields) of each line of a comma-separated list, blanks stripped; a header comes too.

    Raises:
        DataError: not UTF-8.
    """
    for number, line in enumerate(text_of(path.read_bytes(), path.name).splitlines(), start=1):
        fields = [field.strip() for field in line.split(",")]
        if any(fields):
            yield f"{path.name} line {number}", fields


def without_header(lines: Iterable[tuple[str, list[str]]]) -> Iterator[tuple[str, list[str]]]:
    """The lines less the first if that names no picture; a name's `\\` becomes `/`."""
    for number, (where, fields) in enumerate(lines):
        if number or is_picture(fields[0]):
            yield where, [fields[0].replace("\\", "/").removeprefix("./"), *fields[1:]]
