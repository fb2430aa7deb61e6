from dataclasses import replace

import pytest
import torch
from tiny import golden_inputs, golden_mae, smooth_batch, tiny_mae

from pretrain.config import EncoderConfig
from pretrain.encoder import build_blocks, build_encoder, encode_visible
from pretrain.hog import hog_patches
from pretrain.mae import (
    MAE,
    MAEConfig,
    last_tokens_of_block,
    load_reference_state_dict,
    reference_state_dict,
)
from pretrain.masking import mask_noise
from pretrain.patches import gather_patches, patchify

MASK_ROW = [0, 1, 0, 1, 1, 1, 0, 1, 1, 1, 1, 1, 0, 1, 1, 1]


def with_predict_ratio(ratio):
    model = tiny_mae()
    return MAE(
        model.encoder,
        replace(model.config, predict_ratio=ratio),
        generator=torch.Generator().manual_seed(1),
    )


@pytest.mark.parametrize(
    ("norm_pix", "loss", "grad_norm"),
    [(False, 0.45005157589912415, 0.2780390422499139), (True, 1.1170995235443115, 0.316176320176435)],
)
def test_the_tiny_model_gives_the_golden_numbers(norm_pix, loss, grad_norm):
    model = golden_mae(norm_pix)
    images, noise = golden_inputs()
    whole = model(images, noise, predict_all=True)
    assert whole.loss.item() == pytest.approx(loss, abs=1e-5)
    assert whole.pred.double().sum().item() == pytest.approx(258.7033694633283, rel=1e-5)
    assert whole.pred.abs().mean().item() == pytest.approx(0.27199825704845654, abs=1e-5)
    assert whole.pred[0, 0, 0].item() == pytest.approx(-0.329982727766037, abs=1e-5)
    assert whole.masking.mask[0].int().tolist() == MASK_ROW
    output = model(images, noise)
    assert output.loss.item() == pytest.approx(loss, abs=1e-5)
    output.loss.backward()
    squares = [param.grad.square().sum() for param in model.parameters() if param.grad is not None]
    assert torch.stack(squares).sum().sqrt().item() == pytest.approx(grad_norm, abs=1e-5)
    assert sum(param.numel() for param in model.parameters()) == 88_016


def test_vit_base_mae_has_the_papers_parameters():
    with torch.device("meta"):
        model = MAE(build_encoder(EncoderConfig()), MAEConfig())
    assert sum(param.numel() for param in model.parameters()) == 111_907_840
    frozen = {name for name, param in model.named_parameters() if not param.requires_grad}
    assert frozen == {"encoder.pos_embed", "decoder_pos_embed"}


def test_masked_only_prediction_equals_predicting_all():
    model = tiny_mae(depth=2)
    batch = smooth_batch(3)
    noise = mask_noise(batch.rng, 16)
    whole, part = model(batch.images, noise, predict_all=True), model(batch.images, noise)
    assert whole.pred.shape == (3, 16, 192)
    assert part.pred.shape == (3, 12, 192)
    expected = gather_patches(whole.pred, part.masking.ids_masked)
    torch.testing.assert_close(part.pred, expected, atol=1e-6, rtol=1e-6)
    grads = [torch.autograd.grad(out.loss, model.decoder_blocks.parameters()) for out in (whole, part)]
    torch.testing.assert_close(*grads, atol=1e-6, rtol=1e-5)


def test_a_part_of_the_masked_patches_is_predicted_as_if_the_others_were_not_there():
    model = with_predict_ratio(0.5)
    batch = smooth_batch(3)
    noise = mask_noise(batch.rng, 16)
    output = model(batch.images, noise)
    masked = output.masking.ids_masked
    assert output.pred.shape == output.target.shape == (3, 6, 192)
    assert output.masking.mask.sum(1).tolist() == [12] * 3
    targets = model.target(gather_patches(model.patchify(batch.images), masked[:, :6]))
    assert torch.equal(output.target, targets)
    torch.testing.assert_close(output.losses, (output.pred - targets).square().mean((1, 2)))

    seen = model.pixels.patches(gather_patches(model.patchify(batch.images), output.masking.ids_keep))
    latent = model.decoder_embed(encode_visible(model.encoder, seen, output.masking.ids_keep))
    places = model.decoder_pos_embed[0]
    tokens = [latent, model.mask_token.expand(3, 6, -1)]
    ids = torch.cat([torch.zeros(3, 1, dtype=torch.int64), output.masking.ids_keep + 1, masked[:, :6] + 1], 1)
    tokens = torch.cat(tokens, 1) + places[ids]
    for block in model.decoder_blocks:
        tokens = block(tokens)
    expected = model.decoder_pred(model.decoder_norm(tokens))[:, -6:]
    torch.testing.assert_close(output.pred, expected, atol=1e-6, rtol=1e-6)


