"Bootstrap intervals, speaker references, DNSMOS and the scoring pool."
from operator import attrgetter
from pathlib import Path

import numpy as np
import pytest
import torch

from metavoice.audio.sound import Audio, load_audio
from metavoice.core.errors import AudioError, OptionError
from metavoice.measure.quality import (
    bootstrap_estimate,
    compare_speakers,
    embed_speaker,
    load_speaker_references,
    median_pitch,
    score_clip,
    score_dnsmos,
    scoring_pool,
    semitones_between,
)
from metavoice.measure.recognise import Sphinx

SAMPLES = Path(__file__).parents[2] / "nbs" / "samples"


def test_intervals_shrink_with_more_sentences():
    rng = np.random.default_rng(0)

    def width(n):
        e = bootstrap_estimate([(i, x, 1) for i, x in enumerate(rng.normal(size=n))])
        assert e["low"] < e["value"] < e["high"]
        return e["high"] - e["low"]

    assert width(400) < .5 * width(40)


def test_estimate_is_a_ratio_of_sums():
    assert bootstrap_estimate([("a", 1, 2), ("b", 1, 8)])["value"] == .2
    parts = [("a", 1, 1), ("b", 0, 1)]
    assert bootstrap_estimate(parts, seed=3) == bootstrap_estimate(parts, seed=3)
    assert bootstrap_estimate([]) is None


def test_repeated_sentences_do_not_narrow_the_interval():
    rows = [(i, i % 2, 1) for i in range(20)]
    assert bootstrap_estimate(rows) == bootstrap_estimate(rows * 5)


def test_silence_is_not_scored():
    scores = score_clip(np.zeros(20000, "float32"), dict(sphinx=Sphinx()), True)
    assert scores == dict(heard=dict(sphinx=""), overall=None, signal=None, background=None)


def test_empty_clip_is_not_scored():
    assert score_clip(np.zeros(0, "float32"), dict(sphinx=Sphinx()), True)["heard"] == dict(sphinx="")
    assert score_clip(np.zeros(0, "float32"))["heard"] == {}


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])  # two processes import torch
def test_thread_and_processes_return_the_same(workers):
    clips = [Audio(torch.ones(16000 * n), 16000) for n in (1, 2, 3)]
    recognisers = dict(seconds=attrgetter("duration"), rate=attrgetter("sample_rate"))  # can be sent to processes
    with scoring_pool(recognisers, False, workers) as score:
        heard = [future.result()["heard"] for future in [score(clip) for clip in clips]]
    assert heard == [dict(seconds=float(n), rate=16000) for n in (1, 2, 3)]


def test_errors_of_a_recogniser_are_raised():
    def deaf(audio):
        raise ZeroDivisionError("deaf")

    with pytest.raises(ZeroDivisionError, match="deaf"):
        with scoring_pool(dict(deaf=deaf), False) as score:
            score(Audio(torch.ones(9), 16000)).result()


def test_speaker_embedding_does_not_depend_on_level(tts):
    clip, encoder = load_audio(SAMPLES / "slt_1.ogg"), tts.bundle.speaker_encoder
    quiet = Audio(.1 * clip.samples, clip.sample_rate)
    assert embed_speaker(encoder, quiet) @ embed_speaker(encoder, clip) > .999


def test_speaker_references(tts, own, tmp_path):
    found = load_speaker_references(tts, [own, SAMPLES])
    assert list(found) == [own] + [f"{v}_{n}" for v in ("awb", "rms", "slt") for n in (1, 2)]
    kept = tts.voice(own).save(tmp_path / "kept.safetensors")
    assert load_speaker_references(tts, [kept])[own].embedding.shape == (256,)
    assert load_speaker_references(tts, [load_audio(SAMPLES / "rms_1.ogg")])["voice"].voice.seconds > 3


def test_folder_of_recordings_for_each_speaker(tts, own, tmp_path):
    for name in ("awb", "slt"):
        (tmp_path / name).mkdir()
        for n in (1, 2):
            load_audio(SAMPLES / f"{name}_{n}.ogg").save(tmp_path / name / f"{n}.wav")
    (tmp_path / "empty").mkdir()
    load_audio(SAMPLES / "rms_1.ogg").save(tmp_path / "rms_1.wav")
    found = load_speaker_references(tts, [tmp_path])
    assert list(found) == ["awb", "rms_1", "slt"]
    both = [load_audio(SAMPLES / f"slt_{n}.ogg").duration for n in (1, 2)]
    assert found["slt"].voice.seconds == pytest.approx(sum(both), abs=.01)
    assert compare_speakers(load_audio(SAMPLES / "slt_2.ogg"), tts.bundle.speaker_encoder, found["slt"], found)[
        "nearest"
    ] == "slt"


def test_pitch_tells_a_woman_from_a_man(speech):
    man, woman = (median_pitch(load_audio(speech / name)) for name in ("audio.wav", "bria.mp3"))
    assert 80 < man < 130 < 170 < woman < 250
    assert semitones_between(woman, man) > 6 and semitones_between(man, man) == 0


def test_silence_has_no_pitch(tts, own):
    assert median_pitch(Audio(torch.zeros(16000), 16000)) is None and semitones_between(None, 100.) is None
    reference = load_speaker_references(tts, [own])[own]
    found = compare_speakers(Audio(torch.zeros(0), 16000), tts.bundle.speaker_encoder, reference, {})
    assert found == dict(cosine=0., nearest=None, pitch=None, semitones=None) and reference.pitch > 60


@pytest.mark.parametrize("sources, error", [
    ([], OptionError),
    (["af_heart", "af_heart"], OptionError),
    (["nobody.wav"], AudioError),
])
def test_wrong_speaker_references(tts, sources, error):
    with pytest.raises(error):
        load_speaker_references(tts, sources)


def test_noise_lowers_dnsmos():
    clip = load_audio(SAMPLES / "rms_2.ogg")
    noise = torch.randn(len(clip.samples), generator=torch.Generator().manual_seed(0))
    clean, noisy = score_dnsmos(clip), score_dnsmos(Audio(clip.samples + .1 * noise, clip.sample_rate))
    assert 1 < noisy["overall"] < clean["overall"] < 5
    assert noisy["background"] < clean["background"] - 1
