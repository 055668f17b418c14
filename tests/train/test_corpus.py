"Sentences, speakers and Flite."
import json

import pytest
import torch

from metavoice.core.errors import MetaVoiceError, OptionError
from metavoice.text.phonemes import phone_states
from metavoice.train.corpus import (
    HELD_OUT_SPEAKERS,
    TRAINING_SPEAKERS,
    Corpus,
    WordAligner,
    render_flite,
    write_corpus,
)
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


GOOD = dict(text="a", voice="b", start=0, length=50, words=[], phones=[])


@pytest.mark.parametrize("line, words", [
    ("[" * 100_000, "line 2: its JSON is nested too deeply"),
    ("{", "line 2: it isn't JSON"),
    ("[1]", "line 2: it isn't a JSON object"),
    ("{}", "line 2: there is no text"),
    (GOOD | dict(length="abc"), "line 2: length is 'abc'; use a whole number"),
    (GOOD | dict(words="abc"), "line 2: words is 'abc'; use a list"),
    (GOOD | dict(phones=[5]), "line 2: start and length should lie in samples.i16"),
    (GOOD | dict(start=-1), "line 2: start and length should lie in samples.i16"),
    (GOOD | dict(start=51), "line 2: start and length should lie in samples.i16"),
    (GOOD | dict(length=10**30), "line 2: start and length should lie in samples.i16"),
])
def test_manifests_of_strangers(tmp_path, line, words):
    (tmp_path / "samples.i16").write_bytes(bytes(200))
    lines = [json.dumps(GOOD), line if isinstance(line, str) else json.dumps(line)]
    (tmp_path / "manifest.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(OptionError) as e:
        Corpus(tmp_path)
    assert words in str(e.value) and "manifest.jsonl" in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize("sound", [None, b""])
def test_a_corpus_without_sound(tmp_path, sound):
    (tmp_path / "manifest.jsonl").write_text(json.dumps(GOOD) + "\n")
    if sound is not None:
        (tmp_path / "samples.i16").write_bytes(sound)
    with pytest.raises(OptionError, match="can't read .*samples.i16"):
        Corpus(tmp_path)


def test_a_corpus_reads_what_it_wrote(tmp_path):
    spoken = [("caf\udce9 \u2028\x85", "me", torch.ones(100), [[0.0, 0.1]], [])]
    assert write_corpus(tmp_path, spoken).utterances[0].text == spoken[0][0]
