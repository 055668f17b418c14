"Texts to segments: lengths, pauses, seeds and errors."
import logging
from copy import copy
from types import SimpleNamespace

import pytest
import torch

import metavoice.generate.segments as segments_module
from metavoice.core.errors import OptionError, TextError
from metavoice.generate.options import SpeechOptions
from metavoice.generate.segments import (
    SEGMENTS_PER_SECTION,
    max_frames,
    max_segment_tokens,
    one_per_text,
    prepare_texts,
    split_again,
    split_prepared,
)
from metavoice.generate.tts import TTS
from metavoice.text.duration import expected_seconds
from metavoice.text.split import pause_after, split_with_pauses
from metavoice.text.spoken import TextOptions, prepare_text
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


def test_a_segment_fits_by_its_expected_duration_too(tts):
    "Letters that are spelled take as few tokens as others, and far longer."
    spelled = " ".join("WXWXWXW" for _ in range(60))
    bundle = SimpleNamespace(
        defaults={}, first=tts.bundle.first, second=tts.bundle.second, codec=tts.bundle.codec,
        tokeniser=Tokeniser({bytes([b]): b for b in range(256)}, SPLIT_PATTERN),
    )
    second = SimpleNamespace(config=SimpleNamespace(block_size=600))
    first = SimpleNamespace(config=SimpleNamespace(block_size=2300))
    vars(bundle).update(first=first, second=second)
    limit = max_segment_tokens(bundle)
    prepared = prepare_text(spelled, bundle.tokeniser, TextOptions(spoken=False))
    bundle.tokeniser.with_accent = lambda accent: bundle.tokeniser
    parts = [part for part, _ in split_prepared(bundle, prepared)]
    rate = bundle.codec.sample_rate / bundle.codec.hop
    assert " ".join(parts) == spelled and all(len(part) + 1 <= limit for part in parts)
    assert all(expected_seconds(part) * rate <= max_frames(bundle, limit) for part in parts)
    assert max_frames(bundle, 50) == min(550, (2300 - 51) // 2)


def test_a_word_cannot_be_split_again(tts):
    assert split_again(tts.bundle, "Go.", [1, 2, 3]) == []
    (long,) = tts.segments([LONG.split(". ")[1]])
    parts = split_again(tts.bundle, long.text, long.ids)
    assert len(parts) > 1 and " ".join(text for text, _ in parts) == long.text
    assert all(ids[-1] == long.ids[-1] and len(ids) < len(long.ids) for _, ids in parts)


def test_pauses():
    bytewise = Tokeniser({bytes([b]): b for b in range(256)}, SPLIT_PATTERN)
    text = "One came.\nTwo went, three stayed.\n\n* * *\n\n  \nFour slept"
    parts = split_with_pauses(prepare_text(text, bytewise, TextOptions(spoken=False)), bytewise, 12)
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
    with pytest.raises(TextError, match=r"'你'.*\(text 2 of 2\)"):
        tts.segments(["Hello.", "Hello 你."], options=SpeechOptions(strict=True))
    with pytest.raises(TextError, match=r"nothing to say.*\(text 2 of 2\)"):
        tts.segments(["Hello.", "?!"])
    with pytest.raises(TextError, match="the text is empty"):
        tts.segments([" "])


def test_a_segment_of_nano_holds_one_sentence(tts):
    text = "The old man walked to the river. Where is the red book? No. So he went."
    assert [s.text for s in tts.segments([text])] == [
        "The old man walked to the river.", "Where is the red book?", "No.", "So he went."]
    plain = copy(tts.bundle)
    plain.defaults = {k: v for k, v in tts.bundle.defaults.items() if k != "one_sentence"}
    assert [s.text for s in TTS(plain).segments([text])] == [text]


def test_a_one_word_paragraph_is_not_dropped(tts):
    text = "Where is the red book?\n\nNo.\n\nThe dog slept."
    assert [s.text for s in tts.segments([text])] == ["Where is the red book?", "No.", "The dog slept."]


def test_tokens_of_nano_end_with_a_mark(tts):
    "Without one, nano goes on for seconds after the last word."
    for text in ("and then the little dog", "Hi", "Hi'"):
        segment, = tts.segments([text])
        assert segment.text == text and tts.bundle.tokeniser.decode(segment.ids).rstrip().endswith(".")
    for text in ("Hi!", "Hmm...", "He said 'come in.'"):
        segment, = tts.segments([text])
        assert segment.ids == tts.bundle.tokeniser.encode(segment.text)


def test_text_becomes_words_once(tts, monkeypatch):
    calls = []
    monkeypatch.setattr(segments_module, "prepare_text", lambda *args: calls.append(args) or prepare_text(*args))
    tts.synthesise(["It cost $5.", "At 3 o'clock."], takes=1, denoise=False)
    assert len(calls) == 2
    prepared = prepare_texts(tts.bundle, ["It cost $5."])
    assert tts.segments(prepared)[0].text == "It cost five dollars." and len(calls) == 3


def test_how_a_text_is_read(tts):
    def said(text, **options):
        return " ".join(s.text for s in tts.segments([text], options=SpeechOptions(**options)))

    assert said("It cost $5.") == "It cost five dollars."
    assert "five" not in said("It cost $5.", spoken=False)
    assert said("Siobhan slept.", lexicon=dict(Siobhan="Shiv awn")) == "Shiv awn slept."
    assert said("on 3/4/2026") != said("on 3/4/2026", language="en-GB")
    assert said("I smile 😀.") == "I smile." and len(said("I smile 😀.", emoji=True)) > len("I smile.")


def test_one_warning_names_what_is_left_out(tts, caplog):
    with caplog.at_level(logging.WARNING):
        many = "".join(map(chr, range(0x4e00, 0x4e10)))
        tts.segments(["Hello 你 and 好 and 你.\n\nYes 好.", "Hello.", f"I am {many}"])
    first, second = [record.getMessage() for record in caplog.records]
    assert "'你' (U+4F60" in first and "'好'" in first and first.count("你") == 1
    assert second.count("U+") == 5 and "and 11 more" in second
