"""Learning rates, groups, and the update that is not made."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipelines.checkpoint import CheckpointError
from pipelines.config import ConfigError, OptimConfig
from pipelines.optim import (
    build_optimizer,
    learning_rate,
    load_optimizer_tensors,
    optimizer_tensors,
    param_groups,
    set_learning_rate,
)
from pretrain.task import ParamRule, is_undecayed


def test_warm_up_and_cosine_as_in_mae() -> None:
    config = OptimConfig(base_lr=1.5e-4, warmup_epochs=40)
    peak = 1.5e-4 * 4096 / 256
    at = {e: learning_rate(config, 4096, e, 800) for e in (0, 20, 40, 420, 800)}
    assert at == pytest.approx({0: 0, 20: peak / 2, 40: peak, 420: peak / 2, 800: 0})


def test_the_minimum_is_reached_and_kept() -> None:
    config = OptimConfig(base_lr=1.0, min_lr=1e-6, warmup_epochs=0)
    assert learning_rate(config, 256, 30, 30) == pytest.approx(1e-6)
    assert learning_rate(config, 256, 31, 30) == pytest.approx(1e-6)


def test_every_trainable_parameter_is_in_exactly_one_group() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    model[2].bias.requires_grad_(False)
    rules = [ParamRule(is_undecayed, decay=False), ParamRule(r"^0\.", lr_scale=0.5)]
    groups = param_groups(model, rules, 0.05)
    names = [name for group in groups for name in group["names"]]
    assert sorted(names) == ["0.bias", "0.weight", "1.bias", "1.weight", "2.weight"]
    of = {name: (g["lr_scale"], g["weight_decay"]) for g in groups for name in g["names"]}
    assert of == {
        "0.bias": (0.5, 0.0),
        "0.weight": (0.5, 0.05),
        "1.bias": (1.0, 0.0),
        "1.weight": (1.0, 0.0),
        "2.weight": (1.0, 0.05),
    }
    optimizer = build_optimizer(groups, OptimConfig())
    set_learning_rate(optimizer, 0.2)
    assert sorted(g["lr"] for g in optimizer.param_groups) == pytest.approx([0.1, 0.1, 0.2, 0.2])


def test_nothing_trainable_is_an_error() -> None:
    model = nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(ConfigError, match="trainable"):
        param_groups(model, [], 0.0)


def test_found_inf_masks_the_whole_update() -> None:
    """Weights, moments and step count stay as they were."""
    model = nn.Linear(2, 2)
    optimizer = build_optimizer(param_groups(model, [], 0.05), OptimConfig())
    set_learning_rate(optimizer, 0.1)
    for found, bad in ((0.0, 1.0), (1.0, float("nan"))):
        before = [p.detach().clone() for p in model.parameters()]
        moments = {k: v.clone() for p in model.parameters() for k, v in optimizer.state[p].items()}
        for p in model.parameters():
            p.grad = torch.full_like(p, bad)
        optimizer.found_inf = torch.tensor(found)  # type: ignore[attr-defined]
        optimizer.step()
        same = all(torch.equal(a, b) for a, b in zip(before, model.parameters()))
        assert same == (found == 1.0)
        if found == 1.0:
            after = {k: v for p in model.parameters() for k, v in optimizer.state[p].items()}
            assert all(torch.equal(moments[k], after[k]) for k in after)


def test_a_parameter_that_had_no_gradient_yet_has_no_state_after_either() -> None:
    def optimizer() -> torch.optim.Optimizer:
        parameters = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
        group = {"params": parameters, "names": ["used", "unused"], "weight_decay": 0.0, "lr_scale": 1.0}
        return build_optimizer([group], OptimConfig())

    first, second = optimizer(), optimizer()
    first.param_groups[0]["params"][0].grad = torch.ones(2)
    first.step()
    saved = optimizer_tensors(first)
    load_optimizer_tensors(second, saved)
    assert (
        optimizer_tensors(second).keys() == saved.keys() == {"used.step", "used.exp_avg", "used.exp_avg_sq"}
    )
    del saved["used.exp_avg"]
    with pytest.raises(CheckpointError, match="state of parameter used is incomplete"):
        load_optimizer_tensors(optimizer(), saved)
    with pytest.raises(CheckpointError, match="unknown parameter"):
        load_optimizer_tensors(optimizer(), {"other.step": torch.ones(())})
