"""One run of any task: restore, train, save, publish. What differs between tasks comes in as `Parts`."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pipelines.checkpoint import (
    Checkpoint,
    CheckpointError,
    CheckpointStore,
    TensorFile,
    read_checkpoint,
)
from pipelines.config import ConfigError, RunConfig
from pipelines.cores import set_threads
from pipelines.data import DAMAGED, Splits, open_splits
from pipelines.loop import Trainee, build_accelerator, evaluation_is_due, fit
from pipelines.optim import build_optimizer, load_optimizer_tensors, optimizer_tensors, param_groups
from pipelines.processes import Processes, stop_requests
from pipelines.progress import Plan, Progress
from pipelines.rundir import RUNS, RunDir, publish
from pretrain.encoder import choose_attention
from pretrain.task import Task
from shards.shardset import ShardSet
from shards.stream import Batch, plan_layout


class Observer(Protocol):
    """What a task measures and draws of itself during training."""

    def evaluate(self, step: int) -> Mapping[str, float]:
        """Called in every process, without gradients, the model in eval mode.

        Returns:
            What is to be logged; by the highest `val_score`, where there is one, the best checkpoint is kept.
        """
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
        saved: facts of the files of the checkpoint that the run goes on from, by name; empty at its first
            start. What a model starts from is read only then: it need not be there any more.
    """

    config: RunConfig
    run: RunDir
    splits: Splits
    plan: Plan
    processes: Processes
    device: torch.device
    saved: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Parts:
    """What one task brings.

    Attributes:
        task: what a step computes.
        model: on the CPU, with its initial weights, or with any if the run goes on (`Context.saved`).
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
    store = CheckpointStore(run.checkpoints, config.train.keep, config.train.keep_every)
    with stop_requests() as stop:
        try:
            processes.together(lambda: run.open(config))
            checkpoint = load_agreed(store, processes)
            splits = open_splits(config.data, processes, config.data_kind, run.path / DAMAGED)
            plan = plan_run(config, splits.train, processes)
            saved = {name: file.facts for name, file in checkpoint.files.items()} if checkpoint else {}
            context = Context(config, run, splits, plan, processes, accelerator.device, saved)
            if checkpoint:
                processes.together(lambda: run.check_data(data_facts(splits.train)))
            stage = _Stage(context, build_parts(context), store)
            progress = stage.restore(checkpoint)
            del checkpoint  # as large as model and optimiser
            if stage.has_finished(progress):
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


def load_agreed(store: CheckpointStore, processes: Processes) -> Checkpoint | None:
    """The checkpoint to go on from: the main process chooses, the others read that very one.

    Raises:
        CheckpointError: see `CheckpointStore.load`.
        PeerError: another process cannot read it.
    """
    checkpoint = processes.together(lambda: store.load() if processes.is_main else None)
    name = processes.agree(checkpoint.name if checkpoint else "")
    if not name:
        return None
    return processes.together(lambda: checkpoint or read_checkpoint(store.folder / name))


def run_path(config: RunConfig, name: str) -> Path:
    """The run directory: `config.run`, or runs/<task>/<name>."""
    return Path(config.run) if config.run else RUNS / config.task / (name or "default")


def keep_constants_apart(model: nn.Module) -> None:
    """Buffers that no checkpoint holds are constants, alike everywhere: not to be sent at every step."""
    constants = {name for name, _ in model.named_buffers()} - set(model.state_dict())
    wrapper: Any = DistributedDataParallel
    wrapper._set_params_and_buffers_to_ignore_for_model(model, sorted(constants))


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


def data_facts(train: ShardSet) -> dict[str, Any]:
    """What run.json says of the data."""
    return {
        "hash": train.hash,
        "folders": [str(folder) for folder in train.folders],
        "sources": [manifest.source for manifest in train.manifests],
        "licences": [manifest.licence for manifest in train.manifests],
        "rendered": train.rendered,
        "rendered_only": all(manifest.rendered for manifest in train.manifests),
        "num_samples": len(train),
        "num_left_out": sum(part.count for part in train.left_out),
        "alignment": [dict(manifest.alignment) for manifest in train.manifests],
    }


class _Stage:
    """One run: what `fit` calls between steps, and what surrounds it."""

    def __init__(self, context: Context, parts: Parts, store: CheckpointStore) -> None:
        self.context, self.parts, self.store = context, parts, store
        config = context.config
        groups = param_groups(parts.model, parts.task.param_rules(), config.optim.weight_decay)
        self.optimizer = build_optimizer(groups, config.optim)
        self._saved_step = 0

    def restore(self, checkpoint: Checkpoint | None) -> Progress:
        """Puts a checkpoint back, if there is one."""
        context = self.context
        if checkpoint is None:
            return Progress()
        expected = checkpoint.step * context.plan.layout.global_batch_size
        if checkpoint.position != expected:
            raise CheckpointError(
                f"{self.store.folder}: step {checkpoint.step} is at position {checkpoint.position}; "
                f"this global_batch_size would make it {expected}"
            )
        if not {"optimizer", "rng"} <= checkpoint.files.keys():
            raise CheckpointError(
                f"{self.store.folder}: holds weights alone, no training to go on with; start a new run "
                "from them with init="
            )
        self.parts.load(checkpoint.files)
        self.parts.model.to(context.device)
        load_optimizer_tensors(self.optimizer, checkpoint.files["optimizer"].tensors)
        _set_rng(checkpoint.files["rng"].tensors, context.processes.rank, context.device)
        self._saved_step = checkpoint.step
        return Progress(checkpoint.step, checkpoint.position, checkpoint.skipped)

    def has_finished(self, progress: Progress) -> bool:
        """Whether nothing is left to do: all steps were made, evaluated and published."""
        finished = progress.step >= self.context.plan.total_steps
        finished = finished and self.context.run.ended("finished", progress.step)
        return self.context.processes.agree("finished" if finished else "") != ""

    def begin(self, progress: Progress) -> None:
        """Writes down what this run is, and says it."""
        context = self.context
        context.run.begin()
        context.run.keep_metrics_until(progress.step)
        context.run.record(self.facts(), progress.step, context.device)
        if progress.step:
            _say(context.processes, f"{context.run.path}: going on from step {progress.step}")
        if context.splits.val is None:
            folders = ", ".join(str(folder) for folder in context.splits.train.folders)
            _say(context.processes, f"no val split beside {folders}: nothing is held out, nothing evaluated")
        layout, config = context.plan.layout, context.config
        lr = config.optim.base_lr * layout.global_batch_size / 256
        count = sum(p.numel() for p in self.parts.model.parameters() if p.requires_grad)
        _say(
            context.processes,
            f"{config.task}: {count / 1e6:.2f} M trainable parameters, "
            f"{context.plan.epoch_size} {config.data_kind}"
            f"{' (rendered)' if context.splits.train.rendered else ''}, {context.plan.total_steps} steps of "
            f"{layout.world_size} process(es) × {layout.batch_size} × {layout.accum_steps} accumulated = "
            f"{layout.global_batch_size}, peak lr {lr:.3g}, {config.train.precision} on {context.device}; "
            f"run directory {context.run.path}",
        )

    def facts(self) -> dict[str, Any]:
        """What run.json says of this run besides versions."""
        return {
            "task": self.context.config.task,
            "seed": self.context.config.seed,
            "data": data_facts(self.context.splits.train),
            "total_steps": self.context.plan.total_steps,
            "world_size": self.context.processes.world_size,
        }

    def prepare(self, accelerator: Any) -> Trainee:
        """Model and optimiser as the loop takes them; the loader is not prepared: it is split already."""
        model: Any = self.parts.model
        choose_attention(model, accelerator.device, self.context.config.train.precision == "bf16")
        if self.context.config.train.compile:
            model = torch.compile(model)
        keep_constants_apart(model)
        model, optimizer = accelerator.prepare(model, self.optimizer)
        return Trainee(self.parts.task, model, optimizer)

    def owes_evaluation(self, done: Progress) -> bool:
        """See `loop.Hooks`."""
        owed = evaluation_is_due(done.step, self.context.plan, self.context.config.eval.every)
        owed = owed and not self.context.run.has_logged("eval", done.step)
        return self.context.processes.agree("owed" if owed else "") != ""

    def evaluate(self, done: Progress) -> Mapping[str, float]:
        """See `loop.Hooks`: whether and when a run evaluates changes nothing of its training.

        A step that scores higher than every one before is saved, if it is not yet, and kept as the best.
        """
        device = self.context.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            values = self.parts.observer.evaluate(done.step)
        score, processes = values.get("val_score"), self.context.processes
        is_best = processes.is_main and score is not None and self.store.is_best(score)
        if processes.agree("best" if is_best else ""):
            self.save(done)
        if is_best and score is not None:
            self.store.mark_best(done.step, score)
        return values

    def save(self, done: Progress) -> None:
        """See `loop.Hooks`: the main process writes, the others hand in their random states and wait."""
        if done.step == self._saved_step:
            return
        rng = _gather_rng(self.context.processes, self.context.device)
        self.context.processes.together(lambda: self._write(done, rng))
        self._saved_step = done.step

    def _write(self, done: Progress, rng: Mapping[str, torch.Tensor]) -> None:
        if self.context.processes.is_main:
            files = {
                **self.parts.files(),
                "optimizer": TensorFile(optimizer_tensors(self.optimizer), {"format": "faceprior-optimizer"}),
                "rng": TensorFile(dict(rng), {"format": "faceprior-rng"}),
            }
            self.store.save(Checkpoint(done.step, done.position, files, done.skipped))

    def finish(self, done: Progress) -> int:
        """Publishes a finished run; says how to go on with another.

        Returns:
            The exit status: 0, or 128 + signal for a run that one stopped before it was finished.
        """
        context = self.context
        finished = done.step >= context.plan.total_steps
        context.processes.together(lambda: self._close(done, finished))
        return 128 + done.stopped_by if done.stopped_by > 0 and not finished else 0

    def _close(self, done: Progress, finished: bool) -> None:
        run = self.context.run
        if not run.writes:
            return
        if finished:
            publish(self.context.config.task, run.path)
        reported = _report(run.path)
        run.end("finished" if finished else "stopped", done.step)
        if finished:
            print(f"done: {reported}{self.store.folders()[-1]}")
        else:
            print(f"stopped at step {done.step}, saved; the same command goes on from there")


def _report(run: Path) -> str:
    """Writes the report of a run that has ended well, whatever becomes of the report."""
    from pipelines.report import write_report  # draws: half a second that other processes need not wait

    try:
        return f"{write_report([run])}, "
    except Exception as error:
        print(
            f"no report ({error!r}): the run is whole; `faceprior report {run}` tries again", file=sys.stderr
        )
        return ""


def _say(processes: Processes, text: str) -> None:
    if processes.is_main:
        print(text, flush=True)


def _gather_rng(processes: Processes, device: torch.device) -> dict[str, torch.Tensor]:
    """The state of torch's generators in every process; the pipeline's own randomness has no state."""
    states = {f"cpu.{i}": state for i, state in enumerate(processes.gather(torch.get_rng_state()))}
    if device.type == "cuda":
        cuda = processes.gather(torch.cuda.get_rng_state(device))
        states |= {f"cuda.{i}": state for i, state in enumerate(cuda)}
    return states


def _set_rng(states: Mapping[str, torch.Tensor], rank: int, device: torch.device) -> None:
    if f"cpu.{rank}" in states:
        torch.set_rng_state(states[f"cpu.{rank}"])
    if f"cuda.{rank}" in states and device.type == "cuda":
        torch.cuda.set_rng_state(states[f"cuda.{rank}"], device)
