"""The face encoder: a plain timm VisionTransformer, built and run as MAE does. This package's door to timm.

The encoder stays timm's own module, so its state dict loads strictly into the timm model of that name; what
MAE and the finetuning models do differently (embedding only the visible patches) are functions over it.
"""

from __future__ import annotations

import difflib
from functools import partial
from typing import Any

import timm
import torch
from timm.layers.attention import Attention
from timm.layers.config import use_fused_attn
from timm.layers.drop import DropPath
from timm.layers.patch_embed import PatchEmbed
from timm.models import checkpoint_seq
from timm.models.vision_transformer import Block
from timm.models.vision_transformer import VisionTransformer as VisionTransformer  # the type others name
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.config import EncoderConfig
from pretrain.droppath import KeyedDropPath
from pretrain.hog import HOGEmbedding
from pretrain.patches import grid_of
from pretrain.posembed import sincos_table


def build_encoder(config: EncoderConfig, generator: torch.Generator | None = None) -> VisionTransformer:
    """Builds the encoder with MAE's initialisation and its fixed sine-cosine position table.

    The table is in the state dict but has requires_grad False; finetuning unfreezes it. There is no
    classifier, and the final norm is `norm`.

    Args:
        config: which ViT.
        generator: source of the random weights; None draws from torch's own.

    Raises:
        ValueError: timm has no such model, it is not a plain ViT, or the sizes do not fit together.
    """
    _check_plain(config.name)
    embed_dim, num_heads = config.embed_dim, config.num_heads
    if embed_dim and num_heads and embed_dim % num_heads:
        raise ValueError(
            f"embed_dim {embed_dim} is not a multiple of num_heads {num_heads}: change one of them"
        )
    encoder: Any = timm.create_model(
        config.name, drop_path_rate=config.drop_path_rate, weight_init="skip", **timm_arguments(config)
    )
    patch_size = tuple(encoder.patch_embed.patch_size)
    grid_of(config.image_size, patch_size)
    if config.patch_embedding == "hog":
        encoder.patch_embed.proj = HOGEmbedding(patch_size, encoder.embed_dim)
    key_drop_paths(encoder)
    init_weights(encoder, generator)
    num_prefix = 0 if encoder.no_embed_class else encoder.num_prefix_tokens
    fill_sincos(encoder.pos_embed, encoder.patch_embed.grid_size, num_prefix)
    assert isinstance(encoder, VisionTransformer)
    return encoder


def timm_arguments(config: EncoderConfig) -> dict[str, Any]:
    """What `timm.create_model(config.name, …)` needs for a module that the encoder's weights fit strictly."""
    sizes = {
        "patch_size": config.patch_size,
        "embed_dim": config.embed_dim,
        "depth": config.depth,
        "num_heads": config.num_heads,
    }
    return {
        "num_classes": 0,
        "global_pool": "token",
        "img_size": config.image_size,
        **{name: value for name, value in sizes.items() if value is not None},
    }


def _check_plain(name: str) -> None:
    """Raises ValueError unless timm's `name` is a ViT that visible-only encoding is right for."""
    remedy = (
        "choose a plain one such as vit_base_patch16_224 and set image_size, patch_size, embed_dim, depth"
    )
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models("vit_*"), n=3)
        raise ValueError(f"timm has no model {name!r} (near: {', '.join(near) or 'none'}): {remedy}")
    try:
        with torch.device("meta"):
            model = timm.create_model(name, num_classes=0)
    except (RuntimeError, NotImplementedError, TypeError, AssertionError) as error:
        raise ValueError(f"timm model {name!r} cannot be built here ({error}): {remedy}") from error
    if type(model) is not VisionTransformer or type(model.patch_embed) is not PatchEmbed:
        raise ValueError(f"timm model {name!r} is a {type(model).__name__}, not a plain ViT: {remedy}")
    if model.pos_embed is None or model.cls_token is None:
        missing = "absolute position embedding" if model.pos_embed is None else "cls token"
        raise ValueError(f"timm model {name!r} has no {missing}: {remedy}")


