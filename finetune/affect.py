"""Training on expressions, action units, valence and arousal: one task for all their models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from finetune import losses, metrics
from finetune.across import sum_across, world_size
from finetune.config import AffectConfig
from finetune.emma import AffectOutput
from finetune.layerdecay import layer_decay_rules
from finetune.outputs import ModelOutput, face_outputs
from finetune.wholestep import Pulled, StepVA, pull, with_gradient
from pretrain.task import ParamRule, StepOutput


class FaceLabels(Protocol):
    """The labels of a batch, as `shards.stream.Labels` has them."""

    @property
    def va(self) -> Tensor: ...
    @property
    def va_valid(self) -> Tensor: ...
    @property
    def expr(self) -> Tensor: ...
    @property
    def expr_valid(self) -> Tensor: ...
    @property
    def au(self) -> Tensor: ...
    @property
    def au_valid(self) -> Tensor: ...


class LabelledBatch(Protocol):
    """The part of a batch that an affect model reads: see `shards.stream.Batch`."""

    @property
    def images(self) -> Tensor: ...
    @property
    def rng(self) -> Tensor: ...
    @property
    def labels(self) -> FaceLabels: ...
    @property
    def size(self) -> int: ...


class _Counts(NamedTuple):
    """Valid labels and faces of a whole optimiser step, over all processes; scalars on the device."""

    expr: Tensor
    au: Tensor
    faces: Tensor


def _counts(batches: Sequence[LabelledBatch]) -> _Counts:
    own = [
        torch.stack([b.labels.expr_valid.sum() for b in batches]).sum(),
        torch.stack([b.labels.au_valid.sum() for b in batches]).sum(),
        torch.tensor(sum(b.size for b in batches), device=batches[0].images.device),
    ]
    return _Counts(*sum_across(torch.stack(own)).unbind())


def columns_of(output: ModelOutput, labels: FaceLabels) -> dict[str, Tensor]:
    """What is said of B faces and their labels (`label_columns`), as columns named as in `FaceOutputs`."""
    said = face_outputs(output)._asdict()
    return {name: column for name, column in said.items() if column is not None} | label_columns(labels)


def label_columns(labels: FaceLabels) -> dict[str, Tensor]:
    """Labels as columns: expr (B,) and au (B, A) with −1 where missing, va_target (B, 2) with NaN."""
    return {
        "expr": torch.where(labels.expr_valid, labels.expr, -1),
        "au": torch.where(labels.au_valid, labels.au, -1.0),
        "va_target": torch.where(labels.va_valid, labels.va, torch.nan),
    }


class AffectTask:
    """Expressions by cross-entropy, action units by binary cross-entropy, valence and arousal by CCC.

    Means run over the valid labels of the whole optimiser step, in all its micro-batches and processes; the
    CCC is that of the whole step too.

    Args:
        config: losses.
        stop_gradient: the model's valence and arousal read detached scores (`EMMA`), so that no gradient
            flows from them into the encoder; or it has none. Otherwise accumulation costs a first pass.
        depth: blocks of the model's ViT, for layer decay; 0 where there is none.
        layer_decay: factor from layer to layer.
    """

    def __init__(
        self, config: AffectConfig, stop_gradient: bool = False, depth: int = 0, layer_decay: float = 1.0
    ) -> None:
        self.config, self.stop_gradient = config, stop_gradient
        self.depth, self.layer_decay = depth, layer_decay

    def step(self, model: nn.Module, batches: Sequence[LabelledBatch]) -> Iterator[StepOutput]:
        """Yields each micro-batch's share; see `Task.step`.

        The gradient of the CCC through one prediction depends on all predictions of the step. Where the VA
        head reads detached scores these are kept, and the last micro-batch carries the whole CCC. Where the
        gradient flows on into the model, a first pass without graphs finds what pulls at each prediction.
        """
        counts = _counts(batches)
        va_labels = StepVA.of([b.labels.va for b in batches], [b.labels.va_valid for b in batches])
        ccc_loss = partial(va_labels.ccc_loss, released=self.config.released)
        pulled: Pulled | None = None
        if not self.stop_gradient and len(batches) > 1:
            pulled = pull(model, batches, lambda batch: model(batch.images, batch.rng).va, ccc_loss)
        kept: list[Tensor] = []
        for number, batch in enumerate(batches):
            last = number == len(batches) - 1
            arguments = [torch.cat(kept)] if kept and last else []
            output: AffectOutput = model(batch.images, batch.rng, *arguments)
            parts = self._label_losses(output, batch.labels, counts)
            if pulled is not None:
                assert output.va is not None
                parts["va"] = with_gradient(pulled.loss if last else None, output.va, pulled.pulls[number])
            elif output.va is not None and last:
                parts["va"] = ccc_loss(output.va)
            if output.scores is not None:
                kept.append(output.scores)
            yield self._weighted(parts)

    def _label_losses(self, output: AffectOutput, labels: FaceLabels, counts: _Counts) -> dict[str, Tensor]:
        parts = {}
        if output.expr is not None:
            total = losses.cross_entropy_sum(output.expr, labels.expr, labels.expr_valid)
            parts["expr"] = losses.step_mean(total, counts.expr, world_size())
        if output.au is not None:
            weights = losses.RELEASED_AU_POS_WEIGHT if self.config.released else self.config.au_pos_weight
            weight = output.au.new_tensor(weights) if weights else None
            total = losses.binary_cross_entropy_sum(output.au, labels.au, labels.au_valid, weight)
            count = counts.faces if self.config.released else counts.au
            parts["au"] = losses.step_mean(total, count, world_size())
        return parts

    def _weighted(self, parts: Mapping[str, Tensor]) -> StepOutput:
        """The sum of a micro-batch's losses.

        Those of expressions and units are this process's shares of a mean. The CCC loss is the whole step's
        in every process, and carries the gradient of that process's faces alone: as the loop averages
        gradients over processes, it counts world_size times for them, and once in the logs.
        """
        weights = {"expr": self.config.expr_weight, "au": self.config.au_weight, "va": self.config.va_weight}
        weighted = {name: weights[name] * value for name, value in parts.items()}
        logged = torch.stack(list(weighted.values())).sum().detach()
        if "va" in weighted:
            weighted["va"] = weighted["va"] * world_size()
        logs = {f"loss_{name}": value.detach() for name, value in parts.items()}
        return StepOutput(torch.stack(list(weighted.values())).sum(), {"loss": logged, **logs})

    def predict(self, model: nn.Module, batch: LabelledBatch) -> dict[str, Tensor]:
        """Probabilities and values with their labels, for the heads that the model has; all (B, …).

        Returns:
            expr_probs, au_probs, va; expr (−1 where missing), au (−1), va_target (NaN).
        """
        return columns_of(model(batch.images, batch.rng), batch.labels)

    def param_rules(self) -> Sequence[ParamRule]:
        """Layer decay over the ViT's blocks; biases, norms, tokens and positions are not decayed."""
        return layer_decay_rules(self.depth, self.layer_decay)

    def metrics(self, predictions: Mapping[str, Tensor]) -> dict[str, float]:
        """See `affect_metrics`."""
        return affect_metrics(predictions)


