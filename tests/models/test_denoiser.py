"The denoiser on a real noisy recording, in streams and threads, and with bad input."
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from metavoice.audio.level import speech_level
from metavoice.audio.sound import Audio, load_audio
from metavoice.core.errors import AudioError, OptionError
from metavoice.models.deepfilter import DfState
from metavoice.models.denoiser import Denoiser, denoise_into, enhance
from metavoice.models.denoiser_graph import load_denoiser_network


def si_sdr(estimate, target):
    "Scale-invariant signal-to-distortion ratio of (time,) against (time,), dB."
    along = (estimate @ target) / (target @ target) * target
    return float(10 * torch.log10(along.square().sum() / (estimate - along).square().sum()))


def assert_close(a, b):
    "Compare samples; matrix products of another number of rows sum in another order."
    torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def denoised(noisy_tone):
    return Denoiser()(noisy_tone)


def test_noisy_recording(speech, delay_of):
    noisy, clean = load_audio(speech / "noisy_snr0.wav"), load_audio(speech / "clean.wav")
    assert noisy.sample_rate == clean.sample_rate == 48000
    enhanced = enhance(noisy)
    assert len(enhanced.samples) == len(noisy.samples)
    before, after = si_sdr(noisy.samples, clean.samples), si_sdr(enhanced.samples, clean.samples)
    assert 5 < before < 7 and after >= 18
    assert delay_of(enhanced.samples, clean.samples) == 0


def test_24_khz_is_resampled_and_stays_aligned(speech, delay_of):
    clean = load_audio(speech / "clean.wav", 24000)
    part = Audio(clean.samples[24000:96000], 24000)
    enhanced, resampled = enhance(part), part.resample(48000).samples
    assert enhanced.sample_rate == 48000 and len(enhanced.samples) == 2 * len(part.samples)
    assert delay_of(enhanced.samples, resampled) == 0
    assert si_sdr(enhanced.samples, resampled) > 15


@pytest.mark.parametrize("sizes", ([57_600], [480] * 120, [1, 479, 481, 0, 7, 20_000, 36_632], [2399] * 24 + [24]))
def test_a_stream_equals_the_whole_recording(noisy_tone, denoised, sizes):
    assert sum(sizes) == len(noisy_tone)
    denoiser = Denoiser()
    chunks = [denoiser.process(chunk) for chunk in noisy_tone.split(sizes)]
    assert_close(torch.cat([*chunks, denoiser.flush()]), denoised)


def test_a_stream_is_at_most_40_ms_late(noisy_tone):
    denoiser = Denoiser()
    given = got = 0
    for chunk in noisy_tone[:24000].split(700):
        given, got = given + len(chunk), got + len(denoiser.process(chunk))
        assert given - got < 1440 + 480
    assert got + len(denoiser.flush()) == given


def test_recordings_and_streams_are_independent(noisy_tone, denoised):
    denoiser = Denoiser()
    denoiser.process(noisy_tone[:9999])  # an open stream
    assert torch.equal(denoiser(noisy_tone), denoised)
    assert torch.equal(denoiser(noisy_tone), denoised)
    assert len(denoiser.flush()) > 0
    assert_close(torch.cat([denoiser.process(noisy_tone), denoiser.flush()]), denoised)
    assert len(denoiser.flush()) == 0


@pytest.mark.parametrize("n", (0, 1, 479, 480, 481, 1440, 46_559, 46_560, 46_561, 48_000))
def test_lengths(noisy_tone, denoised, n):
    result = Denoiser()(noisy_tone[:n])
    assert result.shape == (n,) and result.isfinite().all()
    causal = max(0, n - 1920)  # the last samples depend on what follows
    assert_close(result[:causal], denoised[:causal])


def test_in_place(noisy_tone, denoised):
    own = noisy_tone.clone()
    result = Denoiser()(own, out=own)
    assert result.data_ptr() == own.data_ptr() and torch.equal(own, denoised)


def test_the_input_is_unchanged(noisy_tone):
    audio = Audio(noisy_tone[:24000].clone(), 48000)
    enhance(audio)
    assert torch.equal(audio.samples, noisy_tone[:24000])


