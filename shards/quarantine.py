"""The list of what a build left out, beside the manifest of its split."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

QUARANTINE = "quarantine.csv"


def quarantine_csv(rejected: Sequence[tuple[str, str]]) -> bytes:
    """The list's bytes: a header, then (key, reason) row by row."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["key", "reason"])
    writer.writerows((_plain(key), _plain(reason)) for key, reason in rejected)
    return text.getvalue().encode(errors="backslashreplace")


def _plain(text: str) -> str:
    """Text that no spreadsheet takes for a formula.

    A carriage return would begin a row, and with it another cell: csv.writer of Python 3.11 leaves it bare.
    """
    text = text.replace("\r", "\\r")
    return "'" + text if text[:1] in ("=", "+", "-", "@", "\t") else text