def key_drop_paths(module: nn.Module) -> None:
    """Replaces timm's DropPath modules, which draw from torch's global generator; they have no weights."""
    for parent in list(module.modules()):
        children: dict[str, Any] = parent._modules
        for name, child in children.items():
            if isinstance(child, DropPath):
                children[name] = KeyedDropPath(float(child.drop_prob or 0))


def build_blocks(dim: int, depth: int, num_heads: int) -> nn.ModuleList:
    """`depth` pre-norm transformer blocks as in MAE: mlp ratio 4, qkv bias, LayerNorm eps 1e-6, exact GELU.

    Raises:
        ValueError: `dim` is not a multiple of `num_heads`.
    """
    if dim % num_heads:
        raise ValueError(f"width {dim} is not a multiple of num_heads {num_heads}: change one of them")
    norm_layer: Any = partial(nn.LayerNorm, eps=1e-6)
    return nn.ModuleList(
        Block(dim, num_heads, mlp_ratio=4, qkv_bias=True, norm_layer=norm_layer) for _ in range(depth)
    )


def choose_attention(module: nn.Module, device: torch.device, bf16: bool) -> None:
    """Has every attention of a model that is to be trained computed in the faster way, in place.

    On a CPU the backward pass of PyTorch's fused attention takes three to eight times as long in bf16 as
    matrix products and a softmax; in fp32 it wins, and on a GPU it is left as it is. Its forward pass wins in
    bf16 too, and is all that frozen blocks need where nothing learns below them.
    """
    slow_backward = bf16 and device.type == "cpu"
    attentions: list[Any] = [part for part in module.modules() if isinstance(part, Attention)]
    for attention in attentions:
        learns = any(parameter.requires_grad for parameter in attention.parameters())
        attention.fused_attn = bool(use_fused_attn()) and not (slow_backward and learns)


def init_weights(module: nn.Module, generator: torch.Generator | None = None) -> None:
    """MAE's initialisation, in place and in the order of `module.modules()`.

    xavier uniform on every Linear and on the patch convolution seen as [out, -1]; LayerNorm 1 and 0; biases
    0; cls, register and mask tokens normal with std .02.
    """
    for name, param in module.named_parameters(recurse=True):
        if name.rpartition(".")[2] in ("cls_token", "reg_token", "mask_token"):
            nn.init.normal_(param, std=0.02, generator=generator)
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(part.weight.view(part.weight.shape[0], -1), generator=generator)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.LayerNorm) and part.elementwise_affine:
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)


@torch.no_grad()
def fill_sincos(pos_embed: nn.Parameter, grid: tuple[int, int], num_prefix_tokens: int) -> None:
    """Writes the fixed table into `pos_embed` (1, prefix + gh*gw, D) and freezes it."""
    pos_embed.copy_(sincos_table(pos_embed.shape[-1], grid, num_prefix_tokens)[None])
    pos_embed.requires_grad_(False)


def has_convolution(encoder: VisionTransformer) -> bool:
    """Whether its patches are embedded by a convolution over pixels."""
    return isinstance(encoder.patch_embed.proj, nn.Conv2d)


def embed_patches(encoder: VisionTransformer, patches: Tensor) -> Tensor:
    """The patch embedding, a convolution as a product, for patches already cut out.

    Args:
        encoder: the ViT.
        patches: (B, K, ph*pw*3) normalised, channel fastest.

    Returns:
        (B, K, D) without position.
    """
    proj = encoder.patch_embed.proj
    if isinstance(proj, HOGEmbedding):
        embedded = proj.embed(patches)
    else:
        embedded = F.linear(patches, proj.weight.permute(0, 2, 3, 1).flatten(1), proj.bias)
    tokens: Tensor = encoder.patch_embed.norm(embedded)
    return tokens


