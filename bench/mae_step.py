"""One MAE training step: forward, backward and AdamW, against transformers and lightly.

    python -m bench.mae_step [--quick] [--device cpu|cuda]

ViT-B/16 at 224 with the decoder of He et al. 2022, 75 % masked, targets standardised patch by patch. All get
the same normalised images, already on the device, and the same fused AdamW. Ours is the model and task that
`pipelines.pretraining` builds. transformers is `ViTMAEForPreTraining` from its configuration; lightly is put
together of `MaskedVisionTransformerTIMM` and `MaskedVisionTransformerDecoderTIMM` as in its MAE example.

On a CPU all run in fp32 and, where its matrix products are faster, under bf16 autocast, with 32 images: as
many as make products large and the update a small share. A large product takes turns with the steps:
utilisation is the step's FLOP/s, by formula, over that product's in the same turn. On a GPU all run under
bf16 autocast, plainly and by torch.compile, and a pretraining run on rendered faces says how long it waited
for data.
"""

from __future__ import annotations

import gc
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from bench.mae_contestants import (
    BASE,
    TINY,
    Setting,
    build_step,
    describe,
    peers_here,
    training_flops,
)
from bench.measure import Asked, Row, Spread, gemm_flops, rates, run_alone, take_turns, times_as_fast
from pipelines.config import RunConfig, load_config

CPU_GOAL, CUDA_GOAL, CUDA_STRETCH = 0.75, 0.45, 0.55
SHIPPED_GOAL, EQUAL_GOAL, WAIT_GOAL = 2.0, 1.15, 0.02
_PRODUCTS = 8  # a turn
NO_DEVICE = "not measured: needs a CUDA device"
_KINDS = {  # operators by where the time goes; the rest is element-wise work, copies and bookkeeping
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "mkldnn_linear"),
    "attention": ("scaled_dot_product", "_flash_attention", "_efficient_attention", "softmax"),
    "GELU": ("gelu",),
    "layer norm": ("layer_norm",),
    "AdamW": ("_fused_adamw_",),
}


def time_shares(step: Callable[[], object], device: str) -> dict[str, float]:
    """Share of a step's time by kind of operator, by torch.profiler; "other" is the rest."""
    step()
    cuda = device == "cuda"
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=kinds) as found:
        step()
    spent = dict.fromkeys([*_KINDS, "other"], 0.0)
    for event in found.key_averages():
        own = float(event.self_device_time_total if cuda else event.self_cpu_time_total)
        if cuda and not event.key.startswith("aten::"):  # a kernel, whose time its operator has too
            continue
        names = (kind for kind, parts in _KINDS.items() if any(part in event.key for part in parts))
        spent[next(names, "other")] += own
    total = sum(spent.values()) or 1.0
    return {kind: value / total for kind, value in spent.items()}


def shares_text(shares: Mapping[str, float]) -> str:
    """Such as "matrix products 85 %, attention 6 %"."""
    order = sorted(shares, key=lambda kind: -shares[kind])
    return ", ".join(f"{kind} {100 * shares[kind]:.0f} %" for kind in order)


def faster_peer(seconds: Mapping[str, list[float]], names: Iterable[str]) -> str:
    """The peer of the least median time; "" if there is none."""
    return min(names, key=lambda name: statistics.median(seconds[name]), default="")


def rows(asked: Asked) -> list[Row]:
    """CPU: four lines, or three without bf16; GPU: five. Those of the other device say "not measured"."""
    config = load_config("pretrain_celeba", TINY if asked.quick else BASE)
    if asked.device == "cuda":
        return [*_cuda_rows(config, asked.quick), _wait_row(asked.quick)]
    return [*_cpu_rows(config, asked.quick), *_not_measured(config)]


def _work(config: RunConfig, setting: Setting) -> str:
    height, _ = config.encoder.image_size
    side = (config.encoder.patch_size or (16, 16))[0]
    size = "B" if config.encoder.embed_dim == 768 else f"{config.encoder.embed_dim}×{config.encoder.depth}"
    return f"MAE training step, ViT-{size}/{side} {height}, {setting.text()}"


