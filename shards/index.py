"""The index of one tar: where each member lies and its checksum, in one small binary file.

Layout, little-endian: 8 bytes magic, u32 version, u32 length of a JSON header, the header, zero padding to a
multiple of 64, then the member table, the sample table, the keys (UTF-8, joined) and a crc32 of all before
it. Reading it executes nothing.

The tables lie as they are used, so the file could be mapped; it is read whole, about 70 bytes a sample,
because a map holds a file descriptor for as long as it lives, and a large set has more shards than that.
"""

from __future__ import annotations

import functools
import json
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.labels import DataError
from shards.records import canonical_json

MAGIC = b"FPINDEX\n"
VERSION = 1
MEMBER = np.dtype(
    [("offset", "<u8"), ("size", "<u8"), ("crc32", "<u4"), ("extension", "<u2"), ("reserved", "<u2")]
)
SAMPLE = np.dtype(
    [
        ("first_member", "<u4"),
        ("key_offset", "<u4"),
        ("key_size", "<u2"),
        ("num_members", "<u2"),
        ("expr", "<i2"),
        ("reserved", "<u2"),
    ]
)
_PREFIX = struct.Struct("<8sII")
_MAX_HEADER = 1 << 22  # a clip's members each have an extension of their own
_MAX_COUNT = 1 << 16


@dataclass(frozen=True)
class IndexRow:
    """One sample: its key, its members (extension, offset, size, crc32) and its expression class."""

    key: str
    members: Sequence[tuple[str, int, int, int]]
    expr: int = -1


@dataclass(frozen=True)
class Index:
    """An opened index: tables are views of the file's bytes.

    Attributes:
        tar_name: file name of the tar it belongs to.
        tar_size: bytes of the tar.
        tar_sha256: hex digest of the tar.
        extensions: member extensions; `members["extension"]` counts into it.
        members: (M,) MEMBER rows.
        samples: (N,) SAMPLE rows, in tar order.
    """

    tar_name: str
    tar_size: int
    tar_sha256: str
    extensions: tuple[str, ...]
    members: NDArray[np.void]
    samples: NDArray[np.void]
    keys_blob: bytes

    def __len__(self) -> int:
        return len(self.samples)

    @functools.cached_property
    def numbers(self) -> dict[str, int]:
        """Extension -> its place in `extensions`."""
        return {extension: i for i, extension in enumerate(self.extensions)}

    def key(self, sample: int) -> str:
        """The key of the sample'th sample."""
        row = self.samples[sample]
        start = int(row["key_offset"])
        return self.keys_blob[start : start + int(row["key_size"])].decode()

    def keys(self) -> Iterator[bytes]:
        """The keys of all samples, UTF-8, in order."""
        starts = self.samples["key_offset"].tolist()
        for start, size in zip(starts, self.samples["key_size"].tolist(), strict=True):
            yield self.keys_blob[start : start + size]

    def rows(self) -> list[IndexRow]:
        """All samples, as `index_bytes` takes them.

        Raises:
            UnicodeDecodeError: a key is no text.
        """
        members = [
            (self.extensions[number], offset, size, crc)
            for offset, size, crc, number, _ in self.members.tolist()
        ]
        return [
            IndexRow(self.key(i), members[first : first + count], expr)
            for i, (first, _, _, count, expr, _) in enumerate(self.samples.tolist())
        ]


def index_bytes(tar_name: str, tar_size: int, tar_sha256: str, rows: Sequence[IndexRow]) -> bytes:
    """The index file's content: a pure function of its arguments.

    Raises:
        DataError: a sample with more members, or a tar with more different extensions, than can be counted.
    """
    extensions = sorted({member[0] for row in rows for member in row.members})
    most = max((len(row.members) for row in rows), default=0)
    if max(most, len(extensions)) >= _MAX_COUNT:
        raise DataError(
            f"{tar_name}: a sample of {most} members, {len(extensions)} different extensions in all: "
            f"fewer than {_MAX_COUNT} can be indexed; cut long recordings into several clips"
        )
    number = {extension: i for i, extension in enumerate(extensions)}
    members = np.zeros(sum(len(row.members) for row in rows), MEMBER)
    samples = np.zeros(len(rows), SAMPLE)
    keys = bytearray()
    at = 0
    for i, row in enumerate(rows):
        key = row.key.encode()
        samples[i] = (at, len(keys), len(key), len(row.members), row.expr, 0)
        keys += key
        for extension, offset, size, crc in row.members:
            members[at] = (offset, size, crc, number[extension], 0)
            at += 1
    header = canonical_json(
        {
            "format": "faceprior-index",
            "tar": tar_name,
            "tar_size": tar_size,
            "tar_sha256": tar_sha256,
            "extensions": extensions,
            "num_members": len(members),
            "num_samples": len(samples),
            "keys_size": len(keys),
        }
    )
    head = _PREFIX.pack(MAGIC, VERSION, len(header)) + header
    head += bytes(-len(head) % 64)
    body = head + members.tobytes() + samples.tobytes() + bytes(keys)
    return body + struct.pack("<I", zlib.crc32(body))


