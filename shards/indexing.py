"""WebDataset tars as a shard set where they lie, nothing copied; and lost indexes of a build made anew.

Tars of clips are known by their members' names (see `shards.frames`).
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

from shards.bar import open_bar
from shards.build import write_manifest
from shards.clips import decode_clip_labels
from shards.files import write_atomic
from shards.frames import parse_frame
from shards.index import IndexRow, index_bytes, parse_index
from shards.labels import AU12, EXPR8, ClipLabels, DataError, FaceLabels
from shards.manifest import INDEXED, NAME, Manifest, ShardEntry, load_manifest, save_manifest
from shards.quarantine import QUARANTINE
from shards.reading import Place, TarBytes
from shards.records import LabelSpace
from shards.shardjob import PARTS
from shards.shardset import RawSample
from shards.stream import decode_labels
from shards.tars import WrittenTar, scan_tar

_LOG = logging.getLogger(__name__)
_MAX_NAMES = 1000
_MAX_JSON = 64_000_000  # bytes: the longest clip's labels have a few


def index_tars(tars: Sequence[Path], out: Path, split: str, name: str, licence: str) -> Manifest:
    """Makes a shard set of WebDataset tars from anywhere, where they lie: an index beside each, and a
    manifest. Its label space is what the samples' JSON members hold.

    Where a build of ours lies, only its indexes are made anew, from its tars: see `mend_indexes`.

    Args:
        tars: plain tars that lie in `out`.
        out: their folder.
        split: what the set is to be used for.
        name, licence: of the data set.

    Raises:
        DataError: no tars, a tar that cannot be read (see `scan_tar`), a key in two tars, both faces and
            clips, a manifest that is damaged, or what is left of a build whose manifest is missing.
    """
    if not tars:
        raise DataError(f"{out}: no .tar in it")
    if (out / NAME).exists():
        if not load_manifest(out).is_indexed:
            return mend_indexes(out)
    elif (out / PARTS).exists() or _lists_anything(out / QUARANTINE):
        raise DataError(
            f"{out}: what is left of a build without its {NAME}: run the build again, or restore the "
            f"manifest; only if neither can be done remove {PARTS} and {QUARANTINE}, and index the tars"
        )
    entries: list[ShardEntry] = []
    seen: dict[str, str] = {}
    census = _Census()
    kinds: dict[str, Path] = {}
    for path in open_bar(sorted(tars), desc=f"index {out}", unit="tar"):
        if path.parent != out:
            raise DataError(f"{path}: the tars of a shard set lie in its folder {out}")
        scanned = scan_tar(path)
        for row in scanned.rows:
            if row.key in seen:
                raise DataError(
                    f"{path}: sample {row.key!r} is also in {seen[row.key]}: keys must be unique in a set"
                )
            seen[row.key] = path.name
        kinds |= {_kind_of(row): path for row in scanned.rows}
        if len(kinds) > 1:
            raise DataError(f"{path}: holds both faces and clips, or another tar does: index them apart")
        classes = map(census.take, _read_labels(path, scanned.rows, *kinds))
        entries.append(_write_index(path, scanned, classes, path.stem + ".idx"))
    space = census.label_space(out)
    entries = [_renumber(out, entry, census.numbers(space)) for entry in entries]
    description = {
        "split": split,
        "num_items": len(seen),
        "info": {
            "name": name,
            "licence": licence,
            "kind": next(iter(kinds)),
            "rendered": census.rendered,
            "label_space": {"expr": space.expr, "au": space.au, "va": space.va},
            "alignment": {},
            "settings": {**INDEXED, "unread_labels": census.num_unread},
        },
    }
    return write_manifest(out, description, entries, [], 1.0)


def mend_indexes(out: Path) -> Manifest:
    """Makes the indexes of a build anew from its tars; all else that its manifest says stays.

    Raises:
        DataError: a manifest that cannot be read, a tar that is not the one it lists, or a label that is not
            in its label space.
    """
    manifest = load_manifest(out)
    entries = []
    for entry in open_bar(manifest.shards, desc=f"mend {out}", unit="tar"):
        tar = out / entry.tar
        if not tar.is_file():
            raise DataError(f"{tar}: missing, though the manifest lists it; restore it or rebuild the set")
        scanned = scan_tar(tar)
        if scanned.sha256 != entry.tar_sha256:
            raise DataError(
                f"{tar}: not the tar that the manifest lists (sha256 differs); restore it or rebuild the set"
            )
        found = _read_labels(tar, scanned.rows, manifest.kind)
        classes = _classes(found, manifest.label_space, f"{tar}")
        entries.append(_write_index(tar, scanned, classes, entry.index))
    mended = replace(manifest, shards=tuple(entries))
    if mended != manifest:
        save_manifest(out, mended)
    return mended


def _lists_anything(quarantine: Path) -> bool:
    return quarantine.exists() and len(quarantine.read_bytes().splitlines()) > 1


def _write_index(tar: Path, scanned: WrittenTar, classes: Iterable[int], name: str) -> ShardEntry:
    rows = [replace(row, expr=expr) for row, expr in zip(scanned.rows, classes, strict=True)]
    data = index_bytes(tar.name, scanned.size, scanned.sha256, rows)
    write_atomic(tar.with_name(name), data)
    digest = hashlib.sha256(data).hexdigest()
    return ShardEntry(tar.name, scanned.size, scanned.sha256, name, digest, len(rows))


def _renumber(out: Path, entry: ShardEntry, numbers: Mapping[int, int]) -> ShardEntry:
    """Gives the expressions of a written index their places in the label space."""
    if all(old == new for old, new in numbers.items()):
        return entry
    path = out / entry.index
    rows = parse_index(path.read_bytes(), str(path)).rows()
    scanned = WrittenTar(entry.tar_size, entry.tar_sha256, rows)
    return _write_index(out / entry.tar, scanned, (numbers.get(row.expr, -1) for row in rows), entry.index)


def _kind_of(row: IndexRow) -> str:
    """What a sample is by its members' names: "faces" or "clips"."""
    return "clips" if any(parse_frame(member[0]) is not None for member in row.members) else "faces"


