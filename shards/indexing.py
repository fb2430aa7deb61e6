"""WebDataset tars from anywhere as a shard set, where they lie: nothing is copied."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from shards.build import write_manifest
from shards.files import sha256_file, write_atomic
from shards.index import index_bytes
from shards.labels import DataError
from shards.manifest import Manifest, ShardEntry
from shards.tars import scan_tar


def index_tars(tars: Sequence[Path], out: Path, split: str, name: str, licence: str) -> Manifest:
    """Makes a shard set of WebDataset tars from anywhere, where they lie: an index beside each, and a
    manifest.

    Args:
        tars: plain tars that lie in `out`.
        out: their folder.
        split: what the set is to be used for.
        name, licence: of the data set.

    Raises:
        DataError: no tars, a tar that cannot be read (see `scan_tar`), or a key in two tars.
    """
    if not tars:
        raise DataError(f"{out}: no .tar in it")
    entries: list[ShardEntry] = []
    seen: dict[str, str] = {}
    for path in tqdm(sorted(tars), desc=f"index {out}", unit="tar"):
        if path.parent != out:
            raise DataError(f"{path}: the tars of a shard set lie in its folder {out}")
        scanned = scan_tar(path)
        for row in scanned.rows:
            if row.key in seen:
                raise DataError(
                    f"{path}: sample {row.key!r} is also in {seen[row.key]}: keys must be unique in a set"
                )
            seen[row.key] = path.name
        data = index_bytes(path.name, scanned.size, scanned.sha256, scanned.rows)
        write_atomic(path.with_suffix(".idx"), data)
        digest = sha256_file(path.with_suffix(".idx"))
        entries.append(
            ShardEntry(path.name, scanned.size, scanned.sha256, path.stem + ".idx", digest, len(scanned.rows))
        )
    description = {
        "split": split,
        "num_items": len(seen),
        "info": {
            "name": name,
            "licence": licence,
            "kind": "faces",
            "rendered": False,
            "label_space": {"expr": [], "au": [], "va": False},
            "alignment": {},
        },
    }
    return write_manifest(out, description, entries, [], 1.0)
