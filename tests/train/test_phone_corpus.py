"Preparing speech: trimming, the phones of frames, growing corpora, and crops."
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from metavoice.core.errors import OptionError
from metavoice.models.nano_codec import NanoCodec, NanoCodecConfig
from metavoice.text.phonemes import phone_states
from metavoice.train.corpus import write_corpus
from metavoice.train.phone_corpus import (
    PhoneCorpus,
    PhoneCrops,
    TimedSpeech,
    align_times,
    prepare_corpus,
    spread_phones,
    trim_speech,
)
from metavoice.train.shards import RenderJob, render_shards

MARKS = " .abs"  # symbols that the stand-in for a teacher can say; each lasts as many frames as its place
NAMES = ["pau", "a", "b", "s"]


@pytest.fixture(scope="module")
def codec():
    sizes = dict(width=16, hidden=16, encoder_blocks=1, decoder_blocks=1, phones=NAMES)
    return NanoCodec(NanoCodecConfig(hop=960, finest_blocks=1, finest_split=3, **sizes))


def spell(text, accent):
    return "".join(mark for mark in text.lower() if mark in MARKS)


def buzz(phonemes, speaker):
    durations = [20, *(MARKS.index(mark) + 1 for mark in phonemes), 40]
    t = np.arange(sum(durations) * 600)
    return (0.1 * np.sign(np.sin(t * 2 * np.pi / 200))).astype(np.float32), durations


def render(folder, texts):
    jobs = []
    for n, text in enumerate(texts):
        jobs.append(RenderJob(text, ("af_heart", "am_puck")[n % 2], "test" if n % 8 == 7 else "train"))
    return render_shards(folder, jobs, buzz, spell)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    "Two shards of shouts."
    folder = tmp_path_factory.mktemp("corpora") / "shouts"
    render(folder, ["Bass bass.", "Abba bass abba sabbas."] * 48)
    return folder


@pytest.fixture(scope="module")
def prepared(shards, codec, tmp_path_factory):
    return prepare_corpus([shards], tmp_path_factory.mktemp("prepared"), codec)


def test_silence_is_cut_and_times_follow():
    states = phone_states("ab")
    ends, rng = np.array([1.0, 1.1, 1.2, 3.0]), np.random.default_rng(0)
    samples = np.zeros(3 * 24000, np.float32)
    samples[24000:28800] = 0.05
    speech = TimedSpeech("ab", "anna", "ab", ends, [[1.0, 1.2]], samples)
    leads, trails = [], []
    for _ in range(30):
        cut = trim_speech(speech, 960, rng)
        heard = np.flatnonzero(cut.samples)
        assert len(cut.samples) % 960 == 0 and np.sqrt((cut.samples**2).mean()) == pytest.approx(0.1, rel=1e-3)
        assert heard[0] / 24000 == pytest.approx(cut.ends[0], abs=1e-3)
        assert cut.words == [[pytest.approx(cut.ends[0], abs=1e-3), pytest.approx(cut.ends[2], abs=1e-3)]]
        assert cut.ends[-1] == len(cut.samples) / 24000 and len(cut.ends) == len(states)
        leads.append(cut.ends[0])
        trails.append(cut.ends[-1] - cut.ends[2])
    assert 0.05 <= min(leads) < 0.07 and 0.11 < max(leads) <= 0.13
    assert 0.03 <= min(trails) < 0.1 and 0.14 < max(trails) <= 0.195
    assert trim_speech(replace(speech, samples=0 * samples), 960, rng) is None
    assert trim_speech(replace(speech, ends=np.array([1.0])), 960, rng) is None
    assert trim_speech(replace(speech, samples=samples[:24100]), 960, rng) is None


def test_frames_lie_nearest_to_their_phones():
    states = phone_states("ab, s")
    ends = np.array([0.08, 0.16, 0.24, 0.4, 0.48, 0.56])
    assert align_times(ends, states, 14, 960).tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 3, 3, 4, 4, 5, 5]
    short = np.array([0.08, 0.081, 0.082, 0.082, 0.2, 0.24])
    path = align_times(short, states, 6, 960).tolist()
    assert path == sorted(path) and {1, 2, 4} <= set(path)
    assert align_times(ends, states, 2, 960) is None


def test_phones_without_times_are_spread():
    assert spread_phones("ab s", [[0.1, 0.3], [0.5, 0.6]], 1.0) == pytest.approx([0.1, 0.2, 0.3, 0.6, 1.0])
    assert spread_phones("ab, s.", [[0.1, 0.3], [0.5, 0.6]], 1.0) == pytest.approx([0.1, 0.2, 0.3, 0.5, 0.6, 1.0])
    assert spread_phones("ab s", [[0.1, 0.3]], 0.9) == pytest.approx([0.0, 0.3, 0.6, 0.9, 0.9])


def test_prepared_shards(prepared, codec):
    assert len(prepared) == 84 and prepared.sources == ["shouts"] and prepared.voices == ["af_heart", "am_puck"]
    assert (prepared.hop, prepared.synthesis_hop) == (960, 160)
    assert len(PhoneCorpus(prepared.folder, "test")) == 12 and len(PhoneCorpus(prepared.folder, None)) == 96
    for i in (0, 50, 83):
        u = prepared.utterances[i]
        x, (pitch, voiced) = prepared.audio(i), prepared.pitch(i)
        assert len(x) == u.length == 960 * len(u.labels) and x.square().mean().sqrt() == pytest.approx(0.1, rel=1e-2)
        assert len(pitch) == len(voiced) == 6 * len(u.labels)
        assert pitch[voiced].exp2().median() == pytest.approx(120, rel=0.02)
        phones = [NAMES[phone] for phone in prepared.phones(i, NAMES).unique_consecutive()]
        assert "".join(phone[0] for phone in phones if phone != "pau") in ("basbas", "ababasabasabas")
        assert torch.equal(prepared.audio(i, 2, 3), x[2 * 960 : 5 * 960])
        assert torch.equal(prepared.pitch(i, 2, 3)[0], pitch[12:30])
    assert (prepared.phones(0, ["pau", "s"]) == -1).any()


