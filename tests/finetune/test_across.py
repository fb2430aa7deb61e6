"""Losses over two real processes equal those of one: sums, gathered batches, and their gradients."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from finetune.across import gather_across, sum_across, world_size
from finetune.losses import ccc_loss, cross_entropy_sum, step_mean

TWO = 2


def step() -> dict[str, Tensor]:
    """Eight faces, four to a process; the second process has fewer labels."""
    generator = torch.Generator().manual_seed(0)
    draw = {
        "va": torch.randn(8, 2, generator=generator),
        "truth": torch.randn(8, 2, generator=generator),
        "logits": torch.randn(8, 5, generator=generator),
    }
    seen = torch.tensor([1, 1, 0, 1, 0, 1, 0, 0], dtype=torch.bool)
    return draw | {"seen": seen, "expr": torch.arange(8) % 5}


def losses_of(part: dict[str, Tensor]) -> dict[str, Tensor]:
    """The step's losses and gradients as this process knows them."""
    va, logits = part["va"].clone().requires_grad_(), part["logits"].clone().requires_grad_()
    pairs = gather_across(part["seen"][:, None].expand(-1, 2))
    whole = ccc_loss(gather_across(va), gather_across(part["truth"]), pairs)
    count = sum_across(part["seen"]).sum()
    share = step_mean(cross_entropy_sum(logits, part["expr"], part["seen"]), count, world_size())
    return {
        "ccc": whole.detach(),
        "ccc_grad": torch.autograd.grad(whole, va)[0],
        "expr": share.detach(),
        "expr_grad": torch.autograd.grad(share, logits)[0],
    }


def process(rank: int, folder: str) -> None:
    """One of two; writes what it found."""
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=TWO)
    part = {name: tensor[4 * rank : 4 * rank + 4] for name, tensor in step().items()}
    numbers = torch.arange(6.0).view(3, 2)
    own = (numbers + 10 * rank).t().requires_grad_()  # not contiguous
    found: dict[str, Any] = losses_of(part)
    found["world_size"] = world_size()
    found["summed"] = sum_across(own)
    found["counted"] = sum_across(torch.tensor([True, rank == 0, False]))
    found["gathered"] = gather_across(own).detach()
    found["flags"] = gather_across(torch.tensor([True, rank == 0]))
    found["own"] = own.detach()
    found["classes"] = gather_across(torch.tensor([rank, 7]))
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two gloo processes found."""
    folder = tmp_path_factory.mktemp("across")
    torch.multiprocessing.spawn(process, args=(str(folder),), nprocs=TWO)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(TWO)]


def test_sums_are_of_all_processes_and_leave_the_tensor_alone(found: list[dict[str, Any]]) -> None:
    expected = torch.arange(6.0).view(3, 2).t() * 2 + 10
    for rank, each in enumerate(found):
        assert each["world_size"] == TWO
        assert torch.equal(each["summed"], expected) and not each["summed"].requires_grad
        assert torch.equal(each["own"], torch.arange(6.0).view(3, 2).t() + 10 * rank)
        assert each["counted"].dtype == torch.int64 and each["counted"].tolist() == [2, 1, 0]


def test_samples_are_gathered_in_order_of_rank(found: list[dict[str, Any]]) -> None:
    expected = torch.cat([each["own"] for each in found])
    for each in found:
        assert torch.equal(each["gathered"], expected)
        assert each["flags"].dtype == torch.bool and each["flags"].tolist() == [True, True, True, False]
        assert each["classes"].tolist() == [0, 7, 1, 7]


def test_each_process_has_the_exact_gradient_of_its_own_samples(found: list[dict[str, Any]]) -> None:
    alone = losses_of(step())
    for each in found:
        torch.testing.assert_close(each["ccc"], alone["ccc"])
    torch.testing.assert_close(torch.cat([each["ccc_grad"] for each in found]), alone["ccc_grad"])


def test_shares_and_their_gradients_average_to_those_of_one_process(found: list[dict[str, Any]]) -> None:
    alone = losses_of(step())
    torch.testing.assert_close(torch.stack([each["expr"] for each in found]).mean(), alone["expr"])
    torch.testing.assert_close(torch.cat([each["expr_grad"] for each in found]) / TWO, alone["expr_grad"])


def test_one_process_is_left_as_it_is() -> None:
    tensor = torch.arange(3.0, requires_grad=True)
    assert world_size() == 1
    assert gather_across(tensor) is tensor
    assert torch.equal(sum_across(tensor), tensor.detach()) and not sum_across(tensor).requires_grad
    assert sum_across(torch.tensor([True, False])).tolist() == [1, 0]
    assert sum_across(torch.tensor([True])).dtype == torch.int64
