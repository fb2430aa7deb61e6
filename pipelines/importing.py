"""Foreign weights come in once, as safetensors: nothing but tensors is ever unpickled."""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pipelines.checkpoint import CheckpointError, TensorFile, read_tensors, write_tensors


def import_weights(source: Path, out: Path) -> int:
    """Converts a foreign checkpoint to a safetensors file that `init=` takes.

    Args:
        source: .pth or .pt of tensors (the released MAE's hold an argparse.Namespace, which is allowed and
            dropped), or a safetensors file.
        out: safetensors file to write.

    Returns:
        How many tensors it holds.

    Raises:
        CheckpointError: not readable, or holding anything but tensors and plain values.
    """
    if source.is_dir() or not out.parent.is_dir():
        wrong, what = (source, "a folder, not a file") if source.is_dir() else (out.parent, "no such folder")
        raise CheckpointError(f"{wrong}: {what}")
    if source.suffix == ".safetensors":
        tensors = read_tensors(source).tensors
    else:
        tensors = _flat_tensors(_load(source), source)
    facts = {"format": "faceprior-foreign", "source": source.name}
    write_tensors(out, TensorFile(tensors, facts))
    return len(tensors)


def _load(source: Path) -> Any:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(source, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{source}: no such file") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{source}: holds more than tensors, or is damaged ({reason:.200}); nothing in it was run. "
            "Save its state_dict alone with torch.save, or as safetensors"
        ) from error


def _flat_tensors(data: Any, source: Path) -> dict[str, torch.Tensor]:
    """The state dict: the mapping itself, or the one under a usual name."""
    for name in ("model", "state_dict", "model_state_dict"):
        if isinstance(data, Mapping) and isinstance(data.get(name), Mapping):
            data = data[name]
    tensors = (
        {str(k): v for k, v in data.items() if isinstance(v, torch.Tensor)}
        if isinstance(data, Mapping)
        else {}
    )
    if not tensors:
        raise CheckpointError(f"{source}: no mapping of names to tensors in it")
    return {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
