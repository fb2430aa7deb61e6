"""Label tables: csv, json and columns of text, each value traceable to its line."""

from __future__ import annotations

import csv
import difflib
import io
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shards.labels import AU12, EXPR8, DataError, FaceLabels
from shards.records import canonical_json

_ALIASES = {
    "name": ("name", "image", "file", "filename", "image_id", "path"),
    "expr": ("expr", "expression"),
    "identity": ("identity", "person", "subject"),
    "group": ("group", "video"),
    "valence": ("valence",),
    "arousal": ("arousal",),
    "split": ("split", "partition"),
}
_FIELDS = {alias: field for field, aliases in _ALIASES.items() for alias in aliases}
_UNIT = re.compile(r"au[ _]?0*(\d+)", re.IGNORECASE)


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        where: file and line (or entry), for messages.
        cells: column -> value, blanks stripped; empty cells are left out.
    """

    where: str
    cells: Mapping[str, str]


@dataclass(frozen=True)
class LabelCodes:
    """What numbers in a table stand for. Nothing is guessed.

    Attributes:
        expr_names: class names, in the order of their numbers from 0; empty if the table has names.
        missing: values that mean "not labelled", as written ("-1", "-5", "999"). A valence or arousal within
            [-1, 1] is never taken for one.
        official: they are the data set's own, so that no message offers to add one.
    """

    expr_names: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    official: bool = False

    def is_missing(self, cell: str) -> bool:
        return cell in self.missing or any(_same_number(cell, code) for code in self.missing)


def text_of(data: bytes, name: str) -> str:
    """UTF-8 with or without a byte order mark.

    Raises:
        DataError: another encoding.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(f"{name} line {line}: not UTF-8; save the file as UTF-8") from None


def read_csv(data: bytes, name: str) -> Iterator[Row]:
    """Rows of a csv with a header; comma, semicolon or tab, whichever the header has most of.

    Raises:
        DataError: no header, a column twice, or a row with another number of cells.
    """
    text = text_of(data, name)
    first = text.lstrip("\r\n").split("\n", 1)[0]
    delimiter = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    header: list[str] | None = None
    try:
        for cells in reader:
            stripped = [cell.strip() for cell in cells]
            if not any(stripped):
                continue
            where = f"{name} line {reader.line_num}"
            if header is None:
                header = _header(stripped, where)
                continue
            while len(stripped) > len(header) and not stripped[-1]:
                stripped.pop()
            if len(stripped) != len(header):
                raise DataError(f"{where}: {len(stripped)} cells, but the header has {len(header)}")
            yield Row(where, {column: cell for column, cell in zip(header, stripped) if column and cell})
    except csv.Error as error:
        raise DataError(f"{name} line {reader.line_num}: {error}; mend this line") from None
    if header is None:
        raise DataError(f"{name}: empty; it needs a header line")


def _header(cells: list[str], where: str) -> list[str]:
    while cells and not cells[-1]:
        cells = cells[:-1]
    columns = [cell.strip("'\" ") for cell in cells]
    twice = [column for column in columns if columns.count(column) > 1]
    if twice:
        raise DataError(f"{where}: column {twice[0]!r} occurs twice; rename one")
    return columns


def read_text_columns(data: bytes, name: str, num_columns: int) -> Iterator[tuple[str, list[str]]]:
    """(file and line, cells) of each line of a table whose cells are parted by blanks.

    Raises:
        DataError: a line with another number of cells.
    """
    for number, line in enumerate(text_of(data, name).splitlines(), start=1):
        cells = line.split()
        if not cells:
            continue
        if len(cells) != num_columns:
            raise DataError(
                f"{name} line {number}: {len(cells)} cells instead of {num_columns}: {line!r:.80}"
            )
        yield f"{name} line {number}", cells


def read_label_rows(data: bytes, name: str) -> list[Row]:
    """Rows of a label file. csv as `read_csv`; json: a list of objects, or an object of name -> object.

    Raises:
        DataError: neither csv nor json, or malformed.
    """
    if name.lower().endswith((".csv", ".tsv", ".txt")):
        return list(read_csv(data, name))
    if not name.lower().endswith(".json"):
        raise DataError(f"{name}: labels must be .csv or .json; save the table as csv (UTF-8)")
    try:
        content = json.loads(text_of(data, name))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name}: not valid JSON ({error})") from None
    if isinstance(content, dict):
        entries = [
            {**value, "name": key} if isinstance(value, dict) else value for key, value in content.items()
        ]
    elif isinstance(content, list):
        entries = content
    else:
        raise DataError(f"{name}: must be a list of objects or an object of name -> object")
    return [_json_row(entry, f"{name} entry {number}") for number, entry in enumerate(entries, start=1)]


def _json_row(entry: Any, where: str) -> Row:
    if not isinstance(entry, dict):
        raise DataError(f"{where}: must be an object, got {entry!r:.80}")
    cells: dict[str, str] = {}
    for column, value in {**entry, **(entry.get("au") or {})}.items():
        if column == "au" or value is None or value == "":
            continue
        if isinstance(value, (dict, list)):
            raise DataError(f"{where}: {column} must be a plain value, got {value!r:.80}")
        cells[str(column)] = str(int(value)) if isinstance(value, bool) else str(value)
    try:
        canonical_json(cells)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    return Row(where, cells)


