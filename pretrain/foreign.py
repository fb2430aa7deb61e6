"""Weights made elsewhere: the released MAE's .pth layout and timm ViT state dicts, into our encoder or MAE.

Reading files is not done here: the caller hands over tensors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pretrain.encoder import VisionTransformer
from pretrain.mae import MAE
from pretrain.posembed import interpolate_table, sincos_table

_HEADS = ("head.", "fc_norm.", "head_dist.")
_DECODER = ("decoder_", "mask_token")
_HISTOGRAMS = ("decoder_hog.",)
_TABLES = ("pos_embed", "decoder_pos_embed")


class LoadReport(NamedTuple):
    """What became of each tensor, by the released MAE's names.

    Attributes:
        loaded: copied as they were.
        interpolated: position embeddings moved to this model's grid.
        recomputed: fixed sine-cosine tables of another grid, for which this model keeps its own.
        ignored: in the foreign state but not in this model by design (classifier heads, a decoder).
        missing: in this model but not in the foreign state; they keep their initial values.
    """

    loaded: tuple[str, ...]
    interpolated: tuple[str, ...]
    recomputed: tuple[str, ...]
    ignored: tuple[str, ...]
    missing: tuple[str, ...]


def load_foreign(
    model: VisionTransformer | MAE, state: Mapping[str, Any], old_grid: tuple[int, int] | None = None
) -> LoadReport:
    """Loads foreign weights in place and says what became of each name.

    A whole encoder is required; a decoder may be absent as a whole, and what predicts histograms
    (`hog_weight`) in either. A state whose final norm was replaced by `fc_norm` (mean-pooled finetuning)
    leaves `norm` at its initial values and reports it missing.

    Args:
        model: an encoder of `build_encoder`, or a MAE.
        state: name -> tensor, or such a mapping under "model" or "state_dict".
        old_grid: rows and columns of patches the weights were made for; None takes a square.

    Raises:
        ValueError: names are missing or unknown, or shapes do not fit; each is named, with the remedy. The
            model is then unchanged.
    """
    own = {name.removeprefix("encoder."): tensor for name, tensor in model.state_dict().items()}
    foreign = _tensors(state)
    unknown = sorted(foreign.keys() - own.keys())
    ignorable = _HEADS + (_HISTOGRAMS if isinstance(model, MAE) else _DECODER)
    ignored = [name for name in unknown if name.startswith(ignorable)]
    missing = sorted(own.keys() - foreign.keys())
    _check_names(own, missing, sorted(set(unknown) - set(ignored)), foreign)

    encoder = model.encoder if isinstance(model, MAE) else model
    tables: dict[str, Tensor] = {}
    recomputed = []
    for name in _TABLES:
        if name in own and name in foreign and foreign[name].shape != own[name].shape:
            num_prefix = encoder.num_prefix_tokens
            if name == "pos_embed" and encoder.no_embed_class:
                num_prefix = 0
            moved = _move_table(name, foreign.pop(name), encoder.patch_embed.grid_size, num_prefix, old_grid)
            if moved is None:
                recomputed.append(name)
            else:
                tables[name] = moved
    arriving = {name: tensor for name, tensor in {**foreign, **tables}.items() if name in own}
    wrong = other_shapes(own, arriving)
    if wrong:
        raise ValueError(
            f"shapes do not fit: {', '.join(wrong)}; build the model with the embed_dim, depth, num_heads "
            "and patch_size the weights were made with (only the position embedding can change size)"
        )
    with torch.no_grad():
        for name, tensor in arriving.items():
            own[name].copy_(tensor)
    return LoadReport(
        loaded=tuple(sorted(arriving.keys() - tables.keys())),
        interpolated=tuple(tables),
        recomputed=tuple(recomputed),
        ignored=tuple(ignored),
        missing=tuple(missing),
    )


def other_shapes(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    """In words, the tensors of `given` that are not of the shape of those of their names in `own`."""
    return [
        f"{name} {tuple(tensor.shape)} instead of {tuple(own[name].shape)}"
        for name, tensor in given.items()
        if tensor.shape != own[name].shape
    ]


def _tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors by name, without the wrappers of other training loops."""
    for wrapper in ("model", "state_dict"):
        if isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    tensors = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    strange = sorted(name for name, tensor in tensors.items() if not isinstance(tensor, Tensor))
    if strange or not tensors:
        raise ValueError(
            f"not a state dict of tensors: {', '.join(strange) or 'it is empty'}; give the mapping of "
            "weights itself"
        )
    return tensors


def _check_names(
    own: Mapping[str, Tensor], missing: list[str], unknown: list[str], foreign: Mapping[str, Tensor]
) -> None:
    """Raises ValueError unless the encoder is whole and the decoder whole or absent."""
    allowed = {name for name in own if name.startswith(_HISTOGRAMS)}
    decoder = {name for name in own if name.startswith(_DECODER)}
    if not decoder & foreign.keys():
        allowed |= decoder
    if any(name.startswith("fc_norm.") for name in foreign):
        allowed |= {"norm.weight", "norm.bias"}
    lacking = [name for name in missing if name not in allowed]
    if lacking or unknown:
        raise ValueError(
            f"not weights of this model: missing {', '.join(lacking) or 'nothing'}; unknown "
            f"{', '.join(unknown) or 'nothing'}; build the model the weights were made for (name, depth), or "
            "give a state dict with the names of the released MAE or of timm's VisionTransformer"
        )


def _move_table(
    name: str, table: Tensor, grid: tuple[int, int], num_prefix: int, old_grid: tuple[int, int] | None
) -> Tensor | None:
    """The table for `grid`; None if it is the fixed sine-cosine table, which is recomputed instead."""
    num_patches = table.shape[1] - num_prefix
    side = math.isqrt(max(num_patches, 0))
    old = old_grid or (side, side)
    if old[0] * old[1] != num_patches or num_patches < 1:
        raise ValueError(
            f"{name} has {table.shape[1]} rows, not {num_prefix} prefix rows and a {old[0]}x{old[1]} grid: "
            "give old_grid, the rows and columns of patches the weights were made for"
        )
    dim = table.shape[-1]
    if dim % 4 == 0 and torch.allclose(table[0].float().cpu(), sincos_table(dim, old, num_prefix), atol=1e-4):
        return None
    return interpolate_table(table, old, grid, num_prefix)
