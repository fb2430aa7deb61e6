"""In a child: at the n-th step that it takes on the disk it kills itself, or the disk fails.

A step is an open for writing, a write, an fsync, a rename, a removal, a new folder. A kill is a SIGKILL of
the process's own, before the step; before a write half of it is made. So the disk holds what it would hold,
had the kill come from outside in that very moment.
"""

from __future__ import annotations

import errno
import io
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

KINDS = ("open", "write", "fsync", "rename", "remove", "mkdir")


class Trap:
    """Counts steps on files of one folder."""

    def __init__(self, folder: str, at: int, act: str, only: str, log: str) -> None:
        """
        Args:
            folder: whose files count, and those of folders below.
            at: at which step it acts, from 1; 0 = never.
            act: "kill", or the name of an errno that the step fails with, from then on.
            only: steps whose line in the log begins so are counted; "" = all.
            log: file that gets a line for each step up to that one.
        """
        self._folder, self._at, self._act, self._only = os.path.realpath(folder), at, act, only
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        self._count, self._pid = 0, os.getpid()

    def step(self, kind: str, path: Any, before: Callable[[], None] = lambda: None) -> None:
        """Notes a step; where it is the one, does `before` and acts."""
        where = Path(f"/proc/self/fd/{path}").readlink() if isinstance(path, int) else Path(path)
        full = str(where.parent.resolve() / where.name)
        if os.getpid() != self._pid or not (full + "/").startswith(self._folder + "/"):
            return
        line = f"{kind} {label(os.path.relpath(full, self._folder))}"
        os.write(self._log, line.encode() + b"\n")
        if not (line + "\n").startswith(self._only):
            return
        self._count += 1
        if self._act == "kill":
            if self._count == self._at:
                before()
                _die()
        elif 0 < self._at <= self._count and kind != "remove":
            raise OSError(getattr(errno, self._act), os.strerror(getattr(errno, self._act)))


def label(path: str) -> str:
    """A path without what differs from time to time: numbers, and the names of temporary files."""
    folder, slash, name = re.sub(r"\d{3,}", "N", path).rpartition("/")
    return folder + slash + re.sub(r"^\.(.+)\.N\.tmp$", r"\1", re.sub(r"\.\d+\.tmp$", ".N.tmp", name))


def _die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("outlived SIGKILL")


class _Writer(io.BufferedWriter):
    """A file opened for writing, whose writes are steps."""

    trap: Trap

    def write(self, data: Any) -> int:
        def half() -> None:
            self.raw.write(memoryview(data).cast("B")[: len(data) // 2])

        self.flush()
        self.trap.step("write", self.raw.name, half)
        return super().write(data)


def set_trap(folder: str, at: int, act: str = "kill", only: str = "", log: str = os.devnull) -> None:
    """Sets a trap in this process; see `Trap`."""
    trap = Trap(folder, at, act, only, log)
    whole_open = io.open

    def opened(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if not isinstance(file, int) and set(mode) & set("wax+"):
            trap.step("open", file)
            if mode == "wb":
                writer = _Writer(io.FileIO(file, "w"))
                writer.trap = trap
                return writer
        return whole_open(file, mode, *arguments, **options)

    io.open = opened  # what Path.open calls
    for name, kind_of in _CALLS.items():
        setattr(os, name, _watched(getattr(os, name), kind_of, trap))


_CALLS = {
    "fsync": "fsync",
    "rename": "rename",
    "replace": "rename",
    "unlink": "remove",
    "rmdir": "remove",
    "mkdir": "mkdir",
}


def _watched(call: Callable[..., Any], kind: str, trap: Trap) -> Callable[..., Any]:
    def watched(path: Any, *arguments: Any, **options: Any) -> Any:
        handle = options.get("dir_fd")
        where = Path(f"/proc/self/fd/{handle}").readlink() / path if handle is not None else path
        trap.step(kind, where)
        return call(path, *arguments, **options)

    return watched
