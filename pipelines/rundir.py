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
from pathlib import Path
from typing import Any, TextIO

import torch

from pipelines.config import ConfigError, RunConfig, differences, load_config, to_yaml
from shards.files import clear_disk_errors, locked, write_atomic

RUNS = Path("runs")


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

    def open(self, config: RunConfig) -> None:
        """Creates the directory, or checks that an existing run may go on under `config`.

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
        if saved.exists():
            changed = differences(load_config(str(saved)), config)
            if changed:
                listing = "; ".join(f"{key} was {old!r}, now {new!r}" for key, (old, new) in changed.items())
                raise ConfigError(
                    f"{self.path}: this run was started with other settings ({listing}). "
                    "Go on with the old ones, or start another run with run=DIR"
                )
        write_atomic(saved, to_yaml(config).encode())

    def record(self, facts: Mapping[str, Any]) -> None:
        """Writes run.json: versions and environment, and `facts`."""
        if self.writes:
            whole = {"format": "faceprior-run", "version": 1, **environment(), **facts}
            write_atomic(self.path / "run.json", json.dumps(whole, indent=1).encode())

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


def environment() -> dict[str, Any]:
    """Versions and machine, as run.json records them."""
    from importlib.metadata import version

    names = ("faceprior", "torch", "torchvision", "timm", "webdataset", "accelerate", "safetensors", "numpy")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "cpu"
    return {
        "revision": _git_revision(),
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": device,
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
