"""One shard: its two files against the manifest, then every sample: checksums, image, labels."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shards import transforms
from shards.clips import decode_clip_labels
from shards.doctor.findings import Finding, LabelCounts, Notebook
from shards.doctor.looks import THUMB, Look, look_at
from shards.files import sha256_file
from shards.frames import IMAGE_EXTENSIONS, decode_plane, parse_frame
from shards.index import Index, IndexRow, parse_index
from shards.labels import ClipLabels, DataError, FaceLabels
from shards.manifest import ShardEntry
from shards.reading import MemberError, Place, TarBytes
from shards.records import LabelSpace
from shards.shardset import RawSample
from shards.stream import decode_labels
from shards.tars import scan_tar

PICTURE = np.dtype(
    [
        ("hash", "<u8"),
        ("offset", "<u8"),
        ("size", "<u8"),
        ("crc32", "<u4"),
        ("seen", "?"),
        ("flat", "?"),
        ("thumb", "u1", (THUMB * THUMB,)),
    ]
)
_REBUILD = "restore the file from a copy, or build the set again"
_INDEX_REMEDY = "make it anew from its tar with `faceprior shards index FOLDER`"


@dataclass(frozen=True)
class ShardJob:
    """One shard to be examined: picklable.

    Attributes:
        folder: of the split.
        entry: what the manifest says of the shard.
        kind, space: of the split.
        tar_names: sha256 -> tar, of all shards of the split: says which tar lies in another's place.
    """

    folder: Path
    entry: ShardEntry
    kind: str
    space: LabelSpace
    tar_names: Mapping[str, str] = field(default_factory=dict)


@dataclass
class ShardRecord:
    """What one shard holds.

    Attributes:
        tar: its tar.
        findings: what is wrong with it.
        num_bytes: of the tar; 0 = it is not there.
        num_lost, num_damaged: as in `SplitRecord`.
        labels, sizes: histograms.
        keys: of the samples, in order.
        pictures: (N,) PICTURE rows, in the order of `keys`; `seen` is False where nothing could be decoded.
        identities, groups: name -> key of the first sample that bears it.
    """

    tar: Path
    findings: list[Finding] = field(default_factory=list)
    num_bytes: int = 0
    num_lost: int = 0
    num_damaged: int = 0
    labels: LabelCounts = field(default_factory=LabelCounts)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    keys: list[str] = field(default_factory=list)
    pictures: NDArray[np.void] = field(default_factory=lambda: np.zeros(0, PICTURE))
    identities: dict[str, str] = field(default_factory=dict)
    groups: dict[str, str] = field(default_factory=dict)


def examine_shard(job: ShardJob) -> ShardRecord:
    """Looks at every byte and every sample of one shard; never raises for what it finds."""
    tar = job.folder / job.entry.tar
    book, record = Notebook(str(tar)), ShardRecord(tar)
    index = _open_index(job, book)
    try:
        whole = _check_tar(job, record, book)
        rows = _rows_of(index) if index is not None else None
        indexed = rows is not None
        if rows is None and record.num_bytes:
            rows = _scan(tar, book)
        if rows and record.num_bytes:
            _examine_samples(job, rows, indexed, record, book)
        if not whole and record.num_bytes and index is not None and not record.num_damaged:
            _scan(tar, book)  # the damage lies in a header: let the tar's reader name the place
    except OSError as error:
        book.add("error", f"cannot be read ({error.strerror or error})", "check the disk, then " + _REBUILD)
    record.num_lost += max(0, job.entry.num_samples - len(record.keys))
    record.findings = book.close()
    return record


def _open_index(job: ShardJob, book: Notebook) -> Index | None:
    """The index if it can be used at all."""
    path = job.folder / job.entry.index
    try:
        data = path.read_bytes()
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        text = "missing, though the manifest lists it" if missing else f"cannot be read ({error.strerror})"
        book.add("error", text, _INDEX_REMEDY, str(path))
        return None
    listed = hashlib.sha256(data).hexdigest() == job.entry.index_sha256
    if not listed:
        book.add("error", "not the index that the manifest lists (sha256 differs)", _INDEX_REMEDY, str(path))
    try:
        index = parse_index(data, str(path))
    except (DataError, ValueError, TypeError, OverflowError) as error:
        if listed:
            book.add("error", _after(str(error), str(path)), _INDEX_REMEDY, str(path))
        return None
    if index.tar_name != job.entry.tar:
        text = f"index of another tar, {index.tar_name!r:.120}"
        book.add("error", text, _INDEX_REMEDY, str(path))
        return None
    if listed and (index.tar_sha256, index.tar_size) != (job.entry.tar_sha256, job.entry.tar_size):
        text = f"made for another {job.entry.tar} than the manifest lists"
        book.add("error", text, _INDEX_REMEDY, str(path))
    if listed and len(index) != job.entry.num_samples:
        text = f"{len(index)} samples, the manifest says {job.entry.num_samples}"
        book.add("error", text, _INDEX_REMEDY, str(path))
    return index


def _check_tar(job: ShardJob, record: ShardRecord, book: Notebook) -> bool:
    """True if the tar is the one that the manifest lists, to the byte."""
    try:
        record.num_bytes = record.tar.stat().st_size
    except FileNotFoundError:
        book.add("error", "missing, though the manifest lists it", _REBUILD)
        return False
    digest = sha256_file(record.tar)
    if digest == job.entry.tar_sha256:
        return True
    if digest in job.tar_names:
        text, remedy = f"it is {job.tar_names[digest]} under another's name", "rename the tars back"
    elif record.num_bytes != job.entry.tar_size:
        text = f"{record.num_bytes:,} bytes, the manifest says {job.entry.tar_size:,}"
        remedy = _REBUILD
    else:
        text, remedy = "not the tar that the manifest lists (sha256 differs)", _REBUILD
    book.add("error", text, remedy)
    return False


def _rows_of(index: Index) -> list[IndexRow] | None:
    """The index's rows; None if its keys are no text."""
    try:
        return index.rows()
    except UnicodeDecodeError:
        return None


