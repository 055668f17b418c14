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
    embed_speaker,
    load_speaker_references,
    score_clip,
    score_dnsmos,
    scoring_pool,
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
    scores = score_clip(np.zeros(20000, "float32"), Sphinx(), True)
    assert scores == dict(heard="", overall=None, signal=None, background=None)


def test_empty_clip_is_not_scored():
    assert score_clip(np.zeros(0, "float32"), Sphinx(), True)["heard"] == ""


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])  # two processes import torch
def test_thread_and_processes_return_the_same(workers):
    clips = [Audio(torch.ones(16000 * n), 16000) for n in (1, 2, 3)]
    duration = attrgetter("duration")  # a recogniser that can be sent to other processes
    with scoring_pool(duration, False, workers) as score:
        heard = [future.result()["heard"] for future in [score(clip) for clip in clips]]
    assert heard == [1., 2., 3.]


def test_errors_of_a_recogniser_are_raised():
    def deaf(audio):
        raise ZeroDivisionError("deaf")

    with pytest.raises(ZeroDivisionError, match="deaf"):
        with scoring_pool(deaf, False) as score:
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


@pytest.mark.parametrize("sources, error", [
    ([], OptionError),
    (["rms", "rms"], OptionError),
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
