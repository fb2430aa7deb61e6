"""Checkpoints: whole or not there, verified when read, and at every instant one good one on disk.

A checkpoint is a folder `step-00012000` of safetensors and JSON; its manifest.json, written last inside it,
holds a sha256 of every file. It is written beside its final name, fsynced and renamed; then `latest` points
to it; then old ones go. Nothing is pickled.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import nn

from pretrain.encoder import EncoderConfig, build_encoder, timm_arguments
from pretrain.pixels import IMAGENET_MEAN, IMAGENET_STD
from shards.files import clear_disk_errors, fsync_folder, sha256_file, write_atomic

FORMAT = "faceprior-checkpoint"
VERSION = 1
Tensors = dict[str, torch.Tensor]


class CheckpointError(Exception):
    """A checkpoint cannot be read or written; names the file and the remedy."""


@dataclass(frozen=True)
class TensorFile:
    """One safetensors file: tensors, and the facts that go into its one metadata key."""

    tensors: Tensors
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Checkpoint:
    """Everything a checkpoint holds.

    Attributes:
        step: optimiser steps done.
        position: samples of those steps.
        files: name without suffix ("encoder", "model", "optimizer", "rng") -> its tensors and facts.
    """

    step: int
    position: int
    files: Mapping[str, TensorFile]


class CheckpointStore:
    """The checkpoints of one run."""

    def __init__(self, folder: Path, keep: int = 2, keep_every: int = 0) -> None:
        """`keep`: newest kept, at least 2; `keep_every`: multiples of it are kept too (0 = none)."""
        self.folder = folder
        self._keep = max(2, keep)
        self._keep_every = keep_every

    def save(self, checkpoint: Checkpoint) -> Path:
        """Writes a checkpoint, points `latest` to it, drops old ones.

        Raises:
            CheckpointError: weights that are not finite.
            DataError: the disk is full or cannot be written; earlier checkpoints are untouched.
        """
        for name, file in checkpoint.files.items():
            for key, tensor in file.tensors.items():
                if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                    raise CheckpointError(f"{name}: {key} is not finite; no checkpoint is made of it")
        final = self.folder / f"step-{checkpoint.step:08d}"
        temporary = self.folder / f".{final.name}.tmp"
        with clear_disk_errors(final):
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            try:
                self._write(temporary, checkpoint)
                if final.exists():
                    set_aside(final)
                temporary.rename(final)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
            fsync_folder(self.folder)
            write_atomic(self.folder / "latest", final.name.encode() + b"\n")
            self._rotate()
        return final

    def load(self) -> Checkpoint | None:
        """The newest checkpoint that is whole; None if there never was one. Damaged ones are moved aside.

        Raises:
            CheckpointError: there are checkpoints, but none is whole.
        """
        folders = self.folders()
        for folder in reversed(folders):
            try:
                return read_checkpoint(folder)
            except CheckpointError as error:
                aside = set_aside(folder)
                print(f"damaged checkpoint ({error}): moved to {aside.name}, trying the one before it")
        if folders:
            raise CheckpointError(
                f"{self.folder}: none of its checkpoints is whole: restore one, or start with run=OTHER"
            )
        return None

    def folders(self) -> list[Path]:
        """Folders of checkpoints, oldest first."""
        return sorted(path for path in self.folder.glob("step-*") if path.name[5:].isdecimal())

    def _write(self, folder: Path, checkpoint: Checkpoint) -> None:
        names = []
        for name, file in checkpoint.files.items():
            write_tensors(folder / f"{name}.safetensors", file)
            names.append(f"{name}.safetensors")
        marks = {"format": FORMAT, "version": VERSION}
        state = {**marks, "step": checkpoint.step, "position": checkpoint.position}
        write_atomic(folder / "state.json", json.dumps(state).encode())
        digests = {name: sha256_file(folder / name) for name in [*names, "state.json"]}
        manifest = {**marks, "files": digests}
        write_atomic(folder / "manifest.json", json.dumps(manifest, indent=1).encode())
        fsync_folder(folder)

    def _rotate(self) -> None:
        folders = self.folders()
        for folder in folders[: -self._keep]:
            if self._keep_every and int(folder.name[5:]) % self._keep_every == 0:
                continue
            doomed = folder.with_name(f".{folder.name}.old")
            folder.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)


def set_aside(folder: Path) -> Path:
    """Moves a damaged or older folder to a name of its own; nothing is ever renamed onto it."""
    number = 1
    while (aside := folder.with_name(f"damaged-{folder.name}-{number}")).exists():
        number += 1
    folder.rename(aside)
    return aside


def read_checkpoint(folder: Path) -> Checkpoint:
    """Reads and verifies one checkpoint folder.

    Raises:
        CheckpointError: a file is missing, changed or of another version.
    """
    manifest = _read_json(folder / "manifest.json")
    digests = manifest.get("files")
    if not isinstance(digests, dict) or "state.json" not in digests:
        raise CheckpointError(f"{folder / 'manifest.json'}: lists no files")
    for name, digest in digests.items():
        if Path(name).name != name:
            raise CheckpointError(f"{folder / 'manifest.json'}: {name!r} is not a file name")
        try:
            actual = sha256_file(folder / name)
        except OSError as error:
            raise CheckpointError(f"{folder / name}: {error.strerror}") from error
        if actual != digest:
            raise CheckpointError(f"{folder / name}: changed since it was written")
    state = _read_json(folder / "state.json")
    files = {
        Path(name).stem: read_tensors(folder / name) for name in digests if name.endswith(".safetensors")
    }
    return Checkpoint(int(state["step"]), int(state["position"]), files)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not JSON") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise CheckpointError(f"{path}: not a file of {FORMAT}")
    if data.get("version") != VERSION:
        raise CheckpointError(f"{path}: format version {data.get('version')!r}, this program reads {VERSION}")
    return data


def write_tensors(path: Path, file: TensorFile) -> None:
    """One safetensors file; facts go into one metadata key, as several have no stable order."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in file.tensors.items()}
    facts = json.dumps(file.facts, sort_keys=True)
    write_atomic(path, to_safetensors(tensors, {"faceprior": facts}))


