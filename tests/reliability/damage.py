"""Rows 6 and 7: damaged shards and damaged checkpoints."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipelines.checkpoint import CheckpointError, CheckpointStore, DamagedError, read_checkpoint
from shards.damage import find_damaged
from shards.labels import DataError
from shards.manifest import load_manifest
from shards.records import Encoded
from shards.shardset import RawSample, ShardSet, open_shards
from shards.stream import decode_image, decode_labels
from tests.reliability.row import Row, Scale, verdict
from tests.reliability.training import SHARDS, Training
from tests.shards.doctor.sets import cut, flip, look, made_set, put_shard, swap
from tests.shards.doctor.test_damage import foreign_index, repeat_key
from tests.shards.faces import smooth_jpeg

_TAR, _INDEX, _MANIFEST = "faces-000001.tar", "faces-000001.idx", "manifest.json"
_FLIPS = 12
_BESIDE = "tests.reliability.victims:beside_damage"
Damage = Callable[[Path], object]


def shards(scale: Scale) -> list[Row]:
    """Row 6."""
    made = made_set(scale.folder / "made")
    whole = _contents(ShardSet([made / "train"]))
    problems: list[str] = []
    seen: Counter[str] = Counter()
    kinds = list(_damages(made / "train"))
    for number, (name, damage) in enumerate(kinds):
        broken = scale.folder / f"broken-{number}" / "train"
        shutil.copytree(made / "train", broken)
        damage(broken)
        outcome = _read_all(broken, whole)
        by_doctor = bool(look(broken).count("error"))
        seen[outcome] += 1
        if outcome == "silent" or not (by_doctor or outcome.startswith("refused")):
            problems.append(f"{name}: {outcome}, found by doctor: {by_doctor}")
        problems += [f"{name}: {text}" for text in _quarantine(broken, whole)]
        shutil.rmtree(broken.parent)
    problems += _trained(scale)
    counts = ", ".join(f"{outcome} {count}" for outcome, count in sorted(seen.items()))
    different = len({name.split(",")[0] for name, _ in kinds})
    text = (
        f"{len(kinds)} damages of {different} kinds: {counts} (unharmed: bytes of a tar's headers, of which "
        "no sample is made; `doctor` names them); with "
        "data.damaged=quarantine used + left out = manifest in each that has a manifest, and in "
        "real trainings that count, limit and go on"
    )
    return [
        Row(
            6,
            "damaged shards: cut, flipped, deleted, emptied, swapped, junk, index, manifest, keys, members, "
            "JPEGs",
            "12 kinds or more, none silent; stop, or quarantine with count and limit",
            not problems and different >= 12,
            verdict(problems, text),
        )
    ]


def silent(folder: Path) -> list[str]:
    """Flips of bytes of pictures that nobody notices when they are read."""
    train = made_set(folder, counts={"train": 40}) / "train"
    whole = _contents(ShardSet([train]))
    found = []
    for name, flip_one in _damages(train):
        if name.startswith("flip in a picture"):
            data = (train / _TAR).read_bytes()
            flip_one(train)
            found += [name] if _read_all(train, whole) == "silent" else []
            (train / _TAR).write_bytes(data)
    return found


def _contents(shard_set: ShardSet) -> dict[str, RawSample]:
    return {raw.key: replace(raw, where="") for raw in map(shard_set.read, range(len(shard_set)))}


def _read_all(folder: Path, whole: dict[str, RawSample]) -> str:
    """What comes of opening, reading and decoding everything."""
    try:
        opened = open_shards(str(folder), "train")
    except DataError:
        return "refused at opening"
    try:
        for number in range(len(opened)):
            raw = opened.read(number)
            decode_image(raw)
            decode_labels(raw)
    except DataError:
        return "refused on reading"
    return "read unharmed" if _contents(opened) == whole else "silent"


def _quarantine(folder: Path, whole: dict[str, RawSample]) -> list[str]:
    """What is wrong with the set without its damaged samples, if it has a manifest that can be read."""
    try:
        count = load_manifest(folder).num_samples
        left_out = find_damaged([folder], quiet=True)
    except DataError:
        return []
    rest = _contents(ShardSet([folder], left_out))
    problems = []
    if len(rest) + sum(part.count for part in left_out) != count:
        problems.append(f"{len(rest)} used and {left_out} left out of {count}")
    if any(whole.get(key) != raw for key, raw in rest.items()):
        problems.append("a damaged sample is used")
    return problems


def _damages(train: Path) -> Iterator[tuple[str, Damage]]:
    """(kind, what does it to a copy of `train`)."""
    size = (train / _TAR).stat().st_size
    index = ShardSet([train])._indexes[1]
    rows = index.rows()
    jpg, meta = rows[3].members[0], rows[3].members[1]
    chance = np.random.default_rng(0)

    def at(path: str, place: int) -> Damage:
        return lambda t: flip(t / path, place)

    def cut_at(path: str, place: int) -> Damage:
        return lambda t: (t / path).write_bytes((t / path).read_bytes()[:place])

    def put(path: str, data: bytes) -> Damage:
        return lambda t: (t / path).write_bytes(data)

    yield "cut at a record boundary", cut_at(_TAR, jpg[1] - 512)
    yield "cut in a header", cut_at(_TAR, jpg[1] - 100)
    yield "cut in a payload", cut_at(_TAR, jpg[1] + 100)
    yield "cut end mark", cut_at(_TAR, size - 9000)
    for place in chance.integers(0, 300, 3):
        yield f"flip in a header, byte {place}", at(_TAR, jpg[1] - 512 + int(place))
    for place in chance.integers(0, jpg[2], _FLIPS):
        yield f"flip in a picture, byte {place}", at(_TAR, jpg[1] + int(place))
    for place in chance.integers(0, meta[2], 3):
        yield f"flip in labels, byte {place}", at(_TAR, meta[1] + int(place))
    yield "tar deleted", lambda t: (t / _TAR).unlink()
    yield "tar empty", put(_TAR, b"")
    yield "tars swapped", swap
    yield "tar of junk", put(_TAR, chance.bytes(5000))
    yield "tar of junk, of the same size", put(_TAR, chance.bytes(size))
    yield "tar of zeros, of the same size", put(_TAR, bytes(size))
    for place in chance.integers(0, (train / _INDEX).stat().st_size, _FLIPS):
        yield f"index flipped, byte {place}", at(_INDEX, int(place))
    yield "index cut", lambda t: cut(t / _INDEX)
    yield "index deleted", lambda t: (t / _INDEX).unlink()
    yield "index of another shard", foreign_index
    yield "index of junk", put(_INDEX, chance.bytes(900))
    for place in chance.integers(0, (train / _MANIFEST).stat().st_size, _FLIPS):
        yield f"manifest flipped, byte {place}", at(_MANIFEST, int(place))
    yield "manifest cut", lambda t: cut(t / _MANIFEST)
    yield "manifest deleted", lambda t: (t / _MANIFEST).unlink()
    yield "manifest of another split", lambda t: shutil.copy(train.parent / "val" / _MANIFEST, t)
    yield "key twice", repeat_key
    for name, change in _BAD_SAMPLES.items():
        yield name, lambda t, change=change: _put_sample(t, change)


def _put_sample(train: Path, change: Callable[[dict[str, bytes]], dict[str, bytes]]) -> None:
    """Changes one sample of a shard, with right checksums everywhere."""
    opened = ShardSet([train])
    first, end = opened.shard_sizes[0], opened.shard_sizes[:2].sum()
    encoded = [Encoded(s.key, s.members, opened.expr[i]) for i in range(first, end) for s in [opened.read(i)]]
    encoded[2] = replace(encoded[2], members=change(dict(encoded[2].members)))
    put_shard(train, 1, encoded)


_BAD_SAMPLES: dict[str, Callable[[dict[str, bytes]], dict[str, bytes]]] = {
    "member missing": lambda members: {"json": members["json"]},
    "JPEG cut, with a right checksum": lambda members: members | {"jpg": smooth_jpeg(3, 48)[:-200]},
    "JPEG of junk, with a right checksum": lambda members: members | {"jpg": b"\xff\xd8junk"},
    "labels no JSON, with a right checksum": lambda members: members | {"json": b"{"},
    "labels out of range, with a right checksum": lambda members: members | {"json": b'{"valence": 7}'},
}


def _trained(scale: Scale) -> list[str]:
    """What real trainings on damaged shards do: stop by default, or leave out, count and limit."""
    training = Training(scale, "quarantined", settings=["data.shards=damaged", "train.epochs=1"])
    folder = training.folder / "damaged"
    shutil.copytree(training.folder / SHARDS, folder)
    flip(folder / "train" / "faces-000001.tar", 700)
    (folder / "train" / "faces-000003.idx").unlink()
    problems = []
    life = training.start()
    if life.end() != 1 or "faceprior: " not in life.said() or "Traceback" in life.said():
        problems.append(f"data.damaged=stop does not stop with a message: {life.said()[-200:]}")
    life = training.start("data.damaged=quarantine")
    if life.end() != 1 or "17 of 160 samples are damaged" not in life.said():
        problems.append(f"data.max_damaged is not kept: {life.said()[-200:]}")
    allowed = ["data.damaged=quarantine", "data.max_damaged=0.2"]
    for more in (["train.stop_at_step=3"], []):
        life = training.start(*allowed, *more)
        if life.end() != 0:
            problems.append(f"quarantine does not go on: {life.said()[-200:]}")
    if problems:
        return problems
    facts = json.loads((training.run / "run.json").read_text())["data"]
    if (facts["num_samples"], facts["num_left_out"]) != (143, 17):
        problems.append(f"run.json says {facts['num_samples']} used, {facts['num_left_out']} left out")
    return problems


def checkpoints(scale: Scale) -> list[Row]:
    """Row 7."""
    settings = ["train.save_every=2", "train.epochs=1", "eval.max_samples=8"]
    training = Training(scale, "whole-7", settings=settings)
    problems = [] if training.start("train.stop_at_step=6").end() == 0 else ["no checkpoints to damage"]
    store = training.run / "checkpoints"
    names = sorted(path.name for path in CheckpointStore(store).folders()[-1].iterdir())
    cases = [(name, how) for name in names for how in ("flip", "cut", "empty", "delete")]
    for name, how in cases:
        copy = scale.folder / "damaged-store"
        shutil.copytree(store, copy)
        _damage(copy / "step-00000006" / name, how)
        problems += _load(copy, f"{name}, {how}")
        shutil.rmtree(copy)
    problems += _every_flip(store / "step-00000006", 11 if scale.short else 1)
    chosen = cases[:: len(cases) // 2] if scale.short else cases
    for number, (name, how) in enumerate(chosen):
        problems += _resume(training, f"damaged-7-{number}", name, how)
    torn = _save_beside_damage(training, scale.short)
    problems += torn.problems
    return [
        Row(
            7,
            "any file of a checkpoint flipped, cut, emptied or deleted",
            "detected, the previous good one used and said, never fewer than one good on disk",
            not problems,
            verdict(
                problems,
                f"{len(cases)} damages of {len(names)} files detected, in {len(chosen)} of them the training "
                f"itself was gone on with; {torn.count} saves killed while the newest checkpoint was damaged "
                f"(the least that was left: {torn.least} good)",
            ),
        )
    ]


def _damage(path: Path, how: str) -> None:
    if how == "delete":
        path.unlink()
    elif how == "flip":
        flip(path, path.stat().st_size // 2)
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 if how == "cut" else 0])


def _load(store: Path, what: str) -> list[str]:
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            loaded = CheckpointStore(store).load()
    except CheckpointError as error:
        return [f"{what}: not loaded ({error})"]
    if loaded is None or loaded.step != 4:
        return [f"{what}: not detected"]
    return [] if "damaged checkpoint" in said.getvalue() else [f"{what}: not said"]


def _every_flip(folder: Path, every: int) -> list[str]:
    """Flips each, or each `every`-th, byte of a checkpoint's manifest: noticed, or of no consequence."""
    path, whole = folder / "manifest.json", read_checkpoint(folder)
    data = path.read_bytes()
    problems = []
    for place in range(0, len(data), every):
        flip(path, place)
        try:
            again = read_checkpoint(folder)
            if (again.step, again.files.keys()) != (whole.step, whole.files.keys()):
                problems.append(f"manifest.json, byte {place}: not detected")
        except DamagedError:
            pass
        except CheckpointError as error:
            problems.append(f"manifest.json, byte {place}: taken for whole ({error})")
        path.write_bytes(data)
    return problems


