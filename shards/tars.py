"""Plain WebDataset tars: written byte for byte the same each time, and read only after a look at every
header.

A sample is a run of members that share a key; the key is the member's path up to the first dot of its last
part.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from shards.index import IndexRow
from shards.labels import DataError
from shards.records import Encoded

_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7zXZ": "xz", b"(\xb5/\xfd": "zstd"}
_CHUNK = 1 << 20


@dataclass(frozen=True)
class WrittenTar:
    """What `write_tar` wrote: bytes, hex sha256, and a row per sample."""

    size: int
    sha256: str
    rows: list[IndexRow]


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
    """Reads a tar from anywhere and finds its samples; the content of no member is interpreted.

    Folders are passed over. Keys keep their folder: they are names, and never used as paths.

    Raises:
        DataError: compressed, cut short, damaged, a link, device or other special member, a key twice or in
            two places, or no sample at all; names the tar, the member and the remedy.
    """
    with path.open("rb") as file:
        head = file.read(6)
    for magic, name in _COMPRESSED.items():
        if head.startswith(magic):
            raise DataError(
                f"{path}: compressed with {name}: unpack it to a plain .tar, which can be read by position"
            )
    rows: list[IndexRow] = []
    seen: set[str] = set()
    for key, members in _runs(path):
        if key in seen:
            raise DataError(
                f"{path}: the members of sample {key!r} are apart, or its key occurs twice: sort by name"
            )
        seen.add(key)
        rows.append(IndexRow(key, members))
    if not rows:
        raise DataError(f"{path}: holds no sample")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return WrittenTar(path.stat().st_size, digest, rows)


def member_key(name: str) -> tuple[str, str] | None:
    """(key, extension) of a member's name by webdataset's rule, or None where it has no extension."""
    folder, _, last = name.rpartition("/")
    stem, dot, extension = last.partition(".")
    if not dot or not stem or not extension:
        return None
    return (f"{folder}/{stem}" if folder else stem), extension.lower()


def _runs(path: Path) -> Iterator[tuple[str, list[tuple[str, int, int, int]]]]:
    """Runs of members that share a key."""
    current: str | None = None
    members: list[tuple[str, int, int, int]] = []
    for name, offset, size, crc in _members(path):
        parts = member_key(name)
        if parts is None:
            continue
        key, extension = parts
        if key != current:
            if current is not None and members:
                yield current, members
            current, members = key, []
        if any(member[0] == extension for member in members):
            raise DataError(f"{path}: member {name!r} occurs twice; write the tar again")
        members.append((extension, offset, size, crc))
    if current is not None and members:
        yield current, members


def _members(path: Path) -> Iterator[tuple[str, int, int, int]]:
    """(name, offset, size, crc32) of each regular member."""
    total = path.stat().st_size
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for info in tar:
                if info.isdir():
                    continue
                if not info.isreg() or info.issparse():
                    raise DataError(
                        f"{path}: member {info.name!r:.120} is a link or device: only plain files are read"
                    )
                if info.offset_data + info.size > total:
                    raise DataError(
                        f"{path}: cut short inside member {info.name!r:.120}: fetch or make it again"
                    )
                yield info.name, info.offset_data, info.size, _crc(path, info.offset_data, info.size)
            _check_end(path, tar.offset, total)
    except tarfile.TarError as error:
        raise DataError(f"{path}: not a readable tar ({error}): fetch or make it again") from error
    except (ValueError, OverflowError, EOFError, UnicodeError) as error:
        raise DataError(f"{path}: damaged header ({error}): fetch or make it again") from error


def _check_end(path: Path, offset: int, total: int) -> None:
    """tarfile stops quietly at a header it cannot read; only zero blocks may follow the last member."""
    with path.open("rb") as file:
        file.seek(min(offset, total))
        while data := file.read(_CHUNK):
            if data.count(0) != len(data):
                raise DataError(f"{path}: damaged header near byte {offset}: what follows cannot be read")


def _crc(path: Path, offset: int, size: int) -> int:
    crc = 0
    with path.open("rb") as file:
        file.seek(offset)
        while size > 0:
            data = file.read(min(size, _CHUNK))
            if not data:
                raise DataError(f"{path}: cut short at byte {offset}: fetch or make it again")
            crc = zlib.crc32(data, crc)
            size -= len(data)
    return crc
