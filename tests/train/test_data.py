"Data as people have it: layouts, everything that can be wrong, cutting, and tokens made once."
import json
from pathlib import Path

import pytest
import soundfile
import torch

from metavoice.audio.sound import Audio, load_audio
from metavoice.bundle.load import load_bundle
from metavoice.core.errors import AudioError, MetaVoiceError, OptionError
from metavoice.train.data import Example, load_span, read_examples
from metavoice.train.clips import Clip, ClipEncoder, ContextWindow, check_data

ROOT = Path(__file__).parents[1]
SAID = "The kettle sings softly while rain taps on the window."
SAMPLE = ROOT/"nbs"/"samples"/"awb_1.ogg"


@pytest.fixture(scope="module")
def nano(): return load_bundle("nano", device="cpu")

@pytest.fixture(scope="module")
def window(nano): return ContextWindow(nano.first.config.block_size, nano.codec.hop/nano.codec.sample_rate)

def table(folder, *rows, name="train.csv"):
    (folder/name).write_text("audio_files|captions\n"+"".join(f"{a}|{t}\n" for a,t in rows), encoding="utf-8")
    return folder/name


def test_captions_are_read_not_their_paths(tmp_path):
    "The bug of the released finetuning: it tokenised the path of the caption."
    (tmp_path/"captions").mkdir(); (tmp_path/"captions"/"a.txt").write_text(SAID+"\n")
    examples, problems = read_examples(table(tmp_path, (SAMPLE, "captions/a.txt")))
    assert examples[0].text == SAID and not problems

def test_paths_are_found_from_the_table_or_from_here(tmp_path, monkeypatch):
    (tmp_path/"data").mkdir(); load_audio(SAMPLE).save(tmp_path/"data"/"a.wav")
    monkeypatch.chdir(tmp_path)
    for name in ("a.wav", "data/a.wav", str(tmp_path/"data"/"a.wav")):
        examples, _ = read_examples(table(tmp_path/"data", (name, SAID)))
        assert examples[0].audio.is_file()

def test_every_problem_comes_with_its_line(tmp_path, nano, window):
    speech = load_audio(SAMPLE)
    Audio(torch.zeros(48000), 24000).save(tmp_path/"silent.wav")
    Audio(speech.samples.repeat(9), speech.sample_rate).save(tmp_path/"long.wav")
    (tmp_path/"not_utf8.txt").write_bytes(b"\xff\xfe\xff")
    source = table(tmp_path, ("missing.wav", SAID), ("silent.wav", SAID), ("long.wav", SAID), (SAMPLE, "日本"), (SAMPLE, "not_utf8.txt"), (SAMPLE, "..."), (SAMPLE, SAID))
    report = check_data(source, None, nano.tokeniser, window)
    told = {p.where: p.what for p in report.fatal}
    expected = {"train.csv:2": "no such file", "train.csv:3": "silent", "train.csv:4": "too long", "train.csv:5": "outside the tokeniser", "train.csv:6": "UTF-8", "train.csv:7": "nothing to say"}
    assert told.keys() == expected.keys() and all(expected[k] in told[k] for k in told), told
    assert len(report.train) == 1
    with pytest.raises(MetaVoiceError, match="6 problems.*train.csv:2.*train.csv:7"): report.usable()
    assert "train.csv:5" in str(report) and "train.csv:5" in report._repr_html_()

def test_what_is_validated_on_is_not_learnt_from(tmp_path, nano, window):
    speech = load_audio(SAMPLE)
    Audio(speech.samples*.6, speech.sample_rate).resample(16_000).save(tmp_path/"other name.mp3")
    report = check_data(table(tmp_path, (SAMPLE, SAID)), table(tmp_path, ("other name.mp3", SAID), name="val.csv"), nano.tokeniser, window)
    assert [p.where for p in report.fatal] == ["val.csv:2"] and "also learnt from (train.csv:2)" in report.fatal[0].what

