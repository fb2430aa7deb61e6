"""The manifest of one split: written last, it says that the shards are whole and what they hold."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from shards.files import write_atomic
from shards.labels import DataError
from shards.records import LabelSpace, fingerprint

FORMAT = "faceprior-shards"
VERSION = 1
NAME = "manifest.json"
INDEXED: Mapping[str, Any] = {"source": "index"}
"""Settings that mark a set of tars from elsewhere, indexed where they lie: no build of ours made it."""


@dataclass(frozen=True)
class ShardEntry:
    """One tar and its index, with sizes in bytes and hex sha256 digests."""

    tar: str
    tar_size: int
    tar_sha256: str
    index: str
    index_sha256: str
    num_samples: int


@dataclass(frozen=True)
class Manifest:
    """What one split holds.

    Attributes:
        split: "train", "val" or "test".
        kind: "faces" or "clips".
        source, licence: the data set and its terms.
        rendered: True for rendered faces.
        label_space: names of the labels its samples may carry.
        alignment, alignment_hash: the recipe, and its sha256.
        num_samples: samples in all shards.
        num_items, num_quarantined: raw samples read and left out (reasons: quarantine.csv beside it).
        shards: in order; the global sample number counts through them.
        build: what the build was made from (settings of the source, version), to refuse a mixture.
    """

    split: str
    kind: str
    source: str
    licence: str
    rendered: bool
    label_space: LabelSpace
    alignment: Mapping[str, Any]
    alignment_hash: str
    num_samples: int
    num_items: int
    num_quarantined: int
    shards: tuple[ShardEntry, ...]
    build: Mapping[str, Any] = field(default_factory=dict)

    @property
    def hash(self) -> str:
        """sha256 of the canonical JSON: names this very data."""
        return fingerprint(self.to_json())

    @property
    def is_indexed(self) -> bool:
        """True if the tars came from elsewhere and were indexed where they lie."""
        settings = self.build.get("settings", {})
        return isinstance(settings, dict) and settings.get("source") == INDEXED["source"]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, format and version first."""
        return {"format": FORMAT, "version": VERSION, **asdict(self)}


def save_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes `folder/manifest.json`, whole or not at all, with a checksum of what it says."""
    data = {**manifest.to_json(), "checksum": manifest.hash}
    write_atomic(folder / NAME, json.dumps(data, indent=1).encode())


def load_manifest(folder: Path) -> Manifest:
    """Reads `folder/manifest.json`.

    Raises:
        DataError: no manifest, not JSON, of another version, changed since it was written (those written
            before there were checksums have none), or a field missing or of the wrong type.
    """
    path = folder / NAME
    remedy = (
        "restore it from a copy or build the set again; of tars from elsewhere remove it and run "
        f"`faceprior shards index {folder}`"
    )
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(
            f"{folder}: no {NAME}, so no finished shard set; finish the build by running it again, or index "
            f"tars from elsewhere with `faceprior shards index {folder}`"
        ) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON ({error}); {remedy}") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise DataError(f"{path}: not a manifest of {FORMAT}; {remedy}")
    if data.get("version") != VERSION:
        raise DataError(
            f"{path}: format version {data.get('version')!r}, this program reads {VERSION}; {remedy}"
        )
    checksum = data.pop("checksum", None)
    try:
        if checksum is not None and checksum != fingerprint(data):
            raise ValueError("changed since it was written; if on purpose, remove its line `checksum`")
        return _parse(data)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: damaged ({type(error).__name__}: {error}); {remedy}") from error


def _parse(data: Mapping[str, Any]) -> Manifest:
    shards = tuple(
        ShardEntry(
            tar=_name(entry["tar"]),
            tar_size=_count(entry["tar_size"]),
            tar_sha256=_text(entry["tar_sha256"]),
            index=_name(entry["index"]),
            index_sha256=_text(entry["index_sha256"]),
            num_samples=_count(entry["num_samples"]),
        )
        for entry in data["shards"]
    )
    space = data["label_space"]
    manifest = Manifest(
        split=_text(data["split"]),
        kind=_text(data["kind"]),
        source=_text(data["source"]),
        licence=_text(data["licence"]),
        rendered=bool(data["rendered"]),
        label_space=LabelSpace(
            tuple(_text(name) for name in space["expr"]),
            tuple(_text(name) for name in space["au"]),
            bool(space["va"]),
        ),
        alignment=dict(data["alignment"]),
        alignment_hash=_text(data["alignment_hash"]),
        num_samples=_count(data["num_samples"]),
        num_items=_count(data["num_items"]),
        num_quarantined=_count(data["num_quarantined"]),
        shards=shards,
        build=dict(data["build"]),
    )
    if sum(entry.num_samples for entry in shards) != manifest.num_samples:
        raise ValueError("num_samples is not the sum over the shards")
    return manifest


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"text expected, got {value!r:.80}")
    return value


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise TypeError(f"count expected, got {value!r:.80}")
    return value


def _name(value: Any) -> str:
    """A file name beside the manifest: never a path that leads elsewhere."""
    name = _text(value)
    if not name or Path(name).name != name or "\\" in name or "\0" in name:
        raise ValueError(f"not a file name: {name!r:.80}")
    return name
