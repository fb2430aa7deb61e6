"""Parameter groups, the optimiser and its state by names, and the learning rate as a function of the step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from pipelines.checkpoint import CheckpointError, Tensors
from pipelines.config import ConfigError, OptimConfig
from pretrain.task import ParamRule, resolve_params


def param_groups(model: nn.Module, rules: Sequence[ParamRule], weight_decay: float) -> list[dict[str, Any]]:
    """Every trainable parameter in exactly one group, in a fixed order.

    Args:
        model: the unwrapped model.
        rules: of its task.
        weight_decay: for the parameters that are decayed.

    Returns:
        Groups with `params`, `names`, `weight_decay` and `lr_scale`.

    Raises:
        ConfigError: nothing is trainable.
    """
    parameters = dict(model.named_parameters())
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, setting in resolve_params(model, rules).items():
        decay = weight_decay if setting.decay else 0.0
        group = groups.setdefault(
            (setting.lr_scale, decay),
            {"params": [], "names": [], "weight_decay": decay, "lr_scale": setting.lr_scale},
        )
        group["params"].append(parameters[name])
        group["names"].append(name)
    if not groups:
        raise ConfigError("no parameter is trainable")
    return [groups[key] for key in sorted(groups)]


def build_optimizer(groups: list[dict[str, Any]], config: OptimConfig) -> torch.optim.AdamW:
    """Fused AdamW: it takes `found_inf`, which masks a non-finite update without asking the device."""
    return torch.optim.AdamW(groups, lr=0.0, betas=(config.beta1, config.beta2), eps=config.eps, fused=True)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> Tensors:
    """The optimiser's state, keyed `<parameter name>.<state name>`; groups must carry `names`."""
    tensors = {}
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            for key, value in optimizer.state.get(parameter, {}).items():
                tensors[f"{name}.{key}"] = torch.as_tensor(value)
    return tensors


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]) -> None:
    """Puts a saved state back; a parameter that had no gradient yet has none.

    Raises:
        CheckpointError: a parameter's saved state is incomplete, or saved state has no parameter.
    """
    left = dict(tensors)
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            keys = ("step", "exp_avg", "exp_avg_sq")
            found = {key: left.pop(f"{name}.{key}") for key in keys if f"{name}.{key}" in left}
            if not found:
                continue
            if len(found) < len(keys):
                raise CheckpointError(f"optimizer.safetensors: the state of parameter {name} is incomplete")
            step_device = parameter.device if group.get("fused") else "cpu"
            optimizer.state[parameter] = {
                key: value.to(step_device if key == "step" else parameter.device, copy=True)
                for key, value in found.items()
            }
    if left:
        raise CheckpointError(f"optimizer.safetensors: state of an unknown parameter, {sorted(left)[0]}")


def learning_rate(config: OptimConfig, global_batch_size: int, epoch: float, epochs: float) -> float:
    """Linear warm-up, then half a cosine down to `min_lr` (He et al. 2022), or steps of `gamma` an epoch.

    Args:
        config: rates and warm-up.
        global_batch_size: samples to a step; the peak is base_lr · global_batch_size / 256.
        epoch: fractional epoch of this step, from 0.
        epochs: length of the training.

    Raises:
        ConfigError: an unknown schedule.
    """
    if config.schedule not in ("cosine", "exponential"):
        raise ConfigError(f"optim.schedule={config.schedule!r}: use cosine or exponential")
    peak = config.base_lr * global_batch_size / 256
    if epoch < config.warmup_epochs:
        return peak * epoch / config.warmup_epochs
    if config.schedule == "exponential":
        return max(config.min_lr, peak * config.gamma ** int(epoch - config.warmup_epochs))
    progress = (epoch - config.warmup_epochs) / max(epochs - config.warmup_epochs, 1e-12)
    return config.min_lr + (peak - config.min_lr) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """`lr` times each group's `lr_scale` (torch's schedulers ignore it)."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
