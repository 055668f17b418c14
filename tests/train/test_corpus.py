"Sentences, speakers and Flite."
import pytest

from metavoice.core.errors import MetaVoiceError, OptionError
from metavoice.train.corpus import HELD_OUT_SPEAKERS, TRAINING_SPEAKERS, Corpus, render_flite
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
