"""The records that pass between a source, the build and the stream.

Source.items(split) -> Item … -> Maker(items) -> Encoded | Rejected … -> tar shards -> FaceSample … -> Batch

Of clips it is ClipSample … -> ClipBatch in the end.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from shards.labels import AU12, EXPR8, DataError

SPLITS = ("train", "val", "test")

MAX_KEY = 80  # a tar's header has room for 100, and a member adds up to `.thermal.0000.png`


@dataclass(frozen=True)
class LabelSpace:
    """Which labels a shard set may carry, and the order of their names."""

    expr: tuple[str, ...] = EXPR8
    au: tuple[str, ...] = AU12
    va: bool = True


@dataclass(frozen=True)
class SourceInfo:
    """What the manifest says of where the samples come from.

    Attributes:
        name: the data set.
        licence: its terms, one line.
        kind: "faces" or "clips".
        rendered: True for faces that were rendered, which every report then says.
        label_space: which labels its samples may carry.
        alignment: the alignment recipe, plain JSON values (size, margin, template, detector).
        settings: what else decides the bytes that come out (seed, counts): part of the build's fingerprint.
    """

    name: str
    licence: str
    kind: str = "faces"
    rendered: bool = False
    label_space: LabelSpace = field(default_factory=LabelSpace)
    alignment: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def unit(self) -> str:
        """What a progress bar counts."""
        return "clip" if self.kind == "clips" else "img"


@dataclass(frozen=True)
class Item:
    """One raw sample before it is read. Picklable and small: a source lists millions.

    Attributes:
        key: unique in the split; letters, digits, `-` and `_` only (see `safe_key`).
        ref: what the source's maker needs to find it (a path, a row, a number).
    """

    key: str
    ref: Any = None


@dataclass(frozen=True)
class Encoded:
    """One finished sample: the bytes of each member, by extension, in the order they are written.

    Attributes:
        key: the sample's key; a maker that finds several faces in one item adds `-1`, `-2`, ….
        members: extension ("jpg", "json", "depth.0000.png") -> bytes.
        expr: index of its expression class in the label space, −1 if missing (for weighted sampling).
        counts: what became of its frames, for the sums in the manifest; empty for faces.
    """

    key: str
    members: Mapping[str, bytes]
    expr: int = -1
    counts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Rejected:
    """One item that was not used, and why: goes to the quarantine list. `counts`: as in `Encoded`."""

    key: str
    reason: str
    counts: Mapping[str, int] = field(default_factory=dict)


Maker = Callable[[Sequence[Item]], Iterable[Encoded | Rejected]]


class Source(Protocol):
    """Raw data in one layout. Picklable: workers get a copy and call `open_maker` once."""

    @property
    def info(self) -> SourceInfo: ...

    def splits(self) -> Sequence[str]:
        """The splits it has, of "train", "val", "test"."""
        ...

    def items(self, split: str) -> Sequence[Item]:
        """All items of one split, in a fixed order, with unique keys."""
        ...

    def open_maker(self) -> Maker:
        """What turns a run of items into samples, in order; at least one record for every item."""
        ...


def safe_key(text: str) -> str:
    """`text` as a key: every character but ASCII letters, digits, `-` and `_` becomes `_`.

    Keys name tar members, where webdataset ends them at the first dot and `/` makes folders, and names are
    short: a longer text is cut, and ends in a hash of the whole.

    Raises:
        DataError: nothing is left of it.
    """
    key = _cleaned(text)
    if not key.strip("_"):
        raise DataError(f"no usable key in {text!r:.200}: a name needs at least one letter or digit")
    return key if len(key) <= MAX_KEY else hashed_key(text)


def hashed_key(text: str) -> str:
    """`text` as a key that ends in a hash of it: names that look alike stay apart."""
    mark = hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:12]
    return f"{_cleaned(text)[: MAX_KEY - len(mark) - 1]}-{mark}"


def _cleaned(text: str) -> str:
    """`text` with `_` for every character that a key cannot have."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "_" for c in text)


def canonical_json(value: Any) -> bytes:
    """JSON bytes that depend on the value alone: sorted keys, no spaces, UTF-8.

    Raises:
        DataError: text with half of a surrogate pair, which no UTF-8 has.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        near = text[max(0, error.start - 30) : error.end + 30]
        raise DataError(f"text that is not Unicode, in {near!r}: mend it") from None


def fingerprint(value: Any) -> str:
    """sha256 of `canonical_json(value)`, in hex."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def info_to_json(info: SourceInfo) -> dict[str, Any]:
    """`info` as plain JSON values."""
    return asdict(info)


def each(make_one: Callable[[Item], Encoded | Rejected]) -> Maker:
    """A maker from a function of one item."""

    def make(items: Sequence[Item]) -> Iterator[Encoded | Rejected]:
        for item in items:
            yield make_one(item)

    return make
