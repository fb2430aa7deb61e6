"""Losses against slow explicit float64 code and reference implementations, and where labels are missing."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from finetune import losses
from finetune.losses import (
    affinity_sum,
    binary_cross_entropy_sum,
    ccc_loss,
    cross_entropy_sum,
    js_divergence,
    js_divergence_sum,
    partition_loss,
    step_mean,
)
from tests.pretrain.fill import fill_vector

POS_WEIGHT = torch.tensor(losses.RELEASED_AU_POS_WEIGHT)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def coins(*shape: int, seed: int = 0, share: float = 0.7) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < share


def golden_step() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The golden multi-task batch: out, va, va_valid, expr, expr_valid, au, au_valid."""
    out = 1.5 * fill_vector("loss_out", 12 * 22, 1).view(12, 22)
    va = fill_vector("loss_va", 24, 1).view(12, 2).clone()
    va[1], va[5, 0] = -5, -5
    au = (fill_vector("loss_au", 144, 1).view(12, 12) > 0.2).float()
    au[3], au[7, 2] = -1, -1
    expr = torch.tensor([0, 1, 2, 3, -1, 5, 6, 7, -1, 2, 4, 0])
    return out, va, va > -5, expr, expr >= 0, au, au >= 0


def explicit_ccc(pred: np.ndarray, target: np.ndarray) -> float:
    """Eq. 9, with the correlation by NumPy."""
    r = np.corrcoef(pred, target)[0, 1]
    spread = pred.var() + target.var() + (pred.mean() - target.mean()) ** 2
    return float(2 * r * pred.std() * target.std() / spread)


def test_the_released_losses_of_a_multi_task_batch():
    out, va, va_valid, expr, expr_valid, au, au_valid = golden_step()
    va_loss = ccc_loss(out[:, :2], va, va_valid, released=True)
    au_loss = step_mean(binary_cross_entropy_sum(out[:, 10:], au, au_valid, POS_WEIGHT), torch.tensor(12))
    expr_loss = step_mean(cross_entropy_sum(out[:, 2:10], expr, expr_valid), expr_valid.sum())
    assert va_loss.item() == pytest.approx(2.0328569412231445, abs=1e-6)
    assert au_loss.item() == pytest.approx(33.5142822265625, rel=1e-6)
    assert expr_loss.item() == pytest.approx(2.1703877449035645, abs=1e-6)
    assert (va_loss + au_loss + expr_loss).item() == pytest.approx(37.717525482177734, rel=1e-6)
    for column, expected in ((0, 0.09891951084136963), (1, -0.1317765712738037)):
        part = ccc_loss(*(t[:, [column]] for t in (out[:, :2], va, va_valid)), released=True)
        assert 1 - part.item() == pytest.approx(expected, abs=1e-6)


def test_the_released_ccc_loss_of_a_small_example():
    x = torch.tensor([[0.1], [0.4], [-0.3], [0.8], [0]])
    y = torch.tensor([[0.2], [0.5], [-0.1], [0.6], [-0.2]])
    seen = torch.ones(5, 1, dtype=torch.bool)
    assert ccc_loss(x, y, seen, released=True).item() == pytest.approx(0.11711013317108154, abs=5e-7)
    assert ccc_loss(x, y, seen).item() == pytest.approx(1 - 0.8833333385073474, abs=1e-6)
    constant = torch.full((5, 1), 0.3)
    assert ccc_loss(constant, y, seen, released=True).item() == 1.0


def test_the_released_losses_of_two_views():
    one, two = (2 * fill_vector(name, 24, 1).view(4, 6) for name in ("js1", "js2"))
    seen, target = torch.ones(4, dtype=torch.bool), torch.tensor([0, 3, 5, 2])
    js = js_divergence_sum(one, two, seen) / 4
    entropies = [cross_entropy_sum(view, target, seen) / 4 for view in (one, two)]
    assert js.item() == pytest.approx(0.1390842242097983, abs=1e-7)
    assert (js / 6).item() == pytest.approx(0.023180704563856125, abs=1e-7)
    assert entropies[0].item() == pytest.approx(3.0464987754821777, abs=1e-6)
    assert entropies[1].item() == pytest.approx(2.4356331825256348, abs=1e-6)
    total = 100 * js / 6 + sum(entropies) / 2
    assert total.item() == pytest.approx(5.059136390686035, abs=1e-6)


