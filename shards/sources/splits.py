"""Which split a face belongs to, where the data set does not say."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence

from shards.keyed import mix, stream_id
from shards.labels import DataError
from shards.records import Item, hashed_key, safe_key

_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


def split_named(word: str) -> str | None:
    """The split that a folder's name or a cell means, in any case; None if it means none."""
    return _NAMES.get(word.lower())


def keyed_split(text: str, val_fraction: float) -> str:
    """ "train" or "val" by a hash of `text`: the same on every machine, whatever else the data set holds.

    Args:
        text: who it is where that is known (so that no person is in both), else the sample's key.
        val_fraction: share of "val", in [0, 1).
    """
    return "val" if _mixed(text, "split") < val_fraction * 2**64 else "train"


def fold_split(text: str, num_folds: int, fold: int) -> str:
    """ "val" for one of `num_folds` parts, "train" for the others: the same on every machine.

    Args:
        text: who it is: no person is in two parts.
        num_folds: 2 or more.
        fold: which part is held out, from 1.
    """
    return "val" if _mixed(text, "fold") % num_folds == fold - 1 else "train"


def check_fold(num_folds: int, fold: int) -> None:
    """
    Raises:
        DataError: fewer than 2 folds, or no such fold.
    """
    if num_folds < 2:
        raise DataError(f"num_folds={num_folds}: must be 2 or more")
    if not 1 <= fold <= num_folds:
        raise DataError(f"fold={fold}: must be from 1 to num_folds={num_folds}")


def _mixed(text: str, stream: str) -> int:
    """A number below 2**64 that is another for each text and purpose."""
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    return mix(stream_id(stream), number)


def key_of(name: str) -> str:
    """A name as a key; where the name has letters that keys cannot have, a hash of it keeps keys apart."""
    return safe_key(name) if name.isascii() else hashed_key(name)


def check_fraction(val_fraction: float) -> None:
    """
    Raises:
        DataError: not in [0, 1).
    """
    if not 0 <= val_fraction < 1:
        raise DataError(f"val_fraction={val_fraction}: must be from 0 to below 1")


def check_keys(items: Sequence[Item], names: Iterable[str], where: str) -> None:
    """
    Raises:
        DataError: two files have the same key; names both.
    """
    twice = {key for key, count in Counter(item.key for item in items).items() if count > 1}
    if twice:
        key = min(twice)
        files = [name for item, name in zip(items, names) if item.key == key]
        raise DataError(
            f"{where}: {files[0]!r} and {files[1]!r} have the same key {key!r} "
            f"({len(twice)} such keys); rename one of them"
        )
