"""What any affect model says of faces, in one form."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from finetune.cotex import CoTEXOutput
from finetune.dan import CenteredDAN, DANOutput
from finetune.emma import AffectOutput

ModelOutput = AffectOutput | CoTEXOutput | DANOutput


class FaceOutputs(NamedTuple):
    """What a model says of B faces, float32; None for what it does not speak of.

    Attributes:
        expr_probs: (B, C) probabilities of the expression classes, rows sum to 1.
        au_probs: (B, A) probabilities of the action units.
        va: (B, 2) valence and arousal.
    """

    expr_probs: Tensor | None = None
    au_probs: Tensor | None = None
    va: Tensor | None = None


def face_outputs(output: ModelOutput) -> FaceOutputs:
    """Logits as probabilities; valence and arousal as they are."""
    if isinstance(output, CoTEXOutput):
        return FaceOutputs(expr_probs=output.probs.float())
    if isinstance(output, DANOutput):
        return FaceOutputs(expr_probs=F.softmax(output.logits.float(), dim=1))
    return FaceOutputs(
        expr_probs=None if output.expr is None else F.softmax(output.expr.float(), dim=1),
        au_probs=None if output.au is None else torch.sigmoid(output.au.float()),
        va=None if output.va is None else output.va.float(),
    )


def outputs_of(model: nn.Module, images: Tensor) -> FaceOutputs:
    """Runs an EMMA, FaceViT, CoTEX, DAN or another's model; valence and arousal are clipped to [−1, 1].

    Args:
        model: in eval mode.
        images: (B, 3, H, W) uint8, on the model's device.

    Raises:
        TypeError: another kind of model.
    """
    output = (model.dan if isinstance(model, CenteredDAN) else model)(images)
    if not isinstance(output, ModelOutput):
        raise TypeError(f"{type(model).__name__} is no model of affect")
    found = face_outputs(output)
    return found if found.va is None else found._replace(va=found.va.clamp(-1, 1))
