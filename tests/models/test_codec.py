"Codes and the sequence of the first stage: what is checked, and interleaving back and forth."
from types import SimpleNamespace

import pytest
import torch

from metavoice.core.errors import OptionError
from metavoice.core.layout import TokenLayout
from metavoice.models.codec import check_codes, deinterleave, interleave

CODEC = SimpleNamespace(n_codebooks=8, codebook_size=16)


@pytest.mark.parametrize("codes, message", [
    (torch.zeros(8, 5, dtype=torch.long), r"codes of shape \(8, 5\); expected \(batch, 1–8, frames\)"),
    (torch.zeros(1, 9, 5, dtype=torch.long), r"codes of shape \(1, 9, 5\)"),
    (torch.full((1, 8, 5), 16), "code 16 isn't in 0–15"),
    (torch.full((1, 8, 5), -1), "code -1 isn't in 0–15"),
])
def test_wrong_codes_are_named(codes, message):
    with pytest.raises(OptionError, match=message):
        check_codes(codes, CODEC)


def test_valid_codes_are_returned():
    for codes in (torch.full((2, 1, 5), 15), torch.zeros(1, 8, 0, dtype=torch.long)):
        assert check_codes(codes, CODEC) is codes


@pytest.mark.parametrize("layout", [None, TokenLayout(codebook_size=16, text_ranks=4)])
@pytest.mark.parametrize("end", [True, False])
def test_interleaved_codes_come_back(layout, end):
    codes = torch.randint(16, (2, 9), generator=torch.Generator().manual_seed(0))
    ids, size = interleave(codes, [3, 1, 4], layout, end), (layout or TokenLayout()).codebook_size
    assert ids.dtype == torch.long and len(ids) == 3 + 2*9 + end
    assert torch.equal(ids[3:21:2], codes[0]) and torch.equal(ids[4:21:2], codes[1] + size)
    assert torch.equal(deinterleave(ids, layout), codes)


def test_incomplete_frame_is_dropped():
    codes = torch.tensor([[1, 2, 3], [10, 20, 30]])
    assert torch.equal(deinterleave(interleave(codes, [5])[:-2]), codes[:, :2])
    assert deinterleave(interleave(codes[:, :0], [5])).shape == (2, 0)
