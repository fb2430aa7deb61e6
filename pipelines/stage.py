"""One run of any task: restore, train, save, publish. What differs between tasks comes in as `Parts`."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from pipelines.checkpoint import (
    Checkpoint,
    CheckpointError,
    CheckpointStore,
    TensorFile,
    load_optimizer_tensors,
    optimizer_tensors,
)
from pipelines.config import ConfigError, RunConfig
from pipelines.data import Splits, open_splits
from pipelines.loop import Plan, Progress, Trainee, build_accelerator, fit
from pipelines.optim import build_optimizer, param_groups
from pipelines.processes import Processes, stop_requests
from pipelines.report import write_report
from pipelines.rundir import RUNS, RunDir, publish
from pretrain.task import Task
from shards.shardset import ShardSet
from shards.stream import Batch, plan_layout


class Observer(Protocol):
    """What a task measures and draws of itself during training."""

    def evaluate(self, step: int) -> Mapping[str, float]:
        """Called in every process, without gradients, the model in eval mode."""
        ...


@dataclass(frozen=True)
class Context:
    """What every task's parts are built from.

    Attributes:
        config: of the run.
        run: its directory.
        splits: opened shards.
        plan: length and layout.
        processes: this process among the others.
        device: that computes.
    """

    config: RunConfig
    run: RunDir
    splits: Splits
    plan: Plan
    processes: Processes
    device: torch.device


@dataclass(frozen=True)
class Parts:
    """What one task brings.

    Attributes:
        task: what a step computes.
        model: with its initial weights, on the CPU.
        observer: evaluation during training.
        files: the model's files of a checkpoint, by name without suffix.
        load: puts such files back into the model.
        batches: this process's micro-batches from a position on.
    """

    task: Task[Any, Batch]
    model: nn.Module
    observer: Observer
    files: Callable[[], Mapping[str, TensorFile]]
    load: Callable[[Mapping[str, TensorFile]], None]
    batches: Callable[[int], Iterator[Batch]]


def run_stage(config: RunConfig, name: str, build_parts: Callable[[Context], Parts]) -> int:
    """Runs, or goes on with, a run.

    Args:
        config: of the run.
        name: of the configuration; names the run directory unless `config.run` does.
        build_parts: of the task.

    Returns:
        Exit status: 0 when done, 128 + signal when stopped by one.

    Raises:
        ConfigError, DataError, CheckpointError, NonFiniteError: with the remedy in the message.
    """
    accelerator = build_accelerator(config.train)
    processes = Processes()
    set_threads(config.train.threads)
    run = RunDir(run_path(config, name), processes.is_main, config.train.tensorboard)
    with stop_requests() as stop:
        run.open(config)
        try:
            splits = open_splits(config.data, processes)
            plan = plan_run(config, splits.train, processes)
            context = Context(config, run, splits, plan, processes, accelerator.device)
            stage = _Stage(context, build_parts(context))
            progress = stage.restore()
            if progress.step >= plan.total_steps:
                _say(processes, f"{run.path}: finished before, at step {progress.step}; nothing to do")
                return 0
            stage.begin(progress)
            done = fit(
                stage.prepare(accelerator),
                stage.parts.batches(progress.position),
                plan,
                config,
                accelerator,
                processes,
                run,
                stage,
                stop,
                progress,
            )
            return stage.finish(done)
        finally:
            run.close()


def run_path(config: RunConfig, name: str) -> Path:
    """The run directory: `config.run`, or runs/<task>/<name>."""
    return Path(config.run) if config.run else RUNS / config.task / (name or "default")


def set_threads(threads: int) -> None:
    """torch's threads on a CPU: this process's share of the cores unless given."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    torch.set_num_threads(threads or max(1, _num_cores() // local))


