"Features: the golden front end of the speaker encoder, resampling, pitch, loudness and limiting."

import numpy as np
import pytest
import torch

from metavoice.audio.features import (
    ResampleStream,
    estimate_pitch,
    log_mel,
    loudness,
    mel_spectrogram,
    normalise_loudness,
    resample,
    soft_limit,
    stft_magnitude,
    trim_silence,
)
from metavoice.audio.sound import load_audio
from metavoice.core.errors import OptionError

RATE = 16000


@pytest.mark.parametrize("i", range(4))
def test_golden_trim_and_mel(golden, expected, i):
    x = trim_silence(load_audio(golden / f"voice{i}.wav", RATE).samples)
    assert len(x) == expected[f"spk_trim{i}"]
    mel, want = mel_spectrogram(x).numpy(), expected[f"spk_mel{i}"]
    assert mel.shape == want.shape and np.abs(mel - want).max() <= 1e-3 * np.abs(want).max()
    np.testing.assert_allclose(mel, want, rtol=1e-3, atol=1e-6 * want.max())


def test_loudness_of_a_real_recording(speech):
    audio = load_audio(speech / "bria.mp3", 24000)
    assert 40 < audio.duration < 50 and audio.sample_rate == 24000 and -40 < loudness(audio.samples, 24000) < -5


@pytest.mark.parametrize("a, b", [(44100, 24000), (48000, 16000), (8000, 24000), (44101, 16000), (192000, 8000)])
def test_resample_keeps_a_tone(tone, a, b):
    got, want = resample(torch.tensor(tone(1.0, a)), a, b), torch.tensor(tone(1.0, b))
    assert len(got) == len(want) and (got - want)[b // 20 : -b // 20].abs().max() < 0.01


def test_resample_refuses_rates():
    for rate in (0, -5, 2.5):
        with pytest.raises(OptionError, match="sample rate"):
            resample(torch.zeros(9), rate, RATE)
    with pytest.raises(OptionError, match="too far apart"):
        resample(torch.zeros(9), 1, 10**9)


@pytest.mark.parametrize("rates", [(24000, 48000), (44100, 48000), (48000, 24000), (16000, 16000)])
def test_resampled_stream_equals_the_whole(rates):
    x = torch.randn(9000, generator=torch.Generator().manual_seed(0))
    stream, whole = ResampleStream(*rates), resample(x, *rates)
    for sizes in ([1, 2, 500, 3, 7000, 1494], [9000], [4500, 4500]):  # the second stream begins where the first ended
        got = torch.cat([stream.process(chunk) for chunk in x.split(sizes)] + [stream.flush()])
        assert got.shape == whole.shape and (got - whole).abs().max() < 1e-5


def test_resampled_stream_refuses_rates():
    for rates, message in (((0, 48000), "sample rate is 0 Hz"), ((24001, 48000), "from 24001 Hz to 48000 Hz")):
        with pytest.raises(OptionError, match=message):
            ResampleStream(*rates)


def test_stft_of_both_layouts():
    x = torch.randn(2, 3, 1600)
    assert stft_magnitude(x, 400, 160).shape == (2, 3, 201, 11)
    assert stft_magnitude(x, 400, 160, centre=False).shape == (2, 3, 201, 10)
    frame = torch.fft.rfft(x[1, 2, 600:1000] * torch.hann_window(400)).abs()
    assert (stft_magnitude(x, 400, 160)[1, 2, :, 5] - frame).abs().max() < 1e-4


@pytest.mark.parametrize("hz", [70.0, 110.0, 220.0, 400.0])
def test_pitch_of_pulses_and_of_a_sine(tone, hz):
    pulses = torch.zeros(24000)
    pulses[(torch.arange(0, int(hz)) * 24000 / hz).long()] = 1.0
    for x in (pulses, torch.tensor(tone(1.0, 24000, hz))):
        found, voiced = estimate_pitch(torch.stack([x, 0.1 * x]), 24000, 320)
        inner = slice(5, 70)
        assert found.shape == (2, 75) and voiced[:, inner].all()
        assert (found[:, inner] - torch.tensor(hz).log2()).abs().max() < 0.03


def test_noise_and_silence_have_no_pitch():
    noise = torch.randn(24000, generator=torch.Generator().manual_seed(0))
    assert estimate_pitch(noise, 24000, 320)[1].float().mean() < 0.05
    assert not estimate_pitch(torch.zeros(24000), 24000, 320)[1].any()


def test_loudness(tone):
    x = torch.tensor(tone(3.0, 48000, 997.0) / 0.4)
    assert abs(loudness(x, 48000) + 3.01) < 0.1 and abs(loudness(x / 10, 48000) + 23.01) < 0.1
    assert abs(loudness(x[:4800] / 10, 48000) + 23.01) < 0.3  # 0.1 s
    assert loudness(torch.zeros(9), 48000) == loudness(torch.zeros(0), 48000) == -torch.inf


@pytest.mark.parametrize("i", range(4))
def test_normalise_loudness_of_a_voice(golden, i):
    x = load_audio(golden / f"voice{i}.wav").samples
    for level in (0.05, 1, 20):
        y = normalise_loudness(x * level, RATE)
        assert abs(loudness(y, RATE) + 14) < 0.6 and y.abs().max() <= 1


def test_normalise_loudness_of_silence_and_short_clips(tone):
    for x in (torch.zeros(0), torch.zeros(5), torch.zeros(RATE)):
        assert torch.equal(normalise_loudness(x, RATE), x)
    assert normalise_loudness(torch.tensor(tone(0.05)), RATE).isfinite().all()


def test_soft_limit_bends_only_above_the_knee():
    x = torch.linspace(-3, 3, 601)
    y = soft_limit(x)
    assert torch.equal(y[250:351], x[250:351]) and y.abs().max() <= 1 and (y.diff() > 0).all()


def test_trim_silence_keeps_silent_audio():
    assert len(trim_silence(torch.zeros(5000))) == 5000 and len(trim_silence(torch.zeros(0))) == 0


def test_mel_shapes_and_gradient():
    with torch.inference_mode():
        log_mel(torch.zeros(2, 4800), 24000, 512, 240, 64)
    x = torch.randn(2, 4800, requires_grad=True)
    mel = log_mel(x, 24000, 512, 240, 64, centre=False)
    assert mel.shape == (2, 64, 20)
    mel.sum().backward()
    assert x.grad.isfinite().all()
