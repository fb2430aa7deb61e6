"""Finetuning as it is run: prerequisites, models and files of every task, resuming, and layouts of a step."""

from __future__ import annotations

import csv
import functools
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from finetune.affect import AffectTask
from finetune.config import AffectConfig, CoTEXConfig
from finetune.cotex_task import CoTEXTask
from finetune.dan import CenteredDAN
from finetune.emma import EMMA
from pipelines import config as config_module
from pipelines import data as data_module
from pipelines.checkpoint import CheckpointError, load_encoder
from pipelines.config import ConfigError, OptimConfig, RunConfig, TrainConfig, load_config
from pipelines.finetuning import (
    Sources,
    build_order,
    build_task,
    build_trainable,
    find_sources,
    make_prerequisites,
    model_kind,
    plan_model,
    run_finetuning,
    start_model,
)
from pipelines.loop import Trainee, build_accelerator, train_step
from pipelines.models import load_model
from pipelines.optim import learning_rate, param_groups
from pipelines.processes import Processes
from pipelines.report import write_report
from pipelines.rundir import latest
from shards.labels import AU12, EXPR8
from shards.order import EpochOrder, WeightedOrder
from shards.records import LabelSpace, SourceInfo
from shards.shardset import open_shards
from shards.stream import Layout
from tests.finetune.tiny import faces, portions, run_step, take, tiny_cotex, tiny_dan, tiny_emma, tiny_vit
from tests.pipelines.launched import free_port
from tests.pipelines.tiny import TINY, TINY_MAE, TINY_RUN, last_checkpoint, losses, metrics, weights
from tests.shards.faces import build_smooth

RUN = [
    "optim.base_lr=0.02",
    "jitter.probability=0.5",
    "train.epochs=1",
    "train.batch_size=8",
    "train.save_every=0",
]
VIT = ["encoder.drop_path_rate=0.3", "head.readout=flat", "head.readout_dim=4", "optim.layer_decay=0.75"]
FINETUNE = [*RUN, *VIT, "encoder.patch_drop_rate=0.25", "head.hidden_dim=16"]
LSD = [*TINY, *RUN, *VIT, "cotex.mask_ratio=0.5"]
DAN = [*TINY_RUN, *RUN, "encoder.image_size=32", "dan.num_heads=1"]
OWN = {"lsd": LSD, "dan": DAN}
TINY_FILES = {
    "pretrain_demo": [*TINY_MAE, "train.epochs=1", "train.save_every=0"],
    "dan_demo": ["task=dan", "data.order=weighted", *DAN],
}


def settings_of(task: str, shards: Path | str, *more: str) -> RunConfig:
    """A tiny finetuning; its run is runs/<task>/tiny unless `more` says otherwise."""
    return load_config(
        "", [*OWN.get(task, [*TINY, *FINETUNE]), f"task={task}", f"data.shards={shards}", *more]
    )


@dataclass(frozen=True)
class Made:
    """A folder in which one command made all that it needed.

    Attributes:
        folder: the working directory.
        said: what it printed.
    """

    folder: Path
    said: str

    def run(self, task: str) -> Path:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(self.folder)
            found = latest(task)
        assert found is not None
        return found


def report_of_mtl_alone(runs: Sequence[Path]) -> Path:
    """Reports take longer than these runs: one is written, EMMA's."""
    return write_report(runs) if runs[0].parent.name == "mtl" else runs[0] / "report.html"


