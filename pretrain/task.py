"""What a model must say to be trained: the contract between models and the one training loop.

A new model is a new Task; the loop does not change.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

from torch import Tensor, nn


class ImageBatch(Protocol):
    """The part of a batch that an image model reads.

    Attributes:
        images: (B, 3, H, W) uint8.
        rng: (B,) int64, each sample's random key (`shards.keyed`).
        keys: the samples' names.
        size: B.
    """

    @property
    def images(self) -> Tensor: ...
    @property
    def rng(self) -> Tensor: ...
    @property
    def keys(self) -> list[str]: ...
    @property
    def size(self) -> int: ...


class StepOutput(NamedTuple):
    """One micro-batch's share of an optimiser step.

    Attributes:
        loss: scalar; the losses of a step's micro-batches sum to the step's loss on this process, and the
            loop averages gradients over processes.
        logs: name -> detached scalar on the device, summing over micro-batches and averaging over processes
            likewise.
    """

    loss: Tensor
    logs: dict[str, Tensor]


@dataclass(frozen=True)
class ParamRule:
    """How the optimiser treats the parameters it matches.

    Attributes:
        match: a regular expression searched in the parameter's name, or a function of name and parameter.
        decay: False leaves weight decay out; None says nothing.
        lr_scale: factor on the learning rate; None says nothing.
    """

    match: str | Callable[[str, nn.Parameter], bool]
    decay: bool | None = None
    lr_scale: float | None = None

    def matches(self, name: str, param: nn.Parameter) -> bool:
        """Whether the rule speaks of this parameter."""
        if isinstance(self.match, str):
            return re.search(self.match, name) is not None
        return self.match(name, param)


class ParamSetting(NamedTuple):
    """What the rules make of one parameter: its optimiser group is all parameters of equal setting."""

    decay: bool = True
    lr_scale: float = 1.0


BatchT = TypeVar("BatchT", contravariant=True)
ModelT = TypeVar("ModelT", bound=nn.Module, contravariant=True)


class Task(Protocol[ModelT, BatchT]):
    """A model's training: its loss, its outputs, its optimiser rules and its figures."""

    def step(self, model: nn.Module, batches: Sequence[BatchT]) -> Iterator[StepOutput]:
        """The loss of one optimiser step, micro-batch by micro-batch.

        Yields exactly one output per batch, in order. The loop runs backward on each before it asks for the
        next, so one graph is alive at a time; all batches are given at the start because some losses need
        figures of the whole step (label counts, batch statistics).

        Args:
            model: the prepared model (compiled, wrapped for several processes): it must be called, since
                calling an unwrapped one would silently not synchronise.
            batches: all micro-batches of the step on this process, on the model's device.
        """
        ...

    def predict(self, model: ModelT, batch: BatchT) -> dict[str, Tensor]:
        """Named outputs of one batch, each (B, ...), with all `metrics` needs (labels and `valid` too).

        Args:
            model: the unwrapped model, in eval mode, under no_grad.
            batch: on the model's device.
        """
        ...

    def param_rules(self) -> Sequence[ParamRule]:
        """Rules for the optimiser; where several match a parameter, the last to name a property holds."""
        ...

    def metrics(self, predictions: Mapping[str, Tensor]) -> dict[str, float]:
        """Figures over a whole split.

        Args:
            predictions: the outputs of `predict`, concatenated over the split: every sample once, on the CPU.

        Returns:
            name -> value; "score" ranks checkpoints, higher is better.
        """
        ...


def is_undecayed(name: str, param: nn.Parameter) -> bool:
    """Biases and one-dimensional parameters: what MAE leaves undecayed (cls and mask tokens are decayed)."""
    return param.ndim <= 1 or name.endswith(".bias")


def resolve_params(model: nn.Module, rules: Sequence[ParamRule]) -> dict[str, ParamSetting]:
    """The setting of every trainable parameter, each exactly once, in the model's order.

    Args:
        model: the unwrapped model.
        rules: as from `Task.param_rules`.

    Raises:
        ValueError: a rule given as a regular expression matches no parameter.
    """
    trainable = {name: param for name, param in model.named_parameters() if param.requires_grad}
    for rule in rules:
        if isinstance(rule.match, str) and not any(rule.matches(*pair) for pair in trainable.items()):
            raise ValueError(
                f"parameter rule {rule.match!r} matches no trainable parameter: correct or remove it"
            )
    settings = {}
    for name, param in trainable.items():
        fields: dict[str, Any] = {}
        for rule in rules:
            if rule.matches(name, param):
                said = {"decay": rule.decay, "lr_scale": rule.lr_scale}
                fields.update({field: value for field, value in said.items() if value is not None})
        settings[name] = ParamSetting(**fields)
    return settings
