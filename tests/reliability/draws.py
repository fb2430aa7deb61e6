"""Rows 3 to 5: the order of samples under kills, resumes and every layout."""

from __future__ import annotations

import itertools
import os
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np

from shards.build import BuildConfig, build
from shards.draws import Layout, train_draws
from shards.order import EpochOrder
from shards.records import Encoded, Item, Maker, SourceInfo, each
from tests.reliability.forge import Child
from tests.reliability.row import Row, Scale, verdict
from tests.reliability.training import Training, miscounted

_GLOBAL_BATCH = 240
_LAYOUTS = ((1, 0, 1), (2, 1, 2), (3, 0, 1), (1, 2, 4), (4, 1, 1), (2, 0, 3), (1, 5, 1), (6, 0, 2))
"""(processes, workers, accumulation)."""


@dataclass(frozen=True)
class Tokens:
    """Samples of a few bytes: nothing but their keys matters."""

    count: int
    info: SourceInfo = field(default_factory=lambda: SourceInfo("tokens", "CC0"))

    def splits(self) -> Sequence[str]:
        return ["train"]

    def items(self, split: str) -> Sequence[Item]:
        return [Item(f"t{number:06d}") for number in range(self.count)]

    def open_maker(self) -> Maker:
        return each(lambda item: Encoded(item.key, {"jpg": item.key.encode()}))


@dataclass
class Stream:
    """What a loader that was killed again and again read in all."""

    num_draws: int = 0
    kills: int = 0
    lost: int = 0
    repeated: int = 0
    problems: list[str] = field(default_factory=list)


