"""What can be set about the encoder and the masked autoencoder; without torch, see `shards.config`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class EncoderConfig:
    """Which ViT. None leaves the named model's own value.

    Attributes:
        name: a timm VisionTransformer with a cls token and an absolute position embedding.
        image_size: height and width in pixels.
        patch_size: height and width of a patch in pixels.
        embed_dim, depth, num_heads: width, blocks and heads, for sizes timm has no name for.
        drop_path_rate: stochastic depth of the last block, rising linearly from 0 at the first
            (`pretrain.droppath`); for finetuning.
        patch_drop_rate: share of the patches of each training image that the encoder does not see, in [0, 1)
            (PatchDropout, Liu et al. 2022); for finetuning. It sees all of a face that it is asked about.
        patch_embedding: what a token is made of: "pixels", a ViT's; or "hog", the patch's histograms of
            oriented gradients (`pretrain.hog.HOGEmbedding`), which are much alike in unlike pictures.
    """

    name: str = "vit_base_patch16_224"
    image_size: tuple[int, int] = (224, 224)
    patch_size: tuple[int, int] | None = None
    embed_dim: int | None = None
    depth: int | None = None
    num_heads: int | None = None
    drop_path_rate: float = 0.0
    patch_drop_rate: float = 0.0
    patch_embedding: str = "pixels"

    def __post_init__(self) -> None:
        if self.patch_embedding not in ("pixels", "hog"):
            raise ValueError(f"encoder.patch_embedding={self.patch_embedding!r:.80}: use pixels or hog")
        object.__setattr__(self, "image_size", _pair(self.image_size))
        if self.patch_size is not None:
            object.__setattr__(self, "patch_size", _pair(self.patch_size))


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    """A side or (height, width), also as the list a configuration file gives."""
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)


@dataclass(frozen=True)
class MAEConfig:
    """What the masked autoencoder adds to its encoder.

    Attributes:
        mask_ratio: share of patches masked, in (0, 1).
        norm_pix: targets are standardised patch by patch.
        decoder_dim, decoder_depth, decoder_heads: width, blocks and heads of the decoder.
        predict_ratio: share of the masked patches that a training step predicts, in (0, 1]; the others cost
            the decoder nothing. Evaluation predicts all.
        hog_weight: of a second loss: the decoder also predicts the patches' histograms of oriented gradients
            (MaskFeat, Wei et al. 2022), standardised like norm_pix; in training only. 0 is MAE as published.
    """

    mask_ratio: float = 0.75
    norm_pix: bool = True
    decoder_dim: int = 512
    decoder_depth: int = 8
    decoder_heads: int = 16
    predict_ratio: float = 1.0
    hog_weight: float = 0.0
