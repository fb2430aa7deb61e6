"""The finetuning stages: a pretrained encoder (for EMMA a DAN too) -> a model of affect."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from finetune.affect import AffectTask
from finetune.baselines import VGGFACE_STATS, is_timm_model, pixel_stats, timm_depth
from finetune.cotex_task import CoTEXTask
from finetune.dan import CenteredDAN
from finetune.dan_task import DANTask
from finetune.emma import EMMA
from finetune.emotionnet import INCEPTION
from finetune.mran_task import MRANTask
from pipelines.checkpoint import CheckpointError, TensorFile, encoder_file, find_encoder, read_tensors
from pipelines.config import ConfigError, RunConfig, load_config
from pipelines.cores import loader_workers
from pipelines.loop import build_accelerator
from pipelines.models import (
    BASELINES,
    ModelSpec,
    build_model,
    encoders_of,
    load_baseline,
    load_model,
    model_file,
    spec_from_facts,
)
from pipelines.processes import Processes
from pipelines.rundir import RunDir, latest
from pipelines.scoring import AffectObserver
from pipelines.stage import Context, Parts, run_path, run_stage
from pipelines.unread import refuse_unread
from pretrain.config import EncoderConfig
from pretrain.foreign import load_foreign
from pretrain.task import Task
from shards.clips import clip_train_batches
from shards.config import AugmentConfig
from shards.labels import AU12
from shards.order import EpochOrder, Order, WeightedOrder, inverse_frequency
from shards.records import LabelSpace
from shards.shardset import ShardSet
from shards.stream import train_batches

TASKS = ("mtl", "expr", "au", "va", "lsd", "dan", "mran")
_MODELS = {"mtl": "emma", "lsd": "cotex", "dan": "dan", "mran": "mran"}
_OTHERS = {"mtl": ("vit", "vggface", "emotionnet"), **dict.fromkeys(("expr", "au", "va"), ("vggface",))}
_EXPR_TASKS, _AU_TASKS, _VA_TASKS = ("mtl", "expr", "lsd", "dan"), ("mtl", "au"), ("mtl", "va", "mran")


@dataclass(frozen=True)
class Sources:
    """Where a model's weights come from; None = random.

    Attributes:
        encoder: run, checkpoint or encoder.safetensors.
        cnn: run or checkpoint of a DAN.
        published: the encoder's weights are those that timm publishes.
    """

    encoder: Path | None = None
    cnn: Path | None = None
    published: bool = False

    @property
    def start(self) -> str:
        """What the encoder starts from, in words."""
        return "published by timm" if self.published else str(self.encoder or "random")


def model_kind(config: RunConfig) -> str:
    """The kind of a task's model (`ModelSpec.kind`): what `config.model` says, or the task's own.

    Raises:
        ConfigError: a task or model that does not exist, or do not go together.
    """
    if config.task not in TASKS:
        raise ConfigError(f"task={config.task!r}: use one of {', '.join(TASKS)}")
    own = _MODELS.get(config.task, "vit")
    others = _OTHERS.get(config.task, ())
    if config.model in ("", own, *others):
        return config.model or own
    if others and is_timm_model(_timm_name(config)):
        return "timm"
    allowed = [own, *others, *(["the name of a timm model"] if others else [])]
    raise ConfigError(f"model={config.model!r}: task {config.task} takes {' or '.join(allowed)}")


def _timm_name(config: RunConfig) -> str:
    return config.model.removeprefix("timm:")


def make_prerequisites(config: RunConfig) -> int:
    """Makes the runs that a finetuning on the default faces starts from, where there are none, and says so.

    Returns:
        Exit status of a run that was stopped; 0 otherwise.

    Raises:
        ConfigError: a run is missing and the data are real: there it is for the user to choose.
    """
    needed = list(_needed(config))
    if not needed:
        return 0
    build_accelerator(config.train)  # starts the process group
    processes = Processes()
    for field, task, name in needed:
        if processes.agree(str(latest(task) or "")):
            continue
        if config.data.shards:
            what = "a pretraining run" if task == "pretrain" else "a DAN"
            remedy = "INIT=… (or INIT=random)" if field == "init" else "CNN=…"
            raise ConfigError(
                f"task {config.task} starts from {what}, and there is none: give {remedy}, or make one with "
                f"`make {'pretrain' if task == 'pretrain' else 'finetune TASK=dan'} SHARDS=…`"
            )
        if processes.is_main:
            print(f"no {task} run to start from: making one on the default faces ({name})", flush=True)
        # accelerate keeps the precision of a process's first run for all
        made = load_config(name, [f"train.precision={config.train.precision}"])
        status = run_finetuning(made, name) if task == "dan" else _pretrain(made, name)
        if status:
            return status
    return 0


def _needed(config: RunConfig) -> Iterator[tuple[str, str, str]]:
    """(setting, task, configuration) of each run that this one starts from and that was not named."""
    kind = model_kind(config)
    if _reads_encoder(config) and not config.init:
        yield "init", "pretrain", "pretrain_demo"
    if kind == "emma" and not config.cnn:
        yield "cnn", "dan", "dan_demo"


def _reads_encoder(config: RunConfig) -> bool:
    """Whether the model has a ViT that starts from a pretraining run."""
    kind = model_kind(config)
    return kind not in ("dan", *BASELINES) and (kind != "mran" or config.mran.encoder == "vit")


def _pretrain(config: RunConfig, name: str) -> int:
    from pipelines.pretraining import build_parts as build_pretraining

    return run_stage(config, name, build_pretraining)


def run_finetuning(config: RunConfig, name: str) -> int:
    """One finetuning run, what it starts from included; see `stage.run_stage` and `refuse_unread`."""
    refuse_unread(config, model_kind(config))
    goes_on = RunDir(run_path(config, name)).has_saved  # then its weights are its own
    return (0 if goes_on else make_prerequisites(config)) or run_stage(config, name, build_parts)


def find_sources(config: RunConfig) -> Sources:
    """The runs that a model starts from.

    Raises:
        ConfigError: none was named and none was made.
    """
    found: dict[str, Path | None] = {"encoder": None, "cnn": None}
    kind = model_kind(config)
    if kind in BASELINES:
        if kind == "vggface" and not config.init:
            raise ConfigError(
                "VGG-Face's weights do not come with faceprior: give init=FILE, which `faceprior import "
                "vgg_face_dag.pth FILE` makes of a .pth in torchvision's or VGG-Face's own names"
            )
        given = Path(config.init) if config.init not in ("", "random") else None
        return Sources(encoder=given, published=not config.init)
    if _reads_encoder(config) and config.init != "random":
        found["encoder"] = Path(config.init) if config.init else latest("pretrain")
        if found["encoder"] is None:
            raise ConfigError("no pretraining run to start from: give init=RUN, or init=random")
    if kind == "emma":
        found["cnn"] = Path(config.cnn) if config.cnn else latest("dan")
        if found["cnn"] is None:
            raise ConfigError(
                "EMMA needs a DAN: give cnn=RUN, or train one with `faceprior finetune dan_demo`"
            )
    return Sources(found["encoder"], found["cnn"])


def plan_model(config: RunConfig, space: LabelSpace, sources: Sources) -> ModelSpec:
    """What a run's model is to be: its outputs are what the shards may be labelled with.

    Raises:
        ConfigError: the shards have none of the labels that the task learns, or not those that its settings
            need.
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
        mran=config.mran,
        clip=config.clip,
        cnn_heads=config.dan.num_heads,
        stop_gradient=not (config.affect.released or config.affect.va_gradient),
        freeze_cnn=not config.affect.released,
        add_cnn=config.affect.add_cnn,
    )
    if kind in BASELINES:
        name = {"timm": _timm_name(config), "emotionnet": INCEPTION}.get(kind, "")
        stats = pixel_stats(name) if name else VGGFACE_STATS
        spec = replace(spec, timm_name=name, linear=config.baseline.linear, mean=stats.mean, std=stats.std)
    if kind == "mran":
        spec = replace(spec, clip=replace(config.clip, modalities=("color", *_guides(config))))
    if not (spec.expr or spec.au or spec.va):
        raise ConfigError(f"task {task}: these shards have no label for it; see `faceprior doctor`")
    if kind == "emma" and not (spec.expr or spec.au):
        raise ConfigError(
            "EMMA learns expressions or action units, and these shards have none: use model=vit"
        )
    if config.affect.released and spec.au and spec.au != AU12:
        raise ConfigError(
            f"affect.preset=released weighs {', '.join(AU12)}; these shards have {', '.join(spec.au)}: "
            "use affect.preset=paper"
        )
    if len(config.affect.au_pos_weight) not in (0, len(spec.au)):
        raise ConfigError(
            f"affect.au_pos_weight has {len(config.affect.au_pos_weight)} weights, and the action units are "
            f"{len(spec.au)}: {', '.join(spec.au)}"
        )
    if sources.encoder is not None and kind not in BASELINES:
        facts = read_tensors(find_encoder(sources.encoder)).facts
        if facts.get("format") == "faceprior-encoder":
            saved = EncoderConfig(**facts["config"])
            spec = replace(
                spec,
                encoder=replace(
                    saved,
                    drop_path_rate=config.encoder.drop_path_rate,
                    patch_drop_rate=config.encoder.patch_drop_rate,
                ),
                image_size=saved.image_size,
            )
    if sources.cnn is not None:
        dan = load_model(sources.cnn).spec
        if dan.kind != "dan":
            raise ConfigError(f"cnn={sources.cnn}: a model of kind {dan.kind}, not a DAN")
        size = () if dan.image_size == spec.image_size else dan.image_size
        spec = replace(spec, cnn_expr=dan.expr, cnn_heads=dan.cnn_heads, cnn_size=size)
    return spec


