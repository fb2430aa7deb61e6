"""Rows 1 to 3: processes killed at any moment and in every step of a save, each resume the next victim."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.reliability.draws import killed_stream
from tests.reliability.row import Row, Scale, verdict
from tests.reliability.training import EPOCH, Life, Training, miscounted

SAVE_EVERY = 2
_STARTS = ("config.yaml", "run.json", "metrics.jsonl")
_FIRST = (
    "write config.yaml",
    "write run.json",
    "write checkpoints/.step-N.tmp/model.safetensors",
    "rename checkpoints/latest",
    "remove checkpoints/.step-N.old/state.json",
    "fsync checkpoints/.step-N.tmp/state.json",
    "rename checkpoints/.step-N.tmp",
    "rename checkpoints/step-N",
    "open checkpoints/.step-N.tmp/manifest.json",
)
"""Where a kill is most telling: the short form makes no others."""


@dataclass
class _Tally:
    """What came of the kills of one layout."""

    where: Counter[str] = field(default_factory=Counter)
    num_lost: list[int] = field(default_factory=list)
    num_finished: int = 0
    num_equal: int = 0
    num_counted: int = 0
    lost: int = 0
    repeated: int = 0
    problems: list[str] = field(default_factory=list)
    unequal: list[str] = field(default_factory=list)

    @property
    def kills(self) -> int:
        return self.where.total()


def measure(scale: Scale) -> list[Row]:
    """Rows 1, 2 and 3."""
    two = max(1, scale.kills // 4)
    tallies = {world: _chain(scale, world, kills) for world, kills in ((1, scale.kills - two), (2, two))}
    kills = sum(tally.kills for tally in tallies.values())
    problems = [problem for tally in tallies.values() for problem in tally.problems]
    where: Counter[str] = Counter()
    for tally in tallies.values():
        where.update(tally.where)
    shares = ", ".join(f"{name} {count}" for name, count in sorted(_parts(where).items()))
    most = max((lost for tally in tallies.values() for lost in tally.num_lost), default=0)
    text = (
        f"{kills} kills ({tallies[1].kills} of one process, {tallies[2].kills} of two), in {len(where)} "
        f"different places: {shares}; {len(problems)} runs that could not go on, at most {most} steps lost "
        f"where {SAVE_EVERY} lie between two checkpoints"
    )
    rows = [
        Row(
            1,
            "training killed (SIGKILL) at random moments and in every step of a save",
            f"{scale.kills} kills in chains, 0 runs that cannot go on, at most the work since the last "
            "checkpoint lost",
            not problems and kills >= scale.kills and most <= SAVE_EVERY,
            verdict(problems, text),
        )
    ]
    finished, equal = (
        sum(getattr(t, name) for t in tallies.values()) for name in ("num_finished", "num_equal")
    )
    unequal = [problem for tally in tallies.values() for problem in tally.unequal]
    rows.append(
        Row(
            2,
            "final weights and optimiser after kills and resumes, against the run that nothing interrupted",
            "bit-identical, 100 %",
            not unequal and finished == equal > 0,
            verdict(unequal, f"{equal} of {finished} runs bit-identical"),
        )
    )
    rows.append(_ledger_row(scale, tallies))
    return rows


def _ledger_row(scale: Scale, tallies: dict[int, _Tally]) -> Row:
    stream = killed_stream(scale)
    counted = sum(tally.num_counted for tally in tallies.values())
    lost = sum(tally.lost for tally in tallies.values()) + stream.lost
    repeated = sum(tally.repeated for tally in tallies.values()) + stream.repeated
    drawn = stream.num_draws + counted
    return Row(
        3,
        "samples lost or repeated in an epoch, by a ledger of keys",
        f"0 and 0 in {scale.draws:,} draws, with kills and resumes",
        lost == repeated == 0 and drawn >= scale.draws and not stream.problems,
        verdict(
            stream.problems,
            f"{lost} lost, {repeated} repeated in {drawn:,} draws: {counted:,} of trainings that were "
            f"killed, {stream.num_draws:,} read by a loader that was killed {stream.kills} times and went on "
            "with other numbers of processes and workers",
        ),
    )


def _parts(where: Counter[str]) -> Counter[str]:
    """Kills by part of a run's work."""
    parts: Counter[str] = Counter()
    for label, count in where.items():
        kind, _, path = label.partition(" ")
        if kind == "at":
            parts[label] += count
        elif ".old" in path or label == "rename checkpoints/step-N":
            parts["in rotation"] += count
        elif path in ("checkpoints/latest", "checkpoints/best"):
            parts["in a pointer"] += count
        elif path.startswith("checkpoints"):
            parts[f"at {kind} of a checkpoint"] += count
        else:
            parts["in a file of the run directory"] += count
    return parts


