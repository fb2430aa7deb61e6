"""What the fast pretraining recipe is worth in the usual one's time, when it sees more samples.

    python -m bench.recipe_longer [--quick] [--device cpu|cuda]

As `bench.recipe_worth`, but the fast recipe is pretrained on `TIMES` as many samples, which takes such small
encoders about as long as the usual recipe's; a step of ViT-B is faster still (`bench.recipe`). The usual
recipe's scores are those of `bench.recipe_worth`'s record, seed by seed: it runs first, on the same machine.
Half an hour on 2 cores.
"""

from __future__ import annotations

import json
import shutil
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from bench.measure import RESULTS, Asked, Row, machine, run_alone
from bench.recipe_worth import (
    FINETUNED,
    PROBED,
    QUICK,
    Points,
    Trial,
    means,
    measure,
    paired_interval,
    scores_of,
    signed,
    small_set,
    told,
    works,
)
from pipelines.data import make_default

TIMES = 3
FOLDER = Path("runs/recipe_longer")


def rows(asked: Asked) -> list[Row]:
    """The probes and the finetuned scores.

    Raises:
        SystemExit: no record of the usual recipe's scores, or one of another machine, PyTorch or settings.
    """
    if not asked.quick:
        usual = recorded(
            RESULTS / asked.device / "recipe_worth.json", machine(asked.device), told("usual", Trial())
        )
        found = _compare(asked, Trial(), FOLDER, make_default(), usual)
        shutil.rmtree(FOLDER)
        return found
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shards = small_set(folder)
        there = measure(["usual"], QUICK, asked, folder / "usual", shards)
        usual = scores_of(there.probed["usual"]), scores_of(there.finetuned["usual"])
        return _compare(asked, QUICK, folder / "longer", shards, usual)


def recorded(path: Path, here: Mapping[str, str], settings: str) -> tuple[list[float], list[float]]:
    """The usual recipe's probed and finetuned scores of a record, a seed at a time.

    Args:
        path: `bench.recipe_worth`'s record. here: this machine, as `bench.measure.machine` tells it.
        settings: those of the usual recipe today.

    Raises:
        SystemExit: there is none, or it is of another processor, PyTorch or settings: scores may differ.
    """
    remedy = "run `python -m bench recipe_worth` first"
    if not path.is_file():
        raise SystemExit(f"{path}: not there; {remedy}")
    record = json.loads(path.read_text())
    for fact in ("accelerator", "processor", "torch"):
        if record["machine"].get(fact) != here.get(fact):
            raise SystemExit(f"{path}: of {record['machine'].get(fact)}, here is {here.get(fact)}; {remedy}")
    if any(row["settings"]["usual"] != settings for row in record["rows"]):
        raise SystemExit(f"{path}: the usual recipe has other settings today; {remedy}")
    probed, finetuned = (row["values"]["usual, score"] for row in record["rows"])
    return probed, finetuned


def _compare(
    asked: Asked, trial: Trial, folder: Path, shards: Path, usual: tuple[list[float], list[float]]
) -> list[Row]:
    longer = replace(trial, epochs=TIMES * trial.epochs)
    found = measure(["fast"], longer, asked, folder, shards)
    counts = f"{found.samples:,} samples of the fast recipe and {found.samples // TIMES:,} of the usual one"
    what = f"after {counts}: {trial.size}"
    probe, finetune = works(what, found, trial)
    return [
        _row(probe, found.probed["fast"], PROBED, usual[0], longer),
        _row(finetune, found.finetuned["fast"], FINETUNED, usual[1], longer),
    ]


def _row(
    work: str, fast: Sequence[Points], names: Mapping[str, str], usual: Sequence[float], longer: Trial
) -> Row:
    own = scores_of(fast)
    interval = paired_interval([one - other for one, other in zip(own, usual, strict=True)])
    return Row(
        work=work,
        goal="for information",
        ours=f"{statistics.mean(own):.1f}; difference {signed(interval)} points",
        peer=f"usual recipe {statistics.mean(usual):.1f}",
        note=f"Means of {means(fast, names)}.",
        settings={"fast": told("fast", longer)},
        values={"fast, score": own, "usual, score": list(usual)},
    )


if __name__ == "__main__":
    run_alone(__spec__.name, rows)
