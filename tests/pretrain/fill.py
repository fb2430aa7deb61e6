"""The fill rule behind the golden numbers: values that need no random generator."""

from __future__ import annotations

import math
import zlib

import numpy as np
import torch
from torch import Tensor, nn


def fill_vector(name: str, count: int, scale: float) -> Tensor:
    """(count,) float32 in [-scale, scale): the fractional part of a steep sine, in float64."""
    seed = zlib.crc32(name.encode()) % 100003
    i = np.arange(count, dtype=np.float64)
    wave = 43758.5453 * np.sin(12.9898 * (i + 1) + 78.233 * (seed % 997 + 1))
    values = (2 * (wave - np.floor(wave)) - 1) * scale
    return torch.from_numpy(values.astype(np.float32))


def filled_state(model: nn.Module, scale: float, prefix: str = "") -> dict[str, Tensor]:
    """`model`'s state dict filled by name, names stripped of `prefix`; position embeddings stay."""
    state = {}
    for name, old in model.state_dict().items():
        if "pos_embed" in name:
            state[name] = old
            continue
        values = fill_vector(name.removeprefix(prefix), math.prod(old.shape), scale)
        if name.endswith(".weight") and old.ndim == 1:
            values = 1 + values
        state[name] = values.view(old.shape)
    return state
