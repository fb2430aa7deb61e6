"""What can be set about the models of affect and their losses; without torch, see `shards.config`."""

from __future__ import annotations

import math
from dataclasses import dataclass

LOOKS = (1, 2, 10)
"""How often a face may be looked at, to average what is said of it; see `finetune.outputs`."""


@dataclass(frozen=True)
class HeadConfig:
    """What sits on a finetuned encoder.

    Attributes:
        readout: "cls" (the paper's), "mean" of the patch tokens, "attention" (each output pools the patch
            tokens with queries of its own), or "flat" (each patch token projected to `readout_dim`, all of
            them side by side).
        readout_dim: numbers for each token of "flat"; queries of "attention".
        hidden_dim: of the hidden layer; 0 = the head is one linear layer.
    """

    readout: str = "cls"
    readout_dim: int = 16
    hidden_dim: int = 512


@dataclass(frozen=True)
class AffectConfig:
    """What is minimised: the sum of the losses of what is labelled.

    Attributes:
        preset: "paper", or "released" for what the authors' code does instead (valence and arousal train the
            ViT, another CCC, weighted action units summed, DAN's statistics move).
        va_gradient: valence and arousal train EMMA's ViT too, not their own head alone: as in the released
            code and not in the paper.
        add_cnn: the expression loss and prediction take the sum of ViT's and DAN's logits (ablation p1 + p2).
        expr_weight, au_weight, va_weight: factors on the three losses.
        au_pos_weight: factor on the loss of each unit's positive labels, in the label space's order; empty
            is 1 for all. Negative over positive labels makes both weigh the same. "released" has its own.
    """

    preset: str = "paper"
    va_gradient: bool = False
    add_cnn: bool = False
    expr_weight: float = 1.0
    au_weight: float = 1.0
    va_weight: float = 1.0
    au_pos_weight: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "au_pos_weight", tuple(self.au_pos_weight))
        if self.preset not in ("paper", "released"):
            raise ValueError(f"affect.preset={self.preset!r}: use paper or released")
        if not all(0 < weight < math.inf for weight in self.au_pos_weight):
            raise ValueError(f"affect.au_pos_weight={list(self.au_pos_weight)}: weights must be above 0")
        if self.released and self.au_pos_weight:
            raise ValueError(
                "affect.preset=released has weights of its own: with it, set affect.au_pos_weight=[]"
            )

    @property
    def released(self) -> bool:
        """Whether the losses are those of the released code."""
        return self.preset == "released"


@dataclass(frozen=True)
class CoTEXConfig:
    """Masks and agreement.

    Attributes:
        mask_ratio: share of patches each view does not see in training, in [0, 1).
        js_weight: λ on the Jensen-Shannon divergence of the two views, in nats per face. The released code's
            100 is 33.3 here: it divides the divergence by the 6 classes and halves the sum of the two CEs.
    """

    mask_ratio: float = 0.75
    js_weight: float = 1.0


@dataclass(frozen=True)
class DANLossConfig:
    """A DAN and what it minimises.

    Attributes:
        num_heads: cross-attention heads.
        affinity_weight, partition_weight: factors on these losses.
    """

    num_heads: int = 4
    affinity_weight: float = 1.0
    partition_weight: float = 1.0


@dataclass(frozen=True)
class BaselineConfig:
    """What of a model that is not ours is trained.

    Attributes:
        linear: only the last layer; the encoder stays as it is, in eval mode. False trains all of a timm
            model, and of VGG-Face its fully connected layers.
    """

    linear: bool = False


@dataclass(frozen=True)
class MRANConfig:
    """MRAN, a reconstruction from the paper's abstract: sizes and rates are ours.

    Attributes:
        encoder: of colour frames: "vit" (the pretrained one's patch tokens), "inception" (facenet-pytorch's
            InceptionResnetV1) or "conv" (five convolutions, from scratch).
        tuned_blocks: how many of the ViT's last blocks learn, its final norm with them; None = all of the
            encoder, 0 = nothing of it. The other encoders know these two alone.
        guidance: how depth and thermal guide colour: "gate" (in every gate of the LSTM), "map" (their
            attention modulates colour's), "early" (their features join before the LSTM), "late" (what is
            read out of them is added to the scores), "both" (gate and late) or "none" (URAN: colour alone).
        modalities: that guide.
        stem: of their frames: "conv", or "patch": one convolution that starts as the ViT's patch embedding.
        dim: channels of every modality's features.
        hidden_dim: channels of the LSTMs' states.
        volume_dims: channels of the 3-D convolutions, one block each.
        readout: of the last block's maps: "mean" over places, or "flat" (each place projected to
            `readout_dim`, all of them side by side), which keeps where something is.
        readout_dim: numbers for each place of "flat".
        temporal: over the pooled frames: "none", "gru" or "tcn", which see the whole window, both ways.
        modality_dropout: share of clips that lose a guiding modality in training, each by itself; all may go.
        frame_dropout: share of colour frames that are lost in training.
        loss: "ccc" or "mse".
    """

    encoder: str = "vit"
    tuned_blocks: int | None = None
    guidance: str = "gate"
    modalities: tuple[str, ...] = ("depth", "thermal")
    stem: str = "conv"
    dim: int = 64
    hidden_dim: int = 64
    volume_dims: tuple[int, ...] = (64, 128)
    readout: str = "mean"
    readout_dim: int = 8
    temporal: str = "none"
    modality_dropout: float = 0.2
    frame_dropout: float = 0.0
    loss: str = "ccc"

    def __post_init__(self) -> None:
        object.__setattr__(self, "modalities", tuple(self.modalities))
        object.__setattr__(self, "volume_dims", tuple(self.volume_dims))
        choices = {
            "encoder": ("vit", "inception", "conv"),
            "guidance": ("gate", "map", "early", "late", "both", "none"),
            "stem": ("conv", "patch"),
            "readout": ("mean", "flat"),
            "temporal": ("none", "gru", "tcn"),
            "loss": ("ccc", "mse"),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"mran.{name}={getattr(self, name)!r}: use one of {', '.join(known)}")
        if set(self.modalities) - {"depth", "thermal"} or len(set(self.modalities)) < len(self.modalities):
            raise ValueError(f"mran.modalities={list(self.modalities)}: use depth and thermal, each once")
        if self.guided and not self.modalities:
            raise ValueError(f"mran.modalities is empty and mran.guidance={self.guidance}: use guidance=none")
        if self.tuned_blocks is not None and (
            self.tuned_blocks < 0 or (self.encoder != "vit" and self.tuned_blocks)
        ):
            raise ValueError(
                f"mran.tuned_blocks={self.tuned_blocks} with mran.encoder={self.encoder}: use null for all, "
                "0 for none, or with a vit the number of its last blocks"
            )
        if self.guided and self.stem == "patch" and self.encoder != "vit":
            raise ValueError(f"mran.stem=patch starts as a ViT's, and mran.encoder={self.encoder}: use conv")
        if min(self.dim, self.hidden_dim, self.readout_dim, *self.volume_dims) < 2 or not self.volume_dims:
            raise ValueError(
                f"mran.dim={self.dim}, mran.hidden_dim={self.hidden_dim}, mran.readout_dim="
                f"{self.readout_dim}, mran.volume_dims={list(self.volume_dims)}: at least one block, and 2 "
                "channels everywhere"
            )
        for name in ("modality_dropout", "frame_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"mran.{name}={getattr(self, name)}: a share in [0, 1)")

    @property
    def guided(self) -> bool:
        """Whether anything but colour is looked at."""
        return self.guidance != "none"