def test_threads(noisy_tone, denoised):
    denoiser = Denoiser()
    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(result, denoised) for result in pool.map(denoiser, [noisy_tone] * 4))


def test_strided_and_double_samples(noisy_tone, denoised):
    denoiser = Denoiser()
    assert torch.equal(denoiser(torch.stack([noisy_tone, noisy_tone], 1)[:, 0]), denoised)
    assert torch.equal(denoiser(noisy_tone.double()), denoised)
    assert torch.equal(denoiser(noisy_tone.clone().requires_grad_()), denoised)


def test_silence_stays_silent():
    enhanced = enhance(Audio(torch.zeros(12_000), 24000))
    assert enhanced.samples.shape == (24_000,) and not enhanced.samples.any()


def test_attenuation_limit(noisy_tone):
    part = noisy_tone[:24000]
    kept = [si_sdr(Denoiser(limit)(part), part) for limit in (1, 6, 100)]
    assert kept == sorted(kept, reverse=True) and kept[0] > 15


@pytest.mark.parametrize("limit", (0, -1, 100.5, float("nan"), float("inf")))
def test_limits_out_of_range(limit):
    with pytest.raises(OptionError, match="from 1 to 100"):
        Denoiser(limit)


@pytest.mark.parametrize("samples, message", [
    (torch.zeros(2, 480), "2, 480"),
    (torch.tensor(0.), "shape"),
    (torch.tensor([0, float("nan")]), "NaN"),
    (torch.tensor([float("inf")]), "infinity"),
])
def test_bad_samples(samples, message):
    denoiser = Denoiser()
    for use in (denoiser, denoiser.process):
        with pytest.raises(AudioError, match=message):
            use(samples)


def test_out_must_fit(noisy_tone):
    denoiser = Denoiser()
    for out in (torch.empty(3), torch.empty(480, dtype=torch.float64)):
        with pytest.raises(OptionError, match="float32"):
            denoiser(noisy_tone[:480], out=out)


def test_denoise_into_runs_in_blocks(noisy_tone, denoised):
    state = DfState()

    def run(samples):
        return load_denoiser_network()(samples.view(-1, 480), state).flatten()

    assert torch.equal(denoise_into(run, noisy_tone, torch.empty_like(noisy_tone)), denoised)


@pytest.mark.parametrize("name", ("clean.wav", "noisy_snr0.wav", "bria.mp3"))
def test_the_level_of_the_output_follows_that_of_the_input(speech, name):
    audio = load_audio(speech / name, 48000)
    samples = audio.samples[:5 * 48000]
    whole = Denoiser()(samples)
    for gain in (1e-3, .03, .3, 2., 30.):
        again = Denoiser()(gain * samples) / gain
        assert abs(20 * torch.log10(again.std() / whole.std())) < .5, gain
        assert si_sdr(again, whole) > 15, gain
    again = enhance(Audio(.03 * audio.samples, 48000)).samples / .03
    assert abs(20 * torch.log10(again.std() / enhance(audio).samples.std())) < .5


def test_a_normal_level_is_left_alone(noisy_tone):
    "Bit for bit, so that synthesised speech and the comparison with the official runtime don't change."
    assert -36 < speech_level(noisy_tone, 48000) < -12
    network, state = load_denoiser_network(), DfState()
    plain = denoise_into(lambda x: network(x.view(-1, 480), state).flatten(), noisy_tone, torch.empty_like(noisy_tone))
    assert torch.equal(Denoiser()(noisy_tone), plain)


def test_a_quiet_stream_of_known_level(speech):
    samples = load_audio(speech / "clean.wav").samples[:5 * 48000]
    denoiser, level = Denoiser(stream_level=speech_level(.03 * samples, 48000)), Denoiser()(samples).std()
    stream = torch.cat([*[denoiser.process(chunk) for chunk in (.03 * samples).split(7000)], denoiser.flush()])
    assert abs(20 * torch.log10(stream.std() / .03 / level)) < .5
