"""Optimiser steps of CoTEX, EMMA and MRAN, against plain implementations of the same papers.

    python -m bench.finetune_steps [--quick] [--device cuda]

A step is forward, backward, clipping and update: ours is `pipelines.loop.train_step` on the model that a
configuration builds; the plain one (`bench.plain`) has copies of the same weights, PyTorch's default AdamW,
and images that are already normalised floats. Before anything is timed both compute the same batch and must
agree in loss and gradients. On a CPU both are in fp32 here (`bench.bf16_steps` has the other precision). Drop
path and modality dropout are off on both sides, as they are random. Below, frames a second of MRAN's colour
encoders, and what memory the chain of a video model takes.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from bench.measure import Asked, Row, Spread, gemm_flops, rates, run_alone, take_turns, times_as_fast
from bench.plain import PlainCoTEX, PlainEMMA, PlainMRAN
from finetune.mran import build_color
from pipelines.config import RunConfig, load_config
from pipelines.dryrun import random_batch, random_clips
from pipelines.finetuning import build_trainable
from pipelines.loop import Trainee, build_accelerator, train_step
from pipelines.optim import build_optimizer, param_groups, set_learning_rate
from pretrain.encoder import build_encoder, choose_attention
from pretrain.masking import mask_noise
from pretrain.pixels import PixelNorm

GOAL = 2.0
_SIZES = "encoder.image_size={} encoder.embed_dim={} encoder.depth={} encoder.num_heads={}"
_NAMES = ("encoder.name=vit_tiny_patch16_224", "encoder.patch_size=8")
_TINY = (*_NAMES, *_SIZES.format(112, 128, 4, 4).split())  # as in the demos
_QUICK = (*_NAMES, *_SIZES.format(64, 32, 2, 2).split())
_LR = 1e-6
_PLAIN_BF16 = "plain, bf16"


@dataclass(frozen=True)
class Contest:
    """One step, both ways.

    Attributes:
        work: what it is, with sizes.
        config: of ours. batch_size: faces or clips.
        plain: our model and its configuration -> the plain one.
        plain_loss: the plain model's loss of a batch; with True, as ours defines it and on the same masks,
            to be compared.
        note: what a reader should know besides.
        goal: times as fast as the plain one; 0 = none is set.
    """

    work: str
    config: RunConfig
    batch_size: int
    plain: Callable[[Any, RunConfig], nn.Module]
    plain_loss: Callable[[Any, Any, bool], Tensor]
    note: str = ""
    goal: float = GOAL


def rows(asked: Asked) -> list[Row]:
    """All of them."""
    if asked.device == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"
    chain = [clip_chain(asked)]  # first, while this process is small
    precision = "bf16" if asked.device == "cuda" else "fp32"
    return [
        *contest_rows(contests(asked, precision), asked, precision),
        *color_rows(asked),
        *chain,
    ]


def contest_rows(asked_for: Iterable[Contest], asked: Asked, precision: str) -> list[Row]:
    """Each contest's row; all are in the one precision that accelerate keeps for a process."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    ceiling = gemm_flops(dtype, asked.device, 512 if asked.quick else 0)
    return [contest_row(contest, asked, ceiling) for contest in asked_for]


def contests(asked: Asked, precision: str) -> Iterator[Contest]:
    """The steps; in `--quick` and on a GPU of other sizes."""
    quick, cuda = asked.quick, asked.device == "cuda"

    def config(name: str, *settings: str) -> RunConfig:
        own = (*settings, *(_QUICK if quick else ()), f"train.precision={precision}")
        return load_config(name, (*own, "encoder.drop_path_rate=0"))

    vit = "ViT at quick sizes" if quick else "ViT-B/16 at 224 px"
    small = "ViT at quick sizes" if quick else "ViT 128 × 4, patch 8, at 112 px"
    for ratio, count in ((75, 8), (95, 16)):
        size = 2 if quick else 64 if cuda else count
        yield Contest(
            f"CoTEX step, {ratio} % masked, two {vit}, {size} faces",
            config("lsd_abaw4", f"cotex.mask_ratio={ratio / 100}", "cotex.js_weight=1"),
            size,
            lambda model, config: PlainCoTEX(model, config.cotex.js_weight),
            _cotex_loss,
        )
    augmented = (
        "DAN's logits cannot be kept from one epoch to the next, as each draws its images' crops and colours "
        "anew."
    )
    for name, what, count in (("mtl_small", small, 16), ("mtl_affwild2", vit, 2)):
        size = 2 if quick else 64 if cuda else count
        yield Contest(
            f"EMMA step ({name}), DAN beside one {what}, {size} faces",
            config(name),
            size,
            lambda model, config: PlainEMMA(model),
            _emma_loss,
            augmented,
        )
        if name == "mtl_small":
            yield Contest(
                f"EMMA step ({name}), the same, but the plain one's DAN frozen too",
                config(name),
                size,
                lambda model, config: PlainEMMA(model, frozen=True),
                _emma_loss,
                "Here neither has a graph of DAN.",
                goal=0,
            )
    for name, what, settings, count in (
        ("mran_demo", f"mran_demo, frozen {small}", (), 20),
        ("", f"default settings, {small} that learns", ("task=mran", *_TINY), 2),
    ):
        settings = (*settings, "mran.modality_dropout=0", *(("clip.num_frames=2", "clip.stride=2") * quick))
        chosen = config(name, *settings)
        size = 2 if quick else 32 if cuda else count
        yield Contest(
            f"MRAN step ({what}), {size} clips of {chosen.clip.num_frames} frames",
            chosen,
            size,
            lambda model, config: PlainMRAN(model, config.mran.loss),
            _mran_loss,
        )


