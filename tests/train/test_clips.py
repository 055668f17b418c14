"Checking and encoding training data: the report, splitting at silences, and the cache of codes."
import json
from itertools import groupby

import pytest
import soundfile
import torch
from tiny import write_tiny_bundle

from metavoice.audio.sound import Audio, load_audio
from metavoice.bundle.load import Bundle, load_bundle
from metavoice.core.errors import MetaVoiceError
from metavoice.generate.tts import TTS
from metavoice.text.phonemes import PAUSE
from metavoice.text.spoken import TextOptions, prepare_text
from metavoice.train.clips import Clip, ClipEncoder, ContextWindow, check_data
from metavoice.train.data import Example
from metavoice.train.tokens import embed_voices

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
        (sample, "日本"): "nothing to say",
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
    assert "in the training data too (train.csv:2)" in report.fatal[0].what


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
    small = ContextWindow(300, window.frame)  # tokens; for one of the sentences
    report = check_data(tmp_path / "train.jsonl", None, nano.tokeniser, small)
    assert max(lengths) <= small.max_seconds([]) and sum(lengths) < 1.05 * n * period
    assert [c.text for c in report.train] == [SAID] * n
    first, third = (p.what for p in report.fatal)
    assert "cut it into sentences, or give the times" in first
    assert f"{n * count} words are timed, but the text has {count}" in third


CAPTIONS = {
    "Dr. Brown paid $12.50.": "Doctor Brown paid twelve dollars and fifty cents.",
    "“Come in,” she said.": "Come in, she said.",
    "The dog (a big one) slept.": "The dog, a big one, slept.",
    "# Chapter One": "Chapter One",
    "=5 birds": "equals five birds",
}


def test_captions_are_said_as_texts_are(tmp_path, nano, window, sample):
    rows = [json.dumps(dict(audio=str(sample), text=text)) for text in CAPTIONS]
    (tmp_path / "train.jsonl").write_text("\n".join(rows))
    clips = check_data(tmp_path / "train.jsonl", None, nano.tokeniser, window).train
    assert [clip.written for clip in clips] == list(CAPTIONS)
    assert [clip.text for clip in clips] == [prepare_text(text, nano.tokeniser).text for text in CAPTIONS]
    assert [clip.ids for clip in clips] == [nano.tokeniser.encode(clip.text) for clip in clips]
    assert [clip.text for clip in clips[:3]] == list(CAPTIONS.values())[:3]


def test_options_of_captions(tmp_path, nano, window, sample, write_table):
    table = write_table(tmp_path, (sample, "Bry met 日 on 3/4/2020."))

    def check(**options):
        report = check_data(table, None, nano.tokeniser, window, options=TextOptions(**options))
        return [clip.text for clip in report.train], [str(problem) for problem in report.problems]

    (american,), problems = check()
    assert any("'日' can't be said" in problem for problem in problems)
    (british,), _ = check(language="en-GB")
    (named,), _ = check(lexicon={"Bry": "the man"})
    assert "March" in american and "April" in british and named.startswith("the man met")
    assert check(strict=True)[0] == [] and "日" in check(strict=True)[1][0]
    assert check(spoken=False)[0] == ["Bry met on //."] or "2020" not in check(spoken=False)[0][0]


def test_timed_words_are_counted_as_written_and_each_part_is_said(tmp_path, nano, window, sample):
    speech, n = load_audio(sample), 3
    pause = torch.zeros(round(.3 * speech.sample_rate))
    Audio(torch.cat([speech.samples, pause]).repeat(n), speech.sample_rate).save(tmp_path / "long.wav")
    period, written = speech.duration + .3, "Dr. Brown paid $12.50 at 5 p.m."
    count = len(written.split())
    word = speech.duration / count
    words = [[k * period + i * word, k * period + (i + 1) * word] for k in range(n) for i in range(count)]
    row = dict(audio="long.wav", text=" ".join([written] * n), words=words)
    (tmp_path / "train.jsonl").write_text(json.dumps(row))
    small = ContextWindow(300, window.frame)  # tokens; for one of the sentences
    report = check_data(tmp_path / "train.jsonl", None, nano.tokeniser, small)
    assert [clip.written for clip in report.train] == [written] * n, report
    assert {clip.text for clip in report.train} == {prepare_text(written, nano.tokeniser).text}
    assert all(len(clip.words) == count for clip in report.train)
    (tmp_path / "train.jsonl").write_text(json.dumps(row | dict(words=[[t + 99, u + 99] for t, u in words])))
    report = check_data(tmp_path / "train.jsonl", None, nano.tokeniser, window)
    assert "the last word begins at" in report.fatal[0].what


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


def test_codes_follow_the_caption(tmp_path, sample):
    "Where entries of the first codebook belong to phones, the caption is aligned with the clip."
    pytest.importorskip("hibari")
    bundle = load_bundle(write_tiny_bundle(tmp_path / "tiny", phonemes=True), "cpu")
    encoder, names, codes = ClipEncoder(bundle, tmp_path / "cache"), bundle.codec.config.phones, {}
    for text in (SAID, "The boats came home.", SAID):
        clip = Clip(Example(sample, text, "x"), text, bundle.tokeniser.encode(text), 0., None, 1., "key", [])
        codes[text] = encoder(clip)[0]
        said = [names[phone] for phone in bundle.codec.entry_phones[codes[text][0].long()].tolist()]
        states = [state for state in bundle.tokeniser.states(clip.ids) if not state.optional]
        wanted = [name for name, _ in groupby(state.name for state in states)]
        assert [name for name, _ in groupby(name for name in said if name != PAUSE)] == wanted
    assert encoder.misses == 2


def test_training_levels_references_as_synthesis_does(nano, demo_corpus, tmp_path):
    encoder, tts, x = ClipEncoder(nano, tmp_path), TTS(nano), demo_corpus.audio(0)
    embedding = encoder.embed(x)
    assert torch.equal(embedding, tts.voice(Audio(x, demo_corpus.sample_rate)).embedding)
    for gain in (.01, .1, 10):
        assert embedding @ encoder.embed(gain * x) > .999
    voices = embed_voices(demo_corpus, nano.speaker_encoder, n=1, utterances=1)
    assert torch.equal(voices[demo_corpus.utterances[0].voice][0], embedding)


def test_cached_embeddings_depend_on_the_level(nano, tmp_path, monkeypatch):
    manifest = nano.manifest | dict(defaults=nano.defaults | dict(reference_level=-24.))
    other = Bundle(manifest, nano.location, nano.device, nano.dtype)
    assert ClipEncoder(nano, tmp_path).model != ClipEncoder(other, tmp_path).model
    before = ClipEncoder(nano, tmp_path).model
    monkeypatch.setattr("metavoice.train.clips.REFERENCE_VERSION", 0)
    assert ClipEncoder(nano, tmp_path).model != before
