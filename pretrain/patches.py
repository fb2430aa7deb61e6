"""Images to patches and back: the one home of patch arithmetic.

Patches run row by row over the grid; inside a patch the values run row, column, channel, channel fastest (He
et al. 2022, as released).
"""

from __future__ import annotations

import torch
from torch import Tensor


def grid_of(image_size: tuple[int, int], patch_size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of patches in an image.

    Args:
        image_size: height and width in pixels.
        patch_size: height and width of a patch in pixels.

    Raises:
        ValueError: a side is not a positive multiple of the patch's side.
    """
    (height, width), (ph, pw) = image_size, patch_size
    if min(height, width, ph, pw) < 1 or height % ph or width % pw:
        raise ValueError(
            f"image {height}x{width} does not divide into patches {ph}x{pw}: choose an image size that is a "
            "multiple of the patch size"
        )
    return height // ph, width // pw


def patchify(images: Tensor, patch_size: tuple[int, int]) -> Tensor:
    """Cuts images into patches; any dtype (uint8 moves a quarter of float32's bytes).

    Args:
        images: (B, C, H, W), H and W multiples of the patch's sides.
        patch_size: (ph, pw) in pixels.

    Returns:
        (B, L, ph*pw*C) patches, contiguous, L = (H/ph)*(W/pw).

    Raises:
        ValueError: the image does not divide into patches.
    """
    batch_size, channels, height, width = images.shape
    gh, gw = grid_of((height, width), patch_size)
    ph, pw = patch_size
    cells = images.reshape(batch_size, channels, gh, ph, gw, pw).permute(0, 2, 4, 3, 5, 1)
    return cells.reshape(batch_size, gh * gw, ph * pw * channels)


def unpatchify(patches: Tensor, patch_size: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Puts patches back together; inverse of `patchify`.

    Args:
        patches: (B, L, ph*pw*C).
        patch_size: (ph, pw) in pixels.
        grid: (gh, gw), rows and columns of patches.

    Returns:
        (B, C, gh*ph, gw*pw) images.

    Raises:
        ValueError: the patches do not fill the grid, or a patch does not hold whole pixels.
    """
    batch_size, num_patches, values = patches.shape
    (ph, pw), (gh, gw) = patch_size, grid
    if num_patches != gh * gw or values % (ph * pw):
        raise ValueError(f"patches {tuple(patches.shape)} do not fill a {gh}x{gw} grid of {ph}x{pw} patches")
    channels = values // (ph * pw)
    cells = patches.reshape(batch_size, gh, gw, ph, pw, channels).permute(0, 5, 1, 3, 2, 4)
    return cells.reshape(batch_size, channels, gh * ph, gw * pw)


def gather_patches(tokens: Tensor, ids: Tensor) -> Tensor:
    """Picks patches (or tokens) of each sample by position.

    Args:
        tokens: (B, L, D), contiguous for speed.
        ids: (B, K) int64 in [0, L).

    Returns:
        (B, K, D); row k of sample b is `tokens[b, ids[b, k]]`.
    """
    batch_size, length, dim = tokens.shape
    rows = torch.arange(batch_size, device=ids.device)[:, None] * length + ids
    return tokens.reshape(batch_size * length, dim).index_select(0, rows.flatten()).view(*ids.shape, dim)
