"""Absolute position embeddings: the fixed sine-cosine table, and moving a table to another grid."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F


def sincos_table(embed_dim: int, grid: tuple[int, int], num_prefix_tokens: int = 1) -> Tensor:
    """The fixed 2-D sine-cosine table of MAE.

    A row is [sin(x w), cos(x w), sin(y w), cos(y w)], embed_dim/4 values each, x the column, y the row,
    w_k = 10000^(-k/(embed_dim/4)); computed in float64.

    Args:
        embed_dim: D, a multiple of 4.
        grid: (gh, gw), rows and columns of patches.
        num_prefix_tokens: rows of zeros put in front (cls, registers).

    Returns:
        (num_prefix_tokens + gh*gw, D) float32 on the CPU.

    Raises:
        ValueError: `embed_dim` is not a multiple of 4.
    """
    if embed_dim % 4:
        raise ValueError(f"a sine-cosine table needs a width that is a multiple of 4, got {embed_dim}")
    rows, columns = np.divmod(np.arange(grid[0] * grid[1], dtype=np.float64), grid[1])
    table = np.concatenate([_waves(columns, embed_dim // 4), _waves(rows, embed_dim // 4)], axis=1)
    prefix = np.zeros((num_prefix_tokens, embed_dim))
    return torch.from_numpy(np.concatenate([prefix, table]).astype(np.float32))


def _waves(positions: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    angles = positions[:, None] * 10000.0 ** (-np.arange(count, dtype=np.float64) / count)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def interpolate_table(
    table: Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int], num_prefix_tokens: int = 1
) -> Tensor:
    """Moves a position table to another grid, as MAE's finetuning does: bicubic, no antialias.

    Args:
        table: (..., num_prefix_tokens + gh*gw, D) for the old grid.
        old_grid: (gh, gw) it was made for.
        new_grid: (gh, gw) wanted.
        num_prefix_tokens: rows in front that are kept as they are.

    Returns:
        the table for the new grid, same leading dimensions and dtype.

    Raises:
        ValueError: the table has another number of rows than `old_grid` says.
    """
    *lead, length, dim = table.shape
    if length != num_prefix_tokens + old_grid[0] * old_grid[1]:
        raise ValueError(
            f"a position table of {length} rows is not {num_prefix_tokens} prefix rows and a "
            f"{old_grid[0]}x{old_grid[1]} grid: give the grid it was made for"
        )
    if old_grid == new_grid:
        return table
    flat = table.reshape(-1, length, dim)
    prefix, cells = flat[:, :num_prefix_tokens], flat[:, num_prefix_tokens:]
    plane = cells.reshape(-1, *old_grid, dim).permute(0, 3, 1, 2).float()
    moved = F.interpolate(plane, size=new_grid, mode="bicubic", align_corners=False, antialias=False)
    cells = moved.permute(0, 2, 3, 1).flatten(1, 2).to(table.dtype)
    return torch.cat([prefix, cells], dim=1).reshape(*lead, -1, dim)
