"""`make bench`: every benchmark in turn, each in a fresh process, then docs/benchmarks.md from their records.

    python -m bench [NAME …] [--quick] [--device cpu|cuda] [--page]

NAME limits the run to some of the benchmarks; the page keeps the other rows of the last run on this kind of
device. `--page` only writes the page anew.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

import pipelines  # noqa: F401  what it sets for OpenMP is for all contestants: they run in children of this process
from bench.page import write_page

BENCHMARKS = {
    "reading": "shards to images in memory, against stock webdataset",
    "resume": "our order against sequential reading; a resume in mid-epoch; time against number of samples",
    "mae_step": "the MAE training step, against transformers and lightly",
    "recipe": "what a step of the fast pretraining recipe costs",
    "recipe_worth": "what the fast recipe is worth: linear probes and finetuned scores over five seeds",
    "recipe_longer": "what the fast recipe is worth in the usual one's time: three times the samples",
    "finetune_steps": "CoTEX, EMMA and MRAN steps, against plain implementations",
    "bf16_steps": "the same steps in bf16",
    "processes": "two processes against one",
    "running": "start-up, checkpoints, evaluation, prediction on video",
    "memory": "memory against batch size and image size",
    "renderer": "the default data's renderer",
}


def main() -> None:
    """Runs what is asked and writes the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", choices=[*BENCHMARKS, []], help=", ".join(BENCHMARKS)
    )
    parser.add_argument("--quick", action="store_true", help="smallest sizes; keeps nothing")
    parser.add_argument("--device", choices=("cpu", "cuda"))
    parser.add_argument("--page", action="store_true", help="only write docs/benchmarks.md from the records")
    asked = parser.parse_args()
    options = [*(["--quick"] if asked.quick else []), *(["--device", asked.device] if asked.device else [])]
    failed = []
    for name in [] if asked.page else asked.names or BENCHMARKS:
        print(f"== {name}: {BENCHMARKS[name]}", flush=True)
        start = time.monotonic()
        done = subprocess.run([sys.executable, "-m", f"bench.{name}", *options])
        print(f"== {name}: {time.monotonic() - start:.0f} s", flush=True)
        if done.returncode:
            failed.append(name)
    if not asked.quick:
        print(write_page(BENCHMARKS))
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