def affect_metrics(predictions: Mapping[str, Tensor]) -> dict[str, float]:
    """Figures over a whole split, for the heads that were predicted and the labels that there are.

    Args:
        predictions: columns as `AffectTask.predict` gives them, each sample once, on the CPU.

    Returns:
        ccc_valence, ccc_arousal, rmse_…; expr_macro_f1, expr_accuracy, expr_balanced_accuracy; au_f1 (at .5),
        au_always_positive_f1; `score`: the sum of mean CCC, macro F1 and mean AU F1, of those there are
        (P_MTL with all three), the CCC of arousal alone where valence has no label at all, and the other way
        round; nothing where nothing is labelled.
    """
    columns = {name: values.double().numpy() for name, values in predictions.items()}
    found: dict[str, float] = {}
    parts: list[float] = []
    if "va" in columns and np.isfinite(columns["va_target"]).any():
        valid, va = np.isfinite(columns["va_target"]), np.clip(columns["va"], -1, 1)  # as they are written
        labelled = [
            (place, name) for place, name in enumerate(("valence", "arousal")) if valid[:, place].any()
        ]
        for place, name in labelled:
            pair = (va[:, place], columns["va_target"][:, place], valid[:, place])
            found[f"ccc_{name}"], found[f"rmse_{name}"] = metrics.ccc(*pair), metrics.rmse(*pair)
        parts.append(float(np.mean([found[f"ccc_{name}"] for _, name in labelled])))
    if "expr_probs" in columns and (columns["expr"] >= 0).any():
        target, probs = columns["expr"].astype(np.int64), columns["expr_probs"]
        pred, valid = probs.argmax(1), target >= 0
        found["expr_macro_f1"] = metrics.macro_f1(pred, target, probs.shape[1], valid)
        found["expr_accuracy"] = metrics.accuracy(pred, target, valid)
        found["expr_balanced_accuracy"] = metrics.balanced_accuracy(pred, target, probs.shape[1], valid)
        parts.append(found["expr_macro_f1"])
    if "au_probs" in columns and (columns["au"] >= 0).any():
        target, valid = columns["au"], columns["au"] >= 0
        found["au_f1"] = metrics.au_f1(columns["au_probs"], target, valid)
        found["au_always_positive_f1"] = float(metrics.always_positive_f1(target, valid).mean())
        parts.append(found["au_f1"])
    return found | ({"score": sum(parts)} if parts else {})
