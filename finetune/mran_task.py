"""MRAN, a reconstruction (see `finetune.mran`), as a Task: valence and arousal of every frame of a clip."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from finetune import losses
from finetune.across import sum_across, world_size
from finetune.affect import affect_metrics
from finetune.config import MRANConfig
from finetune.layerdecay import layer_decay_rules
from finetune.wholestep import Pulled, StepVA, pull, with_gradient
from pretrain.task import ParamRule, StepOutput


class ClipBatch(Protocol):
    """The part of a batch of windows that a video model reads: see `shards.clips.ClipBatch`.

    Attributes:
        images: modality ("color", "depth", "thermal") -> (B, T, C, H, W); see `MRAN.forward`.
        valid: modality -> (B, T) bool: there is such a frame.
        va: (B, T, 2) valence and arousal of the frames, in [-1, 1] where valid.
        va_valid: (B, T, 2) bool.
        frames: (B, T) int64, which of its recording's frames a label is of.
        inside: (B, T) bool, False where a short clip is padded.
        rng: (B,) int64, each clip's random key (`shards.keyed`).
    """

    @property
    def images(self) -> Mapping[str, Tensor]: ...
    @property
    def valid(self) -> Mapping[str, Tensor]: ...
    @property
    def va(self) -> Tensor: ...
    @property
    def va_valid(self) -> Tensor: ...
    @property
    def frames(self) -> Tensor: ...
    @property
    def inside(self) -> Tensor: ...
    @property
    def rng(self) -> Tensor: ...


class MRANTask:
    """CCC or squared error over the valid frames of the whole optimiser step, in all its processes.

    Accumulated, the CCC costs a first pass without graphs (`finetune.wholestep`).

    Args:
        config: the loss.
        depth: blocks of the colour ViT, for layer decay; 0 where there is none.
        layer_decay: factor from layer to layer.
    """

    def __init__(self, config: MRANConfig, depth: int = 0, layer_decay: float = 1.0) -> None:
        self.config, self.depth, self.layer_decay = config, depth, layer_decay

    def step(self, model: nn.Module, batches: Sequence[ClipBatch]) -> Iterator[StepOutput]:
        """Yields each micro-batch's share; see `Task.step`. Without any valid label it is 0."""
        steps = self._mse_step if self.config.loss == "mse" else self._ccc_step
        return steps(model, batches)

    def _mse_step(self, model: nn.Module, batches: Sequence[ClipBatch]) -> Iterator[StepOutput]:
        """The mean over all valid labels of the step, as shares that are averaged over processes."""
        count = sum_across(torch.stack([batch.va_valid.sum() for batch in batches]).sum())
        for batch in batches:
            total = losses.squared_error_sum(_frames_of(model, batch), *_labels_of(batch))
            loss = losses.step_mean(total, count, world_size())
            yield StepOutput(loss, {"loss": loss.detach(), "loss_va": loss.detach()})

    def _ccc_step(self, model: nn.Module, batches: Sequence[ClipBatch]) -> Iterator[StepOutput]:
        """The whole step's loss; world_size times, as the loop averages gradients over processes."""
        va, valid = zip(*(_labels_of(batch) for batch in batches), strict=True)
        labels = StepVA.of(va, valid)
        pulled: Pulled | None = None
        if len(batches) > 1:
            pulled = pull(model, batches, partial(_frames_of, model), labels.ccc_loss)
        for number, batch in enumerate(batches):
            pred = _frames_of(model, batch)
            if pulled is None:
                loss = labels.ccc_loss(pred)
            else:
                last = number == len(batches) - 1
                loss = with_gradient(pulled.loss if last else None, pred, pulled.pulls[number])
            yield StepOutput(loss * world_size(), {"loss": loss.detach(), "loss_va": loss.detach()})

    def predict(self, model: nn.Module, batch: ClipBatch) -> dict[str, Tensor]:
        """Of every frame of a window, for recordings to be put together from.

        Returns:
            va (B, T, 2); va_target (B, T, 2), NaN where missing; frames (B, T), −1 where a clip is padded.
        """
        return {
            "va": _va_of(model, batch).float(),
            "va_target": torch.where(batch.va_valid, batch.va, torch.nan),
            "frames": torch.where(batch.inside, batch.frames, -1),
        }

    def param_rules(self) -> Sequence[ParamRule]:
        """Layer decay over the colour ViT's blocks; biases, norms, tokens and positions are not decayed."""
        return layer_decay_rules(self.depth, self.layer_decay)

    def metrics(self, predictions: Mapping[str, Tensor]) -> dict[str, float]:
        """Figures over all labelled frames of a split together (as AVEC's), not averaged over recordings.

        Args:
            predictions: va and va_target (…, 2) of frames, on the CPU. Of windows that overlap, as `predict`
                gives them, a frame counts in each that it is in.

        Returns:
            ccc_valence, ccc_arousal, rmse_…; `score`: the mean CCC. Nothing where nothing is labelled.
        """
        return affect_metrics({name: predictions[name].reshape(-1, 2) for name in ("va", "va_target")})


def _va_of(model: nn.Module, batch: ClipBatch) -> Tensor:
    """(B, T, 2)."""
    va: Tensor = model(batch.images, batch.valid, batch.rng).va
    return va


def _frames_of(model: nn.Module, batch: ClipBatch) -> Tensor:
    """(B·T, 2) predictions."""
    return _va_of(model, batch).flatten(0, 1)


def _labels_of(batch: ClipBatch) -> tuple[Tensor, Tensor]:
    """(B·T, 2) labels, and whether they are there."""
    return batch.va.flatten(0, 1), batch.va_valid.flatten(0, 1)