def test_corpora_grow_and_numbers_stay(shards, codec, tmp_path):
    source = tmp_path / "growing"
    render(source, ["Bass bass."] * 64)
    corpus = prepare_corpus([shards, source], tmp_path / "out", codec)
    before = [(u.part, u.start) for u in corpus.utterances]
    written = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.npy")}
    render(source, ["Bass bass."] * 128)
    crops = PhoneCrops(corpus, codec, 0.4)
    grown = prepare_corpus([shards, source], tmp_path / "out", codec)
    assert len(grown) == len(before) + 56
    assert [(u.part, u.start) for u in grown.utterances][: len(before)] == before
    assert all((tmp_path / "out" / name).stat().st_mtime_ns == time for name, time in written.items())
    crops.refresh()
    assert len(corpus) == len(grown) == len(crops.labels)
    lines = (tmp_path / "out" / "parts.txt").read_text().split()
    assert lines == ["shouts-00000", "shouts-00001", "growing-00000", "growing-00001"]


def test_half_a_part_does_not_count(shards, codec, tmp_path):
    prepare_corpus([shards], tmp_path, codec)
    (tmp_path / "parts.txt").write_text("shouts-00001\n")
    (tmp_path / "shouts-00000.json").write_text("[")
    assert len(PhoneCorpus(tmp_path)) == 28
    assert len(prepare_corpus([shards], tmp_path, codec)) == 84


def test_a_corpus_without_phones(demo_corpus, codec, tmp_path):
    corpus = prepare_corpus([demo_corpus.path], tmp_path, codec)
    assert len(corpus) == 6
    for u, known in zip(corpus.utterances, demo_corpus.utterances):
        assert (u.text, u.voice, len(u.words)) == (known.text, known.voice, len(u.text.split()))
        assert set(u.labels) >= {i for i, state in enumerate(u.states) if not state.optional}


def test_a_corpus_with_phones(codec, tmp_path):
    phones = [["pau", 0.1], ["a", 0.6], ["b", 0.7], ["pau", 1.0]]
    x = torch.sin(torch.arange(24000) / 30)
    rows = [("ab", "anna", x, [[0.1, 0.7]], phones, "ab"), ("ab", "anna", x, [[0.1, 0.7]], phones[1:], "ab")]
    write_corpus(tmp_path / "corpus", rows)
    known, spread = prepare_corpus([tmp_path / "corpus"], tmp_path / "out", codec).utterances
    lengths = [u.labels.count(1) / u.labels.count(2) for u in (known, spread)]
    assert lengths[0] > 3 and 0.5 < lengths[1] < 2


def test_crops(prepared, codec, shards, tmp_path):
    source = tmp_path / "short"
    render(source, ["Abba bass abba sabbas."] * 8)
    corpus = prepare_corpus([shards, source], tmp_path / "out", codec)
    rng = torch.Generator().manual_seed(0)
    crops = PhoneCrops(corpus, codec, 0.4, dict(shouts=1.0, short=3.0))
    sources = [corpus.utterances[i].source for i in crops.draw(400, rng)]
    assert 260 < sources.count("short") < 340
    by_hours = PhoneCrops(corpus, codec, 0.4).draw(400, rng)
    assert [corpus.utterances[i].source for i in by_hours].count("short") < 100
    long = [corpus.utterances[i].text for i in by_hours].count("Abba bass abba sabbas.")
    assert 230 < long < 330  # each second of speech is drawn equally often
    x, said, pitch, voiced = crops(5, rng, "cpu")
    assert (x.shape, said.shape, pitch.shape, voiced.shape) == ((5, 9600), (5, 10), (5, 60), (5, 60))
    again = crops(5, torch.Generator().manual_seed(7), "cpu")
    assert all(torch.equal(a, b) for a, b in zip(again, crops(5, torch.Generator().manual_seed(7), "cpu")))


@pytest.mark.parametrize("make, message", [
    (lambda corpus, codec, folder: PhoneCrops(corpus, codec, 60), "crops of 60 s don't fit"),
    (lambda corpus, codec, folder: PhoneCrops(corpus, codec, 0.4, dict(other=1.0)), "shares of other; .* are shouts"),
    (lambda corpus, codec, folder: PhoneCorpus(folder), "no prepared utterances"),
    (lambda corpus, codec, folder: prepare_corpus([folder], folder, codec), "neither manifest.jsonl nor shard-00000"),
    (lambda corpus, codec, folder: prepare_corpus([folder, folder], folder, codec), "need different names"),
])
def test_what_does_not_fit_is_refused(prepared, codec, tmp_path, make, message):
    with pytest.raises(OptionError, match=message):
        make(prepared, codec, tmp_path)


def test_another_codec_needs_another_folder(prepared, shards, tmp_path):
    shape = json.loads((prepared.folder / "shape.json").read_text())
    assert shape == dict(hop=960, synthesis_hop=160)
    with pytest.raises(OptionError, match="was prepared for a codec with"):
        prepare_corpus([shards], prepared.folder, NanoCodec(NanoCodecConfig(width=16, hidden=16)))
