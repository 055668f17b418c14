"References: what is refused, what is warned about, and what `prepare_reference` removes."

import re
from pathlib import Path

import pytest
import torch

import metavoice
from metavoice.audio.level import speech_level
from metavoice.audio.reference import (
    NORMAL_LEVELS,
    check_reference,
    is_clipped,
    prepare_reference,
    reference_warnings,
)
from metavoice.audio.sound import Audio, load_audio
from metavoice.core.errors import AudioError

VOICES = Path(metavoice.__file__).parent / "nano" / "voices"
RATE = 24000


@pytest.fixture(scope="module", params=("af_heart", "am_michael", "bf_emma"))
def voice(request):
    return load_audio(VOICES / f"{request.param}.ogg")


def test_references_that_are_refused(tone):
    good = Audio(torch.tensor(tone(4.0, RATE)), RATE)
    assert check_reference(good) is good
    for audio, min_seconds, words in [
        (Audio(good.samples[: RATE // 2], RATE), 1, "0.50 s long; at least 1 s"),
        (good, 30, "4.00 s long; at least 30 s"),
        (Audio(torch.zeros(4 * RATE), RATE), 3, "silent"),
        (Audio(torch.full((4 * RATE,), 0.3), RATE), 3, "silent"),  # a constant is silent too
        (Audio(torch.full((4 * RATE,), torch.nan), RATE), 3, "NaN"),
        (Audio(torch.zeros(0), RATE), 3, "0.00 s long"),
    ]:
        with pytest.raises(AudioError, match=words):
            check_reference(audio, min_seconds)


def test_one_level(voice):
    prepared = prepare_reference(voice, -19.0)
    for gain in (0.01, 0.1, 100):
        again = prepare_reference(Audio(gain * voice.samples, RATE), -19.0)
        assert torch.allclose(again.samples, prepared.samples, atol=1e-5)
    assert speech_level(prepared.samples, RATE) == pytest.approx(-19, abs=0.01)
    assert abs(float(prepare_reference(Audio(voice.samples + 0.1, RATE), -19.0).samples.mean())) < 1e-3


def test_a_range_of_levels(voice):
    level = speech_level(voice.samples, RATE)
    for target in (-32, -25, -16):
        inside = Audio(10 ** ((target - level) / 20) * voice.samples, RATE)
        assert torch.allclose(prepare_reference(inside, NORMAL_LEVELS).samples, inside.samples, rtol=1e-4)
    for target, edge in ((-60, -32), (-5, -16)):
        outside = Audio(10 ** ((target - level) / 20) * voice.samples, RATE)
        assert speech_level(prepare_reference(outside, [*NORMAL_LEVELS]).samples, RATE) == pytest.approx(edge, abs=0.01)


def test_clipping(voice):
    assert not is_clipped(voice.samples) and not is_clipped(50 * voice.samples)
    for gain in (3, 6):
        loud = (gain * voice.samples / voice.samples.abs().max()).clamp(-1, 1)
        assert is_clipped(loud) and is_clipped(0.2 * loud) and is_clipped(-loud)
    sine = torch.sin(torch.arange(RATE) / 30)
    assert not is_clipped(0.5 * (sine * 32767).round() / 32767)


def test_warnings_say_what_to_do(voice):
    samples, hiss = voice.samples, torch.randn(len(voice.samples), generator=torch.Generator().manual_seed(0))
    assert reference_warnings(voice) == []
    level = 10 ** (speech_level(samples, RATE) / 20)
    assert reference_warnings(Audio(samples + 10**-1.5 * level * hiss, RATE)) == []  # 30 dB
    for faulty, words in [
        ((8 * samples).clamp(-1, 1), "clipped; record it again at a lower level"),
        (10 ** (-32 / 20) * samples, r"very quiet \(-5\d dBFS\); record it again closer"),
        (samples + 10**-0.5 * level * hiss, "noise is only 9|1[01] dB below the speech; record it again in a quiet"),
        (0.1 * hiss, "noise is only 0 dB below"),
        (torch.cat([samples[: 3 * RATE], torch.zeros(9 * RATE)]), r"only [23]\.\d s of speech; give 5 s or more"),
    ]:
        (warning,) = reference_warnings(Audio(faulty, RATE))
        assert re.search(words, warning), warning
    assert "give 60 s or more" in reference_warnings(voice, 60.0)[0]


def test_real_recordings(speech):
    assert reference_warnings(load_audio(speech / "bria.mp3"), 30) == []
    assert reference_warnings(load_audio(speech / "clean.wav")) == []
    assert "noise" in reference_warnings(load_audio(speech / "noisy_snr0.wav"))[0]
