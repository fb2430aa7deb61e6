"""What a process does with the memory that its tensors gave back: it keeps it, or the kernel gets it."""

from __future__ import annotations

import ctypes
import os
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of malloc.h
_TOLD_BY = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_")


def keep_freed_memory() -> bool:
    """Has the C library keep freed memory for the next tensor, where it would give it back to the kernel.

    glibc maps large blocks anew each time, so on a CPU the kernel clears the pages of a step's activations in
    every step: a fifth of the time of ViT-B's with 32 images in bf16, a few per cent of small ones. The
    price is memory: a step's peak is 4 to 17 % higher (ViT-B, 32 images: 5,248 MB for 4,553; `bench.memory`)
    and varies from run to run, and between steps the process holds on to it. Whoever set one of
    glibc's variables for this (MALLOC_TOP_PAD_=0, say), or a tunable of its malloc, is left alone.

    Returns:
        Whether this C library can be told so, and nobody had told it something else.
    """
    told = "glibc.malloc." in os.environ.get("GLIBC_TUNABLES", "")
    if told or any(name in os.environ for name in _TOLD_BY) or sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, -1))


def give_freed_memory_back() -> None:
    """After work that takes much more memory than what goes on: the kernel gets what is free now."""
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if malloc_trim is not None:
        malloc_trim(0)
