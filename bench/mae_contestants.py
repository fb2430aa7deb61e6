"""MAE training steps to be compared: ours, transformers' and lightly's; and what one costs by formula.

`mae_step`, `memory` and `recipe` measure them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from bench.measure import peer_available
from pipelines.config import RunConfig
from pipelines.dryrun import random_batch
from pipelines.heap import keep_freed_memory
from pipelines.optim import build_optimizer, param_groups, set_learning_rate
from pipelines.pretraining import build_trainable
from pretrain.encoder import choose_attention
from pretrain.masking import num_keep
from pretrain.patches import grid_of
from pretrain.pixels import PixelNorm

BASE = ["encoder.patch_size=16", "encoder.embed_dim=768", "encoder.depth=12", "encoder.num_heads=12"]
TINY = ["encoder.image_size=64", "encoder.patch_size=16", "encoder.embed_dim=64", "encoder.depth=2"]
TINY += ["encoder.num_heads=4", "mae.decoder_dim=32", "mae.decoder_depth=1", "mae.decoder_heads=4"]
PEERS = ("transformers", "lightly")
_LR, _DECAY = 1.5e-4, 0.05


@dataclass(frozen=True)
class Setting:
    """How a step runs.

    Attributes:
        batch_size: images.
        precision: "fp32", or "bf16" for autocast.
        device: "cpu" or "cuda".
        compile: by torch.compile.
    """

    batch_size: int
    precision: str = "fp32"
    device: str = "cpu"
    compile: bool = False

    def text(self) -> str:
        """In words."""
        compiled = ", torch.compile" if self.compile else ""
        return f"batch {self.batch_size}, {self.precision}{compiled}"


class LightlyMAE(nn.Module):
    """MAE of lightly's parts, as its example puts them together, with standardised targets."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__()
        from lightly.models import utils
        from lightly.models.modules import MaskedVisionTransformerDecoderTIMM, MaskedVisionTransformerTIMM

        encoder, mae = config.encoder, config.mae
        self.parts, self.mask_ratio = utils, mae.mask_ratio
        (self.patch_size, _), dim = encoder.patch_size or (16, 16), mae.decoder_dim
        vit = VisionTransformer(
            img_size=encoder.image_size,
            patch_size=self.patch_size,
            embed_dim=encoder.embed_dim or 768,
            depth=encoder.depth or 12,
            num_heads=encoder.num_heads or 12,
            num_classes=0,
        )
        self.backbone = MaskedVisionTransformerTIMM(vit=vit)
        self.sequence_length = self.backbone.sequence_length
        self.embed = nn.Linear(vit.embed_dim, dim)
        self.decoder = MaskedVisionTransformerDecoderTIMM(
            num_patches=vit.patch_embed.num_patches,
            embed_dim=dim,
            depth=mae.decoder_depth,
            num_heads=mae.decoder_heads,
        )
        self.predict = nn.Linear(dim, self.patch_size**2 * 3)

    def forward(self, images: Tensor) -> Tensor:
        """The loss of (B, 3, H, W) normalised images."""
        size = (len(images), self.sequence_length)
        ids_keep, ids_mask = self.parts.random_token_mask(size, self.mask_ratio, device=images.device)
        latent = self.embed(self.backbone.encode(images=images, idx_keep=ids_keep))
        tokens = self.parts.repeat_token(self.decoder.mask_token, size)
        tokens = self.parts.set_at_index(tokens, ids_keep, latent.type_as(tokens))
        pred = self.predict(self.parts.get_at_index(self.decoder(tokens), ids_mask))
        patches = self.parts.patchify(images, self.patch_size)
        target = self.parts.get_at_index(patches, ids_mask - 1)  # the class token is number 0 there
        return F.mse_loss(pred, self.parts.normalize_mean_var(target))


def _transformers_mae(config: RunConfig) -> Any:
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    encoder, mae = config.encoder, config.mae
    width = encoder.embed_dim or 768
    return ViTMAEForPreTraining(
        ViTMAEConfig(
            hidden_size=width,
            num_hidden_layers=encoder.depth or 12,
            num_attention_heads=encoder.num_heads or 12,
            intermediate_size=4 * width,
            image_size=encoder.image_size[0],
            patch_size=(encoder.patch_size or (16, 16))[0],
            decoder_hidden_size=mae.decoder_dim,
            decoder_num_hidden_layers=mae.decoder_depth,
            decoder_num_attention_heads=mae.decoder_heads,
            decoder_intermediate_size=4 * mae.decoder_dim,
            mask_ratio=mae.mask_ratio,
            norm_pix_loss=mae.norm_pix,
        )
    )


