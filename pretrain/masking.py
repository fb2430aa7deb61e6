"""Which patches are masked: random, the same number in every sample, decided by noise alone.

Noise keyed by the sample (`shards.keyed`) makes a sample's mask independent of batch, worker and process.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from shards import keyed


class Masking(NamedTuple):
    """One random masking of N samples of L patches, K of them kept and M = L - K masked.

    Attributes:
        ids_keep: (N, K) int64, positions of the kept patches, in the order of the noise.
        ids_masked: (N, M) int64, positions of the masked patches, in the order of the noise.
        ids_restore: (N, L) int64; gathering cat(kept, masked) with it gives position order.
        mask: (N, L) bool in position order, True = masked.
    """

    ids_keep: Tensor
    ids_masked: Tensor
    ids_restore: Tensor
    mask: Tensor


def num_keep(num_patches: int, mask_ratio: float) -> int:
    """How many of `num_patches` stay visible: int(L(1-r)), as in MAE and CoTEX.

    Raises:
        ValueError: the ratio is outside [0, 1), or nothing would be left.
    """
    if not 0 <= mask_ratio < 1:
        raise ValueError(f"mask_ratio must lie in [0, 1), got {mask_ratio}")
    kept = int(num_patches * (1 - mask_ratio))
    if kept < 1:
        raise ValueError(
            f"mask_ratio {mask_ratio} leaves none of {num_patches} patches: lower it or use smaller patches"
        )
    return kept


def random_masking(noise: Tensor, num_keep: int) -> Masking:
    """Keeps the `num_keep` patches of least noise; equal noise keeps position order.

    Args:
        noise: (N, L), float or int64.
        num_keep: patches kept in each sample, in [1, L].

    Raises:
        ValueError: `num_keep` is out of range.
    """
    batch_size, length = noise.shape
    if not 1 <= num_keep <= length:
        raise ValueError(f"num_keep must lie in [1, {length}], got {num_keep}")
    ids_shuffle = torch.argsort(noise, dim=1, stable=True)
    positions = torch.arange(length, device=noise.device).expand(batch_size, length)
    ids_restore = torch.empty_like(ids_shuffle).scatter_(1, ids_shuffle, positions)
    return Masking(
        ids_keep=ids_shuffle[:, :num_keep],
        ids_masked=ids_shuffle[:, num_keep:],
        ids_restore=ids_restore,
        mask=ids_restore >= num_keep,
    )


def mask_noise(keys: Tensor, num_patches: int, view: int = 0) -> Tensor:
    """Noise for `random_masking` from the samples' own keys, computed on their device.

    Args:
        keys: (B,) int64 random keys, one per sample.
        num_patches: L.
        view: which of several independent masks of one sample (CoTEX has two).

    Returns:
        (B, L) int64.
    """
    return keyed.noise(keys, "mask" if view == 0 else f"mask-{view}", num_patches)
