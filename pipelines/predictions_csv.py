"""The csv of predictions, written and read exactly: predictions/<split>.csv of a run."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines.predictions import MAX_FRAME, Predictions, key_order
from shards.files import atomic_write, clear_disk_errors
from shards.labels import DataError
from shards.sources.tables import text_of

_CHUNK = 8192  # rows turned into text at once, which bounds memory
_GUARD = "'"
_GUARDED = (_GUARD, "=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
_FIRST_COLUMNS = ("key", "split", "name", "group", "frame", "expr", "valence", "arousal")
_LAST_COLUMNS = ("pred.valence", "pred.arousal")


def write_csv(predictions: Predictions, path: Path) -> None:
    """Writes one row per sample, sorted by key; the bytes depend on the content alone.

    The header is the label space: key, split, name, group, frame, expr (the class's name), valence,
    arousal, au.UNIT…, pred.expr.CLASS…, pred.au.UNIT…, pred.valence, pred.arousal. Empty cells are
    missing labels; a head that is not there leaves all its cells empty. Numbers are the shortest decimals
    that read back as the same float64.

    A spreadsheet runs cells that begin with = + - @ as formulas, so text (not numbers) that begins with
    one of these, a full-width form of them, a tab, a line break or an apostrophe gets an apostrophe in
    front. `read_csv` takes one off.

    Raises:
        DataError: the disk is full or cannot be written, or text that is not Unicode.
    """
    with clear_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    rows = key_order(predictions.keys)
    try:
        with atomic_write(path) as file:
            header = _columns(predictions.expr_names, predictions.au_names)
            file.write((",".join(map(_quoted, header)) + "\n").encode())
            for start in range(0, len(rows), _CHUNK):
                file.write(_to_text(predictions.take(rows[start : start + _CHUNK])).encode())
    except UnicodeEncodeError as error:
        near = error.object[max(error.start - 20, 0) : error.end]
        raise DataError(f"{path}: {near!r} is not Unicode text; rename it") from error


def read_csv(path: Path) -> Predictions:
    """Reads what `write_csv` wrote, exactly.

    Raises:
        DataError: not to be read, cut short, other columns, or a value that cannot be; names the file, the
            line and the column.
    """
    try:
        text = text_of(path.read_bytes(), str(path))
    except OSError as error:
        raise DataError(f"{path}: cannot read the predictions ({error.strerror})") from error
    if not text.endswith("\n"):
        raise DataError(f"{path}: cut short (no line end after the last row); predict again")
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        reader = _Reader(path, next(lines))
        while reader.add(lines):
            pass
    except csv.Error as error:
        raise DataError(f"{path} line {lines.line_num}: not csv ({error})") from error
    return reader.finish()


class _Kind(NamedTuple):
    """What the numbers of a column may be."""

    low: float
    high: float
    whole: bool
    missing: float
    wanted: str


_FRAME = _Kind(0, MAX_FRAME, True, -1, "a frame number")
_STATE = _Kind(0, 1, True, -1, "0 or 1")
_AFFECT = _Kind(-1, 1, False, np.nan, "a number in [-1, 1]")
_PROBABILITY = _Kind(0, 1, False, np.nan, "a number in [0, 1]")


class _Reader:
    """Collects rows of one file; every error names file, line and column."""

    def __init__(self, path: Path, header: list[str]) -> None:
        self.path, self.header = path, header
        self.expr_names = _names_after(header, "pred.expr.")
        self.au_names = _names_after(header, "pred.au.")
        expected = _columns(self.expr_names, self.au_names)
        for number, (found, wanted) in enumerate(zip([*header, *[""] * len(expected)], expected), start=1):
            if found != wanted:
                raise DataError(f"{path} line 1: column {number} is {found!r:.80}, expected {wanted!r:.80}")
        if len(header) > len(expected):
            raise DataError(f"{path} line 1: unknown column {header[len(expected)]!r:.80}")
        self.classes = {name: number for number, name in enumerate(self.expr_names)}
        self.line_of: dict[str, int] = {}
        self.split: str | None = None
        self.parts: list[tuple[Any, ...]] = []

    def add(self, lines: Any) -> bool:
        """Takes the next rows of a csv reader; False at its end."""
        numbers, rows = [], []
        for cells in itertools.islice(lines, _CHUNK):
            if len(cells) != len(self.header):
                what = f"{len(cells)} cells, the header has {len(self.header)}"
                raise DataError(f"{self.path} line {lines.line_num}: {what}")
            numbers.append(lines.line_num)
            rows.append(cells)
        if rows:
            self._add(numbers, list(zip(*rows)))
        return bool(rows)

    def _add(self, lines: list[int], columns: list[tuple[str, ...]]) -> None:
        """Turns a chunk into arrays."""
        keys, splits, names, groups = ([_bare(cell) for cell in column] for column in columns[:4])
        for line, key, split in zip(lines, keys, splits):
            if not key:
                raise self._wrong(line, 0, "is empty")
            if key in self.line_of:
                raise self._wrong(line, 0, f"has {key!r:.80}, which line {self.line_of[key]} has too")
            self.line_of[key] = line
            if self.split is None:
                self.split = split
            if split != self.split:
                raise self._wrong(line, 1, f"has {split!r:.80}, earlier lines have {self.split!r:.80}")
        frame = self._numbers(columns, lines, 4, 1, _FRAME)[:, 0].astype(np.int64)
        classes = [self._class_of(cell, line) if cell else -1 for cell, line in zip(columns[5], lines)]
        expr = np.array(classes, np.int64)
        va = self._numbers(columns, lines, 6, 2, _AFFECT)
        num_au, num_expr, at = len(self.au_names), len(self.expr_names), len(_FIRST_COLUMNS)
        au = self._numbers(columns, lines, at, num_au, _STATE).astype(np.int8)
        expr_probs = self._numbers(columns, lines, at + num_au, num_expr, _PROBABILITY)
        au_probs = self._numbers(columns, lines, at + num_au + num_expr, num_au, _PROBABILITY)
        va_pred = self._numbers(columns, lines, len(self.header) - 2, 2, _AFFECT)
        self.parts.append((keys, groups, names, frame, expr, va, au, expr_probs, au_probs, va_pred))

    def finish(self) -> Predictions:
        """All rows, a head that is empty everywhere as None."""
        if not self.parts:
            raise DataError(f"{self.path}: no samples")
        keys, groups, names, *arrays = zip(*self.parts)
        frame, expr, va, au, *heads = (np.concatenate(parts) for parts in arrays)
        at = len(_FIRST_COLUMNS) + len(self.au_names)
        firsts = (at, at + len(self.expr_names), len(self.header) - 2)
        expr_probs, au_probs, va_pred = (self._head(head, first) for head, first in zip(heads, firsts))
        try:
            return Predictions(
                split=self.split or "",
                keys=tuple(key for part in keys for key in part),
                group=tuple(group for part in groups for group in part),
                frame=frame,
                name=tuple(name for part in names for name in part),
                expr_names=self.expr_names,
                au_names=self.au_names,
                expr=expr,
                va=va,
                au=au,
                expr_probs=expr_probs,
                au_probs=au_probs,
                va_pred=va_pred,
            )
        except DataError as error:
            raise DataError(f"{self.path}: {error}") from error

    def _numbers(
        self, columns: list[tuple[str, ...]], lines: list[int], first: int, count: int, kind: _Kind
    ) -> NDArray[np.float64]:
        """(rows, count) of the columns from `first` on."""
        values = np.empty((len(lines), count))
        for offset, cells in enumerate(columns[first : first + count]):
            try:
                column = np.array(list(map(float, cells)))
            except ValueError:
                column = np.array([_float(cell) for cell in cells])
            wrong = ~((column >= kind.low) & (column <= kind.high))
            if kind.whole:
                wrong |= np.floor(column) != column
            if wrong.any():
                wrong &= np.array([cell != "" for cell in cells])
            if wrong.any():
                row = int(wrong.argmax())
                what = f"has {cells[row]!r:.80}, expected {kind.wanted}"
                raise self._wrong(lines[row], first + offset, what)
            values[:, offset] = np.where(np.isnan(column), kind.missing, column)
        return values

    def _class_of(self, cell: str, line: int) -> int:
        number = self.classes.get(_bare(cell))
        if number is None:
            raise self._wrong(line, 5, f"has {cell!r:.80}, expected one of {', '.join(self.expr_names)}")
        return number

    def _head(self, values: NDArray[np.float64], first: int) -> NDArray[np.float64] | None:
        empty = np.isnan(values)
        if empty.all():
            return None
        if empty.any():
            row, column = np.argwhere(empty)[0].tolist()
            line = list(self.line_of.values())[row]
            raise self._wrong(line, first + column, "is empty, but other cells of this output are not")
        return values

    def _wrong(self, line: int, column: int, what: str) -> DataError:
        return DataError(f"{self.path} line {line}: column {self.header[column]!r:.80} {what}")


def _float(cell: str) -> float:
    """The cell's number; NaN where it holds none."""
    try:
        return float(cell) if cell else np.nan
    except ValueError:
        return np.nan


def _columns(expr_names: Sequence[str], au_names: Sequence[str]) -> list[str]:
    return [
        *_FIRST_COLUMNS,
        *(f"au.{name}" for name in au_names),
        *(f"pred.expr.{name}" for name in expr_names),
        *(f"pred.au.{name}" for name in au_names),
        *_LAST_COLUMNS,
    ]


def _names_after(header: Sequence[str], prefix: str) -> tuple[str, ...]:
    return tuple(column.removeprefix(prefix) for column in header if column.startswith(prefix))


def _to_text(part: Predictions) -> str:
    """Rows of csv."""
    count = len(part)
    columns: list[list[str]] = [
        [guarded(text) for text in texts]
        for texts in (part.keys, (part.split,) * count, part.name, part.group)
    ]
    columns.append([str(number) if number >= 0 else "" for number in part.frame.tolist()])
    classes = [*(guarded(name) for name in part.expr_names), ""]
    columns.append([classes[number] for number in part.expr.tolist()])
    columns += _number_columns(part.va, 2, count)
    columns += [["" if state < 0 else str(state) for state in column] for column in part.au.T.tolist()]
    columns += _number_columns(part.expr_probs, len(part.expr_names), count)
    columns += _number_columns(part.au_probs, len(part.au_names), count)
    columns += _number_columns(part.va_pred, 2, count)
    return "".join(",".join(cells) + "\n" for cells in zip(*columns))


def _number_columns(values: NDArray[np.float64] | None, width: int, count: int) -> list[list[str]]:
    if values is None:
        return [[""] * count] * width
    return [["" if value != value else repr(value) for value in column] for column in values.T.tolist()]


def guarded(text: str) -> str:
    """Text as a csv cell that no spreadsheet runs as a formula; see `write_csv`."""
    return _quoted(_GUARD + text if text.startswith(_GUARDED) else text)


def _bare(cell: str) -> str:
    return cell[1:] if cell[:1] == _GUARD else cell


def _quoted(text: str) -> str:
    if any(mark in text for mark in ',"\r\n'):
        return '"' + text.replace('"', '""') + '"'
    return text
