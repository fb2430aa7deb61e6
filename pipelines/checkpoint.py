"""Checkpoints: whole or not there, verified when read, and at every instant one good one on disk.

A checkpoint is a folder `step-00012000` of safetensors and JSON; its manifest.json, written last inside it,
holds a sha256 of every file. It is written beside its final name, fsynced and renamed; then `latest` points
to it; then old ones go, but never the one that `best` points to. Nothing is pickled.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pretrain.config import EncoderConfig
from pretrain.encoder import build_encoder, timm_arguments
from pretrain.pixels import IMAGENET_MEAN, IMAGENET_STD
from shards.files import atomic_path, clear_disk_errors, fsync_folder, sha256_file, write_atomic
from shards.labels import DataError
from shards.records import fingerprint

FORMAT = "faceprior-checkpoint"
VERSION = 1
Tensors = dict[str, torch.Tensor]
Which = Literal["latest", "best"]
_NAME = re.compile(r"step-\d+")


class CheckpointError(Exception):
    """A checkpoint cannot be read or written; names the file and the remedy."""


class DamagedError(CheckpointError):
    """A file of a checkpoint is not what was written: it is missing, changed, or no JSON.

    A file that cannot be read at the moment, or was written by another version, is not damaged.
    """


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
        skipped: updates that were masked on the way, as something was not finite.
    """

    step: int
    position: int
    files: Mapping[str, TensorFile]
    skipped: int = 0

    @property
    def name(self) -> str:
        """Of its folder."""
        return step_name(self.step)


