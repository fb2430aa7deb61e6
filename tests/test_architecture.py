"""The shape of the house: imports point one way, and each library has its doors."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ORDER = ("shards", "pretrain", "finetune", "pipelines")
DOORS = {
    "webdataset": ("shards.build", "shards.stream"),
    "facenet_pytorch": ("shards.align", "finetune.mran"),
    "timm": ("pretrain.encoder", "finetune.baselines", "pipelines.optim"),
    "accelerate": ("pipelines.loop",),
    "omegaconf": ("pipelines.config",),
    "yaml": ("pipelines.config",),
    "safetensors": ("pipelines.checkpoint",),
    "matplotlib": ("pipelines.report", "pipelines.score_pages", "pipelines.clip_charts"),
    "jinja2": ("pipelines.report", "pipelines.doctor"),
    "fsspec": ("shards.sources",),
    "av": ("shards.sources",),
}
NOWHERE = ("utils", "misc", "helpers", "common", "base")


def modules() -> Iterator[tuple[str, Path]]:
    for package in ORDER:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module


def test_imports_point_one_way() -> None:
    wrong = [
        f"{name} imports {imported}"
        for name, path in modules()
        for imported in imports(path)
        if imported.split(".")[0] in ORDER
        and ORDER.index(imported.split(".")[0]) > ORDER.index(name.split(".")[0])
    ]
    assert wrong == []


@pytest.mark.parametrize("library", DOORS)
def test_each_library_has_its_doors(library: str) -> None:
    wrong = [
        name
        for name, path in modules()
        if any(imported.split(".")[0] == library for imported in imports(path))
        and not any(name == door or name.startswith(door + ".") for door in DOORS[library])
    ]
    assert wrong == []


def test_no_drawer_for_everything() -> None:
    assert [str(path) for _, path in modules() if path.stem in NOWHERE or path.parent.name in NOWHERE] == []


def test_the_environment_is_read_in_pipelines_alone() -> None:
    reads = [
        name
        for name, path in modules()
        if not name.startswith("pipelines")
        and ("os.environ" in path.read_text() or "getenv" in path.read_text())
    ]
    assert reads == []


def test_lower_packages_load_without_the_upper_ones() -> None:
    code = (
        "import sys, shards.stream, pretrain.mae_task; "
        "print([m for m in sys.modules if m.split('.')[0] == 'pipelines'])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert shown.stdout.strip() == "[]"
