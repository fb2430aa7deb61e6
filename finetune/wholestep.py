"""Losses that are a statistic of the whole optimiser step, exact across processes and micro-batches.

The gradient of a CCC through one prediction depends on all predictions of the step. Where it flows on into
the model, a first pass without graphs finds what pulls at each prediction (`pull`), and the second passes
that on (`with_gradient`), micro-batch by micro-batch: one graph is alive at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from finetune import losses
from finetune.across import gather_across

BatchT = TypeVar("BatchT")


class StepVA(NamedTuple):
    """Valence and arousal labels of a whole step, over all processes: (N, 2) and (N, 2) bool."""

    va: Tensor
    valid: Tensor

    @staticmethod
    def of(va: Sequence[Tensor], valid: Sequence[Tensor]) -> StepVA:
        """In the order in which predictions are joined: this process's micro-batches, then by rank.

        Args:
            va: of each micro-batch (n, 2).
            valid: of each micro-batch (n, 2) bool.
        """
        return StepVA(gather_across(torch.cat(list(va))), gather_across(torch.cat(list(valid))))

    def ccc_loss(self, va: Tensor, released: bool = False) -> Tensor:
        """`losses.ccc_loss` of the whole step, from this process's predictions of all its micro-batches."""
        return losses.ccc_loss(gather_across(va), self.va, self.valid, released)


class Pulled(NamedTuple):
    """A loss of the whole step, and its gradient for each micro-batch's predictions, (n, K) each."""

    loss: Tensor
    pulls: Sequence[Tensor]


@torch.no_grad()
def pull(
    model: nn.Module,
    batches: Sequence[BatchT],
    predict: Callable[[BatchT], Tensor | None],
    loss: Callable[[Tensor], Tensor],
) -> Pulled | None:
    """The first pass.

    Statistics that move in training (a DAN's, released way) are put back: the second pass moves them.

    Args:
        model: that `predict` runs.
        batches: all micro-batches of the step on this process.
        predict: a micro-batch -> its predictions (n, K), the same in both passes; None for a model that
            makes none.
        loss: joined predictions -> the step's loss.
    """
    before = [buffer.clone() for buffer in model.buffers()]
    preds = [predict(batch) for batch in batches]
    for buffer, kept in zip(model.buffers(), before, strict=True):
        buffer.copy_(kept)
    found = [pred for pred in preds if pred is not None]
    if not found:
        return None
    with torch.enable_grad():
        leaf = torch.cat(found).requires_grad_()
        value = loss(leaf)
        (gradient,) = torch.autograd.grad(value, leaf)
    return Pulled(value.detach(), torch.split(gradient, [len(pred) for pred in found]))


def with_gradient(value: Tensor | None, pred: Tensor, pulls: Tensor) -> Tensor:
    """A scalar of the given value (None = 0) whose gradient for `pred` is `pulls`."""
    product = (pred * pulls).sum()
    scalar = product - product.detach()
    return scalar if value is None else scalar + value
