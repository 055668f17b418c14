"Reading training data: transcripts, paths, malformed tables, and spans of recordings."
import pytest

from metavoice.audio.sound import load_audio
from metavoice.core.errors import AudioError, OptionError
from metavoice.train.data import load_span, read_examples

SAID = "The kettle sings softly while rain taps on the window."


def test_captions_are_read_not_their_paths(tmp_path, samples, write_table):
    "The released finetuning tokenised the path of the caption."
    (tmp_path / "captions").mkdir()
    (tmp_path / "captions" / "a.txt").write_text(SAID + "\n")
    examples, problems = read_examples(write_table(tmp_path, (samples / "awb_1.ogg", "captions/a.txt")))
    assert examples[0].text == SAID and not problems


def test_paths_are_relative_to_the_table_or_the_current_folder(tmp_path, samples, write_table, monkeypatch):
    (tmp_path / "data").mkdir()
    load_audio(samples / "awb_1.ogg").save(tmp_path / "data" / "a.wav")
    monkeypatch.chdir(tmp_path)
    for name in ("a.wav", "data/a.wav", str(tmp_path / "data" / "a.wav")):
        examples, _ = read_examples(write_table(tmp_path / "data", (name, SAID)))
        assert examples[0].audio.is_file()


@pytest.mark.parametrize("text, error", [("name;age\n", "first line should be"), ("", "first line should be")])
def test_table_without_known_header(tmp_path, text, error):
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(OptionError, match=error):
        read_examples(tmp_path / "x.csv")


def test_missing_sources(tmp_path):
    with pytest.raises(OptionError, match="there is no"):
        read_examples(tmp_path / "nothing")
    with pytest.raises(OptionError, match="no recordings"):
        read_examples(tmp_path)
    with pytest.raises(AudioError, match="no such file"):
        load_span(tmp_path / "x.wav", 1.)