def test_the_released_losses_of_dan():
    features = fill_vector("feat", 4 * 512 * 7 * 7, 1).view(4, 512, 7, 7)
    heads = fill_vector("heads", 4 * 4 * 512, 1).view(4, 4, 512).log_softmax(dim=1)
    centers = fill_vector("centers", 8 * 512, 1).view(8, 512)
    target, seen = torch.tensor([0, 3, 7, 2]), torch.ones(4, dtype=torch.bool)
    affinity = affinity_sum(features, target, seen, centers) / 4
    assert centers.var(dim=0).sum().item() == pytest.approx(172.02850341796875, rel=1e-6)
    assert affinity.item() == pytest.approx(1.0249682664871216, abs=1e-6)
    assert partition_loss(heads).item() == pytest.approx(2.5659117698669434, abs=1e-6)


def test_cross_entropy_is_that_of_the_valid_rows():
    logits, valid = 3 * randn(40, 8), coins(40)
    target = torch.arange(40) % 8
    probs = np.exp(logits.numpy()) / np.exp(logits.numpy()).sum(1, keepdims=True)
    expected = sum(-math.log(probs[i, target[i]]) for i in range(40) if valid[i])
    assert cross_entropy_sum(logits, target, valid).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("weighted", [False, True])
def test_binary_cross_entropy_is_that_of_the_valid_entries(weighted: bool):
    logits, valid = 3 * randn(30, 12), coins(30, 12)
    target = coins(30, 12, seed=1, share=0.3).double()
    weight = POS_WEIGHT.double().numpy() if weighted else np.ones(12)
    p = 1 / (1 + np.exp(-logits.numpy()))
    each = -(weight * target.numpy() * np.log(p) + (1 - target.numpy()) * np.log(1 - p))
    total = binary_cross_entropy_sum(logits, target, valid, POS_WEIGHT if weighted else None)
    assert total.item() == pytest.approx(each[valid.numpy()].sum(), rel=1e-12)


def test_js_divergence_is_the_entropy_of_the_mean_less_the_mean_entropy():
    one, two, valid = 4 * randn(20, 6), 4 * randn(20, 6, seed=1), coins(20)
    a, b = one.softmax(1), two.softmax(1)
    m = (a + b) / 2

    def entropy(p: Tensor) -> Tensor:
        return -(p * p.log()).sum(1)

    expected = entropy(m) - (entropy(a) + entropy(b)) / 2
    torch.testing.assert_close(js_divergence(one, two), expected, atol=1e-12, rtol=1e-9)
    torch.testing.assert_close(js_divergence_sum(one, two, valid), expected[valid].sum())
    torch.testing.assert_close(js_divergence(one, two), js_divergence(two, one))


def test_js_divergence_has_its_bounds_and_no_nan_between_certainties():
    one, two = torch.tensor([[200.0, 0, 0]]), torch.tensor([[0, 200.0, 0]])
    one.requires_grad_()
    js = js_divergence(one, two)
    js.sum().backward()
    assert js.item() == pytest.approx(math.log(2), abs=1e-6)
    assert one.grad.isfinite().all()
    assert js_divergence(two, two).item() == 0


@pytest.mark.parametrize("released", [False, True])
def test_ccc_loss_is_that_of_the_valid_entries_of_each_column(released: bool):
    pred, target, valid = randn(50, 2), randn(50, 2, seed=1), coins(50, 2)
    target = target + pred
    expected = 1.0
    for column in (0, 1):
        seen = valid[:, column].numpy()
        x, y = pred[seen, column].numpy(), target[seen, column].numpy()
        if released:
            dx, dy = x - x.mean(), y - y.mean()
            r = (dx * dy).sum() / (np.sqrt((dx**2).sum()) * np.sqrt((dy**2).sum()) + 1e-4)
            spread = x.var(ddof=1) + y.var(ddof=1) + (x.mean() - y.mean()) ** 2 + 1e-4
            expected -= 2 * r * x.std(ddof=1) * y.std(ddof=1) / spread
        else:
            expected -= explicit_ccc(x, y)
    loss = ccc_loss(pred, target, valid, released).item()
    assert loss == pytest.approx(expected + released, abs=1e-12)


