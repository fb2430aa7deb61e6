"""What torch's threads are told before it is loaded."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.pipelines.launched import environment

_SAID = "OPENMP DISPLAY ENVIRONMENT BEGIN"


@pytest.mark.parametrize(
    ("set_by_user", "expected"),
    [({}, "10000"), ({"GOMP_SPINCOUNT": "77"}, "77"), ({"OMP_WAIT_POLICY": "PASSIVE"}, "0")],
    ids=["nothing", "spin count", "policy"],
)
def test_threads_spin_briefly_unless_the_user_says_how_long(set_by_user: dict[str, str], expected: str):
    kept = {k: v for k, v in environment().items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run(
        [sys.executable, "-c", "import pipelines.__main__, torch"],
        env=kept | {"OMP_DISPLAY_ENV": "VERBOSE"} | set_by_user,
        capture_output=True,
        text=True,
        check=True,
    )
    if _SAID not in done.stderr or "GOMP_SPINCOUNT" not in done.stderr:
        pytest.skip("this torch brings another OpenMP than GNU's")
    assert f"GOMP_SPINCOUNT = '{expected}'" in done.stderr
