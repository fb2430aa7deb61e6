"""Masked CoTEX: released logits, masks keyed by the sample, agreement, and any cut of a batch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from finetune.config import CoTEXConfig, HeadConfig
from finetune.cotex import CoTEX, View
from finetune.cotex_task import CoTEXTask
from pretrain.config import EncoderConfig
from pretrain.encoder import build_encoder
from pretrain.masking import mask_noise
from pretrain.task import Task
from shards.stream import Batch
from tests.finetune.tiny import faces, portions, run_step, take, tiny_cotex, tiny_encoder, without
from tests.pretrain.fill import fill_vector, filled_state

GOLDEN = {
    196: (
        (-0.6673046350479126, 0.4389870762825012, 0.07181650400161743),
        (0.6236962676048279, 0.4259122908115387, 0.3231978714466095),
        (-0.71561199426651, 0.433385968208313, 0.07406412065029144),
        (0.5975751876831055, 0.38788023591041565, 0.3365190327167511),
    ),
    49: (
        (-0.7170646786689758, 0.23913124203681946, 0.09710578620433807),
        (0.641961395740509, 0.41756537556648254, 0.37103012204170227),
        (-0.6746655702590942, 0.4156528115272522, -0.08693307638168335),
        (0.593124508857727, 0.41771724820137024, 0.2751823365688324),
    ),
}
BATCH = faces(16)


@pytest.fixture(scope="module")
def golden() -> View:
    """ViT-B filled by rule, and its head."""
    view = View(build_encoder(EncoderConfig()), HeadConfig(), 6)
    state = {f"encoder.{name}": tensor for name, tensor in filled_state(view.encoder, 0.02).items()}
    for name, shape in (("weight", (6, 768)), ("bias", (6,))):
        count = view.head.state_dict()[name].numel()
        state[f"head.{name}"] = fill_vector(f"cotex.head.{name}", count, 0.05).view(shape)
    view.load_state_dict(state, strict=True)
    return view.eval()


@pytest.fixture(scope="module")
def model() -> CoTEX:
    return tiny_cotex()


class Seen:
    """The patches that each view's first block was given, recorded as it runs."""

    def __init__(self, model: CoTEX) -> None:
        self.tokens: list[Tensor] = []
        for view in model.views:
            view.encoder.blocks[0].register_forward_pre_hook(lambda _, args: self.tokens.append(args[0]))


def views_of(model: CoTEX, batch: Batch) -> tuple[Tensor, Tensor]:
    """(B, L) bool for each view: which patches it saw, read off what comes into its first block."""
    seen = Seen(model)
    model(batch.images, batch.rng)
    found = []
    for view, tokens in zip(model.views, seen.tokens, strict=True):
        encoder = view.encoder
        with torch.no_grad():
            embedded = encoder.patch_embed(model.pixels(batch.images)) + encoder.pos_embed[:, 1:]
        apart = torch.cdist(tokens[:, 1:], embedded)
        nearest = apart.argmin(2)
        assert apart.gather(2, nearest[..., None]).max() < 1e-3
        found.append(torch.zeros(embedded.shape[:2], dtype=torch.bool).scatter(1, nearest, True))
    for view in model.views:
        view.encoder.blocks[0]._forward_pre_hooks.clear()
    return found[0], found[1]


@pytest.mark.parametrize("num_keep", [196, 49])
@torch.no_grad()
def test_logits_are_those_of_the_released_code(golden: View, num_keep: int):
    images = fill_vector("img", 2 * 3 * 224 * 224, 1.0).view(2, 3, 224, 224)
    noise = fill_vector("noise", 2 * 196, 0.5).view(2, 196) + 0.5
    expected = torch.tensor(GOLDEN[num_keep]).view(2, 6)
    torch.testing.assert_close(golden(images, noise, num_keep), expected, atol=2e-5, rtol=1e-5)
    if num_keep == 196:
        torch.testing.assert_close(golden(images), expected, atol=2e-5, rtol=1e-5)


def test_each_view_sees_patches_of_its_own_and_as_many_as_asked(model: CoTEX):
    one, two = views_of(model.train(), BATCH)
    assert model.num_keep == 4
    assert (one.sum(1) == 4).all() and (two.sum(1) == 4).all()
    assert (one != two).any(1).sum() > 12
    assert len({tuple(row) for row in one.tolist()}) > 12
    assert not torch.equal(mask_noise(BATCH.rng, 16, 0), mask_noise(BATCH.rng, 16, 1))


def test_masks_are_the_samples_own_in_any_batch_and_others_in_another_epoch(model: CoTEX):
    whole = views_of(model.train(), BATCH)
    rows = [11, 2, 7]
    part = views_of(model, take(BATCH, rows))
    assert torch.equal(part[0], whole[0][rows]) and torch.equal(part[1], whole[1][rows])
    later = replace(BATCH, rng=BATCH.rng + 1)
    assert not torch.equal(views_of(model, later)[0], whole[0])


