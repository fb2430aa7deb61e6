from dataclasses import replace

import pytest
import timm
import torch

from pretrain.droppath import set_drop_paths
from pretrain.encoder import (
    EncoderConfig,
    build_blocks,
    build_encoder,
    choose_attention,
    embed_patches,
    encode,
    encode_visible,
    timm_arguments,
)
from pretrain.masking import mask_noise, random_masking
from pretrain.patches import gather_patches, patchify

SMALL = EncoderConfig(image_size=(32, 48), patch_size=(8, 8), embed_dim=48, depth=2, num_heads=4)


def images_for(config: EncoderConfig, size: int = 2) -> torch.Tensor:
    return torch.randn(size, 3, *config.image_size, generator=torch.Generator().manual_seed(3))


CONFIGS = {
    "non-square": SMALL,
    "oblong patch": EncoderConfig(
        "vit_small_patch16_224", (32, 32), (4, 8), embed_dim=32, depth=2, num_heads=2
    ),
    "registers": EncoderConfig(
        "vit_base_patch14_reg4_dinov2", (28, 28), None, embed_dim=32, depth=1, num_heads=2
    ),
    "pre-norm": EncoderConfig(
        "vit_base_patch16_clip_224", (32, 32), None, embed_dim=32, depth=1, num_heads=2
    ),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_all_patches_visible_is_timms_own_forward(config):
    encoder = build_encoder(config).eval()
    images = images_for(config)
    patches = patchify(images, encoder.patch_embed.patch_size)
    ids = random_masking(mask_noise(torch.arange(2), patches.shape[1]), patches.shape[1]).ids_keep
    latent = encode_visible(encoder, gather_patches(patches, ids), ids)
    tokens = encode(encoder, images)
    prefix = encoder.num_prefix_tokens
    torch.testing.assert_close(latent[:, :prefix], tokens[:, :prefix], atol=2e-5, rtol=1e-4)
    expected = gather_patches(tokens[:, prefix:].contiguous(), ids)
    torch.testing.assert_close(latent[:, prefix:], expected, atol=2e-5, rtol=1e-4)


def _read_and_gradients(encoder, tokens):
    """The cls token, and the gradients of a loss that reads nothing else."""
    encoder.zero_grad()
    (tokens[:, 0] @ torch.linspace(-1, 1, tokens.shape[2], dtype=tokens.dtype)).square().mean().backward()
    return tokens[:, :1].detach(), {
        name: param.grad for name, param in encoder.named_parameters() if param.requires_grad
    }


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("special", ["", "checkpointing", "normed heads", "attention in bf16"])
def test_the_cls_token_alone_is_that_of_all_with_all_its_gradients(config, special):
    encoder = build_encoder(replace(config, drop_path_rate=0.4)).double()
    if special == "normed heads":  # more than the attention that is known: the whole block is computed
        encoder.blocks[-1].attn.norm = torch.nn.LayerNorm(config.embed_dim).double()
    choose_attention(encoder, torch.device("cpu"), bf16=special == "attention in bf16")
    encoder.set_grad_checkpointing(special == "checkpointing")
    images = images_for(config, 5).double()
    patches = patchify(images, encoder.patch_embed.patch_size)
    ids = torch.arange(3).expand(5, 3)
    for read in (
        lambda only: encode(encoder, images, only),
        lambda only: encode_visible(encoder, patches[:, :3], ids, only),
    ):
        set_drop_paths(encoder, torch.arange(5))
        alone = read(True)
        assert alone.shape[1] == 1
        alone, gradients = _read_and_gradients(encoder, alone)
        set_drop_paths(encoder, torch.arange(5))
        expected, all_gradients = _read_and_gradients(encoder, read(False))
        torch.testing.assert_close(alone, expected, atol=1e-12, rtol=1e-12)
        torch.testing.assert_close(gradients, all_gradients, atol=1e-12, rtol=1e-10)


def test_embedding_the_visible_patches_equals_embedding_all_and_gathering():
    encoder = build_encoder(SMALL)
    images = images_for(SMALL)
    ids = random_masking(mask_noise(torch.arange(2), 24), 6).ids_keep
    visible = embed_patches(encoder, gather_patches(patchify(images, (8, 8)), ids))
    torch.testing.assert_close(
        visible, gather_patches(encoder.patch_embed(images), ids), atol=1e-5, rtol=1e-5
    )


def test_attention_for_bf16_on_a_cpu_is_the_same_attention():
    encoder, images = build_encoder(SMALL).double(), images_for(SMALL).double()
    fused = _read_and_gradients(encoder, encode(encoder, images))
    choose_attention(encoder, torch.device("cpu"), bf16=True)
    assert not encoder.blocks[0].attn.fused_attn
    torch.testing.assert_close(
        _read_and_gradients(encoder, encode(encoder, images)), fused, atol=1e-12, rtol=1e-10
    )
    encoder.requires_grad_(False)
    encoder.blocks[1:].requires_grad_(True)  # the first one has no backward pass, nor has what lies below
    choose_attention(encoder, torch.device("cpu"), bf16=True)
    assert encoder.blocks[0].attn.fused_attn and not encoder.blocks[1].attn.fused_attn
    choose_attention(encoder, torch.device("cpu"), bf16=False)
    assert encoder.blocks[1].attn.fused_attn
    choose_attention(encoder, torch.device("cuda"), bf16=True)
    assert encoder.blocks[1].attn.fused_attn


def test_checkpointing_changes_no_token():
    encoder = build_encoder(SMALL)
    patches = patchify(images_for(SMALL), (8, 8))[:, :6]
    ids = torch.arange(6).expand(2, 6)
    plain = encode_visible(encoder, patches, ids)
    encoder.set_grad_checkpointing(True)
    torch.testing.assert_close(encode_visible(encoder, patches, ids), plain)


def test_the_state_dict_loads_strictly_into_a_fresh_timm_model():
    encoder = build_encoder(SMALL).eval()
    fresh = timm.create_model(SMALL.name, **timm_arguments(SMALL)).eval()
    fresh.load_state_dict(encoder.state_dict(), strict=True)
    images = images_for(SMALL)
    assert torch.equal(fresh.forward_features(images), encode(encoder, images))


def test_the_position_table_is_stored_but_frozen():
    encoder = build_encoder(SMALL)
    assert not encoder.pos_embed.requires_grad
    assert "pos_embed" in encoder.state_dict()
    assert [name for name, param in encoder.named_parameters() if not param.requires_grad] == ["pos_embed"]


def test_initialisation_is_that_of_mae_and_repeats_from_a_generator():
    first, second = (build_encoder(SMALL, torch.Generator().manual_seed(5)) for _ in range(2))
    state = first.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in second.state_dict().items())
    conv = state["patch_embed.proj.weight"]
    bound = (6 / (48 + 192)) ** 0.5
    assert conv.abs().max() <= bound
    assert conv.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    assert state["blocks.0.attn.qkv.weight"].abs().max() <= (6 / (48 + 144)) ** 0.5
    assert state["cls_token"].std().item() == pytest.approx(0.02, rel=0.4)
    assert not state["blocks.1.mlp.fc1.bias"].any()
    assert state["norm.weight"].eq(1).all()
    assert first.norm.eps == first.blocks[0].norm1.eps == 1e-6