def _cpu_rows(config: RunConfig, quick: bool) -> list[Row]:
    """Utilisation; the peers as they ship; ours and theirs in each precision."""
    batch_size = 2 if quick else 32
    speed = {name: gemm_flops(getattr(torch, name), size=384, turns=3) for name in ("float32", "bfloat16")}
    plain = Setting(batch_size)
    best = replace(plain, precision="bf16") if speed["bfloat16"] > speed["float32"] else plain
    peers = peers_here()
    settings = dict.fromkeys((best, plain))
    steps = {
        f"{name}, {setting.precision}": build_step(name, config, setting)
        for setting in settings
        for name in ("ours", *peers)
    }
    steps["product"], product_flops = _large_product(256 if quick else 1536, best)
    seconds = take_turns(steps, turns=1 if quick else 3)
    shares = time_shares(steps[f"ours, {best.precision}"], "cpu")
    measured = {
        setting: {name: seconds[f"{name}, {setting.precision}"] for name in ("ours", *peers)}
        for setting in settings
    }
    first = _utilisation_row(
        config,
        best,
        {"ours": measured[best]["ours"], "product": seconds["product"]},
        product_flops,
        CPU_GOAL,
        f"{CPU_GOAL:.0%}",
    )
    precisions = (
        f"Best precision here: {best.precision} (matrix products of 384: fp32 {speed['float32'] / 1e9:.1f}, "
        f"bf16 {speed['bfloat16'] / 1e9:.1f} GFLOP/s)."
    )
    found = [replace(first, note=f"{first.note} Of its time: {shares_text(shares)}. {precisions}")]
    as_shipped = {**measured[plain], "ours": measured[best]["ours"]}
    what = "peers as they ship (fp32)"
    found.append(_peer_row(config, what, (best, plain), as_shipped, peers, SHIPPED_GOAL, precisions))
    for setting, own in measured.items():
        what = f"peers at equal precision ({setting.precision})"
        note = _fewer(config)
        if setting.precision == "bf16":
            note += (
                " Ours computes attention by products and a softmax here, the peers by PyTorch's fused one."
            )
        found.append(_peer_row(config, what, (setting, setting), own, peers, EQUAL_GOAL, note))
    return found


def _large_product(size: int, setting: Setting) -> tuple[Callable[[], object], float]:
    """Large matrix products in a setting's precision, on its device; and their FLOPs."""
    dtype = torch.bfloat16 if setting.precision == "bf16" else torch.float32
    one, other = (torch.randn(size, size, device=setting.device).to(dtype) for _ in range(2))

    def products() -> None:
        for _ in range(_PRODUCTS):
            one @ other

    return products, 2.0 * size**3 * _PRODUCTS


def _fewer(config: RunConfig) -> str:
    saved = 1 - training_flops(config, skipping=True) / training_flops(config)
    return (
        f"Same mathematics; ours leaves out {saved:.1%} of the FLOPs "
        "(embedding of masked patches, last decoder block of visible ones)."
    )


def _utilisation_row(
    config: RunConfig,
    setting: Setting,
    seconds: Mapping[str, list[float]],
    product_flops: float,
    goal: float,
    goal_text: str,
    memory: str = "",
) -> Row:
    per_image = training_flops(config)
    ceilings = rates(seconds["product"], product_flops)
    speeds = rates(seconds["ours"], setting.batch_size * per_image)
    share = Spread.of([own / most for own, most in zip(speeds, ceilings, strict=True)])
    done = training_flops(config, skipping=True) / per_image
    return Row(
        work=_work(config, setting),
        goal=f"{goal_text} of the rate of a large matrix product",
        ours=f"{Spread.of(rates(seconds['ours'], setting.batch_size)).text(',.2f')} images/s, "
        f"{share.median:.0%} ({share.low:.0%}–{share.high:.0%}) of {Spread.of(ceilings).median / 1e9:,.0f} "
        f"GFLOP/s{memory}",
        reached=share.median >= goal,
        note=f"{per_image / 1e9:.1f} GFLOP an image by formula, of which ours computes {done:.1%}: counting "
        f"only those, {share.median * done:.0%}.",
        settings={"ours": describe("ours", setting), "product": f"{product_flops / 1e9:.0f} GFLOP a turn"},
        values={name: seconds[name] for name in ("ours", "product")},
    )


def _peer_row(
    config: RunConfig,
    what: str,
    settings: tuple[Setting, Setting],
    seconds: Mapping[str, list[float]],
    peers: list[str],
    goal: float,
    note: str,
) -> Row:
    setting, theirs = settings
    rate = {name: Spread.of(rates(seconds[name], setting.batch_size)) for name in ("ours", *peers)}
    row = Row(
        work=f"{_work(config, setting)}; {what}",
        goal=f"{goal:g} × the faster peer",
        ours=f"{rate['ours'].text(',.2f')} images/s",
        note="not measured: no peer is installed",
        settings={"ours": describe("ours", setting), **{name: describe(name, theirs) for name in peers}},
        values={name: seconds[name] for name in ("ours", *peers)},
    )
    if not peers:
        return row
    peer = faster_peer(seconds, peers)
    ratio = times_as_fast(seconds["ours"], seconds[peer])
    others = "; ".join(
        f"{name} {rate[name].text(',.2f')} images/s, "
        f"{times_as_fast(seconds['ours'], seconds[name]).text('.2f')} ×"
        for name in peers
        if name != peer
    )
    return replace(
        row,
        peer=f"{peer} {rate[peer].text(',.2f')} images/s",
        ratio=ratio,
        reached=ratio.median >= goal,
        note=f"{note} {f'Also {others}.' if others else ''}".strip(),
    )


