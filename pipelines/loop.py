"""The training loop: the same page for every task.

data -> step -> clip -> update -> log -> save -> evaluate. Between saves and evaluations no step waits for the
device: what it measured is read when the next one is under way there.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import DistributedDataParallelKwargs, parse_flag_from_env
from torch import nn

from pipelines.config import ConfigError, OptimConfig, RunConfig, TrainConfig
from pipelines.heap import give_freed_memory_back, keep_freed_memory
from pipelines.measurements import Measurements
from pipelines.optim import learning_rate, set_learning_rate
from pipelines.processes import Processes, StopRequest
from pipelines.progress import Clock, Plan, Progress, ProgressLine
from pipelines.rundir import RunDir
from pretrain.task import Task
from shards.stream import Batch

_REMEDY = (
    "here each process holds the whole model: launch with torchrun, or with a config file of pipelines/launch"
)


class NonFiniteError(Exception):
    """Loss or gradient were not finite, and the policy is to stop."""


class Hooks(Protocol):
    """What the loop calls between steps, in every process."""

    def owes_evaluation(self, done: Progress) -> bool:
        """Whether a run that ended at this step ended before the evaluation that was due there."""
        ...

    def evaluate(self, done: Progress) -> Mapping[str, float]:
        """Measures the model; returns what is to be logged."""
        ...

    def save(self, done: Progress) -> None:
        """Writes a checkpoint, unless that step has one."""
        ...


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


def build_accelerator(config: TrainConfig) -> Accelerator:
    """The accelerator of a run; on a CPU, freed memory stays with this process from now on.

    Raises:
        ConfigError: an unknown precision, or one that this device lacks; processes that did not join or share
            a GPU; settings of accelerate by which another training would come of it.
    """
    if config.precision not in ("fp32", "bf16"):
        raise ConfigError(f"train.precision={config.precision!r}: use fp32 or bf16")
    if config.nonfinite not in ("stop", "skip"):
        raise ConfigError(f"train.nonfinite={config.nonfinite!r}: use stop or skip")
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    for name in ("DEEPSPEED", "FSDP", "MEGATRON_LM", "PARALLELISM_CONFIG"):
        if parse_flag_from_env(f"ACCELERATE_USE_{name}"):
            raise ConfigError(f"accelerate was told to use {name}; {_REMEDY}")
    local, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.accelerator.device_count()
    if local > gpus > 0 and not parse_flag_from_env("ACCELERATE_USE_CPU"):
        raise ConfigError(
            f"{local} processes were launched here for {gpus} GPU(s), and two cannot share one: launch "
            f"{gpus} (train.batch_size makes them accumulate), or set ACCELERATE_USE_CPU=true"
        )
    # Without a GPU, and not told so, accelerate lets each process train a model of its own. On a Mac's, fused
    # AdamW neither clips nor leaves out updates that are not finite.
    alone = launched > 1 and not torch.accelerator.is_available()
    cpu = alone or torch.backends.mps.is_available()
    try:
        accelerator = Accelerator(
            cpu=cpu,
            mixed_precision="bf16" if config.precision == "bf16" else "no",
            kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
        )
    except ValueError as error:
        raise ConfigError(f"train.precision={config.precision}: {error}; use train.precision=fp32") from error
    if launched > 1 and accelerator.num_processes != launched:
        raise ConfigError(
            f"{launched} processes were launched, but accelerate joined {accelerator.num_processes}: "
            "launch with torchrun, and on a CPU beside GPUs set ACCELERATE_USE_CPU=true"
        )
    if accelerator.distributed_type not in (
        DistributedType.NO,
        DistributedType.MULTI_CPU,
        DistributedType.MULTI_GPU,
    ):
        raise ConfigError(f"accelerate was told to use {accelerator.distributed_type.value}; {_REMEDY}")
    steps = accelerator.gradient_accumulation_steps
    if steps != 1:  # it would divide every loss once more
        raise ConfigError(
            f"accelerate was told gradient_accumulation_steps={steps}: set it to 1 in its configuration; "
            "train.global_batch_size and train.batch_size decide the accumulation"
        )
    if accelerator.device.type == "cpu":
        keep_freed_memory()
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
        batches: this process's micro-batches from `progress.position` on; not touched if no step is to do.
        plan: length and layout.
        config: of the run.
        accelerator: that prepared model and optimiser.
        processes: for what all must agree on.
        run: gets metrics.
        hooks: evaluation and checkpoints.
        stop: set by signals; one that comes in the last step does not stop the run, which is done then.
        progress: where to begin; not changed.

    Returns:
        Where it ended. A checkpoint of that step has been saved.

    Raises:
        NonFiniteError: by policy; the keys of the batch are in the run directory.
    """
    train, optim = config.train, config.optim
    done = replace(progress, stopped_by=0)
    line = ProgressLine(plan.total_steps, processes.is_main)
    if hooks.owes_evaluation(done):
        _evaluate(trainee, hooks, run, done, line)
    measured = Measurements(plan, train.log_every, processes, run, line)
    max_skipped = train.max_skipped if train.nonfinite == "skip" else progress.skipped
    last_save = time.monotonic()
    trainee.model.train()
    while done.step < plan.total_steps and not done.stopped_by:
        lr = learning_rate(optim, plan.layout.global_batch_size, plan.epoch(done.step), train.epochs)
        set_learning_rate(trainee.optimizer, lr)
        micro_batches = _draw(batches, plan.layout.accum_steps, accelerator.device, measured.clock)
        logs = train_step(trainee, micro_batches, optim, accelerator)
        done.step += 1
        done.position += plan.layout.global_batch_size
        measured.add(done.step, logs, lr, micro_batches)

        is_last = done.step == plan.total_steps
        minutes_up = 0 < train.save_minutes * 60 <= time.monotonic() - last_save
        asked, save_now = processes.post([int(stop.signal), int(minutes_up and processes.is_main)])
        if not is_last:
            done.stopped_by = asked or (-1 if done.step == train.stop_at_step else 0)
        ends = bool(is_last or done.stopped_by)
        saves = ends or bool(save_now) or _is_multiple(done.step, train.save_every)
        evaluates = not done.stopped_by and evaluation_is_due(done.step, plan, config.eval.every)

        done.skipped += measured.read_all() if saves or evaluates else measured.read_due()
        _check_finite(done, max_skipped, run)
        if ends:
            measured.write_line()
        with measured.clock.pause():
            if saves:
                hooks.save(done)
            if evaluates:
                _evaluate(trainee, hooks, run, done, line)
        if saves or minutes_up:  # what was asked for comes a step later where there are several processes
            last_save = time.monotonic()
    processes.finish_posts()
    return done


