"""One typed configuration: defaults < YAML file < `key=value`.

Every value arrives as text and is read by the type of the field it is for, so `run=007` stays "007" and
`flag=2` is an error. A key that does not exist is an error that says which one was probably meant.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from finetune.config import (
    AffectConfig,
    BaselineConfig,
    CoTEXConfig,
    DANLossConfig,
    HeadConfig,
    MRANConfig,
)
from pipelines.dataconfig import DataConfig, free
from pretrain.config import EncoderConfig, MAEConfig
from shards.config import ClipConfig, CropConfig, JitterConfig

CONFIGS = Path(__file__).parent / "configs"
_MAX_DEPTH = 20  # of a YAML file; settings have three levels


class ConfigError(Exception):
    """A setting that cannot be used; names the setting, the value and the remedy."""


def _check(config: Any, group: str, names: Sequence[str], positive: bool = False) -> None:
    """Raises ConfigError unless the named fields are finite and at least 0, or above 0."""
    for name in names:
        value = getattr(config, name)
        if not math.isfinite(value) or value < 0 or (positive and value == 0):
            raise ConfigError(f"{group}.{name}={value}: must be a number {'above' if positive else 'from'} 0")


@dataclass(frozen=True)
class OptimConfig:
    """AdamW, and the learning rate as a function of the global step (He et al. 2022).

    Attributes:
        base_lr: per 256 samples; lr = base_lr · global_batch_size / 256.
        min_lr: at the end of the cosine.
        warmup_epochs: of linear warm-up from 0.
        weight_decay: on every parameter that its task does not exempt.
        beta1, beta2, eps: of AdamW.
        clip_grad: largest global gradient norm; 0 = no clipping.
        layer_decay: in finetuning, factor on the rate from a ViT's layer to its earlier one.
        schedule: after the warm-up, "cosine" to `min_lr`, or "exponential": times `gamma` after each epoch.
        gamma: of the exponential schedule.
    """

    base_lr: float = 1.5e-4
    min_lr: float = 0.0
    warmup_epochs: float = 40.0
    weight_decay: float = 0.05
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    clip_grad: float = 0.0
    layer_decay: float = 1.0
    schedule: str = "cosine"
    gamma: float = 0.6

    def __post_init__(self) -> None:
        _check(self, "optim", ("eps", "gamma"), positive=True)
        _check(self, "optim", ("base_lr", "min_lr", "warmup_epochs", "weight_decay", "clip_grad"))
        if self.schedule not in ("cosine", "exponential"):
            raise ConfigError(f"optim.schedule={self.schedule!r}: use cosine or exponential")
        if not 0 < self.layer_decay <= 1:
            raise ConfigError(f"optim.layer_decay={self.layer_decay}: must lie in (0, 1]")


@dataclass(frozen=True)
class TrainConfig:
    """How long, in what portions, and what is kept.

    Attributes:
        epochs: length of the training.
        global_batch_size: samples to an optimiser step, over all processes and accumulated micro-batches.
        batch_size: largest micro-batch of one process; 0 = its whole share. Accumulation follows from it.
        precision: "fp32" or "bf16".
        compile: torch.compile the model.
        grad_checkpointing: compute activations again in the backward pass: less memory, more time.
        nonfinite: what to do where loss or gradient is not finite (that update is never made): "stop", or
            "skip".
        max_skipped: stop after so many skipped updates.
        log_every: steps between lines of metrics.jsonl.
        save_every: steps between checkpoints; 0 = only at the end.
        save_minutes: also save after so many minutes; 0 = not.
        keep: newest checkpoints kept (at least 2).
        keep_every: keep every checkpoint whose step is a multiple of this; 0 = none.
        stop_at_step: stop cleanly there, as after a signal; 0 = not.
        tensorboard: write TensorBoard files too.
        threads: of torch on a CPU; 0 = as many as the cores of this process's share.
    """

    epochs: float = free(800.0)
    global_batch_size: int = 4096
    batch_size: int = free(0)
    precision: str = "fp32"
    compile: bool = free(False)
    grad_checkpointing: bool = free(False)
    nonfinite: str = free("stop")
    max_skipped: int = free(10)
    log_every: int = free(20)
    save_every: int = free(1000)
    save_minutes: float = free(15.0)
    keep: int = free(2)
    keep_every: int = free(0)
    stop_at_step: int = free(0)
    tensorboard: bool = free(False)
    threads: int = free(0)

    def __post_init__(self) -> None:
        _check(self, "train", ("epochs", "global_batch_size", "log_every"), positive=True)
        counts = ("batch_size", "max_skipped", "save_every", "save_minutes", "keep", "keep_every")
        _check(self, "train", (*counts, "stop_at_step", "threads"))
        if self.precision not in ("fp32", "bf16"):
            raise ConfigError(f"train.precision={self.precision!r}: use fp32 or bf16")
        if self.nonfinite not in ("stop", "skip"):
            raise ConfigError(f"train.nonfinite={self.nonfinite!r}: use stop or skip")


@dataclass(frozen=True)
class EvalConfig:
    """What is measured and drawn during training.

    Attributes:
        every: steps between evaluations; 0 = only at the end.
        batch_size: of the evaluation.
        max_samples: held-out samples scored; 0 = all. A finetuning's last evaluation takes all.
        probe_train, probe_val: labelled samples for the ridge and kNN probes; 0 = no probes.
        pictures: faces drawn as original | masked | reconstruction | pasted.
    """

    every: int = free(0)
    batch_size: int = free(64)
    max_samples: int = free(2000)
    probe_train: int = free(2000)
    probe_val: int = free(1000)
    pictures: int = free(10)

    def __post_init__(self) -> None:
        _check(self, "eval", ("batch_size",), positive=True)
        _check(self, "eval", ("every", "max_samples", "probe_train", "probe_val", "pictures"))


@dataclass(frozen=True)
class RunConfig:
    """Everything a run is.

    Attributes:
        task: what is trained: "pretrain"; "mtl" (expressions, action units, valence/arousal), "expr", "au",
            "va"; "lsd" (expressions by CoTEX); "dan"; "mran" (valence/arousal of clips).
        model: of a task that has several (mtl, expr, au, va): "emma" (mtl), "vit", the name of a timm model
            ("resnet50.tv_in1k"; "timm:vit" where it might be one of these), "vggface", "emotionnet" (mtl);
            "" = the task's own (mtl: emma; lsd: cotex; dan: dan; mran: mran; others: vit).
        run: run directory; "" = runs/<task>/<name of the config>.
        seed: of order, crops, masks and initial weights.
        init: a run, checkpoint or imported encoder to start from; "random" = random weights; "" = for
            pretraining random weights, for finetuning the last pretraining run, for a timm model and
            EmotionNet the weights that timm publishes.
        cnn: EMMA's DAN: a run or checkpoint; "" = the last DAN run.
    """

    task: str = "pretrain"
    model: str = ""
    run: str = free("")
    seed: int = 0
    init: str = ""
    cnn: str = ""
    data: DataConfig = field(default_factory=DataConfig)
    crop: CropConfig = field(default_factory=CropConfig)
    jitter: JitterConfig = field(default_factory=JitterConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    mae: MAEConfig = field(default_factory=MAEConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    affect: AffectConfig = field(default_factory=AffectConfig)
    cotex: CoTEXConfig = field(default_factory=CoTEXConfig)
    baseline: BaselineConfig = field(default_factory=BaselineConfig)
    dan: DANLossConfig = field(default_factory=DANLossConfig)
    clip: ClipConfig = field(default_factory=ClipConfig)
    mran: MRANConfig = field(default_factory=MRANConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)

    @property
    def data_kind(self) -> str:
        """What it learns from: "faces" or "clips"."""
        return "clips" if self.task == "mran" else "faces"


def load_config(name: str = "", overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration of a run.

    Args:
        name: a YAML file, or the name of one that comes with faceprior ("pretrain_demo"); "" = defaults.
        overrides: `key=value` texts, dots between levels.

    Raises:
        ConfigError: an unknown key, a value of the wrong type, or an interpolation that reads the
            environment.
    """
    values: dict[str, Any] = {}
    if name:
        path = find_config(name)
        _spread(_read_yaml(path), "", values, str(path))
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise ConfigError(f"{text!r}: settings are written key=value, as in train.epochs=10")
        values[key] = (value, "command line")
    given: dict[str, Any] = {}
    for key, (value, where) in values.items():
        *groups, last = key.split(".")
        inner = given
        for group in groups:
            inner = inner.setdefault(group, {})
        inner[last] = read_value(value, _field_type(key, where), key, where)
    try:
        built = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(RunConfig), given))
    except (OmegaConfBaseException, ValueError) as error:
        raise ConfigError(str(error).splitlines()[0]) from error
    assert isinstance(built, RunConfig)
    return built


