"""Samples that are damaged, found by reading a whole set: what is to be left out of it, counted and limited.

A training stops at a damaged sample. Where it is told to go without such samples they are looked for before
it begins, not on the way: then what is left is one data set, whose order, epochs and steps are as exact as
any other's, and which is the same after every resume.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from shards.bar import open_bar
from shards.clips import decode_clip_labels
from shards.labels import DataError
from shards.manifest import load_manifest
from shards.shardset import LeftOut, RawSample, ShardSet, whole_shards
from shards.stream import decode_image, decode_labels


def find_damaged(folders: Sequence[Path], quiet: bool = False) -> list[LeftOut]:
    """Reads and decodes every sample of split folders.

    Shards without a usable index are left out as a whole, as it is not known what is in them. Of a tar that
    is cut, or of which some bytes are changed, only the samples that this touches.

    Args:
        folders: split folders, each with a manifest.
        quiet: no progress bar.

    Returns:
        What cannot be used, in order; nothing where all is well.

    Raises:
        DataError: a manifest cannot be read, sets that cannot be joined, or nothing is left.
    """
    found = whole_shards(folders)
    shards = ShardSet(folders, found, check_sizes=False)
    check = _check_clip if shards.manifests[0].kind == "clips" else _check_face
    for number in open_bar(range(len(shards)), desc="look for damage", unit="sample", disable=quiet):
        reason = _reason(shards, number, check)
        if reason:
            folder, tar = shards.place(number)
            found.append(LeftOut(folder, tar, shards.key(number), 1, reason))
    return found


def check_limit(left_out: Sequence[LeftOut], folders: Sequence[Path], limit: float) -> None:
    """
    Raises:
        DataError: a larger share than `limit` of the samples is left out.
    """
    total = sum(load_manifest(folder).num_samples for folder in folders)
    count = sum(part.count for part in left_out)
    if count > limit * total:
        raise DataError(
            f"{', '.join(map(str, folders))}: {count} of {total} samples are damaged, more than "
            f"data.max_damaged={limit:g} of them (the first: {left_out[0].reason:.300}); restore the tars, "
            "or allow it"
        )


def to_json(left_out: Sequence[LeftOut]) -> list[dict[str, Any]]:
    """Plain JSON values; read back by `from_json`."""
    return [asdict(part) for part in left_out]


def from_json(data: Any, where: str) -> list[LeftOut]:
    """
    Raises:
        DataError: not what `to_json` makes.
    """
    types = {"folder": int, "tar": str, "key": str, "count": int, "reason": str}
    if not isinstance(data, list) or not all(
        isinstance(part, dict)
        and part.keys() == types.keys()
        and all(type(part[name]) is kind for name, kind in types.items())
        for part in data
    ):
        raise DataError(f"{where}: no list of damaged samples; remove it to have them looked for again")
    return [LeftOut(**part) for part in data]


def _reason(shards: ShardSet, number: int, check: Callable[[RawSample], Any]) -> str:
    """Why a sample cannot be used; "" if it can."""
    try:
        check(shards.read(number))
    except DataError as error:
        return str(error)
    return ""


def _check_face(raw: RawSample) -> None:
    decode_image(raw)
    decode_labels(raw)


def _check_clip(raw: RawSample) -> None:
    """Frames are known by their checksums alone: to decode all would take hours, and few are seen."""
    decode_clip_labels(raw)
