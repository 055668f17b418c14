"The denoiser on a real noisy recording, in streams, in threads, and with bad input."
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from metavoice.audio.sound import Audio, load_audio
from metavoice.core.errors import AudioError, BundleError, OptionError
import metavoice.deepfilter
from metavoice.models.deepfilter import DF_DELAY, DfState, load_deepfilternet
from metavoice.models.denoiser import Denoiser, denoise_into, enhance


def si_sdr(estimate, target):
    "Scale-invariant signal-to-distortion ratio of (time,) against (time,), dB."
    along = (estimate @ target) / (target @ target) * target
    return float(10 * torch.log10(along.square().sum() / (estimate - along).square().sum()))

def shift(late, early):
    "By how many samples `late` is behind `early`: where the cross-correlation is greatest."
    size = 2 * max(len(late), len(early))
    agreement = torch.fft.irfft(torch.fft.rfft(late, size) * torch.fft.rfft(early, size).conj(), size)
    at = int(agreement.argmax())
    return at if at < size // 2 else at - size

def same(one, other): torch.testing.assert_close(one, other, atol=1e-5, rtol=0) # products of many rows add in another order than those of few

@pytest.fixture(scope="module")
def hum():
    "1.2 s of a buzzing tone in noise, 48 kHz."
    t = torch.arange(57_600) / 48000
    tone = sum(torch.sin(2 * torch.pi * 140 * k * t) / k for k in range(1, 20)) * (1 + torch.sin(2 * torch.pi * 4 * t))
    return .1 * tone + .05 * torch.randn(len(t), generator=torch.Generator().manual_seed(0))

@pytest.fixture(scope="module")
def once(hum):
    return Denoiser()(hum)


def test_noisy_recording(speech):
    noisy, clean = load_audio(speech / "noisy_snr0.wav"), load_audio(speech / "clean.wav")
    assert noisy.sample_rate == clean.sample_rate == 48000
    better = enhance(noisy)
    assert len(better.samples) == len(noisy.samples)
    before, after = si_sdr(noisy.samples, clean.samples), si_sdr(better.samples, clean.samples)
    assert 5 < before < 7 and after >= 18
    assert shift(better.samples, clean.samples) == 0

def test_24_khz_goes_up_and_stays_in_place(speech):
    clean = load_audio(speech / "clean.wav", 24000)
    part = Audio(clean.samples[24000:96000], 24000)
    better = enhance(part)
    assert better.sample_rate == 48000 and len(better.samples) == 2 * len(part.samples)
    assert shift(better.samples, part.resample(48000).samples) == 0
    assert si_sdr(better.samples, part.resample(48000).samples) > 15

def test_delay_is_1440_samples(hum):
    whole = hum[:len(hum) // 480 * 480]
    assert shift(load_deepfilternet()(whole.view(-1, 480), DfState()).flatten(), whole) == 1440 == DF_DELAY

@pytest.mark.parametrize("sizes", ([57_600], [480] * 120, [1, 479, 481, 0, 7, 20_000, 36_632], [2399] * 24 + [24]))
def test_stream_equals_whole(hum, once, sizes):
    assert sum(sizes) == len(hum)
    denoiser = Denoiser()
    same(torch.cat([denoiser.process(o) for o in hum.split(sizes)] + [denoiser.flush()]), once)

def test_stream_is_at_most_40_ms_behind(hum):
    denoiser = Denoiser()
    given = got = 0
    for chunk in hum[:24000].split(700):
        given, got = given + len(chunk), got + len(denoiser.process(chunk))
        assert given - got < 1440 + 480
    assert got + len(denoiser.flush()) == given

def test_every_recording_begins_afresh(hum, once):
    denoiser = Denoiser()
    denoiser.process(hum[:9999]) # a stream under way, not disturbed and not disturbing
    assert torch.equal(denoiser(hum), once)
    assert torch.equal(denoiser(hum), once)
    assert len(denoiser.flush()) > 0
    same(torch.cat([denoiser.process(hum), denoiser.flush()]), once)
    assert len(denoiser.flush()) == 0

@pytest.mark.parametrize("n", (0, 1, 479, 480, 481, 1440, 46_559, 46_560, 46_561, 48_000))
def test_lengths(hum, once, n):
    denoiser = Denoiser()
    result = denoiser(hum[:n])
    assert result.shape == (n,) and result.isfinite().all()
    same(result[:max(0, n - 1920)], once[:max(0, n - 1920)]) # causal but for its look-ahead

def test_in_place_holds_the_file_once(hum, once):
    own = hum.clone()
    denoiser = Denoiser()
    result = denoiser(own, out=own)
    assert result.data_ptr() == own.data_ptr() and torch.equal(own, once)

def test_the_input_is_left_alone(hum):
    audio = Audio(hum[:24000].clone(), 48000)
    enhance(audio)
    assert torch.equal(audio.samples, hum[:24000])

def test_threads(hum, once):
    denoiser = Denoiser()
    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(o, once) for o in pool.map(denoiser, [hum] * 4))

def test_strided_and_double_samples(hum, once):
    denoiser = Denoiser()
    assert torch.equal(denoiser(torch.stack([hum, hum], 1)[:, 0]), once)
    assert torch.equal(denoiser(hum.double()), once)
    assert torch.equal(denoiser(hum.clone().requires_grad_()), once)

def test_silence_stays_silent():
    better = enhance(Audio(torch.zeros(12_000), 24000))
    assert better.samples.shape == (24_000,) and not better.samples.any()

def test_attenuation_limit(hum):
    part = hum[:24000]
    kept = [si_sdr(Denoiser(limit)(part), part) for limit in (1, 6, 100)]
    assert kept == sorted(kept, reverse=True) and kept[0] > 15

@pytest.mark.parametrize("limit", (0, -1, 100.5, float("nan"), float("inf")))
def test_limits_out_of_range(limit):
    with pytest.raises(OptionError, match="from 1 to 100"): Denoiser(limit)

@pytest.mark.parametrize("samples, message", [(torch.zeros(2, 480), "2, 480"), (torch.tensor(0.), "shape"),
    (torch.tensor([0, float("nan")]), "NaN"), (torch.tensor([float("inf")]), "infinity")])
def test_bad_samples(samples, message):
    denoiser = Denoiser()
    for use in (denoiser, denoiser.process):
        with pytest.raises(AudioError, match=message): use(samples)

def test_a_wrong_place_for_the_result(hum):
    denoiser = Denoiser()
    for out in (torch.empty(3), torch.empty(480, dtype=torch.float64)):
        with pytest.raises(OptionError, match="float32"): denoiser(hum[:480], out=out)

@pytest.mark.parametrize("content, message", [(None, "No such file"), (b"not at all", "header")])
def test_missing_and_broken_weights(monkeypatch, tmp_path, content, message):
    monkeypatch.setattr(metavoice.deepfilter, "WEIGHTS", tmp_path/"weights.safetensors")
    if content: (tmp_path/"weights.safetensors").write_bytes(content)
    load_deepfilternet.cache_clear()
    for use in (load_deepfilternet, Denoiser, lambda: enhance(Audio(torch.zeros(480), 48000))):
        with pytest.raises(BundleError, match=f"weights can't be read.*{message}"): use()

def test_denoise_into_blocks(hum, once):
    memory = DfState()
    assert torch.equal(denoise_into(lambda samples: load_deepfilternet()(samples.view(-1, 480), memory).flatten(), hum, torch.empty_like(hum)), once)
