"""From tokens to one feature vector per face.

The paper reads the cls token. On aligned faces *where* a token sits carries the expression, and a short
training does not teach the cls token to look there, so two readouts keep places.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from finetune.config import HeadConfig
from pretrain.encoder import VisionTransformer, encode, encode_visible
from pretrain.masking import random_masking
from pretrain.patches import gather_patches, patchify


class Readout(nn.Module):
    """Tokens -> features.

    Args:
        config: which.
        embed_dim: D of the tokens.
        num_patches: L, patch tokens of a whole image.
        num_prefix_tokens: tokens before them, the cls token first.
        generator: source of the initial weights; None draws from torch's own.

    Attributes:
        num_features: of what comes out.
        only_cls: whether no other token is read.

    Raises:
        ValueError: an unknown readout.
    """

    def __init__(
        self,
        config: HeadConfig,
        embed_dim: int,
        num_patches: int,
        num_prefix_tokens: int = 1,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        kinds = {
            "cls": embed_dim,
            "mean": embed_dim,
            "attention": embed_dim * config.readout_dim,
            "flat": num_patches * config.readout_dim,
        }
        if config.readout not in kinds:
            raise ValueError(f"head.readout={config.readout!r}: use one of {', '.join(kinds)}")
        self.kind, self.num_prefix_tokens = config.readout, num_prefix_tokens
        self.num_features = kinds[config.readout]
        self.only_cls = self.kind == "cls"
        if self.kind == "flat":
            self.project = nn.Linear(embed_dim, config.readout_dim)
            nn.init.xavier_uniform_(self.project.weight, generator=generator)
            nn.init.zeros_(self.project.bias)
        elif self.kind == "attention":
            self.queries = nn.Parameter(torch.empty(config.readout_dim, embed_dim))
            self.places = nn.Parameter(torch.zeros(config.readout_dim, num_patches))
            nn.init.normal_(self.queries, std=embed_dim**-0.5, generator=generator)

    def forward(self, tokens: Tensor, ids_keep: Tensor | None = None) -> Tensor:
        """Features of whole or masked faces.

        Args:
            tokens: (B, prefix + K, D); if `only_cls`, (B, 1, D) will do.
            ids_keep: (B, K) positions of the patch tokens where patches are masked; None: all L, in order.

        Returns:
            (B, num_features). "flat" leaves masked places 0 and scales the others by L/K, as dropout does.
        """
        if self.only_cls:
            return tokens[:, 0]
        patches = tokens[:, self.num_prefix_tokens :]
        if self.kind == "mean":
            return patches.mean(dim=1)
        if self.kind == "flat":
            return self._flat(patches, ids_keep)
        places = self.places if ids_keep is None else self.places.T[ids_keep].transpose(1, 2)
        scores = self.queries @ patches.transpose(1, 2) * patches.shape[-1] ** -0.5 + places
        pooled: Tensor = F.softmax(scores, dim=-1) @ patches
        return pooled.flatten(1)

    def _flat(self, patches: Tensor, ids_keep: Tensor | None) -> Tensor:
        projected: Tensor = self.project(patches)
        if ids_keep is not None:
            batch_size, num_kept, dim = projected.shape
            length = self.num_features // dim
            placed = projected.new_zeros(batch_size, length, dim)
            where = ids_keep[..., None].expand(-1, -1, dim)
            projected = placed.scatter(1, where, projected * (length / num_kept))
        return projected.flatten(1)


def read_faces(
    encoder: VisionTransformer,
    readout: Readout,
    images: Tensor,
    noise: Tensor | None = None,
    num_keep: int = 0,
) -> Tensor:
    """Features of faces of which the encoder sees all patches, or some: the others cost nothing.

    Args:
        encoder: a ViT.
        readout: that fits it.
        images: (B, 3, H, W) normalised.
        noise: (B, L), `pretrain.masking.mask_noise`: the `num_keep` patches of least noise are seen; None:
            all are.

    Returns:
        (B, num_features).
    """
    if noise is None:
        whole: Tensor = readout(encode(encoder, images, readout.only_cls))
        return whole
    ids_keep = random_masking(noise, num_keep).ids_keep
    patches = gather_patches(patchify(images, tuple(encoder.patch_embed.patch_size)), ids_keep)
    seen: Tensor = readout(encode_visible(encoder, patches, ids_keep, readout.only_cls), ids_keep)
    return seen


def build_head(
    num_features: int, num_outputs: int, hidden_dim: int, generator: torch.Generator | None = None
) -> nn.Sequential:
    """Linear, ReLU, Linear (EMMA's head on the cls token); with hidden_dim 0 one Linear. Xavier, biases 0."""
    sizes = [num_features, hidden_dim, num_outputs] if hidden_dim else [num_features, num_outputs]
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(sizes):
        linear = nn.Linear(fan_in, fan_out)
        nn.init.xavier_uniform_(linear.weight, generator=generator)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])
