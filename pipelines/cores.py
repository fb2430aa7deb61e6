"""Who gets a machine's cores: torch's threads, and the processes that load data beside them."""

from __future__ import annotations

import os

import torch

from shards.workers import num_cores


def set_threads(threads: int) -> None:
    """torch's threads on a CPU: this process's share of the cores unless given."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    torch.set_num_threads(threads or max(1, num_cores() // local))


def loader_workers(num_workers: int, device: torch.device) -> int:
    """Loader processes for each training process.

    On a CPU one is enough to keep up and more would take its cores; for a GPU this process's share, 12 at
    most.
    """
    if num_workers >= 0:
        return num_workers
    if device.type == "cpu":
        return 1
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(2, min(12, num_cores() // local))


def scoring_workers(num_workers: int, device: torch.device) -> int:
    """As `loader_workers`, for an evaluation: two cores are the model's, faces are decoded in between."""
    if num_workers < 0 and device.type == "cpu" and num_cores() <= 2:
        return 0
    return loader_workers(num_workers, device)