def _scan(tar: Path, book: Notebook) -> list[IndexRow] | None:
    """The samples as the tar itself has them; None if it cannot be read."""
    try:
        return scan_tar(tar).rows
    except DataError as error:
        book.add("error", _after(str(error), str(tar)), _REBUILD)
        return None


def _examine_samples(
    job: ShardJob, rows: Sequence[IndexRow], indexed: bool, record: ShardRecord, book: Notebook
) -> None:
    """Every sample of the tar; without an index there are no classes to compare the labels with."""
    record.pictures = np.zeros(len(rows), PICTURE)
    with closing(TarBytes(record.tar)) as file:
        for i, row in enumerate(rows):
            record.keys.append(row.key)
            members = _read_members(file, row, book)
            if members is None:
                record.num_damaged += 1
                continue
            sample = RawSample(row.key, members, f"sample {row.key}")
            sound = _examine_images(job.kind, sample, row, record, i, book)
            if job.kind == "clips":
                sound &= _examine_clip_labels(sample, record, book)
            else:
                sound &= _examine_labels(job.space, sample, row.expr if indexed else None, record, book)
            record.num_damaged += not sound


def _read_members(file: TarBytes, row: IndexRow, book: Notebook) -> dict[str, bytes] | None:
    """All members of a sample, or None if one of them is not as it was written."""
    try:
        return file.read_members([Place(*member) for member in row.members])
    except MemberError as error:
        if error.cut_off:
            text = f"member {error.place.extension} lies beyond the end of the tar"
            book.add_sample("error", "cut off", row.key, text, _REBUILD)
        else:
            text = f"{error} is damaged (crc32 differs)"
            book.add_sample("error", "member damaged (crc32 differs)", row.key, text, _REBUILD)
        return None


