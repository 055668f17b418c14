"The level of speech doesn't depend on pauses, offsets and rates; noise and pauses are found."

import math
from pathlib import Path

import pytest
import torch

import metavoice
from metavoice.audio.features import resample
from metavoice.audio.level import find_pauses, frame_power, gain_to_level, noise_level, shorten_pauses, speech_level
from metavoice.audio.sound import load_audio

VOICES = Path(metavoice.__file__).parent / "nano" / "voices"
RATE = 24000


@pytest.fixture(scope="module", params=("af_heart", "am_michael", "bf_emma"))
def voice(request):
    return load_audio(VOICES / f"{request.param}.ogg").samples


def test_level_is_independent_of_everything_else(voice):
    level, silence = speech_level(voice, RATE), torch.zeros(5 * RATE)
    assert -25 < level < -15
    for gain in (0.01, 0.3, 100):
        assert speech_level(gain * voice, RATE) == pytest.approx(level + 20 * math.log10(gain), abs=0.01)
    assert speech_level(torch.cat([silence, voice, silence]), RATE) == pytest.approx(level, abs=0.1)
    assert speech_level(voice - 0.3, RATE) == pytest.approx(level, abs=0.05)
    for rate in (8000, 16000, 48000):
        assert speech_level(resample(voice, RATE, rate), rate) == pytest.approx(level, abs=0.5)
    assert speech_level(voice[: len(voice) // 2], RATE) == pytest.approx(level, abs=1)


def test_a_click_is_no_speech(voice):
    clicked = voice.clone()
    clicked[RATE] = 1
    assert speech_level(clicked, RATE) == pytest.approx(speech_level(voice, RATE), abs=0.5)


@pytest.mark.parametrize("samples", [torch.zeros(0), torch.zeros(1), torch.zeros(100), torch.ones(RATE)])
def test_silence_has_no_level(samples):
    assert speech_level(samples, RATE) == noise_level(samples, RATE) == -torch.inf
    assert gain_to_level(speech_level(samples, RATE), -19.0) == 1
    assert shorten_pauses(samples, RATE, 0.3) is samples
    assert len(frame_power(samples, RATE)) >= 1


def test_noise(voice):
    level, hiss = speech_level(voice, RATE), torch.randn(len(voice), generator=torch.Generator().manual_seed(0))
    for below in (22, 15, 8):
        noisy = voice + hiss * 10 ** ((level - below) / 20)
        assert noise_level(noisy, RATE) - speech_level(noisy, RATE) == pytest.approx(-below, abs=3)
        gated = torch.cat([noisy, torch.zeros(len(noisy))])  # digital silence says nothing about the noise
        assert noise_level(gated, RATE) == pytest.approx(noise_level(noisy, RATE), abs=1)


def test_pauses_are_found_also_in_noise(voice):
    at = 9 * RATE + int(voice[9 * RATE : 11 * RATE].abs().argmax())  # in the middle of speech
    hiss = torch.randn(len(voice) + 2 * RATE, generator=torch.Generator().manual_seed(0))
    paused = torch.cat([voice[:at], torch.zeros(2 * RATE), voice[at:]])
    for below in (60, 30, 20):
        noisy = paused + hiss * 10 ** ((speech_level(voice, RATE) - below) / 20)
        (pause,) = find_pauses(noisy, RATE, 1.0)
        assert abs(pause[0] - at) < 0.5 * RATE and abs(pause[1] - at - 2 * RATE) < 0.5 * RATE
        assert len(shorten_pauses(noisy, RATE, 0.3)) < len(voice) + 0.4 * RATE


def test_nothing_but_pauses_is_cut(voice):
    assert torch.equal(shorten_pauses(voice, RATE, 1.0), voice)
    at = 10 * RATE
    short = shorten_pauses(torch.cat([voice[:at], torch.zeros(4 * RATE), voice[at:]]), RATE, 1.0)
    assert torch.equal(short[: at], voice[:at]) and torch.equal(short[-len(voice) + at :], voice[at:])
    ends = shorten_pauses(torch.cat([torch.zeros(3 * RATE), voice, torch.zeros(3 * RATE)]), RATE, 1.0)
    assert len(voice) <= len(ends) + 0.6 * RATE and len(ends) <= len(voice) + RATE
