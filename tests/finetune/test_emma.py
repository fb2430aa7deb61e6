"""EMMA: where its gradients stop, what of its DAN moves, and how the two are joined."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from finetune.affect import AffectTask
from finetune.config import AffectConfig
from finetune.dan import AFFECTNET8, DAN, class_order
from finetune.emma import EMMA, AffectOutput, FaceViT, split_outputs
from pretrain.masking import mask_noise, random_masking
from pretrain.pixels import PixelNorm
from shards.labels import EXPR8
from tests.finetune.tiny import (
    FLAT,
    TINY_VIT,
    faces,
    portions,
    run_step,
    tiny_dan,
    tiny_emma,
    tiny_encoder,
    tiny_vit,
    without,
)

PAPER, RELEASED = AffectConfig(), AffectConfig("released")
BATCH = faces(12)


@pytest.fixture(scope="module")
def dan() -> DAN:
    """One for all the models that leave it as it is."""
    return tiny_dan()


def released_emma() -> EMMA:
    return tiny_emma(stop_gradient=False, freeze_cnn=False)


def test_it_gives_logits_of_each_kind_and_scores_without_a_graph(dan: DAN):
    model = tiny_emma(dan).train()
    output = model(BATCH.images, BATCH.rng)
    assert output.expr.shape == (12, 8) and output.au.shape == (12, 12) and output.va.shape == (12, 2)
    assert output.scores.shape == (12, 28) and not output.scores.requires_grad
    torch.testing.assert_close(output.scores, torch.cat([output.expr_cnn, output.expr, output.au], 1))
    torch.testing.assert_close(output.va, model.va_head(output.scores))
    assert not output.expr_cnn.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(output.expr_cnn, dan(BATCH.images).logits)
    sizes = [part.weight.shape for part in model.va_head if hasattr(part, "weight")]
    assert sizes == [(256, 28), (2, 256)]


def test_dan_sees_the_faces_at_the_size_it_learned_at(dan: DAN):
    model = tiny_emma(dan, cnn_size=(48, 40)).eval()
    smaller = F.interpolate(PixelNorm()(BATCH.images), (48, 40), mode="bilinear", antialias=True)
    seen = model(BATCH.images).expr_cnn
    torch.testing.assert_close(seen, dan(smaller).logits)
    assert not torch.allclose(seen, dan(BATCH.images).logits)


def test_earlier_scores_come_first_and_are_read_anew(dan: DAN):
    model = tiny_emma(dan).train()
    first, second = portions(BATCH, 6)
    earlier = model(first.images, first.rng).scores
    joined = model(second.images, second.rng, earlier)
    assert joined.expr.shape == (6, 8) and joined.scores.shape == (6, 28)
    torch.testing.assert_close(joined.va, model(BATCH.images, BATCH.rng).va, atol=1e-5, rtol=1e-5)


def test_by_the_paper_valence_and_arousal_do_not_train_the_vit(dan: DAN):
    model = tiny_emma(dan).train()
    _, grads = run_step(AffectTask(PAPER, stop_gradient=True), model, [without(BATCH, "expr", "au")])
    assert all(not grad.any() for name, grad in grads.items() if not name.startswith("va_head."))
    assert all(grads[f"va_head.{name}"].any() for name in ("0.weight", "0.bias", "2.weight", "2.bias"))
    with_va = run_step(AffectTask(PAPER, True), model, [BATCH])[1]
    alone = run_step(AffectTask(AffectConfig(va_weight=0), True), model, [BATCH])[1]
    for name, grad in with_va.items():
        assert torch.equal(grad, alone[name]) != name.startswith("va_head."), name


def test_as_released_valence_and_arousal_do_train_the_vit():
    model = released_emma().train()
    _, grads = run_step(AffectTask(RELEASED), model, [without(BATCH, "expr", "au")])
    for name in (
        "encoder.pos_embed",
        "encoder.blocks.0.attn.qkv.weight",
        "head.0.weight",
        "va_head.0.weight",
    ):
        assert grads[name].any(), name
    assert not any(name.startswith("cnn.") for name in grads)


@pytest.mark.parametrize("preset", ["paper", "released"])
def test_training_moves_the_vit_and_of_dan_only_released_statistics(preset: str):
    released = preset == "released"
    model = released_emma().train() if released else tiny_emma().train()
    task = AffectTask(RELEASED if released else PAPER, stop_gradient=not released)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for _ in range(2):
        optimizer.zero_grad()
        for output in task.step(model, portions(BATCH, 6)):
            output.loss.backward()
        optimizer.step()
        model.eval()  # an evaluation between steps
        model.train()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    statistics = {name for name, _ in model.cnn.named_buffers() if not name.startswith("pixels")}
    of_cnn = {name.removeprefix("cnn.") for name in changed if name.startswith("cnn.")}
    assert of_cnn == (statistics if released else set())
    assert {name for name, _ in model.named_parameters() if not name.startswith("cnn.")} <= changed


def test_a_micro_batch_moves_the_statistics_once_though_it_is_passed_through_twice():
    model, alone = released_emma().train(), tiny_dan().train()
    micro_batches = portions(BATCH, 6)
    run_step(AffectTask(RELEASED), model, micro_batches)
    with torch.no_grad():
        for batch in micro_batches:
            alone(batch.images)
    assert alone.bn.num_batches_tracked == model.cnn.bn.num_batches_tracked == 2
    torch.testing.assert_close(dict(model.cnn.named_buffers()), dict(alone.named_buffers()))


def test_classes_of_dan_are_added_by_their_names_and_other_gets_the_vits_alone(dan: DAN):
    plain = tiny_emma(dan).eval()
    added = tiny_emma(dan, added=class_order(EXPR8, AFFECTNET8)).eval()
    with torch.no_grad():
        one, two = plain(BATCH.images), added(BATCH.images)
    of_cnn = dict(zip(AFFECTNET8, one.expr_cnn.unbind(1), strict=True))
    wanted = {"happiness": "happy", "sadness": "sad"}
    for place, name in enumerate(EXPR8):
        own = one.expr[:, place]
        expected = own if name == "other" else own + of_cnn[wanted.get(name, name)]
        assert torch.equal(two.expr[:, place], expected), name
    assert not torch.equal(two.expr[:, 1:], one.expr[:, 1:] + one.expr_cnn[:, 1:])
    assert torch.equal(one.au, two.au)
    torch.testing.assert_close(one.va, two.va)  # the VA head reads both as they are


def test_added_classes_teach_the_vit_what_dan_leaves_over(dan: DAN):
    model = tiny_emma(dan, added=class_order(EXPR8, AFFECTNET8)).train()
    labels = BATCH.labels._replace(expr_valid=torch.ones(12, dtype=torch.bool))
    output = model(BATCH.images, BATCH.rng)
    logs, _ = run_step(AffectTask(AffectConfig(add_cnn=True), True), model, [replace(BATCH, labels=labels)])
    expected = torch.nn.functional.cross_entropy(output.expr, labels.expr).item()
    assert logs["loss_expr"] == pytest.approx(expected, abs=1e-6)


def test_heads_that_are_not_wanted_are_none(dan: DAN):
    with torch.no_grad():
        output = tiny_emma(dan, num_expr=0).eval()(BATCH.images)
        assert output.expr is None and output.au.shape == (12, 12) and output.va.shape == (12, 2)
        assert tiny_emma(dan, num_au=0).eval()(BATCH.images).au is None
        for wanted in ("expr", "au", "va"):
            sizes = {"num_expr": 8 * (wanted == "expr"), "num_au": 12 * (wanted == "au")}
            output = tiny_vit(**sizes, va=wanted == "va").eval()(BATCH.images)
            assert {name for name, part in output._asdict().items() if part is not None} == {wanted}


def test_outputs_of_one_head_are_split_in_the_order_va_expr_au():
    output = split_outputs(torch.arange(22.0)[None], (2, 8, 12))
    assert output == AffectOutput(output.expr, output.au, output.va)
    assert output.va.tolist() == [[0, 1]]
    assert output.expr[0, 0] == 2 and output.au[0, 0] == 10 and output.au.shape == (1, 12)


@pytest.mark.parametrize("kind", ["emma", "vit"])
def test_drop_path_without_keys_is_refused_in_training_alone(kind: str, dan: DAN):
    model = tiny_emma(dan).train() if kind == "emma" else tiny_vit().train()
    model(BATCH.images, BATCH.rng)
    with pytest.raises(ValueError, match="drop path needs the samples' random keys: pass them in training"):
        model(BATCH.images)
    with torch.no_grad():
        one, two = model.eval()(BATCH.images), model(BATCH.images, BATCH.rng)
    assert torch.equal(one.expr, two.expr)


def paint(images: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
    """Black in these patches (B, n) of 8 pixels, everything else as it was."""
    cells = images.clone().unfold(2, 8, 8).unfold(3, 8, 8)
    for face, places in enumerate(patches):
        cells[face, :, places // 4, places % 4] = 0
    return cells.permute(0, 1, 2, 4, 3, 5).reshape(images.shape)


@pytest.mark.parametrize("kind", ["emma", "vit"])
def test_dropped_patches_are_not_seen_in_training_and_all_are_afterwards(kind: str, dan: DAN):
    emma = kind == "emma"
    model = tiny_emma(dan, patch_drop_rate=0.75) if emma else tiny_vit(patch_drop_rate=0.75)
    masking = random_masking(mask_noise(BATCH.rng, 16), 4)
    unseen, one_seen = paint(BATCH.images, masking.ids_masked), paint(BATCH.images, masking.ids_keep[:, :1])
    outputs = [model.train()(images, BATCH.rng) for images in (BATCH.images, unseen, one_seen)]
    assert torch.equal(outputs[0].expr, outputs[1].expr) and torch.equal(outputs[0].au, outputs[1].au)
    assert (outputs[0].expr != outputs[2].expr).any(dim=1).all()
    if emma:
        assert not torch.equal(outputs[0].expr_cnn, outputs[1].expr_cnn)
    with torch.no_grad():
        every, plain = model.eval()(unseen), (tiny_emma(dan) if emma else tiny_vit()).eval()(unseen)
    assert torch.equal(every.expr, plain.expr)


def test_what_is_dropped_goes_by_the_face_not_by_its_batch():
    model = tiny_vit(patch_drop_rate=0.5).train()
    together = model(BATCH.images, BATCH.rng).expr
    apart = [model(part.images, part.rng).expr for part in portions(BATCH, 5)]
    torch.testing.assert_close(torch.cat(apart), together)


@pytest.mark.parametrize("rate", [-0.1, 0.99, 1.0])
def test_a_patch_drop_rate_that_leaves_nothing_is_refused(rate: float):
    with pytest.raises(ValueError, match=f"encoder.patch_drop_rate={rate}: mask_ratio"):
        tiny_vit(patch_drop_rate=rate)


def test_patches_are_not_dropped_without_keys():
    encoder = tiny_encoder(config=replace(TINY_VIT, drop_path_rate=0.0))
    model = FaceViT(encoder, FLAT, patch_drop_rate=0.5).train()
    with pytest.raises(ValueError, match="patches are dropped by the samples' random keys: pass them in"):
        model(BATCH.images)
    model.eval()(BATCH.images)


def test_float_images_count_as_normalised_for_both_networks(dan: DAN):
    model = tiny_emma(dan).eval()
    with torch.no_grad():
        one, two = model(BATCH.images), model(PixelNorm()(BATCH.images))
    assert torch.equal(one.expr, two.expr) and torch.equal(one.expr_cnn, two.expr_cnn)


def test_positions_are_trained_in_finetuning(dan: DAN):
    for model in (tiny_emma(dan), tiny_vit()):
        assert model.encoder.pos_embed.requires_grad
