"The speaker encoder compared with reference embeddings; its windows, its shipped weights and its errors."
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import metavoice
from metavoice.audio.features import mel_spectrogram, trim_silence
from metavoice.audio.level import gain_to_level, speech_level
from metavoice.audio.sound import Audio, load_audio
from metavoice.core.errors import AudioError, BundleError
from metavoice.models.speaker_encoder import (
    SpeakerEncoder,
    embed_reference,
    embed_reference_windows,
    has_two_voices,
    mel_windows,
    window_starts,
)

SHIPPED = Path(metavoice.__file__).parent / "nano" / "speaker_encoder.safetensors"
SAMPLES = Path(__file__).parents[2] / "nbs" / "samples"


def cosine(a, b):
    return float(torch.cosine_similarity(torch.as_tensor(a).double(), torch.as_tensor(b).double(), dim=0))


def make_buzz(seconds, rate=16000):
    "A square wave of varying loudness, without pauses."
    t = torch.arange(int(seconds * rate)) / rate
    return .3 * torch.sign(torch.sin(2 * torch.pi * 120 * t)) * (1 + .3 * torch.sin(2 * torch.pi * 3 * t)) / 1.3


@pytest.fixture(scope="module")
def shipped():
    return SpeakerEncoder.from_state(load_file(SHIPPED))


@pytest.fixture(scope="module")
def released(golden):
    return SpeakerEncoder.from_state(torch.load(golden / "speaker_encoder.pt", weights_only=True)["model_state"])


@pytest.mark.parametrize("n", range(4))
def test_features_of_reference_recordings(golden, expected, n):
    trimmed = trim_silence(load_audio(golden / f"voice{n}.wav", 16000).samples)
    assert len(trimmed) == int(expected[f"spk_trim{n}"])
    mel, wanted = mel_spectrogram(trimmed), torch.from_numpy(expected[f"spk_mel{n}"])
    assert mel.shape == wanted.shape
    assert (mel - wanted).abs().max() <= 1e-3 * wanted.abs().max()
    loud = wanted > 1e-6 * wanted.max()
    assert ((mel - wanted).abs()[loud] / wanted[loud]).max() <= 1e-3


@pytest.mark.parametrize("n", range(4))
def test_embeddings_of_reference_recordings(golden, expected, released, n):
    embedding = released.embed_audio(load_audio(golden / f"voice{n}.wav"))
    assert embedding.shape == (256,) and embedding.dtype == torch.float32
    assert cosine(embedding, expected[f"spk_emb{n}"]) >= 0.9999


def test_embedding_of_a_resampled_recording(speech, expected, released):
    assert cosine(released.embed_audio(load_audio(speech / "bria.mp3")), expected["spk_bria"]) >= 0.999


def test_shipped_weights_equal_the_released_ones(golden, released, shipped):
    for n in range(4):
        audio = load_audio(golden / f"voice{n}.wav")
        assert cosine(released.embed_audio(audio), shipped.embed_audio(audio)) > 0.9999


def test_shipped_file_names_its_source():
    with safe_open(SHIPPED, "pt") as f:
        notes, names = f.metadata(), set(f.keys())
        assert all(f.get_tensor(name).dtype == torch.float16 for name in names)
    assert notes["licence"] == "Apache-2.0" and "esemblyzer" in notes["source"]
    assert names == set(SpeakerEncoder().state_dict())


def test_similarity_within_and_between_voices(shipped):
    voices = {}
    for voice in ("awb", "rms", "slt"):
        for i in (1, 2):
            voices[voice, i] = shipped.embed_audio(load_audio(SAMPLES / f"{voice}_{i}.ogg"))
    pairs = [(v, w, cosine(a, b)) for (v, i), a in voices.items() for (w, j), b in voices.items() if (v, i) < (w, j)]
    assert min(c for v, w, c in pairs if v == w) > .85
    assert max(c for v, w, c in pairs if v != w) < .75


@pytest.mark.parametrize("n, starts", [
    (1, [0]),
    (100, [0]),
    (160 * 160, [0]),
    (160 * (77 + 119), [0]),
    (160 * (77 + 120), [0, 77]),
    (160 * (2 * 77 + 119), [0, 77]),
    (160 * (2 * 77 + 120), [0, 77, 154]),
])
def test_windows(n, starts):
    assert window_starts(n) == starts
    samples = torch.randn(n, generator=torch.Generator().manual_seed(0))
    assert mel_windows(samples).shape == (len(starts), 160, 40)


def test_later_speech_does_not_change_a_window():
    x = make_buzz(6)
    assert torch.allclose(mel_windows(x)[0], mel_windows(torch.cat([x, x]))[0], rtol=1e-4)


def test_several_batches_of_windows(shipped):
    samples = make_buzz(60)  # 77 windows
    windows = mel_windows(samples)
    assert len(windows) > 64
    with torch.no_grad():
        alone = torch.stack([shipped(w[None])[0] for w in windows[::20]])
        embeddings = shipped(windows)
    assert torch.allclose(alone, embeddings[::20], atol=1e-5)
    whole = torch.nn.functional.normalize(embeddings.mean(0), dim=-1)
    assert cosine(shipped.embed(samples), whole) > 1 - 1e-6


@pytest.mark.parametrize("seconds", (.02, .3, 1, 1.6, 2.21, 5))
def test_embedding_has_length_one(shipped, seconds):
    embedding = shipped.embed(make_buzz(seconds))
    assert abs(float(embedding.norm()) - 1) < 1e-5 and (embedding >= 0).all() and not embedding.requires_grad


