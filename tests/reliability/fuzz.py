"""Row 10: readers of files fed with whatever hypothesis thinks of, mixed into files that are right."""

from __future__ import annotations

import json
import random
import struct
import tempfile
import time
import traceback
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from pipelines.checkpoint import Checkpoint, CheckpointStore, TensorFile, read_checkpoint
from pipelines.config import load_config, to_yaml
from pipelines.predictions_csv import read_csv as read_predictions
from pipelines.thresholds import fixed_thresholds, load_thresholds, save_thresholds
from shards.index import IndexRow, index_bytes, parse_index
from shards.labels import ClipLabels
from shards.manifest import NAME, load_manifest
from shards.records import fingerprint
from shards.shardset import RawSample
from shards.sources import affectnet, celeba, listing, rafdb, tables
from shards.stream import decode_labels, parse_json
from shards.tars import walk_samples
from tests.reliability.hostile import TYPED
from tests.reliability.row import Row, Scale, verdict
from tests.shards.doctor.sets import made_set
from tests.shards.test_tars import make_tar

_RUNS = 50  # of one example of hypothesis
_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=2**62, max_value=2**70)
    | st.floats()
    | st.text(st.characters(), max_size=12)
    | st.sampled_from(
        ["", "\0", "..", "../x", "\ud800", "${oc.env:HOME}", "1e999", "-1", "٣", "0x10", "٣" * 5]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@dataclass(frozen=True)
class Target:
    """One reader.

    Attributes:
        name: of it.
        seeds: files that it takes.
        read: takes bytes.
        share: of all runs.
        mend: makes checksums right again, so that what lies behind them is reached.
    """

    name: str
    seeds: Sequence[bytes]
    read: Callable[[bytes], Any]
    share: float
    mend: Callable[[bytes], bytes] = lambda data: data


@dataclass
class _Tally:
    runs: int = 0
    taken: int = 0
    found: dict[str, str] = field(default_factory=dict)


def measure(scale: Scale) -> list[Row]:
    """Row 10."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else scale.folder) as name:
        targets, tally, spent = list(_targets(Path(name))), _Tally(), []
        for target in targets:
            started = time.monotonic()
            _feed(target, max(1, round(scale.fuzz * target.share / _RUNS)), tally)
            spent.append(f"{target.name} {time.monotonic() - started:.0f} s")
    problems = [f"{where}: {what}" for where, what in sorted(tally.found.items())]
    text = (
        f"{tally.runs:,} runs of {len(targets)} readers ({', '.join(target.name for target in targets)}): "
        f"{tally.runs - tally.taken:,} refused by a typed error, {tally.taken:,} taken, {len(problems)} "
        "other errors"
    )
    if scale.fuzz > 10**5:
        print(f"fuzzing: {', '.join(spent)}")
    return [
        Row(
            10,
            "fuzzing of index, manifest, checkpoint manifest, annotations, settings",
            f"{scale.fuzz:,} runs, typed errors only",
            not problems and tally.runs >= scale.fuzz,
            verdict(problems, text),
        )
    ]


def _feed(target: Target, examples: int, tally: _Tally) -> None:
    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.integers(0, 2**32), st.binary(max_size=24), _VALUES)
    def feed(seed: int, splice: bytes, value: Any) -> None:
        chance = random.Random(seed)
        for _ in range(_RUNS):
            data = _changed(chance.choice(target.seeds), chance, splice, value)
            _read(target, target.mend(data) if chance.random() < 0.7 else data, tally)

    before = tally.runs
    feed()
    chance = random.Random(target.name)
    while (
        tally.runs - before < examples * _RUNS
    ):  # hypothesis stops where it has seen all that it can think of
        _read(target, _changed(chance.choice(target.seeds), chance, b"\0\xff", None), tally)


def _read(target: Target, data: bytes, tally: _Tally) -> None:
    tally.runs += 1
    try:
        target.read(data)
        tally.taken += 1
    except TYPED:
        pass
    except Exception as error:
        places = [
            frame
            for frame in traceback.extract_tb(error.__traceback__)
            if "reliability" not in frame.filename
        ]
        place = places[-1] if places else traceback.extract_tb(error.__traceback__)[-1]
        where = f"{target.name}, {Path(place.filename).name} {place.lineno}"
        tally.found.setdefault(where, f"{type(error).__name__}: {error!s:.120} on {data!r:.200}")


def _changed(data: bytes, chance: random.Random, splice: bytes, value: Any) -> bytes:
    """A file with something else in it: another value in its JSON, or other bytes."""
    if data[:1] in (b"{", b"[") and chance.random() < 0.6:
        return _other_value(data, chance, value)
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 5))):
        at, how = chance.randrange(len(changed) + 1), chance.randrange(5)
        if how == 0 and at < len(changed):
            changed[at] ^= 1 << chance.randrange(8)
        elif how == 1:
            changed[at:at] = splice
        elif how == 2:
            changed[at : at + len(splice)] = splice
        elif how == 3:
            del changed[at : at + chance.choice((1, 4, 40, len(changed)))]
        else:
            changed[at : at + 8] = struct.pack(
                "<Q", chance.choice((0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1))
            )
    return bytes(changed)


def _other_value(data: bytes, chance: random.Random, value: Any) -> bytes:
    whole = json.loads(data)
    place = whole
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            break
        key = chance.choice(keys)
        if isinstance(place[key], dict | list) and place[key] and chance.random() < 0.7:
            place = place[key]
        elif chance.random() < 0.1:
            del place[key]
            break
        else:
            place[key] = value
            break
    return json.dumps(whole, ensure_ascii=chance.random() < 0.9).encode(errors="surrogatepass")


def _with_crc(data: bytes) -> bytes:
    return data[:-4] + struct.pack("<I", zlib.crc32(data[:-4]))


def _with_checksum(data: bytes) -> bytes:
    try:
        whole = json.loads(data)
        whole.pop("checksum", None)
        return json.dumps(whole | {"checksum": fingerprint(whole)}).encode()
    except Exception:
        return data


def _from_file(path: Path, read: Callable[[Path], Any]) -> Callable[[bytes], Any]:
    def take(data: bytes) -> Any:
        path.write_bytes(data)
        found = read(path)
        return list(found) if hasattr(found, "__next__") else found

    return take


def _targets(folder: Path) -> Sequence[Target]:
    rows = [
        IndexRow("ké", [("jpg", 512, 10, 7), ("json", 1536, 4, 9)], 3),
        IndexRow("b", [("jpg", 4096, 9, 1)]),
    ]
    index = index_bytes("a.tar", 10240, "0" * 64, rows)
    manifest = (made_set(folder / "set", counts={"train": 4}) / "train" / NAME).read_bytes()
    store = CheckpointStore(folder / "store")
    saved = store.save(Checkpoint(2, 32, {"model": TensorFile({}, {"format": "x"})}))
    labels = json.dumps(
        {
            "expr": "anger",
            "au": {"AU1": 1},
            "valence": 0.1,
            "arousal": 1,
            "identity": "x",
            "extra": {"a": [1]},
        }
    ).encode()
    clip = json.dumps({"num_frames": 3, "fps": 25, "valence": [0, None, 1], "start_frame": 4}).encode()
    table = b"image,valence,arousal,expr,AU01,au2\na.jpg,0.1,-1,anger,1,0\nb.jpg,,,,-1,999\n"
    codes = tables.LabelCodes((), ("-1", "-5", "999"))
    tar = make_tar(folder / "seed.tar", [("1.jpg", b"abc"), ("1.json", b"{}"), ("2.jpg", b"x")]).read_bytes()[
        :5120
    ]
    predictions = b"key,split,name,group,frame,expr,valence,arousal,pred.expr.a,pred.valence,pred.arousal\n"
    predictions += b"k,val,,,3,a,0.5,,1.0,0.5,0\n"
    save_thresholds(fixed_thresholds(("AU1", "AU2")), folder / "t.json")
    thresholds = (folder / "t.json").read_bytes()
    words = [b"train.epochs=3", b"encoder.image_size=[3, 4]", b"optim.base_lr=1e-3", b"crop.resize=null"]

    def take_table(data: bytes) -> Any:
        return [tables.labels_of(row, codes) for row in tables.read_label_rows(data, "x.csv")]

    def take_json(data: bytes) -> Any:
        return [tables.labels_of(row, codes) for row in tables.read_label_rows(data, "x.json")]

    def take_clip(data: bytes) -> Any:
        return ClipLabels.from_json(parse_json(RawSample("k", {"json": data}, "x"))).to_json()

    def take_manifest(path: Path) -> Any:
        return load_manifest(path.parent).hash

    def take_setting(data: bytes) -> Any:
        return load_config("", [data.decode(errors="replace")])

    return [
        Target("index", [index], lambda data: parse_index(data, "x").rows(), 0.35, _with_crc),
        Target(
            "manifest",
            [manifest],
            _from_file(_folder(folder / "m") / NAME, take_manifest),
            0.05,
            _with_checksum,
        ),
        Target(
            "checkpoint manifest",
            [(saved / NAME).read_bytes()],
            _from_file(saved / NAME, lambda path: read_checkpoint(path.parent)),
            0.08,
            _with_checksum,
        ),
        Target(
            "labels",
            [labels],
            lambda data: decode_labels(RawSample("k", {"json": data}, "x")).to_json(),
            0.22,
        ),
        Target("labels of clips", [clip], take_clip, 0.08),
        Target("table", [table, table.replace(b",", b";")], take_table, 0.05),
        Target("table of JSON", [b'{"a.jpg": {"expr": "anger", "valence": 0.5, "AU1": 1}}'], take_json, 0.05),
        Target("list", [b"a/1.jpg,0.1,-0.2,3\n"], _from_file(folder / "l.txt", listing.read_list), 0.02),
        Target(
            "RAF-DB",
            [b"train_00001.jpg 5\ntest_2.jpg 1\n"],
            _from_file(folder / "r.txt", rafdb._read_rows),
            0.02,
        ),
        Target(
            "CelebA",
            [b"2\nx y\na.jpg 1 -1\nb.jpg 1 1\n"],
            _from_file(folder / "c.txt", lambda path: celeba._read_list(path, None, counted=True)),
            0.02,
        ),
        Target(
            "AffectNet",
            [",".join(affectnet._COLUMNS).encode() + b"\na.jpg" + b",1" * (len(affectnet._COLUMNS) - 1)],
            _from_file(folder / "a.csv", affectnet.read_table),
            0.02,
        ),
        Target("tar", [tar], _from_file(folder / "t.tar", walk_samples), 0.02),
        Target("predictions", [predictions], _from_file(folder / "p.csv", read_predictions), 0.01),
        Target("thresholds", [thresholds], _from_file(folder / "t.json", load_thresholds), 0.009),
        Target("setting", words, take_setting, 0.0005),
        Target("YAML", [to_yaml(load_config()).encode()], _from_file(folder / "x.yaml", _take_yaml), 0.0005),
    ]


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def _take_yaml(path: Path) -> Any:
    return load_config(str(path))
