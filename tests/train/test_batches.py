"Targets of finetuning, and the order of batches."
import pytest
import torch

from metavoice.core.layout import TokenLayout
from metavoice.train.batches import LengthBatches, TokenizedUtterance, collate_finetuning


@pytest.fixture
def utterances():
    rng = torch.Generator().manual_seed(0)

    def utterance(frames):
        codes = torch.randint(1024, (8, frames), generator=rng)
        return TokenizedUtterance([1, 2, 512], codes, [], torch.empty(0), "a", frames)

    return [utterance(frames) for frames in (20, 33)]


def test_text_and_padding_are_masked(utterances):
    layout, rng = TokenLayout(), torch.Generator().manual_seed(0)
    ids, targets = collate_finetuning(utterances, layout, rng)
    audio = ids[0, 0, 3:3 + 40].tolist()
    assert targets[0][targets[0] >= 0].tolist() == audio + [layout.end_of_audio]
    assert (targets[:, :2] == -100).all()


def test_a_pass_continues_from_its_state(utterances):
    batches = LengthBatches(utterances * 9, 100, torch.Generator().manual_seed(0))
    batches()
    again = LengthBatches(utterances * 9, 100, torch.Generator().manual_seed(1))
    again.load_state_dict(batches.state_dict())
    expected = [batches() for _ in range(len(batches.queue))]
    assert expected and [again() for _ in expected] == expected