@dataclass(frozen=True)
class Best:
    """The checkpoint with the highest score of its task so far."""

    folder: Path
    score: float


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
                if not is_finite(tensor):
                    raise CheckpointError(f"{name}: {key} is not finite; no checkpoint is made of it")
        final = self.folder / checkpoint.name
        temporary = self.folder / f".{final.name}.tmp"
        with clear_disk_errors(final):
            self._clear_leftovers()
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
            CheckpointError: there are or were checkpoints, but none is whole; or one cannot be read though it
                may be whole, and then nothing is moved.
        """
        for folder in reversed(self.folders()):
            try:
                return read_checkpoint(folder)
            except DamagedError as error:
                aside = set_aside(folder)
                print(f"damaged checkpoint ({error}): moved to {aside.name}, trying the one before it")
        if any(self.folder.glob("damaged-step-*")):
            raise CheckpointError(
                f"{self.folder}: none of its checkpoints is whole (damaged-* are what is left of them): "
                "restore one, or start with run=OTHER"
            )
        return None

    def folders(self) -> list[Path]:
        """Folders of checkpoints, oldest first."""
        found = (path for path in self.folder.glob("step-*") if _NAME.fullmatch(path.name))
        return sorted(found, key=lambda path: int(path.name[5:]))

    def find(self, which: Which, file: str) -> Path | None:
        """A checkpoint whose `file` is whole: the newest, or the best by score if there is one.

        Where that one is damaged it is the newest before or beside it, and that is said. None if there are no
        checkpoints.

        Raises:
            CheckpointError: in none of them the file is whole.
        """
        folders = self.folders()[::-1]
        best = self.best() if which == "best" else None
        if best is not None:
            folders = [best.folder, *(folder for folder in folders if folder != best.folder)]
        for folder in folders:
            try:
                verify_file(folder / file)
            except DamagedError as error:
                print(f"damaged checkpoint ({error}): trying another one")
                continue
            return folder
        if folders:
            raise CheckpointError(f"{self.folder}: in none of its checkpoints {file} is whole: restore one")
        return None

    def best(self) -> Best | None:
        """The best checkpoint so far, if one was marked and is there.

        Raises:
            CheckpointError: the mark cannot be read.
        """
        path = self.folder / "best"
        if not path.exists():
            return None
        mark = _read_json(path)
        name, score = mark.get("checkpoint"), mark.get("score")
        if not isinstance(name, str) or not _NAME.fullmatch(name) or not isinstance(score, int | float):
            raise DamagedError(f"{path}: names no checkpoint and score; remove it, and the next is the best")
        folder = self.folder / name
        return Best(folder, float(score)) if folder.is_dir() else None

    def is_best(self, score: float) -> bool:
        """Whether `score` is higher than that of the best checkpoint."""
        best = self.best()
        return math.isfinite(score) and (best is None or score > best.score)

    def mark_best(self, step: int, score: float) -> None:
        """Makes the saved checkpoint of `step` the best: rotation spares it."""
        mark = {"format": FORMAT, "version": VERSION, "checkpoint": step_name(step), "score": score}
        write_atomic(self.folder / "best", json.dumps(mark).encode())

    def _write(self, folder: Path, checkpoint: Checkpoint) -> None:
        names = []
        for name, file in checkpoint.files.items():
            write_tensors(folder / f"{name}.safetensors", file)
            names.append(f"{name}.safetensors")
        marks = {"format": FORMAT, "version": VERSION}
        state = {**marks, "step": checkpoint.step, "position": checkpoint.position}
        state["skipped"] = checkpoint.skipped
        write_atomic(folder / "state.json", json.dumps(state).encode())
        digests = {name: sha256_file(folder / name) for name in [*names, "state.json"]}
        manifest: dict[str, Any] = {**marks, "files": digests}
        manifest["checksum"] = fingerprint(manifest)
        write_atomic(folder / "manifest.json", json.dumps(manifest, indent=1).encode())
        fsync_folder(folder)

    def _rotate(self) -> None:
        best = self.best()
        for folder in self.folders()[: -self._keep]:
            kept = self._keep_every and int(folder.name[5:]) % self._keep_every == 0
            if kept or (best is not None and folder == best.folder):
                continue
            doomed = folder.with_name(f".{folder.name}.old")
            folder.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)

    def _clear_leftovers(self) -> None:
        """Removes what a save left that was killed: this process alone writes here."""
        for path in [*self.folder.glob(".*.tmp"), *self.folder.glob(".step-*.old")]:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def step_name(step: int) -> str:
    """The name of a checkpoint's folder."""
    return f"step-{step:08d}"


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
        DamagedError: a file is missing or changed.
        CheckpointError: a file is of another version, or cannot be read.
    """
    digests = _read_digests(folder)
    for name in digests:
        verify_file(folder / name, digests)
    state = _read_json(folder / "state.json")
    step, position, skipped = state.get("step"), state.get("position"), state.get("skipped", 0)
    if type(step) is not int or type(position) is not int or type(skipped) is not int or step < 0:
        raise DamagedError(f"{folder / 'state.json'}: no step and position")
    files = {
        Path(name).stem: read_tensors(folder / name) for name in digests if name.endswith(".safetensors")
    }
    return Checkpoint(step, position, files, skipped)


def verify_file(path: Path, digests: Mapping[str, str] | None = None) -> None:
    """Compares a file of a checkpoint with its digest in the manifest.

    Args:
        path: of the file.
        digests: of that manifest; None = read it.

    Raises:
        DamagedError: missing or changed.
        CheckpointError: no file of this checkpoint, or it cannot be read.
    """
    digests = _read_digests(path.parent) if digests is None else digests
    if path.name not in digests:
        raise CheckpointError(f"{path}: no such file; this checkpoint holds {', '.join(sorted(digests))}")
    try:
        actual = sha256_file(path)
    except OSError as error:
        raise _read_error(path, error) from error
    if actual != digests[path.name]:
        raise DamagedError(f"{path}: changed since it was written")


def _read_digests(folder: Path) -> dict[str, str]:
    """The files of a checkpoint by its manifest: name -> sha256."""
    path = folder / "manifest.json"
    digests = _read_json(path).get("files")
    if not isinstance(digests, dict) or "state.json" not in digests:
        raise DamagedError(f"{path}: lists no files")
    for name in digests:
        if not name or Path(name).name != name or "\0" in name:
            raise DamagedError(f"{path}: {name!r:.120} is not a file name")
    return digests


def _read_json(path: Path) -> dict[str, Any]:
    """A file of a checkpoint; what it says must fit its checksum, if it has one."""
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise _read_error(path, error) from error
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{path}: not JSON") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise DamagedError(f"{path}: not a file of {FORMAT}")
    checksum = data.pop("checksum", None)
    try:
        changed = checksum is not None and checksum != fingerprint(data)
    except (DataError, ValueError):  # text that no UTF-8 holds
        changed = True
    if changed:
        raise DamagedError(f"{path}: changed since it was written")
    if data.get("version") != VERSION:
        raise CheckpointError(
            f"{path}: format version {data.get('version')!r:.80}, this program reads {VERSION}: go on with "
            "the faceprior that wrote it (run.json of its run says which), or start with run=OTHER"
        )
    return data


def _read_error(path: Path, error: OSError) -> CheckpointError:
    """A file that is not there is damage; one that cannot be read may well be whole."""
    if isinstance(error, FileNotFoundError):
        return DamagedError(f"{path}: no such file")
    return CheckpointError(
        f"{path}: cannot be read ({error.strerror}); nothing was changed: make it readable, then run the "
        "same command again"
    )


def is_finite(tensor: Tensor) -> bool:
    """Whether no value is infinite or NaN. A sum tells in a tenth of the time, unless infinite itself."""
    if not tensor.is_floating_point():
        return True
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())


def write_tensors(path: Path, file: TensorFile) -> None:
    """One safetensors file; facts go into one metadata key, as several have no stable order."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in file.tensors.items()}
    facts = json.dumps(file.facts, sort_keys=True)
    with atomic_path(path) as temporary:
        try:
            save_file(tensors, temporary, {"faceprior": facts})
        except SafetensorError as error:
            number = re.search(r"os error (\d+)", str(error))
            if not number:
                raise
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def read_tensors(path: Path) -> TensorFile:
    """Reads a safetensors file onto the CPU.

    Raises:
        CheckpointError: not there, or not a safetensors file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {}).get("faceprior", "{}"))
            if not isinstance(facts, dict):
                raise ValueError("its facts are no JSON object")
            return TensorFile({name: file.get_tensor(name) for name in file.keys()}, facts)  # noqa: SIM118
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file") from error
    except (SafetensorError, ValueError, OSError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error})") from error


def find_checkpoint(path: Path, which: Which = "latest", file: str = "state.json") -> Path:
    """The checkpoint folder meant by a run directory, a checkpoints folder or a checkpoint.

    Args:
        path: of one of these.
        which: of several the newest, or the best by its task's score if one was marked.
        file: that is wanted of it and is verified; see `CheckpointStore.find`. A checkpoint that was named
            itself is not exchanged for another.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    for folder in (path, path / "checkpoints"):
        if (folder / "manifest.json").is_file():
            verify_file(folder / file)
            return folder
        found = CheckpointStore(folder).find(which, file)
        if found is not None:
            return found
    raise CheckpointError(f"{path}: no checkpoint there; give a run directory or a checkpoint folder")