def _resume(whole: Training, run: str, name: str, how: str) -> list[str]:
    """A training whose newest checkpoint is damaged, gone on with."""
    training = replace(whole, name=run, drawn={})
    shutil.copytree(whole.run, training.run)
    _damage(training.run / "checkpoints" / "step-00000006" / name, how)
    life = training.start("train.stop_at_step=8")
    if life.end() != 0 or life.began != 4 or "damaged checkpoint" not in life.said():
        return [f"{name}, {how}: {life.said()[-200:]}"]
    return [] if len(training.good()) >= 2 else [f"{name}, {how}: {training.good()} are left"]


class _Torn:
    """Saves that were killed while the newest checkpoint was damaged."""

    def __init__(self) -> None:
        self.count, self.least, self.problems = 0, 9, list[str]()


def _save_beside_damage(whole: Training, short: bool) -> _Torn:
    """The newest checkpoint is damaged while a training runs; then the next save is killed in each step."""
    found = _Torn()
    probe = replace(whole, name="torn-probe", drawn={})
    shutil.copytree(whole.run, probe.run)
    life = probe.start("train.stop_at_step=8", call=_BESIDE)
    if life.end() != 0:
        found.problems.append(f"does not go on beside a damaged checkpoint: {life.said()[-300:]}")
    steps = [step for step in life.steps() if step.split()[1].startswith("checkpoints/")]
    labels = list(dict.fromkeys(steps))
    labels = labels[len(labels) // 4 :: max(1, len(labels) // 2)] if short else labels[::3]
    for number, label in enumerate(labels):
        training = replace(whole, name=f"torn-{number}", drawn={})
        shutil.copytree(whole.run, training.run)
        life = training.start("train.stop_at_step=8", trap={"at": 1, "only": f"{label}\n"}, call=_BESIDE)
        if life.end() == -signal.SIGKILL:
            found.count += 1
        found.least = min(found.least, len(training.good()))
        if not training.good():
            found.problems.append(f"killed at {label!r} beside a damaged checkpoint: no good one is left")
    if not found.count:
        found.problems.append("no save was killed")
    return found
