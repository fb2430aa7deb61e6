"""Histograms of oriented gradients (Dalal & Triggs 2005): where edges run, whatever their contrast.

As a second thing to predict for masked patches they are MaskFeat's target (Wei et al. 2022). As all that a
ViT sees of a patch they leave out brightness and colour, in which rendered faces are not like photographs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.patches import patchify

ORIENTATIONS = 9
_FLAT = 0.015
"""Added to a patch's deviation, in units of normalised pixels: noise on even skin is no edge."""
_FAINT = 0.0075
"""Least root mean square of a patch's histograms that counts as its contrast, in the same units."""


def orientation_maps(images: Tensor, orientations: int = ORIENTATIONS, signed: bool = False) -> Tensor:
    """Gradient strength by orientation, of the mean over the channels.

    Args:
        images: (B, C, H, W) float.
        orientations: bins over half a turn; a gradient is shared between the two nearest.
        signed: bins over a whole turn: whether it is darker on this side of an edge or on that counts.

    Returns:
        (B, orientations, H, W), in the images' units for two pixels' distance.
    """
    grey = images.mean(1, keepdim=True)
    padded = F.pad(grey, (1, 1, 1, 1), mode="replicate")
    dx = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]
    dy = padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
    turn = 2 * torch.pi if signed else torch.pi
    place = torch.atan2(dy, dx).remainder(turn) / turn * orientations
    low = place.floor()
    share, strength = place - low, torch.hypot(dx, dy)
    low = low.long() % orientations
    maps = strength.new_zeros(len(grey), orientations, *grey.shape[2:])
    maps.scatter_(1, low, strength * (1 - share))
    return maps.scatter_add_(1, (low + 1) % orientations, strength * share)


def cells_of(patch_size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of histograms in a patch: two where its side is even, one where it is not."""
    return 2 - patch_size[0] % 2, 2 - patch_size[1] % 2


def num_values(patch_size: tuple[int, int], orientations: int = ORIENTATIONS) -> int:
    """Of a patch's histograms."""
    rows, columns = cells_of(patch_size)
    return rows * columns * orientations


def _pooled(maps: Tensor, patch_size: tuple[int, int]) -> Tensor:
    """(B, orientations, H, W) averaged over each cell of a patch."""
    rows, columns = cells_of(patch_size)
    return F.avg_pool2d(maps, (patch_size[0] // rows, patch_size[1] // columns))


@torch.no_grad()
def hog_patches(images: Tensor, patch_size: tuple[int, int]) -> Tensor:
    """Each patch's histograms, standardised over its values as norm_pix does pixels.

    Args:
        images: (B, 3, H, W) normalised.
        patch_size: (ph, pw) in pixels.

    Returns:
        (B, L, rows · columns · ORIENTATIONS) float32, see `cells_of`.
    """
    cells = _pooled(orientation_maps(images.float()), patch_size)
    histograms = patchify(cells, cells_of(patch_size))
    std, mean = torch.std_mean(histograms, dim=-1, keepdim=True)
    return (histograms - mean) / (std + _FLAT)


class HOGEmbedding(nn.Linear):
    """Patches -> tokens: a linear map of their histograms, in the place of a ViT's patch convolution.

    A gradient takes no pixel of another patch, so a masked one is not looked into. Histograms are of a whole
    turn (as two thirds of Felzenszwalb et al. 2010) and divided by their root mean square, so that contrast
    does not count; colour and brightness are not seen at all.

    Args:
        patch_size: (ph, pw) in pixels.
        dim: D of the tokens.
    """

    def __init__(self, patch_size: tuple[int, int], dim: int) -> None:
        super().__init__(num_values(patch_size, 2 * ORIENTATIONS), dim)
        self.patch_size = patch_size

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) normalised -> (B, D, gh, gw), as the convolution."""
        height, width = images.shape[2] // self.patch_size[0], images.shape[3] // self.patch_size[1]
        tokens = self.embed(patchify(images, self.patch_size))
        return tokens.transpose(1, 2).reshape(len(images), -1, height, width)

    def embed(self, patches: Tensor) -> Tensor:
        """(B, K, ph*pw*3) normalised patches, channel fastest -> (B, K, D)."""
        return super().forward(self.histograms(patches))

    @torch.no_grad()
    def histograms(self, patches: Tensor) -> Tensor:
        """(B, K, ph*pw*3) normalised patches -> (B, K, values) float32; mean square 1, of even ones less."""
        images = patches.float().reshape(-1, *self.patch_size, 3).permute(0, 3, 1, 2)
        found = _pooled(orientation_maps(images, 2 * ORIENTATIONS, signed=True), self.patch_size).flatten(1)
        strength = found.square().mean(1, keepdim=True).sqrt().clamp(min=_FAINT)
        return (found / strength).view(*patches.shape[:2], -1)