@pytest.mark.parametrize("released", [False, True])
def test_a_column_without_a_ccc_adds_nothing(released: bool):
    pred, target = randn(6, 2).requires_grad_(), randn(6, 2, seed=1)
    alone = torch.ones(6, 1, dtype=torch.bool)
    expected = ccc_loss(pred[:, :1], target[:, :1], alone, released).item() - (0 if released else 0.5)
    for count in (0, 1):
        valid = torch.ones(6, 2, dtype=torch.bool)
        valid[count:, 1] = False
        loss = ccc_loss(pred, target, valid, released)
        (grad,) = torch.autograd.grad(loss, pred)
        assert loss.item() == pytest.approx(expected, abs=1e-12)
        assert (grad[:, 1] == 0).all() and (grad[:, 0] != 0).any()
    nothing = ccc_loss(pred, target, torch.zeros(6, 2, dtype=torch.bool), released)
    assert nothing.item() == 0
    assert (torch.autograd.grad(nothing, pred)[0] == 0).all()


@pytest.mark.parametrize("released", [False, True])
def test_constants_give_finite_gradients(released: bool):
    seen = torch.ones(7, 1, dtype=torch.bool)
    constant = torch.full((7, 1), 0.1).requires_grad_()
    varying = torch.linspace(-1, 1, 7)[:, None]
    for pred, target in ((constant, varying), (constant, constant.detach()), (constant, constant + 0.5)):
        (grad,) = torch.autograd.grad(ccc_loss(pred, target.detach(), seen, released), constant)
        assert grad.isfinite().all()
    assert ccc_loss(constant, constant, seen, released).item() == 0
    assert ccc_loss(constant, varying, seen, released).item() == pytest.approx(1, abs=1e-6)
    (grad,) = torch.autograd.grad(ccc_loss(constant, varying, seen), constant)
    assert grad.norm() > 0


def masked_losses(fill: float, count: int = 9) -> dict[str, tuple[Tensor, list[Tensor], list[Tensor]]]:
    """Each loss on the same valid entries, `fill` in the others: its value, leaves, and their masks."""
    row, entry, pair = coins(count, share=0.6), coins(count, 12, share=0.6), coins(count, 2, share=0.6)
    made: dict[str, tuple[Tensor, list[Tensor], list[Tensor]]] = {}

    def leaf(valid: Tensor, *shape: int, seed: int = 0) -> Tensor:
        seen = valid.view(valid.shape + (1,) * (len(shape) - valid.ndim))
        return randn(*shape, seed=seed).float().where(seen, fill).requires_grad_()

    labels = (torch.arange(count) % 5).where(row, -1)
    logits, other = leaf(row, count, 6), leaf(row, count, 6, seed=1)
    made["expr"] = cross_entropy_sum(logits, labels, row), [logits], [row]
    made["js"] = js_divergence_sum(logits, other, row), [logits, other], [row, row]
    features = leaf(row, count, 16, 2, 2)
    made["affinity"] = (
        affinity_sum(features, labels, row, randn(6, 16, seed=3).float()),
        [features],
        [row],
    )
    units = leaf(entry, count, 12)
    known = coins(count, 12, seed=4).float().where(entry, fill)
    made["au"] = binary_cross_entropy_sum(units, known, entry, POS_WEIGHT), [units], [entry]
    va = leaf(pair, count, 2)
    truth = randn(count, 2, seed=5).float().where(pair, fill)
    made["va"] = ccc_loss(va, truth, pair), [va], [pair]
    made["va_released"] = ccc_loss(va, truth, pair, released=True), [va], [pair]
    return made


