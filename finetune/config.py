"""What can be set about the models of affect and their losses; without torch, see `shards.config`."""

from __future__ import annotations

import math
from dataclasses import dataclass


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
                "affect.au_pos_weight is set and affect.preset=released has weights of its own: drop one"
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
