"Checking and encoding training data: the report, splitting at silences, and the cache of codes."
import json

import pytest
import soundfile
import torch

from metavoice.audio.sound import Audio, load_audio
from metavoice.bundle.load import load_bundle
from metavoice.core.errors import MetaVoiceError
from metavoice.train.clips import Clip, ClipEncoder, ContextWindow, check_data
from metavoice.train.data import Example

SAID = "The kettle sings softly while rain taps on the window."


@pytest.fixture(scope="module")
def window(nano):
    return ContextWindow(nano.first.config.block_size, nano.codec.hop / nano.codec.sample_rate)


@pytest.fixture(scope="module")
def sample(samples):
    return samples / "awb_1.ogg"


def test_every_problem_is_reported_with_its_line(tmp_path, nano, window, sample, write_table):
    speech = load_audio(sample)
    Audio(torch.zeros(48000), 24000).save(tmp_path / "silent.wav")
    Audio(speech.samples.repeat(9), speech.sample_rate).save(tmp_path / "long.wav")
    (tmp_path / "not_utf8.txt").write_bytes(b"\xff\xfe\xff")
    expected = {
        ("missing.wav", SAID): "no such file",
        ("silent.wav", SAID): "silent",
        ("long.wav", SAID): "too long",
        (sample, "日本"): "outside the tokeniser",
        (sample, "not_utf8.txt"): "UTF-8",
        (sample, "..."): "nothing to say",
    }
    report = check_data(write_table(tmp_path, *expected, (sample, SAID)), None, nano.tokeniser, window)
    assert [p.where for p in report.fatal] == [f"train.csv:{n}" for n in (6, 2, 3, 4, 5, 7)]
    found = {p.where: p.what for p in report.fatal}
    for n, part in enumerate(expected.values(), 2):
        assert part in found[f"train.csv:{n}"]
    assert len(report.train) == 1
    with pytest.raises(MetaVoiceError, match="6 problems.*train.csv:2.*train.csv:7"):
        report.usable()
    assert "train.csv:5" in str(report) and "train.csv:5" in report._repr_html_()


def test_training_recordings_are_rejected_for_validation(tmp_path, nano, window, sample, write_table):
    "Also at another level and rate, in another format and under another name."
    speech = load_audio(sample)
    Audio(speech.samples * .6, speech.sample_rate).resample(16_000).save(tmp_path / "other name.mp3")
    train, val = write_table(tmp_path, (sample, SAID)), write_table(tmp_path, ("other name.mp3", SAID), name="val.csv")
    report = check_data(train, val, nano.tokeniser, window)
    assert [p.where for p in report.fatal] == ["val.csv:2"]
    assert "also learnt from (train.csv:2)" in report.fatal[0].what


def test_different_recordings_of_one_text_are_no_overlap(tmp_path, nano, window, samples, write_table):
    train = write_table(tmp_path, (samples / "awb_1.ogg", SAID))
    val = write_table(tmp_path, (samples / "rms_1.ogg", SAID), name="val.csv")
    report = check_data(train, val, nano.tokeniser, window)
    assert not report.problems and report.val


def test_long_recordings_are_never_decoded_whole(tmp_path, nano, window, sample, monkeypatch):
    "Neither when they are rejected nor when they are split at word times."
    speech, n = load_audio(sample), 40
    pause = torch.zeros(round(.3 * speech.sample_rate))
    Audio(torch.cat([speech.samples, pause]).repeat(n), speech.sample_rate).save(tmp_path / "hour.flac")
    period, count = speech.duration + .3, len(SAID.split())
    word = speech.duration / count
    words = [[k * period + i * word, k * period + (i + 1) * word] for k in range(n) for i in range(count)]
    text = " ".join([SAID] * n)
    rows = [dict(text=text), dict(text=text, words=words), dict(text=SAID, words=words)]
    (tmp_path / "train.jsonl").write_text("\n".join(json.dumps(dict(audio="hour.flac", **row)) for row in rows))
    lengths, read = [], soundfile.SoundFile.read

    def measured_read(self, *args, **kwargs):
        x = read(self, *args, **kwargs)
        lengths.append(len(x) / self.samplerate)
        return x

    monkeypatch.setattr(soundfile.SoundFile, "read", measured_read)
    report = check_data(tmp_path / "train.jsonl", None, nano.tokeniser, window)
    assert max(lengths) <= window.max_seconds([]) and len(lengths) == n
    assert [c.text for c in report.train] == [SAID] * n
    first, third = (p.what for p in report.fatal)
    assert "cut it into sentences, or give the times" in first
    assert f"{n * count} words are timed, but the text has {count}" in third


def test_spans_of_a_recording(tmp_path, nano, window, sample):
    rows = [
        dict(audio_filepath=str(sample), offset=.5, duration=1., text="Softly."),
        dict(audio=str(sample), start=50, end=60, text="Softly."),
    ]
    (tmp_path / "parts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    report = check_data(tmp_path / "parts.jsonl", None, nano.tokeniser, window)
    assert report.train[0].seconds == pytest.approx(1.)
    assert "nothing from 50.00 s" in report.fatal[0].what


def test_clips_are_encoded_once_per_audio_and_model(tmp_path, nano, samples):
    def clip(path):
        key = "key of " + str(load_audio(path).samples.sum())
        return Clip(Example(path, SAID, "x"), SAID, [1], 0., None, 1., key, [])

    a, b = tmp_path / "a.wav", tmp_path / "b.wav"
    load_audio(samples / "awb_1.ogg").save(a)
    load_audio(samples / "slt_1.ogg").save(b)
    encoder = ClipEncoder(nano, tmp_path / "cache")
    codes, voice = encoder(clip(a))
    assert encoder.misses == 1
    assert torch.equal(encoder(clip(a))[0], codes) and encoder.misses == 1
    b.replace(a)  # another speaker under the old name
    assert not torch.allclose(encoder(clip(a))[1], voice) and encoder.misses == 2
    changed = load_bundle("nano", device="cpu")
    next(changed.codec.parameters()).data.add_(.01)
    assert ClipEncoder(changed, tmp_path / "cache").model != encoder.model
