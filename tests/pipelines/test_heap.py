"""Freed memory is there for the next tensor, unless somebody else decided that."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

COUNT_FAULTS = """
import resource, torch
from pipelines.heap import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(10_000_000)  # 40 MB, dropped at once
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before = faults()
print(keep_freed_memory(), before, [faults() for _ in range(3)][-1])
"""


def count_faults(**variables: str) -> tuple[str, int, int]:
    """Whether it was done, and the page faults of the same work before and after, when the heap has grown."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_") and k != "GLIBC_TUNABLES"}
    command = [sys.executable, "-c", COUNT_FAULTS]
    done = subprocess.run(command, env={**kept, **variables}, capture_output=True, text=True, check=True)
    said, before, after = done.stdout.split()
    return said, int(before), int(after)


pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")


def test_tensors_of_the_same_size_share_their_pages() -> None:
    said, before, after = count_faults()
    assert said == "True" and after < before / 10


def test_what_was_kept_can_be_given_back() -> None:
    code = """
import torch
from pathlib import Path
from pipelines.heap import give_freed_memory_back, keep_freed_memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

keep_freed_memory()
before = resident()
many = [torch.ones(1_000_000) for _ in range(100)]  # 400 MB
most = resident() - before
del many
kept = resident() - before
give_freed_memory_back()
print(most, kept, resident() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    most, kept, left = map(int, done.stdout.split())
    assert most > 350e6 and kept > 350e6 and left < 50e6


@pytest.mark.parametrize(
    "variable", ["MALLOC_TRIM_THRESHOLD_=131072", "GLIBC_TUNABLES=glibc.malloc.trim_threshold=131072"]
)
def test_who_told_the_library_something_else_is_left_alone(variable: str) -> None:
    name, _, value = variable.partition("=")
    said, before, after = count_faults(**{name: value})
    assert said == "False" and after > before / 2
