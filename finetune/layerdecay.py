"""Layer-wise learning-rate decay in finetuning a ViT: early layers learn less (paper, Table 3).

Stem (cls token, position and patch embedding, CLIP's norm before the blocks) is layer 0, block i is layer
i + 1, the final norm and whatever sits on the encoder are layer depth + 1; layer k learns with
decay^(depth + 1 − k) of the rate.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from torch import nn

from pretrain.task import ParamRule

_STEM = re.compile(r"(^|\.)(cls_token|reg_token|pos_embed|(patch_embed|norm_pre)\..*)$")
_BLOCK = re.compile(r"(^|\.)blocks\.(\d+)\.")


def is_undecayed(name: str, param: nn.Parameter) -> bool:
    """Biases, one-dimensional parameters, tokens and positions (pretraining decays its tokens)."""
    return param.ndim <= 1 or name.endswith((".bias", "cls_token", "reg_token", "pos_embed"))


def layer_of(name: str, depth: int) -> int:
    """The layer of a parameter, in [0, depth + 1].

    Args:
        name: in the model; `encoder.` or another prefix may stand before the ViT's own names.
        depth: blocks of the ViT.
    """
    if _STEM.search(name):
        return 0
    block = _BLOCK.search(name)
    return int(block[2]) + 1 if block else depth + 1


def layer_decay_rules(depth: int, decay: float) -> Sequence[ParamRule]:
    """Rules that give every parameter its layer's rate, and weight decay to matrices only.

    Args:
        depth: blocks of the ViT; 0 for a model without any (one rate).
        decay: factor from layer to layer, in (0, 1]; 1 = one rate for all.

    Raises:
        ValueError: a decay out of range.
    """
    if not 0 < decay <= 1:
        raise ValueError(f"layer_decay must lie in (0, 1], got {decay}")
    rules = [ParamRule(is_undecayed, decay=False)]
    if depth and decay < 1:
        rules += [
            ParamRule(_of_layer(layer, depth), lr_scale=decay ** (depth + 1 - layer))
            for layer in range(depth + 1)
        ]
    return rules


def _of_layer(layer: int, depth: int) -> Callable[[str, nn.Parameter], bool]:
    return lambda name, param: layer_of(name, depth) == layer
