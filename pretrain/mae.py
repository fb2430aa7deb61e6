"""The masked autoencoder (He et al. 2022): encode a quarter of the patches, rebuild the rest.

The decoder works in the order of the noise, kept patches first: attention does not see order and positions
are added by index, so nothing is shuffled back, and "the masked tokens" is a slice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from pretrain.config import MAEConfig
from pretrain.encoder import VisionTransformer, build_blocks, encode_visible, fill_sincos, init_weights
from pretrain.hog import hog_patches, num_values
from pretrain.masking import Masking, num_keep, random_masking
from pretrain.patches import gather_patches, patchify, unpatchify
from pretrain.pixels import IMAGENET_MEAN, IMAGENET_STD, PixelNorm

NORM_PIX_EPS = 1e-6


class MAEOutput(NamedTuple):
    """What one forward pass gives; B samples, L patches, M of them masked, R predicted, P = ph*pw*3.

    R is M, but in training with a `predict_ratio` below 1 less.

    Attributes:
        loss: scalar, mean of `losses`; in training with a `hog_weight`, that weight times `hog_loss` more.
        losses: (B,) mean squared error over each sample's R patches.
        pred: (B, R, P) for the first R of `masking.ids_masked`; with predict_all (B, L, P) in position order.
            In the target's space.
        target: (B, R, P) for the first R of `masking.ids_masked`, float32.
        masking: which patches were masked.
        hog_loss: scalar, mean squared error of the R patches' histograms of oriented gradients; None where
            they are not predicted.
    """

    loss: Tensor
    losses: Tensor
    pred: Tensor
    target: Tensor
    masking: Masking
    hog_loss: Tensor | None = None


class Reconstruction(NamedTuple):
    """Pictures of one batch, each (B, 3, H, W) float32 in [0, 1].

    Attributes:
        original: the images.
        masked: the images, masked patches grey.
        reconstruction: the prediction of every patch.
        pasted: visible patches of the original, masked patches predicted.
    """

    original: Tensor
    masked: Tensor
    reconstruction: Tensor
    pasted: Tensor


class MAE(nn.Module):
    """An encoder and the decoder that trains it.

    Args:
        encoder: a timm VisionTransformer from `build_encoder`.
        config: masking, target and decoder.
        mean, std: normalisation of uint8 images, per channel of [0, 1].
        generator: source of the decoder's random weights; None draws from torch's own.

    Raises:
        ValueError: the mask ratio keeps or masks no patch, the predict ratio or the weight of the histograms
            is out of range, or decoder sizes do not fit.
    """

    def __init__(
        self,
        encoder: VisionTransformer,
        config: MAEConfig,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.grad_checkpointing = False
        self.image_size: tuple[int, int] = tuple(encoder.patch_embed.img_size)
        self.patch_size: tuple[int, int] = tuple(encoder.patch_embed.patch_size)
        self.grid: tuple[int, int] = tuple(encoder.patch_embed.grid_size)
        self.num_patches = self.grid[0] * self.grid[1]
        self.num_prefix_tokens: int = encoder.num_prefix_tokens
        self.num_keep = num_keep(self.num_patches, config.mask_ratio)
        if self.num_keep == self.num_patches:
            raise ValueError(f"mask_ratio {config.mask_ratio} masks no patch: raise it")
        if config.decoder_depth < 1:
            raise ValueError(f"decoder_depth must be at least 1, got {config.decoder_depth}")
        if not 0 < config.predict_ratio <= 1:
            raise ValueError(f"predict_ratio must lie in (0, 1], got {config.predict_ratio}")
        if not 0 <= config.hog_weight < math.inf:
            raise ValueError(f"hog_weight must be 0 or more, got {config.hog_weight}")
        num_masked = self.num_patches - self.num_keep
        self.num_predict = max(1, int(num_masked * config.predict_ratio))
        dim = config.decoder_dim
        self.encoder = encoder
        self.pixels = PixelNorm(mean, std)
        self.mask_token = nn.Parameter(torch.empty(1, 1, dim))
        self.decoder_pos_embed = nn.Parameter(
            torch.empty(1, self.num_prefix_tokens + self.num_patches, dim), requires_grad=False
        )
        self.decoder_embed = nn.Linear(encoder.embed_dim, dim)
        self.decoder_blocks = build_blocks(dim, config.decoder_depth, config.decoder_heads)
        self.decoder_norm = nn.LayerNorm(dim, eps=1e-6)
        self.decoder_pred = nn.Linear(dim, self.patch_size[0] * self.patch_size[1] * 3)

        nn.init.normal_(self.mask_token, std=0.02, generator=generator)
        fill_sincos(self.decoder_pos_embed, self.grid, self.num_prefix_tokens)
        for part in (self.decoder_embed, self.decoder_blocks, self.decoder_norm, self.decoder_pred):
            init_weights(part, generator)
        if config.hog_weight:
            self.decoder_hog = nn.Linear(dim, num_values(self.patch_size))
            init_weights(self.decoder_hog, generator)

    def set_grad_checkpointing(self, enable: bool) -> None:
        """Computes the blocks' activations again in the backward pass instead of keeping them."""
        self.grad_checkpointing = enable
        self.encoder.set_grad_checkpointing(enable)

    def forward(self, images: Tensor, noise: Tensor, predict_all: bool = False) -> MAEOutput:
        """Masks, encodes, decodes and scores one batch.

        In training only `num_predict` of the masked patches enter decoder and loss, the first in the order of
        the noise: a random choice that needs no more noise.

        Args:
            images: (B, 3, H, W), uint8, or float already normalised.
            noise: (B, L) sortable, what decides the masks (`masking.mask_noise`).
            predict_all: predict all masked patches, and the visible ones too, for pictures; the loss is that
                over all masked patches.

        Raises:
            ValueError: the images have another size than the encoder was built for.
        """
        patches = self.patchify(images)
        masking = random_masking(noise, self.num_keep)
        visible = self.pixels.patches(gather_patches(patches, masking.ids_keep))
        every = predict_all or not self.training
        ids_predict = masking.ids_masked if every else masking.ids_masked[:, : self.num_predict]
        target = self.target(gather_patches(patches, ids_predict))
        latent = encode_visible(self.encoder, visible, masking.ids_keep)
        tokens = self.decode(latent, masking._replace(ids_masked=ids_predict), predict_all)
        pred: Tensor = self.decoder_pred(tokens)
        losses = patch_losses(pred[:, -target.shape[1] :], target)
        loss, hog_loss = losses.mean(), None
        if self.config.hog_weight and self.training:
            histograms = hog_patches(self.pixels(images), self.patch_size)
            goal = gather_patches(histograms, ids_predict)
            hog_loss = patch_losses(self.decoder_hog(tokens[:, -target.shape[1] :]), goal).mean()
            loss = loss + self.config.hog_weight * hog_loss
        if predict_all:
            pred = gather_patches(pred, masking.ids_restore)
        return MAEOutput(loss, losses, pred, target, masking, hog_loss)

    def patchify(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) images of the encoder's size to (B, L, P) patches of the same dtype."""
        if images.shape[1:] != (3, *self.image_size):
            raise ValueError(
                f"images of shape {tuple(images.shape)} do not fit an encoder for 3x{self.image_size[0]}x"
                f"{self.image_size[1]}: resize the images or set the encoder's image_size"
            )
        return patchify(images, self.patch_size)

    def target(self, patches: Tensor) -> Tensor:
        """What the decoder is to predict for raw or normalised patches (..., P): same shape, float32.

        With norm_pix each patch has mean 0 and unbiased variance 1 over its P values.
        """
        pixels = self.pixels.patches(patches).float()
        if not self.config.norm_pix:
            return pixels
        mean, std = _patch_statistics(pixels)
        return (pixels - mean) / std

    def decode(self, latent: Tensor, masking: Masking, predict_all: bool = False) -> Tensor:
        """The decoder's tokens of patches, of which `decoder_pred` makes pixels, from latent visible tokens.

        Args:
            latent: (B, prefix + K, D) from `encode_visible`.
            masking: where the K tokens sit and which M patches to predict.
            predict_all: predict the K visible patches too.

        Returns:
            (B, M, decoder_dim) in the order of `masking.ids_masked`; with predict_all (B, K + M, …), visible
            first.
        """
        batch_size, num_masked = masking.ids_masked.shape
        table = self.decoder_pos_embed[0]
        prefix, cells = table[: self.num_prefix_tokens], table[self.num_prefix_tokens :]
        places = F.embedding(torch.cat([masking.ids_keep, masking.ids_masked], dim=1), cells)
        places = torch.cat([prefix.expand(batch_size, -1, -1), places], dim=1)
        tokens = self.decoder_embed(latent)
        hidden = self.mask_token.expand(batch_size, num_masked, -1).to(tokens.dtype)
        tokens = torch.cat([tokens, hidden], dim=1) + places
        *blocks, last = self.decoder_blocks
        again = self.grad_checkpointing and self.training
        for block in blocks:
            tokens = checkpoint(block, tokens, use_reentrant=False) if again else block(tokens)
        if predict_all:
            tokens = last(tokens)[:, self.num_prefix_tokens :]
        else:
            tokens = last_tokens_of_block(last, tokens, num_masked)
        normed: Tensor = self.decoder_norm(tokens)
        return normed

    def to_pixels(self, pred: Tensor, patches: Tensor) -> Tensor:
        """Predictions back in pixel space, norm_pix undone with each true patch's own mean and variance.

        Args:
            pred: (..., P) predictions in the target's space.
            patches: (..., P) the true patches, uint8 or normalised.

        Returns:
            (..., P) float32 in units of [0, 1], not clipped.
        """
        pred = pred.float()
        if self.config.norm_pix:
            mean, std = _patch_statistics(self.pixels.patches(patches).float())
            pred = pred * std + mean
        return self.pixels.undo_patches(pred)

    def reconstruct(self, output: MAEOutput, images: Tensor) -> Reconstruction:
        """Pictures of what was seen and what was predicted.

        Args:
            output: of `forward(images, noise, predict_all=True)`.
            images: (B, 3, H, W) the same images.

        Raises:
            ValueError: the output holds predictions of the masked patches only.
        """
        patches = self.patchify(images)
        if output.pred.shape != patches.shape:
            raise ValueError(
                "pictures need the prediction of every patch: call the model with predict_all=True"
            )
        original = self.pixels.undo_patches(self.pixels.patches(patches).float())
        pred = self.to_pixels(output.pred, patches).clamp(0, 1)
        mask = output.masking.mask[..., None]
        grey = torch.full_like(original, 0.5)
        pictures = (original, torch.where(mask, grey, original), pred, torch.where(mask, pred, original))
        return Reconstruction(*(unpatchify(p, self.patch_size, self.grid).clamp(0, 1) for p in pictures))


