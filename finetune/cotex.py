"""Masked CoTEX: two ViTs see the same face under masks of their own and are to agree (paper 3.3).

images -> mask 1 -> ViT 1 -> logits 1 ┐
images -> mask 2 -> ViT 2 -> logits 2 ┴> CE 1 + CE 2 + λ·JS;  at test: no masks, mean of probabilities
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from finetune.config import CoTEXConfig, HeadConfig
from finetune.emma import readout_of, unfreeze_positions
from finetune.readout import read_faces
from pretrain.droppath import set_drop_paths
from pretrain.encoder import VisionTransformer
from pretrain.masking import mask_noise, num_keep
from pretrain.pixels import PixelNorm

_HEAD_STD = 2e-5


class CoTEXOutput(NamedTuple):
    """Logits of both views, each (B, C)."""

    first: Tensor
    second: Tensor

    @property
    def probs(self) -> Tensor:
        """(B, C) mean of the two views' probabilities."""
        return (F.softmax(self.first, dim=1) + F.softmax(self.second, dim=1)) / 2


class View(nn.Module):
    """One ViT with its expression head.

    Args:
        encoder: a ViT, MAE-pretrained.
        head: its readout; the head itself is one linear layer.
        num_classes: C.
        generator: source of the initial weights; None draws from torch's own.
    """

    def __init__(
        self,
        encoder: VisionTransformer,
        head: HeadConfig,
        num_classes: int,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        unfreeze_positions(encoder)
        self.readout = readout_of(encoder, head, generator)
        self.head = nn.Linear(self.readout.num_features, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=_HEAD_STD, generator=generator)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor, noise: Tensor | None = None, num_keep: int = 0) -> Tensor:
        """(B, 3, H, W) normalised images to (B, C) logits; with noise (B, L) of `num_keep` patches only."""
        logits: Tensor = self.head(read_faces(self.encoder, self.readout, images, noise, num_keep))
        return logits


class CoTEX(nn.Module):
    """Two views trained together.

    Args:
        first, second: encoders of the same size, each from the MAE checkpoint.
        config: masks.
        head: readout of both.
        num_classes: C.
        generator: source of the initial weights; None draws from torch's own.

    Raises:
        ValueError: a mask ratio that keeps no patch.
    """

    def __init__(
        self,
        first: VisionTransformer,
        second: VisionTransformer,
        config: CoTEXConfig,
        head: HeadConfig,
        num_classes: int = 6,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.num_patches: int = first.patch_embed.num_patches
        self.num_keep = num_keep(self.num_patches, config.mask_ratio)
        self.views = nn.ModuleList(View(encoder, head, num_classes, generator) for encoder in (first, second))
        self.pixels = PixelNorm()

    def forward(self, images: Tensor, keys: Tensor | None = None) -> CoTEXOutput:
        """Both views' logits; patches are masked in training mode only.

        Args:
            images: (B, 3, H, W), uint8, or float already normalised.
            keys: (B,) int64 random keys of the samples; needed in training.

        Raises:
            ValueError: training without keys.
        """
        images = self.pixels(images)
        masked = self.training and self.num_keep < self.num_patches
        if self.training and keys is None:
            raise ValueError("CoTEX masks by the samples' random keys: pass them in training")
        logits = []
        for number, view in enumerate(self.views):
            set_drop_paths(view, keys, number)
            noise = mask_noise(keys, self.num_patches, number) if masked and keys is not None else None
            logits.append(view(images, noise, self.num_keep))
        return CoTEXOutput(*logits)
