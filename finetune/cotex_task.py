"""Masked CoTEX as a Task: both views learn the labels, and to agree with each other (paper, eq. 5)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from finetune import losses
from finetune.across import sum_across, world_size
from finetune.affect import LabelledBatch, affect_metrics, columns_of
from finetune.config import CoTEXConfig
from finetune.cotex import CoTEX, CoTEXOutput
from finetune.layerdecay import layer_decay_rules
from pretrain.task import ParamRule, StepOutput


class CoTEXTask:
    """Cross-entropy of each view plus λ times their Jensen-Shannon divergence, over the labelled faces.

    Args:
        config: λ.
        depth: blocks of each ViT, for layer decay.
        layer_decay: factor from layer to layer.
    """

    def __init__(self, config: CoTEXConfig, depth: int, layer_decay: float = 1.0) -> None:
        self.config, self.depth, self.layer_decay = config, depth, layer_decay

    def step(self, model: nn.Module, batches: Sequence[LabelledBatch]) -> Iterator[StepOutput]:
        """Yields each micro-batch's share; see `Task.step`."""
        own = torch.stack([batch.labels.expr_valid.sum() for batch in batches]).sum()
        count = sum_across(own)
        for batch in batches:
            output: CoTEXOutput = model(batch.images, batch.rng)
            labels, valid = batch.labels.expr, batch.labels.expr_valid
            sums = {
                "first": losses.cross_entropy_sum(output.first, labels, valid),
                "second": losses.cross_entropy_sum(output.second, labels, valid),
                "js": losses.js_divergence_sum(output.first, output.second, valid),
            }
            parts = {name: losses.step_mean(total, count, world_size()) for name, total in sums.items()}
            loss = parts["first"] + parts["second"] + self.config.js_weight * parts["js"]
            logs = {f"loss_{name}": value.detach() for name, value in parts.items()}
            yield StepOutput(loss, {"loss": loss.detach(), **logs})

    def predict(self, model: CoTEX, batch: LabelledBatch) -> dict[str, Tensor]:
        """expr_probs (B, C), the mean of both views without masks, and the labels (`label_columns`)."""
        return columns_of(model(batch.images, batch.rng), batch.labels)

    def param_rules(self) -> Sequence[ParamRule]:
        """As EMMA's, in each view."""
        return layer_decay_rules(self.depth, self.layer_decay)

    def metrics(self, predictions: Mapping[str, Tensor]) -> dict[str, float]:
        """See `affect_metrics`; `score` is the macro F1 (P_LSD)."""
        return affect_metrics(predictions)
