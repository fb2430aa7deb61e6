"""Hostile texts: settings, names, labels, lists, indexes and manifests, and what becomes of them on pages."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines.checkpoint import CheckpointStore
from pipelines.config import load_config, to_yaml
from pipelines.doctor import write_page
from pipelines.importing import import_weights
from pipelines.predictions import build_predictions
from pipelines.predictions_csv import read_csv, write_csv
from pipelines.report import write_report
from pipelines.rundir import RunDir
from pipelines.thresholds import load_thresholds
from shards.index import MAGIC, IndexRow, index_bytes, parse_index
from shards.labels import ClipLabels, FaceLabels
from shards.manifest import load_manifest
from shards.quarantine import quarantine_csv
from shards.records import safe_key
from shards.shardset import RawSample, open_shards
from shards.sources.tables import read_csv as read_table
from shards.sources.tables import read_label_rows
from shards.stream import decode_labels
from tests.reliability.hostile import Case
from tests.shards.doctor.sets import edit_manifest, look, made_set

_SCRIPT = "<script>open('canary')</script>"
_BREAKOUT = "\"><img src=x onerror=alert(1)>'"
_FORMULAS = ("=cmd|'/c calc'!A0", "+1+cmd", "-2+3", "@SUM(A1)", "\t=1", "\r=1")
_DEEP = "[" * 200_000
_LAUGHS = "a: &a {x: 1}\n" + "".join(
    f"{b}: &{b} {{{', '.join(f'k{i}: *{a}' for i in range(9))}}}\n" for a, b in zip("abcdefghi", "bcdefghij")
)


def _settings(text: str) -> Case:
    def case(place: Path) -> Any:
        os.chdir(place)
        (place / "x.yaml").write_text(text)
        return to_yaml(load_config(str(place / "x.yaml")))

    return case


def _given(*words: str) -> Case:
    def case(place: Path) -> Any:
        os.chdir(place)
        return to_yaml(load_config("", words))

    return case


def _labels(text: str | bytes) -> Case:
    data = text.encode() if isinstance(text, str) else text
    return lambda place: decode_labels(RawSample("k", {"json": data}, "x")).to_json()


def _manifest(**values: Any) -> Case:
    """A set whose manifest says something else, opened and read."""

    def case(place: Path) -> Any:
        os.chdir(place)
        edit_manifest(made_set(place / "set", counts={"train": 4}) / "train", **values)
        opened = open_shards(str(place / "set"), "train")
        return opened.read(0).key

    return case


def _shard(**values: Any) -> Case:
    entry = {"tar_size": 1, "tar_sha256": "", "index": "x.idx", "index_sha256": "", "num_samples": 4}
    return _manifest(shards=[{"tar": "faces-000000.tar", **entry, **values}], num_samples=4)


def _index(row: IndexRow, tar: str = "a.tar") -> Case:
    return lambda place: len(parse_index(index_bytes(tar, 1000, "0" * 64, [row]), "x"))


def _checkpoint_manifest(change: Callable[[dict[str, Any]], Any]) -> Case:
    def case(place: Path) -> Any:
        folder = place / "step-00000002"
        folder.mkdir()
        data = {"format": "faceprior-checkpoint", "version": 1, "files": {"state.json": "0"}}
        (folder / "manifest.json").write_text(json.dumps(change(data)))
        return CheckpointStore(place).load()

    return case


def _run_directory(place: Path) -> Path:
    """What a run leaves, with names that a page must not take for markup."""
    run = place / f"run-{_SCRIPT.replace('/', '')}"
    run.mkdir()
    (run / "config.yaml").write_text(to_yaml(load_config()))
    data = {"num_samples": 3, "sources": [_SCRIPT], "licences": [_BREAKOUT], "rendered": False}
    facts = {"task": _SCRIPT, "data": data, "total_steps": 2, "starts": [], "revision": _SCRIPT}
    facts |= {"versions": {_SCRIPT: _BREAKOUT}, "device": _SCRIPT, "command": [_BREAKOUT]}
    (run / "run.json").write_text(json.dumps(facts))
    names = ("neutral", _SCRIPT)
    made = build_predictions(
        "val", [_SCRIPT, "b"], expr_names=names, au_names=(), expr=[0, 1], expr_probs=[[1, 0], [0, 1]]
    )
    write_csv(made, run / "predictions" / "val.csv")
    return run


def _report(place: Path) -> str:
    return _clean(write_report([_run_directory(place)]).read_text())


def _doctor(place: Path) -> str:
    made = made_set(place / "set", counts={"train": 4}, labels={"train-0001": {"expr": _SCRIPT}})
    edit_manifest(made / "train", source=_SCRIPT, licence=_BREAKOUT, alignment={_SCRIPT: _BREAKOUT})
    write_page(look(made), place / "doctor.html")
    return _clean((place / "doctor.html").read_text())


def _clean(html: str) -> str:
    """
    Raises:
        AssertionError: markup of ours is in it.
    """
    assert _SCRIPT not in html and "<img src=x" not in html
    return "escaped"


def _predictions(place: Path) -> str:
    keys = [*_FORMULAS, "b"]
    made = build_predictions("val", keys, expr_names=("a",), au_names=(), name=keys)
    write_csv(made, place / "x.csv")
    assert sorted(read_csv(place / "x.csv").keys) == sorted(keys)
    return _no_formula((place / "x.csv").read_text())


def _quarantine(place: Path) -> str:
    return _no_formula(quarantine_csv([(text, text) for text in _FORMULAS]).decode())


def _no_formula(text: str) -> str:
    for row in csv.reader(io.StringIO(text, newline="")):
        assert not any(cell[:1] in "=+-@\t\r" for cell in row if cell), row
    return "guarded"


def _metrics(place: Path) -> Any:
    run = RunDir(place)
    (place / "run.json").write_text(_DEEP)
    return run.facts()


def _json_file(name: str, text: str, take: Callable[[Path], Any]) -> Case:
    def case(place: Path) -> Any:
        (place / name).write_text(text)
        return take(place / name)

    return case


def _import_to_nowhere(place: Path) -> Any:
    return import_weights(place / "x.pth", place / "no" / "such" / "out.safetensors")


def _swapped_link(place: Path) -> Any:
    """A shard that is a link to something else."""
    made = made_set(place / "set", counts={"train": 4})
    tar = made / "train" / "faces-000000.tar"
    size = tar.stat().st_size
    tar.unlink()
    tar.symlink_to("/dev/zero" if size else "/dev/null")
    return open_shards(str(made), "train").read(0)


def _swapped_bytes(place: Path) -> Any:
    """Another set's tar under the name of this one's."""
    first, second = (made_set(place / name, counts={"train": 4}, seed=i) for i, name in enumerate("ab"))
    names = ("faces-000000.tar", "faces-000000.idx")
    for name in names:
        shutil.copy(second / "train" / name, first / "train" / name)
    return open_shards(str(first), "train").read(0)


_ROW = ("jpg", 512, 10, 0)
CASES: dict[str, Case] = {
    "yaml: a python tag": _settings("run: !!python/object/apply:os.system ['touch canary']"),
    "yaml: a python tag as a key": _settings("? !!python/object/apply:os.system ['touch canary']\n: 1"),
    "yaml: a python module": _settings("seed: !!python/module:os"),
    "yaml: a binary tag": _settings("run: !!binary aGk="),
    "yaml: a name from the environment": _settings("run: ${oc.env:HOME}"),
    "yaml: a reference": _settings("run: ${data.shards}"),
    "yaml: a resolver": _settings("run: ${oc.create:x}"),
    "yaml: laughs": _settings(_LAUGHS),
    "yaml: a loop": _settings("a: &a\n  b: *a"),
    "yaml: deep": _settings(_DEEP),
    "yaml: a huge number": _settings(f"seed: {'9' * 6000}"),
    "yaml: not a number": _settings("optim: {base_lr: .nan}"),
    "yaml: infinite": _settings("train: {epochs: inf}"),
    "yaml: no text": lambda place: (
        (place / "x.yaml").write_bytes(b"\xff\xfe\0"),
        load_config(str(place / "x.yaml")),
    ),
    "setting: a name from the environment": _given("run=${oc.env:HOME}"),
    "setting: a name from the environment, in a list": _given("encoder.image_size=[${oc.env:HOME},3]"),
    "setting: an attribute": _given("__class__=x"),
    "setting: an attribute of a group": _given("train.__init__=x"),
    "setting: a huge number": _given("train.keep=" + "9" * 6000),
    "setting: NUL": _given("seed=1\0"),
    "shards: a pipe": lambda place: open_shards("pipe:touch canary", "train"),
    "shards: an address": lambda place: open_shards("http://127.0.0.1:9/x", "train"),
    "shards: NUL": lambda place: open_shards("a\0b", "train"),
    "manifest: a pipe": _shard(tar="pipe:touch canary"),
    "manifest: a name that climbs": _shard(tar="../x.tar"),
    "manifest: a name from the root": _shard(tar="/etc/passwd"),
    "manifest: an index that climbs": _shard(index="../../x.idx"),
    "manifest: NUL in a name": _shard(tar="a\0.tar"),
    "manifest: a name that is a list": _shard(tar=["x"]),
    "manifest: counts that are text": _manifest(num_samples="4"),
    "manifest: a negative count": _shard(num_samples=-4),
    "manifest: too few shards": _manifest(shards=[], num_samples=0),
    "manifest: deep": lambda place: (place / "manifest.json").write_text(_DEEP) and load_manifest(place),
    "manifest: half a surrogate": _manifest(source="\ud800"),
    "index: a member beyond its tar": _index(IndexRow("k", [("jpg", 512, 10**12, 0)])),
    "index: a tar that climbs": _index(IndexRow("k", [_ROW]), "../a.tar"),
    "index: magic alone": lambda place: parse_index(MAGIC, "x"),
    "index: a header of gigabytes": lambda place: parse_index(
        MAGIC + b"\1\0\0\0\xff\xff\xff\xff" + bytes(80), "x"
    ),
    "checkpoint: a name that climbs": _checkpoint_manifest(
        lambda data: data | {"files": {"../x": "", "state.json": ""}}
    ),
    "checkpoint: NUL in a name": _checkpoint_manifest(
        lambda data: data | {"files": {"a\0": "", "state.json": ""}}
    ),
    "checkpoint: files that are a list": _checkpoint_manifest(lambda data: data | {"files": ["state.json"]}),
    "checkpoint: no object": _checkpoint_manifest(lambda data: [data]),
    "labels: deep": _labels(_DEEP),
    "labels: a huge number": _labels('{"valence": 1' + "0" * 400 + "}"),
    "labels: more digits than Python reads": _labels('{"valence": ' + "1" * 6000 + "}"),
    "labels: not a number": _labels('{"valence": NaN}'),
    "labels: infinite": _labels('{"arousal": Infinity}'),
    "labels: bytes that are no text": _labels(b"\xff\xfe{}"),
    "labels: of millions of frames": lambda place: ClipLabels.from_json({"num_frames": 10**9, "fps": 30}),
    "labels: a unit that is a script": lambda place: FaceLabels.from_json({"au": {_SCRIPT: 7}}),
    "labels: an object for a name": _labels('{"expr": {"__class__": "os"}}'),
    "table: a cell of a megabyte": lambda place: list(read_table(b"a,b\n" + b"x" * 10**6 + b",1\n", "x")),
    "table: an open quote": lambda place: list(read_table(b'a,b\n"' + b"x,\n" * 10**5, "x")),
    "table: NUL": lambda place: list(read_table(b"a,b\n\0,1\n", "x")),
    "table: deep": lambda place: read_label_rows(_DEEP.encode(), "x.json"),
    "key: climbs": lambda place: _plain_key("../../etc/passwd"),
    "key: a script": lambda place: _plain_key(_SCRIPT),
    "key: nothing": lambda place: _plain_key("\0/.."),
    "thresholds: deep": _json_file("thresholds.json", _DEEP, load_thresholds),
    "run.json: deep": _metrics,
    "page: names of runs, sources and classes": _report,
    "page: doctor": _doctor,
    "csv: predictions": _predictions,
    "csv: quarantine": _quarantine,
    "import into no folder": _import_to_nowhere,
    "shard: a link to a device": _swapped_link,
    "shard: of another set": _swapped_bytes,
}


def _plain_key(text: str) -> str:
    key = safe_key(text)
    assert not set(key) & set("/.<>\0")
    return key
