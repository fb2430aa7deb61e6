"""The run directory: what was asked, what happened, and the pointer by which later stages find it."""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TextIO, get_args

import torch

from pipelines.config import ConfigError, RunConfig, differences, load_config, to_yaml
from shards.files import clear_disk_errors, locked, write_atomic
from shards.labels import DataError

RUNS = Path("runs")
_VERSION = 1  # of run.json
End = Literal["finished", "stopped"]


@dataclass
class RunDir:
    """One run's directory; only the main process writes.

    Attributes:
        path: the directory.
        writes: whether this process writes.
        tensorboard: write the metrics as TensorBoard files too.
    """

    path: Path
    writes: bool = True
    tensorboard: bool = False
    _locks: ExitStack = field(default_factory=ExitStack, repr=False)
    _metrics: TextIO | None = field(default=None, repr=False)
    _board: Any = field(default=None, repr=False)

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def pictures(self) -> Path:
        """Folder of pictures."""
        return self.path / "pictures"

    @property
    def has_saved(self) -> bool:
        """Whether there is a checkpoint, or what is left of one: only then a run is gone on with."""
        return any(any(self.checkpoints.glob(names)) for names in ("step-*", "damaged-step-*"))

    def open(self, config: RunConfig) -> None:
        """Creates the directory, or checks that a run that has saved may go on under `config`.

        Raises:
            ConfigError: a setting differs that may change results (all that do are named).
            DataError: another process has it, or it cannot be written.
        """
        if not self.writes:
            return
        with clear_disk_errors(self.path):
            for folder in (self.path, self.checkpoints, self.pictures):
                folder.mkdir(parents=True, exist_ok=True)
        self._locks.enter_context(locked(self.path / ".lock"))
        saved = self.path / "config.yaml"
        if saved.exists() and self.has_saved:
            changed = differences(self._saved_config(saved), config)
            if changed:
                listing = "; ".join(f"{key} was {old!r}, now {new!r}" for key, (old, new) in changed.items())
                raise ConfigError(
                    f"{self.path}: this run was started with other settings ({listing}). "
                    "Go on with the old ones, or start another run with run=DIR"
                )
        text = to_yaml(config).encode()
        if not saved.exists() or saved.read_bytes() != text:  # a finished run that is asked for again stays
            write_atomic(saved, text)

    def _saved_config(self, path: Path) -> RunConfig:
        try:
            return load_config(str(path))
        except ConfigError as error:
            raise ConfigError(
                f"{error}. This run was begun by another version of faceprior, or its file was changed: go "
                "on with the version that run.json names, or start another run with run=DIR"
            ) from error

    def facts(self) -> dict[str, Any]:
        """What run.json says; nothing if there is none.

        Raises:
            DataError: it is damaged, or of another version.
        """
        path = self.path / "run.json"
        try:
            facts = json.loads(path.read_bytes())
        except FileNotFoundError:
            return {}
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{path}: not JSON ({error}); restore it, or remove it to begin it anew"
            ) from error
        if not isinstance(facts, dict):
            raise DataError(f"{path}: no JSON object; restore it, or remove it to begin it anew")
        if facts.get("version", _VERSION) != _VERSION:
            raise DataError(
                f"{path}: format version {facts['version']!r:.80}, this program reads {_VERSION}: go on "
                "with the faceprior that wrote it, or start another run with run=DIR"
            )
        return facts

    def check_data(self, data: Mapping[str, Any]) -> None:
        """Compares the data of a run that goes on with those that it learned from before, wherever they lie.

        Args:
            data: as in run.json: "hash", "folders" and "num_samples".

        Raises:
            ConfigError: they are others.
        """
        before = self.facts().get("data", {}) if self.writes else {}
        if before.get("hash", data["hash"]) != data["hash"]:
            old, new = (
                f"{', '.join(d['folders'])} ({d['num_samples']} faces, hash {d['hash'][:12]})"
                for d in (before, data)
            )
            raise ConfigError(
                f"{self.path}: data.shards holds other data than this run learned from: that was {old}, this "
                f"is {new}. Give the old data, or start another run with run=DIR"
            )

    def record(self, facts: Mapping[str, Any], step: int, device: torch.device) -> None:
        """Writes run.json: what the run was when it began, how far it is to go, and a record of every start.

        Args:
            facts: of the run as it is now.
            step: where it starts; at 0 nothing of an earlier start is kept.
            device: that computes.
        """
        if not self.writes:
            return
        before = self.facts() if step else {}
        now = {**environment(device), **facts}
        start = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "step": step, **now}
        starts = [*before.pop("starts", []), start]
        whole = {"format": "faceprior-run", "version": _VERSION, **now, **before}
        whole |= {"total_steps": facts["total_steps"], "starts": starts}
        write_atomic(self.path / "run.json", json.dumps(whole, indent=1).encode())

    def begin(self) -> None:
        """Takes away the mark of an earlier end."""
        for end in get_args(End):
            if self.writes:
                (self.path / end).unlink(missing_ok=True)

    def end(self, end: End, step: int) -> None:
        """Marks that the run was finished, or stopped and saved, at `step`: a file that holds the step."""
        if self.writes:
            write_atomic(self.path / end, f"{step}\n".encode())

    def ended(self, end: End, step: int) -> bool:
        """Whether the run is marked so at that step."""
        path = self.path / end
        return path.is_file() and path.read_text().strip() == str(step)

    def keep_metrics_until(self, step: int) -> None:
        """Drops lines of metrics.jsonl after `step`: those steps are computed again."""
        if not self.writes:
            return
        path = self.path / "metrics.jsonl"
        rows = [row for row in read_metrics(self.path) if row["step"] <= step]
        write_atomic(path, "".join(json.dumps(row) + "\n" for row in rows).encode())
        self._metrics = path.open("a")

    def log(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Appends one line to metrics.jsonl; non-finite numbers are written as text."""
        if not self.writes:
            return
        if self._metrics is None:
            self._metrics = (self.path / "metrics.jsonl").open("a")
        row = {"kind": kind, "step": step, **{k: _plain(v) for k, v in values.items()}}
        with clear_disk_errors(self.path / "metrics.jsonl"):
            self._metrics.write(json.dumps(row) + "\n")
            self._metrics.flush()
        if self.tensorboard:
            self._board = self._board or _open_board(self.path / "tensorboard")
            for name, value in values.items():
                if isinstance(value, int | float):
                    self._board.add_scalar(f"{kind}/{name}", value, step)

    def has_logged(self, kind: str, step: int) -> bool:
        """Whether metrics.jsonl holds such a line of that step."""
        return any(row.get("kind") == kind and row["step"] == step for row in read_metrics(self.path))

    def close(self) -> None:
        """Lets go of the lock."""
        for file in (self._metrics, self._board):
            if file is not None:
                file.close()
        self._metrics = self._board = None
        self._locks.close()


def _open_board(path: Path) -> Any:
    """A TensorBoard writer.

    Raises:
        ConfigError: TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            "train.tensorboard=true needs TensorBoard: pip install 'faceprior[track]'"
        ) from error
    return SummaryWriter(str(path))


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; a line cut short by a crash is left out."""
    try:
        lines = (run / "metrics.jsonl").read_text().splitlines()
    except FileNotFoundError:
        return []
    rows = []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows


def publish(task: str, run: Path) -> None:
    """Makes `run` the one that later stages find as runs/<task>/latest: a text file that holds its path."""
    pointer = RUNS / task / "latest"
    with clear_disk_errors(pointer):
        pointer.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(pointer, os.fsencode(str(run.resolve())) + b"\n")


def latest(task: str) -> Path | None:
    """The last finished run of a task, or None."""
    try:
        path = Path(os.fsdecode((RUNS / task / "latest").read_bytes().rstrip(b"\n")))
    except FileNotFoundError:
        return None
    return path if path.is_dir() else None


def environment(device: torch.device) -> dict[str, Any]:
    """Versions and machine, as run.json records them.

    Args:
        device: that computes: a run on the CPU leaves GPUs alone.
    """
    from importlib.metadata import version

    names = ("faceprior", "torch", "torchvision", "timm", "webdataset", "accelerate", "safetensors", "numpy")
    on_gpu = device.type == "cuda"
    processor = torch.cuda.get_device_name(device) if on_gpu else platform.processor() or "cpu"
    return {
        "revision": _git_revision(),
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": processor,
        "cores": os.cpu_count(),
        "versions": {name: version(name) for name in names},
    }


def _git_revision() -> str:
    """The checkout's revision, with + where files were changed; "" outside a checkout."""
    here = Path(__file__).parent
    try:
        command = ["git", "-C", str(here), "describe", "--always", "--dirty=+", "--abbrev=12"]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