def _guides(config: RunConfig) -> tuple[str, ...]:
    """The modalities beside colour that MRAN reads."""
    return config.mran.modalities if config.mran.guided else ()


def start_model(spec: ModelSpec, sources: Sources, seed: int) -> nn.Module:
    """The model with the weights that it starts from.

    Raises:
        ConfigError: sizes that do not fit together, or weights that are not to be had.
        CheckpointError: weights that cannot be read.
    """
    try:
        model = build_model(spec, torch.Generator().manual_seed(seed), sources.published)
        if sources.encoder is not None and spec.kind in BASELINES:
            load_baseline(model, spec, sources.encoder)
        elif sources.encoder is not None:
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


def build_task(config: RunConfig, spec: ModelSpec) -> Task[Any, Any]:
    """The losses of a run.

    Raises:
        ConfigError: layer decay in a model without layers.
    """
    depth = _depth_of(spec)
    if spec.kind in BASELINES and not depth and config.optim.layer_decay != 1:
        raise ConfigError(
            f"optim.layer_decay={config.optim.layer_decay}: {spec.timm_name or spec.kind} is not a plain ViT "
            "and learns at one rate: set it to 1"
        )
    if spec.kind == "cotex":
        return CoTEXTask(config.cotex, depth, config.optim.layer_decay)
    if spec.kind == "dan":
        return DANTask(config.dan)
    if spec.kind == "mran":
        return MRANTask(config.mran, depth, config.optim.layer_decay)
    has_va = spec.va or spec.kind in ("emma", "emotionnet")  # these two always
    detached = spec.stop_gradient if spec.kind == "emma" else not has_va
    return AffectTask(config.affect, detached, depth, config.optim.layer_decay)