@pytest.fixture(scope="module")
def made(smooth: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """`faceprior finetune mtl` where there is nothing yet; the default faces are the smooth pictures here."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "configs").mkdir()
    for name, settings in TINY_FILES.items():
        (folder / "configs" / f"{name}.yaml").write_text(
            "\n".join(": ".join(setting.split("=")) for setting in nested(settings))
        )
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("pipelines.report.write_report", report_of_mtl_alone)
        patch.setattr(config_module, "CONFIGS", folder / "configs")
        patch.setattr(data_module, "default_set", lambda kind: smooth)
        patch.setattr(data_module, "make_default", lambda kind: smooth)
        patch.setattr("builtins.print", lambda *words, **_: said.append(" ".join(map(str, words))))
        torch.set_num_threads(1)
        assert run_finetuning(settings_of("mtl", ""), "tiny") == 0
    return Made(folder, "\n".join(said))


def nested(settings: list[str]) -> Iterator[str]:
    """`a.b=c` lines as YAML, group by group; a later setting of a name holds."""
    groups: dict[str, dict[str, str]] = {}
    for setting in settings:
        name, _, value = setting.partition("=")
        group, _, last = name.rpartition(".")
        groups.setdefault(group, {})[last] = value
    for group, values in groups.items():
        if group:
            yield f"{group}="
        for last, value in values.items():
            yield f"{'  ' if group else ''}{last}={value}"


@pytest.fixture
def sources(made: Made) -> list[str]:
    """The settings that name the pretrained encoder and the DAN."""
    return [f"init={made.run('pretrain')}", f"cnn={made.run('dan')}"]


def rows_of(run: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((run / "predictions" / "val.csv").read_text().splitlines()))


def check_predictions(run: Path, heads: set[str]) -> None:
    """Every key once, with outputs of these heads and no others."""
    rows = rows_of(run)
    assert [row["key"] for row in rows] == [f"val-{i:04d}" for i in range(30)]
    filled = {name for name in rows[0] if name.startswith("pred.") and all(row[name] for row in rows)}
    assert filled == {name for name in rows[0] if name.startswith(tuple(f"pred.{head}" for head in heads))}
    assert filled
    expected = {f"val-{i:04d}": EXPR8[(1000 + i) % 8] if (1000 + i) % 7 else "" for i in range(30)}
    assert {row["key"]: row["expr"] for row in rows} == expected


def held_out(run: Path) -> dict[str, float]:
    (row,) = [row for row in metrics(run) if row["kind"] == "eval"]
    return {name: value for name, value in row.items() if name.startswith("val_")}


# ---- prerequisites


def test_emma_alone_makes_the_encoder_and_the_dan_that_it_starts_from_and_says_so(made: Made) -> None:
    assert "no pretrain run to start from: making one on the default faces" in made.said
    assert "no dan run to start from: making one on the default faces" in made.said
    assert made.run("pretrain").name == "pretrain_demo" and made.run("dan").name == "dan_demo"
    loaded = load_model(made.run("mtl"))
    assert isinstance(loaded.model, EMMA) and loaded.spec.cnn_expr == EXPR8
    dan = load_model(made.run("dan")).model
    assert isinstance(dan, CenteredDAN)
    assert all(torch.equal(t, dan.dan.state_dict()[n]) for n, t in loaded.model.cnn.state_dict().items())
    assert loaded.facts["init"] == str(made.run("pretrain")) and loaded.facts["cnn"] == str(made.run("dan"))


def test_what_is_there_is_not_made_again(made: Made, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(made.folder)
    before = made.run("pretrain").stat().st_mtime_ns
    assert make_prerequisites(settings_of("mtl", "")) == 0
    assert capsys.readouterr().out == "" and made.run("pretrain").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("task", "more", "message"),
    [
        ("mtl", [], r"task mtl starts from a pretraining run.*INIT=….*INIT=random.*make pretrain SHARDS=…"),
        ("lsd", [], r"task lsd starts from a pretraining run.*give INIT=…"),
        ("mtl", ["init=random"], r"task mtl starts from a DAN.*give CNN=….*make finetune TASK=dan SHARDS=…"),
    ],
)
def test_on_real_faces_a_missing_prerequisite_is_an_error_with_the_remedy(
    smooth: Path, task: str, more: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run_finetuning(settings_of(task, smooth, *more), "tiny")
    assert not Path("runs").exists()


def test_a_source_that_is_not_there_is_named(smooth: Path, made: Made) -> None:
    with pytest.raises(CheckpointError, match="elsewhere: no checkpoint there"):
        run_finetuning(settings_of("expr", smooth, "init=elsewhere"), "tiny")
    mixed_up = [f"init={made.run('pretrain')}", f"cnn={made.run('mtl')}"]
    with pytest.raises(ConfigError, match="a model of kind emma, not a DAN"):
        run_finetuning(settings_of("mtl", smooth, *mixed_up), "tiny")


# ---- runs


def test_emmas_run_scores_every_held_out_face_once(made: Made) -> None:
    run = made.run("mtl")
    check_predictions(run, {"expr", "au", "valence", "arousal"})
    figures = held_out(run)
    parts = (figures["val_ccc_valence"] + figures["val_ccc_arousal"]) / 2
    parts += figures["val_expr_macro_f1"] + figures["val_au_f1"]
    assert figures["val_score"] == pytest.approx(parts, abs=1e-6)
    assert list(losses(run)) == list(range(1, 7))
    names = {path.name for path in last_checkpoint(run).iterdir()}
    assert names >= {"encoder.safetensors", "model.safetensors", "optimizer.safetensors", "manifest.json"}
    assert "<html" in (run / "report.html").read_text()


def test_the_finetuned_encoder_starts_as_the_pretrained_and_is_saved_trained(made: Made) -> None:
    start, end = load_encoder(made.run("pretrain")).state_dict(), load_encoder(made.run("mtl")).state_dict()
    inside = load_model(made.run("mtl")).model.encoder.state_dict()  # type: ignore[union-attr]
    assert all(torch.equal(tensor, inside[name]) for name, tensor in end.items())
    assert all(not torch.equal(tensor, end[name]) for name, tensor in start.items())
    config = settings_of("mtl", "", f"init={made.run('pretrain')}", f"cnn={made.run('dan')}")
    spec = plan_model(config, LabelSpace(), find_sources(config))
    model = start_model(spec, find_sources(config), 0)
    assert isinstance(model, EMMA)
    assert all(torch.equal(tensor, start[name]) for name, tensor in model.encoder.state_dict().items())


def test_the_dan_has_no_encoder_file(made: Made) -> None:
    names = {path.name for path in last_checkpoint(made.run("dan")).iterdir()}
    assert "model.safetensors" in names and "encoder.safetensors" not in names
    check_predictions(made.run("dan"), {"expr"})


def test_cotex_trains_from_the_same_encoder_twice(smooth: Path, sources: list[str], tmp_path: Path) -> None:
    assert run_finetuning(settings_of("lsd", smooth, sources[0], "run=lsd"), "tiny") == 0
    check_predictions(Path("lsd"), {"expr"})
    rows = [row for row in metrics(Path("lsd")) if row["kind"] == "train"]
    assert len(rows) == 6 and all(row["loss_js"] >= 0 for row in rows)
    model = load_model(Path("lsd")).model
    assert all(
        torch.equal(tensor, model.views[0].encoder.state_dict()[name])  # type: ignore[union-attr, index]
        for name, tensor in load_encoder(Path("lsd")).state_dict().items()
    )
    assert held_out(Path("lsd"))["val_score"] == held_out(Path("lsd"))["val_expr_macro_f1"]


@pytest.mark.parametrize("model", ["vit", "emma"])
def test_stopped_and_resumed_is_bit_identical(
    smooth: Path, made: Made, sources: list[str], model: str
) -> None:
    """For EMMA the run of `made` is the one that nothing interrupted: the same faces, encoder and DAN."""
    whole, stopped = made.run("mtl"), Path("stopped")
    more = sources
    if model == "vit":
        whole, more = Path("whole"), [sources[0], "model=vit"]
        assert run_finetuning(settings_of("mtl", smooth, *more, "run=whole"), "tiny") == 0
    config = settings_of("mtl", smooth, *more, "run=stopped")
    for step in (2, 5) if model == "vit" else (3,):
        part = replace(config, train=replace(config.train, stop_at_step=step))
        assert run_finetuning(part, "tiny") == 0
        assert not (stopped / "predictions").exists()
    assert run_finetuning(config, "tiny") == 0
    assert weights(stopped) == weights(whole)
    assert losses(stopped) == losses(whole) and len(losses(whole)) == 6
    assert rows_of(stopped) == rows_of(whole)
    check_predictions(stopped, {"expr", "au", "valence", "arousal"})


def test_the_released_preset_lets_dans_statistics_move_and_nothing_else_of_it(
    smooth: Path, made: Made, sources: list[str]
) -> None:
    config = settings_of("mtl", smooth, *sources, "affect.preset=released", "run=released")
    assert run_finetuning(config, "tiny") == 0
    loaded, dan = load_model(Path("released")), load_model(made.run("dan")).model
    assert isinstance(loaded.model, EMMA) and isinstance(dan, CenteredDAN)
    assert not loaded.spec.stop_gradient and not loaded.spec.freeze_cnn
    before = dan.dan.state_dict()
    moved = {n for n, t in loaded.model.cnn.state_dict().items() if not torch.equal(t, before[n])}
    assert moved == {name for name, _ in dan.dan.named_buffers() if not name.startswith("pixels")}


# ---- what a model is to be


def test_each_task_has_its_heads_and_model(smooth: Path) -> None:
    expected = {
        "mtl": ("emma", EXPR8, AU12, True),
        "expr": ("vit", EXPR8, (), False),
        "au": ("vit", (), AU12, False),
        "va": ("vit", (), (), True),
        "lsd": ("cotex", EXPR8, (), False),
        "dan": ("dan", EXPR8, (), False),
    }
    for task, (kind, expr, au, va) in expected.items():
        spec = plan_model(settings_of(task, smooth), LabelSpace(), Sources())
        assert (spec.kind, spec.expr, spec.au, spec.va) == (kind, expr, au, va)
    for task in ("au", "va"):
        config = settings_of(task, smooth, "init=random", f"run={task}", "train.epochs=0.6")
        assert run_finetuning(config, "tiny") == 0
        check_predictions(Path(task), {"au"} if task == "au" else {"valence", "arousal"})


def test_the_saved_encoder_decides_the_size_and_the_config_what_is_dropped(sources: list[str]) -> None:
    rates = ["encoder.drop_path_rate=0.2", "encoder.patch_drop_rate=0.5"]
    config = load_config("", ["task=expr", sources[0], *rates])
    spec = plan_model(config, LabelSpace(), find_sources(config))
    assert spec.image_size == spec.encoder.image_size == (32, 32)
    assert (spec.encoder.depth, spec.encoder.embed_dim) == (2, 32)
    assert (spec.encoder.drop_path_rate, spec.encoder.patch_drop_rate) == (0.2, 0.5)


def test_what_a_token_is_made_of_is_the_encoders_own(smooth: Path) -> None:
    settings = ["init=random", "encoder.patch_embedding=hog", "run=one", "train.epochs=0.6"]
    assert run_finetuning(settings_of("expr", smooth, *settings), "tiny") == 0
    config = settings_of("va", smooth, "init=one", "run=two", "train.epochs=0.6")
    assert plan_model(config, LabelSpace(), find_sources(config)).encoder.patch_embedding == "hog"
    assert run_finetuning(config, "tiny") == 0
    check_predictions(Path("two"), {"valence", "arousal"})


def test_random_weights_follow_the_seed(smooth: Path) -> None:
    config = settings_of("expr", smooth, "init=random")
    spec = plan_model(config, LabelSpace(), Sources())
    one, two, other = (start_model(spec, Sources(), seed).state_dict() for seed in (0, 0, 1))
    torch.testing.assert_close(one, two, rtol=0, atol=0)
    assert not torch.equal(one["head.0.weight"], other["head.0.weight"])
    assert find_sources(config) == Sources()


def test_only_what_can_flow_back_is_passed_through_twice(smooth: Path) -> None:
    def detached(*settings: str) -> bool:
        config = settings_of(*settings[:1], smooth, *settings[1:])
        task = build_task(config, plan_model(config, LabelSpace(), Sources()))
        assert isinstance(task, AffectTask) and task.depth == 2 and task.layer_decay == 0.75
        return task.stop_gradient

    assert detached("mtl") and detached("expr") and detached("au")
    assert not detached("mtl", "affect.preset=released") and not detached("va")
    assert not detached("mtl", "model=vit") and not detached("mtl", "affect.va_gradient=true")


def test_weights_of_units_must_be_as_many_as_units(smooth: Path) -> None:
    right = settings_of("mtl", smooth, f"affect.au_pos_weight=[{','.join(['2.5'] * 12)}]")
    task = build_task(right, plan_model(right, LabelSpace(), Sources()))
    assert isinstance(task, AffectTask) and task.config.au_pos_weight == (2.5,) * 12
    wrong = settings_of("mtl", smooth, "affect.au_pos_weight=[1,2]")
    with pytest.raises(ConfigError, match="2 weights, and the action units are 12: AU1, "):
        plan_model(wrong, LabelSpace(), Sources())


def test_layers_of_a_named_vit_are_counted(smooth: Path) -> None:
    config = load_config("", ["task=expr", "optim.layer_decay=0.65", "encoder.drop_path_rate=0.1"])
    task = build_task(config, plan_model(config, LabelSpace(), Sources()))
    assert isinstance(task, AffectTask) and task.depth == 12


@pytest.mark.parametrize(
    ("task", "settings", "space", "message"),
    [
        ("sing", [], LabelSpace(), "task='sing': use one of mtl, expr, au, va, lsd, dan"),
        ("lsd", ["model=vit"], LabelSpace(), "model='vit': task lsd takes cotex"),
        ("au", [], LabelSpace(au=()), "task au: these shards have no label for it"),
        ("mtl", [], LabelSpace((), (), True), "EMMA learns expressions or action units.*use model=vit"),
        (
            "mtl",
            ["affect.preset=released"],
            LabelSpace(au=("AU1", "AU2")),
            "released weighs AU1, AU2, AU4.*these shards have AU1, AU2: use affect.preset=paper",
        ),
    ],
)
def test_what_cannot_be_is_refused(
    smooth: Path, task: str, settings: list[str], space: LabelSpace, message: str
) -> None:
    config = settings_of(task, smooth, *settings)
    with pytest.raises(ConfigError, match=message):
        plan_model(config, space, Sources())


def test_held_out_faces_of_other_class_names_are_refused(tmp_path: Path, smooth: Path) -> None:
    """Their numbers would be scored against the wrong names."""
    six = SourceInfo("six", "CC0", label_space=LabelSpace(expr=tuple(reversed(EXPR8))))
    other = build_smooth(tmp_path / "six", counts={"val": 10}, info=six)
    (tmp_path / "mixed").mkdir()
    (tmp_path / "mixed" / "train").symlink_to(smooth / "train")
    (tmp_path / "mixed" / "val").symlink_to(other / "val")
    config = settings_of("expr", tmp_path / "mixed", "init=random")
    with pytest.raises(ConfigError, match=r"held-out faces name their expr classes other, .*neutral"):
        run_finetuning(config, "tiny")


def test_orders_are_by_epoch_or_weighted(smooth: Path) -> None:
    shards = open_shards(str(smooth), "train")
    assert isinstance(build_order(settings_of("dan", smooth), shards), EpochOrder)
    assert isinstance(build_order(settings_of("dan", smooth, "data.order=weighted"), shards), WeightedOrder)
    with pytest.raises(ConfigError, match=r"data\.order='random': use epoch or weighted"):
        build_order(settings_of("dan", smooth, "data.order=random"), shards)


def test_a_dry_run_has_a_model_and_a_task_for_each_kind(smooth: Path) -> None:
    for task in ("mtl", "lsd", "va"):
        config = settings_of(task, smooth)
        model, built = build_trainable(config)
        logs, grads = run_step(built, model.train(), [faces(4)])
        assert model_kind(config) in ("emma", "cotex", "vit") and logs["loss"] > 0 and grads


def test_checkpointing_changes_no_gradient_where_branches_are_dropped() -> None:
    batch = faces(6)
    for name in ("vit", "cotex"):
        model, task = case(name)
        _, plain = run_step(task, model.train(), portions(batch, 3))
        for module in model.modules():
            if hasattr(module, "set_grad_checkpointing"):
                module.set_grad_checkpointing(True)
        _, saved = run_step(task, model, portions(batch, 3))
        torch.testing.assert_close(saved, plain, rtol=1e-4, atol=1e-7)


def test_checkpointing_is_switched_on_by_the_config(smooth: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    from pretrain.encoder import VisionTransformer

    monkeypatch.setattr(VisionTransformer, "set_grad_checkpointing", lambda self, on: asked.append(on))
    settings = ["init=random", "train.epochs=0.6", "train.grad_checkpointing=true", "run=saving"]
    assert run_finetuning(settings_of("expr", smooth, *settings), "tiny") == 0
    assert asked == [True]


# ---- learning rates of the papers' code


def test_emmas_learning_rates_are_those_of_the_released_code() -> None:
    """Epochs counted from 1; past the last one theirs rises again, ours stays."""
    config = OptimConfig(base_lr=5e-4, min_lr=1e-6, warmup_epochs=5)
    released = {
        1: 0.00015625,
        2.5: 0.000390625,
        5: 0.00078125,
        10: 0.0007067427549305264,
        17.5: 0.00039112500000000003,
        29.999: 1.0000030803035454e-06,
        30: 1e-06,
    }
    for epoch, expected in released.items():
        assert learning_rate(config, 400, epoch, 30) == pytest.approx(expected, rel=1e-12)
    assert learning_rate(config, 400, 30.999, 30) == 1e-6 < 4.0701107999233406e-06


def test_cotexs_learning_rates_are_those_of_the_released_code() -> None:
    """Unscaled: as for a batch of 256."""
    config = OptimConfig(base_lr=5e-4, min_lr=1e-6, warmup_epochs=5)
    released = {0: 0.0, 1: 0.0001, 4: 0.0004, 5: 0.0005, 5.5: 0.0002505, 6: 1e-06}
    for epoch, expected in released.items():
        assert learning_rate(config, 256, epoch, 6) == pytest.approx(expected, rel=1e-12)


# ---- one step, however it is shared out

STEPS, STEP_SIZE, CLIPPED = 3, 32, 0.1  # the last: a gradient norm that each step exceeds
CASES = ("emma", "emma, released losses", "vit", "vit, clipped", "cotex")


def case(name: str) -> tuple[nn.Module, Any]:
    """A tiny model with drop path and its task. A DAN in it is frozen with its statistics: one for all."""
    if name == "cotex":
        return tiny_cotex(), CoTEXTask(CoTEXConfig(0.75, 5.0), 3, 0.75)
    if name.startswith("vit"):
        return tiny_vit(), AffectTask(AffectConfig(), False, 3, 0.75)
    config = AffectConfig("released" if "released" in name else "paper")
    return tiny_emma(shared_dan(), stop_gradient=name == "emma"), AffectTask(config, name == "emma", 3, 0.75)


shared_dan = functools.cache(tiny_dan)


def trajectory(name: str, batch_size: int, accum_steps: int) -> list[dict[str, float]]:
    """The logs of some steps, averaged over processes, as the loop takes them.

    Plain gradient descent, which a gradient of the wrong size leads astray where Adam would not notice.
    """
    accelerator = build_accelerator(TrainConfig())
    processes = Processes()
    model, task = case(name)
    groups = param_groups(model, task.param_rules(), 0.05)
    optimizer: Any = torch.optim.SGD(groups, lr=0.05, momentum=0.9, fused=True)
    trainee = Trainee(task, *accelerator.prepare(model, optimizer))
    trainee.model.train()
    layout = Layout(processes.rank, processes.world_size, batch_size, accum_steps)
    optim = OptimConfig(clip_grad=CLIPPED if "clipped" in name else 0)
    assert layout.global_batch_size == STEP_SIZE
    taken = []
    for step in range(STEPS):
        batch = faces(STEP_SIZE, seed=step)
        parts = [take(batch, layout.positions(0, micro).tolist()) for micro in range(accum_steps)]
        logs = train_step(trainee, parts, optim, accelerator)
        values = processes.mean(torch.stack([value.double() for value in logs.values()]))
        taken.append(dict(zip(logs, values.tolist(), strict=True)))
    return taken


def one_of_two(rank: int, folder: str, port: int) -> None:
    """One of two processes, joined as a launcher joins them; the first writes what all have seen."""
    torch.set_num_threads(1)
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    places = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ.update({**address, **places})
    if torch.accelerator.is_available():
        os.environ["ACCELERATE_USE_CPU"] = "true"
    found = {
        f"{name}, 2 x {accum} x {STEP_SIZE // 2 // accum}": trajectory(name, STEP_SIZE // 2 // accum, accum)
        for name in CASES
        for accum in (1, 2)
    }
    if rank == 0:
        Path(folder, "found.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def shared_out(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, float]]]:
    """Trajectories of two gloo processes."""
    folder = tmp_path_factory.mktemp("shared")
    torch.multiprocessing.spawn(one_of_two, args=(str(folder), free_port()), nprocs=2)
    return dict(json.loads((folder / "found.json").read_text()))


@pytest.mark.parametrize("name", CASES)
def test_one_whole_batch_accumulated_or_two_processes_follow_the_same_losses(
    name: str, shared_out: dict[str, list[dict[str, float]]]
) -> None:
    whole = trajectory(name, STEP_SIZE, 1)
    others = {
        "4 accumulated": trajectory(name, 8, 4),
        "two processes": shared_out[f"{name}, 2 x 1 x 16"],
        "two processes, 2 accumulated": shared_out[f"{name}, 2 x 2 x 8"],
    }
    assert len({row["loss"] for row in whole}) == STEPS
    assert "clipped" not in name or all(row["grad_norm"] > CLIPPED for row in whole)
    for layout, rows in others.items():
        for step, (row, expected) in enumerate(zip(rows, whole, strict=True)):
            assert row.keys() == expected.keys()
            for part, value in expected.items():
                wanted = pytest.approx(value, abs=1e-5, rel=1e-4 if part == "grad_norm" else 1e-6)
                assert row[part] == wanted, (layout, step, part)
