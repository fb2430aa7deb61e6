"""A file system that fails now and then."""

from __future__ import annotations

import errno
import os

import pytest


def failing(monkeypatch: pytest.MonkeyPatch, after: int, times: int = 1, how: str = "error") -> None:
    """Makes `os.pread` fail after some calls.

    Args:
        after: calls that go well. times: calls that then fail.
        how: "error" (EIO), "flip" (one byte differs) or "short" (one byte at a time, from then on).
    """
    calls, pread = 0, os.pread

    def unsteady(handle: int, size: int, offset: int) -> bytes:
        nonlocal calls
        calls += 1
        if how == "short" and calls > after:
            return pread(handle, min(size, 1), offset)
        data = pread(handle, size, offset)
        if not after < calls <= after + times:
            return data
        if how == "error":
            raise OSError(errno.EIO, "Input/output error")
        return bytes([data[0] ^ 1]) + data[1:]

    monkeypatch.setattr(os, "pread", unsteady)
