"""EMMA: a face-pretrained ViT and a frozen DAN, valence and arousal from what both say (paper 3.2).

images -> ViT -> readout -> head -> EXPR 8, AU 12 ┐
images -> DAN (frozen) -> EXPR scores             ┴> stop gradient -> VA head -> valence, arousal
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from finetune.config import HeadConfig
from finetune.dan import DAN, freeze
from finetune.readout import Readout, build_head, read_faces
from pretrain.droppath import set_drop_paths
from pretrain.encoder import VisionTransformer
from pretrain.masking import mask_noise, num_keep
from pretrain.pixels import PixelNorm
from shards.labels import AU12, EXPR8

VA_HIDDEN = 256


class AffectOutput(NamedTuple):
    """What a model says of B faces; None for what it does not speak of.

    Attributes:
        expr: (B, C) logits of the expression classes.
        au: (B, A) logits of the action units.
        va: (B, 2) valence and arousal; with `earlier` scores (E + B, 2), the earlier ones first.
        scores: (B, S) what the VA head reads, detached, where it reads detached scores.
        expr_cnn: (B, C') logits of the frozen DAN.
    """

    expr: Tensor | None = None
    au: Tensor | None = None
    va: Tensor | None = None
    scores: Tensor | None = None
    expr_cnn: Tensor | None = None


class EMMA(nn.Module):
    """The multi-task model.

    Args:
        encoder: a ViT, MAE-pretrained; its position embedding is trained too, as in the paper.
        cnn: a DAN trained for expressions; frozen here: no gradient, no graph, statistics that stay.
        head: readout and head for expressions and action units.
        num_expr, num_au: outputs of the head; 0 for none.
        stop_gradient: valence and arousal do not train the ViT (the paper's way; released code: they do).
        added: for each class of the head, the class of `cnn` whose logit is added to its own (the paper's
            ablation p1 + p2; `dan.class_order`), None for a class that `cnn` has not; None adds nothing.
        freeze_cnn: False leaves DAN's BatchNorm statistics to move in training (as the released code does).
        cnn_size: height and width that `cnn` learned at, to which its images are brought; None = as they are.
        patch_drop_rate: see `EncoderConfig`; `cnn` sees all of every face.
        generator: source of the initial weights; None draws from torch's own.
    """

    def __init__(
        self,
        encoder: VisionTransformer,
        cnn: DAN,
        head: HeadConfig,
        num_expr: int = len(EXPR8),
        num_au: int = len(AU12),
        stop_gradient: bool = True,
        freeze_cnn: bool = True,
        added: Sequence[int | None] | None = None,
        cnn_size: tuple[int, int] | None = None,
        patch_drop_rate: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.num_expr, self.stop_gradient, self.cnn_size = num_expr, stop_gradient, cnn_size
        self.encoder, self.num_keep = encoder, kept_patches(encoder, patch_drop_rate)
        unfreeze_positions(encoder)
        self.cnn = freeze(cnn, statistics=freeze_cnn)
        self.readout = readout_of(encoder, head, generator)
        self.head = build_head(self.readout.num_features, num_expr + num_au, head.hidden_dim, generator)
        self.va_head = build_head(cnn.config.num_classes + num_expr + num_au, 2, VA_HIDDEN, generator)
        self.added: list[int] | None = None
        if added is not None:
            nothing = cnn.config.num_classes  # the column of zeros behind the logits
            self.added = [nothing if number is None else number for number in added]
        self.pixels = PixelNorm()

    def forward(
        self, images: Tensor, keys: Tensor | None = None, earlier: Tensor | None = None
    ) -> AffectOutput:
        """All outputs for a batch of faces.

        Args:
            images: (B, 3, H, W), uint8, or float already normalised.
            keys: (B,) int64 random keys, needed in training where paths or patches are dropped.
            earlier: (E, S) scores of the step's earlier micro-batches, whose valence and arousal are wanted
                again beside this one's: the CCC is one of the whole step.
        """
        images = self.pixels(images)
        set_drop_paths(self.encoder, keys)
        noise = patch_noise(self.encoder, keys, self.num_keep)
        outputs = self.head(read_faces(self.encoder, self.readout, images, noise, self.num_keep))
        with torch.no_grad():
            if self.cnn_size is not None and images.shape[-2:] != self.cnn_size:
                images = F.interpolate(images, self.cnn_size, mode="bilinear", antialias=True)
            expr_cnn = self.cnn(images).logits
        scores = torch.cat([expr_cnn, outputs], dim=1)
        if self.stop_gradient:
            scores = scores.detach()
        va = self.va_head(scores if earlier is None else torch.cat([earlier, scores]))
        expr, au = outputs[:, : self.num_expr], outputs[:, self.num_expr :]
        if self.added is not None:
            expr = expr + F.pad(expr_cnn, (0, 1))[:, self.added]
        return AffectOutput(
            expr if expr.shape[1] else None,
            au if au.shape[1] else None,
            va,
            scores if self.stop_gradient else None,
            expr_cnn,
        )


class FaceViT(nn.Module):
    """The ViT alone: one head for any of expressions, action units, valence and arousal.

    Args:
        encoder: a ViT; its position embedding is trained too.
        head: readout and head.
        num_expr, num_au: logits wanted; 0 for none.
        va: whether valence and arousal are wanted.
        patch_drop_rate: see `EncoderConfig`.
        generator: source of the initial weights; None draws from torch's own.
    """

    def __init__(
        self,
        encoder: VisionTransformer,
        head: HeadConfig,
        num_expr: int = len(EXPR8),
        num_au: int = len(AU12),
        va: bool = True,
        patch_drop_rate: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.encoder, self.num_keep = encoder, kept_patches(encoder, patch_drop_rate)
        unfreeze_positions(encoder)
        self.sizes = (2 * va, num_expr, num_au)
        self.readout = readout_of(encoder, head, generator)
        self.head = build_head(self.readout.num_features, sum(self.sizes), head.hidden_dim, generator)
        self.pixels = PixelNorm()

    def forward(self, images: Tensor, keys: Tensor | None = None) -> AffectOutput:
        """As `EMMA.forward`; what was not asked for is None."""
        set_drop_paths(self.encoder, keys)
        noise = patch_noise(self.encoder, keys, self.num_keep)
        features = read_faces(self.encoder, self.readout, self.pixels(images), noise, self.num_keep)
        return split_outputs(self.head(features), self.sizes)


def split_outputs(outputs: Tensor, sizes: tuple[int, int, int]) -> AffectOutput:
    """(B, 2·va + C + A) outputs in the order valence, arousal, expressions, action units, as a record."""
    va, expr, au = torch.split(outputs, list(sizes), dim=1)
    return AffectOutput(
        *(part if size else None for part, size in zip((expr, au, va), sizes[1:] + sizes[:1]))
    )


def readout_of(encoder: VisionTransformer, head: HeadConfig, generator: torch.Generator | None) -> Readout:
    """The readout that fits an encoder."""
    return Readout(
        head, encoder.embed_dim, encoder.patch_embed.num_patches, encoder.num_prefix_tokens, generator
    )


def kept_patches(encoder: VisionTransformer, patch_drop_rate: float) -> int:
    """How many patches of a training image the encoder sees.

    Raises:
        ValueError: a rate out of range, or one that leaves none.
    """
    try:
        return num_keep(encoder.patch_embed.num_patches, patch_drop_rate)
    except ValueError as error:
        raise ValueError(f"encoder.patch_drop_rate={patch_drop_rate}: {error}") from error


def patch_noise(encoder: VisionTransformer, keys: Tensor | None, num_keep: int) -> Tensor | None:
    """(B, L) what decides which patches the next training pass sees; None where it is all of them.

    Raises:
        ValueError: no keys, and something to drop.
    """
    length = encoder.patch_embed.num_patches
    if not encoder.training or num_keep == length:
        return None
    if keys is None:
        raise ValueError("patches are dropped by the samples' random keys: pass them in training")
    return mask_noise(keys, length)


def unfreeze_positions(encoder: VisionTransformer) -> None:
    """Finetuning trains the position embedding, which pretraining keeps fixed."""
    assert encoder.pos_embed is not None
    encoder.pos_embed.requires_grad_(True)
