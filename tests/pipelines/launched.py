"""Real runs in processes of their own: tiny shards, a tiny model, and what to do to them."""

from __future__ import annotations

import functools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from tests.shards.faces import build_smooth

PYTHON = [sys.executable]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch"]
DEADLINE = 400.0  # for what must happen sooner or later; no test measures time

_CONFIG = """
encoder:
  name: vit_tiny_patch16_224
  image_size: [32, 32]
  patch_size: [8, 8]
  embed_dim: 32
  depth: 1
  num_heads: 2
mae:
  decoder_dim: 32
  decoder_depth: 1
  decoder_heads: 2
optim:
  base_lr: 1.0e-2
  warmup_epochs: 0.5
data:
  shards: smooth
  num_workers: 0
train:
  epochs: 12
  global_batch_size: 16
  log_every: 1
  threads: 1
eval:
  batch_size: 8
  probe_train: 0
  pictures: 0
"""
STEPS = 120


@functools.cache
def workplace(base: Path) -> Path:
    """A folder with shards and tiny.yaml; built once a session under pytest's base folder."""
    folder = base / "launched"
    folder.mkdir()
    build_smooth(folder / "smooth", counts={"train": 160, "val": 16})
    (folder / "tiny.yaml").write_text(_CONFIG)
    return folder


def environment(**more: str) -> dict[str, str]:
    """What every child gets: one thread, the CPU, this checkout."""
    cpu = {"ACCELERATE_USE_CPU": "true"} if torch.accelerator.is_available() else {}
    root = str(Path(__file__).resolve().parents[2])
    kept = {
        k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE", "SLURM", "PET_", "TORCHEL"))
    }
    return kept | cpu | {"OMP_NUM_THREADS": "1", "PYTHONPATH": root} | more


@dataclass
class Launched:
    """One command that trains, and its run directory.

    Attributes:
        folder: where it is started.
        name: of the run directory.
        launcher: what comes before `-m pipelines pretrain …`; a whole command if it is a script.
        settings: `key=value` beyond tiny.yaml's.
        environ: of its processes.
    """

    folder: Path
    name: str
    launcher: Sequence[str]
    settings: Sequence[str] = ()
    environ: Mapping[str, str] = field(default_factory=environment)

    @property
    def run(self) -> Path:
        return self.folder / self.name

    def start(self) -> Launched:
        """Begins, or goes on: it is the same command."""
        command = list(self.launcher)
        if self.launcher[0] != "bash":
            command += ["-m", "pipelines", "pretrain", "tiny.yaml", f"run={self.name}", *self.settings]
        with (self.folder / f"{self.name}.log").open("a") as log:
            self.process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=self.environ,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self

    def steps(self) -> int:
        """Lines of metrics so far."""
        return len(losses(self.run))

    def wait_for_steps(self, count: int) -> None:
        wait_until(lambda: self.steps() >= count or self.process.poll() is not None, self.log)
        assert self.process.poll() is None, self.log()

    def wait(self) -> int:
        """The launcher's exit status, once no process of the run is left."""
        status = self.process.wait(DEADLINE)
        wait_until(lambda: not self.processes(), self.log)
        return status

    def processes(self) -> list[int]:
        """Every process of this run: loader workers and orphans too."""
        mark = f"\0run={self.name}\0".encode()
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                if mark in path.read_bytes() + b"\0" and (path.parent / "cwd").samefile(self.folder):
                    found.append(int(path.parent.name))
            except OSError:  # ended meanwhile
                continue
        return found

    def encoder(self) -> bytes:
        """The bytes of the newest checkpoint's encoder."""
        name = (self.run / "checkpoints" / "latest").read_text().strip()
        return (self.run / "checkpoints" / name / "encoder.safetensors").read_bytes()

    def saved_step(self) -> int:
        """Step of the newest checkpoint."""
        return int((self.run / "checkpoints" / "latest").read_text().strip().removeprefix("step-"))

    def log(self) -> str:
        return (self.folder / f"{self.name}.log").read_text()

    def kill(self) -> None:
        """Ends what a failed test left."""
        for pid in {*self.processes(), self.process.pid}:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait()


def losses(run: Path) -> dict[int, float]:
    """Training loss of each step."""
    try:
        lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    except FileNotFoundError:
        return {}
    rows = [json.loads(line) for line in lines if line.endswith("\n")]
    return {row["step"]: row["loss"] for row in rows if row["kind"] == "train"}


def wait_until(condition: Callable[[], bool], log: Callable[[], str]) -> None:
    """Polls; fails with the log when it never comes true."""
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, log()
        time.sleep(0.02)


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