def _patch_statistics(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and sqrt(unbiased variance + eps) of each patch: (..., P) -> two of (..., 1)."""
    variance, mean = torch.var_mean(pixels, dim=-1, keepdim=True)
    return mean, (variance + NORM_PIX_EPS).sqrt()


def patch_losses(pred: Tensor, target: Tensor) -> Tensor:
    """(B,) mean squared error of (B, M, P) predictions, computed in float32."""
    return (pred.float() - target).square().mean(dim=(1, 2))


def last_tokens_of_block(block: nn.Module, tokens: Tensor, count: int) -> Tensor:
    """The last `count` tokens of `block(tokens)`, without computing the others.

    Keys and values come from all tokens; queries, projection and MLP only from those wanted. Exact for the
    blocks of `build_blocks`.

    Args:
        block: a pre-norm block of `build_blocks`.
        tokens: (B, N, D).
        count: how many, in [1, N].

    Returns:
        (B, count, D).
    """
    attn: Any = block.attn
    batch_size, length, dim = tokens.shape
    hidden: Tensor = block.norm1(tokens)  # type: ignore[operator]
    queries = F.linear(hidden[:, -count:], attn.qkv.weight[:dim], attn.qkv.bias[:dim])
    keys_values = F.linear(hidden, attn.qkv.weight[dim:], attn.qkv.bias[dim:])
    q = queries.view(batch_size, count, attn.num_heads, -1).transpose(1, 2)
    k, v = keys_values.view(batch_size, length, 2, attn.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch_size, count, dim)
    wanted = tokens[:, -count:] + attn.proj(mixed)
    result: Tensor = wanted + block.mlp(block.norm2(wanted))  # type: ignore[operator]
    return result


def reference_state_dict(model: MAE) -> dict[str, Tensor]:
    """The state of `model` under the names of the released MAE: the encoder's names carry no prefix."""
    return {name.removeprefix("encoder."): tensor for name, tensor in model.state_dict().items()}


def load_reference_state_dict(model: MAE, state: Mapping[str, Tensor]) -> None:
    """Loads a whole MAE saved under the reference names, strictly; inverse of `reference_state_dict`.

    Raises:
        ValueError: names are missing or unknown, or shapes differ; each is named.
    """
    own = model.state_dict()
    names = {name.removeprefix("encoder."): name for name in own}
    missing = sorted(names.keys() - state.keys())
    unknown = sorted(state.keys() - names.keys())
    if missing or unknown:
        raise ValueError(
            f"not a whole MAE: missing {missing or 'nothing'}, unknown {unknown or 'nothing'}; for "
            "encoder-only or foreign weights use load_foreign"
        )
    wrong = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(own[names[name]].shape)}"
        for name in names
        if state[name].shape != own[names[name]].shape
    ]
    if wrong:
        raise ValueError(
            f"shapes differ: {', '.join(wrong)}; build the model with the sizes it was saved with"
        )
    model.load_state_dict({names[name]: tensor for name, tensor in state.items()})