def _examine_images(
    kind: str, sample: RawSample, row: IndexRow, record: ShardRecord, number: int, book: Notebook
) -> bool:
    """Decodes the image (of a clip: every frame of every modality); True if nothing is wrong.

    Sizes and looks are those of colour pictures, the look that of a clip's first.
    """
    names = [name for name in IMAGE_EXTENSIONS if name in sample.members][:1]
    wanted: Sequence[str] = IMAGE_EXTENSIONS
    if kind == "clips":
        names = [name for name in sample.members if parse_frame(name) is not None]
        wanted = ("color.0000.jpg", "depth.0000.png", "thermal.0000.png, …")
    if not names:
        text = f"no image member (looked for {', '.join(wanted)})"
        remedy = "leave the sample out and build the set again"
        book.add_sample("error", "no image member", sample.key, text, remedy)
        return False
    for name in names:
        frame = parse_frame(name)
        try:
            if frame is not None and frame.modality != "color":
                decode_plane(sample.members[name], f"member {name}")
                continue
            image = transforms.decode(sample.members[name], f"member {name}")
            look = look_at(image) if not record.pictures[number]["seen"] else None
        except Exception as error:  # decoders of hostile bytes raise many kinds; each is this sample's damage
            remedy = "mend or leave out the source's image and build the set again"
            book.add_sample("error", "image cannot be decoded", sample.key, _after(str(error), ""), remedy)
            return False
        record.sizes[(int(image.shape[1]), int(image.shape[2]))] += 1
        if look is not None:
            _, offset, size, crc = next(member for member in row.members if member[0] == name)
            record.pictures[number] = _picture(look, offset, size, crc)
    return True


def _picture(look: Look, offset: int, size: int, crc: int) -> tuple[object, ...]:
    return look.hash, offset, size, crc, True, look.flat, look.thumb


def _examine_labels(
    space: LabelSpace, sample: RawSample, expr: int | None, record: ShardRecord, book: Notebook
) -> bool:
    """Reads and counts the labels; True if nothing is wrong."""
    remedy = "mend the source's labels and build the set again"
    try:
        labels = decode_labels(sample)
    except DataError as error:
        text = _after(str(error), sample.where)
        book.add_sample("error", "labels not valid", sample.key, text, remedy)
        return False
    record.labels.observe(labels)
    _note_people(labels, sample.key, record)
    if labels.expr is None or not space.expr:
        expected = -1
    elif labels.expr not in space.expr:
        text = f"expression {labels.expr!r:.80} is not in the label space ({', '.join(space.expr)})"
        book.add_sample("error", "expression not in the label space", sample.key, text, remedy)
        return False
    else:
        expected = space.expr.index(labels.expr)
    if expr is not None and expr != expected:
        said = f"class {expr}" if expr >= 0 else "it has none"
        text = f"its label is {labels.expr!r:.80}, its index says {said}: weighted order goes by the index"
        book.add_sample("error", "label and index disagree", sample.key, text, _INDEX_REMEDY)
        return False
    return True


def _examine_clip_labels(sample: RawSample, record: ShardRecord, book: Notebook) -> bool:
    """Reads and counts a clip's labels, and holds its frames against them; True if nothing is wrong."""
    remedy = "mend the source's labels and build the set again"
    try:
        labels = decode_clip_labels(sample)
    except DataError as error:
        text = _after(str(error), sample.where)
        book.add_sample("error", "labels not valid", sample.key, text, remedy)
        return False
    record.labels.observe_clip(labels)
    _note_people(labels, sample.key, record)
    last = max((frame.frame for frame in map(parse_frame, sample.members) if frame is not None), default=0)
    if last >= labels.num_frames:
        text = f"has a frame {last}, though its labels say that it ends with frame {labels.num_frames - 1}"
        book.add_sample("error", "more frames than labels", sample.key, text, remedy)
        return False
    return True


def _note_people(labels: FaceLabels | ClipLabels, key: str, record: ShardRecord) -> None:
    named: Mapping[str, dict[str, str]] = {"identity": record.identities, "group": record.groups}
    for name, seen in named.items():
        value = getattr(labels, name)
        if value is not None:
            seen.setdefault(value, key)


def _after(text: str, where: str) -> str:
    """A message without the place it starts with, which the finding names itself."""
    return text.removeprefix(f"{where}: ") if where else text
