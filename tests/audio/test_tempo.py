"Tempo: the pitch stays, the length is exact, and a stream has the samples of the whole."
import random
import sys

import pytest
import torch

from metavoice.core.errors import OptionError

pytest.importorskip("av", reason='needs pip install "metavoice[media]"')
from metavoice.audio.tempo import TempoStream, change_tempo  # noqa: E402

RATE = 24_000


def chirp(seconds=2.0):
    "A voice-like sound: pulses of 100 to 180 Hz."
    time = torch.arange(int(seconds * RATE)) / RATE
    phase = 100 * time + 20 * time.square()
    return 0.1 * sum(torch.sin(2 * torch.pi * n * phase) for n in range(1, 12))


@pytest.mark.parametrize("speed", [0.5, 0.8, 1.25, 1.5, 2.0])
@pytest.mark.parametrize("rate", [16_000, 24_000, 48_000])
def test_a_tone_keeps_its_pitch_and_level(speed, rate):
    tone = 0.5 * torch.sin(2 * torch.pi * 220 * torch.arange(2 * rate) / rate)
    changed = change_tempo(tone, rate, speed)
    assert len(changed) == round(len(tone) / speed)
    middle = changed[len(changed) // 4 : len(changed) // 4 + rate // 4]
    spectrum = torch.fft.rfft(middle * torch.hann_window(len(middle)), rate).abs()
    assert abs(spectrum.argmax().item() - 220) <= 2
    assert middle.square().mean().sqrt() == pytest.approx(0.5**0.5 * 0.5, rel=0.1)


@pytest.mark.parametrize("speed", [0.5, 1.3, 2.0])
def test_the_sizes_of_the_parts_do_not_matter(speed):
    samples, rng = chirp(), random.Random(1)
    whole, stream, parts, at = change_tempo(samples, RATE, speed), TempoStream(RATE, speed), [], 0
    while at < len(samples):
        size = rng.choice([0, 1, 7, 480, 5000])
        at += size
        parts.append(stream.process(samples[at - size : at], at >= len(samples)))
    assert torch.equal(torch.cat(parts), whole)
    assert len(parts[0]) < len(whole)


@pytest.mark.parametrize("size", [0, 1, 5, 100, 2000])
def test_short_sounds(size):
    for speed in (0.5, 2.0):
        found = change_tempo(torch.ones(size), RATE, speed)
        assert len(found) == round(size / speed) and found.isfinite().all()


def test_a_stream_gives_sound_before_its_end():
    stream = TempoStream(RATE, 0.5)
    assert len(stream.process(chirp(1.0))) > 1.7 * RATE


def test_without_pyav_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(OptionError, match=r'pip install "metavoice\[media\]", or use speed=1'):
        change_tempo(torch.zeros(10), RATE, 2.0)
