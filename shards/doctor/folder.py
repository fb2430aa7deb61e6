"""A split's folder: its manifest, its quarantine list, and what else lies there."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from shards.doctor.findings import Notebook, SplitRecord
from shards.labels import DataError
from shards.manifest import NAME, Manifest, load_manifest
from shards.quarantine import QUARANTINE
from shards.records import fingerprint
from shards.shardjob import PARTS

_MANY_QUARANTINED = 0.2


def find_splits(folder: Path) -> list[SplitRecord]:
    """The splits of one set, finished or not.

    Raises:
        DataError: no such folder, or no shards in it.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give a shard set, as in SHARDS=data/celeba")
    try:
        inside = sorted(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())
        chosen = [folder] if _holds_shards(folder) else [path for path in inside if _holds_shards(path)]
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed ({error.strerror})") from error
    if not chosen:
        raise DataError(
            f"{folder}: no shards there (looked for {NAME} and .tar files, there and one level down); "
            "build them with `make shards SOURCE=… SRC=… OUT=…`"
        )
    return [SplitRecord(str(path), path, path.name, folder) for path in chosen]


def _holds_shards(folder: Path) -> bool:
    return any(path.name in (NAME, PARTS) or path.suffix in (".tar", ".idx") for path in folder.iterdir())


def examine_folder(record: SplitRecord, book: Notebook) -> None:
    """Reads the manifest into `record` and checks what lies in the folder, but for the shards' content."""
    try:
        record.manifest = load_manifest(record.folder)
    except (DataError, OSError, AttributeError) as error:
        # The message of a DataError says what to do; indexing over a build's manifest is none of it.
        book.add("error", str(error), "restore it, or run the build again", str(record.folder / NAME))
    if record.manifest is not None:
        record.split = record.manifest.split
        _check_manifest(record.manifest, record, book)
        _check_quarantine(record.manifest, record, book)
    _check_listing(record, book)


def _check_manifest(manifest: Manifest, record: SplitRecord, book: Notebook) -> None:
    where = str(record.folder / NAME)
    if record.folder != record.set_folder and manifest.split != record.folder.name:
        text = f"says it is split {manifest.split!r:.80}, but lies in {record.folder.name}"
        book.add("error", text, "put each split into the folder of its name", where)
    if fingerprint(manifest.alignment) != manifest.alignment_hash:
        text = "the alignment recipe was changed after the build (its hash differs)"
        book.add("error", text, "restore the manifest or build the set again", where)
    for name in ("tar", "index", "tar_sha256"):
        values = Counter(getattr(entry, name) for entry in manifest.shards)
        for value, count in values.items():
            if count > 1:
                text = f"lists {name} {value:.80} {count} times: its samples count {count} times"
                book.add("error", text, "build the set again", where)
    records = manifest.num_samples + manifest.num_quarantined
    if records < manifest.num_items:
        text = (
            f"{manifest.num_items} raw samples, but only {manifest.num_samples} used + "
            f"{manifest.num_quarantined} left out: {manifest.num_items - records} are unaccounted for"
        )
        book.add("error", text, "build the set again", where)
    elif records > manifest.num_items:
        text = f"{records - manifest.num_items} more samples than raw images: some hold several faces"
        book.add("note", text, "", where)
    if not manifest.licence.strip() or manifest.licence.strip().lower() == "unknown":
        remedy = "find out what may be done with the data, and build or index it with licence=…"
        book.add("note", "no licence is stated", remedy, where)


def _check_quarantine(manifest: Manifest, record: SplitRecord, book: Notebook) -> None:
    path = record.folder / QUARANTINE
    remedy = "restore the file or build the set again"
    try:
        with path.open(newline="", encoding="utf-8") as file:
            header, *rows = csv.reader(file)
    except FileNotFoundError:
        book.add("error", "missing: nothing says what was left out", remedy, str(path))
        return
    except (OSError, ValueError, csv.Error) as error:
        book.add("error", f"cannot be read ({error})", remedy, str(path))
        return
    if header != ["key", "reason"] or any(len(row) != 2 for row in rows):
        book.add("error", "not a list of key,reason", remedy, str(path))
        return
    record.quarantine = Counter(reason for _, reason in rows)
    if len(rows) != manifest.num_quarantined:
        text = f"{len(rows)} rows, the manifest says {manifest.num_quarantined} were left out"
        book.add("error", text, remedy, str(path))
    if len(rows) > _MANY_QUARANTINED * manifest.num_items:
        text = f"{len(rows)} of {manifest.num_items} raw samples were left out"
        book.add("warning", text, "read the reasons: the set may be a biased part of its source", str(path))


def _check_listing(record: SplitRecord, book: Notebook) -> None:
    """Files that no one listed, and what a build left behind."""
    shards = record.manifest.shards if record.manifest is not None else ()
    listed = {NAME, QUARANTINE, *(entry.tar for entry in shards), *(entry.index for entry in shards)}
    for path in _listing(record.folder, book):
        if path.name in listed or path.name.startswith(".lock"):
            continue
        if path.name == PARTS:
            what, remedy = "unfinished build", "run the same build again: it goes on where it stopped"
            if record.manifest is not None:
                what, remedy = (
                    "left by a build that was stopped",
                    "remove it: the manifest is whole without it",
                )
            book.add("warning", what, remedy, str(path))
        elif path.name.endswith(".tmp"):
            text = "temporary file of a write that was stopped (or goes on now)"
            book.add("warning", text, "remove it, if no build is at work there", str(path))
        elif path.suffix in (".tar", ".idx") and record.manifest is not None:
            text = "not in the manifest: training does not read it, a reader that takes *.tar would"
            indexed = record.manifest.is_indexed
            remedy = "remove it, or index the folder again" if indexed else "remove it"
            book.add("warning", text, remedy, str(path))
        elif path.is_dir() and record.folder == record.set_folder and (path / NAME).exists():
            book.add("warning", "a split inside a split: it is not read", "move it out", str(path))
        elif record.manifest is not None:
            book.add("note", "a file that is no part of the set", "", str(path))


def _listing(folder: Path, book: Notebook) -> Iterator[Path]:
    try:
        yield from sorted(folder.iterdir())
    except OSError as error:
        book.add("error", f"cannot be listed ({error.strerror})", "check its permissions", str(folder))


def loose_tars(folder: Path) -> Sequence[Path]:
    """The tars of a folder without a usable manifest."""
    return sorted(path for path in folder.glob("*.tar") if path.is_file())