def encode_visible(
    encoder: VisionTransformer, patches: Tensor, ids_keep: Tensor, only_cls: bool = False
) -> Tensor:
    """Encodes only the patches that are kept: embedding, position, prefix tokens, blocks, final norm.

    Args:
        encoder: the ViT.
        patches: (B, K, ph*pw*3) normalised kept patches, channel fastest, in the order of `ids_keep`.
        ids_keep: (B, K) int64 positions on the grid.
        only_cls: leave out of the last block what the cls token does not need.

    Returns:
        (B, prefix + K, D) latent tokens: cls, registers, then the patches in the order given; (B, 1, D) with
        `only_cls`.
    """
    prefix: list[Tensor] = [token for token in (encoder.cls_token, encoder.reg_token) if token is not None]
    assert encoder.pos_embed is not None
    num_placed = 0 if encoder.no_embed_class else encoder.num_prefix_tokens
    places = encoder.pos_embed[0]
    tokens = embed_patches(encoder, patches) + F.embedding(ids_keep, places[num_placed:])
    head = torch.cat(prefix, dim=1)
    if num_placed:
        head = head + places[:num_placed]
    tokens = torch.cat([head.expand(len(tokens), -1, -1).to(tokens.dtype), tokens], dim=1)
    return _encode(encoder, encoder.norm_pre(encoder.pos_drop(tokens)), only_cls)


def encode(encoder: VisionTransformer, images: Tensor, only_cls: bool = False) -> Tensor:
    """All tokens of whole images, as timm's `forward_features`.

    Args:
        encoder: the ViT.
        images: (B, 3, H, W) normalised.
        only_cls: leave out of the last block what the cls token does not need.

    Returns:
        (B, prefix + L, D) tokens after the final norm, patches row by row; (B, 1, D) with `only_cls`.
    """
    tokens = encoder.patch_drop(encoder._pos_embed(encoder.patch_embed(images)))
    return _encode(encoder, encoder.norm_pre(tokens), only_cls)


def _encode(encoder: VisionTransformer, tokens: Tensor, only_cls: bool) -> Tensor:
    """Blocks and final norm."""
    blocks = encoder.blocks[:-1] if only_cls else encoder.blocks
    if encoder.grad_checkpointing and len(blocks):
        tokens = checkpoint_seq(blocks, tokens)
    else:
        tokens = blocks(tokens)
    latent: Tensor = encoder.norm(_first_row(encoder.blocks[-1], tokens) if only_cls else tokens)
    return latent


def _first_row(block: Any, tokens: Tensor) -> Tensor:
    """(B, 1, D): what a block makes of the first token. Keys and values are of all, the rest is one row's."""
    attention = block.attn
    if type(block) is not Block or type(attention) is not Attention or _does_more(attention):
        every: Tensor = block(tokens)
        return every[:, :1]
    dim = attention.num_heads * attention.head_dim
    weight, bias = attention.qkv.weight, attention.qkv.bias
    normed = block.norm1(tokens)
    query = F.linear(normed[:, :1], weight[:dim], None if bias is None else bias[:dim])
    others = F.linear(normed, weight[dim:], None if bias is None else bias[dim:])
    split = (attention.num_heads, attention.head_dim)
    query = query.reshape(len(tokens), 1, *split).transpose(1, 2)
    key, value = others.reshape(*tokens.shape[:2], 2, *split).permute(2, 0, 3, 1, 4)
    query, key = attention.q_norm(query), attention.k_norm(key)
    if attention.fused_attn:
        dropped = attention.attn_drop.p if attention.training else 0.0
        read = F.scaled_dot_product_attention(query, key, value, dropout_p=dropped)
    else:
        scores = query * attention.scale @ key.transpose(2, 3)
        read = attention.attn_drop(scores.softmax(dim=-1)) @ value
    said = attention.proj_drop(attention.proj(read.transpose(1, 2).flatten(2)))
    row = tokens[:, :1] + block.drop_path1(block.ls1(said))
    whole: Tensor = row + block.drop_path2(block.ls2(block.mlp(block.norm2(row))))
    return whole


def _does_more(attention: Any) -> bool:
    """Whether an attention gates or norms what its heads say: then the block is left to timm."""
    return getattr(attention, "gate", None) is not None or not isinstance(
        getattr(attention, "norm", nn.Identity()), nn.Identity
    )
