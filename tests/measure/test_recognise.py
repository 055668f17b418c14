"Recognisers, normalised words and word errors."
import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from metavoice.audio.sound import Audio, load_audio
from metavoice.core.errors import OptionError
from metavoice.measure.recognise import (
    Sphinx,
    Whisper,
    count_word_errors,
    load_whisper,
    match_compounds,
    normalise_words,
    pick_recogniser,
    pick_recognisers,
)

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "nbs" / "samples"


@pytest.mark.parametrize("text, words", [
    ("The dog’s tail!", "the dogs tail"),
    ("'Quoted' — well-known", "quoted well known"),
    ("[Music] 7 o'clock <sil>", "seven o'clock"),
    ("Mr. Brown paid $12.50 in 1999.", "mister brown paid twelve dollars and fifty cents in nineteen ninety nine"),
    ("?!", ""),
    ("a_b", "a b"),
    ("I can't find my friends' boat.", "i can't find my friends boat"),
    ("a hundred and five", "one hundred five"),
    ("105", "one hundred five"),
    ("Room 101", "room one zero one"),
    ("OK, O.K., okay, ok", "okay okay okay okay"),
    ("They're alright.", "they're all right"),
    ("Four hours of promise, our tour", "four hours of promize our tour"),
])
def test_normalised_words(text, words):
    assert normalise_words(text) == words


@pytest.mark.parametrize("british, american", [
    ("Her favourite colour is grey.", "Her favorite color is gray."),
    ("The theatre in the centre", "The theater in the center"),
    ("We travelled two kilometres, organising and analysing.", "We traveled two kilometers, organizing and analyzing."),
    ("He cancelled the programme in our neighbourhood.", "He canceled the program in our neighborhood."),
    ("Practise your defence of jewellery and cheques.", "Practice your defense of jewelry and checks."),
])
def test_one_spelling_for_both_sides_of_the_atlantic(british, american):
    assert normalise_words(british) == normalise_words(american)


@pytest.mark.parametrize("text, heard, errors", [
    ("I don't go there any more.", "I don't go there anymore.", 0),
    ("A flowerpot and an ice-cream", "a flower pot and an icecream", 0),
    ("Fifty per cent of it", "50% of it", 0),
    ("We met at half past nine.", "We met at 9:30.", 3),
    ("It opens at nine thirty.", "It opens at 9.30.", 0),
    ("It weighs three point two five.", "It weighs 3.25.", 0),
    ("Mister Lee has twelve chairs.", "Mr. Lee has 12 chairs.", 0),
    ("She owes me a hundred and fifty dollars.", "She owes me $150.", 0),
    ("in nineteen eighty-seven", "In 1987.", 0),
    ("He may be there.", "He maybe there.", 0),
    ("The part is apart.", "the part is a part", 0),
    ("The part is a part.", "the part is apart", 0),
])
def test_what_recognisers_write_otherwise(text, heard, errors):
    assert count_word_errors(text, heard)[0] == errors


def test_compounds_take_the_spacing_of_the_text():
    assert match_compounds("on to the mantel piece", "onto the mantelpiece") == "on to the mantel piece"
    assert match_compounds("may be maybe", "maybe may be") == "maybe may be", "both are in the text"


@pytest.mark.parametrize("heard, errors", [
    ("the dog slept", 0),
    ("The DOG, slept!", 0),
    ("the cat slept", 1),
    ("dog", 2),
    ("", 3),
    ("well the dog has slept", 2),
])
def test_word_errors(heard, errors):
    assert count_word_errors("The dog slept.", heard) == (errors, 3)


def test_sphinx_does_not_depend_on_earlier_clips():
    first, second = (load_audio(SAMPLES / f"{v}_2.ogg") for v in ("awb", "slt"))
    sphinx = Sphinx()
    alone = sphinx(first)
    assert normalise_words(alone).startswith("nine small boats")
    sphinx(second)
    assert sphinx(first) == alone


