"""Plain WebDataset tars: written byte for byte the same each time, and read only after a look at every
header.

A sample is a run of members that share a key; the key is the member's path up to the first dot of its last
part. `walk_samples` is the one reader of headers: for tars to be indexed, examined or aligned.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

from shards.files import sha256_file
from shards.index import IndexRow
from shards.labels import DataError
from shards.records import Encoded

_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"(\xb5/\xfd": "zstd"}
_CHUNK = 1 << 20
_AGAIN = "fetch or make it again"


@dataclass(frozen=True)
class WrittenTar:
    """What `write_tar` wrote: bytes, hex sha256, and a row per sample."""

    size: int
    sha256: str
    rows: list[IndexRow]


class TarMember(NamedTuple):
    """Where one member of a sample lies: its extension, lower case, and its place in bytes."""

    extension: str
    offset: int
    size: int


class _HashingWriter(io.RawIOBase):
    """Passes bytes on, counts and hashes them."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.size, self.digest = file, 0, hashlib.sha256()

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.size

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self.file.write(data)
        self.size += len(data)
        self.digest.update(data)
        return len(data)


def write_tar(file: BinaryIO, samples: Iterable[Encoded]) -> WrittenTar:
    """Writes samples as a plain tar whose bytes depend on the samples alone (no times, no owners).

    Raises:
        DataError: two samples share a key, or a key could not name a member.
    """
    writer = _HashingWriter(file)
    rows: list[IndexRow] = []
    seen: set[str] = set()
    with tarfile.open(fileobj=writer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for sample in samples:
            if sample.key in seen or not sample.key or "." in sample.key or "/" in sample.key:
                raise DataError(f"key {sample.key!r} is used twice or is not fit to name a member")
            seen.add(sample.key)
            members = []
            for extension, data in sample.members.items():
                info = tarfile.TarInfo(f"{sample.key}.{extension}")
                info.size = len(data)
                info.mode = 0o644
                tar.addfile(info, io.BytesIO(data))
                offset = tar.offset - len(data) - (-len(data) % tarfile.BLOCKSIZE)
                members.append((extension, offset, len(data), zlib.crc32(data)))
            rows.append(IndexRow(sample.key, members, sample.expr))
    return WrittenTar(writer.size, writer.digest.hexdigest(), rows)


def scan_tar(path: Path) -> WrittenTar:
    """Reads a tar from anywhere to its last byte and finds its samples; no member's content is interpreted.

    Raises:
        DataError: see `walk_samples`, a key that is no text, or no sample at all.
    """
    rows: list[IndexRow] = []
    handle = os.open(path, os.O_RDONLY)
    try:
        for key, members in walk_samples(path):
            if any("\ud800" <= c <= "\udfff" for c in key):  # how tarfile reads bytes that are not UTF-8
                raise DataError(f"{path}: the name of {key!r:.120} is not UTF-8; pack it again with another")
            rows.append(IndexRow(key, [(*member, _crc(handle, path, member)) for member in members]))
    finally:
        os.close(handle)
    if not rows:
        raise DataError(f"{path}: holds no sample")
    return WrittenTar(path.stat().st_size, sha256_file(path), rows)


def member_key(name: str) -> tuple[str, str] | None:
    """(key, extension) of a member's name by webdataset's rule, or None where it has no extension."""
    folder, _, last = name.rpartition("/")
    stem, dot, extension = last.partition(".")
    if not dot or not stem or not extension:
        return None
    return (f"{folder}/{stem}" if folder else stem), extension.lower()


def walk_samples(path: Path) -> Iterator[tuple[str, list[TarMember]]]:
    """The key and members of each sample of a tar from anywhere, from its headers alone.

    Folders and files without an extension are passed over. Keys keep their folder: they are names, and never
    used as paths.

    Raises:
        DataError: compressed, cut short, damaged, followed by something else, a link, device or other special
            member, a name that leaves the folder, a member twice, or a key twice or in two places; names the
            tar, the member and the remedy. Samples before that place have been given out by then.
    """
    seen: set[str] = set()
    current, members = "", list[TarMember]()
    for name, offset, size in _walk_files(path):
        parts = member_key(name)
        if parts is None:
            continue
        key, extension = parts
        if key != current:
            if members:
                yield current, members
            current, members = key, []
            if key in seen:
                raise DataError(
                    f"{path}: the members of {key!r:.80} are apart, or its key occurs twice: sort by name"
                )
            seen.add(key)
        if any(member.extension == extension for member in members):
            raise DataError(f"{path}: member {name!r:.120} occurs twice; write the tar again")
        members.append(TarMember(extension, offset, size))
    if members:
        yield current, members


def _walk_files(path: Path) -> Iterator[tuple[str, int, int]]:
    """(name, offset, size) of each plain file in a tar."""
    total = path.stat().st_size
    with path.open("rb") as file:
        _check_plain(path, file.read(6))
        file.seek(0)
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                while (info := tar.next()) is not None:
                    _check_member(path, info, total)
                    if info.isreg():
                        yield info.name, info.offset_data, info.size
                    tar.members = []  # type: ignore[attr-defined]  # it would keep every header
                end = tar.offset
        except tarfile.TarError as error:
            raise DataError(f"{path}: not a readable tar ({error}): {_AGAIN}") from error
        except (ValueError, OverflowError, EOFError, UnicodeError) as error:
            raise DataError(f"{path}: damaged header ({error}): {_AGAIN}") from error
        _check_end(path, file, end, total)


def _check_plain(path: Path, head: bytes) -> None:
    for magic, packer in _COMPRESSED.items():
        if head.startswith(magic):
            raise DataError(
                f"{path}: compressed with {packer}: unpack it to a plain .tar, which can be read by position"
            )


def _check_member(path: Path, info: tarfile.TarInfo, total: int) -> None:
    where = f"{path}: member {info.name!r:.120}"
    if not (info.isdir() or (info.isreg() and not info.issparse())):
        raise DataError(f"{where} is a link, device or sparse file: only plain files are read; pack it again")
    if info.name.startswith("/") or ".." in info.name.split("/"):
        raise DataError(f"{where} leaves the folder; pack it again with plain names")
    if info.size < 0 or info.offset_data + info.size > total:
        raise DataError(f"{where} is cut short: {_AGAIN}")


def _check_end(path: Path, file: BinaryIO, end: int, total: int) -> None:
    """tarfile stops without a word at a header it cannot read and where a file was cut between two members:
    so the last member must be followed by the end mark, a block of zeros, and that by nothing but zeros."""
    file.seek(min(end, total))
    mark = file.read(tarfile.BLOCKSIZE)
    if len(mark) < tarfile.BLOCKSIZE:
        raise DataError(
            f"{path}: cut short at byte {total}: no end mark after the last member; {_AGAIN} "
            f"(if its writer left the mark out and it is whole: truncate -s +1024 {path})"
        )
    if any(mark):
        raise DataError(f"{path}: damaged header near byte {end}: what follows cannot be read; {_AGAIN}")
    while data := file.read(_CHUNK):
        if data.count(0) != len(data):
            raise DataError(
                f"{path}: more members after the end mark at byte {end}: a damaged header ({_AGAIN}), or "
                "tars that were joined by `cat` (keep them apart, or join them by `tar -A`)"
            )


def _crc(handle: int, path: Path, member: TarMember) -> int:
    crc, offset, end = 0, member.offset, member.offset + member.size
    while offset < end:
        data = os.pread(handle, min(end - offset, _CHUNK), offset)
        if not data:
            raise DataError(f"{path}: cut short at byte {offset}: {_AGAIN}")
        crc = zlib.crc32(data, crc)
        offset += len(data)
    return crc
