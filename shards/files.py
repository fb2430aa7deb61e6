"""Files that are either whole or not there: written to a temporary sibling, fsynced, renamed."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from shards.labels import DataError


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync_folder(folder: Path) -> None:
    """Makes renames in `folder` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def clear_disk_errors(path: Path) -> Iterator[None]:
    """Turns a full or read-only disk into a DataError that names the path and the remedy.

    Raises:
        DataError: no space, over quota, read-only, or no permission.
    """
    remedies = {
        errno.ENOSPC: "the disk is full: free some space",
        errno.EDQUOT: "the quota is used up: free some space",
        errno.EROFS: "the file system is read-only: choose another folder",
        errno.EACCES: "permission denied: choose a folder you may write to",
        errno.EPERM: "not permitted: choose a folder you may write to",
        errno.EFBIG: "the file is larger than this file system or limit allows",
        errno.EIO: "the disk reports an input/output error: check it",
    }
    try:
        yield
    except OSError as error:
        if error.errno not in remedies:
            raise
        raise DataError(
            f"cannot write {path}: {remedies[error.errno]}, then run the same command again "
            "(finished work is kept)"
        ) from error


@contextlib.contextmanager
def locked(path: Path, wait: bool = False, shared: bool = False) -> Iterator[None]:
    """Holds the lock file `path` while the block runs; the kernel lets go of it however this process ends.

    Args:
        path: of the lock file; its folder must exist.
        wait: wait for another holder instead of failing.
        shared: hold it beside others that share it, and against one who wants it alone.

    Raises:
        DataError: another process holds it, or it cannot be written.
    """
    with contextlib.ExitStack() as stack:
        with clear_disk_errors(path):
            file = stack.enter_context(path.open("a+"))  # NFS shares only what is open for reading
        try:
            kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
            fcntl.flock(file, kind | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise DataError(
                f"{path.parent}: another process is working there; wait until it ends, then run this again"
            ) from error
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise
            raise DataError(
                f"{path.parent}: no locks on this file system ({error.strerror}), so two processes could "
                "write there at once; choose a folder on another, or mount it with locks"
            ) from error
        yield


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """A binary file that appears at `path`, whole and fsynced, only if the block ends without an error.

    Raises:
        DataError: the disk is full or cannot be written (see `clear_disk_errors`).
    """
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        yield file


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """As `atomic_write`, for who opens files by name: where to write what is to appear at `path`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with clear_disk_errors(path):
        try:
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
            fsync_folder(path.parent)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def write_atomic(path: Path, data: bytes) -> None:
    """`data` at `path`, whole or not at all."""
    with atomic_write(path) as file:
        file.write(data)