def check_columns(rows: Sequence[Row]) -> tuple[str, ...]:
    """The columns that are no labels, and so go to `extra`.

    Raises:
        DataError: a column that is nearly one of labels, or two that say the same; names the remedy.
    """
    first = {column: row.where for row in reversed(rows) for column in row.cells}
    others, said = [], dict[str, str]()
    for column, where in sorted(first.items()):
        field = unit_name(column) or _FIELDS.get(column.lower())
        if field is None:
            close = difflib.get_close_matches(column.lower(), _FIELDS, 1, 0.8)
            if close:
                raise DataError(f"{where}: column {column!r:.40}: did you mean {close[0]!r}? Rename it")
            others.append(column)
        elif field in said:
            raise DataError(
                f"{where}: columns {said[field]!r:.40} and {column!r:.40} both say {field}; remove one"
            )
        else:
            said[field] = column
    return tuple(others)


def unit_name(column: str) -> str | None:
    """ "AU 01" -> "AU1"; None if the column is not an action unit's."""
    match = _UNIT.fullmatch(column.strip())
    return f"AU{int(match[1])}" if match else None


def name_of(row: Row) -> str:
    """The image that a row speaks of.

    Raises:
        DataError: no such cell.
    """
    for column, cell in row.cells.items():
        if _FIELDS.get(column.lower()) == "name":
            return cell
    raise DataError(f"{row.where}: no image name; the table needs a column `name`, `image` or `file`")


def split_in(row: Row) -> str | None:
    """The row's own word on its split, in lower case."""
    for column, cell in row.cells.items():
        if _FIELDS.get(column.lower()) == "split":
            return cell.lower()
    return None


def labels_of(row: Row, codes: LabelCodes) -> FaceLabels:
    """The labels of one row. Units outside the twelve of the label space go to `extra.au`, unknown columns
    to `extra`, as text.

    Raises:
        DataError: a value out of range or a number without a meaning; names the line, the value, the remedy.
    """
    values: dict[str, Any] = {}
    units: dict[str, int] = {}
    extra: dict[str, Any] = {}
    for column, cell in row.cells.items():
        field = _FIELDS.get(column.lower())
        unit = unit_name(column)
        if unit is not None:
            state = unit_state(cell, codes, f"{row.where}: {unit}")
            if state is not None:
                units[unit] = state
        elif field in ("valence", "arousal"):
            values[field] = _affect(cell, codes, f"{row.where}: {field}")
        elif field == "expr":
            values[field] = _expression(cell, codes, f"{row.where}: {column}")
        elif field in ("identity", "group"):
            values[field] = cell
        elif field is None:
            extra[column] = cell
    known, others = split_units(units)
    if others:
        extra["au"] = others
    return FaceLabels(au=known, extra=extra, **values)


def split_units(units: Mapping[str, int]) -> tuple[dict[str, int], dict[str, int]]:
    """Units of the label space, and the rest."""
    return (
        {name: state for name, state in units.items() if name in AU12},
        {name: state for name, state in units.items() if name not in AU12},
    )


def unit_state(cell: str, codes: LabelCodes, where: str) -> int | None:
    """0, 1, or None for missing.

    Raises:
        DataError: anything else.
    """
    if _same_number(cell, "0"):
        return 0
    if _same_number(cell, "1"):
        return 1
    if codes.is_missing(cell):
        return None
    raise DataError(f"{where} must be 0 or 1, got {cell!r:.40}{_missing_hint(cell, codes)}")


def label_space_names(found: Sequence[str], codes: LabelCodes) -> tuple[str, ...]:
    """The classes of a data set: the table's code names, else the eight if they suffice, else those found."""
    if codes.expr_names:
        return codes.expr_names
    return EXPR8 if set(found) <= set(EXPR8) else tuple(sorted(set(found)))


def _affect(cell: str, codes: LabelCodes, where: str) -> float | None:
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if abs(value) <= 1:
        return value
    if codes.is_missing(cell):
        return None
    raise DataError(f"{where} must be a number in [-1, 1], got {cell!r:.40}{_missing_hint(cell, codes)}")


def _expression(cell: str, codes: LabelCodes, where: str) -> str | None:
    if codes.is_missing(cell):
        return None
    if codes.expr_names:
        by_name = {name.lower(): name for name in codes.expr_names}
        if cell.lower() in by_name:
            return by_name[cell.lower()]
        if cell.isdecimal() and int(cell) < len(codes.expr_names):
            return codes.expr_names[int(cell)]
        raise DataError(
            f"{where} must be one of {', '.join(codes.expr_names)} or its number from 0, got {cell!r:.40}"
            f"{_missing_hint(cell, codes)}"
        )
    number = _number(cell)
    if number is not None:
        raise DataError(
            f"{where} is {cell!r:.40}: numbers are not guessed; give expr_names=neutral,anger,… in their "
            f"order from 0{_missing_hint(cell, codes) if not 0 <= number < 100 else ''}"
        )
    return cell.lower()


def _missing_hint(cell: str, codes: LabelCodes) -> str:
    if codes.official or _number(cell) is None:
        return ""
    return f"; if it stands for missing, give missing={cell:.20}"


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def _same_number(cell: str, code: str) -> bool:
    value = _number(cell)
    return value is not None and value == _number(code)
