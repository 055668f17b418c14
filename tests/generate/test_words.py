"The times of the words that were written: whole, in streams, at other speeds and in batches."
import pytest
import torch

from metavoice.generate.codes import default_aligner, spoken_phonemes, time_words
from metavoice.generate.options import SpeechOptions
from metavoice.generate.sources import LocalSource, generate_codes
from metavoice.models.word_times import time_audio

TEXT = "On 3/4/2026 **Dr.** Smith paid $12.50. [pause 1s] Where is it?"
WRITTEN = "On 3/4/2026 Dr. Smith paid $12.50. Where is it?".split()
HOW = dict(seed=3, denoise=False, takes=1, words=True)


@pytest.fixture(scope="module")
def audio(tts):
    return tts.synthesise(TEXT, **HOW)


def test_words_are_as_written_and_in_order(audio):
    assert [word.text for word in audio.words] == WRITTEN
    times = [time for word in audio.words for time in (word.start, word.end)]
    assert times == sorted(times) and times[0] >= 0 and times[-1] <= audio.duration
    date, money = audio.words[1], audio.words[5]
    assert date.end - date.start > 1 and money.end - money.start > 1  # several words are said
    assert audio.words[6].start - money.end > 0.95  # the pause


def test_times_are_where_the_sound_is(tts):
    "Silence around each word: the sound begins within 80 ms of its time, and ends there apart from its decay."
    audio = tts.synthesise("Yes. [pause 1s] No. [pause 1s] Stop.", seed=3, denoise=False, words=True)
    frames = audio.samples[: len(audio.samples) // 240 * 240].view(-1, 240).square().mean(1).sqrt()
    loud = (frames > 0.02 * frames.max()).nonzero()[:, 0] / 100
    for word in audio.words:
        own = loud[(loud > word.start - 0.4) & (loud < word.end + 0.4)]
        assert abs(own.min() - word.start) < 0.08, (word, own.min())
        assert -0.25 < own.max() - word.end < 0.08, (word, own.max())


def test_the_recogniser_agrees(tts, resolve):
    texts = ["The kettle sings softly while rain taps on the window.", "Nine small boats came home before the tide."]
    errors = []
    for segment in tts.segments(texts, seed=1, options=SpeechOptions(words=True)):
        next(generate_codes([segment], LocalSource(tts.bundle, resolve())))
        times = time_words(tts.bundle, segment)
        with torch.inference_mode():
            samples = tts.bundle.codec.decode(segment.codes[None])[0]
        heard = time_audio(samples, *spoken_phonemes(tts.bundle, segment, tts.bundle.tokeniser), tts.bundle.listener)
        errors.append((times - heard).abs().flatten())
    errors = torch.cat(errors)
    assert errors.median() < 0.04 and (errors < 0.08).double().mean() > 0.85


def test_the_denoiser_does_not_move_the_sound(tts):
    plain = tts.synthesise("The dog slept.", seed=3, denoise=False).resample(48_000).samples
    clean = tts.synthesise("The dog slept.", seed=3).samples
    a, b = (torch.nn.functional.pad(x, (0, 8192)) for x in (plain, clean[: len(plain)]))
    peak = torch.fft.irfft(torch.fft.rfft(a).conj() * torch.fft.rfft(b)).argmax().item()
    assert min(peak, len(a) - peak) < 0.005 * 48_000


def test_a_stream_carries_the_words(tts, audio):
    for chunk in (None, 0.3):
        parts = list(tts.stream(TEXT, chunk=chunk, **HOW))
        assert [word for part in parts for word in part.words] == audio.words
        at = 0.0
        for part in parts:
            at += part.duration
            assert all(word.end <= at + 0.02 for word in part.words)


def test_speed_is_included(tts, audio):
    changed = tts.synthesise(TEXT, speed=1.5, **HOW)
    assert [word.text for word in changed.words] == WRITTEN
    for a, b in zip(audio.words, changed.words):
        assert b.start * 1.5 == pytest.approx(a.start, abs=0.05)


def test_each_text_of_a_batch_has_its_own(tts, audio):
    found = tts.synthesise(["It rained.", TEXT], seed=[1, 3], denoise=False, takes=1, words=True)
    assert [word.text for word in found[0].words] == ["It", "rained."] and found[1].words == audio.words


def test_words_change_no_sample_and_are_not_noted_unasked(tts, audio):
    plain = tts.synthesise(TEXT, seed=3, denoise=False, takes=1)
    assert plain == audio and plain.words is None
    assert all(part.words is None for part in tts.stream("Yes.", seed=1, denoise=False))


def test_odd_texts_keep_their_words(tts):
    texts = [
        "Wow 🙂 great – isn't it?", "# Title\n\n- 1 egg\n- 2 eggs & milk", 'He said: "No!" (twice)... OK',
        "A" * 90 + " b",
        "7" * 70 + " is long.", "x-ray, e.g. rock-'n'-roll; AT&T's 3rd", "Hello 你 there",
    ]
    for text, audio in zip(texts, tts.synthesise(texts, seed=1, denoise=False, takes=1, words=True)):
        prepared = " ".join(word.text for word in audio.words)
        for word in ("great", "2", "twice", "b", "long.", "3rd", "there"):
            assert word not in text or word in prepared, (text, prepared)
        times = [time for word in audio.words for time in (word.start, word.end)]
        assert times == sorted(times) and times[-1] <= audio.duration


def test_a_model_of_letters_is_aligned_by_nano(tmp_path):
    from tiny import write_tiny_bundle

    from metavoice.generate.tts import TTS

    tiny = TTS.from_pretrained(write_tiny_bundle(tmp_path / "tiny"), device="cpu")
    audio = tiny.synthesise("It cost $5.", seed=1, denoise=False, words=True)
    assert [word.text for word in audio.words] == ["It", "cost", "$5."]
    assert audio.words[-1].end <= audio.duration and default_aligner().name == "nano"
    parts = list(tiny.stream("It cost $5.", seed=1, denoise=False, words=True, speed=1.5))
    assert [word.text for part in parts for word in part.words] == ["It", "cost", "$5."]


def test_text_that_is_not_converted(tts):
    segments = tts.segments(["It cost five."], options=SpeechOptions(words=True, spoken=False))
    assert [segment.words for segment in segments] == [[("It", 1), ("cost", 1), ("five.", 1)]]
