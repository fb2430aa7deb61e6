"""The task of MRAN: one loss and gradient however a step is shared out, missing labels, columns, rules."""

from __future__ import annotations

import contextlib
import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from finetune import metrics
from finetune.config import MRANConfig
from finetune.mran import MRAN, MRANOutput
from finetune.mran_task import MRANTask
from pretrain.task import StepOutput, Task, resolve_params
from shards.clips import ClipBatch
from tests.finetune.clips import SMALL, clips, portions, take, tiny_mran
from tests.finetune.tiny import random

TWO, STEP = 2, 8
CASES = ("ccc", "mse")
BATCH = clips(STEP, 3)


def case(loss: str) -> tuple[MRAN, MRANTask]:
    """A ViT with drop path of which two blocks learn; depth and thermal are dropped every other time."""
    settings: dict[str, Any] = {
        "tuned_blocks": 2,
        "modality_dropout": 0.5,
        "frame_dropout": 0.2,
        "loss": loss,
    }
    model = tiny_mran(encoder="vit", **settings)
    return model.train(), MRANTask(MRANConfig(**SMALL, **settings), 3, 0.5)


def step_of(
    task: MRANTask, model: nn.Module, batches: list[ClipBatch]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Logs summed over micro-batches, and the gradients, as the loop takes them."""
    model.zero_grad(set_to_none=True)
    logs: dict[str, Tensor] = {}
    for number, output in enumerate(task.step(model, batches)):
        wrapped = isinstance(model, DistributedDataParallel)
        quiet = model.no_sync() if wrapped and number < len(batches) - 1 else contextlib.nullcontext()
        with quiet:
            output.loss.backward()
        for name, value in output.logs.items():
            logs[name] = logs.get(name, torch.zeros(())) + value
    grads = {
        name.removeprefix("module."): param.grad.clone()
        for name, param in model.named_parameters()
        if param.grad is not None
    }
    return logs, grads


def process(rank: int, folder: str) -> None:
    """One of two, with half of every micro-batch of the step; writes what it found."""
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=TWO)
    found = {}
    for loss in CASES:
        for accum in (1, 2):
            model, task = case(loss)
            parts = [take(part, range(rank, part.size, TWO)) for part in portions(BATCH, STEP // accum)]
            found[f"{loss} {accum}"] = step_of(task, DistributedDataParallel(model), parts)
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def shared_out(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two gloo processes found."""
    folder = tmp_path_factory.mktemp("mran")
    torch.multiprocessing.spawn(process, args=(str(folder),), nprocs=TWO)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(TWO)]


def explicit_loss(output: MRANOutput, batch: ClipBatch, loss: str) -> Tensor:
    """Of a whole batch, written down once more."""
    if loss == "mse":
        return (output.va - batch.va)[batch.va_valid].square().mean()
    total = torch.ones(())
    for column in (0, 1):
        seen = batch.va_valid[..., column]
        x, y = output.va[..., column][seen], batch.va[..., column][seen]
        spread = x.var(correction=0) + y.var(correction=0) + (x.mean() - y.mean()) ** 2
        total = total - 2 * ((x - x.mean()) * (y - y.mean())).mean() / spread
    return total


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    largest = max(grad.abs().max().item() for grad in expected.values())
    for name, grad in expected.items():
        torch.testing.assert_close(found[name], grad, rtol=1e-4, atol=1e-5 * largest, msg=name)


@pytest.mark.parametrize("loss", CASES)
@pytest.mark.parametrize("size", [8, 2])
def test_loss_and_gradients_are_those_of_one_explicit_batch(loss: str, size: int) -> None:
    model, task = case(loss)
    logs, found = step_of(task, model, portions(BATCH, size))
    model.zero_grad(set_to_none=True)
    expected = explicit_loss(model(BATCH.images, BATCH.valid, BATCH.rng), BATCH, loss)
    expected.backward()
    assert logs["loss"].item() == pytest.approx(expected.item(), abs=1e-5)
    assert_same(found, {name: p.grad for name, p in model.named_parameters() if p.grad is not None})


@pytest.mark.parametrize("loss", CASES)
@pytest.mark.parametrize("accum", [1, 2])
def test_two_processes_take_the_same_step(loss: str, accum: int, shared_out: list[dict[str, Any]]) -> None:
    """In DistributedDataParallel, which also demands that every parameter takes part."""
    model, task = case(loss)
    logs, expected = step_of(task, model, [BATCH])
    both = [each[f"{loss} {accum}"] for each in shared_out]
    for name in ("loss", "loss_va"):
        mean = torch.stack([found[name] for found, _ in both]).mean()
        assert mean.item() == pytest.approx(logs[name].item(), abs=1e-5)
    for _, grads in both:
        assert_same(grads, expected)


@pytest.mark.parametrize("loss", CASES)
@pytest.mark.parametrize("count", [0, 1])
@pytest.mark.parametrize("size", [8, 4])
def test_no_or_one_label_gives_finite_gradients(loss: str, count: int, size: int) -> None:
    """A CCC of fewer than two is none."""
    valid = torch.zeros_like(BATCH.va_valid)
    valid[5, 1] = bool(count)
    model, task = case(loss)
    logs, grads = step_of(task, model, portions(replace(BATCH, va_valid=valid), size))
    something = loss == "mse" and count == 1
    assert (logs["loss"] > 0) == something and logs["loss"].isfinite()
    assert all(grad.isfinite().all() for grad in grads.values())
    assert any(grad.any() for grad in grads.values()) == something


