"""Training a DAN (Wen et al. 2021): cross-entropy, and two losses that shape its features and heads.

A model with BatchNorm in training mode: its figures depend on the micro-batches, so layouts are not
equivalent as they are for the ViTs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from finetune import losses
from finetune.across import sum_across, world_size
from finetune.affect import LabelledBatch, affect_metrics, columns_of
from finetune.config import DANLossConfig
from finetune.dan import CenteredDAN, CenteredDANOutput
from finetune.layerdecay import is_undecayed
from pretrain.task import ParamRule, StepOutput


class DANTask:
    """Cross-entropy + affinity + partition.

    Args:
        config: factors.
    """

    def __init__(self, config: DANLossConfig) -> None:
        self.config = config

    def step(self, model: nn.Module, batches: Sequence[LabelledBatch]) -> Iterator[StepOutput]:
        """Yields each micro-batch's share; see `Task.step`."""
        count = sum_across(torch.stack([batch.labels.expr_valid.sum() for batch in batches]).sum())
        for batch in batches:
            output: CenteredDANOutput = model(batch.images)
            labels, valid = batch.labels.expr, batch.labels.expr_valid
            entropy = losses.cross_entropy_sum(output.dan.logits, labels, valid)
            affinity = losses.affinity_sum(output.dan.features, labels, valid, output.centers)
            parts = {
                "expr": losses.step_mean(entropy, count, world_size()),
                "affinity": losses.step_mean(affinity, count, world_size()),
                "partition": losses.partition_loss(output.dan.heads) / len(batches),
            }
            loss = (
                parts["expr"]
                + self.config.affinity_weight * parts["affinity"]
                + self.config.partition_weight * parts["partition"]
            )
            logs = {f"loss_{name}": value.detach() for name, value in parts.items()}
            yield StepOutput(loss, {"loss": loss.detach(), **logs})

    def predict(self, model: CenteredDAN, batch: LabelledBatch) -> dict[str, Tensor]:
        """expr_probs (B, C) and the labels (`label_columns`)."""
        return columns_of(model.dan(batch.images), batch.labels)

    def param_rules(self) -> Sequence[ParamRule]:
        """Biases and norms are not decayed; one learning rate."""
        return [ParamRule(is_undecayed, decay=False)]

    def metrics(self, predictions: Mapping[str, Tensor]) -> dict[str, float]:
        """See `affect_metrics`."""
        return affect_metrics(predictions)
