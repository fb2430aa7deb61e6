"""`--dry-run`: what a run would be, from a few timed steps on random pictures. It writes nothing."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pipelines.checkpoint import disk_free
from pipelines.config import RunConfig, to_yaml
from pipelines.cores import set_threads
from pipelines.data import default_set, default_size
from pipelines.loop import Trainee, build_accelerator, train_step
from pipelines.optim import build_optimizer, param_groups
from pipelines.processes import Processes
from pipelines.progress import duration
from pipelines.stage import run_path
from pretrain.encoder import choose_attention
from pretrain.task import Task
from shards.clips import ClipBatch
from shards.records import LabelSpace
from shards.shardset import find_split, open_shards
from shards.stream import Batch, Labels, plan_layout

_TIMED_STEPS = 3


@dataclass(frozen=True)
class _Trial:
    """Seconds of one micro-batch's step, and the largest memory while it ran, in bytes."""

    seconds: float
    memory: int


def dry_run(
    config: RunConfig, name: str, build_model: Callable[[RunConfig], tuple[nn.Module, Task[Any, Batch]]]
) -> int:
    """Says what `run_stage` would do; returns exit status 0.

    Args:
        config: of the run.
        name: of the configuration.
        build_model: the task's model and the task.

    Raises:
        ConfigError, DataError: what the run itself would refuse.
    """
    accelerator = build_accelerator(config.train)
    processes = Processes()
    set_threads(config.train.threads)
    train, num_samples, what = config.train, *_data(config)
    layout = plan_layout(train.global_batch_size, train.batch_size, processes.rank, processes.world_size)
    model, task = build_model(config)
    counts = [
        sum(p.numel() for p in model.parameters() if p.requires_grad == wanted) for wanted in (True, False)
    ]
    groups = param_groups(model, task.param_rules(), config.optim.weight_decay)
    optimizer = build_optimizer(groups, config.optim)
    choose_attention(model, accelerator.device, train.precision == "bf16")
    prepared, optimizer = accelerator.prepare(torch.compile(model) if train.compile else model, optimizer)
    trial = _time(Trainee(task, prepared, optimizer), layout.batch_size, config, accelerator)
    steps = math.ceil(train.epochs * num_samples / train.global_batch_size)
    megabytes = sum(4 * n for n in (counts[0] * 4, counts[1] * 2)) / 2**20
    images_per_s = layout.batch_size * processes.world_size / trial.seconds
    path = run_path(config, name)
    if processes.is_main:
        print(to_yaml(config).rstrip())
        print(f"\ndata: {num_samples} {config.data_kind}, {what}")
        print(f"model: {counts[0]:,} trainable and {counts[1]:,} fixed parameters in {len(groups)} groups")
        print(
            f"step: {layout.world_size} process(es) × {layout.batch_size} × {layout.accum_steps} accumulated "
            f"= {layout.global_batch_size} faces; {steps} steps = {train.epochs:g} epochs"
        )
        print(f"learning rate: peak {config.optim.base_lr * layout.global_batch_size / 256:.4g}")
        print(
            f"speed: {images_per_s:.0f} images/s without reading data ({_TIMED_STEPS} timed steps on "
            f"{accelerator.device}), so about "
            f"{duration(steps * train.global_batch_size / images_per_s)} in all"
        )
        print(f"memory: {trial.memory / 2**30:.2f} GiB for each process while stepping")
        print(
            f"disk: {path} would hold {train.keep} checkpoints or more of {megabytes:.0f} MiB; "
            f"{disk_free(path) / 2**30:.1f} GiB are free"
        )
        print("nothing was rendered, read or written")
    return 0


def _data(config: RunConfig) -> tuple[int, str]:
    """How many faces or clips there are to learn from, and which."""
    if config.data.shards:
        return len(open_shards(config.data.shards, "train")), config.data.shards
    folder = default_set(config.data_kind)
    if find_split(folder, "train") is not None:
        return len(open_shards([folder], "train")), f"rendered, in {folder}"
    return default_size(config.data_kind), f"to be rendered into {folder} on first use"


def _time(trainee: Trainee, batch_size: int, config: RunConfig, accelerator: Any) -> _Trial:
    device = next(trainee.model.parameters()).device
    made = random_clips if config.data_kind == "clips" else random_batch
    batch: Any = made(batch_size, config).to(device)
    trainee.model.train()
    times = []
    for _ in range(1 + _TIMED_STEPS):
        start = time.perf_counter()
        train_step(trainee, [batch], config.optim, accelerator)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    if device.type == "cuda":
        memory = torch.cuda.max_memory_allocated(device)
    else:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return _Trial(min(times[1:]), memory)


def random_batch(batch_size: int, config: RunConfig) -> Batch:
    """Noise with labels of every kind, all there."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(
        0, 256, (batch_size, 3, *config.encoder.image_size), dtype=torch.uint8, generator=generator
    )
    space = LabelSpace()
    labels = Labels(
        va=torch.rand(batch_size, 2, generator=generator) * 2 - 1,
        va_valid=torch.ones(batch_size, 2, dtype=torch.bool),
        expr=torch.randint(0, len(space.expr), (batch_size,), generator=generator),
        expr_valid=torch.ones(batch_size, dtype=torch.bool),
        au=torch.randint(0, 2, (batch_size, len(space.au)), generator=generator).float(),
        au_valid=torch.ones(batch_size, len(space.au), dtype=torch.bool),
    )
    keys = [str(i) for i in range(batch_size)]
    return Batch(
        keys, images, torch.randint(0, 2**62, (batch_size,), generator=generator), labels, batch_size
    )


def random_clips(batch_size: int, config: RunConfig) -> ClipBatch:
    """Noise of every modality, every frame labelled."""
    generator = torch.Generator().manual_seed(0)
    shape, size = (batch_size, config.clip.num_frames), config.encoder.image_size
    images = {"color": torch.randint(0, 256, (*shape, 3, *size), dtype=torch.uint8, generator=generator)}
    for modality in ("depth", "thermal"):
        images[modality] = torch.rand(*shape, 1, *size, generator=generator) * 2 - 1
    names = [str(i) for i in range(batch_size)]
    return ClipBatch(
        keys=names,
        groups=names,
        images=images,
        valid={modality: torch.ones(shape, dtype=torch.bool) for modality in images},
        va=torch.rand(*shape, 2, generator=generator) * 2 - 1,
        va_valid=torch.ones(*shape, 2, dtype=torch.bool),
        frames=torch.arange(shape[1]).expand(shape),
        inside=torch.ones(shape, dtype=torch.bool),
        rng=torch.randint(0, 2**62, (batch_size,), generator=generator),
        num_valid=batch_size,
    )
