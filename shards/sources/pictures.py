"""Image files by name, in a folder or in a zip that is read where it lies."""

from __future__ import annotations

import logging
import lzma
import os
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn, Protocol

from shards.labels import DataError, ReadError

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
TABLES = (".csv", ".tsv", ".json", ".txt")

_LOG = logging.getLogger(__name__)

_MAX_BYTES = 256_000_000  # of one file
_MAX_RATIO = 200  # declared size / stored size, above which a member of some size is taken for a bomb
_BOMB_BYTES = 16_000_000


class Pictures(Protocol):
    """Files by name: relative, with `/`. Picklable."""

    @property
    def path(self) -> Path:
        """The folder or zip they are in."""
        ...

    def names(self) -> list[str]:
        """All files, sorted; hidden ones are left out.

        Raises:
            DataError: a folder that cannot be listed.
        """
        ...

    def read(self, name: str) -> bytes:
        """One file.

        Raises:
            ReadError: it cannot be read now: gone, not allowed, or a fault of disk or network.
            DataError: too large or damaged; the message is short, for the quarantine list.
        """
        ...


def open_pictures(path: Path) -> Pictures:
    """A folder or a zip.

    Raises:
        DataError: neither, or a zip that cannot be trusted.
    """
    if path.is_dir():
        return FolderPictures(path)
    if not path.exists():
        raise DataError(f"{path}: no such folder or zip; check SRC")
    if zipfile.is_zipfile(path):
        return ZipPictures(path)
    raise DataError(f"{path}: neither a folder nor a zip; unpack it, or pack it as .zip")


def is_picture(name: str) -> bool:
    """True if the file's name ends like that of an image, in any case."""
    return PurePosixPath(name).suffix.lower() in SUFFIXES


def pictures_in(path: Path, files: Iterable[str]) -> list[str]:
    """Those of `files` that are pictures; says how many others there are beside tables.

    Args:
        path: of the folder or zip, for the message.
        files: in it.
    """
    names: list[str] = []
    others: Counter[str] = Counter()
    for name in files:
        if is_picture(name):
            names.append(name)
        elif not name.lower().endswith(TABLES):
            others[PurePosixPath(name).suffix.lower() or "without a suffix"] += 1
    if others:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common(8))
        _LOG.warning(
            "%s: %d other files are no pictures that can be read and are passed over: %s",
            path,
            others.total(),
            kinds,
        )
    return names


class FolderPictures:
    """The files below a folder. Links to folders are followed, each folder once."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def names(self) -> list[str]:
        out: list[str] = []
        seen: set[tuple[int, int]] = set()
        for parent, folders, files in os.walk(self.path, onerror=_refuse, followlinks=True):
            try:
                status = Path(parent).stat()
            except OSError as error:
                _refuse(error)
            if (status.st_dev, status.st_ino) in seen:
                folders.clear()
                continue
            seen.add((status.st_dev, status.st_ino))
            folders[:] = sorted(name for name in folders if not _hidden(name))
            relative = Path(parent).relative_to(self.path).as_posix()
            prefix = "" if relative == "." else relative + "/"
            out += [prefix + name for name in files if not _hidden(name)]
        return sorted(out)

    def read(self, name: str) -> bytes:
        path = self.path / name
        try:
            with path.open("rb") as file:
                if os.fstat(file.fileno()).st_size > _MAX_BYTES:
                    raise DataError(f"cannot read: file larger than {_MAX_BYTES // 10**6} MB")
                return file.read()
        except OSError as error:
            raise ReadError(f"cannot read: {error.strerror or type(error).__name__}") from error


def _refuse(error: OSError) -> NoReturn:
    """What a folder that cannot be listed holds would be missing from the set, without a word."""
    raise DataError(
        f"{error.filename}: cannot be listed ({error.strerror}): mend its permissions, or remove it"
    ) from None


class ZipPictures:
    """The members of a zip. Nothing is unpacked to disk, and no member's name becomes a path."""

    def __init__(self, path: Path) -> None:
        """
        Raises:
            DataError: unreadable or encrypted, members over each other, or names that leave the folder.
        """
        self.path = path
        self._zip: zipfile.ZipFile | None = None
        members = [info for info in self._open().infolist() if not info.is_dir()]
        if sum(info.compress_size for info in members) > path.stat().st_size:
            raise DataError(f"{path}: its members lie over each other (a zip bomb?); pack it again")
        for info in members:
            parts = info.filename.replace("\\", "/").split("/")
            if ".." in parts or not parts[0] or ":" in parts[0]:
                raise DataError(f"{path}: member {info.filename!r:.120} leaves the folder; pack it again")
            if info.flag_bits & 1:
                raise DataError(f"{path}: member {info.filename!r:.120} is encrypted; pack it without")

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_zip": None}

    def names(self) -> list[str]:
        return sorted(
            info.filename
            for info in self._open().infolist()
            if not info.is_dir() and not any(_hidden(part) for part in info.filename.split("/"))
        )

    def read(self, name: str) -> bytes:
        try:
            info = self._open().getinfo(name)
            if info.file_size > _MAX_BYTES:
                raise DataError(f"cannot read: file larger than {_MAX_BYTES // 10**6} MB")
            if info.file_size > _BOMB_BYTES and info.file_size > _MAX_RATIO * max(info.compress_size, 1):
                raise DataError(f"cannot read: unpacks to more than {_MAX_RATIO} times its size")
            with self._open().open(info) as file:
                return file.read()
        except KeyError:
            raise DataError("cannot read: No such file or directory") from None
        except (
            zipfile.BadZipFile,
            zlib.error,
            lzma.LZMAError,
            EOFError,
            NotImplementedError,
            RuntimeError,
            OSError,
        ) as error:
            if isinstance(error, OSError) and error.errno is not None:  # bz2 raises it without for damage
                raise ReadError(f"cannot read: {error.strerror}") from error
            raise DataError(f"cannot read: damaged zip member ({type(error).__name__})") from None

    def _open(self) -> zipfile.ZipFile:
        if self._zip is None:
            try:
                self._zip = zipfile.ZipFile(self.path)
            except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
                raise DataError(
                    f"{self.path}: not a readable zip ({error}); fetch or pack it again"
                ) from None
        return self._zip


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"
