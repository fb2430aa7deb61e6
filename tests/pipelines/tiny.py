"""Runs small enough for a test: settings of every task and of pretraining, and one that is trained here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipelines.config import RunConfig, load_config
from pipelines.pretraining import build_parts
from pipelines.stage import run_stage

TINY_ENCODER = [
    "encoder.name=vit_tiny_patch16_224",
    "encoder.image_size=32",
    "encoder.patch_size=8",
    "encoder.embed_dim=32",
    "encoder.depth=2",
    "encoder.num_heads=2",
]
TINY_RUN = [
    "optim.base_lr=0.01",
    "optim.warmup_epochs=0.5",
    "train.epochs=4",
    "train.global_batch_size=16",
    "train.log_every=1",
    "train.save_every=5",
    "train.save_minutes=0",
    "train.threads=1",
    "data.num_workers=0",
    "eval.batch_size=8",
]
TINY = [*TINY_ENCODER, *TINY_RUN]
TINY_MAE = [
    *TINY,
    "mae.decoder_dim=32",
    "mae.decoder_depth=1",
    "mae.decoder_heads=2",
    "eval.probe_train=0",
    "eval.pictures=0",
]


def tiny_config(shards: Path, run: Path, *settings: str) -> RunConfig:
    """The tiny pretraining on `shards`, writing into `run`."""
    return load_config("", [*TINY_MAE, f"data.shards={shards}", f"run={run}", *settings])


def train(shards: Path, run: Path, *settings: str) -> int:
    """Runs it here; returns the exit status."""
    return run_stage(tiny_config(shards, run, *settings), "tiny", build_parts)


def losses(run: Path) -> dict[int, float]:
    """step -> training loss."""
    return {row["step"]: row["loss"] for row in metrics(run) if row["kind"] == "train"}


def metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def last_checkpoint(run: Path) -> Path:
    """The newest checkpoint of a run."""
    return sorted((run / "checkpoints").glob("step-*"))[-1]


def weights(run: Path) -> bytes:
    """The bytes of the newest model.safetensors and optimizer.safetensors."""
    folder = last_checkpoint(run)
    return (folder / "model.safetensors").read_bytes() + (folder / "optimizer.safetensors").read_bytes()
