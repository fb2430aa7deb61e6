"""What forked processes do: the product's own commands, with a trap and a ledger of what they drew."""

from __future__ import annotations

import errno
import itertools
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pipelines import checkpoint, data, evaluate, loop
from pipelines.__main__ import main
from pretrain.mae import MAE
from shards.build import BuildConfig, build
from shards.draws import Draw, Layout, one_by_one, train_draws
from shards.labels import DataError
from shards.order import EpochOrder
from shards.records import Encoded, Item, Rejected
from shards.render import RenderedFaces
from shards.shardset import ShardSet, open_shards
from shards.stream import in_batches, load
from tests.reliability.traps import set_trap
from tests.shards.doctor.sets import flip
from tests.shards.faces import SmoothFaces


def command(words: Sequence[str], ledger: str = "", trap: Mapping[str, Any] | None = None) -> int:
    """`python -m pipelines WORDS`.

    Args:
        words: of the command line.
        ledger: file to which the step and the keys of each training step are appended.
        trap: arguments of `set_trap`.
    """
    if ledger:
        keep_ledger(ledger)
    if trap:
        set_trap(**trap)
    return main(words)


def slowly(words: Sequence[str], ledger: str = "", trap: Mapping[str, Any] | None = None) -> int:
    """As `command`, a tenth of a second to a step: so that there is time for what comes from outside."""
    made = loop.train_step

    def slow(*arguments: Any) -> Any:
        time.sleep(0.1)
        return made(*arguments)

    loop.train_step = slow
    return command(words, ledger, trap)


def poisoned(words: Sequence[str], ledger: str = "", trap: Mapping[str, Any] | None = None) -> int:
    """As `command`; at the fourth step the loss is the number that the environment's POISON names."""
    forward, calls = MAE.forward, itertools.count(1)

    def bad(self: MAE, *arguments: Any, **options: Any) -> Any:
        output = forward(self, *arguments, **options)
        factor = float(os.environ.get("POISON", "nan"))
        return output._replace(loss=output.loss * factor) if next(calls) == 4 else output

    MAE.forward = bad  # type: ignore[method-assign]
    return command(words, ledger, trap)


def infinite(words: Sequence[str], ledger: str = "", trap: Mapping[str, Any] | None = None) -> int:
    """As `poisoned`, with an infinite loss."""
    os.environ["POISON"] = "inf"
    return poisoned(words, ledger, trap)


def unreadable_shards(words: Sequence[str], ledger: str = "", trap: Mapping[str, Any] | None = None) -> int:
    """As `command`; after forty reads the disk of the shards fails for good."""
    pread, calls = os.pread, itertools.count(1)

    def failing(handle: int, size: int, offset: int) -> bytes:
        if next(calls) > 40:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return pread(handle, size, offset)

    os.pread = failing
    return command(words, ledger, trap)


def unreadable_checkpoints(
    words: Sequence[str], ledger: str = "", trap: Mapping[str, Any] | None = None
) -> int:
    """As `command`; no checkpoint can be read, though they are whole."""

    def stale(path: Path) -> str:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    checkpoint.sha256_file = stale
    return command(words, ledger, trap)


def offline(words: Sequence[str], ledger: str = "", trap: Mapping[str, Any] | None = None) -> int:
    """As `command`; who looks up a name or connects to another machine is refused, and it fails."""
    tried: list[str] = []

    def refuse(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("socket.getaddrinfo", "socket.gethostbyname") or (
            event == "socket.connect" and isinstance(arguments[1], tuple)
        ):
            tried.append(event)
            raise ConnectionRefusedError(f"no network here: {event} {arguments[-1]}")

    sys.addaudithook(refuse)
    return command(words, ledger, trap) or len(tried)


def counting(words: Sequence[str], ledger: str = "", trap: Mapping[str, Any] | None = None) -> int:
    """As `command`; notes the keys of the samples that its evaluation scores."""
    predict = evaluate.predict_batches
    seen = Path(f"{ledger}.seen")

    def noted(predicted: Any, batches: Any, *rest: Any) -> Any:
        def passed() -> Iterator[Any]:
            for batch in batches:
                with seen.open("a") as file:
                    file.write(" ".join(["", *batch.keys[: batch.num_valid]]))
                yield batch

        return predict(predicted, passed(), *rest)

    evaluate.predict_batches = noted
    return command(words, ledger, trap)


@dataclass(frozen=True)
class SlowFaces(SmoothFaces):
    """Smooth pictures that take their time."""

    seconds: float = 0.0

    def _make(self, item: Item) -> Encoded | Rejected:
        time.sleep(self.seconds)
        return super()._make(item)


def build_slowly(out: str, seconds: float) -> int:
    """Builds a small set as `tests.shards.faces.build_smooth` does, with a pause before each picture."""
    source = SlowFaces({"train": 24}, seconds=seconds)
    try:
        build(source, Path(out), BuildConfig(shard_size=16, workers=1, max_quarantined=0.5), quiet=True)
    except DataError as error:
        print(error)
        return 1
    return 0


def render_few() -> None:
    """Makes the default faces, only that they are few."""
    few = partial(RenderedFaces, num_train=12, num_val=2, num_test=0, num_identities=4)
    data._DEFAULTS = {"faces": few}  # type: ignore[dict-item]
    print(data.make_default(), flush=True)


def beside_damage(words: Sequence[str], ledger: str = "", trap: Mapping[str, Any] | None = None) -> int:
    """As `command`; at its first step the newest checkpoint is damaged, and the trap set only then."""
    made, damaged = loop.train_step, list[bool]()

    def damaging(*arguments: Any) -> Any:
        if not damaged:
            damaged.append(True)
            newest = sorted(
                Path(dict(word.split("=") for word in words[2:])["run"]).glob("checkpoints/step-*")
            )[-1]
            flip(newest / "model.safetensors", 3000)
            if trap:
                set_trap(**trap)
        return made(*arguments)

    loop.train_step = damaging
    return command(words, ledger)


def keep_ledger(path: str) -> None:
    """Appends a line of JSON for every step that is made: the keys of each micro-batch, in their order."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    made = loop.train_step

    def noted(trainee: Any, batches: Any, *rest: Any) -> Any:
        logs = made(trainee, batches, *rest)
        os.write(handle, json.dumps([batch.keys for batch in batches]).encode() + b"\n")
        return logs

    loop.train_step = noted


def stream(folder: str, layout: Sequence[int], workers: int, step: int, out: str) -> None:
    """Reads one process's share of a set without end, as a training would, and notes the keys.

    Args:
        folder: of the shard set.
        layout: rank, world_size, batch_size, accum_steps.
        workers: loader processes.
        step: to begin with.
        out: gets a line for each step: the keys of its micro-batches.
    """
    share = Layout(*layout)
    shards = open_shards(folder, "train")
    order = EpochOrder(shards.shard_sizes, seed=7, window_shards=4)
    draws = partial(train_draws, order, share, step * share.global_batch_size)
    stages = [
        partial(one_by_one, draws),
        partial(_keys_read, shards),
        partial(in_batches, list, share.batch_size),
    ]
    batches = load(stages, workers)
    handle = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    while True:
        keys = [" ".join(next(batches)) for _ in range(share.accum_steps)]
        os.write(handle, "\t".join(keys).encode() + b"\n")


def _keys_read(shards: ShardSet, draws: Iterable[Draw]) -> Iterator[str]:
    return (shards.read(draw.sample).key for draw in draws)
