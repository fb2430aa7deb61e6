"""The progress bar of long work: live on a terminal, a line now and then in a log file."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

_LOG_SECONDS = 30.0


def open_bar(*args: Any, **kwargs: Any) -> tqdm[Any]:
    """`tqdm(*args, **kwargs)` on stderr; where that is no terminal (a SLURM log), a line every 30 s."""
    if not sys.stderr.isatty():
        kwargs = {"mininterval": _LOG_SECONDS, "miniters": 1, **kwargs}
    return tqdm(*args, **kwargs)