def test_evaluation_and_pictures_predict_every_masked_patch():
    part, whole = with_predict_ratio(0.5), tiny_mae()
    batch = smooth_batch(2)
    noise = mask_noise(batch.rng, 16)
    expected = whole(batch.images, noise)
    picture = part(batch.images, noise, predict_all=True)
    assert part.training
    assert picture.pred.shape == (2, 16, 192)
    torch.testing.assert_close(picture.losses, expected.losses, atol=1e-6, rtol=1e-6)
    assert torch.equal(part.eval()(batch.images, noise).pred, expected.pred)


@pytest.mark.parametrize(("ratio", "count"), [(1.0, 12), (0.99, 11), (0.001, 1)])
def test_the_predict_ratio_counts_patches(ratio, count):
    assert with_predict_ratio(ratio).num_predict == count


@pytest.mark.parametrize("ratio", [0.0, -0.5, 1.01, float("nan")])
def test_a_predict_ratio_out_of_range_is_refused(ratio):
    with pytest.raises(ValueError, match="predict_ratio"):
        with_predict_ratio(ratio)


def with_hog(weight, **settings):
    model = tiny_mae()
    config = replace(model.config, hog_weight=weight, **settings)
    return MAE(model.encoder, config, generator=torch.Generator().manual_seed(1))


def test_histograms_of_the_predicted_patches_are_a_second_loss():
    batch = smooth_batch(3)
    model, noise = with_hog(0.5, predict_ratio=0.5).train(), mask_noise(batch.rng, 16)
    output = model(batch.images, noise)
    ids = output.masking.ids_masked[:, : model.num_predict]
    goal = gather_patches(hog_patches(model.pixels(batch.images), (8, 8)), ids)
    latent = encode_visible(
        model.encoder,
        model.pixels.patches(gather_patches(model.patchify(batch.images), output.masking.ids_keep)),
        output.masking.ids_keep,
    )
    said = model.decoder_hog(model.decode(latent, output.masking._replace(ids_masked=ids)))
    torch.testing.assert_close(output.hog_loss, (said - goal).square().mean())
    torch.testing.assert_close(output.loss, output.losses.mean() + 0.5 * output.hog_loss)
    output.loss.backward()
    assert model.decoder_hog.weight.grad.abs().sum() > 0


def test_histograms_change_neither_the_published_mae_nor_what_evaluation_says():
    batch = smooth_batch(3)
    plain, other = tiny_mae(), with_hog(2.0)
    noise = mask_noise(batch.rng, 16)
    assert not any("hog" in name for name in plain.state_dict())
    shared = {name: value for name, value in other.state_dict().items() if "hog" not in name}
    assert plain.state_dict().keys() == shared.keys()
    assert all(torch.equal(value, shared[name]) for name, value in plain.state_dict().items())
    one, two = plain.eval()(batch.images, noise), other.eval()(batch.images, noise)
    assert torch.equal(one.loss, two.loss) and two.hog_loss is None
    assert plain.train()(batch.images, noise).hog_loss is None


@pytest.mark.parametrize("weight", [-1.0, float("inf"), float("nan")])
def test_a_weight_of_the_histograms_out_of_range_is_refused(weight):
    with pytest.raises(ValueError, match="hog_weight must be 0 or more, got"):
        with_hog(weight)


def test_the_last_tokens_of_a_block_are_exact():
    block = build_blocks(32, 1, 4)[0]
    tokens = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        last_tokens_of_block(block, tokens, 5), block(tokens)[:, -5:], atol=1e-6, rtol=1e-6
    )


def test_the_loss_is_the_mean_over_masked_patches_written_out():
    model = tiny_mae()
    batch = smooth_batch(2)
    output = model(batch.images, mask_noise(batch.rng, 16), predict_all=True)
    patches = patchify(model.pixels(batch.images), (8, 8))
    target = (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, keepdim=True) + 1e-6).sqrt()
    per_patch = (output.pred - target).square().mean(-1)
    expected = (per_patch * output.masking.mask).sum(1) / output.masking.mask.sum(1)
    torch.testing.assert_close(output.losses, expected)
    torch.testing.assert_close(output.loss, expected.mean())


