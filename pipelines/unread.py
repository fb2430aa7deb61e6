"""A setting that a run would not read is refused, not passed over: who reads which."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pipelines.config import ConfigError, RunConfig, leaves
from pipelines.models import BASELINES

_VITS = ("emma", "vit", "cotex", "mran")
_FINETUNED = (*_VITS, *BASELINES, "dan")

# Settings, or groups of them, and the kinds of models that read them; what is not here is read by all.
READING_KINDS: Mapping[str, tuple[str, ...]] = {
    "model": _FINETUNED,
    "init": ("mae", *_VITS, *BASELINES),
    "cnn": ("emma",),
    "data.order": _FINETUNED,
    "mae": ("mae",),
    **dict.fromkeys(("eval.probe_train", "eval.probe_val", "eval.pictures"), ("mae",)),
    **dict.fromkeys(("encoder.name", "encoder.patch_size", "encoder.patch_embedding"), ("mae", *_VITS)),
    **dict.fromkeys(("encoder.embed_dim", "encoder.depth", "encoder.num_heads"), ("mae", *_VITS)),
    "encoder.drop_path_rate": (*_VITS, "timm"),
    "encoder.patch_drop_rate": ("emma", "vit"),
    "head": ("emma", "vit", "cotex"),
    "head.hidden_dim": ("emma", "vit"),
    "affect": ("emma", "vit", *BASELINES),
    "affect.add_cnn": ("emma",),
    "affect.va_gradient": ("emma",),
    "cotex": ("cotex",),
    "dan": ("dan",),
    "mran": ("mran",),
    "clip": ("mran",),
    "baseline": ("timm", "vggface"),
    "optim.layer_decay": (*_VITS, *BASELINES),
    "train.grad_checkpointing": ("mae", *_VITS),
}
# Of what the models above read, what not all tasks do.
READING_TASKS: Mapping[str, tuple[str, ...]] = {
    "affect.preset": ("mtl", "au", "va"),
    "affect.expr_weight": ("mtl", "expr"),
    "affect.au_weight": ("mtl", "au"),
    "affect.au_pos_weight": ("mtl", "au"),
    "affect.va_weight": ("mtl", "va"),
}


def refuse_unread(config: RunConfig, kind: str) -> None:
    """Refuses settings that would do nothing.

    Args:
        config: of a run.
        kind: of its model: "mae", or `ModelSpec.kind`.

    Raises:
        ConfigError: a setting that is not read differs from its default.
    """
    unread = tuple(_unread(config.task, kind))
    for (key, value, _), (_, default, _) in zip(leaves(config), leaves(RunConfig()), strict=True):
        if value != default and any(key == name or key.startswith(f"{name}.") for name in unread):
            who = "pretraining" if kind == "mae" else f"task {config.task} with model {kind}"
            raise ConfigError(f"{key}={value}: {who} does not read this setting; leave it out")


def _unread(task: str, kind: str) -> Iterator[str]:
    """Settings, or groups of them, that such a run does not read."""
    yield from (name for name, kinds in READING_KINDS.items() if kind not in kinds)
    yield from (name for name, tasks in READING_TASKS.items() if task not in tasks)
