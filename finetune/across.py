"""What a loss needs from the other processes of a step; on one process each function is the identity.

On torch.distributed's default group, so that tensors stay on their device and nothing waits for the host.
All are collective: every process calls them, in the same order.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """How many processes share a step; 1 where none were launched together."""
    return dist.get_world_size() if _launched() else 1


def sum_across(tensor: Tensor) -> Tensor:
    """The sum of every process's tensor.

    Args:
        tensor: any shape, the same on all processes; bool is counted as int64.

    Returns:
        Same shape, detached.
    """
    total = tensor.detach()
    if total.dtype == torch.bool:
        total = total.long()
    if _launched():
        total = total.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
    return total


def gather_across(tensor: Tensor) -> Tensor:
    """Every process's samples in one batch, in order of rank.

    Only this process's own rows carry gradient; the others are constants. Where all processes compute the
    same loss of the whole batch, each so gets the exact gradient of its own samples, and the sum over
    processes is the whole gradient: a loop that averages gradients needs that loss times `world_size()`.

    Args:
        tensor: (n, ...), the same shape on all processes; any dtype, bool too.

    Returns:
        (world_size * n, ...); the tensor itself on one process.
    """
    if not _launched():
        return tensor
    own = tensor.detach().contiguous()
    sent = own.view(torch.uint8) if own.dtype == torch.bool else own
    received = [torch.empty_like(sent) for _ in range(dist.get_world_size())]
    dist.all_gather(received, sent)
    parts = [part.view(tensor.dtype) for part in received]
    parts[dist.get_rank()] = tensor
    return torch.cat(parts)


def _launched() -> bool:
    return dist.is_available() and dist.is_initialized()
