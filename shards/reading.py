"""The bytes of shards, by position: `TarBytes.read` is the one place that opens a shard.

A read that fails, comes back short or does not match its checksum is made once more through a fresh handle
before it is called damage: a network file system's hiccup is not the end of a training of weeks.
"""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

_CHUNK = 1 << 26  # at once: a damaged index may ask for much more than there is
_GAP = 1 << 16  # what lies between two members is read with them up to here, and passed over beyond
_AHEAD = 1 << 26  # tars up to here are fetched whole: larger ones hold clips, of which parts are wanted


class Place(NamedTuple):
    """Where one member lies, in bytes, and the checksum of its content."""

    extension: str
    offset: int
    size: int
    crc32: int


class MemberError(Exception):
    """A member is not, or not whole, where the index says.

    Attributes:
        place: where it should be.
        cut_off: the file ends before it does; else its checksum does not match.
    """

    def __init__(self, place: Place, cut_off: bool) -> None:
        super().__init__(f"member {place.extension} at byte {place.offset}")
        self.place, self.cut_off = place, cut_off


class TarBytes:
    """The bytes of one tar. The file is opened at the first read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: int | None = None
        self._to_fetch = 0  # bytes to be read before the next `_fetch_ahead`

    def close(self) -> None:
        """Lets go of the file; the next read opens it again."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset` on; fewer only where the file ends.

        Raises:
            OSError: the file cannot be opened or read.
        """
        if self._handle is None:
            self._handle = os.open(self.path, os.O_RDONLY)
            self._to_fetch = 0
        if self._to_fetch <= 0:
            self._fetch_ahead(self._handle)
        self._to_fetch -= size
        parts = []
        while size > 0:
            data = os.pread(self._handle, min(size, _CHUNK), offset)
            if not data:
                break
            parts.append(data)
            offset, size = offset + len(data), size - len(data)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _fetch_ahead(self, handle: int) -> None:
        """Lets the system fetch the whole tar in the background, as it is first read and each time as much
        of it was read as it holds: in random order each sample will be wanted soon, and one by one they
        would cost an answer of the disk, or the server, each."""
        self._to_fetch = size = os.fstat(handle).st_size
        if size <= _AHEAD and hasattr(os, "posix_fadvise"):
            with contextlib.suppress(OSError):
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_WILLNEED)

    def read_members(self, places: Sequence[Place]) -> dict[str, bytes]:
        """Members of one sample by extension, each checked; those that lie side by side in one read.

        Raises:
            MemberError: also at the second attempt one is cut off or does not match its checksum.
            OSError: the file cannot be read at the second attempt either.
        """
        with contextlib.suppress(OSError, MemberError):
            return self._read_once(places)
        self._forget(places)
        return self._read_once(places)

    def _read_once(self, places: Sequence[Place]) -> dict[str, bytes]:
        members = {}
        for run in _runs(places):
            start = run[0].offset
            data = memoryview(self.read(start, max(place.offset + place.size for place in run) - start))
            for place in run:
                member = data[place.offset - start : place.offset - start + place.size]
                if len(member) != place.size:
                    raise MemberError(place, cut_off=True)
                if zlib.crc32(member) != place.crc32:
                    raise MemberError(place, cut_off=False)
                members[place.extension] = bytes(member)
        return {place.extension: members[place.extension] for place in places}

    def _forget(self, places: Sequence[Place]) -> None:
        """Drops the handle and what this machine's cache holds of the members."""
        if self._handle is not None and hasattr(os, "posix_fadvise"):
            for place in places:
                with contextlib.suppress(OSError):
                    os.posix_fadvise(self._handle, place.offset, place.size, os.POSIX_FADV_DONTNEED)
        self.close()


def _runs(places: Sequence[Place]) -> list[list[Place]]:
    """The places by offset, in runs with no more than `_GAP` bytes between neighbours."""
    runs: list[list[Place]] = []
    end = 0
    for place in sorted(places, key=lambda place: place.offset):
        if not runs or place.offset - end > _GAP:
            runs.append([])
        runs[-1].append(place)
        end = max(end, place.offset + place.size)
    return runs


def places_of(extensions: Sequence[str], rows: Sequence[Sequence[int]]) -> list[Place]:
    """Member rows of an index (offset, size, crc32, number of the extension, …) as places."""
    return [Place(extensions[row[3]], row[0], row[1], row[2]) for row in rows]