def describe(name: str, setting: Setting) -> str:
    """What a contestant is, for `Row.settings`."""
    what = {
        "ours": "pipelines.pretraining.build_trainable",
        "transformers": "ViTMAEForPreTraining(ViTMAEConfig(…, norm_pix_loss=True)), attention by SDPA",
        "lightly": "MaskedVisionTransformerTIMM(timm VisionTransformer), MaskedVisionTransformerDecoderTIMM",
    }[name]
    return f"{what}; {setting.text()}; AdamW(fused=True), betas .9 .95"


def build_step(name: str, config: RunConfig, setting: Setting) -> Callable[..., object]:
    """A training step of "ours", "transformers" or "lightly" on images made once.

    Args:
        config: sizes of the model; optimiser.
        setting: how it runs.

    Returns:
        A function that makes one step; given a number, on so many of the images only.
    """
    device = torch.device(setting.device)
    if setting.device == "cpu":
        keep_freed_memory()  # as `build_accelerator`, for all contestants
    torch.manual_seed(0)
    batch = random_batch(setting.batch_size, config).to(device)
    images = PixelNorm().to(device)(batch.images)
    if name == "ours":
        model, task = build_trainable(config)
        model.to(device).train()
        choose_attention(model, device, setting.precision == "bf16")
        prepared: Any = torch.compile(model) if setting.compile else model
        optimizer = build_optimizer(param_groups(model, task.param_rules(), _DECAY), config.optim)

        def loss_of(count: int) -> Any:
            part = replace(batch, images=images[:count], rng=batch.rng[:count])
            (output,) = task.step(prepared, [part])
            return output.loss
    else:
        peer_available(name)
        made = LightlyMAE(config) if name == "lightly" else _transformers_mae(config)
        made.to(device).train()
        peer: Any = torch.compile(made) if setting.compile else made
        trained = [parameter for parameter in made.parameters() if parameter.requires_grad]
        group = {"params": trained, "lr_scale": 1.0, "weight_decay": _DECAY}
        optimizer = build_optimizer([group], config.optim)

        def loss_of(count: int) -> Any:
            found = peer(images[:count])
            return found if isinstance(found, Tensor) else found.loss

    set_learning_rate(optimizer, _LR)

    def step(count: int = setting.batch_size) -> None:
        with torch.autocast(setting.device, torch.bfloat16, enabled=setting.precision == "bf16"):
            loss = loss_of(count)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def forward_flops(config: RunConfig, skipping: bool = False) -> float:
    """FLOPs of one image's forward pass, by formula; a multiply-add counts as two.

    A block of width d on n tokens: 24·n·d² for queries, keys, values (6), projection (2) and MLP (16), and
    4·n²·d for attention. The encoder's blocks see 1 + K tokens, of K kept patches; the decoder's 1 + L, of
    all. Embeddings and prediction: 2·n·(width in)·(width out). Norms and GELU are not counted.

    Args:
        config: sizes. With `encoder` sizes given, none taken from the model's name.
        skipping: only what our training step computes: it embeds K patches, its decoder sees 1 + K + R
            tokens, of R predicted patches, and in the last block all but keys and values for R of them.
    """
    encoder, mae = config.encoder, config.mae
    patch_size = encoder.patch_size or (16, 16)
    rows, columns = grid_of(encoder.image_size, patch_size)
    every, values = rows * columns, 3 * patch_size[0] * patch_size[1]
    width, depth = encoder.embed_dim or 768, encoder.depth or 12
    kept = num_keep(every, mae.mask_ratio)
    predicted = max(1, int((every - kept) * mae.predict_ratio)) if skipping else every
    embedded = kept if skipping else every
    tokens, dim = 1 + kept + predicted if skipping else 1 + every, mae.decoder_dim
    flops = 2 * embedded * values * width + depth * _block_flops(1 + kept, width)
    flops += 2 * (1 + kept) * width * dim + mae.decoder_depth * _block_flops(tokens, dim)
    flops += 2 * predicted * dim * values
    if skipping:
        left_out = tokens - predicted
        flops -= left_out * (20 * dim**2 + 4 * tokens * dim)
    return float(flops)


def _block_flops(tokens: int, width: int) -> int:
    return 24 * tokens * width**2 + 4 * tokens**2 * width


def training_flops(config: RunConfig, skipping: bool = False) -> float:
    """FLOPs of one image's training step: the backward pass costs two forward passes; see `forward_flops`."""
    return 3 * forward_flops(config, skipping)


def peers_here() -> list[str]:
    """The peers that are installed."""
    return [name for name in PEERS if peer_available(name)]