def test_uint8_and_normalised_float_images_agree():
    model = tiny_mae()
    batch = smooth_batch(4)
    noise = mask_noise(batch.rng, 16)
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    floats = (batch.images / 255 - mean) / std
    torch.testing.assert_close(
        model(batch.images, noise).losses, model(floats, noise).losses, atol=1e-5, rtol=1e-5
    )


def test_a_non_square_grid_trains_and_rebuilds():
    model = tiny_mae(image_size=(16, 48))
    batch = smooth_batch(2, (16, 48))
    output = model(batch.images, mask_noise(batch.rng, 12), predict_all=True)
    output.loss.backward()
    assert output.masking.mask.shape == (2, 12)
    assert model.reconstruct(output, batch.images).pasted.shape == (2, 3, 16, 48)


@pytest.mark.parametrize("norm_pix", [False, True])
def test_pictures_show_the_image_where_it_was_seen(norm_pix):
    model = tiny_mae(norm_pix)
    batch = smooth_batch(2)
    output = model(batch.images, mask_noise(batch.rng, 16), predict_all=True)
    pictures = model.reconstruct(output, batch.images)
    torch.testing.assert_close(pictures.original, batch.images / 255, atol=1e-5, rtol=0)
    masked = output.masking.mask.view(2, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    masked = masked.expand(2, 3, 32, 32)
    assert torch.equal(pictures.pasted[~masked], pictures.original[~masked])
    assert torch.equal(pictures.pasted[masked], pictures.reconstruction[masked])
    assert pictures.masked[masked].eq(0.5).all()
    for picture in pictures:
        assert 0 <= picture.min() <= picture.max() <= 1


def test_a_perfect_prediction_is_the_image_again():
    model = tiny_mae(norm_pix=True)
    patches = model.patchify(smooth_batch(2).images)
    torch.testing.assert_close(
        model.to_pixels(model.target(patches), patches), patches / 255, atol=1e-5, rtol=0
    )


def test_pictures_need_every_patch():
    model = tiny_mae()
    batch = smooth_batch(1)
    with pytest.raises(ValueError, match="predict_all=True"):
        model.reconstruct(model(batch.images, mask_noise(batch.rng, 16)), batch.images)


def test_reference_names_round_trip():
    model, other = tiny_mae(), golden_mae(True)
    state = reference_state_dict(model)
    assert {"cls_token", "blocks.1.mlp.fc2.bias", "norm.weight", "mask_token", "decoder_pred.bias"} <= set(
        state
    )
    assert not any(name.startswith("encoder.") for name in state)
    load_reference_state_dict(other, state)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in other.state_dict().items())


def test_a_state_that_is_not_a_whole_mae_is_refused_by_name():
    model = tiny_mae()
    state = reference_state_dict(model)
    del state["mask_token"]
    with pytest.raises(ValueError, match=r"missing \['mask_token'\]"):
        load_reference_state_dict(model, state)
    state = reference_state_dict(tiny_mae()) | {"decoder_pred.bias": torch.zeros(3)}
    with pytest.raises(ValueError, match=r"decoder_pred.bias \(3,\) instead of \(192,\)"):
        load_reference_state_dict(model, state)


def test_sizes_that_make_no_mae_are_refused():
    with pytest.raises(ValueError, match="do not fit an encoder for 3x32x32"):
        tiny_mae()(torch.zeros(1, 3, 24, 24), torch.zeros(1, 9))
    encoder = build_encoder(EncoderConfig(image_size=(32, 32), embed_dim=12, depth=1, num_heads=1))
    with pytest.raises(ValueError, match="masks no patch"):
        MAE(encoder, MAEConfig(mask_ratio=0))
    with pytest.raises(ValueError, match="decoder_depth"):
        MAE(encoder, MAEConfig(decoder_depth=0))
    with pytest.raises(ValueError, match="leaves none of 4"):
        MAE(encoder, MAEConfig(mask_ratio=0.8))


def test_a_handful_of_images_is_overfitted():
    model = tiny_mae()
    batch = smooth_batch(4)
    noise = mask_noise(batch.rng, 16)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(60):
        loss = model(batch.images, noise).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[0] > 1.0
    assert losses[-1] < 0.5 * losses[0]