def _depth_of(spec: ModelSpec) -> int:
    if spec.kind == "timm":
        return timm_depth(spec.timm_name)
    if spec.kind in ("dan", *BASELINES) or (spec.kind == "mran" and spec.mran.encoder != "vit"):
        return 0
    if spec.encoder.depth:
        return spec.encoder.depth
    with torch.device("meta"):
        from pretrain.encoder import build_encoder

        return len(build_encoder(spec.encoder).blocks)


def build_trainable(config: RunConfig) -> tuple[nn.Module, Task[Any, Any]]:
    """Model and task alone, with random weights, for a dry run; see `refuse_unread`."""
    refuse_unread(config, model_kind(config))
    spec = plan_model(config, LabelSpace(), Sources())
    if spec.kind == "emma":
        spec = replace(spec, cnn_expr=LabelSpace().expr)
    return build_model(spec, torch.Generator().manual_seed(config.seed)), build_task(config, spec)


def build_parts(context: Context) -> Parts:
    """What finetuning brings to a run; see `stage.Parts`."""
    config, shards = context.config, context.splits.train
    spec, model, origin = _resume_model(context) if context.saved else _begin_model(context)
    if context.splits.val is not None:
        _check_held_out(spec, context.splits.val.label_space)
    for encoder in encoders_of(model):
        encoder.set_grad_checkpointing(config.train.grad_checkpointing)
    task = build_task(config, spec)
    alignment: list[Mapping[str, Any]] = [dict(manifest.alignment) for manifest in shards.manifests]
    facts = {
        "task": config.task,
        "alignment": alignment,
        "rendered": shards.rendered,
        **origin,
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

    def batches(position: int) -> Iterator[Any]:
        order, layout = build_order(config, shards), context.plan.layout
        augmentation = AugmentConfig(config.crop, config.jitter)
        workers = loader_workers(config.data.num_workers, context.device)
        pin = context.device.type == "cuda"
        if spec.kind == "mran":
            return clip_train_batches(
                shards, order, layout, position, spec.image_size, spec.clip, augmentation, workers, pin
            )
        return train_batches(
            shards,
            order,
            layout,
            position,
            spec.image_size,
            augmentation,
            workers,
            with_labels=True,
            pin_memory=pin,
        )

    observer = AffectObserver(context, model, task, spec)
    return Parts(task, model, observer, files, load, batches)


def _begin_model(context: Context) -> tuple[ModelSpec, nn.Module, dict[str, str]]:
    """A new run's model with the weights that it starts from, and in words where they come from."""
    sources = find_sources(context.config)
    spec = plan_model(context.config, context.splits.train.label_space, sources)
    model = start_model(spec, sources, context.config.seed)
    return spec, model, {"init": sources.start, "cnn": str(sources.cnn or "")}


def _resume_model(context: Context) -> tuple[ModelSpec, nn.Module, dict[str, str]]:
    """The same of a run that goes on: what it started from need not be there any more, or may be another."""
    facts = context.saved["model"]
    spec = spec_from_facts(facts["spec"])
    model = build_model(spec, torch.Generator().manual_seed(context.config.seed))
    return spec, model, {name: str(facts[name]) for name in ("init", "cnn")}


def _check_held_out(spec: ModelSpec, space: LabelSpace) -> None:
    """Raises ConfigError where the held-out faces are labelled by other names than those that are learned."""
    for part in ("expr", "au"):
        learned, held_out = getattr(spec, part), getattr(space, part)
        if learned and learned != held_out:
            raise ConfigError(
                f"the held-out faces name their {part} classes {', '.join(held_out) or 'not at all'}, those "
                f"to learn from {', '.join(learned)}: build both splits with the same names"
            )


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