def _chain(scale: Scale, world_size: int, kills: int) -> _Tally:
    """Kills a training again and again; begins another one whenever one is finished."""
    settings = [f"train.save_every={SAVE_EVERY}", "eval.max_samples=8"]
    settings.append(f"train.epochs={1 if scale.short else 3}")
    whole = Training(scale, f"whole-{world_size}", world_size, settings)
    life = whole.start()
    tally = _Tally()
    started = time.monotonic()
    if life.end() != 0:
        tally.problems.append(f"the run that nothing interrupts fails: {life.said()[-300:]}")
        return tally
    plans = _plans(life.steps(), random.Random(world_size), time.monotonic() - started, scale.short)
    number = 0
    while tally.kills < kills and not tally.problems:
        number += 1
        victim = Training(scale, f"killed-{world_size}-{number}", world_size, settings)
        if scale.short:  # a checkpoint to lose
            victim.start(f"train.stop_at_step={SAVE_EVERY}").end()
        while tally.kills < kills and not tally.problems and not _live_once(victim, next(plans), tally):
            pass
        if not tally.problems and victim.start().end() != 0:
            tally.problems.append(f"{victim.name}: the last start does not finish it")
        if not tally.problems:
            _compare(victim, whole, tally)
    return tally


Plan = tuple[str, float]
"""A step on the disk and which time it is taken, or "" and a moment in seconds."""


def _plans(steps: list[str], chance: random.Random, seconds: float, short: bool) -> Iterator[Plan]:
    """Where to kill, without end; every step on the disk has its turn."""
    known = list(dict.fromkeys(steps))
    telling = [label for label in _FIRST if label in known]
    rest = [label for label in known if label not in telling]
    while True:
        chance.shuffle(rest)
        for label in telling if short else [*telling, *rest]:
            is_start = label.split()[-1].startswith(_STARTS)
            yield label, 1 if is_start else chance.choice([1, 2, 2, 3])
            if not short and chance.random() < 0.4:
                yield "", chance.uniform(0.05, 0.9) * seconds


def _live_once(victim: Training, plan: Plan, tally: _Tally) -> bool:
    """One life; returns whether it finished the run."""
    before = victim.good()
    label, when = plan
    trap = {"at": int(when), "only": f"{label}\n"} if label else {}
    life = victim.start(trap=trap)
    if not label:
        time.sleep(when)
        life.children[tally.kills % len(life.children)].kill()
    status = life.end()
    good = victim.good()
    if status == -signal.SIGKILL:
        steps = life.steps()
        tally.where[steps[-1] if label and steps else "at a random moment"] += 1
        lost = life.reached - max(good, default=0) if life.steps_made() else 0
        tally.num_lost.append(lost)
        if lost > SAVE_EVERY:
            tally.problems.append(f"{victim.name}: {lost} steps lost ({label or 'at a random moment'})")
    elif status != 0:
        tally.problems.append(f"{victim.name}: cannot go on: {_last_words(life)}")
    if max(good, default=0) < max(before, default=0):
        tally.problems.append(f"{victim.name}: checkpoint {max(before)} is gone, left are {good}")
    if life.began != max(before, default=0) and life.reached > life.began:
        tally.problems.append(f"{victim.name}: went on from {life.began}, not from {max(before, default=0)}")
    return status == 0


def _last_words(life: Life) -> str:
    return " ".join(life.said().split())[-300:]


def _compare(victim: Training, whole: Training, tally: _Tally) -> None:
    tally.num_finished += 1
    if not victim.good() or victim.weights() != whole.weights():
        tally.unequal.append(f"{victim.name}: other weights")
    else:
        tally.num_equal += 1
    keys = victim.keys()
    lost, repeated = miscounted(keys)
    tally.lost, tally.repeated = tally.lost + lost, tally.repeated + repeated
    tally.num_counted += len(keys)
    if keys != whole.keys() or len(keys) % EPOCH:
        tally.unequal.append(f"{victim.name}: other samples")
