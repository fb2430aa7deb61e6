"""A video model small enough for a test, with random weights that say something of what they are shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from finetune.config import MRANConfig
from finetune.mran_task import MRANTask
from pipelines.checkpoint import write_tensors
from pipelines.models import ModelSpec, build_model, model_file
from pipelines.processes import Processes
from pipelines.split_predictor import SplitPredictor
from shards.config import ClipConfig
from shards.shardset import ShardSet

CLIP = ClipConfig(num_frames=4, stride=3, frame_step=2)


def spec_of(clip: ClipConfig = CLIP, **mran: Any) -> ModelSpec:
    """Five small convolutions for colour, so that nothing else is needed."""
    known: dict[str, Any] = {"encoder": "conv", "dim": 4, "hidden_dim": 4, "volume_dims": (4,)}
    return ModelSpec("mran", (32, 32), va=True, mran=MRANConfig(**(known | mran)), clip=clip)


def build(spec: ModelSpec) -> torch.nn.Module:
    """Its head's weights are enlarged, so that frames differ in more than the last decimals."""
    model = build_model(spec, torch.Generator().manual_seed(3)).eval()
    with torch.no_grad():
        model.head[-1].weight.mul_(30)  # type: ignore[index,union-attr,operator]
    return model


def save(path: Path, spec: ModelSpec) -> Path:
    """As a finetuning saves it."""
    facts = {"alignment": [{"size": 24}], "rendered": False}
    write_tensors(path, model_file(build(spec), spec, facts))
    return path


def predictor_of(shards: ShardSet, spec: ModelSpec, split: str = "val") -> SplitPredictor:
    """One process on the CPU."""
    task, cpu = MRANTask(spec.mran), torch.device("cpu")
    return SplitPredictor(split, shards, spec, task, Processes(), cpu, batch_size=3, num_workers=0)
