"""Foreign weights come in once, as safetensors: nothing but tensors is ever unpickled."""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from finetune.dan import AFFECTNET8, CenteredDAN, load_released
from pipelines.checkpoint import CheckpointError, TensorFile, read_tensors, write_tensors
from pipelines.models import ModelSpec, build_model, model_file


def import_weights(source: Path, out: Path, classes: Sequence[str] = ()) -> str:
    """Converts a foreign checkpoint to a safetensors file that `init=` takes, or `cnn=` if it is a DAN's.

    Args:
        source: .pth or .pt of tensors (the released MAE's hold an argparse.Namespace, which is allowed and
            dropped), or a safetensors file.
        out: safetensors file to write.
        classes: names of a DAN's classes, in the order of its outputs; without them eight are AffectNet's.

    Returns:
        What takes it: "init" or "cnn".

    Raises:
        CheckpointError: not readable, holding anything but tensors and plain values, or a DAN whose classes
            are not known.
    """
    if source.is_dir() or not out.parent.is_dir():
        wrong, what = (source, "a folder, not a file") if source.is_dir() else (out.parent, "no such folder")
        raise CheckpointError(f"{wrong}: {what}")
    if source.suffix == ".safetensors":
        tensors = read_tensors(source).tensors
    else:
        tensors = _flat_tensors(_load(source), source)
    names = {name.removeprefix("module.") for name in tensors}
    if any(name.startswith("cat_head0.") for name in names):
        write_tensors(out, _dan_file(tensors, source, classes))
        return "cnn"
    if classes:
        raise CheckpointError(f"{source}: not a DAN, so there are no classes to name: leave --classes out")
    write_tensors(out, TensorFile(tensors, {"format": "faceprior-foreign", "source": source.name}))
    return "init"


def _dan_file(tensors: Mapping[str, torch.Tensor], source: Path, classes: Sequence[str]) -> TensorFile:
    """A released DAN (224 pixels) as a model; the centres of its affinity loss begin anew."""
    state = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    heads = len({name.split(".")[0] for name in state if name.startswith("cat_head")})
    count = len(state["fc.weight"]) if "fc.weight" in state else 0
    names = tuple(classes) or (AFFECTNET8 if count == len(AFFECTNET8) else ())
    if len(names) != count:
        raise CheckpointError(
            f"{source}: a DAN of {count} classes, and {len(names)} are named: give --classes a,b,… in the "
            "order of its outputs. DAN's authors have neutral,happy,sad,surprise,fear,disgust,anger for "
            "AffectNet-7 and surprise,fear,disgust,happy,sad,anger,neutral for RAF-DB"
        )
    spec = ModelSpec("dan", (224, 224), expr=names, cnn_heads=heads)
    try:
        model = build_model(spec, torch.Generator().manual_seed(0))
        assert isinstance(model, CenteredDAN)
        load_released(model.dan, state)
    except ValueError as error:
        raise CheckpointError(f"{source}: {error}") from error
    return model_file(model, spec, {"task": "dan", "source": source.name, "alignment": [], "rendered": False})


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