def test_vit_base_has_the_papers_parameters():
    with torch.device("meta"):
        encoder = build_encoder(EncoderConfig())
    assert sum(param.numel() for param in encoder.parameters()) == 85_798_656


def test_a_side_stands_for_a_square_and_a_list_for_a_pair():
    config = EncoderConfig(image_size=112, patch_size=[8, 8])  # type: ignore[arg-type]
    assert config.image_size == (112, 112)
    assert config.patch_size == (8, 8)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (EncoderConfig("vit_bsae_patch16_224"), "timm has no model 'vit_bsae_patch16_224' .near: vit_base"),
        (EncoderConfig("resnet18"), "'resnet18' is a ResNet, not a plain ViT"),
        (EncoderConfig("vit_relpos_small_patch16_224"), "not a plain ViT: choose"),
        (EncoderConfig("vit_base_patch16_siglip_224"), "no cls token: choose"),
        (EncoderConfig(embed_dim=100, num_heads=3), "100 is not a multiple of num_heads 3"),
        (EncoderConfig(image_size=(100, 100), embed_dim=12, depth=1), "100x100 does not divide"),
    ],
)
def test_what_is_not_a_plain_vit_is_refused_with_the_remedy(config, message):
    with pytest.raises(ValueError, match=message):
        build_encoder(config)


def test_blocks_need_a_width_that_divides():
    with pytest.raises(ValueError, match="width 30 is not a multiple of num_heads 4"):
        build_blocks(30, 1, 4)