def killed_stream(scale: Scale) -> Stream:
    """Processes that read a set through the product's loader; all are killed, and others go on."""
    size = max(240, min(20_000, scale.draws // 10))
    folder = scale.folder / "tokens"
    build(Tokens(size), folder, BuildConfig(shard_size=997, workers=1), quiet=True)
    found, chance = Stream(), random.Random(0)
    keys: list[str] = []
    layouts = itertools.cycle(_LAYOUTS)
    while len(keys) < scale.draws and not found.problems:
        step = len(keys) // _GLOBAL_BATCH
        read = _read_until_killed(scale, folder, next(layouts), step, chance.uniform(0.4, 3.0))
        if isinstance(read, str):
            found.problems.append(read)
        else:
            found.kills += 1
            keys += read
    keys = keys[: len(keys) // size * size]
    found.num_draws = len(keys)
    found.lost, found.repeated = miscounted(keys, size)
    return found


def _read_until_killed(
    scale: Scale, folder: Path, cell: tuple[int, int, int], step: int, seconds: float
) -> list[str] | str:
    """The keys of the steps that all processes made before they were killed, or what they said."""
    world, workers, accum = cell
    log = scale.folder / "stream.log"
    outs = [scale.folder / f"stream.{rank}" for rank in range(world)]
    children: list[Child] = []
    for rank, out in enumerate(outs):
        out.unlink(missing_ok=True)
        layout = [rank, world, _GLOBAL_BATCH // world // accum, accum]
        call = "tests.reliability.victims:stream"
        arguments = [str(folder), layout, workers, step, str(out)]
        environ = {"RANK": str(rank)}
        children.append(scale.forge.start(call, arguments, scale.folder, Path(f"{log}.{rank}"), environ))
    end = time.monotonic() + 60
    while not all(out.exists() and out.stat().st_size for out in outs) and time.monotonic() < end:
        time.sleep(0.01)
    time.sleep(0.2 if scale.short else seconds)
    for child in children:
        child.kill()
    if any(child.wait() >= 0 for child in children):
        return f"{cell}: {children[0].said()[-300:]}"
    most = 1 + scale.draws // (4 if scale.short else 16) // _GLOBAL_BATCH  # what is beyond is lost with them
    ranks = [out.read_bytes().decode().split("\n")[:-1] for out in outs]
    return [
        key
        for made in itertools.islice(zip(*ranks), most)
        for micro in zip(*(line.split("\t") for line in made), strict=True)
        for batch in micro
        for key in batch.split()
    ]


def layouts(scale: Scale) -> list[Row]:
    """Row 4: one global order, whoever reads it."""
    problems = disagreements()
    real, more = _real_layouts(scale)
    problems += more
    return [
        Row(
            4,
            "worlds {1, 2, 3, 4, 6} × workers {0, 1, 2, 5} × accumulation, and resumes under another layout",
            "one global order in every cell",
            not problems,
            verdict(
                problems,
                f"{len(_CELLS)} cells in process, each going on in another one in mid-epoch, and {real} "
                f"trainings in real processes: {len(problems)} with another order",
            ),
        )
    ]


_CELLS = list(itertools.product((1, 2, 3, 4, 6), (0, 1, 2, 5), (1, 2, 4)))
"""(processes, workers, accumulation)."""


def disagreements() -> list[str]:
    """Layouts, each going on as another one, that do not draw in the one global order."""
    whole = _in_process((1, 0, 1), 0, 30)
    problems = []
    for cell, after in zip(_CELLS, [*_CELLS[7:], *_CELLS[:7]], strict=True):
        if _in_process(cell, 0, 9) + _in_process(after, 9, 30) != whole:
            problems.append(f"{cell} and then {after}: another order")
    if miscounted(list(map(str, whole)), 1000) != (0, 0):
        problems.append("an epoch does not hold every sample once")
    return problems


def _in_process(cell: tuple[int, int, int], first: int, last: int) -> list[int]:
    """Samples of the steps from `first` to `last` by position, as this layout's loaders hand them out."""
    world, workers, accum = cell
    batch_size = 48 // world // accum
    streams = []
    for rank in range(world):
        with mock.patch.dict(os.environ, RANK=str(rank)):  # which no order may depend on
            order = EpochOrder([97] * 10 + [30], seed=3, window_shards=3)
        streams.append(_loader(order, Layout(rank, world, batch_size, accum), first * 48, workers))
    return [
        sample
        for _ in range(first, last)
        for _ in range(accum)
        for stream in streams
        for sample in next(stream)
    ]


def _loader(order: EpochOrder, layout: Layout, position: int, workers: int) -> Iterator[list[int]]:
    """One process's batches: its workers' in turn."""
    each_worker = [train_draws(order, layout, position) for _ in range(max(1, workers))]
    infos = [SimpleNamespace(id=i, num_workers=workers) if workers else None for i in range(max(1, workers))]
    for draws, info in itertools.cycle(zip(each_worker, infos, strict=True)):
        with mock.patch("shards.draws.get_worker_info", lambda info=info: info):
            batch = next(draws)
        yield [draw.sample for draw in batch]


def _real_layouts(scale: Scale) -> tuple[int, list[str]]:
    """Trainings of real processes: how many, and which of them drew in another order."""
    settings = ["train.global_batch_size=12", "train.save_every=0", "eval.max_samples=8"]
    settings.append("train.epochs=0.6" if scale.short else "train.epochs=1")
    whole = Training(scale, "layout-whole", 1, settings)
    problems = []
    if whole.start().end() != 0:
        return 0, ["the training of one process fails"]
    cells: list[tuple[int, int, int]] = [(3, 1, 0)]
    if not scale.short:
        cells = [(world, workers, size) for world in (1, 2, 3) for workers, size in ((0, 2), (2, 0), (5, 1))]
    for number, (world, workers, size) in enumerate(cells):
        first, *stops = (3, 6) if scale.short else (4, 8, 14)
        training = Training(scale, f"layout-{number}", world, settings)
        more = [f"data.num_workers={workers}", f"train.batch_size={size}"]
        lives = [training.start(*more, f"train.stop_at_step={first}").end()]
        lives += [  # goes on as another layout
            training.start("train.stop_at_step=" + str(stop), world_size=1 + (number + turn) % 2).end()
            for turn, stop in enumerate(stops)
        ]
        if any(lives) or not training.good():
            problems.append(f"{world} processes, {workers} workers: ends with {lives}")
        elif training.keys() != whole.keys()[: len(training.keys())]:
            problems.append(f"{world} processes, {workers} workers: another order")
    return len(cells), problems


def resumes(scale: Scale) -> list[Row]:
    """Row 5: many resumes in one epoch, and at its edges."""
    settings = ["train.global_batch_size=6", "train.save_every=0", "eval.max_samples=8"]
    settings.append("train.epochs=1.05" if scale.short else "train.epochs=2.05")
    edges = np.unique([edge + side for edge in (160 / 6, 320 / 6) for side in (0, 1)]).astype(int).tolist()
    stops = [2, *edges[:2]] if scale.short else [*range(1, 21), *edges]
    whole, broken = (Training(scale, name, 1, settings) for name in ("drift-whole", "drift-broken"))
    statuses = [whole.start().end()]
    statuses += [broken.start(f"train.stop_at_step={stop}").end() for stop in stops]
    statuses.append(broken.start().end())
    problems = [f"start {i}: status {status}" for i, status in enumerate(statuses) if status]
    if not problems and broken.weights() != whole.weights():
        problems.append("other weights")
    if broken.keys() != whole.keys():
        problems.append("other samples")
    return [
        Row(
            5,
            "twenty resumes in a row in one epoch, and at the edge of each epoch",
            "no drift: the weights of the run that nothing interrupted",
            not problems,
            verdict(
                problems, f"{len(stops)} resumes, at steps {', '.join(map(str, stops))}: the same weights"
            ),
        )
    ]