def check_schedule(config: RunConfig) -> None:
    """Refuses a warm-up as long as the training, which a shortened run easily has.

    Raises:
        ConfigError: the learning rate would never reach its peak.
    """
    if config.train.epochs <= config.optim.warmup_epochs:
        raise ConfigError(
            f"optim.warmup_epochs={config.optim.warmup_epochs:g} is not less than "
            f"train.epochs={config.train.epochs:g}: the learning rate would never reach its peak; lower it"
        )


def find_config(name: str) -> Path:
    """The file of a configuration: a path, or the name of one that comes with faceprior.

    Raises:
        ConfigError: neither; lists the names there are.
    """
    for path in (Path(name), CONFIGS / f"{name}.yaml"):
        if path.is_file():
            return path
    names = ", ".join(sorted(str(path.relative_to(CONFIGS))[:-5] for path in CONFIGS.rglob("*.yaml")))
    raise ConfigError(f"no configuration {name!r}: give a YAML file, or one of {names}")


def to_yaml(config: RunConfig) -> str:
    """The whole configuration as YAML: read back by `load_config`, it gives the same."""
    return str(OmegaConf.to_yaml(OmegaConf.structured(config)))


def differences(old: RunConfig, new: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Settings that differ and may change results: dotted key -> (old, new)."""
    return {
        key: (a, b)
        for (key, a, free), (_, b, _) in zip(leaves(old), leaves(new), strict=True)
        if a != b and not free
    }


def leaves(config: Any, prefix: str = "") -> list[tuple[str, Any, bool]]:
    """Every setting of a configuration: dotted key, value, and whether a resumed run may change it."""
    found: list[tuple[str, Any, bool]] = []
    for part in dataclasses.fields(config):
        value = getattr(config, part.name)
        if dataclasses.is_dataclass(value):
            found += leaves(value, f"{prefix}{part.name}.")
        else:
            value = tuple(value) if isinstance(value, list) else value
            found.append((prefix + part.name, value, bool(part.metadata.get("free"))))
    return found


def _read_yaml(path: Path) -> Mapping[str, Any]:
    """The file as nested mappings of texts: no tags, no guessing of types."""
    try:
        text = path.read_text()
        depth = 0
        for event in yaml.parse(text, Loader=yaml.BaseLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent):  # a few lines of them can stand for billions of settings
                raise yaml.YAMLError(f"*{event.anchor}: aliases are not read; write it out")
            if depth > _MAX_DEPTH:
                raise yaml.YAMLError(f"nested more than {_MAX_DEPTH} deep")
        data = yaml.load(text, Loader=yaml.BaseLoader)  # builds texts, lists and mappings only
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: not readable as YAML: {error}") from error
    if data in (None, ""):
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: must be a mapping of settings")
    return data


def _spread(data: Mapping[str, Any], prefix: str, into: dict[str, Any], where: str) -> None:
    for key, value in data.items():
        if isinstance(value, dict):
            _spread(value, f"{prefix}{key}.", into, where)
        else:
            into[prefix + str(key)] = (value, where)


def _field_type(key: str, where: str) -> Any:
    """The declared type of a dotted key.

    Raises:
        ConfigError: no such key; suggests the nearest.
    """
    kind: Any = RunConfig
    for name in key.split("."):
        hints = get_type_hints(kind) if dataclasses.is_dataclass(kind) else {}
        if name not in hints:
            known = [leaf for leaf, _, _ in leaves(RunConfig())]
            near = difflib.get_close_matches(key, known, 1, 0.5) or [
                leaf for leaf in known if leaf.split(".")[-1] == key.split(".")[-1]
            ]
            hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(sorted(hints) or known)}"
            raise ConfigError(f"{where}: unknown setting {key!r}; {hint}")
        kind = hints[name]
    if dataclasses.is_dataclass(kind):
        raise ConfigError(f"{where}: {key} is a group of settings: set {key}.<name>=<value>")
    return kind


def read_value(value: Any, kind: Any, key: str, where: str) -> Any:
    """A text, or list of texts, as a value of type `kind`.

    Raises:
        ConfigError: not a value of that type.
    """
    options = [k for k in get_args(kind) if k is not type(None)] if _is_union(kind) else [kind]
    if _is_union(kind) and len(options) < len(get_args(kind)) and value in ("null", "None", "none", ""):
        return None
    for option in options:
        try:
            return _read_one(value, option)
        except (ValueError, TypeError):
            continue
    raise ConfigError(f"{where}: {key}={value!r:.80} is not {_kind_name(kind)}")


def _read_one(value: Any, kind: Any) -> Any:
    if get_origin(kind) in (tuple, list, Sequence):
        parts = value if isinstance(value, list) else [v.strip() for v in value.strip("[]()").split(",")]
        inner = get_args(kind)
        if inner == (int, int) and len(parts) == 1:
            parts = parts * 2  # image_size=112 means a square
        if get_origin(kind) is tuple and inner[-1] is not Ellipsis and len(inner) != len(parts):
            raise ValueError
        return [_read_one(part, inner[0]) for part in parts if part != ""]
    if not isinstance(value, str):
        raise TypeError
    if "${" in value:
        raise ValueError
    if kind is bool:
        if value.lower() not in ("true", "false"):
            raise ValueError
        return value.lower() == "true"
    if kind is int:
        return int(value)
    if kind is float:
        return float(value)
    if kind is str:
        return value
    raise TypeError(kind)


def _is_union(kind: Any) -> bool:
    return get_origin(kind) in (typing.Union, type(int | str))


def _kind_name(kind: Any) -> str:
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "plain text (no ${…})"}
    if _is_union(kind):
        return " or ".join(_kind_name(k) for k in get_args(kind) if k is not type(None))
    if get_origin(kind) in (tuple, list, Sequence):
        return "a list like [112, 112]"
    return names.get(kind, str(kind))
