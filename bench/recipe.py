"""What a step of the fast pretraining recipe (`pretrain_fast`) costs.

    python -m bench.recipe [--quick] [--device cpu|cuda]

A training step on ViT-B/16 at 224 by the fast recipe, against transformers and lightly at MAE's own settings,
same encoder, images, batch and AdamW, in turns. What comes of it: `bench.recipe_worth`.
"""

from __future__ import annotations

from bench.mae_contestants import BASE, TINY, Setting, build_step, describe, peers_here, training_flops
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
    fast = load_config(RECIPES["fast"], [*TINY, "mae.decoder_dim=16"] if asked.quick else BASE)
    cuda = asked.device == "cuda"
    batch_size = 4 if asked.quick else 256 if cuda else 32
    setting = Setting(batch_size, "bf16" if cuda else "fp32", asked.device)
    peers = peers_here()
    steps = {name: build_step(name, usual, setting) for name in peers}
    steps["ours"] = build_step("ours", fast, setting)
    seconds = take_turns(steps, 1 if asked.quick else 10 if cuda else 3, device=asked.device)
    peer = faster_peer(seconds, peers)
    rate = {name: Spread.of(rates(some, batch_size)) for name, some in seconds.items()}
    ratio = times_as_fast(seconds["ours"], seconds[peer]) if peer else None
    fewer = training_flops(usual) / training_flops(fast, skipping=True)
    return Row(
        work=f"training step of {RECIPES['fast']}, ViT of width {usual.encoder.embed_dim} at "
        f"{usual.encoder.image_size[0]}, {setting.text()}, against a peer with MAE's own settings",
        goal=f"{GOAL:g} × the faster peer",
        ours=f"{rate['ours'].text(',.2f')} images/s",
        peer=f"{peer} {rate[peer].text(',.2f')} images/s" if peer else "",
        ratio=ratio,
        reached=ratio.median >= GOAL if ratio else None,
        note=f"By formula {fewer:.2f} × fewer FLOPs than the usual recipe: {fast.mae.mask_ratio:.0%} masked, "
        f"{fast.mae.predict_ratio:.0%} of these predicted, decoder {fast.mae.decoder_dim} wide with "
        f"{fast.mae.decoder_depth} blocks." + ("" if peer else " not measured: no peer is installed."),
        settings={
            "ours": f"{RECIPES['fast']}; {describe('ours', setting)}",
            **{name: describe(name, setting) for name in peers},
        },
        values=seconds,
    )


if __name__ == "__main__":
    run_alone(__spec__.name, rows)
