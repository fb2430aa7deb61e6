"""A ViT that sees histograms of gradients instead of pixels."""

from dataclasses import replace

import pytest
import torch

from pretrain.config import EncoderConfig, MAEConfig
from pretrain.encoder import build_encoder, embed_patches, encode, encode_visible
from pretrain.hog import HOGEmbedding
from pretrain.mae import MAE
from pretrain.masking import mask_noise, random_masking
from pretrain.patches import gather_patches, patchify

CONFIG = EncoderConfig(
    "vit_tiny_patch16_224", 32, (8, 8), embed_dim=48, depth=2, num_heads=3, patch_embedding="hog"
)


def faces(count: int = 4) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_whole_and_visible_faces_are_embedded_alike() -> None:
    encoder = build_encoder(CONFIG, torch.Generator().manual_seed(0)).eval()
    assert encoder.patch_embed.proj.weight.shape == (48, 72)
    images = faces()
    patches = patchify(images, (8, 8))
    torch.testing.assert_close(embed_patches(encoder, patches), encoder.patch_embed(images))
    every = torch.arange(16).expand(4, -1)
    torch.testing.assert_close(encode_visible(encoder, patches, every), encode(encoder, images))


def test_a_token_knows_nothing_of_other_patches_nor_of_brightness_and_contrast() -> None:
    embedding = HOGEmbedding((8, 8), 16)
    images = faces(1)
    other = images.clone()
    other[..., 8:, :] = 0
    torch.testing.assert_close(embedding(images)[..., 0, :], embedding(other)[..., 0, :], rtol=0, atol=0)
    torch.testing.assert_close(embedding(images), embedding(3 * images + 1), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(embedding(images), embedding(-images), atol=0.1)
    assert not torch.allclose(embedding(images), embedding(images.flip(-1)), atol=0.1)


def test_even_skin_is_no_edge() -> None:
    embedding = HOGEmbedding((8, 8), 16)
    noise = patchify(1 + 1e-4 * faces(), (8, 8))
    assert embedding.histograms(noise).square().mean() < 0.01
    strong = embedding.histograms(patchify(faces(), (8, 8)))
    torch.testing.assert_close(strong.square().mean(-1), torch.ones(4, 16))


def test_masked_patches_do_not_show_in_what_the_encoder_says() -> None:
    model = MAE(build_encoder(CONFIG), MAEConfig(decoder_dim=32, decoder_depth=1, decoder_heads=2)).eval()
    images = faces()
    noise = mask_noise(torch.arange(4), 16)
    masking = random_masking(noise, model.num_keep)
    patches = patchify(images, (8, 8))
    seen = gather_patches(patches, masking.ids_keep)
    before = encode_visible(model.encoder, seen, masking.ids_keep)
    masked = masking.mask.bool()[..., None].expand_as(patches)
    hidden = gather_patches(patches.masked_fill(masked, 5.0), masking.ids_keep)
    after = encode_visible(model.encoder, hidden, masking.ids_keep)
    torch.testing.assert_close(before, after, rtol=0, atol=0)
    loss = model.train()(images, noise).loss
    loss.backward()
    assert model.encoder.patch_embed.proj.weight.grad.abs().sum() > 0


def test_another_embedding_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"patch_embedding='sift'.*pixels or hog"):
        replace(CONFIG, patch_embedding="sift")
