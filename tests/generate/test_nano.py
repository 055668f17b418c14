"The quality of nano on held-out sentences: words, voices and DNSMOS."
import os

import pytest

from metavoice.audio.sound import load_audio
from metavoice.measure.quality import embed_speaker, score_dnsmos
from metavoice.measure.recognise import Sphinx, Whisper, count_word_errors
from metavoice.measure.recordings import EVALUATION_TEXTS  # held out of training

VOICES = ["af_heart", "af_bella", "am_michael", "am_fenrir", "bf_emma", "bm_george"]


@pytest.fixture(scope="module")
def said(tts):
    "Twelve sentences, two by each voice: (voice, text, audio)."
    voices = [name for name in tts.bundle.voices for _ in range(2)]
    texts = EVALUATION_TEXTS[:len(voices)]
    return list(zip(voices, texts, tts.synthesise(texts, voices, seed=0, denoise=False)))


def word_error_rate(said, recogniser):
    counts = [count_word_errors(text, recogniser(audio)) for _, text, audio in said]
    return sum(wrong for wrong, _ in counts) / sum(words for _, words in counts)


def test_it_ships_several_voices(tts):
    assert [*tts.bundle.voices] == VOICES and tts.voice().name == VOICES[0]
    for name, path in tts.bundle.voices.items():
        assert 20 < load_audio(path).duration < 40
        assert tts.voice(load_audio(path)).warnings == ()
        assert tts.voice(name).accent == ("british" if name.startswith("b") else "american")


@pytest.mark.slow
def test_words_are_recognised(said):
    assert word_error_rate(said, Sphinx()) <= .25


@pytest.mark.slow
@pytest.mark.skipif("METAVOICE_WHISPER" not in os.environ, reason="METAVOICE_WHISPER can name a folder with Whisper")
def test_whisper_recognises_nearly_all_words(said):
    assert word_error_rate(said, Whisper()) <= .1


@pytest.mark.slow
def test_no_sentence_is_empty_or_endless(said):
    for _, text, audio in said:
        assert .15 * len(text.split()) < audio.duration < .8 * len(text.split()) + 1, text


@pytest.mark.slow
def test_each_voice_is_closest_to_itself(tts, said):
    encoder = tts.bundle.speaker_encoder
    own = {name: embed_speaker(encoder, load_audio(path)) for name, path in tts.bundle.voices.items()}
    right = 0
    for voice, _, audio in said:
        embedding = embed_speaker(encoder, audio)
        right += max(own, key=lambda name: float(own[name] @ embedding)) == voice
    assert right >= .9 * len(said), right


@pytest.mark.slow
def test_a_sentence_is_speech(tts):
    audio = tts.synthesise("The first sentence that metavoice ever spoke.", seed=0)
    assert 1.5 < audio.duration < 6
    assert score_dnsmos(audio)["overall"] >= 2.7
