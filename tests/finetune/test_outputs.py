"""What models say of faces in one form, whichever model it is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from finetune.affect import columns_of
from finetune.cotex import CoTEXOutput
from finetune.dan import DANOutput
from finetune.emma import AffectOutput
from finetune.outputs import ModelOutput, averaged_outputs, face_outputs, outputs_of
from tests.finetune.tiny import faces

LOGITS = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.5, 3.0]])
VA = torch.tensor([[1.5, -0.25], [-2.0, 0.0]])


class Saying(nn.Module):
    """A model that says the same of any faces."""

    def __init__(self, output: object) -> None:
        super().__init__()
        self.output = output

    def forward(self, images: Tensor) -> object:
        return self.output


@pytest.mark.parametrize(
    "output",
    [AffectOutput(expr=LOGITS), CoTEXOutput(LOGITS, LOGITS), DANOutput(LOGITS, VA, VA)],
    ids=lambda output: type(output).__name__,
)
def test_expressions_are_probabilities_of_every_model(output: ModelOutput) -> None:
    expected = torch.softmax(LOGITS, dim=1)
    for said in (face_outputs(output), outputs_of(Saying(output), VA)):
        assert said.expr_probs is not None and torch.equal(said.expr_probs, expected)
        assert said.au_probs is None and said.va is None


def test_valence_and_arousal_are_clipped_for_people_and_not_for_metrics() -> None:
    output, batch = AffectOutput(au=LOGITS, va=VA), faces(2)
    columns = columns_of(output, batch.labels)
    assert columns.keys() == {"au_probs", "va", "expr", "au", "va_target"}
    assert torch.equal(columns["va"], VA) and torch.equal(columns["au_probs"], torch.sigmoid(LOGITS))
    clipped = outputs_of(Saying(output), batch.images).va
    assert clipped is not None and clipped.tolist() == [[1.0, -0.25], [-1.0, 0.0]]


def test_what_is_no_model_of_affect_is_refused() -> None:
    with pytest.raises(TypeError, match="Saying is no model of affect"):
        outputs_of(Saying(LOGITS), VA)


class Corner(nn.Module):
    """Says the upper left pixel as valence, the upper right as arousal."""

    def forward(self, images: Tensor) -> AffectOutput:
        return AffectOutput(va=images[:, 0, 0, [0, -1]].float() / 100)


def test_looks_are_averaged_over_the_mirrored_and_moved_face() -> None:
    image = torch.arange(1, 17, dtype=torch.uint8).reshape(1, 1, 4, 4).expand(2, 3, 4, 4)
    left, right = (1 + 1 + 5 + 1 + 2) / 5, (4 + 4 + 8 + 3 + 4) / 5  # as it is, down, up, right, left
    expected = {1: [0.01, 0.04], 2: [0.025, 0.025], 10: [(left + right) / 200] * 2}
    for looks, values in expected.items():
        va = averaged_outputs(Corner(), image, looks).va
        assert va is not None and va.tolist() == [pytest.approx(values)] * 2
    said = averaged_outputs(Saying(AffectOutput(expr=LOGITS)), image, 10)
    assert said.va is None and said.au_probs is None and said.expr_probs is not None
    torch.testing.assert_close(said.expr_probs, torch.softmax(LOGITS, dim=1))
    with pytest.raises(ValueError, match="looks=3"):
        averaged_outputs(Corner(), image, 3)
