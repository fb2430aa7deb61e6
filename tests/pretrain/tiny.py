"""Small models and batches for the tests of `pretrain`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from fill import fill_vector, filled_state
from torch import Tensor

from pretrain.config import EncoderConfig, MAEConfig
from pretrain.encoder import build_encoder
from pretrain.mae import MAE


def tiny_mae(norm_pix: bool = True, image_size: tuple[int, int] = (32, 32), depth: int = 1) -> MAE:
    """The MAE of the golden numbers, randomly initialised."""
    encoder = build_encoder(
        EncoderConfig(image_size=image_size, patch_size=(8, 8), embed_dim=48, depth=2, num_heads=4),
        torch.Generator().manual_seed(0),
    )
    config = MAEConfig(norm_pix=norm_pix, decoder_dim=32, decoder_depth=depth, decoder_heads=4)
    return MAE(encoder, config, generator=torch.Generator().manual_seed(1))


def golden_mae(norm_pix: bool) -> MAE:
    """The MAE of the golden numbers, filled by rule."""
    model = tiny_mae(norm_pix)
    model.load_state_dict(filled_state(model, 0.1, prefix="encoder."))
    return model


def golden_inputs() -> tuple[Tensor, Tensor]:
    """Images (2, 3, 32, 32), normalised, and mask noise (2, 16)."""
    return fill_vector("img", 2 * 3 * 32 * 32, 1.0).view(2, 3, 32, 32), fill_vector("noise", 32, 0.5).view(
        2, 16
    ) + 0.5


@dataclass
class FakeBatch:
    """The part of a batch that pretraining reads."""

    images: Tensor
    rng: Tensor

    @property
    def keys(self) -> list[str]:
        return [f"sample-{key}" for key in self.rng.tolist()]

    @property
    def size(self) -> int:
        return len(self.images)

    def part(self, start: int, stop: int) -> FakeBatch:
        return FakeBatch(self.images[start:stop], self.rng[start:stop])


def smooth_batch(size: int, image_size: tuple[int, int] = (32, 32), seed: int = 0) -> FakeBatch:
    """Smooth random uint8 images, each with its own key."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(size, 3, 4, 4, generator=generator)
    images = torch.nn.functional.interpolate(coarse, size=image_size, mode="bicubic", align_corners=False)
    return FakeBatch((images.clamp(0, 1) * 255).byte(), torch.arange(size) * 7919 + seed)
