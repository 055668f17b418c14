"The speaker encoder against golden embeddings, its windows, its shipped weights and its errors."
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import metavoice
from metavoice.audio.features import mel_spectrogram, trim_silence
from metavoice.audio.sound import Audio, load_audio
from metavoice.core.errors import AudioError, BundleError
from metavoice.models.speaker_encoder import SpeakerEncoder, mel_windows, window_starts

SHIPPED = Path(metavoice.__file__).parent / "nano" / "speaker_encoder.safetensors"
SAMPLES = Path(__file__).parents[1] / "nbs" / "samples"


def cosine(a, b): return float(torch.cosine_similarity(torch.as_tensor(a).double(), torch.as_tensor(b).double(), dim=0))

def buzz(seconds, rate=16000):
    "Something with a pitch and no pauses."
    t = torch.arange(int(seconds * rate)) / rate
    return .3 * torch.sign(torch.sin(2 * torch.pi * 120 * t)) * (1 + .3 * torch.sin(2 * torch.pi * 3 * t)) / 1.3

@pytest.fixture(scope="module")
def shipped(): return SpeakerEncoder.from_state(load_file(SHIPPED))

@pytest.fixture(scope="module")
def released(golden):
    return SpeakerEncoder.from_state(torch.load(golden / "speaker_encoder.pt", weights_only=True)["model_state"])


@pytest.mark.parametrize("n", range(4))
def test_golden_front_end(golden, expected, n):
    trimmed = trim_silence(load_audio(golden / f"voice{n}.wav", 16000).samples)
    assert len(trimmed) == int(expected[f"spk_trim{n}"])
    mel, wanted = mel_spectrogram(trimmed), torch.from_numpy(expected[f"spk_mel{n}"])
    assert mel.shape == wanted.shape
    assert (mel - wanted).abs().max() <= 1e-3 * wanted.abs().max()
    loud = wanted > 1e-6 * wanted.max() # and value by value where there is sound
    assert ((mel - wanted).abs()[loud] / wanted[loud]).max() <= 1e-3

@pytest.mark.parametrize("n", range(4))
def test_golden_embeddings(golden, expected, released, n):
    embedding = released.embed_audio(load_audio(golden / f"voice{n}.wav"))
    assert embedding.shape == (256,) and embedding.dtype == torch.float32
    assert cosine(embedding, expected[f"spk_emb{n}"]) >= 0.9999

def test_golden_resampled_recording(speech, expected, released):
    assert cosine(released.embed_audio(load_audio(speech / "bria.mp3")), expected["spk_bria"]) >= 0.999

def test_shipped_weights_are_the_released_ones(golden, released, shipped):
    for n in range(4):
        audio = load_audio(golden / f"voice{n}.wav")
        assert cosine(released.embed_audio(audio), shipped.embed_audio(audio)) > 0.9999

def test_shipped_file_says_where_it_is_from():
    with safe_open(SHIPPED, "pt") as f:
        notes, names = f.metadata(), set(f.keys())
        assert all(f.get_tensor(name).dtype == torch.float16 for name in names)
    assert notes["licence"] == "Apache-2.0" and "esemblyzer" in notes["source"]
    assert names == set(SpeakerEncoder().state_dict())


def test_same_voice_close_other_voice_far(shipped):
    voices = {(v, i): shipped.embed_audio(load_audio(SAMPLES / f"{v}_{i}.ogg")) for v in ("awb", "rms", "slt") for i in (1, 2)}
    same = [cosine(a, b) for (v, i), a in voices.items() for (w, j), b in voices.items() if v == w and i < j]
    other = [cosine(a, b) for (v, _), a in voices.items() for (w, _), b in voices.items() if v < w]
    assert min(same) > .85 and max(other) < .75

@pytest.mark.parametrize("n, starts", [(1, [0]), (100, [0]), (160 * 160, [0]), (160 * (77 + 119), [0]),
    (160 * (77 + 120), [0, 77]), (160 * (2 * 77 + 119), [0, 77]), (160 * (2 * 77 + 120), [0, 77, 154])])
