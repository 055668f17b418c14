"Does nano speak, and whose voice is it? Judges listen to sentences of its grammar that it was never trained on."
import pytest

from metavoice.audio.sound import load_audio
from metavoice.measure.recognise import Sphinx, count_word_errors
from metavoice.measure.quality import embed_speaker, score_dnsmos
from metavoice.train.sentences import make_sentences
from metavoice.generate.tts import TTS

# Kept out of training. Settings were chosen by listening to others from the beginning of this list.
HELD_OUT = make_sentences(400, seed=2026)[::-1]


@pytest.fixture(scope="module")
def tts(): return TTS.from_pretrained("nano", device="cpu")

@pytest.fixture(scope="module")
def said(tts):
    "Twelve sentences, three by each voice, one after the other: (voice, text, audio)."
    voices = [name for name in tts.bundle.voices for _ in range(3)]
    return list(zip(voices, HELD_OUT, tts.synthesise(HELD_OUT[:len(voices)], voices, seed=0, denoise=False)))


def test_it_ships_several_voices(tts):
    assert 3 <= len(tts.bundle.voices) <= 4
    for path in tts.bundle.voices.values(): assert 20 < load_audio(path).duration < 40

def test_half_of_the_words_are_heard(said):
    counts = [count_word_errors(text, Sphinx()(audio)) for _, text, audio in said]
    assert sum(wrong for wrong, _ in counts) <= .5*sum(words for _, words in counts), list(zip(said, counts))

def test_no_sentence_is_empty_or_runs_on(said):
    for _, text, audio in said: assert .15*len(text.split()) < audio.duration < .8*len(text.split())+1, text

def test_each_voice_is_itself(tts, said):
    encoder = tts.bundle.speaker_encoder
    own = {name: embed_speaker(encoder, load_audio(path)) for name, path in tts.bundle.voices.items()}
    right = 0
    for voice, _, audio in said:
        heard = embed_speaker(encoder, audio)
        right += max(own, key=lambda name: float(own[name] @ heard)) == voice
    assert right >= .75*len(said), right

def test_the_first_sentence_is_speech(tts):
    audio = tts.synthesise("The first sentence that metavoice ever spoke.", seed=0)
    assert 1.5 < audio.duration < 6
    assert score_dnsmos(audio)["overall"] >= 2.
