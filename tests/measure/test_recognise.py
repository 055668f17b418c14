"Recognisers, normalised words and word errors."
import json
import sys
from pathlib import Path

import pytest
import torch

from metavoice.audio.sound import Audio, load_audio
from metavoice.core.errors import OptionError
from metavoice.measure.recognise import Sphinx, count_word_errors, load_whisper, normalise_words, pick_recogniser

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "nbs" / "samples"


@pytest.mark.parametrize("text, words", [
    ("The dog’s tail!", "the dog's tail"),
    ("'Quoted' — well-known", "quoted well known"),
    ("[Music] 7 o'clock <sil>", "seven o'clock"),
    ("Mr. Brown paid $12.50 in 1999.", "mister brown paid twelve dollars and fifty cents in nineteen ninety nine"),
    ("?!", ""),
    ("a_b", "a b"),
])
def test_normalised_words(text, words):
    assert normalise_words(text) == words


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


@pytest.mark.slow  # imports transformers' pipelines
def test_missing_whisper(tmp_path):
    with pytest.raises(OptionError, match="can't load the recogniser") as e:
        pick_recogniser(f"whisper:{tmp_path}")
    assert "\n" not in str(e.value)


def write_tiny_whisper(folder):
    "Write a Whisper of random weights."
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperTokenizer

    marks = ["endoftext", "startoftranscript", "en", "translate", "transcribe", "startoflm", "startofprev", "nospeech",
             "notimestamps"]
    marks = [f"<|{mark}|>" for mark in marks]
    vocabulary = {chr(c): i for i, c in enumerate(range(33, 127))}
    vocabulary |= {mark: len(vocabulary) + i for i, mark in enumerate(marks)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    files = str(folder / "vocab.json"), str(folder / "merges.txt")
    tokeniser = WhisperTokenizer(*files, additional_special_tokens=marks[1:])
    tokeniser.save_pretrained(folder)
    WhisperFeatureExtractor().save_pretrained(folder)
    start = vocabulary["<|startoftranscript|>"]
    config = WhisperConfig(
        vocab_size=len(tokeniser), d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_target_positions=20,
        pad_token_id=start - 1, bos_token_id=start - 1, eos_token_id=start - 1, decoder_start_token_id=start,
        suppress_tokens=None, begin_suppress_tokens=None,
    )
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(config)
    model.generation_config.max_length = 8
    model.save_pretrained(folder)


@pytest.mark.slow  # imports transformers' pipelines
def test_tiny_whisper_from_a_folder(tmp_path):
    write_tiny_whisper(tmp_path)
    recogniser = pick_recogniser(f"whisper:{tmp_path}")
    assert recogniser.name == f"whisper:{tmp_path}"
    assert isinstance(recogniser(load_audio(SAMPLES / "rms_1.ogg")), str)
    assert recogniser(Audio(torch.zeros(100), 16000)) == ""
    load_whisper.cache_clear()


def test_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "pocketsphinx", None)
    with pytest.raises(OptionError, match=r'pip install "metavoice\[evaluate\]"'):
        pick_recogniser("sphinx")


def test_extra_lists_every_package():
    from configparser import ConfigParser

    config = ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    extra, dev = (set(config["DEFAULT"][f"{k}_requirements"].split()) for k in ("evaluate", "dev"))
    needed = {"pocketsphinx", "speechmos", "onnxruntime", "librosa", "requests", "jiwer", "matplotlib"}
    assert needed <= extra <= dev
