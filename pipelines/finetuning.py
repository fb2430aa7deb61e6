"""The finetuning stages: a pretrained encoder (for EMMA a DAN too) -> a model of affect."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from finetune.affect import AffectTask
from finetune.cotex_task import CoTEXTask
from finetune.dan import CenteredDAN
from finetune.dan_task import DANTask
from finetune.emma import EMMA
from pipelines.checkpoint import CheckpointError, TensorFile, encoder_file, find_encoder, read_tensors
from pipelines.config import ConfigError, RunConfig, load_config
from pipelines.models import ModelSpec, build_model, encoders_of, load_model, model_file
from pipelines.rundir import latest
from pipelines.scoring import AffectObserver
from pipelines.stage import Context, Parts, loader_workers, run_stage
from pretrain.encoder import EncoderConfig
from pretrain.foreign import load_foreign
from pretrain.task import Task
from shards.order import EpochOrder, Order, WeightedOrder, inverse_frequency
from shards.records import LabelSpace
from shards.shardset import ShardSet
from shards.stream import Batch, train_batches
from shards.transforms import AugmentConfig

TASKS = ("mtl", "expr", "au", "va", "lsd", "dan")
_MODELS = {"mtl": "emma", "lsd": "cotex", "dan": "dan"}
_EXPR_TASKS, _AU_TASKS, _VA_TASKS = ("mtl", "expr", "lsd", "dan"), ("mtl", "au"), ("mtl", "va")


@dataclass(frozen=True)
class Sources:
    """Where a model's weights come from; None = random.

    Attributes:
        encoder: run, checkpoint or encoder.safetensors.
        cnn: run or checkpoint of a DAN.
    """

    encoder: Path | None = None
    cnn: Path | None = None


def model_kind(config: RunConfig) -> str:
    """The model of a task: `config.model`, or the task's own.

    Raises:
        ConfigError: a task or model that does not exist, or do not go together.
    """
    if config.task not in TASKS:
        raise ConfigError(f"task={config.task!r}: use one of {', '.join(TASKS)}")
    own = _MODELS.get(config.task, "vit")
    kind = config.model or own
    allowed = {own, "vit"} if config.task == "mtl" else {own}
    if kind not in allowed:
        raise ConfigError(f"model={kind!r}: task {config.task} takes {' or '.join(sorted(allowed))}")
    return kind


def make_prerequisites(config: RunConfig) -> int:
    """Makes the runs that a finetuning on the default faces starts from, where there are none, and says so.

    Returns:
        Exit status of a run that was stopped; 0 otherwise.

    Raises:
        ConfigError: a run is missing and the data are real: there it is for the user to choose.
    """
    for field, task, name in _needed(config):
        if latest(task) is not None:
            continue
        if config.data.shards:
            what = "a pretraining run" if task == "pretrain" else "a DAN"
            remedy = "INIT=… (or INIT=random)" if field == "init" else "CNN=…"
            raise ConfigError(
                f"task {config.task} starts from {what}, and there is none: give {remedy}, or make one with "
                f"`make {'pretrain' if task == 'pretrain' else 'finetune TASK=dan'} SHARDS=…`"
            )
        print(f"no {task} run to start from: making one on the default faces ({name})", flush=True)
        status = run_finetuning(load_config(name), name) if task == "dan" else _pretrain(name)
        if status:
            return status
    return 0


def _needed(config: RunConfig) -> Iterator[tuple[str, str, str]]:
    """(setting, task, configuration) of each run that this one starts from and that was not named."""
    kind = model_kind(config)
    if kind != "dan" and not config.init:
        yield "init", "pretrain", "pretrain_demo"
    if kind == "emma" and not config.cnn:
        yield "cnn", "dan", "dan_demo"


def _pretrain(name: str) -> int:
    from pipelines.pretraining import build_parts as build_pretraining

    return run_stage(load_config(name), name, build_pretraining)


def run_finetuning(config: RunConfig, name: str) -> int:
    """One finetuning run, what it starts from included; see `stage.run_stage`."""
    return make_prerequisites(config) or run_stage(config, name, build_parts)


def find_sources(config: RunConfig) -> Sources:
    """The runs that a model starts from.

    Raises:
        ConfigError: none was named and none was made.
    """
    found: dict[str, Path | None] = {"encoder": None, "cnn": None}
    kind = model_kind(config)
    if kind != "dan" and config.init != "random":
        found["encoder"] = Path(config.init) if config.init else latest("pretrain")
        if found["encoder"] is None:
            raise ConfigError("no pretraining run to start from: give init=RUN, or init=random")
    if kind == "emma":
        found["cnn"] = Path(config.cnn) if config.cnn else latest("dan")
        if found["cnn"] is None:
            raise ConfigError(
                "EMMA needs a DAN: give cnn=RUN, or train one with `faceprior finetune dan_demo`"
            )
    return Sources(**found)


def plan_model(config: RunConfig, space: LabelSpace, sources: Sources) -> ModelSpec:
    """What a run's model is to be: its outputs are what the shards may be labelled with.

    Raises:
        ConfigError: the shards have none of the labels that the task learns.
    """
    task, kind = config.task, model_kind(config)
    spec = ModelSpec(
        kind=kind,
        image_size=config.encoder.image_size,
        expr=space.expr if task in _EXPR_TASKS else (),
        au=space.au if task in _AU_TASKS else (),
        va=space.va and task in _VA_TASKS,
        encoder=config.encoder,
        head=config.head,
        cotex=config.cotex,
        cnn_heads=config.dan.num_heads,
        stop_gradient=not config.affect.released,
        freeze_cnn=not config.affect.released,
        add_cnn=config.affect.add_cnn,
    )
    if not (spec.expr or spec.au or spec.va):
        raise ConfigError(f"task {task}: these shards have no label for it; see `faceprior doctor`")
    if sources.encoder is not None:
        facts = read_tensors(find_encoder(sources.encoder)).facts
        if facts.get("format") == "faceprior-encoder":
            saved = EncoderConfig(**facts["config"])
            spec = replace(
                spec,
                encoder=replace(saved, drop_path_rate=config.encoder.drop_path_rate),
                image_size=saved.image_size,
            )
    if sources.cnn is not None:
        dan = load_model(sources.cnn).spec
        if dan.kind != "dan":
            raise ConfigError(f"cnn={sources.cnn}: a model of kind {dan.kind}, not a DAN")
        spec = replace(spec, cnn_expr=dan.expr, cnn_heads=dan.cnn_heads)
    return spec


def start_model(spec: ModelSpec, sources: Sources, seed: int) -> nn.Module:
    """The model with the weights that it starts from.

    Raises:
        ConfigError: sizes that do not fit together.
        CheckpointError: weights that cannot be read.
    """
    try:
        model = build_model(spec, torch.Generator().manual_seed(seed))
        if sources.encoder is not None:
            tensors = read_tensors(find_encoder(sources.encoder)).tensors
            for encoder in encoders_of(model):
                load_foreign(encoder, tensors)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if sources.cnn is not None:
        assert isinstance(model, EMMA)
        dan = load_model(sources.cnn).model
        assert isinstance(dan, CenteredDAN)
        model.cnn.load_state_dict(dan.dan.state_dict())
    return model


def build_task(config: RunConfig, spec: ModelSpec) -> Task[Any, Batch]:
    """The losses of a run."""
    depth = spec.encoder.depth or _depth_of(spec)
    if spec.kind == "cotex":
        return CoTEXTask(config.cotex, depth, config.optim.layer_decay)
    if spec.kind == "dan":
        return DANTask(config.dan)
    detached = spec.kind == "emma" and spec.stop_gradient
    return AffectTask(config.affect, detached, depth, config.optim.layer_decay)


def _depth_of(spec: ModelSpec) -> int:
    if spec.kind == "dan":
        return 0
    with torch.device("meta"):
        from pretrain.encoder import build_encoder

        return len(build_encoder(spec.encoder).blocks)


def build_trainable(config: RunConfig) -> tuple[nn.Module, Task[Any, Batch]]:
    """Model and task alone, with random weights, for a dry run."""
    spec = plan_model(config, LabelSpace(), Sources())
    if spec.kind == "emma":
        spec = replace(spec, cnn_expr=LabelSpace().expr)
    return build_model(spec, torch.Generator().manual_seed(config.seed)), build_task(config, spec)


def build_parts(context: Context) -> Parts:
    """What finetuning brings to a run; see `stage.Parts`."""
    config, shards = context.config, context.splits.train
    sources = find_sources(config)
    spec = plan_model(config, shards.label_space, sources)
    model = start_model(spec, sources, config.seed)
    task = build_task(config, spec)
    alignment: list[Mapping[str, Any]] = [dict(manifest.alignment) for manifest in shards.manifests]
    facts = {
        "task": config.task,
        "alignment": alignment,
        "rendered": shards.rendered,
        "init": str(sources.encoder or "random"),
        "cnn": str(sources.cnn or ""),
    }

    def files() -> dict[str, TensorFile]:
        made = {"model": model_file(model, spec, facts)}
        for encoder in encoders_of(model)[:1]:
            made["encoder"] = encoder_file(encoder, spec.encoder, alignment, shards.rendered)
        return made

    def load(saved: Mapping[str, TensorFile]) -> None:
        try:
            model.load_state_dict(saved["model"].tensors, strict=True)
        except RuntimeError as error:
            raise CheckpointError(f"{context.run.path}: {error}") from error

    def batches(position: int) -> Iterator[Batch]:
        return train_batches(
            shards,
            build_order(config, shards),
            context.plan.layout,
            position,
            spec.image_size,
            AugmentConfig(config.crop, config.jitter),
            loader_workers(config.data.num_workers, context.device),
            with_labels=True,
            pin_memory=context.device.type == "cuda",
        )

    observer = AffectObserver(context, model, task, spec)
    return Parts(task, model, observer, files, load, batches)


def build_order(config: RunConfig, shards: ShardSet) -> Order:
    """Which sample comes when.

    Raises:
        ConfigError: an unknown order.
    """
    if config.data.order == "weighted":
        return WeightedOrder(inverse_frequency(shards.expr), config.seed)
    if config.data.order != "epoch":
        raise ConfigError(f"data.order={config.data.order!r}: use epoch or weighted")
    return EpochOrder(shards.shard_sizes, config.seed, config.data.window_shards)
