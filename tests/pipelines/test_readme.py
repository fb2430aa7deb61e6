"""What the README shows is run as it stands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from pipelines.checkpoint import load_encoder
from pretrain.encoder import encode
from tests.pipelines.tiny import last_checkpoint

README = Path(__file__).resolve().parents[2] / "README.md"


def test_the_snippet_loads_the_encoder_with_timm_and_safetensors_alone(finished: Path) -> None:
    [snippet] = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    snippet, replaced = re.subn(
        r'path = ".*"', f'path = "{last_checkpoint(finished)}/encoder.safetensors"', snippet
    )
    assert replaced == 1 and not re.search(r"faceprior\.|import (shards|pretrain|pipelines)", snippet)
    names: dict[str, Any] = {}
    exec(snippet, names)
    ours = load_encoder(finished)
    assert names["tokens"].shape == (1, 17, 32)
    assert torch.equal(names["tokens"], encode(ours, names["images"]))
