"""Randomness without state: every random number is a hash of what it is for.

A sample's key is `sample_key(seed, epoch, sample)`; each use of randomness (crop, flip, mask noise, ...)
derives its own stream from it by name. Nothing depends on which process, worker or micro-batch handles the
sample, so any layout sees the same crops and masks. numpy and torch versions give the same bits; the torch
ones run on the device.

The hash is the finaliser of SplitMix64 (Steele, Lea & Flood 2014, "Fast splittable pseudorandom number
generators").
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
_MASK = 0xFFFFFFFFFFFFFFFF

UInt64 = NDArray[np.uint64]


def stream_id(name: str) -> int:
    """The number of the stream called `name` ("crop", "flip", "mask", ...): its crc32."""
    return zlib.crc32(name.encode())


def mix(key: int, value: int) -> int:
    """One hash of a 64-bit key and a 64-bit value, both read modulo 2**64; in [0, 2**64)."""
    z = (key + _GOLDEN * ((value & _MASK) + 1)) & _MASK
    z = ((z ^ (z >> 30)) * _MIX_1) & _MASK
    z = ((z ^ (z >> 27)) * _MIX_2) & _MASK
    return z ^ (z >> 31)


def sample_key(seed: int, epoch: int, sample: int) -> int:
    """The random key of one sample in one epoch, in [0, 2**64)."""
    return mix(mix(mix(0, seed), epoch), sample)


def mix_array(key: int | UInt64, values: Any) -> UInt64:
    """`mix` over arrays: keys and values broadcast; returns uint64."""
    with np.errstate(over="ignore"):
        z = np.asarray(key, np.uint64) + np.uint64(_GOLDEN) * (
            np.asarray(values).astype(np.uint64) + np.uint64(1)
        )
        z = (z ^ (z >> np.uint64(30))) * np.uint64(_MIX_1)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(_MIX_2)
        return np.asarray(z ^ (z >> np.uint64(31)))


def generator(key: int, stream: str) -> np.random.Generator:
    """A numpy generator for one stream of one sample: for code that draws many numbers (the renderer)."""
    return np.random.Generator(np.random.Philox(key=mix(key, stream_id(stream))))


def uniforms(key: int, stream: str, count: int) -> NDArray[np.float64]:
    """`count` numbers in [0, 1) of one stream of one sample, 53 bits each."""
    bits = mix_array(mix(key, stream_id(stream)), np.arange(count, dtype=np.uint64))
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(key: int, count: int) -> NDArray[np.int64]:
    """A permutation of range(count), a pure function of (key, count)."""
    return np.argsort(mix_array(key, np.arange(count, dtype=np.uint64)), kind="stable")


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def _shift_right(bits: torch.Tensor, count: int) -> torch.Tensor:
    """Logical shift: torch has no unsigned 64-bit arithmetic on every device, and its `>>` keeps the sign."""
    return (bits >> count) & ((1 << (64 - count)) - 1)


def mix_tensor(keys: torch.Tensor, values: torch.Tensor | int) -> torch.Tensor:
    """`mix` on the device: int64 tensors that hold the same 64 bits, broadcasting."""
    if isinstance(values, int):
        z = keys + _signed(_GOLDEN * (values + 1) & _MASK)
    else:
        z = keys + _signed(_GOLDEN) * (values + 1)
    z = (z ^ _shift_right(z, 30)) * _signed(_MIX_1)
    z = (z ^ _shift_right(z, 27)) * _signed(_MIX_2)
    return z ^ _shift_right(z, 31)


def to_tensor(keys: UInt64) -> torch.Tensor:
    """uint64 keys as an int64 tensor of the same bits (a view)."""
    return torch.from_numpy(np.ascontiguousarray(keys, np.uint64).view(np.int64))


def noise(keys: torch.Tensor, stream: str, count: int) -> torch.Tensor:
    """Random int64 in [0, 2**63) per sample, to be sorted or compared.

    Args:
        keys: (B,) int64, the samples' random keys.
        stream: which use of randomness this is.
        count: numbers per sample.

    Returns:
        (B, count) int64, the upper 63 bits of the hash.
    """
    counter = torch.arange(count, device=keys.device, dtype=torch.int64)
    return _shift_right(mix_tensor(mix_tensor(keys, stream_id(stream))[:, None], counter), 1)


def uniform_noise(keys: torch.Tensor, stream: str, count: int) -> torch.Tensor:
    """(B, count) float32 in [0, 1), 24 bits each; otherwise as `noise`."""
    return (noise(keys, stream, count) >> 39).to(torch.float32) * 2.0**-24
