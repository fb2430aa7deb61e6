"""Tiny clips and models of them for the tests of MRAN."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from finetune.config import MRANConfig
from finetune.mran import MRAN, build_mran
from shards import keyed
from shards.clips import ClipBatch
from tests.finetune.tiny import random, tiny_encoder

SIZE = (32, 32)
SMALL = {"dim": 6, "hidden_dim": 6, "volume_dims": (6, 8)}


def clips(count: int, length: int = 4, seed: int = 0, known: float = 0.7) -> ClipBatch:
    """Smooth moving pictures of 32 pixels; frames and labels are there with probability `known`."""
    generator = random(seed)

    def pictures(channels: int) -> Tensor:
        coarse = torch.rand(count * length, channels, 4, 4, generator=generator)
        return nn.functional.interpolate(coarse, size=SIZE, mode="bilinear").view(
            count, length, channels, *SIZE
        )

    def coins(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator) < known

    images = {
        "color": (pictures(3) * 255).byte(),
        "depth": pictures(1) * 2 - 1,
        "thermal": pictures(1) * 2 - 1,
    }
    valid = {name: coins(count, length) for name in images}
    keys = [keyed.sample_key(seed, 0, number) for number in range(count)]
    return ClipBatch(
        keys=[f"clip-{seed}-{number}" for number in range(count)],
        groups=[f"who-{number // 2}" for number in range(count)],
        images=images,
        valid=valid,
        va=torch.rand(count, length, 2, generator=generator) * 2 - 1,
        va_valid=coins(count, length, 2),
        frames=torch.arange(length).expand(count, length).clone(),
        inside=torch.ones(count, length, dtype=torch.bool),
        rng=keyed.to_tensor(np.array(keys, np.uint64)),
        num_valid=count,
    )


def take(batch: ClipBatch, rows: Sequence[int]) -> ClipBatch:
    """Some clips of a batch."""
    rows = list(rows)
    plain = {name: getattr(batch, name)[rows] for name in ("va", "va_valid", "frames", "inside", "rng")}
    parts = {name: {m: t[rows] for m, t in getattr(batch, name).items()} for name in ("images", "valid")}
    lists = {name: [getattr(batch, name)[row] for row in rows] for name in ("keys", "groups")}
    return ClipBatch(**lists, **parts, **plain, num_valid=len(rows))


def portions(batch: ClipBatch, size: int) -> list[ClipBatch]:
    """The batch in micro-batches of `size`."""
    return [take(batch, range(start, start + size)) for start in range(0, batch.size, size)]


def tiny_mran(seed: int = 1, **settings: Any) -> MRAN:
    """Colour by five convolutions unless said otherwise; 4 x 4 places."""
    config = MRANConfig(**{"encoder": "conv", **SMALL, **settings})
    encoder = tiny_encoder() if config.encoder == "vit" else None
    return build_mran(config, SIZE, encoder, random(seed))