def test_sample_rates_agree(shipped):
    audio = load_audio(SAMPLES / "slt_1.ogg")
    embedding = shipped.embed_audio(audio)
    for rate in (16000, 22050, 44100, 48000):
        assert cosine(embedding, shipped.embed_audio(audio.resample(rate))) > .995


def test_repeatable_and_without_side_effects(shipped):
    audio = load_audio(SAMPLES / "rms_2.ogg")
    before, state = audio.samples.clone(), torch.random.get_rng_state()
    assert torch.equal(shipped.embed_audio(audio), shipped.embed_audio(audio))
    assert torch.equal(audio.samples, before) and torch.equal(torch.random.get_rng_state(), state)


def test_embeddings_work_in_training(shipped):
    embedding = shipped.embed(make_buzz(1))
    layer = torch.nn.Linear(256, 2)
    layer(embedding).sum().backward()  # fails for an inference tensor
    assert layer.weight.grad is not None


def test_unused_scalars_are_ignored():
    state = load_file(SHIPPED)
    scalars = {"similarity_weight": torch.ones(1), "similarity_bias": torch.ones(1)}
    encoder = SpeakerEncoder.from_state({**state, **scalars})
    assert set(encoder.state_dict()) == set(state)
    assert encoder.linear.weight.dtype == torch.float32 and not encoder.training


@pytest.mark.parametrize("change, message", [
    (lambda s: s.pop("linear.weight"), "missing linear.weight"),
    (lambda s: s.update({"lstm.extra": torch.ones(1)}), "unknown lstm.extra"),
    (lambda s: s.update({"linear.bias": torch.ones(255)}), r"linear.bias is \(255,\), not \(256,\)"),
])
def test_wrong_weights_are_named(change, message):
    state = load_file(SHIPPED)
    change(state)
    with pytest.raises(BundleError, match=f"speaker encoder doesn't fit its configuration: {message}"):
        SpeakerEncoder.from_state(state)


@pytest.mark.parametrize("samples, message", [
    (torch.zeros(0), "0,"),
    (torch.zeros(2, 16000), "2, 16000"),
    (torch.full((16000,), float("nan")), "NaN"),
    (torch.full((16000,), float("inf")), "infinity"),
])
def test_unusable_samples_are_rejected(shipped, samples, message):
    with pytest.raises(AudioError, match=message):
        shipped.embed(samples)


def test_silence_is_rejected(shipped):
    for n in (48000, 0):
        with pytest.raises(AudioError, match="silence"):
            shipped.embed_audio(Audio(torch.zeros(n), 24000))


# references at any level


VOICES = SHIPPED.parent / "voices"


@pytest.mark.parametrize("name", ("af_heart", "am_michael", "bf_emma"))
def test_a_reference_at_any_level_with_pauses_and_an_offset(shipped, name):
    audio = load_audio(VOICES / f"{name}.ogg")
    x, rate = audio.samples, audio.sample_rate
    plain = embed_reference(shipped, audio, -19.)
    for decibels in (-40, -20, -10, 10, 20, 40):
        assert cosine(embed_reference(shipped, Audio(10**(decibels / 20) * x, rate), -19.), plain) > .998
    pause = torch.zeros(2 * rate)
    paused = torch.cat([o for part in x.split(len(x) // 3) for o in (part, pause)])
    assert cosine(embed_reference(shipped, Audio(paused, rate), -19.), plain) > .99
    assert cosine(embed_reference(shipped, Audio(x + .05, rate), -19.), plain) > .999
    level = speech_level(x, rate)
    assert cosine(shipped.embed_audio(Audio(gain_to_level(level, -19.) * (x - x.mean()), rate)), plain) > .99


@pytest.mark.parametrize("n", range(4))
def test_a_range_of_levels_leaves_golden_voices_as_they_are(golden, released, n):
    audio = load_audio(golden / f"voice{n}.wav")
    assert torch.equal(embed_reference(released, audio, (-32., -16.)), released.embed_audio(audio))
    quiet = Audio(10**(-40 / 20) * audio.samples, audio.sample_rate)
    at_the_edge = embed_reference(released, quiet, (-32., -16.))
    assert cosine(at_the_edge, released.embed_audio(audio)) > cosine(released.embed_audio(quiet), at_the_edge)


def test_a_range_of_levels_and_a_real_recording(speech, expected, released):
    embedding = embed_reference(released, load_audio(speech / "bria.mp3"), (-32., -16.))
    assert cosine(embedding, expected["spk_bria"]) >= .999


def test_two_voices(shipped):
    samples = {name: load_audio(VOICES / f"{name}.ogg").samples for name in ("af_heart", "am_michael", "bf_emma")}
    for a in samples:
        for b in samples:
            turns = [samples[a if i % 2 else b][i * 96000:(i+1) * 96000] for i in range(6)]
            halves = torch.cat([samples[a][:240_000], samples[b][-240_000:]])
            for x in (halves, torch.cat(turns)):
                windows = embed_reference_windows(shipped, Audio(x, 24000), -19.)
                assert has_two_voices(windows) == (a != b)
                assert not has_two_voices(windows[:7])


def test_one_real_voice(speech, shipped):
    for name in ("bria.mp3", "clean.wav"):
        assert not has_two_voices(embed_reference_windows(shipped, load_audio(speech / name), -19.))
