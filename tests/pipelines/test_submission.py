"""Submission files follow the official list; every fault of one is named by its row."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines import submission, submission_check
from pipelines.predictions import Predictions, build_predictions
from pipelines.submission import read_names, write_lsd, write_mtl
from pipelines.submission_check import LSD6, LSD_HEADER, MTL_HEADER, Problem, check_lsd, check_mtl
from pipelines.thresholds import fixed_thresholds, tune_thresholds
from shards.labels import AU12, EXPR8, DataError

NAMES = [f"{video}/{frame:05d}.jpg" for video in ("b", "a_left") for frame in range(1, 11)]


def predicted(names: list[str], seed: int = 0, expr_names: tuple[str, ...] = EXPR8) -> Predictions:
    rng = np.random.default_rng(seed)
    probs = rng.random((len(names), len(expr_names)))
    return build_predictions(
        "test",
        [name.replace("/", "_").removesuffix(".jpg") for name in names],
        name=names,
        expr_names=expr_names,
        expr_probs=probs / probs.sum(1, keepdims=True),
        au_probs=rng.random((len(names), 12)),
        va_pred=rng.uniform(-1, 1, (len(names), 2)),
    )


def rows_of(path: Path) -> dict[str, list[str]]:
    return {line.split(",")[0]: line.split(",")[1:] for line in path.read_text().splitlines()[1:]}


def test_mtl_rows_are_the_predictions_in_the_order_of_the_list(tmp_path: Path) -> None:
    given_names = random.Random(0).sample(NAMES, len(NAMES))
    found = predicted(given_names)
    report = write_mtl(tmp_path / "out" / "mtl.txt", found, NAMES)
    lines = (tmp_path / "out" / "mtl.txt").read_text().split("\n")
    assert lines[0] == MTL_HEADER == "image,valence,arousal,expression,aus" and lines[-1] == ""
    assert [line.split(",")[0] for line in lines[1:-1]] == NAMES
    assert found.expr_probs is not None and found.au_probs is not None and found.va_pred is not None
    for line in lines[1:-1]:
        fields = line.split(",")
        row = given_names.index(fields[0])
        assert len(fields) == 16
        assert np.allclose([float(v) for v in fields[1:3]], found.va_pred[row], atol=5.1e-7)
        assert int(fields[3]) == found.expr_probs[row].argmax()
        assert [int(v) for v in fields[4:]] == (found.au_probs[row] > 0.5).astype(int).tolist()
    assert (report.num_rows, report.num_predicted, report.num_unused) == (20, 20, 0)
    assert check_mtl(tmp_path / "out" / "mtl.txt", NAMES) == []


def test_classes_and_units_go_by_name(tmp_path: Path) -> None:
    found = predicted(NAMES)
    assert found.expr_probs is not None and found.au_probs is not None
    other = build_predictions(
        "test",
        found.keys,
        name=found.name,
        expr_names=EXPR8[::-1],
        au_names=AU12[::-1],
        expr_probs=found.expr_probs[:, ::-1],
        au_probs=found.au_probs[:, ::-1],
        va_pred=found.va_pred,
    )
    for number, predictions in enumerate((found, other)):
        write_mtl(tmp_path / str(number), predictions, NAMES, fixed_thresholds(AU12, 0.7))
    assert (tmp_path / "0").read_bytes() == (tmp_path / "1").read_bytes()


def test_missing_frames_are_filled_by_the_stated_rule_and_counted(tmp_path: Path) -> None:
    there = ["b/00002.jpg", "b/00006.jpg", "a_left/00010.jpg", "extra/00001.jpg"]
    names = [*NAMES, "a_right/00001.jpg", "b/cover.jpg"]
    found = predicted(there, seed=3)
    report = write_mtl(tmp_path / "mtl.txt", found, names)
    rows = rows_of(tmp_path / "mtl.txt")
    assert rows["b/00001.jpg"] == rows["b/00003.jpg"] == rows["b/00002.jpg"]
    assert rows["b/00004.jpg"] == rows["b/00002.jpg"]  # as near to 6: the earlier
    assert rows["b/00005.jpg"] == rows["b/00010.jpg"] == rows["b/00006.jpg"]
    assert rows["a_left/00001.jpg"] == rows["a_left/00010.jpg"]
    assert found.expr_probs is not None and found.au_probs is not None and found.va_pred is not None
    default = rows["a_right/00001.jpg"]
    assert default == rows["b/cover.jpg"]
    assert np.allclose([float(v) for v in default[:2]], found.va_pred.mean(0), atol=5.1e-7)
    assert int(default[2]) == np.bincount(found.expr_probs.argmax(1)).argmax()
    assert [int(v) for v in default[3:]] == ((found.au_probs > 0.5).mean(0) > 0.5).astype(int).tolist()
    assert replace(report, path=Path()) == submission.SubmissionReport(Path(), 22, 3, 17, 9, 2, 1)
    assert "17 from the nearest frame (at most 9 away)" in str(report) and "not on the list" in str(report)


def test_lsd_labels_are_places_in_the_alphabet(tmp_path: Path) -> None:
    assert LSD6 == ("anger", "disgust", "fear", "happiness", "sadness", "surprise")
    names = [f"{i}.jpg" for i in range(7)]
    found = build_predictions(
        "test", list("abcdef"), name=names[:6], expr_names=LSD6, au_names=(), expr_probs=np.eye(6)
    )
    report = write_lsd(tmp_path / "lsd.txt", found, names)
    lines = [LSD_HEADER, *(f"{i}.jpg,{i}" for i in range(6)), "6.jpg,0"]
    assert (tmp_path / "lsd.txt").read_text() == "\n".join(lines) + "\n"
    assert report.num_default == 1 and check_lsd(tmp_path / "lsd.txt", names) == []
    write_lsd(tmp_path / "bare.txt", found, names, header=None)
    assert (tmp_path / "bare.txt").read_text() == "\n".join(lines[1:]) + "\n"
    assert check_lsd(tmp_path / "bare.txt", names, header=None) == []
    assert [p.line for p in check_lsd(tmp_path / "bare.txt", names)] == [1]
    (tmp_path / "lsd.txt").write_text("\n".join(lines).replace("3.jpg,3", "3.jpg,6") + "\n")
    assert check_lsd(tmp_path / "lsd.txt", names) == [Problem(5, "3.jpg", "label '6' must be a class 0..5")]


def set_field(line: int, field: int, value: str) -> Callable[[list[str]], None]:
    def change(lines: list[str]) -> None:
        fields = lines[line - 1].split(",")
        fields[field] = value
        lines[line - 1] = ",".join(fields)

    return change


def move(source: int, target: int) -> Callable[[list[str]], None]:
    return lambda lines: lines.insert(target - 1, lines.pop(source - 1))


@pytest.mark.parametrize(
    ("change", "line", "name", "said"),
    [
        (lambda lines: lines.pop(4), 5, NAMES[3], "missing row"),
        (move(4, 15), 15, NAMES[2], "reordered row: belongs in line 4"),
        (move(15, 4), 4, NAMES[13], "reordered row: belongs in line 15"),
        (set_field(6, 1, "nan"), 6, NAMES[4], "valence 'nan' is not a finite number"),
        (set_field(6, 2, "-inf"), 6, NAMES[4], "arousal '-inf' is not a finite number"),
        (set_field(6, 1, ""), 6, NAMES[4], "valence '' is not a finite number"),
        (set_field(6, 1, "1.000001"), 6, NAMES[4], "valence 1.000001 is outside of [-1, 1]"),
        (set_field(6, 2, "-1e300"), 6, NAMES[4], "arousal -1e300 is outside"),
        (set_field(7, 3, "8"), 7, NAMES[5], "expression '8' must be a class 0..7"),
        (set_field(7, 3, "-1"), 7, NAMES[5], "expression '-1' must be"),
        (set_field(7, 3, "3.0"), 7, NAMES[5], "expression '3.0' must be"),
        (set_field(8, 15, "2"), 8, NAMES[6], "AU26 '2' must be 0 or 1"),
        (set_field(8, 4, "0.5"), 8, NAMES[6], "AU1 '0.5' must be 0 or 1"),
        (lambda lines: lines.insert(9, lines[3]), 10, NAMES[2], "duplicate of line 4"),
        (lambda lines: lines.insert(9, "c/1.jpg" + lines[3][11:]), 10, "c/1.jpg", "extra row"),
        (set_field(9, 15, "1,0"), 9, NAMES[7], "17 fields, must be 16"),
        (set_field(1, 0, "name"), 1, "", "header is 'name,valence,arousal,expression,aus', must be"),
        (lambda lines: lines.pop(0), 1, "", "header is 'b/00001.jpg"),
    ],
)
def test_one_fault_is_one_problem_that_names_its_row(
    tmp_path: Path, change: Callable[[list[str]], Any], line: int, name: str, said: str
) -> None:
    path = tmp_path / "mtl.txt"
    write_mtl(path, predicted(NAMES), NAMES)
    lines = path.read_text().splitlines()
    change(lines)
    path.write_text("\n".join(lines) + "\n")
    (problem,) = check_mtl(path, NAMES)
    assert (problem.line, problem.name) == (line, name) and said in problem.text
    assert f"line {line}: " in str(problem) and name in str(problem)


def test_several_faults_and_broken_files(tmp_path: Path) -> None:
    path = tmp_path / "mtl.txt"
    write_mtl(path, predicted(NAMES), NAMES)
    lines = path.read_text().splitlines()
    path.write_bytes("\r\n".join(lines).encode())
    assert check_mtl(path, NAMES) == []
    path.write_text("\n".join([*lines[:3], "", *lines[5:]]) + "\n")
    found = [(problem.line, problem.text[:11]) for problem in check_mtl(path, NAMES)]
    assert found == [(4, "extra row: "), (4, "1 fields, m"), (4, "missing row"), (5, "missing row")]
    path.write_bytes(b"")
    assert len(check_mtl(path, NAMES)) == 21
    path.write_bytes(b"\xff\n")
    with pytest.raises(DataError, match="not UTF-8"):
        check_mtl(path, NAMES)
    with pytest.raises(DataError, match="cannot read"):
        check_mtl(tmp_path / "none.txt", NAMES)


@given(st.permutations(range(7)))
def test_moved_rows_are_the_fewest_that_explain_the_order(order: list[int]) -> None:
    names = [str(i) for i in order]
    moved = submission_check._moved(names, {str(i): i for i in range(7)})
    left = [int(name) for name in names if name not in moved]
    assert left == sorted(left)
    rising = [
        [i for at, i in enumerate(order) if bits >> at & 1]
        for bits in range(2**7)
        if bits.bit_count() == len(left) + 1
    ]
    assert not any(chosen == sorted(chosen) for chosen in rising)


def test_a_file_that_fails_the_check_does_not_appear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mtl.txt"
    write_mtl(path, predicted(NAMES), NAMES)
    before = path.read_bytes()
    monkeypatch.setattr(submission, "_decimal", lambda value: "nan")
    with pytest.raises(DataError, match=r"not written, 40 problems: line 2: b/00001\.jpg: valence 'nan'"):
        write_mtl(path, predicted(NAMES), NAMES)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("predictions", "said"),
    [
        (replace(predicted(NAMES), va_pred=None), "no valence and arousal"),
        (replace(predicted(NAMES), expr_probs=None), "no expressions"),
        (replace(predicted(NAMES), au_probs=None), "no action units"),
        (replace(predicted(NAMES), au_names=(*AU12[:11], "AU9")), "lack AU26"),
        (replace(predicted(NAMES), expr_names=(*EXPR8[:7], "contempt")), "class 'contempt' is none"),
        (replace(predicted(NAMES), name=("",) * 20), "they carry no names"),
        (predicted(["c/00001.jpg"]), "no name of the official list is predicted: it has 'b/00001.jpg'"),
        (replace(predicted(NAMES), name=(NAMES[0], *NAMES[:19])), "b/00001.jpg is predicted twice"),
    ],
)
def test_predictions_that_do_not_fit_are_refused(tmp_path: Path, predictions: Predictions, said: str) -> None:
    with pytest.raises(DataError) as error:
        write_mtl(tmp_path / "mtl.txt", predictions, NAMES)
    assert said in str(error.value) and not list(tmp_path.iterdir())


def test_eight_classes_are_no_lsd_submission(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="class 'neutral' is none of the challenge's: anger"):
        write_lsd(tmp_path / "lsd.txt", predicted(NAMES), NAMES)


def test_thresholds_tuned_on_the_same_split_are_said(tmp_path: Path) -> None:
    found = replace(predicted(NAMES), au=np.ones((20, 12), np.int8))
    report = write_mtl(tmp_path / "mtl.txt", found, NAMES, tune_thresholds(found))
    assert "tuned on this split" in str(report)
    assert all(fields[3:] == ["1"] * 12 for fields in rows_of(tmp_path / "mtl.txt").values())


@pytest.mark.parametrize(
    "text",
    [
        "v/00001.jpg\nv/00002.jpg\n",
        "image\nv/00001.jpg\nv/00002.jpg",
        "\ufeffname\r\nv/00001.jpg\r\nv/00002.jpg\r\n\r\n",
        f"{MTL_HEADER}\nv/00001.jpg,-5,-5,-1\nv/00002.jpg,0,0,1\n",
    ],
)
def test_official_lists_with_and_without_a_header(tmp_path: Path, text: str) -> None:
    (tmp_path / "list.txt").write_bytes(text.encode())
    assert read_names(tmp_path / "list.txt") == ["v/00001.jpg", "v/00002.jpg"]


def test_lists_that_cannot_be_are_refused(tmp_path: Path) -> None:
    for text, said in (("", "no names"), ("a.jpg\na.jpg\n", "'a.jpg' is there twice")):
        (tmp_path / "list.txt").write_text(text)
        with pytest.raises(DataError, match=said):
            read_names(tmp_path / "list.txt")
    with pytest.raises(DataError, match="cannot read"):
        read_names(tmp_path / "none.txt")