def parse_index(data: bytes, where: str) -> Index:
    """Reads and checks the bytes of an index file.

    Raises:
        DataError: not an index, of another version, cut short, changed, or pointing outside its tar; names
            `where` and says how to make it anew.
    """
    remedy = "make it anew from its tar with `faceprior shards index FOLDER`"

    def wrong(what: str) -> DataError:
        return DataError(f"{where}: {what}; {remedy}")

    if len(data) < _PREFIX.size + 4 or not data.startswith(MAGIC):
        raise wrong("not a shard index")
    _, version, header_size = _PREFIX.unpack_from(data)
    if version != VERSION:
        raise wrong(f"index format version {version}, this program reads {VERSION}")
    if zlib.crc32(memoryview(data)[:-4]) != struct.unpack("<I", data[-4:])[0]:
        raise wrong("the index is damaged (its checksum does not match)")
    if header_size > min(_MAX_HEADER, len(data)):
        raise wrong(f"header of {header_size} bytes")
    header = _parse_header(data[_PREFIX.size : _PREFIX.size + header_size], wrong)
    at = _PREFIX.size + header_size
    at += -at % 64
    num_members, num_samples, keys_size = (header[k] for k in ("num_members", "num_samples", "keys_size"))
    if at + num_members * MEMBER.itemsize + num_samples * SAMPLE.itemsize + keys_size + 4 != len(data):
        raise wrong("the index's tables do not fill the file")
    members = np.frombuffer(data, MEMBER, num_members, at)
    at += members.nbytes
    samples = np.frombuffer(data, SAMPLE, num_samples, at)
    at += samples.nbytes
    index = Index(
        header["tar"],
        header["tar_size"],
        header["tar_sha256"],
        tuple(header["extensions"]),
        members,
        samples,
        data[at : at + keys_size],
    )
    _check_tables(index, wrong)
    return index


def _parse_header(data: bytes, wrong: Any) -> dict[str, Any]:
    types = {
        "format": str,
        "tar": str,
        "tar_size": int,
        "tar_sha256": str,
        "extensions": list,
        "num_members": int,
        "num_samples": int,
        "keys_size": int,
    }
    try:
        header = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise wrong("header is not JSON") from error
    if not isinstance(header, dict):
        raise wrong("header is not a JSON object")
    for name, kind in types.items():
        value = header.get(name)
        if type(value) is not kind or (isinstance(value, int) and value < 0):
            raise wrong(f"header field {name} is {value!r:.80}")
    if not all(isinstance(e, str) for e in header["extensions"]):
        raise wrong("header field extensions holds something that is not text")
    if Path(header["tar"]).name != header["tar"] or header["format"] != "faceprior-index":
        raise wrong(f"header names {header['format']!r:.40} of {header['tar']!r:.80}")
    return header


def _check_tables(index: Index, wrong: Any) -> None:
    members, samples = index.members, index.samples
    try:
        index.keys_blob.decode()
    except UnicodeDecodeError as error:
        raise wrong("keys are not UTF-8") from error
    ends = members["offset"] + members["size"]
    if len(members) and (
        (ends < members["offset"]).any()
        or int(ends.max()) > index.tar_size
        or int(members["extension"].max()) >= len(index.extensions)
    ):
        raise wrong("a member lies outside its tar")
    last = samples["first_member"].astype(np.int64) + samples["num_members"]
    key_ends = samples["key_offset"].astype(np.int64) + samples["key_size"]
    if len(samples) and (
        int(last.max()) > len(members)
        or int(samples["num_members"].min()) == 0
        or int(key_ends.max()) > len(index.keys_blob)
        or int(samples["key_size"].min()) == 0
    ):
        raise wrong("a sample lies outside the tables")
    blob = np.frombuffer(index.keys_blob + b"\0", np.uint8)  # 10xxxxxx goes on with a character
    if any(((blob[at] & 0xC0) == 0x80).any() for at in (samples["key_offset"], key_ends)):
        raise wrong("a key ends within a character")