@pytest.mark.parametrize("name", list(masked_losses(0)))
@pytest.mark.parametrize("fill", [math.nan, math.inf, -5.0, 1e30])
def test_what_stands_in_an_invalid_entry_is_never_seen(name: str, fill: float):
    expected, clean, _ = masked_losses(0)[name]
    loss, leaves, masks = masked_losses(fill)[name]
    assert torch.equal(loss, expected)
    grads = torch.autograd.grad(loss, leaves)
    for grad, wanted, mask in zip(grads, torch.autograd.grad(expected, clean), masks):
        assert torch.equal(grad, wanted)
        assert (grad[~mask] == 0).all() and (grad[mask] != 0).any()


def test_no_valid_label_is_no_loss_and_no_gradient():
    nothing = torch.zeros(5, dtype=torch.bool)
    logits = torch.full((5, 8), math.nan).requires_grad_()
    total = cross_entropy_sum(logits, torch.full((5,), -1), nothing)
    loss = step_mean(total, nothing.sum(), world_size=4)
    loss.backward()
    assert loss.item() == 0 and (logits.grad == 0).all()


def test_shares_of_a_step_average_to_its_mean():
    logits, valid = randn(24, 8), coins(24)
    target = torch.arange(24) % 8
    shares = [
        step_mean(cross_entropy_sum(logits[p], target[p], valid[p]), valid.sum(), world_size=3)
        for p in (slice(0, 4), slice(4, 16), slice(16, 24))
    ]
    expected = torch.nn.functional.cross_entropy(logits[valid], target[valid])
    torch.testing.assert_close(torch.stack(shares).mean(), expected)


def test_affinity_is_the_distance_to_the_own_centre_over_the_spread_of_centres():
    features, centers, valid = randn(10, 6, 3, 3), randn(4, 6, seed=1), coins(10)
    target = torch.arange(10) % 4
    expected = sum(
        float(((features[i].mean((1, 2)) - centers[target[i]]) ** 2).sum()) for i in range(10) if valid[i]
    ) / sum(float(np.var(centers[:, d].numpy(), ddof=1)) for d in range(6))
    assert affinity_sum(features, target, valid, centers).item() == pytest.approx(expected, rel=1e-12)


def test_partition_prefers_heads_that_differ():
    heads = randn(3, 4, 8)
    expected = math.log(1 + 4 / np.var(heads.numpy(), axis=1, ddof=1).mean())
    assert partition_loss(heads).item() == pytest.approx(expected, rel=1e-12)
    assert partition_loss(3 * heads) < partition_loss(heads)
    assert partition_loss(heads[:, :1]).item() == 0


@pytest.mark.parametrize("released", [False, True])
def test_gradients_are_those_of_finite_differences(released: bool):
    valid, pair = coins(6), torch.ones(6, 2, dtype=torch.bool)
    pair[0, 1] = False
    target = torch.arange(6) % 3
    va, truth = randn(6, 2).requires_grad_(), randn(6, 2, seed=1)
    assert torch.autograd.gradcheck(lambda pred: ccc_loss(pred, truth, pair, released), (va,))
    if released:
        return
    one, two = randn(6, 3).requires_grad_(), randn(6, 3, seed=1).requires_grad_()
    features, centers = randn(6, 4, 2, 1).requires_grad_(), randn(3, 4, seed=2).requires_grad_()
    heads = randn(2, 3, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: js_divergence_sum(a, b, valid), (one, two))
    assert torch.autograd.gradcheck(lambda f, c: affinity_sum(f, target, valid, c), (features, centers))
    assert torch.autograd.gradcheck(partition_loss, (heads,))


def test_half_precision_is_computed_in_float32():
    logits = (4 * randn(32, 8)).bfloat16()
    target, valid = torch.arange(32) % 8, coins(32)
    loss = cross_entropy_sum(logits, target, valid)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, cross_entropy_sum(logits.float(), target, valid))
    assert (
        ccc_loss(logits[:, :2], logits[:, 2:4].float(), valid[:, None].expand(32, 2)).dtype == torch.float32
    )
