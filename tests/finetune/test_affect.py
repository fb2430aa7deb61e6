"""The affect task: released numbers, one gradient however a batch is cut, missing labels, scores."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from finetune import metrics
from finetune.affect import AffectTask, affect_metrics, label_columns
from finetune.config import AffectConfig
from finetune.emma import AffectOutput, split_outputs
from finetune.losses import RELEASED_AU_POS_WEIGHT
from pretrain.task import StepOutput, Task
from shards.stream import Batch, Labels
from tests.finetune.tiny import faces, portions, run_step, take, tiny_dan, tiny_emma, tiny_vit, without
from tests.pretrain.fill import fill_vector

PAPER, RELEASED = AffectConfig(), AffectConfig("released")
BATCH = faces(32)
CASES = ["emma", "emma released", "vit", "vit released", "vit va", "vit au"]


class Told(nn.Module):
    """Says of each face what it was told: its random key is its row."""

    def __init__(self, outputs: Tensor) -> None:
        super().__init__()
        self.outputs = nn.Parameter(outputs)

    def forward(self, images: Tensor, keys: Tensor) -> AffectOutput:
        return split_outputs(self.outputs[keys], (2, 8, 12))


def golden_batch() -> Batch:
    """The labels of the golden multi-task losses."""
    va = fill_vector("loss_va", 24, 1).view(12, 2).clone()
    va[1], va[5, 0] = -5, -5
    au = (fill_vector("loss_au", 144, 1).view(12, 12) > 0.2).float()
    au[3], au[7, 2] = -1, -1
    expr = torch.tensor([0, 1, 2, 3, -1, 5, 6, 7, -1, 2, 4, 0])
    labels = Labels(va, va > -5, expr, expr >= 0, au, au >= 0)
    return Batch([str(row) for row in range(12)], torch.zeros(12, 3, 8, 8), torch.arange(12), labels, 12)


@pytest.fixture(scope="module")
def models() -> dict[str, nn.Module]:
    dan = tiny_dan()
    return {
        "emma": tiny_emma(dan),
        "emma released": tiny_emma(dan, stop_gradient=False),
        "vit": tiny_vit(),
        "vit released": tiny_vit(),
        "vit va": tiny_vit(num_expr=0, num_au=0),
        "vit au": tiny_vit(num_expr=0, va=False),
    }


def task_of(case: str) -> AffectTask:
    return AffectTask(RELEASED if "released" in case else PAPER, stop_gradient=case in ("emma", "vit au"))


def explicit_loss(output: AffectOutput, labels: Labels, released: bool) -> Tensor:
    """The loss of a whole batch, written down once more from the papers (CCC by population statistics)."""
    total = torch.zeros(())
    if output.expr is not None:
        total = total + F.cross_entropy(output.expr[labels.expr_valid], labels.expr[labels.expr_valid])
    if output.au is not None:
        seen = labels.au_valid
        weight = torch.tensor(RELEASED_AU_POS_WEIGHT).expand_as(labels.au)[seen] if released else None
        each = F.binary_cross_entropy_with_logits(
            output.au[seen], labels.au[seen], reduction="sum", pos_weight=weight
        )
        total = total + each / (len(labels.au) if released else seen.sum())
    if output.va is not None:
        total = total + (2.0 if released else 1.0)
        for column in (0, 1):
            seen = labels.va_valid[:, column]
            x, y = output.va[seen, column], labels.va[seen, column]
            degrees = 1 if released else 0
            eps = 1e-4 if released else 0.0
            dx, dy = x - x.mean(), y - y.mean()
            r = (dx * dy).sum() / (dx.square().sum().sqrt() * dy.square().sum().sqrt() + eps)
            spread = x.var(correction=degrees) + y.var(correction=degrees) + (x.mean() - y.mean()) ** 2 + eps
            total = total - 2 * r * x.std(correction=degrees) * y.std(correction=degrees) / spread
    return total


@pytest.mark.parametrize("size", [12, 4])
def test_released_losses_are_those_of_the_released_code(size: int):
    model = Told(1.5 * fill_vector("loss_out", 12 * 22, 1).view(12, 22))
    logs, _ = run_step(AffectTask(RELEASED), model, portions(golden_batch(), size))
    assert logs["loss_va"] == pytest.approx(2.0328569412231445, abs=1e-6)
    assert logs["loss_au"] == pytest.approx(33.5142822265625, rel=1e-6)
    assert logs["loss_expr"] == pytest.approx(2.1703877449035645, abs=1e-6)
    assert logs["loss"] == pytest.approx(37.717525482177734, rel=1e-6)


def test_positive_labels_count_as_often_as_they_are_weighed() -> None:
    """A weight of 3 is as if each positive label were there three times, in the sum but not in the count."""
    model, labels = Told(1.5 * fill_vector("loss_out", 12 * 22, 1).view(12, 22)), golden_batch().labels
    logits, seen = model(torch.zeros(0), torch.arange(12)).au, labels.au_valid
    assert logits is not None
    plain = F.binary_cross_entropy_with_logits(logits, labels.au.where(seen, 0), reduction="none")
    times = torch.where(labels.au == 1, 3.0, 1.0)
    expected = (plain * times)[seen].sum() / seen.sum()
    logs, _ = run_step(
        AffectTask(AffectConfig(au_pos_weight=(3.0,) * 12)), model, portions(golden_batch(), 4)
    )
    assert logs["loss_au"] == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("weights", [(0.0,), (-1.0,), (float("inf"),), (float("nan"),)])
def test_a_weight_of_nothing_is_refused(weights: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="au_pos_weight"):
        AffectConfig(au_pos_weight=weights)
    with pytest.raises(ValueError, match="weights of its own"):
        AffectConfig(preset="released", au_pos_weight=(2.0,))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("size", [32, 8])
def test_loss_and_gradients_are_those_of_one_explicit_batch(
    models: dict[str, nn.Module], case: str, size: int
):
    model = models[case].train()
    logs, found = run_step(task_of(case), model, portions(BATCH, size))
    model.zero_grad(set_to_none=True)
    loss = explicit_loss(model(BATCH.images, BATCH.rng), BATCH.labels, "released" in case)
    loss.backward()
    assert logs["loss"] == pytest.approx(loss.item(), rel=1e-6, abs=1e-6)
    expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys() and len(found) > 30
    largest = max(grad.abs().max().item() for grad in expected.values())
    for name, grad in expected.items():
        torch.testing.assert_close(found[name], grad, rtol=1e-4, atol=2e-6 * largest, msg=name)


def test_weights_are_factors_on_the_losses(models: dict[str, nn.Module]):
    config = AffectConfig(expr_weight=2, au_weight=0.5, va_weight=3)
    logs, _ = run_step(AffectTask(config, True), models["emma"].train(), portions(BATCH, 16))
    expected = 2 * logs["loss_expr"] + 0.5 * logs["loss_au"] + 3 * logs["loss_va"]
    assert logs["loss"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("case", ["emma", "emma released", "vit"])
@pytest.mark.parametrize("count", [0, 1])
def test_no_or_one_label_of_a_kind_gives_finite_gradients(
    models: dict[str, nn.Module], case: str, count: int
):
    """A CCC of fewer than two is none; one label of the others is a loss like any."""
    labels = BATCH.labels
    few = {name: getattr(labels, name).clone().fill_(False) for name in labels._fields if "valid" in name}
    few["expr_valid"][20:][:count] = True
    few["au_valid"][20:, 3][:count] = True
    few["va_valid"][20:][:count] = True
    batch = replace(BATCH, labels=labels._replace(**few))
    for size in (32, 8):
        logs, grads = run_step(task_of(case), models[case].train(), portions(batch, size))
        assert logs["loss_va"] == 0
        assert (logs["loss_expr"] > 0) == (logs["loss_au"] > 0) == bool(count)
        assert all(grad.isfinite().all() for grad in grads.values())
        assert any(grad.any() for grad in grads.values()) == bool(count)


@pytest.mark.parametrize("kind", ["va", "expr", "au"])
def test_one_kind_missing_leaves_the_others_as_they_are(models: dict[str, nn.Module], kind: str):
    model = models["emma"].train()
    whole, _ = run_step(task_of("emma"), model, portions(BATCH, 8))
    lacking, grads = run_step(task_of("emma"), model, portions(without(BATCH, kind), 8))
    for other in ("va", "expr", "au"):
        assert lacking[f"loss_{other}"] == (0 if other == kind else whole[f"loss_{other}"])
    assert all(grad.isfinite().all() for grad in grads.values())


def test_what_stands_in_a_missing_label_is_never_seen(models: dict[str, nn.Module]):
    labels = BATCH.labels
    spoilt = labels._replace(
        va=labels.va.where(labels.va_valid, math.nan),
        au=labels.au.where(labels.au_valid, math.nan),
        expr=labels.expr.where(labels.expr_valid, -1),
    )
    batch = replace(BATCH, labels=spoilt)
    for case in ("emma", "vit released"):
        expected = run_step(task_of(case), models[case].train(), portions(BATCH, 16))
        found = run_step(task_of(case), models[case].train(), portions(batch, 16))
        assert found[0] == expected[0]
        torch.testing.assert_close(found[1], expected[1], rtol=0, atol=0)


def test_outputs_come_one_by_one_and_only_flowing_gradients_need_a_second_pass(models: dict[str, nn.Module]):
    for case, before_first in (("emma", 1), ("vit", 4 + 1), ("vit au", 1)):
        calls: list[int] = []
        hook = models[case].register_forward_hook(lambda *_, calls=calls: calls.append(1))
        outputs = iter(task_of(case).step(models[case].train(), portions(BATCH, 8)))
        assert isinstance(next(outputs), StepOutput) and len(calls) == before_first
        assert len(list(outputs)) == 3 and len(calls) == before_first + 3
        hook.remove()


def test_it_is_a_task(models: dict[str, nn.Module]):
    task: Task[nn.Module, Batch] = AffectTask(PAPER, True, depth=3, layer_decay=0.5)
    assert len(task.param_rules()) == 1 + 4


@torch.no_grad()
def test_predictions_are_probabilities_values_and_marked_labels(models: dict[str, nn.Module]):
    model = models["emma"].eval()
    columns = task_of("emma").predict(model, BATCH)
    output = model(BATCH.images)
    torch.testing.assert_close(columns["expr_probs"].sum(1), torch.ones(32))
    assert torch.equal(columns["expr_probs"].argmax(1), output.expr.argmax(1))
    torch.testing.assert_close(columns["au_probs"].logit(), output.au, atol=1e-4, rtol=1e-4)
    assert torch.equal(columns["va"], output.va)
    labels = BATCH.labels
    assert torch.equal(columns["expr"] >= 0, labels.expr_valid)
    assert torch.equal(columns["au"] >= 0, labels.au_valid)
    assert torch.equal(columns["va_target"].isfinite(), labels.va_valid)
    for name, values in (("expr", labels.expr), ("au", labels.au), ("va_target", labels.va)):
        valid = getattr(labels, name.replace("_target", "") + "_valid")
        assert torch.equal(columns[name][valid], values[valid])
    only = task_of("vit va").predict(models["vit va"].eval(), BATCH)
    assert only.keys() == {"va", *label_columns(labels)}


@torch.no_grad()
def test_a_samples_prediction_does_not_depend_on_its_batch(models: dict[str, nn.Module]):
    task, model = task_of("emma"), models["emma"].eval()
    whole = task.predict(model, BATCH)
    part = task.predict(model, take(BATCH, [30, 3]))
    for name in ("expr_probs", "au_probs", "va"):
        torch.testing.assert_close(part[name], whole[name][[30, 3]], atol=1e-5, rtol=1e-5)


def test_the_score_is_the_sum_of_what_is_predicted_and_labelled():
    perfect = {
        "expr_probs": F.one_hot(torch.arange(64) % 8, 8).float(),
        "au_probs": (BATCH.labels.au.repeat(2, 1) * 0.8 + 0.1),
        "va": BATCH.labels.va.repeat(2, 1),
    }
    truth = {
        "expr": torch.arange(64) % 8,
        "au": BATCH.labels.au.repeat(2, 1),
        "va_target": BATCH.labels.va.repeat(2, 1),
    }
    found = affect_metrics(perfect | truth)
    assert found["score"] == pytest.approx(3) and found["rmse_arousal"] == 0
    assert found["expr_accuracy"] == found["expr_balanced_accuracy"] == found["au_f1"] == 1
    assert 0 < found["au_always_positive_f1"] < 0.8
    without_au = {name: values for name, values in perfect.items() if name != "au_probs"} | truth
    assert affect_metrics(without_au)["score"] == pytest.approx(2)
    unlabelled = truth | {"expr": torch.full((64,), -1)}
    found = affect_metrics(perfect | unlabelled)
    assert found["score"] == pytest.approx(2) and "expr_macro_f1" not in found
    valence_alone = truth["va_target"].clone()
    valence_alone[:, 1] = math.nan
    found = affect_metrics({"va": perfect["va"], "va_target": valence_alone})
    assert found["score"] == found["ccc_valence"] == pytest.approx(1) and "ccc_arousal" not in found
    nothing = {"expr": torch.tensor([-1]), "va_target": torch.full((1, 2), math.nan)}
    assert affect_metrics({**nothing, "expr_probs": torch.ones(1, 8), "va": torch.zeros(1, 2)}) == {}


def test_scores_are_of_the_labelled_alone(models: dict[str, nn.Module]):
    with torch.no_grad():
        columns = task_of("emma").predict(models["emma"].eval(), BATCH)
    found = affect_metrics(columns)
    labels = BATCH.labels
    for place, name in enumerate(("valence", "arousal")):
        seen = labels.va_valid[:, place]
        pair = (columns["va"][seen, place].clamp(-1, 1).double(), labels.va[seen, place].double())
        pair = tuple(values.numpy() for values in pair)
        assert found[f"ccc_{name}"] == pytest.approx(metrics.ccc(*pair))
        assert found[f"rmse_{name}"] == pytest.approx(metrics.rmse(*pair))
    seen = labels.expr_valid
    right = columns["expr_probs"][seen].argmax(1) == labels.expr[seen]
    assert found["expr_accuracy"] == pytest.approx(right.double().mean().item())
    parts = (found["ccc_valence"] + found["ccc_arousal"]) / 2, found["expr_macro_f1"], found["au_f1"]
    assert found["score"] == pytest.approx(sum(parts))


def test_an_unknown_preset_is_refused():
    with pytest.raises(ValueError, match=r"affect\.preset='original': use paper or released"):
        AffectConfig("original")
