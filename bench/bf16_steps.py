"""Optimiser steps of CoTEX and EMMA in bf16, as their configurations have them, on a CPU.

    python -m bench.bf16_steps [--quick]

The contests of `bench.finetune_steps` with ViT-B/16. The plain implementations run in fp32, as they are
written, and beside that under autocast. A process of its own, as accelerate keeps one precision for each.
"""

from __future__ import annotations

import os

from bench.finetune_steps import contest_rows, contests
from bench.measure import Asked, Row, run_alone

_NAMED = ("lsd_abaw4", "mtl_affwild2")  # the configurations with train.precision=bf16


def rows(asked: Asked) -> list[Row]:
    """None on a GPU, where `bench.finetune_steps` itself is in bf16."""
    if asked.device == "cuda":
        return []
    os.environ["ACCELERATE_USE_CPU"] = "true"
    chosen = (contest for contest in contests(asked, "bf16") if contest.name in _NAMED)
    return contest_rows(chosen, asked, "bf16")


if __name__ == "__main__":
    run_alone(__spec__.name, rows)
