"""The training loop: the same page for every task.

data -> step -> clip -> update -> log -> evaluate -> save. A step never waits for the device: what it
measured is read some steps later, all at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import nn

from pipelines.config import ConfigError, OptimConfig, RunConfig, TrainConfig
from pipelines.optim import learning_rate, set_learning_rate
from pipelines.processes import Processes, StopRequest
from pipelines.progress import Clock, ProgressLine
from pipelines.rundir import RunDir
from pretrain.task import Task
from shards.files import write_atomic
from shards.stream import Batch, Layout

_MAX_LAG = 50


class NonFiniteError(Exception):
    """Loss or gradient were not finite, and the policy is to stop."""


class Hooks(Protocol):
    """What the loop calls between steps."""

    def evaluate(self, step: int) -> Mapping[str, float]:
        """Measures the model; called in every process; returns what is to be logged."""
        ...

    def save(self, step: int, position: int) -> None:
        """Writes a checkpoint; called in every process."""
        ...


@dataclass(frozen=True)
class Plan:
    """How far a run goes.

    Attributes:
        total_steps: of the whole run.
        epoch_size: samples to an epoch.
        layout: this process's share of a step.
    """

    total_steps: int
    epoch_size: int
    layout: Layout

    def epoch(self, step: int) -> float:
        """Epochs completed after `step` steps."""
        return step * self.layout.global_batch_size / self.epoch_size


@dataclass
class Trainee:
    """What is trained.

    Attributes:
        task: what a step computes.
        model: as prepared by accelerate.
        optimizer: as prepared by accelerate.
    """

    task: Task[Any, Batch]
    model: nn.Module
    optimizer: Any


@dataclass
class Progress:
    """How far a run has come: this is all that resuming needs, with the tensors.

    Attributes:
        step: optimiser steps done.
        position: samples of those steps.
        skipped: updates that were masked because something was not finite.
        stopped_by: the signal that ended it, 0 if none did.
    """

    step: int = 0
    position: int = 0
    skipped: int = 0
    stopped_by: int = 0


@dataclass
class _Pending:
    """One step's measurements, still on the device, and its keys."""

    step: int
    logs: dict[str, torch.Tensor]
    lr: float
    keys: list[str]


@dataclass
class _Window:
    """Steps since the last line of metrics."""

    pending: list[_Pending] = field(default_factory=list)
    clock: Clock = field(default_factory=Clock)


def build_accelerator(config: TrainConfig) -> Accelerator:
    """The accelerator of a run.

    Raises:
        ConfigError: an unknown precision, or one that this device lacks; processes that did not join.
    """
    if config.precision not in ("fp32", "bf16"):
        raise ConfigError(f"train.precision={config.precision!r}: use fp32 or bf16")
    if config.nonfinite not in ("stop", "skip"):
        raise ConfigError(f"train.nonfinite={config.nonfinite!r}: use stop or skip")
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    # Without a GPU, and not told so, accelerate lets each process train a model of its own.
    cpu = launched > 1 and not torch.accelerator.is_available()
    try:
        accelerator = Accelerator(cpu=cpu, mixed_precision="bf16" if config.precision == "bf16" else "no")
    except ValueError as error:
        raise ConfigError(f"train.precision={config.precision}: {error}; use train.precision=fp32") from error
    if launched > 1 and accelerator.num_processes != launched:
        raise ConfigError(
            f"{launched} processes were launched, but accelerate joined {accelerator.num_processes}: "
            "launch with torchrun, and on a CPU beside GPUs set ACCELERATE_USE_CPU=true"
        )
    return accelerator


