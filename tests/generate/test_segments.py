"Texts to segments: lengths, pauses, seeds and errors."
import pytest
import torch

from metavoice.core.errors import OptionError, TextError
from metavoice.generate.segments import SEGMENTS_PER_SECTION, max_segment_tokens, one_per_text
from metavoice.text.split import pause_after, split_with_pauses
from metavoice.text.tokeniser import SPLIT_PATTERN, Tokeniser

SHORT = "The dog slept."
LONG = "The woman was tired, so she sat down. The old man walked to the river, and the little dog ran after him."


def test_long_text_is_split_and_joined(tts):
    segments = tts.segments([LONG], seed=1)
    limit = max_segment_tokens(tts.bundle)
    assert len(segments) > 1 and " ".join(s.text for s in segments) == LONG
    assert all(len(s.ids) <= limit for s in segments) and len({s.seed for s in segments}) == len(segments)
    assert segments[-1].pause == 0 and all(s.pause for s in segments[:-1])


def test_a_segment_fits_both_windows_of_the_release():
    class Stage:
        def __init__(self, block_size):
            self.config = type("Config", (), dict(block_size=block_size))

    release = type("Release", (), dict(defaults={}, first=Stage(2048), second=Stage(1024)))
    limit = max_segment_tokens(release)
    assert limit + 22 * limit <= 2048 and limit + 11 * limit <= 1024 and limit > 60


def test_pauses():
    bytewise = Tokeniser({bytes([b]): b for b in range(256)}, SPLIT_PATTERN)
    text = "One came.\nTwo went, three stayed.\n\n* * *\n\n  \nFour slept"
    parts = split_with_pauses(text, bytewise, 12)
    assert [text for text, _ in parts] == ["One came.", "Two went,", "three", "stayed.", "Four slept"]
    pauses = [pause for _, pause in parts]
    assert pauses[4] == 0 and pauses[3] > pauses[0] > pauses[1] > pauses[2] > 0
    assert pause_after('"No!"') == pause_after("so.") == pause_after("好。") > pause_after("so;") > pause_after("so")


def test_sections_end_after_a_fixed_number_of_segments(tts):
    segments = tts.segments(["Yes.\n\n" * 40, "No."], seed=1)
    ends = [(s.text_index, s.number) for s in segments if s.section_end]
    assert ends == [(0, SEGMENTS_PER_SECTION - 1), (0, 2 * SEGMENTS_PER_SECTION - 1), (0, 39), (1, 0)]


def test_fresh_seeds_differ(tts):
    a, b = tts.segments([SHORT, SHORT])
    assert a.seed != b.seed
    a, b = tts.segments([SHORT, SHORT], seed=3)
    assert a.seed == b.seed


def test_stages_have_generators_of_their_own(tts):
    segment, = tts.segments([SHORT], seed=1)
    draws = [torch.rand(4, generator=segment.generator(stage)) for stage in ("second", "mbd", "second")]
    assert torch.equal(draws[0], draws[2]) and not torch.equal(draws[0], draws[1])


def test_one_per_text():
    assert one_per_text(None, 2, "voices") == [None, None] and one_per_text([1, 2], 2, "seeds") == [1, 2]
    with pytest.raises(OptionError, match="1 voices for 2 texts; give one, or one for each text"):
        one_per_text([None], 2, "voices")


def test_texts_are_checked_before_the_first_is_spoken(tts):
    with pytest.raises(TextError, match="at position 6"):
        tts.segments(["Hello.", "Hello 😀."])
    with pytest.raises(TextError, match="nothing to say"):
        tts.segments(["Hello.", "?!"])
