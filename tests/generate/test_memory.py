"Memory: how many segments fit, and what happens when memory is refused."
import logging

import pytest
import torch

import metavoice.bundle.memory as memory
import metavoice.generate.decoding as decoding
from metavoice.bundle.load import load_bundle
from metavoice.bundle.memory import cache_row_bytes, memory_use, pick_batch_size
from metavoice.bundle.released import RELEASED_REPO
from metavoice.core.errors import MetaVoiceError
from metavoice.generate.options import SpeechOptions
from metavoice.generate.sources import LocalSource
from metavoice.models.gpt import GPTConfig

TEXTS = ["The dog slept.", "Where is the red book?", "The old man walked to the river.", "Yes.", "The cat ran."]


def test_a_cache_row_of_the_release():
    "0.35 GB for 1,792 positions, as measured by users of the release."
    row = cache_row_bytes(GPTConfig(), torch.device("cuda"), torch.bfloat16)
    assert row * 1792 / 2048 == pytest.approx(0.352e9, rel=0.01)


def test_a_card_of_12_gigabytes_holds_several_segments():
    use = memory_use(load_bundle(RELEASED_REPO, "cpu", "bfloat16"), 2, "mbd", "cuda")
    assert 1 < use.segments(12e9) < use.segments(24e9) <= 16 and use.total(use.segments(12e9)) <= 12e9
    assert use.segments(6e9) == 1 and use.segments(1e9) == 1
    eight = load_bundle(RELEASED_REPO, "cpu", "bfloat16")
    eight.quantise = "int8"
    assert memory_use(eight, 2, "mbd", "cuda").segments(12e9) > use.segments(12e9)
    assert memory_use(eight, 2, "codec", "cuda").segments(12e9) > memory_use(eight, 2, "mbd", "cuda").segments(12e9)


@pytest.mark.parametrize("free, rows", ((None, 16), (100e9, 16), (0.0, 1)))
def test_rows_follow_from_the_free_memory(tts, monkeypatch, free, rows):
    monkeypatch.setattr(memory, "free_memory", lambda device: free)
    source = LocalSource(tts.bundle, SpeechOptions().resolve(tts.bundle))
    assert pick_batch_size(tts.bundle, 1) == rows == source.batch_size


def test_a_batch_size_that_is_given_is_used(tts, monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda device: 0.0)
    assert LocalSource(tts.bundle, SpeechOptions().resolve(tts.bundle), 7).batch_size == 7


@pytest.fixture
def small_memory(monkeypatch):
    "Let each step with more rows than given be refused memory; returns the counts of rows that were tried."
    tried = []

    def limit(most):
        step = decoding.DecodeBatch.decode_step

        def decode_step(self, tokens):
            tried.append(len(tokens))
            if len(tokens) > most:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
            return step(self, tokens)

        monkeypatch.setattr(decoding.DecodeBatch, "decode_step", decode_step)
        return tried

    return limit


def test_refused_memory_halves_the_rows_and_changes_no_codes(tts, small_memory, caplog):
    options = SpeechOptions(takes=1).resolve(tts.bundle)
    segments = lambda: tts.segments(TEXTS, seed=[1, 2, 3, 4, 5])  # noqa: E731
    expected = [takes[0].codes for takes in LocalSource(tts.bundle, options, 5).codes(segments())]
    tried, source = small_memory(2), LocalSource(tts.bundle, options, 5)
    with caplog.at_level(logging.WARNING):
        codes = [takes[0].codes for takes in source.codes(segments())]
    assert all(torch.equal(a, b) for a, b in zip(expected, codes, strict=True))
    assert source.batch_size == 2 and tried[0] == 5 and max(tried[1:]) == 2
    assert "out of memory with 5 segments side by side; going on with 2" in caplog.text
    again = [takes[0].codes for takes in source.codes(segments())]  # it remembers
    assert all(torch.equal(a, b) for a, b in zip(expected, again, strict=True)) and tried.count(5) == 1


def test_too_little_memory_for_one_segment(tts, small_memory):
    small_memory(0)
    with pytest.raises(MetaVoiceError, match="too little memory for this model"):
        tts.synthesise(TEXTS, seed=1, takes=1)


def test_other_errors_are_raised(tts, monkeypatch):
    def broken(self, tokens):
        raise RuntimeError("a broken step")

    monkeypatch.setattr(decoding.DecodeBatch, "decode_step", broken)
    with pytest.raises(RuntimeError, match="a broken step"):
        tts.synthesise("The dog slept.", seed=1, takes=1)