def test_in_eval_mode_nothing_is_masked_and_probabilities_are_averaged(model: CoTEX):
    model.eval()
    one, two = views_of(model, BATCH)
    assert one.all() and two.all()
    with torch.no_grad():
        output = model(BATCH.images, BATCH.rng)
        assert torch.equal(output.first, model(BATCH.images).first)  # keys or not
        columns = CoTEXTask(CoTEXConfig(), 3).predict(model, BATCH)
    expected = (F.softmax(output.first, 1) + F.softmax(output.second, 1)) / 2
    torch.testing.assert_close(columns["expr_probs"], expected)
    assert not torch.allclose(expected, F.softmax((output.first + output.second) / 2, 1), atol=1e-7, rtol=0)
    assert torch.equal(columns["expr"] >= 0, BATCH.labels.expr_valid)


def test_mask_ratio_zero_sees_all_in_training_too():
    model = tiny_cotex(mask_ratio=0.0).train()
    one, two = views_of(model, BATCH)
    assert one.all() and two.all()


def test_training_without_keys_is_refused(model: CoTEX):
    with pytest.raises(ValueError, match="CoTEX masks by the samples' random keys: pass them in training"):
        model.train()(BATCH.images)


def test_a_ratio_that_leaves_nothing_is_refused():
    with pytest.raises(ValueError, match=r"mask_ratio 0\.95 leaves none of 16 patches"):
        tiny_cotex(mask_ratio=0.95)


def test_views_lose_branches_of_their_own(model: CoTEX):
    model.train()(BATCH.images, BATCH.rng)
    lost = [view.encoder.blocks[2].drop_path1.factors.flatten() == 0 for view in model.views]
    assert lost[0].any() and lost[1].any() and not torch.equal(lost[0], lost[1])


@pytest.mark.parametrize("size", [16, 4])
@pytest.mark.parametrize("js_weight", [1.0, 33.3])
def test_loss_and_gradients_are_those_of_one_explicit_batch(model: CoTEX, size: int, js_weight: float):
    model.train()
    task = CoTEXTask(CoTEXConfig(0.75, js_weight), 3)
    logs, found = run_step(task, model, portions(BATCH, size))
    model.zero_grad(set_to_none=True)
    output, seen = model(BATCH.images, BATCH.rng), BATCH.labels.expr_valid
    one, two, target = output.first[seen], output.second[seen], BATCH.labels.expr[seen]
    middle = (one.softmax(1) + two.softmax(1)).log() - torch.log(torch.tensor(2.0))
    js = sum(F.kl_div(middle, each.softmax(1), reduction="batchmean") for each in (one, two)) / 2
    loss = F.cross_entropy(one, target) + F.cross_entropy(two, target) + js_weight * js
    loss.backward()
    assert logs["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert logs["loss_js"] == pytest.approx(js.item(), abs=1e-6) and logs["loss_js"] > 0
    expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys() == dict(model.named_parameters()).keys()
    largest = max(grad.abs().max().item() for grad in expected.values())
    for name, grad in expected.items():
        torch.testing.assert_close(found[name], grad, rtol=1e-3, atol=5e-6 * largest, msg=name)


@pytest.mark.parametrize("count", [0, 1])
def test_no_or_one_label_gives_finite_gradients(model: CoTEX, count: int):
    batch = without(BATCH, "expr")
    batch.labels.expr_valid[9:][:count] = True
    logs, grads = run_step(CoTEXTask(CoTEXConfig(), 3), model.train(), portions(batch, 4))
    assert (logs["loss"] > 0) == bool(count) and (count or logs["loss"] == 0)
    assert all(grad.isfinite().all() for grad in grads.values())
    assert any(grad.any() for grad in grads.values()) == bool(count)


def test_it_is_a_task_and_its_score_is_the_macro_f1(model: CoTEX):
    task: Task[CoTEX, Batch] = CoTEXTask(CoTEXConfig(), 3, 0.5)
    with torch.no_grad():
        figures = task.metrics(task.predict(model.eval(), BATCH))
    assert figures["score"] == figures["expr_macro_f1"] and len(task.param_rules()) == 5


def test_heads_start_all_but_silent_and_views_differ():
    model = CoTEX(tiny_encoder(), tiny_encoder(), CoTEXConfig(), HeadConfig(), 6)
    assert all(0 < view.head.weight.abs().max() <= 2 * 2e-5 * 4 for view in model.views)
    assert not torch.equal(model.views[0].head.weight, model.views[1].head.weight)
    assert all(isinstance(view, nn.Module) and view.encoder.pos_embed.requires_grad for view in model.views)
