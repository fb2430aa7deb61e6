"""Pixel values to what a model sees, on the model's device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class PixelNorm(nn.Module):
    """(value / 255 - mean) / std per channel for uint8; float counts as normalised and passes unchanged.

    The figures are not part of the state dict: they travel with the checkpoint's encoder configuration.

    Args:
        mean: one value per channel, of pixels in [0, 1].
        std: one positive value per channel.

    Raises:
        ValueError: lengths differ, or a std is not positive.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD) -> None:
        super().__init__()
        if len(mean) != len(std) or not len(mean) or min(std) <= 0:
            raise ValueError(f"mean and std need one value per channel and std > 0, got {mean} and {std}")
        mean_, std_ = torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)
        self.register_buffer("scale", (1 / (255 * std_)).float(), persistent=False)
        self.register_buffer("shift", (-mean_ / std_).float(), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Normalises (B, C, H, W) images; returns float32 (or the float dtype given)."""
        if images.is_floating_point():
            return images
        return torch.addcmul(self.shift[:, None, None], images.float(), self.scale[:, None, None])

    def patches(self, patches: Tensor) -> Tensor:
        """Normalises patches whose last dimension is (..., channel), channel fastest: (..., n*C) -> same."""
        if patches.is_floating_point():
            return patches
        scale, shift = self._tiled(patches)
        return torch.addcmul(shift, patches.float(), scale)

    def undo_patches(self, patches: Tensor) -> Tensor:
        """Normalised patches (..., n*C) back to pixel values in units of [0, 1], not clipped."""
        scale, shift = self._tiled(patches)
        return (patches - shift) / (scale * 255)

    def _tiled(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        repeats = patches.shape[-1] // len(self.scale)
        return self.scale.repeat(repeats), self.shift.repeat(repeats)
