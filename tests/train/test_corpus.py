"Sentences, speakers and Flite."
import pytest

from metavoice.core.errors import MetaVoiceError, OptionError
from metavoice.text.phonemes import phone_states
from metavoice.train.corpus import HELD_OUT_SPEAKERS, TRAINING_SPEAKERS, Corpus, WordAligner, render_flite
from metavoice.train.sentences import make_sentences


def test_sentences_and_speakers():
    assert make_sentences(50, seed=3) == make_sentences(50, seed=3) and len(set(make_sentences(50, seed=3))) == 50
    assert len({s.name for s in TRAINING_SPEAKERS}) >= 40 and len(HELD_OUT_SPEAKERS) >= 4
    assert not set(TRAINING_SPEAKERS) & set(HELD_OUT_SPEAKERS)


def test_missing_flite_names_the_package(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(MetaVoiceError, match="apt-get install flite"):
        render_flite("Hello.")


def test_missing_corpus(tmp_path):
    with pytest.raises(OptionError, match="manifest.jsonl is missing"):
        Corpus(tmp_path / "nothing")


def test_phonemes_of_flite_have_times():
    "A pause that the text doesn't mark becomes a comma; the end of *letter* is two phones."
    aligner = WordAligner()
    aligner.counts = {"The": 2, "letter": 4, "A": 1}
    phones = "pau 0.1 dh 0.2 iy 0.3 pau 0.5 l 0.6 eh 0.7 t 0.8 er 1.0 pau 1.1 ax 1.2 pau 1.5".split()
    phones = list(zip(phones[::2], map(float, phones[1::2])))
    phonemes, times = aligner.transcribe("The letter. A", phones)
    assert phonemes == "ði, lɛtəɹ. ə"
    assert [name for name, _ in times] == [state.name for state in phone_states(phonemes)]
    assert [end for _, end in times] == [0.1, 0.2, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.5]
    assert aligner("The letter. A", phones) == [[0.1, 0.3], [0.5, 1.0], [1.1, 1.2]]
    assert aligner.transcribe("The letter.", phones) == ("", [])
