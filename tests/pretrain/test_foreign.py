from dataclasses import replace

import pytest
import timm
import torch
from tiny import tiny_mae

from pretrain.config import EncoderConfig
from pretrain.encoder import VisionTransformer, build_encoder
from pretrain.foreign import load_foreign
from pretrain.mae import MAE, reference_state_dict
from pretrain.posembed import interpolate_table, sincos_table


def encoder_for(image_size: tuple[int, int]) -> VisionTransformer:
    return build_encoder(
        EncoderConfig(image_size=image_size, patch_size=(8, 8), embed_dim=48, depth=2, num_heads=4)
    )


def timm_state(**arguments) -> dict[str, torch.Tensor]:
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 4, "num_classes": 5}
    return timm.create_model("vit_base_patch16_224", **{**sizes, **arguments}).state_dict()


def test_a_released_mae_file_loads_whole_into_a_mae():
    source, model = tiny_mae(), tiny_mae(norm_pix=False)
    torch.nn.init.normal_(source.decoder_pred.weight)
    report = load_foreign(model, {"model": reference_state_dict(source), "epoch": 3})
    assert len(report.loaded) == len(source.state_dict())
    assert report[1:] == ((), (), (), ())
    assert torch.equal(model.decoder_pred.weight, source.decoder_pred.weight)


def test_what_predicts_histograms_may_be_absent_in_either():
    plain = tiny_mae()
    with_hog = MAE(plain.encoder, replace(plain.config, hog_weight=1.0))
    drawn = {name: value.clone() for name, value in with_hog.decoder_hog.state_dict().items()}
    report = load_foreign(with_hog, reference_state_dict(plain))
    assert report.missing == ("decoder_hog.bias", "decoder_hog.weight")
    assert torch.equal(with_hog.decoder_hog.weight, drawn["weight"])
    assert load_foreign(plain, reference_state_dict(with_hog)).ignored == report.missing


def test_an_encoder_takes_its_part_of_a_mae_and_names_the_rest():
    source, encoder = tiny_mae(), encoder_for((32, 32))
    report = load_foreign(encoder, reference_state_dict(source))
    assert set(report.loaded) == set(encoder.state_dict())
    assert "mask_token" in report.ignored
    assert all(name.startswith(("decoder_", "mask_token")) for name in report.ignored)
    assert torch.equal(encoder.blocks[1].mlp.fc2.weight, source.encoder.blocks[1].mlp.fc2.weight)


def test_encoder_only_weights_leave_the_decoder_and_say_so():
    model = tiny_mae()
    before = model.decoder_embed.weight.clone()
    report = load_foreign(model, encoder_for((32, 32)).state_dict())
    assert torch.equal(model.decoder_embed.weight, before)
    assert "decoder_embed.weight" in report.missing
    assert "blocks.0.norm1.weight" in report.loaded


def test_fixed_tables_are_recomputed_for_another_grid():
    model = tiny_mae(image_size=(48, 48))
    report = load_foreign(model, reference_state_dict(tiny_mae()))
    assert report.recomputed == ("pos_embed", "decoder_pos_embed")
    assert torch.equal(model.encoder.pos_embed[0], sincos_table(48, (6, 6)))


def test_a_timm_vit_loads_without_its_head_and_its_table_is_interpolated():
    state = timm_state()
    encoder = encoder_for((16, 48))
    report = load_foreign(encoder, state)
    assert report.interpolated == ("pos_embed",)
    assert report.ignored == ("head.bias", "head.weight")
    assert torch.equal(encoder.pos_embed, interpolate_table(state["pos_embed"], (4, 4), (2, 6)))
    assert not encoder.pos_embed.requires_grad


def test_a_mean_pooled_vit_leaves_the_final_norm_missing():
    report = load_foreign(encoder_for((32, 32)), timm_state(global_pool="avg"))
    assert report.missing == ("norm.bias", "norm.weight")
    assert "fc_norm.weight" in report.ignored


def test_the_old_grid_may_be_given():
    state = timm_state(img_size=(16, 24))
    with pytest.raises(ValueError, match="give old_grid"):
        load_foreign(encoder_for((32, 32)), state)
    assert load_foreign(encoder_for((32, 32)), state, old_grid=(2, 3)).interpolated == ("pos_embed",)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 3}, "unknown blocks.2"),
        ({"depth": 1}, "missing blocks.1"),
        ({"patch_size": 4}, r"patch_embed.proj.weight \(48, 3, 4, 4\) instead of \(48, 3, 8, 8\)"),
        ({"embed_dim": 24}, r"cls_token \(1, 1, 24\) instead of \(1, 1, 48\)"),
    ],
)
def test_weights_of_another_model_are_refused_by_name_and_change_nothing(arguments, message):
    encoder = encoder_for((32, 32))
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        load_foreign(encoder, timm_state(**arguments))
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())


def test_a_decoder_of_another_depth_is_refused():
    with pytest.raises(ValueError, match=r"unknown decoder_blocks\.1"):
        load_foreign(tiny_mae(depth=1), reference_state_dict(tiny_mae(depth=2)))


def test_what_is_no_state_dict_is_refused():
    with pytest.raises(ValueError, match="epoch"):
        load_foreign(encoder_for((32, 32)), {"epoch": 3})
    with pytest.raises(ValueError, match="it is empty"):
        load_foreign(encoder_for((32, 32)), {})