def fit(
    trainee: Trainee,
    batches: Iterator[Batch],
    plan: Plan,
    config: RunConfig,
    accelerator: Accelerator,
    processes: Processes,
    run: RunDir,
    hooks: Hooks,
    stop: StopRequest,
    progress: Progress,
) -> Progress:
    """Trains until the plan is done, a stop is asked for, or something is not finite.

    Args:
        trainee: task, model, optimiser.
        batches: this process's micro-batches from `progress.position` on.
        plan: length and layout.
        config: of the run.
        accelerator: that prepared model and optimiser.
        processes: for what all must agree on.
        run: gets metrics.
        hooks: evaluation and checkpoints.
        stop: set by signals.
        progress: where to begin; not changed.

    Returns:
        Where it ended. A checkpoint of that step has been saved.

    Raises:
        NonFiniteError: by policy; the keys of the batch are in the run directory.
    """
    train, optim = config.train, config.optim
    done = Progress(progress.step, progress.position, progress.skipped)
    line = ProgressLine(plan.total_steps, processes.is_main)
    window = _Window()
    last_save, saved_step = time.monotonic(), progress.step
    trainee.model.train()
    while done.step < plan.total_steps and not done.stopped_by:
        lr = learning_rate(optim, plan.layout.global_batch_size, plan.epoch(done.step), train.epochs)
        set_learning_rate(trainee.optimizer, lr)
        micro_batches = _draw(batches, plan.layout.accum_steps, accelerator.device, window.clock)
        logs = train_step(trainee, micro_batches, optim, accelerator)
        done.step += 1
        done.position += plan.layout.global_batch_size
        window.pending.append(_Pending(done.step, logs, lr, [key for b in micro_batches for key in b.keys]))

        ends = done.step == plan.total_steps or done.step == train.stop_at_step
        if done.step % train.log_every == 0 or len(window.pending) >= _MAX_LAG or ends:
            done.skipped += _report(window, plan, processes, run, line)
            _check_finite(done, train, run)
        due = 0 < train.save_minutes * 60 <= time.monotonic() - last_save
        asked, save_now = processes.post([int(stop.signal), int(due and processes.is_main)])
        done.stopped_by = asked or (-1 if done.step == train.stop_at_step else 0)
        if config.eval.every and done.step % config.eval.every == 0 and not ends:
            _evaluate(trainee, hooks, run, done, line)
            window.clock.read()
        if (train.save_every and done.step % train.save_every == 0) or save_now:
            hooks.save(done.step, done.position)
            last_save, saved_step = time.monotonic(), done.step
            window.clock.read()
    processes.finish_posts()
    if window.pending:
        done.skipped += _report(window, plan, processes, run, line)
        _check_finite(done, train, run)
    if saved_step != done.step:
        hooks.save(done.step, done.position)
    if done.step == plan.total_steps:
        _evaluate(trainee, hooks, run, done, line)
    return done


def _draw(batches: Iterator[Batch], count: int, device: torch.device, clock: Clock) -> list[Batch]:
    """The micro-batches of one step, on the device; the wait for them is counted."""
    start = time.perf_counter()
    drawn = [next(batches) for _ in range(count)]
    clock.waited += time.perf_counter() - start
    return [batch.to(device) for batch in drawn]


def train_step(
    trainee: Trainee, batches: list[Batch], optim: OptimConfig, accelerator: Accelerator
) -> dict[str, torch.Tensor]:
    """One optimiser step.

    Args:
        trainee: task, model and optimiser.
        batches: this process's micro-batches of the step, on the device.
        optim: clipping.
        accelerator: that prepared model and optimiser.

    Returns:
        Scalars on the device: the task's logs, `grad_norm`, and `nonfinite` (1 where the update was masked).
    """
    logs = _forward_backward(trainee, batches, accelerator)
    return logs | _update(trainee, optim, accelerator)