def _cotex_loss(plain: PlainCoTEX, batch: Any, same: bool) -> Tensor:
    noises = [mask_noise(batch.rng, plain.num_patches, view) for view in range(2)] if same else None
    return plain.loss(batch.images, batch.labels.expr, noises)


def _emma_loss(plain: PlainEMMA, batch: Any, same: bool) -> Tensor:
    plain.cnn.train(not same and not plain.frozen)
    return plain.loss(batch.images, batch.labels, detached=same or plain.frozen)


def _mran_loss(plain: PlainMRAN, batch: Any, same: bool) -> Tensor:
    return plain.loss(batch.images, batch.va)


def contest_row(contest: Contest, asked: Asked, ceiling: float) -> Row:
    """Checks both and times them in turns; `ceiling`: FLOP/s of large matrix products here."""
    config, device = contest.config, torch.device(asked.device)
    accelerator = build_accelerator(config.train)
    model, task = build_trainable(config)
    mixed = config.train.precision == "bf16"
    plain = contest.plain(model, config).to(device).train()
    made = random_clips if config.data_kind == "clips" else random_batch
    batch: Any = made(contest.batch_size, config).to(device)
    seen = _normalised(batch)
    groups = [param_groups(one, task.param_rules(), config.optim.weight_decay) for one in (model, plain)]
    for group in groups[1]:  # the released code's DAN has gradients, and no optimiser
        named = zip(group["names"], group["params"], strict=True)
        group["params"] = [parameter for name, parameter in named if not name.startswith("cnn.")]
    optimizer = build_optimizer(groups[0], config.optim)
    choose_attention(model, device, mixed)
    prepared, optimizer = accelerator.prepare(model, optimizer)
    betas = config.optim.beta1, config.optim.beta2
    plain_optimizer = torch.optim.AdamW(groups[1], betas=betas, eps=config.optim.eps)
    for one in (optimizer, plain_optimizer):
        set_learning_rate(one, _LR)
    autocast = partial(torch.autocast, asked.device, torch.bfloat16)
    flops = _check(
        prepared.train(),
        plain,
        lambda: next(iter(task.step(prepared, [batch]))).loss,
        lambda: contest.plain_loss(plain, seen, True),
        partial(autocast, enabled=mixed),
        0.05 if mixed else 2e-3,
    )

    def plain_step(mixed: bool = mixed and device.type == "cuda") -> None:
        with autocast(enabled=mixed):
            loss = contest.plain_loss(plain, seen, False)
        torch.autograd.backward(loss)
        if config.optim.clip_grad:
            torch.nn.utils.clip_grad_norm_(plain.parameters(), config.optim.clip_grad)
        plain_optimizer.step()
        plain.zero_grad()

    trainee = Trainee(task, prepared, optimizer)
    steps: dict[str, Callable[[], object]] = {
        "ours": lambda: train_step(trainee, [batch], config.optim, accelerator),
        "plain": plain_step,
    }
    if mixed and device.type == "cpu":
        steps[_PLAIN_BF16] = partial(plain_step, True)
    steps["ours"]()
    with FlopCounterMode(display=False) as counted:
        plain_step()
    seconds = take_turns(steps, 1 if asked.quick else 3, 0, device=asked.device)
    updates = _updates(optimizer, plain_optimizer, asked)
    return _contest_row(contest, seconds, updates, (flops, counted.get_total_flops()), ceiling)