def find_file(path: Path, name: str, which: Which = "latest") -> Path:
    """The file `name` of a run, checkpoints folder or checkpoint, verified; or `path` itself if it is a file.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    if not path.is_file():
        return find_checkpoint(path, which, name) / name
    manifest = path.parent / "manifest.json"
    if manifest.is_file() and FORMAT.encode() in manifest.read_bytes():  # it lies in a checkpoint
        verify_file(path)
    return path


def find_encoder(path: Path) -> Path:
    """The encoder.safetensors meant by a run, a checkpoint, or the file itself; see `find_file`."""
    return find_file(path, "encoder.safetensors")


def describe(file: Path) -> str:
    """Which checkpoint a file lies in, in words; "" for a file that lies in none."""
    folder = file.parent
    if not _NAME.fullmatch(folder.name):
        return ""
    best = CheckpointStore(folder.parent).best()
    is_best = best is not None and best.folder == folder
    return f"step {int(folder.name[5:])}{', its best by score' if is_best else ''}"


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
    arguments = {"name": config.name, "arguments": timm_arguments(config)}
    facts = {
        "format": "faceprior-encoder",
        "version": VERSION,
        "timm": arguments if config.patch_embedding == "pixels" else None,  # timm has no other
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
        CheckpointError: not an encoder, of another version, or its tensors do not fit what it says it is.
    """
    file = read_tensors(find_encoder(path))
    if file.facts.get("format") != "faceprior-encoder":
        raise CheckpointError(f"{path}: not an encoder of faceprior; bring others in with `faceprior import`")
    if file.facts.get("version") != VERSION:
        raise CheckpointError(
            f"{path}: encoder format version {file.facts.get('version')!r:.80}, this program reads "
            f"{VERSION}: use the faceprior that wrote it (run.json of its run says which)"
        )
    try:
        config = EncoderConfig(**file.facts["config"])
        check_encoder(config, file.tensors)
        encoder = build_encoder(config)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: does not say what encoder it is ({error!r:.200})") from error
    try:
        encoder.load_state_dict(file.tensors, strict=True)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return encoder


def check_encoder(config: EncoderConfig, tensors: Mapping[str, torch.Tensor]) -> None:
    """Looks at sizes from a file before anything of that size is made.

    Raises:
        ValueError: an encoder of this configuration needs more than there is in `tensors`.
    """
    sizes = (*config.image_size, *(config.patch_size or ()), config.embed_dim, config.depth, config.num_heads)
    if not all(size is None or (type(size) is int and size > 0) for size in sizes):
        raise ValueError(f"sizes {sizes} are not whole numbers above 0")
    total = sum(tensor.numel() for tensor in tensors.values())
    dim, patch = config.embed_dim or 1, config.patch_size or (32, 32)
    positions = config.image_size[0] * config.image_size[1] // (patch[0] * patch[1])
    if (config.depth or 0) > len(tensors) or 4 * dim * dim > total or positions * dim > total:
        raise ValueError(f"its tensors hold {total} numbers, fewer than an encoder of {sizes} has")


def disk_free(path: Path) -> int:
    """Free bytes where `path` is or will be."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free
