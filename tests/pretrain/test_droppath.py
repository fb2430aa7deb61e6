"""Drop path decides sample by sample, from the sample's own key alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pretrain.config import EncoderConfig
from pretrain.droppath import KeyedDropPath, set_drop_paths
from pretrain.encoder import VisionTransformer, build_encoder, encode, encode_visible
from pretrain.patches import patchify

CONFIG = EncoderConfig("vit_tiny_patch16_224", (16, 16), (8, 8), 16, 4, 2, drop_path_rate=0.3)
KEYS = torch.arange(1, 4001) * 7919


@pytest.fixture
def encoder() -> VisionTransformer:
    return build_encoder(CONFIG, torch.Generator().manual_seed(0)).train()


def paths_of(encoder: VisionTransformer) -> list[KeyedDropPath]:
    return [part for part in encoder.modules() if isinstance(part, KeyedDropPath)]


def factors(encoder: VisionTransformer, keys: Tensor, view: int = 0) -> Tensor:
    """(paths, B)."""
    set_drop_paths(encoder, keys, view)
    found = [path.factors for path in paths_of(encoder)]
    return torch.stack([values.flatten() for values in found if values is not None])


def images(count: int) -> Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def test_rates_rise_from_block_to_block_and_none_of_timms_own_are_left(encoder: VisionTransformer):
    rates = [path.drop_prob for path in paths_of(encoder)]
    assert rates == pytest.approx([0.1, 0.1, 0.2, 0.2, 0.3, 0.3])
    kinds = {type(part).__name__ for part in encoder.modules()}
    assert "KeyedDropPath" in kinds and "DropPath" not in kinds


def test_the_share_dropped_is_the_rate_and_survivors_are_scaled_up(encoder: VisionTransformer):
    for path, values in zip(paths_of(encoder), factors(encoder, KEYS), strict=True):
        kept = values != 0
        assert 1 - kept.float().mean().item() == pytest.approx(path.drop_prob, abs=0.025)
        torch.testing.assert_close(values[kept], torch.full_like(values[kept], 1 / (1 - path.drop_prob)))
        assert values.mean().item() == pytest.approx(1, abs=0.04)


def test_a_sample_loses_the_same_branches_in_any_batch(encoder: VisionTransformer):
    whole = factors(encoder, KEYS)
    order = torch.randperm(len(KEYS), generator=torch.Generator().manual_seed(0))[:100]
    assert torch.equal(factors(encoder, KEYS[order]), whole[:, order])
    assert torch.equal(factors(encoder, KEYS[5:6]), whole[:, 5:6])


def test_branches_and_views_are_independent(encoder: VisionTransformer):
    lost = torch.cat([factors(encoder, KEYS), factors(encoder, KEYS, view=1)]) == 0
    assert torch.corrcoef(lost.float()).fill_diagonal_(0).abs().max() < 0.06


def test_tokens_of_a_sample_do_not_depend_on_its_batch_and_a_lost_block_is_skipped(
    encoder: VisionTransformer,
):
    set_drop_paths(encoder, KEYS[:40])
    with torch.no_grad():
        tokens = encode(encoder, images(40))
        ids = torch.arange(4).expand(40, 4)
        visible = encode_visible(encoder, patchify(images(40), (8, 8)), ids)
        set_drop_paths(encoder, KEYS[30:40])
        part = encode(encoder, images(40)[30:])
    torch.testing.assert_close(visible, tokens, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(part, tokens[30:], atol=1e-5, rtol=1e-5)
    for path in paths_of(encoder):  # drop every branch of one sample: only the first block is left
        assert path.factors is not None
        path.factors = torch.zeros_like(path.factors)
    with torch.no_grad():
        skipped = encode(encoder, images(10))
        first = encoder.norm(encoder.blocks[0](encoder._pos_embed(encoder.patch_embed(images(10)))))
    torch.testing.assert_close(skipped, first, atol=1e-5, rtol=1e-5)


def test_in_eval_mode_nothing_is_dropped_or_asked_for(encoder: VisionTransformer):
    plain = build_encoder(EncoderConfig("vit_tiny_patch16_224", (16, 16), (8, 8), 16, 4, 2)).eval()
    plain.load_state_dict(encoder.state_dict(), strict=True)
    encoder.eval()
    set_drop_paths(encoder, None)
    assert torch.equal(encode(encoder, images(3)), encode(plain, images(3)))
    branch = torch.randn(2, 3, 4)
    assert KeyedDropPath(0.5).eval()(branch) is branch


def test_training_without_keys_is_an_error_even_after_a_batch_with_them(encoder: VisionTransformer):
    with pytest.raises(ValueError, match="call set_drop_paths before the model"):
        encode(encoder, images(2))
    set_drop_paths(encoder, KEYS[:2])
    encode(encoder, images(2))
    with pytest.raises(ValueError, match="pass them in training"):
        set_drop_paths(encoder, None)
    with pytest.raises(ValueError, match="call set_drop_paths"):
        encode(encoder, images(3))


def test_a_model_without_drop_path_needs_no_keys():
    encoder = build_encoder(EncoderConfig("vit_tiny_patch16_224", (16, 16), (8, 8), 16, 2, 2)).train()
    set_drop_paths(encoder, None)
    assert not paths_of(encoder)
    assert encode(encoder, images(2)).shape == (2, 5, 16)


def test_a_rate_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"drop_path_rate must lie in \[0, 1\), got 1"):
        build_encoder(EncoderConfig("vit_tiny_patch16_224", (16, 16), (8, 8), 16, 2, 2, drop_path_rate=1.0))
    with pytest.raises(ValueError, match=r"got -0\.1"):
        KeyedDropPath(-0.1)


def test_half_precision_stays_half():
    path = KeyedDropPath(0.5).train()
    path.factors = torch.tensor([0.0, 2.0])[:, None, None]
    halves = path(torch.ones(2, 1, 3, dtype=torch.bfloat16))
    assert halves.dtype == torch.bfloat16 and halves[:, 0, 0].tolist() == [0, 2]