def _not_measured(config: RunConfig) -> list[Row]:
    """The GPU's lines where there is none."""
    found = []
    for compiled in (False, True):
        work = _work(config, Setting(256, "bf16", "cuda", compiled)) + " on one GPU"
        goals = (
            f"{CUDA_GOAL:.0%} (stretch {CUDA_STRETCH:.0%}) of the rate of a large matrix product",
            f"{SHIPPED_GOAL:g} × the faster peer, same precision and compilation",
        )
        found += [Row(work, goal, "", note=NO_DEVICE) for goal in goals]
    return [*found, Row(_WAIT_WORK, f"below {WAIT_GOAL:.0%}", "", note=NO_DEVICE)]


def _cuda_rows(config: RunConfig, quick: bool) -> list[Row]:
    """Utilisation with peak memory, and the peers, without and with torch.compile; all in bf16."""
    found = []
    peers = peers_here()
    for compiled in (False, True):
        setting = Setting(4 if quick else 256, "bf16", "cuda", compiled)
        steps, peaks = {}, {}
        for name in ("ours", *peers):
            steps[name], peaks[name] = _with_peak(name, config, setting)
        steps["product"], product_flops = _large_product(512 if quick else 8192, setting)
        seconds = take_turns(steps, turns=1 if quick else 10, warmups=3, device="cuda")
        memory = ", ".join(f"{name} {peak / 2**30:.1f} GiB" for name, peak in peaks.items())
        goal = f"{CUDA_GOAL:.0%} (stretch {CUDA_STRETCH:.0%})"
        row = _utilisation_row(
            config,
            setting,
            seconds,
            product_flops,
            CUDA_GOAL,
            goal,
            f", peak memory {peaks['ours'] / 2**30:.1f} GiB",
        )
        ceiling = gemm_flops(torch.bfloat16, "cuda", size=512 if quick else 0)
        note = f"{row.note} Best single product {ceiling / 1e12:,.0f} TFLOP/s."
        if not compiled:
            note += f" Of its time: {shares_text(time_shares(steps['ours'], 'cuda'))}."
        what = "peers in the same precision and compilation"
        other = f"{_fewer(config)} Peak memory: {memory}."
        found.append(replace(row, note=note))
        found.append(_peer_row(config, what, (setting, setting), seconds, peers, SHIPPED_GOAL, other))
        del steps
        gc.collect()
        torch.cuda.empty_cache()
    return found


def _with_peak(name: str, config: RunConfig, setting: Setting) -> tuple[Callable[[], object], int]:
    """A contestant's step, and the most bytes that it held on the GPU in its second one, of its own."""
    before = torch.cuda.memory_allocated()
    step = build_step(name, config, setting)
    step()
    torch.cuda.reset_peak_memory_stats()
    step()
    return step, torch.cuda.max_memory_allocated() - before


_WAIT_WORK = "waiting for data on a GPU: ViT-B/16 224 pretraining on rendered faces, batch 256, bf16"


def _wait_row(quick: bool) -> Row:
    """A real run on the default faces: the share of time that its loop says it waited."""
    steps, every = (4, 2) if quick else (120, 10)
    words = [*TINY, "train.global_batch_size=16", "train.batch_size=16"] if quick else [*BASE]
    words += [] if quick else ["train.global_batch_size=256", "train.batch_size=256"]
    words += [f"train.stop_at_step={steps}", f"train.log_every={every}", "eval.max_samples=64"]
    words += ["eval.probe_train=0", "eval.probe_val=0", "eval.pictures=0"]
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [sys.executable, "-m", "pipelines", "pretrain", "pretrain_celeba", *words, f"run={run}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if not (run / "metrics.jsonl").is_file():
            raise RuntimeError(f"{' '.join(command)}\n{done.stderr[-2000:]}")
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    waits = [float(line["data_wait"]) for line in lines if "data_wait" in line]
    waits = waits[len(waits) // 3 :]  # the first steps start workers and fill their queues
    share = Spread.of(waits)
    return Row(
        work=_WAIT_WORK,
        goal=f"below {WAIT_GOAL:.0%}",
        ours=share.text(".2%"),
        reached=share.median < WAIT_GOAL,
        note=f"data_wait of metrics.jsonl, a value for every {every} steps, the first third left out.",
        settings={"ours": " ".join(command[1:-1])},
        values={"data_wait": waits},
    )


if __name__ == "__main__":
    run_alone(__spec__.name, rows)