@pytest.mark.parametrize("loss", CASES)
def test_what_stands_in_a_missing_label_is_never_seen(loss: str) -> None:
    spoilt = replace(BATCH, va=BATCH.va.where(BATCH.va_valid, math.nan))
    model, task = case(loss)
    expected, found = (step_of(task, model, portions(batch, 4)) for batch in (BATCH, spoilt))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_outputs_come_one_by_one_and_only_an_accumulated_ccc_needs_a_second_pass() -> None:
    for loss, size, before_first in (("ccc", 8, 1), ("ccc", 2, 4 + 1), ("mse", 2, 1)):
        model, task = case(loss)
        calls: list[int] = []
        model.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        outputs = iter(task.step(model, portions(BATCH, size)))
        assert isinstance(next(outputs), StepOutput) and len(calls) == before_first
        assert len(list(outputs)) == 8 // size - 1 and len(calls) == before_first + 8 // size - 1


@torch.no_grad()
def test_columns_are_of_every_frame_and_say_what_is_missing() -> None:
    model, task = case("ccc")
    inside = torch.ones_like(BATCH.inside)
    inside[3, 2] = False
    columns = task.predict(model.eval(), replace(BATCH, inside=inside))
    assert torch.equal(columns["va"], model(BATCH.images, BATCH.valid).va)
    assert torch.equal(columns["va_target"].isfinite(), BATCH.va_valid)
    assert torch.equal(columns["va_target"][BATCH.va_valid], BATCH.va[BATCH.va_valid])
    assert columns["frames"][3].tolist() == [0, 1, -1]
    found = task.metrics(columns)
    for place, name in enumerate(("valence", "arousal")):
        seen = BATCH.va_valid[..., place]
        pair = (columns["va"][..., place][seen].double(), BATCH.va[..., place][seen].double())
        assert found[f"ccc_{name}"] == pytest.approx(metrics.ccc(*(values.numpy() for values in pair)))
    assert found["score"] == pytest.approx((found["ccc_valence"] + found["ccc_arousal"]) / 2)
    nothing = columns | {"va_target": torch.full_like(columns["va"], math.nan)}
    assert task.metrics(nothing) == {}


def test_it_is_a_task_whose_early_blocks_learn_less() -> None:
    task: Task[nn.Module, ClipBatch] = MRANTask(MRANConfig(), 3, 0.5)
    settings = resolve_params(tiny_mran(encoder="vit"), task.param_rules())
    assert settings["color.encoder.cls_token"] == (False, 0.5**4)
    assert settings["color.encoder.blocks.0.attn.qkv.weight"] == (True, 0.5**3)
    for name in ("attention_lstm.inputs.weight", "guide.stems.depth.layers.0.weight", "head.0.weight"):
        assert settings[name] == (True, 1)
    assert settings["guide.lstms.thermal.bias"] == (False, 1)
    frozen = resolve_params(case("ccc")[0], task.param_rules())
    assert {name for name in frozen if "encoder.blocks.0" in name or "pos_embed" in name} == set()


@pytest.mark.parametrize("guidance", ["gate", "none"])
def test_it_learns_a_handful_of_clips(guidance: str) -> None:
    torch.manual_seed(0)
    model = tiny_mran(
        guidance=guidance, dim=8, hidden_dim=8, volume_dims=(16, 16), modality_dropout=0
    ).train()
    task, batch = MRANTask(MRANConfig()), clips(4, 3, seed=4, known=1.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    losses = []
    for _ in range(60):
        logs, _ = step_of(task, model, [batch])
        optimizer.step()
        losses.append(logs["loss"].item())
    assert losses[0] > 0.7 and losses[-1] < -0.7  # −1 is perfect


def told_apart(count: int, seed: int) -> ClipBatch:
    """Valence brightens a patch of the colour pictures, arousal cools one of the thermal pictures alone."""
    generator, batch = random(seed), clips(count, 4, known=1.0)
    va = (torch.rand(count, 1, 2, generator=generator) * 2 - 1).expand(-1, 4, -1)
    va = (va + 0.3 * torch.randn(va.shape, generator=generator)).clamp(-1, 1)
    valence, arousal = va[:, :, :, None, None, None].unbind(2)
    face = clips(1, 1, seed=1).images["color"] / 255
    color = 0.8 * face + 0.05 * torch.randn(batch.images["color"].shape, generator=generator)
    color[..., 22:28, 10:22] += 0.15 * valence
    thermal = 0.05 * torch.randn(batch.images["thermal"].shape, generator=generator)
    thermal[..., 14:22, 12:20] -= 0.4 * arousal
    images = batch.images | {"color": (color.clamp(0, 1) * 255).byte(), "thermal": thermal}
    return replace(batch, images=images, va=va, rng=batch.rng + seed)


@pytest.mark.slow
@pytest.mark.parametrize("guidance", ["gate", "none"])
def test_guidance_tells_by_attention_what_colour_does_not_show(guidance: str) -> None:
    settings = {"guidance": guidance, "dim": 16, "hidden_dim": 16, "volume_dims": (16, 32)}
    model, task = tiny_mran(**settings), MRANTask(MRANConfig())
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for step in range(300):
        step_of(task, model.train(), [told_apart(16, step + 1)])
        optimizer.step()
    with torch.no_grad():
        found = task.metrics(task.predict(model.eval(), told_apart(128, 0)))
    assert found["ccc_valence"] > 0.8
    assert found["ccc_arousal"] > 0.5 if guidance == "gate" else abs(found["ccc_arousal"]) < 0.2
