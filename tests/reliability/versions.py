"""Row 13: files of older and of later versions."""

from __future__ import annotations

import json
import re
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines.checkpoint import CheckpointStore, load_encoder, read_tensors, write_tensors
from pipelines.models import load_model
from pipelines.rundir import RunDir
from pipelines.thresholds import fixed_thresholds, load_thresholds, save_thresholds
from shards.files import sha256_file
from shards.manifest import load_manifest
from shards.records import fingerprint
from shards.shardset import open_shards
from tests.reliability.hostile import TYPED
from tests.reliability.row import Row, Scale, verdict
from tests.reliability.training import SHARDS, Training

_REMEDY = re.compile(r"restore|make it anew|go on with|use the faceprior|tune (them )?again|looked for again")


def measure(scale: Scale) -> list[Row]:
    """Row 13."""
    settings = ["train.epochs=1", "train.save_every=5", "eval.max_samples=8", "data.damaged=quarantine"]
    training = Training(scale, "versions", settings=settings)
    problems = [] if training.start("train.stop_at_step=6").end() == 0 else ["no run to look at"]
    refused, taken = 0, 0
    for name, refuse in _OTHERS.items():
        for version in (0, 2, 99):
            place = _copy(training, scale.folder / "versions")
            text = _refusal(refuse, place, version)
            refused += 1
            if not re.search(r"version", text) or not _REMEDY.search(text):
                problems.append(f"{name} of version {version}: {text or 'taken'}")
    for name, change in _OLDER.items():
        place = _copy(training, scale.folder / "versions")
        change(place)
        text = _refusal(_read_all, place)
        taken += 1
        if text:
            problems.append(f"{name}: {text}")
    problems += _resumed(training)
    text = (
        f"{len(_OTHERS)} formats of 3 other versions each: {refused} refused by name with the remedy; "
        f"{taken} older forms of this version ({', '.join(_OLDER)}) read; a run with settings of another "
        "version is refused by their name"
    )
    return [
        Row(
            13,
            "files of an older or later version of a format",
            "read, or refused by name with the remedy",
            not problems,
            verdict(problems, text),
        )
    ]


def _copy(training: Training, place: Path) -> Path:
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(training.run, place / "run")
    shutil.copytree(training.folder / SHARDS, place / "set")
    return place


def _refusal(read: Callable[..., Any], *arguments: Any) -> str:
    """What a typed error says; "" where there is none."""
    try:
        read(*arguments)
    except TYPED as error:
        return str(error)
    return ""


def _edit(path: Path, drop: tuple[str, ...] = (), **values: Any) -> None:
    """Changes a JSON file as another program would have written it: its checksum, if it has one, is right."""
    data = {name: value for name, value in json.loads(path.read_bytes()).items() if name not in drop} | values
    if data.pop("checksum", None) is not None:
        data["checksum"] = fingerprint(data)
    path.write_text(json.dumps(data))


def _checkpoint(place: Path) -> Path:
    return CheckpointStore(place / "run" / "checkpoints").folders()[-1]


def _manifest(place: Path, version: int) -> Any:
    _edit(place / "set" / "train" / "manifest.json", version=version)
    return load_manifest(place / "set" / "train")


def _index(place: Path, version: int) -> Any:
    path = place / "set" / "train" / "faces-000000.idx"
    data = bytearray(path.read_bytes())
    data[8:12] = struct.pack("<I", version)
    data[-4:] = struct.pack("<I", zlib.crc32(data[:-4]))
    path.write_bytes(data)
    manifest = json.loads((path.parent / "manifest.json").read_bytes())
    manifest["shards"][0]["index_sha256"] = sha256_file(path)
    _edit(path.parent / "manifest.json", shards=manifest["shards"])
    return open_shards(str(place / "set"), "train")


def _checkpoint_manifest(place: Path, version: int) -> Any:
    _edit(_checkpoint(place) / "manifest.json", version=version)
    return CheckpointStore(place / "run" / "checkpoints").load()


def _state(place: Path, version: int) -> Any:
    _edit(_checkpoint(place) / "state.json", version=version)
    _seal(_checkpoint(place), "state.json")
    return CheckpointStore(place / "run" / "checkpoints").load()


def _seal(folder: Path, name: str) -> None:
    """Makes a file's digest in its checkpoint's manifest right."""
    files = json.loads((folder / "manifest.json").read_bytes())["files"]
    _edit(folder / "manifest.json", files=files | {name: sha256_file(folder / name)})


def _facts(name: str, load: Callable[[Path], Any], **more: Any) -> Callable[[Path, int], Any]:
    def refuse(place: Path, version: int) -> Any:
        path = place / "other.safetensors"
        file = read_tensors(_checkpoint(place) / f"{name}.safetensors")
        write_tensors(path, type(file)(file.tensors, {**file.facts, **more, "version": version}))
        return load(path)

    return refuse


def _run_facts(place: Path, version: int) -> Any:
    _edit(place / "run" / "run.json", version=version)
    return RunDir(place / "run").facts()


def _thresholds(place: Path, version: int) -> Any:
    save_thresholds(fixed_thresholds(("AU1",)), place / "thresholds.json")
    _edit(place / "thresholds.json", version=version)
    return load_thresholds(place / "thresholds.json")


_OTHERS: dict[str, Callable[[Path, int], Any]] = {
    "manifest of a shard set": _manifest,
    "index": _index,
    "manifest of a checkpoint": _checkpoint_manifest,
    "state of a checkpoint": _state,
    "encoder": _facts("encoder", load_encoder),
    "model": _facts("model", load_model, format="faceprior-model"),
    "run.json": _run_facts,
    "thresholds": _thresholds,
}


def _without_skipped(place: Path) -> None:
    _edit(_checkpoint(place) / "state.json", ("skipped",))
    _seal(_checkpoint(place), "state.json")


_OLDER: dict[str, Callable[[Path], None]] = {
    "a shard manifest without checksum": lambda place: _edit(
        place / "set" / "train" / "manifest.json", ("checksum",)
    ),
    "a checkpoint manifest without checksum": lambda place: _edit(
        _checkpoint(place) / "manifest.json", ("checksum",)
    ),
    "a state without skipped updates": _without_skipped,
    "a run.json without starts": lambda place: _edit(place / "run" / "run.json", ("starts", "version")),
}


def _read_all(place: Path) -> None:
    open_shards(str(place / "set"), "train")
    loaded = CheckpointStore(place / "run" / "checkpoints").load()
    assert loaded is not None and loaded.step == 6
    load_encoder(_checkpoint(place))
    RunDir(place / "run").facts()


def _resumed(training: Training) -> list[str]:
    """A run whose settings lack some of today's goes on; one that has others is refused."""
    path = training.run / "config.yaml"
    text = path.read_text()
    assert "max_damaged" in text
    path.write_text("".join(line for line in text.splitlines(keepends=True) if "max_damaged" not in line))
    problems = [] if training.start("train.stop_at_step=8").end() == 0 else ["settings that are missing"]
    path.write_text(text.replace("max_damaged:", "max_dmaged:"))
    life = training.start()
    if life.end() != 2 or "max_dmaged" not in life.said() or "go on with the version" not in life.said():
        problems.append(f"settings of another version: {life.said()[-300:]}")
    path.write_text(text)
    _edit(training.run / "damaged.json", version=2)
    life = training.start()
    if life.end() != 1 or "looked for again" not in life.said():
        problems.append(f"damaged.json of another version: {life.said()[-300:]}")
    return problems