@pytest.mark.parametrize("which, message", [
    ("parrot", "unknown recogniser 'parrot'"),
    ("whisper:", "unknown recogniser"),
    (7, "unknown recogniser 7"),
])
def test_unknown_recogniser(which, message):
    with pytest.raises(OptionError, match=message):
        pick_recogniser(which)


class FakeWhisper:
    "Stands for WhisperModel: records what it is called with, and hears the number of samples."
    calls = []

    def __init__(self, model, **options):
        self.calls.append((model, options))

    def transcribe(self, samples, **options):
        self.calls.append((len(samples), options))
        return iter([SimpleNamespace(text=f" {len(samples)} samples."), SimpleNamespace(text=" End.")]), None


@pytest.fixture
def fake_whisper(monkeypatch):
    "A recogniser that takes the place of faster-whisper; its calls."
    monkeypatch.setitem(sys.modules, "faster_whisper", SimpleNamespace(WhisperModel=FakeWhisper))
    monkeypatch.setattr(FakeWhisper, "calls", [])
    load_whisper.cache_clear()
    yield FakeWhisper.calls
    load_whisper.cache_clear()


def test_settings_of_whisper_are_fixed(fake_whisper, monkeypatch):
    monkeypatch.delenv("METAVOICE_WHISPER", raising=False)
    whisper = pick_recogniser("whisper")
    assert whisper(Audio(torch.ones(2400), 24000)) == "9600 samples. End."
    assert whisper(Audio(torch.zeros(100), 16000)) == whisper(Audio(torch.zeros(0), 16000)) == ""
    loading, call = fake_whisper
    assert loading == (
        "Systran/faster-whisper-tiny.en", dict(device="cpu", compute_type="int8", cpu_threads=1)
    )
    assert call[0] == 1600 + 2 * 4000, "a tenth of a second, with a quarter of silence at both ends"
    fixed = dict(language="en", beam_size=5, temperature=0, condition_on_previous_text=False)
    assert call[1] == fixed | dict(without_timestamps=True, vad_filter=False)


def test_where_whisper_comes_from(fake_whisper, monkeypatch, tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    monkeypatch.setenv("METAVOICE_WHISPER", str(tmp_path))
    found = pick_recognisers(f"sphinx, whisper,whisper:{tmp_path}")
    assert list(found) == ["sphinx", "whisper", f"whisper:{tmp_path.name}"]
    assert {found["whisper"].source, found[f"whisper:{tmp_path.name}"].source} == {str(tmp_path)}
    assert [model for model, _ in fake_whisper] == [str(tmp_path)], "loaded once"


def test_missing_whisper(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for source in (tmp_path, "no/such-model", "parrot"):
        with pytest.raises(OptionError, match="can't load the recogniser") as e:
            pick_recogniser(f"whisper:{source}")
        assert "\n" not in str(e.value) and "METAVOICE_WHISPER" in str(e.value)


@pytest.mark.skipif("METAVOICE_WHISPER" not in os.environ, reason="METAVOICE_WHISPER can name a folder with Whisper")
def test_whisper_hears_sentences_and_single_words():
    whisper = Whisper()
    clip = load_audio(SAMPLES / "rms_1.ogg")
    text = (SAMPLES / "rms_1.txt").read_text().strip()
    heard = whisper(clip)
    assert count_word_errors(text, heard)[0] <= 1 and whisper(clip) == heard
    word = Audio(clip.samples[: int(.8 * clip.sample_rate)], clip.sample_rate)
    assert "kettle" in whisper(word).lower()


def test_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "pocketsphinx", None)
    with pytest.raises(OptionError, match=r'pip install "metavoice\[evaluate\]"'):
        pick_recogniser("sphinx")


def test_extra_lists_every_package():
    from configparser import ConfigParser

    config = ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    extra, dev = (set(config["DEFAULT"][f"{k}_requirements"].split()) for k in ("evaluate", "dev"))
    core = {re.split("[<>=]", name)[0] for name in config["DEFAULT"]["requirements"].split()}
    needed = set("pocketsphinx faster-whisper speechmos onnxruntime librosa requests jiwer matplotlib".split())
    assert needed <= extra | core and extra <= dev