def read_tensors(path: Path) -> TensorFile:
    """Reads a safetensors file onto the CPU.

    Raises:
        CheckpointError: not there, or not a safetensors file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {}).get("faceprior", "{}"))
            return TensorFile({name: file.get_tensor(name) for name in file.keys()}, facts)  # noqa: SIM118
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file") from error
    except (SafetensorError, ValueError, OSError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error})") from error


def find_checkpoint(path: Path) -> Path:
    """The checkpoint folder meant by a run directory, a checkpoints folder or a checkpoint.

    Raises:
        CheckpointError: there is none.
    """
    for folder in (path, path / "checkpoints"):
        if (folder / "manifest.json").is_file():
            return folder
        steps = CheckpointStore(folder).folders()
        if steps:
            return steps[-1]
    raise CheckpointError(f"{path}: no checkpoint there; give a run directory or a checkpoint folder")


def find_encoder(path: Path) -> Path:
    """The encoder.safetensors meant by a run, a checkpoint, or the file itself.

    Raises:
        CheckpointError: there is none.
    """
    return path if path.is_file() else find_checkpoint(path) / "encoder.safetensors"


def encoder_file(
    encoder: nn.Module, config: EncoderConfig, alignment: Sequence[Mapping[str, Any]], rendered: bool
) -> TensorFile:
    """The content of encoder.safetensors: a timm ViT's weights, and all that it takes to use them.

    Args:
        encoder: the ViT.
        config: it was built from.
        alignment: the recipes by which its training faces were aligned.
        rendered: whether those faces were rendered.
    """
    facts = {
        "format": "faceprior-encoder",
        "version": VERSION,
        "timm": {"name": config.name, "arguments": timm_arguments(config)},
        "config": asdict(config),
        "image_size": list(config.image_size),
        "mean": list(IMAGENET_MEAN),
        "std": list(IMAGENET_STD),
        "alignment": [dict(recipe) for recipe in alignment],
        "rendered": rendered,
    }
    return TensorFile(dict(encoder.state_dict()), facts)


def load_encoder(path: Path) -> nn.Module:
    """The encoder of a run, checkpoint or encoder.safetensors, built from the file's own facts.

    Raises:
        CheckpointError: not an encoder, or its tensors do not fit what it says it is.
    """
    file = read_tensors(find_encoder(path))
    if file.facts.get("format") != "faceprior-encoder":
        raise CheckpointError(f"{path}: not an encoder of faceprior; bring others in with `faceprior import`")
    encoder = build_encoder(EncoderConfig(**file.facts["config"]))
    try:
        encoder.load_state_dict(file.tensors, strict=True)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return encoder


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> Tensors:
    """The optimiser's state, keyed `<parameter name>.<state name>`; groups must carry `names`."""
    tensors = {}
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            for key, value in optimizer.state.get(parameter, {}).items():
                tensors[f"{name}.{key}"] = torch.as_tensor(value)
    return tensors


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]) -> None:
    """Puts a saved state back.

    Raises:
        CheckpointError: a parameter has no saved state, or saved state has no parameter.
    """
    left = dict(tensors)
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            found = {key: left.pop(f"{name}.{key}", None) for key in ("step", "exp_avg", "exp_avg_sq")}
            if any(value is None for value in found.values()):
                raise CheckpointError(f"optimizer.safetensors: no state for parameter {name}")
            step_device = parameter.device if group.get("fused") else "cpu"
            optimizer.state[parameter] = {
                key: value.to(step_device if key == "step" else parameter.device, copy=True)
                for key, value in found.items()
                if value is not None
            }
    if left:
        raise CheckpointError(f"optimizer.safetensors: state of an unknown parameter, {sorted(left)[0]}")


def disk_free(path: Path) -> int:
    """Free bytes where `path` is or will be."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free
