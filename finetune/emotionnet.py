"""EmotionNet, the best model of ABAW3's multi-task challenge, as a baseline on timm's InceptionV3."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from finetune.baselines import IMAGENET, PixelStats, classifier_names, seeded
from finetune.emma import AffectOutput
from pretrain.pixels import PixelNorm
from shards.labels import AU12, EXPR8

INCEPTION = "inception_v3.tv_in1k"  # with torchvision's weights, as the author takes them

_MAP_DIM = 768  # channels of InceptionV3 after Mixed_6e; 17x17 places for images of 299
_LATE = ("Mixed_7a", "Mixed_7b", "Mixed_7c")  # what InceptionV3 has after it
_HIDDEN_UNITS = 5
_UNIT_DIM, _UNIT_HEADS, _UNIT_MLP = 16, 8, 1024


class EmotionNet(nn.Module):
    """EmotionNet (Deng 2022), the winner of ABAW3: a reconstruction from what its author's code does.

    images -> InceptionV3 up to Mixed_6e -> a map of attention for each action unit and for 5 hidden ones
    map -> its unit's vector ┬> attention among the units -> a linear layer for each unit -> AU
                             └> a matrix for each unit, EXPR's and VA's own -> mean -> linear -> EXPR, VA

    The author's public code stands for the paper, whose text was not at hand. Not taken over from it:
    dropout, class weights, and its training (SGD at 299 pixels, on more data sets than Aff-Wild2).

    Args:
        encoder: timm's InceptionV3, from `build_timm`; what follows Mixed_6e is taken off.
        num_expr, num_au: logits, at least one each; valence and arousal come too.
        stats: normalisation of uint8 images.
        generator: source of the initial weights above the encoder; None draws from torch's own.

    Raises:
        ValueError: another encoder, or labels are lacking.
    """

    places: Tensor

    def __init__(
        self,
        encoder: Any,
        num_expr: int = len(EXPR8),
        num_au: int = len(AU12),
        stats: PixelStats = IMAGENET,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if not hasattr(encoder, "forward_preaux"):
            raise ValueError(f"EmotionNet reads InceptionV3, not {type(encoder).__name__}: use {INCEPTION}")
        if not (num_expr and num_au):
            raise ValueError(
                f"EmotionNet learns expressions and action units together, got {num_expr} and {num_au}: "
                "use a timm model for labels that lack one of them"
            )
        for name in _LATE:
            setattr(encoder, name, nn.Identity())
        self.encoder = encoder
        self.unused = (*classifier_names(encoder), *(f"{name}." for name in _LATE))
        self.num_au = num_au
        units = num_au + _HIDDEN_UNITS
        with seeded(generator):
            self.attend = nn.Sequential(
                *_conv_norm_relu(_MAP_DIM, 4 * units, 3),
                *_conv_norm_relu(4 * units, units, 1),
                nn.Conv2d(units, units, 1),
                nn.Sigmoid(),
            )
            self.units = nn.ModuleList(_build_unit() for _ in range(units))
            self.among = nn.TransformerEncoderLayer(
                _UNIT_DIM, _UNIT_HEADS, _UNIT_MLP, dropout=0.0, activation="gelu", batch_first=True
            )
            self.au_heads = nn.ModuleList(nn.Linear(_UNIT_DIM, 1) for _ in range(num_au))
            self.expr = Message(units, num_expr)
            self.va = Message(units, 2)
        self.register_buffer("places", sincos_line(units, _UNIT_DIM), persistent=False)
        self.pixels = PixelNorm(*stats)

    def forward(self, images: Tensor, keys: Tensor | None = None) -> AffectOutput:
        """As `TimmFace.forward`; nothing in it is random."""
        features: Tensor = self.encoder.forward_preaux(self.pixels(images))
        attention = 1 + self.attend(features)
        vectors = torch.stack(
            [unit(features * attention[:, i : i + 1]) for i, unit in enumerate(self.units)], dim=1
        )
        related = self.among(vectors + self.places)
        au = torch.cat([head(related[:, i]) for i, head in enumerate(self.au_heads)], dim=1)
        return AffectOutput(self.expr(vectors), au, self.va(vectors))


class Message(nn.Module):
    """What all units say together: each vector times its unit's matrix, their mean, one linear layer."""

    def __init__(self, units: int, num_outputs: int) -> None:
        super().__init__()
        self.turns = nn.Parameter(torch.empty(units, _UNIT_DIM, _UNIT_DIM))
        nn.init.uniform_(self.turns, -(_UNIT_DIM**-0.5), _UNIT_DIM**-0.5)
        self.head = nn.Linear(_UNIT_DIM, num_outputs)

    def forward(self, vectors: Tensor) -> Tensor:
        """(B, R, D) -> (B, num_outputs)."""
        turned = torch.einsum("brd,rde->be", vectors, self.turns) / vectors.shape[1]
        outputs: Tensor = self.head(turned)
        return outputs


def _build_unit() -> nn.Sequential:
    """(B, 768, h, w) -> (B, D): what one unit sees where its attention lies."""
    return nn.Sequential(
        *_conv_norm_relu(_MAP_DIM, _UNIT_DIM, 3),
        *_conv_norm_relu(_UNIT_DIM, _UNIT_DIM, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(_UNIT_DIM, _UNIT_DIM),
    )


def _conv_norm_relu(dim_in: int, dim_out: int, kernel: int) -> list[nn.Module]:
    convolution = nn.Conv2d(dim_in, dim_out, kernel, padding=kernel // 2)
    return [convolution, nn.BatchNorm2d(dim_out), nn.ReLU()]


def sincos_line(length: int, dim: int) -> Tensor:
    """(length, dim) sine and cosine of places on a line, in turn (Vaswani et al. 2017); `dim` even."""
    angles = torch.arange(length)[:, None] * 10000 ** (-torch.arange(0, dim, 2) / dim)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)