def _forward_backward(
    trainee: Trainee, batches: list[Batch], accelerator: Accelerator
) -> dict[str, torch.Tensor]:
    """Gradients of one optimiser step: processes exchange them with its last micro-batch only."""
    outputs = iter(trainee.task.step(trainee.model, batches))
    logs: dict[str, torch.Tensor] = {}
    for micro_step in range(len(batches)):
        last = micro_step == len(batches) - 1
        with contextlib.nullcontext() if last else accelerator.no_sync(trainee.model):
            output = next(outputs)
            accelerator.backward(output.loss)
        for name, value in output.logs.items():
            logs[name] = logs[name] + value if name in logs else value
    return logs


def _update(trainee: Trainee, optim: OptimConfig, accelerator: Accelerator) -> dict[str, torch.Tensor]:
    """Clips and updates; the update is masked on the device where the gradient is not finite."""
    parameters = [p for group in trainee.optimizer.param_groups for p in group["params"]]
    limit = optim.clip_grad if optim.clip_grad > 0 else float("inf")
    grad_norm = accelerator.clip_grad_norm_(parameters, limit)
    nonfinite = (~torch.isfinite(grad_norm)).float()
    inner = getattr(trainee.optimizer, "optimizer", trainee.optimizer)
    inner.found_inf = nonfinite
    trainee.optimizer.step()
    trainee.optimizer.zero_grad(set_to_none=True)
    return {"grad_norm": grad_norm.detach(), "nonfinite": nonfinite}


def _report(window: _Window, plan: Plan, processes: Processes, run: RunDir, line: ProgressLine) -> int:
    """Reads the pending measurements, logs their mean; returns how many updates were masked."""
    pending, window.pending = window.pending, []
    names = list(pending[0].logs)
    values = torch.stack([torch.stack([p.logs[name].float() for name in names]) for p in pending])
    values = values.double().cpu()
    seconds, data_wait = window.clock.read()
    masked = values[:, names.index("nonfinite")] > 0
    for number in torch.nonzero(masked).flatten().tolist():
        _save_keys(run, pending[number], processes)
    kept = values[~masked] if bool((~masked).any()) else values
    means = processes.mean(kept.mean(0))
    step = pending[-1].step
    images_per_s = len(pending) * plan.layout.global_batch_size / seconds
    row = dict(zip(names, means.tolist(), strict=True))
    row["nonfinite"] = int(masked.sum())
    facts = {"lr": pending[-1].lr, "images_per_s": round(images_per_s, 2), "data_wait": round(data_wait, 4)}
    epoch = plan.epoch(step)
    position = step * plan.layout.global_batch_size
    run.log("train", step, {"epoch": round(epoch, 6), "position": position, **row, **facts})
    shown = {"loss": row["loss"], "lr": facts["lr"], "img/s": images_per_s}
    line.report(step, epoch, shown, len(pending), seconds, data_wait)
    return int(masked.sum())


def _save_keys(run: RunDir, pending: _Pending, processes: Processes) -> None:
    """Keys of a batch that was not finite, for a look at its images: each process writes its own."""
    name = f"nonfinite-step-{pending.step:08d}-rank-{processes.rank}.json"
    write_atomic(run.path / name, json.dumps({"step": pending.step, "keys": pending.keys}).encode())


def _check_finite(done: Progress, train: TrainConfig, run: RunDir) -> None:
    limit = train.max_skipped if train.nonfinite == "skip" else 0
    if done.skipped > limit:
        raise NonFiniteError(
            f"{done.skipped} update(s) up to step {done.step} had a loss or gradient that is not finite; "
            f"they were not made. The batches' keys are in {run.path}/nonfinite-*.json. Lower optim.base_lr, "
            "use train.precision=fp32, look at those images, or allow some with train.nonfinite=skip"
        )


def _evaluate(trainee: Trainee, hooks: Hooks, run: RunDir, done: Progress, line: ProgressLine) -> None:
    trainee.model.eval()
    with torch.inference_mode():
        values = hooks.evaluate(done.step)
    trainee.model.train()
    if values:
        run.log("eval", done.step, values)
        line.say("held out: " + "  ".join(f"{name} {value:.4g}" for name, value in values.items()))