def test_different_recordings_of_one_text_are_no_overlap(tmp_path, nano, window):
    other = ROOT/"nbs"/"samples"/"rms_1.ogg"
    report = check_data(table(tmp_path, (SAMPLE, SAID)), table(tmp_path, (other, SAID), name="val.csv"), nano.tokeniser, window)
    assert not report.problems and report.val

def test_a_long_recording_is_never_decoded_whole(tmp_path, nano, window, monkeypatch):
    "Neither when it is refused nor when it is cut at the times of its words."
    speech = load_audio(SAMPLE)
    pause, n = torch.zeros(round(.3*speech.sample_rate)), 40
    Audio(torch.cat([speech.samples, pause]).repeat(n), speech.sample_rate).save(tmp_path/"hour.flac")
    each, count = speech.duration+.3, len(SAID.split())
    words = [[k*each+i*speech.duration/count, k*each+(i+1)*speech.duration/count] for k in range(n) for i in range(count)]
    (tmp_path/"train.jsonl").write_text("\n".join(json.dumps(row) for row in (
        dict(audio="hour.flac", text=" ".join([SAID]*n)), dict(audio="hour.flac", text=" ".join([SAID]*n), words=words), dict(audio="hour.flac", text=SAID, words=words))))
    most, read = [], soundfile.SoundFile.read
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda self, *args, **kwargs: (most.append(len(x := read(self, *args, **kwargs))/self.samplerate), x)[1])
    report = check_data(tmp_path/"train.jsonl", None, nano.tokeniser, window)
    assert max(most) <= window.room([]) and len(most) == n
    assert [c.text for c in report.train] == [SAID]*n
    first, third = (p.what for p in report.fatal)
    assert "cut it into sentences, or give the times" in first and f"{n*count} words are timed, but the text has {count}" in third

def test_a_part_of_a_recording(tmp_path, nano, window):
    (tmp_path/"parts.jsonl").write_text(json.dumps(dict(audio_filepath=str(SAMPLE), offset=.5, duration=1., text="Softly."))+"\n"+json.dumps(dict(audio=str(SAMPLE), start=50, end=60, text="Softly.")))
    report = check_data(tmp_path/"parts.jsonl", None, nano.tokeniser, window)
    assert report.train[0].seconds == pytest.approx(1.) and "nothing from 50.00 s" in report.fatal[0].what

def test_tokens_are_made_once_for_the_same_sound_and_model(tmp_path, nano, monkeypatch):
    def clip(path): return Clip(Example(path, SAID, "x"), SAID, [1], 0., None, 1., "key of "+str(load_audio(path).samples.sum()), [])
    load_audio(SAMPLE).save(tmp_path/"a.wav"); load_audio(ROOT/"nbs"/"samples"/"slt_1.ogg").save(tmp_path/"b.wav")
    encoder = ClipEncoder(nano, tmp_path/"cache")
    codes, voice = encoder(clip(tmp_path/"a.wav"))
    assert encoder.made == 1 and torch.equal(encoder(clip(tmp_path/"a.wav"))[0], codes) and encoder.made == 1
    (tmp_path/"b.wav").replace(tmp_path/"a.wav")  # another speaker under the old name
    assert not torch.allclose(encoder(clip(tmp_path/"a.wav"))[1], voice) and encoder.made == 2
    changed = load_bundle("nano", device="cpu")
    next(changed.codec.parameters()).data.add_(.01)
    assert ClipEncoder(changed, tmp_path/"cache").model != encoder.model

@pytest.mark.parametrize("text, error", [("name;age\n", "first line should be"), ("", "first line should be")])
def test_a_table_that_is_none(tmp_path, text, error):
    (tmp_path/"x.csv").write_text(text)
    with pytest.raises(OptionError, match=error): read_examples(tmp_path/"x.csv")

def test_nothing_there(tmp_path):
    with pytest.raises(OptionError, match="there is no"): read_examples(tmp_path/"nothing")
    with pytest.raises(OptionError, match="no recordings"): read_examples(tmp_path)
    with pytest.raises(AudioError, match="no such file"): load_span(tmp_path/"x.wav", 1.)