def test_windows(n, starts):
    assert window_starts(n) == starts
    assert mel_windows(torch.randn(n, generator=torch.Generator().manual_seed(0))).shape == (len(starts), 160, 40)

def test_windows_are_not_changed_by_what_comes_later():
    x = buzz(6)
    assert torch.allclose(mel_windows(x)[0], mel_windows(torch.cat([x, x]))[0], rtol=1e-4)

def test_batches_of_windows_join_exactly(shipped):
    samples = buzz(60) # 77 windows: more than one batch
    windows = mel_windows(samples)
    assert len(windows) > 64
    with torch.no_grad(): plain = torch.stack([shipped(w[None])[0] for w in windows[::20]])
    assert torch.allclose(plain, shipped(windows)[::20], atol=1e-5)
    whole = torch.nn.functional.normalize(shipped(windows).mean(0), dim=-1)
    assert cosine(shipped.embed(samples), whole) > 1 - 1e-6

@pytest.mark.parametrize("seconds", (.02, .3, 1, 1.6, 2.21, 5))
def test_any_length_has_length_one(shipped, seconds):
    embedding = shipped.embed(buzz(seconds))
    assert abs(float(embedding.norm()) - 1) < 1e-5 and (embedding >= 0).all() and not embedding.requires_grad

def test_sample_rates_agree(shipped):
    audio = load_audio(SAMPLES / "slt_1.ogg")
    at = {rate: shipped.embed_audio(audio.resample(rate)) for rate in (16000, 22050, 44100, 48000)}
    assert min(cosine(shipped.embed_audio(audio), e) for e in at.values()) > .995

def test_repeatable_and_without_side_effects(shipped):
    audio = load_audio(SAMPLES / "rms_2.ogg")
    before, state = audio.samples.clone(), torch.random.get_rng_state()
    assert torch.equal(shipped.embed_audio(audio), shipped.embed_audio(audio))
    assert torch.equal(audio.samples, before) and torch.equal(torch.random.get_rng_state(), state)

def test_embeddings_can_be_trained_on(shipped):
    embedding = shipped.embed(buzz(1))
    layer = torch.nn.Linear(256, 2)
    layer(embedding).sum().backward() # an inference tensor would refuse
    assert layer.weight.grad is not None


def test_prefixless_names_and_unused_scalars():
    state = load_file(SHIPPED)
    encoder = SpeakerEncoder.from_state({**state, "similarity_weight": torch.ones(1), "similarity_bias": torch.ones(1)})
    assert set(encoder.state_dict()) == set(state) and encoder.linear.weight.dtype == torch.float32 and not encoder.training

@pytest.mark.parametrize("change, message", [
    (lambda s: s.pop("linear.weight"), "'linear.weight' is missing"),
    (lambda s: s.update({"lstm.extra": torch.ones(1)}), "'lstm.extra' is unknown"),
    (lambda s: s.update({"linear.bias": torch.ones(255)}), r"\(255,\); it should be \(256,\)")])
def test_wrong_weights_are_named(change, message):
    state = load_file(SHIPPED)
    change(state)
    with pytest.raises(BundleError, match=message): SpeakerEncoder.from_state(state)

@pytest.mark.parametrize("samples, message", [(torch.zeros(0), "0,"), (torch.zeros(2, 16000), "2, 16000"),
    (torch.full((16000,), float("nan")), "NaN"), (torch.full((16000,), float("inf")), "infinity")])
def test_what_has_no_voice(shipped, samples, message):
    with pytest.raises(AudioError, match=message): shipped.embed(samples)

def test_silence_has_no_voice(shipped):
    with pytest.raises(AudioError, match="silence"): shipped.embed_audio(Audio(torch.zeros(48000), 24000))
    with pytest.raises(AudioError, match="silence"): shipped.embed_audio(Audio(torch.zeros(0), 24000))
