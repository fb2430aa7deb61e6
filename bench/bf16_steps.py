"""Optimiser steps of CoTEX, EMMA and MRAN with train.precision=bf16, on a CPU.

    python -m bench.bf16_steps [--quick]

The contests of `bench.finetune_steps`, ours in bf16 as most configurations for real data sets are; the plain
implementations in fp32, as they are written, and beside that under autocast. A process of its own, as
accelerate keeps one precision for each.
"""

from __future__ import annotations

import os

from bench.finetune_steps import contest_rows, contests
from bench.measure import Asked, Row, run_alone


def rows(asked: Asked) -> list[Row]:
    """None on a GPU, where `bench.finetune_steps` itself is in bf16."""
    if asked.device == "cuda":
        return []
    os.environ["ACCELERATE_USE_CPU"] = "true"
    return contest_rows(contests(asked, "bf16"), asked, "bf16")


if __name__ == "__main__":
    run_alone(__spec__.name, rows)