def _normalised(batch: Any) -> Any:
    """The batch as the plain one takes it: float images."""
    norm = PixelNorm().to(batch.rng.device)
    if isinstance(batch.images, Tensor):
        return replace(batch, images=norm(batch.images))
    color = batch.images["color"]
    frames = norm(color.flatten(0, 1)).view(color.shape)
    return replace(batch, images={**batch.images, "color": frames})


def _check(
    ours: nn.Module,
    plain: nn.Module,
    our_loss: Callable[[], Tensor],
    plain_loss: Callable[[], Tensor],
    autocast: Callable[[], AbstractContextManager[Any]],
    tolerance: float,
) -> int:
    """FLOPs of one forward and backward of ours, after making sure that both compute the same.

    Raises:
        AssertionError: losses or gradients differ.
    """
    with FlopCounterMode(display=False) as counted:
        loss = our_loss()
        torch.autograd.backward(loss)
    with autocast():
        other = plain_loss()
    torch.autograd.backward(other)
    torch.testing.assert_close(loss.float(), other.float(), rtol=tolerance, atol=tolerance)
    found = {_own_name(name): p.grad for name, p in ours.named_parameters() if p.grad is not None}
    expected = {_own_name(name): p.grad for name, p in plain.named_parameters() if p.grad is not None}
    names = [name for name in found if name in expected]
    apart = sum(float((found[name] - expected[name]).square().sum()) for name in names)
    length = sum(float(expected[name].square().sum()) for name in names)
    assert names and apart <= tolerance**2 * length, f"gradients differ by {(apart / length) ** 0.5:.2g}"
    for one in (ours, plain):
        one.zero_grad()
    return int(counted.get_total_flops())


def _own_name(name: str) -> str:
    return name.removeprefix("module.").removeprefix("model.")


def _updates(optimizer: Any, plain_optimizer: torch.optim.Optimizer, asked: Asked) -> dict[str, list[float]]:
    """Seconds of the update alone: it costs the same for a batch of any size."""
    for one in (optimizer, plain_optimizer):
        for group in one.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)
    steps = {"ours": optimizer.step, "plain": plain_optimizer.step}
    return take_turns(steps, 1 if asked.quick else 3, device=asked.device)


def _contest_row(
    contest: Contest,
    seconds: dict[str, list[float]],
    updates: dict[str, list[float]],
    flops: tuple[int, int],
    ceiling: float,
) -> Row:
    ratio = times_as_fast(seconds["ours"], seconds["plain"])
    update = {name: Spread.of(values).median for name, values in updates.items()}
    step = {name: Spread.of(values).median for name, values in seconds.items()}
    ceiling = max(ceiling, *(count / min(seconds[name]) for name, count in zip(("ours", "plain"), flops)))
    possible = min(seconds["plain"]) / (flops[0] / ceiling + min(updates["ours"]))
    rest = {name: step[name] - update[name] for name in update}
    note = (
        f"Products and convolutions are {flops[0] / 1e9:,.3g} GFLOP in ours and {flops[1] / 1e9:,.3g} in the "
        f"plain step, {flops[1] / flops[0]:.2f} × as many; at the {ceiling / 1e9:,.0f} GFLOP/s that they "
        f"reach here at best, and with the update, ours could at most be {possible:.2f} × as fast as the "
        f"fastest plain step. The update alone takes {1e3 * update['ours']:,.0f} ms, PyTorch's default "
        f"{1e3 * update['plain']:,.0f}; without it the ratio is {rest['plain'] / rest['ours']:.2f}."
    )
    size, unit = contest.batch_size, f"{contest.config.data_kind}/s"
    texts = {name: Spread.of(rates(values, size)).text(",.2f") for name, values in seconds.items()}
    precision = contest.config.train.precision
    ours, peer, theirs = f"{texts['ours']} {unit}", f"plain PyTorch: {texts['plain']} {unit}", precision
    if _PLAIN_BF16 in seconds:
        ours, peer, theirs = f"{ours} in bf16", f"{peer} in fp32, as written", "fp32"
        equal = times_as_fast(seconds["ours"], seconds[_PLAIN_BF16]).text(".2f")
        note = (
            f"Under bf16 autocast the plain step makes {texts[_PLAIN_BF16]} {unit}: ours is {equal} × as "
            f"fast. {note}"
        )
    return Row(
        contest.work,
        f"{contest.goal:g} × plain" if contest.goal else "stated",
        ours,
        peer,
        ratio,
        ratio.median >= contest.goal,
        " ".join(filter(None, (note, contest.note))),
        {
            "both": f"clip_grad={contest.config.optim.clip_grad}, no drop path, no modality dropout, "
            "every label there",
            "ours": f"pipelines.loop.train_step, {precision}, fused AdamW, uint8 images",
            "plain": f"bench.plain, {theirs}, torch.optim.AdamW as it comes, float images",
        },
        {
            **{f"{name}, seconds a step": values for name, values in seconds.items()},
            **{f"{name}, seconds an update": values for name, values in updates.items()},
            "GFLOP": [one / 1e9 for one in flops],
        },
    )


