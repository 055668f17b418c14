"Speech at other speeds: the same speech at the same pitch, by one path for the whole and the stream."
import pytest
import torch

from metavoice.audio.features import estimate_pitch
from metavoice.core.errors import OptionError
from metavoice.generate.codes import vocode
from metavoice.generate.options import SpeechOptions
from metavoice.generate.sources import LocalSource, generate_codes

TEXT = "The old man sat down. Where is the book?"
HOW = dict(seed=3, denoise=False, takes=1)


@pytest.fixture(scope="module")
def plain(tts):
    return tts.synthesise(TEXT, **HOW)


def pitch_every(audio, seconds):
    return estimate_pitch(audio.samples, audio.sample_rate, round(seconds * audio.sample_rate))


def test_speed_1_changes_nothing(tts, plain):
    assert tts.synthesise(TEXT, speed=1, **HOW) == plain == tts.synthesise(TEXT, speed=1.0, words=True, **HOW)
    codes = torch.randint(1024, (1, 8, 20), generator=torch.Generator().manual_seed(1))
    assert torch.equal(tts.bundle.codec.decode(codes, 1.0), tts.bundle.codec.decode(codes))


@pytest.mark.parametrize("speed", [0.5, 0.8, 1.25, 2.0])
def test_the_length_follows_and_the_pitch_stays(tts, plain, speed):
    audio = tts.synthesise(TEXT, speed=speed, **HOW)
    assert audio.duration * speed == pytest.approx(plain.duration, abs=0.03)
    (before, voiced), (after, still) = pitch_every(plain, 0.02), pitch_every(audio, 0.02 / speed)
    n = min(len(before), len(after))
    both = voiced[:n] & still[:n]
    assert both.sum() > 30 and (before[:n] - after[:n])[both].abs().median() < 1 / 24  # half a semitone
    assert audio == tts.synthesise(TEXT, speed=speed, **HOW)


@pytest.mark.parametrize("speed", [0.6, 1.7])
def test_a_stream_of_segments_is_the_whole_and_chunks_are_as_long(tts, speed):
    how = HOW | dict(speed=speed)
    whole = tts.synthesise(TEXT, **how)
    segments = torch.cat([part.samples for part in tts.stream(TEXT, chunk=None, **how)])
    assert torch.equal(segments, whole.samples)
    chunks = [part.samples for part in tts.stream(TEXT, chunk=0.3, **how)]
    assert len(torch.cat(chunks)) == len(whole.samples) and len(chunks) > 3
    assert sorted(map(len, chunks))[len(chunks) // 2] / 24_000 == pytest.approx(0.3, abs=0.05)


def test_chunks_sound_like_the_whole(tts, spectra_correlate):
    "Apart from the codes of the second stage, which sees less of the future in a stream."
    how = HOW
    for speed in (1.0, 1.4):
        whole = tts.synthesise(TEXT, speed=speed, **how).samples
        chunks = torch.cat([part.samples for part in tts.stream(TEXT, chunk=0.3, speed=speed, **how)])
        assert spectra_correlate(whole, chunks, 24_000) > 0.9


def test_the_smallest_chunks(tts):
    for speed in (0.5, 2.0):
        parts = [part.samples for part in tts.stream("Where is it?", chunk=0.05, speed=speed, **HOW)]
        whole = tts.synthesise("Where is it?", speed=speed, **HOW).samples
        assert len(torch.cat(parts)) == len(whole)


def test_a_batch_is_each_alone(tts):
    texts = ["The dog slept.", "Where is the red book?"]
    together = tts.synthesise(texts, seed=[1, 2], speed=1.5, denoise=False)
    assert together == [tts.synthesise(t, seed=s, speed=1.5, denoise=False) for t, s in zip(texts, (1, 2))]


def test_every_speed_has_the_same_codes(tts, resolve):
    options = resolve()
    fast, slow = (tts.segments([TEXT], seed=3, options=SpeechOptions(speed=speed)) for speed in (2.0, 0.5))
    assert [s.pause for s in fast] == [s.pause / 4 for s in slow] and fast[0].pause > 0
    a, b = (next(generate_codes(s[:1], LocalSource(tts.bundle, options))) for s in (fast, slow))
    assert torch.equal(a.codes, b.codes)
    long, short = (vocode(tts.bundle, a, "codec", speed=speed) for speed in (0.5, 2.0))
    assert len(long) == pytest.approx(4 * len(short), abs=1000)


@pytest.mark.parametrize("speed", [0, 0.49, 2.01, -1, float("nan"), "fast"])
def test_other_speeds_are_refused(tts, speed):
    with pytest.raises(OptionError, match="speed is .*; use a number from 0.5 to 2"):
        tts.synthesise(TEXT, speed=speed)
