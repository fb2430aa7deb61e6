"""What a step of the fast pretraining recipe (`pretrain_fast`) costs.

    python -m bench.recipe [--quick] [--device cpu|cuda]

Training steps on ViT-B/16 by the fast recipe, on the small images that come first and on those of 224, each
with its share of the run, against transformers and lightly at MAE's own settings, same encoder, batch and
AdamW, in turns. What comes of it: `bench.recipe_worth`.
"""

from __future__ import annotations

from bench.mae_contestants import (
    BASE,
    TINY,
    Setting,
    build_step,
    describe,
    peers_here,
    recipe_flops,
    training_flops,
)
from bench.mae_step import faster_peer
from bench.measure import Asked, Row, Spread, rates, run_alone, take_turns, times_as_fast
from pipelines.config import load_config

RECIPES = {"usual": "pretrain_celeba", "fast": "pretrain_fast"}
GOAL = 4.0


def rows(asked: Asked) -> list[Row]:
    """The step's cost."""
    return [_cost_row(asked)]


def _cost_row(asked: Asked) -> Row:
    usual = load_config(RECIPES["usual"], TINY if asked.quick else BASE)
    small = [*TINY, "mae.decoder_dim=16", "mae.low_res_size=32"]
    fast = load_config(RECIPES["fast"], small if asked.quick else BASE)
    cuda = asked.device == "cuda"
    batch_size = 4 if asked.quick else 256 if cuda else 16
    setting = Setting(batch_size, "bf16" if cuda else "fp32", asked.device)
    peers = peers_here()
    steps = {name: build_step(name, usual, setting) for name in peers}
    steps["ours, whole images"] = build_step("ours", fast, setting)
    steps["ours, small images"] = build_step("ours", fast, setting, fast.mae.low_res_size)
    seconds = take_turns(steps, 1 if asked.quick else 10 if cuda else 3, device=asked.device)
    share, mae = fast.mae.low_res_share, fast.mae
    parts = zip(seconds["ours, small images"], seconds["ours, whole images"], strict=True)
    seconds["ours"] = [share * early + (1 - share) * late for early, late in parts]
    peer = faster_peer(seconds, peers)
    rate = {name: Spread.of(rates(some, batch_size)) for name, some in seconds.items()}
    ratio = times_as_fast(seconds["ours"], seconds[peer]) if peer else None
    fewer = training_flops(usual) / recipe_flops(fast)
    sides = [f"{rate[f'ours, {which} images'].text(',.2f')}" for which in ("small", "whole")]
    return Row(
        work=f"training step of {RECIPES['fast']}, ViT of width {usual.encoder.embed_dim} at "
        f"{usual.encoder.image_size[0]}, {setting.text()}, against a peer with MAE's own settings",
        goal=f"{GOAL:g} × the faster peer",
        ours=f"{rate['ours'].text(',.2f')} images/s",
        peer=f"{peer} {rate[peer].text(',.2f')} images/s" if peer else "",
        ratio=ratio,
        reached=ratio.median >= GOAL if ratio else None,
        note=f"By formula {fewer:.2f} × fewer FLOPs than the usual recipe: {share:.0%} of the run on images "
        f"of {mae.low_res_size} px, {mae.mask_ratio:.0%} masked, decoder {mae.decoder_dim} wide with "
        f"{mae.decoder_depth} blocks; {sides[0]} images/s on the small images, {sides[1]} on whole ones."
        + ("" if peer else " not measured: no peer is installed."),
        settings={
            "ours": f"{RECIPES['fast']}; {describe('ours', setting)}",
            **{name: describe(name, setting) for name in peers},
        },
        values=seconds,
    )


if __name__ == "__main__":
    run_alone(__spec__.name, rows)