def color_rows(asked: Asked) -> Iterator[Row]:
    """Frames a second of what MRAN can make of colour, without a gradient."""
    generator = torch.Generator().manual_seed(0)
    count = 2 if asked.quick else 64 if asked.device == "cuda" else 16
    base = load_config("", ["task=mran"])
    small = load_config("", ["task=mran", *_TINY])
    large = [] if asked.quick else [("vit", base, "ViT-B/16, 196 tokens")]
    for kind, config, what in (
        ("vit", small, "ViT 128 × 4 with patch 8, 196 tokens"),
        *large,
        ("inception", small, "InceptionResnetV1, random weights"),
        ("conv", small, "five convolutions"),
    ):
        size = config.encoder.image_size
        encoder = build_encoder(config.encoder, generator) if kind == "vit" else None
        color = build_color(replace(config.mran, encoder=kind), size, encoder, generator)
        color = color.to(asked.device).eval()
        frames = torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8, generator=generator)
        frames = frames.to(asked.device)

        def forward(color: nn.Module = color, frames: Tensor = frames) -> None:
            bf16 = torch.autocast("cuda", torch.bfloat16) if asked.device == "cuda" else nullcontext()
            with torch.inference_mode(), bf16:
                color(frames)

        seconds = take_turns({"ours": forward}, 1 if asked.quick else 4, device=asked.device)["ours"]
        grid = " × ".join(map(str, color.grid))
        yield Row(
            f"MRAN's colour encoder, forward: {what}, {size[0]} px",
            "stated",
            f"{Spread.of(rates(seconds, count)).text()} frames/s",
            reached=True,
            note=f"Maps of {color.num_features} channels on {grid} places, {count} frames at once.",
            values={"seconds": seconds},
        )


_PEAK = """
import pathlib
print("VmHWM", pathlib.Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
"""


def clip_chain(asked: Asked) -> Row:
    """Peak memory of rendering, training on and predicting clips, each in a process of its own.

    It is the kernel's own account of that process; `getrusage`'s would begin with that of its parent.
    """
    clips, steps = (8, 2) if asked.quick else (40, 6)
    with tempfile.TemporaryDirectory() as folder:
        shards, run = Path(folder) / "clips", Path(folder) / "run"
        settings = [
            *("mran_demo", "init=random", f"data.shards={shards}", f"run={run}", "data.num_workers=0"),
            *("optim.warmup_epochs=0", f"train.epochs={steps * 4 / clips}", "train.global_batch_size=4"),
            f"train.precision={'bf16' if asked.device == 'cuda' else 'fp32'}",
        ]
        told = ["--device", asked.device, "--out", str(Path(folder) / "rows.csv")]
        call = "from pipelines.__main__ import main\nassert main({}) == 0\n"
        peaks = {
            "rendering": _peak(
                "from pathlib import Path\nfrom shards.build import BuildConfig, build\n"
                "from shards.render import RenderedClips\n"
                f"source = RenderedClips(num_train={clips}, num_val=4, num_test=0, num_identities={clips})\n"
                f"build(source, Path({str(shards)!r}), BuildConfig(shard_size=16, workers=1), quiet=True)\n"
            ),
            "training": _peak(call.format(repr(["finetune", *settings]))),
            "prediction": _peak(
                call.format(repr(["predict", str(run), str(shards / "val"), "--quiet", *told]))
            ),
        }
    return Row(
        f"the chain of mran_demo: render {clips} clips of 10 frames, {steps} steps of 4 clips, predict 4",
        "stated",
        ", ".join(f"{name} {peak:,.0f} MiB" for name, peak in peaks.items()) + " at most",
        reached=True,
        note="Peak resident memory of each stage's process, libraries included"
        + (" (of the host, not of the GPU)." if asked.device == "cuda" else "."),
        settings={"training": " ".join(settings).replace(f"{folder}/", "")},
        values={name: [peak] for name, peak in peaks.items()},
    )


def _peak(code: str) -> float:
    """MiB that a fresh interpreter took at most to run `code`."""
    done = subprocess.run([sys.executable, "-c", code + _PEAK], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return int(done.stdout.rpartition("VmHWM ")[2]) / 1024


if __name__ == "__main__":
    run_alone(__spec__.name, rows)