def _is_multiple(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def evaluation_is_due(step: int, plan: Plan, every: int) -> bool:
    """Whether a run that is not stopped evaluates after this step."""
    return step >= plan.total_steps or (step > 0 and _is_multiple(step, every))


def _draw(batches: Iterator[Batch], count: int, device: torch.device, clock: Clock) -> list[Batch]:
    """The micro-batches of one step, on the device; the wait for them is counted."""
    with clock.waiting():
        drawn = [next(batches) for _ in range(count)]
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
    return logs | _update(trainee, optim)


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


def _update(trainee: Trainee, optim: OptimConfig) -> dict[str, torch.Tensor]:
    """Clips and updates without asking the device, or a pass over the gradients to scale them.

    Fused AdamW divides them by `grad_scale` as it reads them, and updates nothing where `found_inf` is 1.
    """
    grads = [
        p.grad for group in trainee.optimizer.param_groups for p in group["params"] if p.grad is not None
    ]
    grad_norm = torch.nn.utils.get_total_norm(grads)
    nonfinite = (~torch.isfinite(grad_norm)).float()
    inner = getattr(trainee.optimizer, "optimizer", trainee.optimizer)
    inner.grad_scale = (grad_norm / optim.clip_grad).clamp(min=1) if optim.clip_grad > 0 else None
    inner.found_inf = nonfinite
    trainee.optimizer.step()
    trainee.optimizer.zero_grad(set_to_none=True)
    return {"grad_norm": grad_norm.detach(), "nonfinite": nonfinite}


def _check_finite(done: Progress, max_skipped: int, run: RunDir) -> None:
    if done.skipped > max_skipped:
        raise NonFiniteError(
            f"{done.skipped} update(s) up to step {done.step} had a loss or gradient that is not finite; "
            f"they were not made. The batches' keys are in {run.path}/nonfinite-*.json. Lower optim.base_lr, "
            "use train.precision=fp32, look at those images, or allow some with train.nonfinite=skip"
        )


def _evaluate(trainee: Trainee, hooks: Hooks, run: RunDir, done: Progress, line: ProgressLine) -> None:
    trainee.model.eval()
    with torch.inference_mode():
        values = hooks.evaluate(done)
    trainee.model.train()
    give_freed_memory_back()  # probes take gigabytes
    if values:
        run.log("eval", done.step, values)
        line.say("held out: " + "  ".join(f"{name} {value:.4g}" for name, value in values.items()))
