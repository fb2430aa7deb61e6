"""Twins: the banded search against comparing all with all."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from shards.doctor.looks import look_at
from shards.doctor.shard import PICTURE
from shards.doctor.twins import MAX_DISTANCE, MIN_LIKENESS, find_pairs, likeness


def crowd(count: int, seed: int) -> tuple[NDArray[np.void], NDArray[np.int64]]:
    """Pictures of which many are copies of others with up to five changed bits, or a changed thumbnail."""
    rng = np.random.default_rng(seed)
    pictures = np.zeros(count, PICTURE)
    pictures["seen"] = rng.random(count) < 0.95
    pictures["flat"] = rng.random(count) < 0.05
    pictures["hash"] = rng.integers(0, 2**64, count, dtype=np.uint64)
    pictures["thumb"] = rng.integers(0, 256, (count, 256))
    pictures["size"] = pictures["crc32"] = np.arange(count)
    for i in range(count // 2, count):
        twin = rng.integers(0, count // 2)
        pictures[i] = pictures[twin]
        for bit in rng.choice(64, rng.integers(0, 6), replace=False):
            pictures["hash"][i] ^= np.uint64(1) << np.uint64(bit)
        if rng.random() < 0.3:
            pictures["thumb"][i] = rng.integers(0, 256, 256)
        if rng.random() < 0.7:
            pictures["crc32"][i] = i
    return pictures, rng.integers(0, 3, count)


@pytest.mark.parametrize("seed", range(3))
def test_the_search_finds_what_comparing_all_with_all_finds(seed: int) -> None:
    pictures, split = crowd(200, seed)
    pairs = find_pairs(pictures, split, 3, keep=10_000)
    same, alike = np.zeros((200, 3), bool), np.zeros((200, 3), bool)
    kept = set()
    for i in range(200):
        for j in range(i + 1, 200):
            a, b = pictures[i], pictures[j]
            if not (a["seen"] and b["seen"]):
                continue
            copies = all(a[name] == b[name] for name in ("hash", "size", "crc32"))
            close = bin(int(a["hash"] ^ b["hash"])).count("1") <= MAX_DISTANCE and not (
                a["flat"] or b["flat"]
            )
            like = likeness(a["thumb"][None], b["thumb"][None])[0] >= MIN_LIKENESS
            if copies:
                same[i, split[j]] = same[j, split[i]] = True
            elif close and like:
                alike[i, split[j]] = alike[j, split[i]] = True
                kept.add((i, j))
    assert same.any() and alike.any()
    assert np.array_equal(pairs.same_bytes, same)
    assert np.array_equal(pairs.look_alike, alike)
    assert all(split[i] != split[j] for i, j in pairs.between)
    assert all(split[i] == split[j] for i, j in pairs.within)


def test_a_crowd_of_equal_hashes_costs_a_window_and_says_so() -> None:
    pictures, split = np.zeros(3000, PICTURE), np.zeros(3000, np.int64)
    pictures["seen"], pictures["crc32"] = True, np.arange(3000)
    pictures["thumb"] = np.random.default_rng(0).integers(0, 256, (3000, 256))
    pairs = find_pairs(pictures, split, 1, keep=5, window=50)
    assert pairs.num_crowded == 3000 and not pairs.look_alike.any()
    assert find_pairs(pictures[:40], split[:40], 1, keep=5, window=50).num_crowded == 0


def test_no_pictures_are_no_pairs() -> None:
    pairs = find_pairs(np.zeros(0, PICTURE), np.zeros(0, np.int64), 2, keep=5)
    assert not pairs.between and not pairs.within


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (15, 16), (48, 48), (301, 17)])
def test_a_look_stands_rescaling_of_brightness_and_any_size(size: tuple[int, int]) -> None:
    image = torch.from_numpy(np.random.default_rng(0).integers(20, 200, (3, *size), dtype=np.uint8))
    look, brighter = look_at(image), look_at(image + 20)
    assert look.thumb.shape == (256,) and look.hash == brighter.hash
    assert look.flat == (size == (1, 1))


def test_a_flat_picture_is_flat() -> None:
    assert look_at(torch.full((3, 64, 64), 77, dtype=torch.uint8)).flat
