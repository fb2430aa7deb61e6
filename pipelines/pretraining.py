"""The pretraining stage: shards -> MAE -> encoder.safetensors, with pictures and probes on the way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from pipelines.checkpoint import TensorFile, encoder_file, find_encoder, read_tensors
from pipelines.config import ConfigError, RunConfig
from pipelines.cores import loader_workers
from pipelines.observe import MAEObserver
from pipelines.stage import Context, Parts
from pipelines.unread import refuse_unread
from pretrain.encoder import build_encoder
from pretrain.foreign import load_foreign
from pretrain.mae import MAE, load_reference_state_dict, reference_state_dict
from pretrain.mae_task import MaeTask
from shards.config import AugmentConfig
from shards.order import EpochOrder
from shards.stream import Batch, train_batches


def build_mae(config: RunConfig, goes_on: bool = False) -> MAE:
    """The MAE of a run with its initial weights, drawn from the run's seed.

    Args:
        config: of the run.
        goes_on: its weights come from a checkpoint: `init` is not read.

    Raises:
        ConfigError: an encoder or decoder that cannot be built, or foreign weights that do not fit.
        CheckpointError: `init` cannot be read.
    """
    refuse_unread(config, "mae")
    generator = torch.Generator().manual_seed(config.seed)
    try:
        model = MAE(build_encoder(config.encoder, generator), config.mae, generator=generator)
        if config.init not in ("", "random") and not goes_on:
            print(load_foreign(model, read_tensors(find_encoder(Path(config.init))).tensors))
    except ValueError as error:
        raise ConfigError(str(error)) from error
    model.set_grad_checkpointing(config.train.grad_checkpointing)
    return model


def build_trainable(config: RunConfig) -> tuple[MAE, MaeTask]:
    """Model and task alone, for a dry run; raises as `build_mae`."""
    model = build_mae(config)
    return model, MaeTask(model.num_patches)


def build_parts(context: Context) -> Parts:
    """What pretraining brings to a run; see `stage.Parts`."""
    config, shards = context.config, context.splits.train
    model = build_mae(config, goes_on=bool(context.saved))
    alignment: list[Mapping[str, Any]] = [dict(manifest.alignment) for manifest in shards.manifests]

    def files() -> dict[str, TensorFile]:
        facts = {"format": "faceprior-mae", "encoder": asdict(config.encoder), "mae": asdict(config.mae)}
        return {
            "encoder": encoder_file(model.encoder, config.encoder, alignment, shards.rendered),
            "model": TensorFile(reference_state_dict(model), facts),
        }

    def load(saved: Mapping[str, TensorFile]) -> None:
        load_reference_state_dict(model, saved["model"].tensors)

    def batches(position: int) -> Iterator[Batch]:
        return train_batches(
            shards,
            EpochOrder(shards.shard_sizes, config.seed, config.data.window_shards),
            context.plan.layout,
            position,
            model.image_size,
            AugmentConfig(config.crop, config.jitter),
            loader_workers(config.data.num_workers, context.device),
            pin_memory=context.device.type == "cuda",
        )

    return Parts(MaeTask(model.num_patches), model, MAEObserver(context, model), files, load, batches)
