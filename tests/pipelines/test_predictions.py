"""The csv gives back what went in, exactly, and says where it is wrong."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import predictions_csv as module
from pipelines.predictions import HEADS, Predictions, build_predictions, named_split
from pipelines.predictions_csv import read_csv, write_csv
from shards.labels import AU12, EXPR8, DataError


def sample(count: int = 40, seed: int = 0) -> Predictions:
    """Every head and label, some labels missing, keys not in order."""
    rng = np.random.default_rng(seed)
    probs = rng.random((count, 8)) ** 9
    va = rng.uniform(-1, 1, (count, 2))
    va[::3, 0] = np.nan
    numbers = rng.permutation(count)
    return build_predictions(
        "val",
        [f"clip_{n:05d}" for n in numbers],
        group=["clip" if n % 4 else "" for n in numbers],
        frame=np.where(numbers % 5 == 0, -1, numbers),
        name=[f"clip/{n:05d}.jpg" for n in numbers],
        expr=rng.integers(-1, 8, count),
        va=va,
        au=rng.integers(-1, 2, (count, 12)),
        expr_probs=probs / probs.sum(1, keepdims=True),
        au_probs=rng.random((count, 12)).astype(np.float32),
        va_pred=rng.uniform(-1, 1, (count, 2)),
    )


def assert_same(one: Predictions, other: Predictions) -> None:
    for field in fields(Predictions):
        here, there = getattr(one, field.name), getattr(other, field.name)
        if isinstance(here, np.ndarray):
            assert here.dtype == there.dtype and here.shape == there.shape, field.name
            assert (here.tobytes() == there.tobytes()) or np.array_equal(here, there, equal_nan=True)
        else:
            assert here == there, field.name


def in_key_order(predictions: Predictions) -> Predictions:
    return predictions.take(np.argsort(np.array(predictions.keys)))


@pytest.mark.parametrize("chunk", [7, 8192])
def test_round_trip_is_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(module, "_CHUNK", chunk)
    written = sample()
    write_csv(written, tmp_path / "predictions" / "val.csv")
    assert_same(read_csv(tmp_path / "predictions" / "val.csv"), in_key_order(written))


def test_extreme_numbers_come_back_bit_by_bit(tmp_path: Path) -> None:
    values = np.array([[5e-324, -0.0], [1 - 2**-53, -1.0], [0.1 + 0.2, float(np.float32(0.1))]])
    write_csv(build_predictions("val", ["a", "b", "c"], va=values, va_pred=values), tmp_path / "x.csv")
    found = read_csv(tmp_path / "x.csv")
    assert found.va_pred is not None
    assert found.va_pred.tobytes() == values.tobytes() == found.va.tobytes()


def test_bytes_depend_on_the_content_alone(tmp_path: Path) -> None:
    written = sample()
    write_csv(written, tmp_path / "a.csv")
    write_csv(written.take(np.arange(len(written))[::-1]), tmp_path / "b.csv")
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["a.csv", "b.csv"]


@pytest.mark.parametrize("lacking", HEADS)
def test_a_head_that_is_not_there_stays_away(tmp_path: Path, lacking: str) -> None:
    gone: dict[str, Any] = {lacking: None}
    written = replace(sample(), **gone)
    assert lacking not in written.heads and len(written.heads) == 2
    write_csv(written, tmp_path / "x.csv")
    assert_same(read_csv(tmp_path / "x.csv"), in_key_order(written))


def test_another_label_space(tmp_path: Path) -> None:
    names = ("=evil", "plain, with comma")
    written = build_predictions(
        "test", ["k"], expr_names=names, au_names=(), expr=[0], expr_probs=np.array([[0.25, 0.75]])
    )
    write_csv(written, tmp_path / "x.csv")
    assert_same(read_csv(tmp_path / "x.csv"), written)


def test_columns_are_named_and_read_by_any_csv_reader(tmp_path: Path) -> None:
    written = in_key_order(sample())
    write_csv(written, tmp_path / "x.csv")
    with (tmp_path / "x.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[:8] == ["key", "split", "name", "group", "frame", "expr", "valence", "arousal"]
    assert list(rows[0])[8:] == [
        *(f"au.{name}" for name in AU12),
        *(f"pred.expr.{name}" for name in EXPR8),
        *(f"pred.au.{name}" for name in AU12),
        "pred.valence",
        "pred.arousal",
    ]
    assert written.expr_probs is not None
    for row, key, label, probs in zip(rows, written.keys, written.expr, written.expr_probs):
        assert row["key"] == key and row["split"] == "val"
        assert row["expr"] == ("" if label < 0 else EXPR8[label])
        assert float(row["pred.expr.sadness"]) == probs[5]


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@a", "\tx", "\rx", "\nx", "'quoted", "''", "＝1"])
def test_text_that_a_spreadsheet_would_run_is_guarded(tmp_path: Path, text: str) -> None:
    written = build_predictions(text, [text], group=[text], name=[text])
    write_csv(written, tmp_path / "x.csv")
    assert_same(read_csv(tmp_path / "x.csv"), written)
    with (tmp_path / "x.csv").open(newline="") as file:
        cells = list(csv.reader(file))[1]
    assert cells[:4] == ["'" + text] * 4


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=5, unique=True))
def test_any_unicode_text_round_trips(tmp_path_factory: pytest.TempPathFactory, keys: list[str]) -> None:
    path = tmp_path_factory.mktemp("any") / "x.csv"
    written = build_predictions("val", sorted(keys), group=sorted(keys), name=sorted(keys))
    write_csv(written, path)
    assert_same(read_csv(path), written)


def test_text_that_is_not_unicode_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not Unicode"):
        write_csv(build_predictions("val", ["a\udc80"]), tmp_path / "x.csv")
    assert list(tmp_path.iterdir()) == []


def set_cell(line: int, column: str, value: str) -> Callable[[list[list[str]]], None]:
    def change(rows: list[list[str]]) -> None:
        rows[line - 1][rows[0].index(column)] = value

    return change


@pytest.mark.parametrize(
    ("line", "column", "value", "said"),
    [
        (3, "key", "clip_00000", "which line 2 has too"),
        (3, "key", "", "is empty"),
        (4, "split", "train", "earlier lines have 'val'"),
        (5, "frame", "1.5", "expected a frame number"),
        (5, "frame", "-1", "expected a frame number"),
        (5, "frame", "inf", "expected a frame number"),
        (6, "expr", "joy", "expected one of neutral"),
        (7, "valence", "1.01", "expected a number in [-1, 1]"),
        (7, "arousal", "nan", "expected a number in [-1, 1]"),
        (8, "au.AU25", "2", "expected 0 or 1"),
        (9, "pred.expr.fear", "half", "expected a number in [0, 1]"),
        (9, "pred.au.AU7", "inf", "expected a number in [0, 1]"),
        (10, "pred.valence", "-1.5", "expected a number in [-1, 1]"),
        (11, "pred.arousal", "", "is empty, but other cells of this output are not"),
    ],
)
def test_a_wrong_cell_is_named(tmp_path: Path, line: int, column: str, value: str, said: str) -> None:
    path = tmp_path / "x.csv"
    write_csv(sample(), path)
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    set_cell(line, column, value)(rows)
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
    with pytest.raises(DataError) as error:
        read_csv(path)
    assert str(error.value).startswith(f"{path} line {line}: column {column!r} ") and said in str(error.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text[:-1], "cut short"),
        (lambda text: "", "cut short"),
        (lambda text: text.split("\n", 1)[0] + "\n", "no samples"),
        (lambda text: text.replace("arousal", "dominance", 1), "line 1: column 8 is 'dominance', expected"),
        (lambda text: text.replace("\n", ",more\n", 1), "line 1: unknown column 'more'"),
        (lambda text: text.replace("\n", "\nclip_x,val\n", 1), "line 2: 2 cells, the header has 42"),
        (lambda text: text + '"open\n', "line 42: not csv"),
    ],
)
def test_a_file_of_another_form_is_refused(tmp_path: Path, change: Callable[[str], str], said: str) -> None:
    path = tmp_path / "x.csv"
    write_csv(sample(), path)
    path.write_text(change(path.read_text()))
    with pytest.raises(DataError, match=r"x\.csv") as error:
        read_csv(path)
    assert said in str(error.value)


def test_a_file_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read"):
        read_csv(tmp_path / "none.csv")
    (tmp_path / "x.csv").write_bytes(b"key\xff\n")
    with pytest.raises(DataError, match="UTF-8"):
        read_csv(tmp_path / "x.csv")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"va_pred": [[0, 0], [0, np.nan]]}, "sample b: va_pred"),
        ({"va_pred": [[0, 1.001], [0, 0]]}, "sample a: va_pred"),
        ({"au_probs": [[0.5] * 12, [1.5] * 12]}, "sample b: au_probs"),
        ({"expr_probs": np.full((2, 8), 0.2)}, "sample a: expr_probs"),
        ({"expr": [0, 8]}, "sample b: expr 8"),
        ({"va": [[0, np.inf], [0, 0]]}, "sample a: va"),
        ({"au": np.full((2, 12), 3)}, "sample a: au"),
        ({"frame": [0, -2]}, "sample b: frame"),
        ({"au_names": ["AU1", "AU1"], "au": None}, "names must be there once"),
    ],
)
def test_values_that_cannot_be_name_their_sample(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        build_predictions("val", ["a", "b"], **changes)


@pytest.mark.parametrize("keys", [[], ["a", "a"], ["a", ""]])
def test_keys_are_there_once(keys: list[str]) -> None:
    with pytest.raises(DataError):
        build_predictions("val", keys)


@pytest.mark.parametrize(
    "changes", [{"va_pred": [[0, 0, 0]]}, {"group": ["x", "y"]}, {"au_names": (), "au_probs": [[]]}]
)
def test_wrong_shapes_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must|without"):
        build_predictions("val", ["a"], **changes)


def test_the_data_hash_names_samples_and_labels_not_outputs_or_order() -> None:
    one = sample()
    assert one.data_hash == replace(one.take(np.arange(40)[::-1]), va_pred=None, split="other").data_hash
    assert one.data_hash != one.take(np.arange(39)).data_hash
    assert one.data_hash != replace(one, expr=np.where(one.expr == 3, -1, one.expr)).data_hash


def test_a_choice_needs_a_named_split() -> None:
    assert named_split(sample()) == "val"
    with pytest.raises(DataError, match="without a name"):
        named_split(replace(sample(), split=""))
