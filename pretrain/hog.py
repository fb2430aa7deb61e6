"""Histograms of oriented gradients (Dalal & Triggs 2005): where edges run, whatever their contrast.

As a second thing to predict for masked patches they are MaskFeat's target (Wei et al. 2022).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from pretrain.patches import patchify

ORIENTATIONS = 9
_FLAT = 0.015
"""Added to a patch's deviation, in units of normalised pixels: noise on even skin is no edge."""


def orientation_maps(images: Tensor, orientations: int = ORIENTATIONS) -> Tensor:
    """Gradient strength by orientation, of the mean over the channels.

    Args:
        images: (B, C, H, W) float.
        orientations: bins over half a turn; a gradient is shared between the two nearest.

    Returns:
        (B, orientations, H, W), in the images' units for two pixels' distance.
    """
    grey = images.mean(1, keepdim=True)
    padded = F.pad(grey, (1, 1, 1, 1), mode="replicate")
    dx = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]
    dy = padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
    place = torch.atan2(dy, dx).remainder(torch.pi) / torch.pi * orientations
    low = place.floor()
    share, strength = place - low, torch.hypot(dx, dy)
    low = low.long() % orientations
    maps = strength.new_zeros(len(grey), orientations, *grey.shape[2:])
    maps.scatter_(1, low, strength * (1 - share))
    return maps.scatter_add_(1, (low + 1) % orientations, strength * share)


def cells_of(patch_size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of histograms in a patch: two where its side is even, one where it is not."""
    return 2 - patch_size[0] % 2, 2 - patch_size[1] % 2


@torch.no_grad()
def hog_patches(images: Tensor, patch_size: tuple[int, int]) -> Tensor:
    """Each patch's histograms, standardised over its values as norm_pix does pixels.

    Args:
        images: (B, 3, H, W) normalised.
        patch_size: (ph, pw) in pixels.

    Returns:
        (B, L, rows · columns · ORIENTATIONS) float32, see `cells_of`.
    """
    rows, columns = cells_of(patch_size)
    cells = F.avg_pool2d(orientation_maps(images.float()), (patch_size[0] // rows, patch_size[1] // columns))
    histograms = patchify(cells, (rows, columns))
    std, mean = torch.std_mean(histograms, dim=-1, keepdim=True)
    return (histograms - mean) / (std + _FLAT)
