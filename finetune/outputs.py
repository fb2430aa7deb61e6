"""What any affect model says of faces, in one form."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from finetune.config import LOOKS
from finetune.cotex import CoTEXOutput
from finetune.dan import CenteredDAN, DANOutput
from finetune.emma import AffectOutput

ModelOutput = AffectOutput | CoTEXOutput | DANOutput

_MOVED = 3 / 112  # of the side: what alignment errs by


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


def averaged_outputs(model: nn.Module, images: Tensor, looks: int = 1) -> FaceOutputs:
    """The mean of `outputs_of` over several looks at each face (test-time augmentation).

    Args:
        model, images: as for `outputs_of`.
        looks: 1 = as it is; 2 = and mirrored; 10 = both also moved up, down, left and right by 3/112 of the
            side, as faces lie elsewhere where their alignment errs: a readout that keeps the places of the
            tokens takes that for an expression.

    Raises:
        ValueError: another number of looks.
    """
    if looks not in LOOKS:
        raise ValueError(f"looks={looks}: must be one of {LOOKS}")
    down, right = (max(1, round(side * _MOVED)) for side in images.shape[2:])
    moves = [(0, 0), (down, 0), (-down, 0), (0, right), (0, -right)] if looks == 10 else [(0, 0)]
    seen = [_moved(images, *move) for move in moves]
    seen += [image.flip(3) for image in seen] if looks > 1 else []
    found = zip(*(outputs_of(model, image) for image in seen), strict=True)
    return FaceOutputs(*(None if parts[0] is None else torch.stack(parts).mean(0) for parts in found))


def _moved(images: Tensor, down: int, right: int) -> Tensor:
    """(B, C, H, W) moved by whole pixels; the border is repeated."""
    height, width = images.shape[2:]
    rows = (torch.arange(height, device=images.device) - down).clamp(0, height - 1)
    columns = (torch.arange(width, device=images.device) - right).clamp(0, width - 1)
    return images if down == right == 0 else images[:, :, rows[:, None], columns]