def _read_labels(
    tar: Path, rows: Iterable[IndexRow], kind: str
) -> Iterator[FaceLabels | ClipLabels | DataError]:
    """The labels of each sample, or what is wrong with them."""
    decode = decode_clip_labels if kind == "clips" else decode_labels
    with closing(TarBytes(tar)) as file:
        for row in rows:
            places = [Place(*member) for member in row.members if member[0] == "json"]
            where = f"{tar}: sample {row.key}"
            try:
                if any(place.size > _MAX_JSON for place in places):
                    raise DataError(f"{where}: labels of more than {_MAX_JSON // 10**6} MB")
                members = file.read_members(places) if places else {}
                yield decode(RawSample(row.key, members, where))
            except DataError as error:
                yield error


def _classes(
    found: Iterable[FaceLabels | ClipLabels | DataError], space: LabelSpace, where: str
) -> Iterator[int]:
    """The expressions of a build's samples, numbered by its label space."""
    for labels in found:
        if isinstance(labels, DataError):
            raise labels
        if isinstance(labels, ClipLabels) or labels.expr is None or not space.expr:
            yield -1
        elif labels.expr in space.expr:
            yield space.expr.index(labels.expr)
        else:
            raise DataError(f"{where}: expression {labels.expr!r:.80} is none of {', '.join(space.expr)}")


@dataclass
class _Census:
    """Which labels the samples of a set hold.

    Attributes:
        expr: expression -> number: the known ones in their order, then others as they were met.
        met: expressions that occur; au: units that are labelled.
        va: True if any valence or arousal is labelled.
        rendered: True if any sample says that it was rendered.
        num_unread: samples whose JSON are no labels of ours; problem: what is wrong with the first.
    """

    expr: dict[str, int] = field(default_factory=lambda: {name: i for i, name in enumerate(EXPR8)})
    met: set[str] = field(default_factory=set)
    au: set[str] = field(default_factory=set)
    va: bool = False
    rendered: bool = False
    num_unread: int = 0
    problem: str = ""

    def take(self, labels: FaceLabels | ClipLabels | DataError) -> int:
        """Counts one sample; returns the number of its expression, −1 if it has none."""
        if len(self.met) + len(self.au) > _MAX_NAMES:
            labels = DataError(f"more than {_MAX_NAMES} different expressions and action units")
        if isinstance(labels, DataError):
            self.num_unread += 1
            self.problem = self.problem or str(labels)
            return -1
        self.rendered |= labels.extra.get("rendered") is True
        if isinstance(labels, ClipLabels):
            self.va |= any(value is not None for value in (*labels.valence, *labels.arousal))
            return -1
        self.au.update(labels.au)
        self.va |= labels.valence is not None or labels.arousal is not None
        if labels.expr is None:
            return -1
        self.met.add(labels.expr)
        return self.expr.setdefault(labels.expr, len(self.expr))

    def label_space(self, out: Path) -> LabelSpace:
        """What the set's samples may carry; nothing if the labels of any of them cannot be read."""
        if self.num_unread:
            _LOG.warning(
                "%s: taken as unlabelled, for the JSON of %d samples are no labels that can be read: %s",
                out,
                self.num_unread,
                self.problem,
            )
            return LabelSpace((), (), False)
        return LabelSpace(_in_order(self.met, EXPR8), _in_order(self.au, AU12), self.va)

    def numbers(self, space: LabelSpace) -> dict[int, int]:
        """Number of an expression here -> there, −1 where it has no place there."""
        place = {name: i for i, name in enumerate(space.expr)}
        return {number: place.get(name, -1) for name, number in self.expr.items() if name in self.met}


def _in_order(found: set[str], known: tuple[str, ...]) -> tuple[str, ...]:
    """The known names in their order if they are all that was found (so that all splits of a set agree), else
    what was found: first the known, then the others by name, numbers by their value."""
    if found <= set(known):
        return known if found else ()
    others = sorted((int(re.sub(r"\D", "", name)[:9] or 0), name) for name in found - set(known))
    return (*(name for name in known if name in found), *(name for _, name in others))
