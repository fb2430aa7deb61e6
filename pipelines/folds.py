"""Cross-validation by person: one fold held out, the others learned from, and the folds' runs pooled.

The train and val splits of a shard set are put together and dealt anew; its test split stays untouched. Who
is in which fold follows from a hash of the person's name alone, so that nobody is in two.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from pipelines.config import ConfigError, RunConfig
from pipelines.dataconfig import fold_of
from pipelines.predictions import Predictions
from shards.labels import DataError
from shards.shardset import ShardSet
from shards.sources.splits import fold_split
from shards.stream import parse_json


class Fold(NamedTuple):
    """What is learned from, and what is held out."""

    train: ShardSet
    val: ShardSet


def cut_fold(train: ShardSet, val: ShardSet | None, fold: str) -> Fold:
    """The samples of two splits, dealt anew by person.

    Args:
        train, val: of one or several sets, faces or clips.
        fold: "2/5" holds out the second of five folds.

    Raises:
        ValueError: not of this form.
        DataError: one side is left without a sample, or labels that cannot be read.
    """
    number, count = fold_of(fold)
    whole = train
    if val is not None:
        later = [replace(part, folder=part.folder + len(train.folders)) for part in val.left_out]
        whole = ShardSet([*train.folders, *val.folders], [*train.left_out, *later])
    held = [fold_split(person_of(whole, sample), count, number) == "val" for sample in range(len(whole))]
    if all(held) or not any(held):
        people = len({person_of(whole, sample) for sample in range(len(whole))})
        raise DataError(
            f"data.fold={fold}: {sum(held)} of {len(held)} samples are in this fold, by a hash of {people} "
            "people: use fewer folds"
        )
    chosen = np.array(held)
    return Fold(whole.only(np.flatnonzero(~chosen).tolist()), whole.only(np.flatnonzero(chosen).tolist()))


def person_of(shards: ShardSet, sample: int) -> str:
    """Who a sample shows: its identity, where that is not known its group, else its key.

    Raises:
        DataError: labels that are not JSON.
    """
    raw = shards.read(sample, ("json",))
    labels = parse_json(raw) if "json" in raw.members else {}
    named = [labels.get(field) for field in ("identity", "group")] if isinstance(labels, dict) else []
    return str(next((name for name in named if name not in (None, "")), raw.key))


def check_folds(configs: Sequence[RunConfig]) -> str:
    """Whether these are runs of one cross-validation; says which of its folds there are.

    Raises:
        ConfigError: a run without a fold, folds of different numbers, or one fold twice.
    """
    folds = [config.data.fold for config in configs]
    parts = [fold_of(fold) if fold else (0, 0) for fold in folds]
    count = parts[0][1]
    if not all(number and of == count for number, of in parts) or len(set(parts)) < len(parts):
        said = ", ".join(fold or "none" for fold in folds)
        raise ConfigError(
            f"runs are pooled over the folds of one cross-validation, each once; these have data.fold {said}"
        )
    missing = sorted(set(range(1, count + 1)) - {number for number, _ in parts})
    left = f"; missing: {', '.join(f'{number}/{count}' for number in missing)}" if missing else ""
    return f"{len(parts)} of {count} folds{left}"


def pool(parts: Sequence[Predictions]) -> Predictions:
    """The samples of several predictions together, in their order.

    Raises:
        DataError: different splits, label spaces or outputs, or a sample that is in two.
    """
    first = parts[0]
    for part in parts[1:]:
        if (part.split, part.expr_names, part.au_names, part.heads) != (
            first.split,
            first.expr_names,
            first.au_names,
            first.heads,
        ):
            raise DataError("predictions of different splits, classes or outputs cannot be pooled")
    keys = [key for part in parts for key in part.keys]
    key, times = Counter(keys).most_common(1)[0]
    if times > 1:
        raise DataError(f"sample {key!r:.80} is in the predictions of {times} runs: their data differ")
    changed: dict[str, Any] = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in ("frame", "expr", "va", "au", *first.heads)
    }
    changed |= {
        name: tuple(text for part in parts for text in getattr(part, name)) for name in ("group", "name")
    }
    return replace(first, keys=tuple(keys), **changed)