def loader_workers(num_workers: int, device: torch.device) -> int:
    """Loader processes for each training process.

    On a CPU one is enough to keep up and more would take its cores; for a GPU this process's share, 12 at
    most.
    """
    if num_workers >= 0:
        return num_workers
    if device.type == "cpu":
        return 1
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(2, min(12, _num_cores() // local))


def _num_cores() -> int:
    """Cores that this process may use: a scheduler often grants fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def plan_run(config: RunConfig, shards: ShardSet, processes: Processes) -> Plan:
    """Length and layout of a run.

    Raises:
        DataError: a batch that does not divide.
        ConfigError: no step to do.
    """
    train = config.train
    layout = plan_layout(train.global_batch_size, train.batch_size, processes.rank, processes.world_size)
    total = math.ceil(train.epochs * len(shards) / train.global_batch_size)
    if total < 1:
        raise ConfigError(f"train.epochs={train.epochs} makes no step: set it above 0")
    return Plan(total, len(shards), layout)


class _Stage:
    """One run: what `fit` calls between steps, and what surrounds it."""

    def __init__(self, context: Context, parts: Parts) -> None:
        self.context, self.parts = context, parts
        train, optim = context.config.train, context.config.optim
        self.store = CheckpointStore(context.run.checkpoints, train.keep, train.keep_every)
        groups = param_groups(parts.model, parts.task.param_rules(), optim.weight_decay)
        self.optimizer = build_optimizer(groups, optim)
        self.saved_rng: Mapping[str, torch.Tensor] = {}

    def restore(self) -> Progress:
        """Loads the newest whole checkpoint, if there is one."""
        context = self.context
        checkpoint = None
        if context.processes.is_main:  # it alone moves damaged folders aside
            checkpoint = self.store.load()
        context.processes.barrier()
        if not context.processes.is_main:
            checkpoint = self.store.load()
        if checkpoint is None:
            return Progress()
        expected = checkpoint.step * context.plan.layout.global_batch_size
        if checkpoint.position != expected:
            raise CheckpointError(
                f"{self.store.folder}: step {checkpoint.step} is at position {checkpoint.position}; "
                f"this global_batch_size would make it {expected}"
            )
        self.parts.load(checkpoint.files)
        self.parts.model.to(context.device)
        load_optimizer_tensors(self.optimizer, checkpoint.files["optimizer"].tensors)
        _set_rng(checkpoint.files["rng"].tensors, context.processes.rank)
        _say(context.processes, f"{context.run.path}: going on from step {checkpoint.step}")
        return Progress(checkpoint.step, checkpoint.position)

    def begin(self, progress: Progress) -> None:
        """Writes down what this run is, and says it."""
        context = self.context
        context.run.keep_metrics_until(progress.step)
        context.run.record(self.facts())
        layout, config = context.plan.layout, context.config
        lr = config.optim.base_lr * layout.global_batch_size / 256
        count = sum(p.numel() for p in self.parts.model.parameters() if p.requires_grad)
        _say(
            context.processes,
            f"{config.task}: {count / 1e6:.2f} M trainable parameters, {context.plan.epoch_size} faces"
            f"{' (rendered)' if context.splits.train.rendered else ''}, {context.plan.total_steps} steps of "
            f"{layout.world_size} process(es) × {layout.batch_size} × {layout.accum_steps} accumulated = "
            f"{layout.global_batch_size}, peak lr {lr:.3g}, {config.train.precision} on {context.device}; "
            f"run directory {context.run.path}",
        )

    def facts(self) -> dict[str, Any]:
        """What run.json says of this run besides versions."""
        train = self.context.splits.train
        return {
            "task": self.context.config.task,
            "seed": self.context.config.seed,
            "data": {
                "hash": train.hash,
                "folders": [str(folder) for folder in train.folders],
                "sources": [manifest.source for manifest in train.manifests],
                "licences": [manifest.licence for manifest in train.manifests],
                "rendered": train.rendered,
                "num_samples": len(train),
                "alignment": [dict(manifest.alignment) for manifest in train.manifests],
            },
            "total_steps": self.context.plan.total_steps,
            "world_size": self.context.processes.world_size,
        }

    def prepare(self, accelerator: Any) -> Trainee:
        """Model and optimiser as the loop takes them; the loader is not prepared: it is split already."""
        model: Any = self.parts.model
        if self.context.config.train.compile:
            model = torch.compile(model)
        model, optimizer = accelerator.prepare(model, self.optimizer)
        return Trainee(self.parts.task, model, optimizer)

    def evaluate(self, step: int) -> Mapping[str, float]:
        """See `loop.Hooks`."""
        return self.parts.observer.evaluate(step)

    def save(self, step: int, position: int) -> None:
        """See `loop.Hooks`: the main process writes, the others hand in their random states and wait."""
        rng = _gather_rng(self.context.processes)
        if self.context.processes.is_main:
            files = {
                **self.parts.files(),
                "optimizer": TensorFile(optimizer_tensors(self.optimizer), {"format": "faceprior-optimizer"}),
                "rng": TensorFile(rng, {"format": "faceprior-rng"}),
            }
            self.store.save(Checkpoint(step, position, files))
        self.context.processes.barrier()

    def finish(self, done: Progress) -> int:
        """Publishes a finished run; says how to go on with another. Returns the exit status."""
        context = self.context
        if context.processes.is_main:
            finished = done.step == context.plan.total_steps
            write_report([context.run.path])
            if finished:
                publish(context.config.task, context.run.path)
                print(f"done: {context.run.path}/report.html, {self.store.folders()[-1]}")
            else:
                print(f"stopped at step {done.step}, saved; the same command goes on from there")
        context.processes.barrier()
        return 128 + done.stopped_by if done.stopped_by > 0 else 0


def _say(processes: Processes, text: str) -> None:
    if processes.is_main:
        print(text, flush=True)


def _gather_rng(processes: Processes) -> dict[str, torch.Tensor]:
    """The state of torch's generators in every process; the pipeline's own randomness has no state."""
    states = {f"cpu.{i}": state for i, state in enumerate(processes.gather(torch.get_rng_state()))}
    if torch.cuda.is_available():
        cuda = processes.gather(torch.cuda.get_rng_state())
        states |= {f"cuda.{i}": state for i, state in enumerate(cuda)}
    return states


def _set_rng(states: Mapping[str, torch.Tensor], rank: int) -> None:
    if f"cpu.{rank}" in states:
        torch.set_rng_state(states[f"cpu.{rank}"])
    if f"cuda.{rank}" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states[f"cuda.{rank}"])
