"Planning, rendering and reading shards."
import json
import threading
import time

import numpy as np
import pytest

from metavoice.core.errors import MetaVoiceError, OptionError
from metavoice.train.phone_corpus import read_shard
from metavoice.train.shards import (
    RenderJob,
    ShardCorpus,
    TeacherUtterance,
    claim_shard,
    hold_out_texts,
    plan_jobs,
    render_shards,
    shard_hours,
    to_corpus,
    write_shard,
)
from metavoice.train.teacher import group_speakers
from metavoice.train.texts import extract_terms

LETTERS = "abcdefghijklmnopqrstuvwxyz"

MARKS = " .abc"


def spell(text, accent):
    return "".join(mark for mark in text.lower() if mark in MARKS or mark == "d")


def buzz(phonemes, speaker):
    if "d" in phonemes:
        raise MetaVoiceError(f"can't say {phonemes!r}")
    durations = [2, *(MARKS.index(mark) + 1 for mark in phonemes), 2]
    return np.sin(np.arange(sum(durations) * 600) / 20).astype(np.float32) * 2, durations


JOBS = [RenderJob(("Abc.", "A cab.", "Dab.")[n % 3], ("af_heart", "am_puck")[n % 2], "train") for n in range(150)]


TEXTS = [("made", f"Number {spelt} of the red books {'x' * (n // 26 + 1)}.") for n, spelt in enumerate(LETTERS * 80)]
TEXTS += [("made", f"{spelt} {'x' * n}.") for n in range(8) for spelt in LETTERS]


def test_hold_out():
    train, sentences, phrases = hold_out_texts(TEXTS + TEXTS[:5], 300, 100, exclude=["NUMBER a, of the red, books x!"])
    assert (len(sentences), len(phrases)) == (300, 100) and len(train) + 400 in range(2284, 2294)
    words = [{tuple(extract_terms(text)) for _, text in part} for part in (train, sentences, phrases)]
    assert not words[0] & words[1] and not words[0] & words[2] and not words[1] & words[2]
    assert not any("Number a of the red books x." == text for _, text in train + sentences + phrases)
    assert hold_out_texts(TEXTS, 20) == hold_out_texts(TEXTS, 20)
    assert max(len(extract_terms(text)) for _, text in phrases) <= 3


def test_plan():
    train, sentences, phrases = hold_out_texts(TEXTS)
    jobs = plan_jobs(train, sentences, phrases)
    assert jobs == plan_jobs(train, sentences, phrases)
    tests = [job for job in jobs if job.split == "test"]
    assert len(tests) == 6 * 60 + 8 * 40 and [job.split for job in jobs[:10]] == (["train"] * 4 + ["test"]) * 2
    held_out = {s.name for group in ("held_out", "held_out_blend") for s in group_speakers()[group]}
    shipped = {s.name for s in group_speakers()["shipped"]}
    assert {job.speaker for job in tests} == held_out | shipped
    said = [job for job in jobs if job.split == "train"]
    assert not held_out & {job.speaker for job in said}
    assert sorted(job.text for job in said) == sorted(text for _, text in train)
    assert 0.4 < np.mean([job.speaker in shipped for job in said]) < 0.5
    assert {job.text for job in tests} <= {text for _, text in sentences + phrases}


def test_render_and_read(tmp_path):
    hours = []
    corpus = render_shards(tmp_path, JOBS, buzz, spell, on_progress=hours.append)
    assert len(hours) == 3 and hours == sorted(hours) and corpus.hours == pytest.approx(hours[-1], rel=0.01)
    assert len(corpus) == 100 and len(corpus.left_out) == 50 and corpus.left_out[0][:2] == [2, "Dab."]
    assert [u.job for u in corpus.utterances] == [n for n in range(150) if n % 3 != 2]
    for i in (0, 99, 50, 1):
        samples = corpus.samples(i)
        assert len(samples) == sum(corpus.utterances[i].durations) * 600 and samples.dtype == np.int16
        assert abs(samples).max() == 32767 and corpus.audio(i).abs().max() <= 1
    assert set(corpus.describe()) == {"af_heart", "am_puck"}
    only = ShardCorpus(tmp_path, speakers={"am_puck"})
    assert {u.speaker for u in only.utterances} == {"am_puck"}
    assert len(only.samples(3)) == only.utterances[3].seconds * 24000
    with pytest.raises(OptionError, match="no utterances"):
        ShardCorpus(tmp_path, split="test")
    assert not list(tmp_path.glob("*.lock")) and not list(tmp_path.glob(".*"))


def test_a_second_call_renders_nothing(tmp_path):
    render_shards(tmp_path, JOBS, buzz, spell)
    assert len(render_shards(tmp_path, JOBS, None, None)) == 100


def test_limit_of_hours(tmp_path):
    assert len(render_shards(tmp_path, JOBS, buzz, spell, hours=1e-6)) < 64
    assert shard_hours(tmp_path) > 1e-6


def test_interrupted_rendering_goes_on(tmp_path):
    calls = []

    def broken(phonemes, speaker):
        calls.append(phonemes)
        if len(calls) == 70:
            raise KeyboardInterrupt
        return buzz(phonemes, speaker)

    with pytest.raises(KeyboardInterrupt):
        render_shards(tmp_path, JOBS, broken, spell)
    assert (tmp_path / "shard-00000.json").exists() and not (tmp_path / "shard-00001.json").exists()
    assert len(render_shards(tmp_path, JOBS, buzz, spell)) == 100


def test_half_a_shard_does_not_count(tmp_path):
    render_shards(tmp_path, JOBS, buzz, spell)
    (tmp_path / "shard-00001.json").unlink()
    assert len(ShardCorpus(tmp_path)) < 100
    (tmp_path / "shard-00001.npz").write_bytes(b"half")
    assert len(render_shards(tmp_path, JOBS, buzz, spell)) == 100


def test_shards_of_others_are_left_alone(tmp_path):
    with claim_shard(tmp_path / "shard-00001.lock"):
        assert len(render_shards(tmp_path, JOBS, buzz, spell)) < 100
    assert len(render_shards(tmp_path, JOBS, buzz, spell)) == 100


def test_a_lock_file_of_a_dead_process_is_no_lock(tmp_path):
    (tmp_path / "shard-00001.lock").touch()
    assert len(render_shards(tmp_path, JOBS, buzz, spell)) == 100 and not list(tmp_path.glob("*.lock"))


def test_two_processes_share_the_work(tmp_path):
    jobs, said = JOBS * 4, []

    def slow(phonemes, speaker):
        said.append(threading.get_ident())
        time.sleep(0.001)
        return buzz(phonemes, speaker)

    threads = [threading.Thread(target=render_shards, args=(tmp_path, jobs, slow, spell)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ShardCorpus(tmp_path)) == 400 and len(said) == 600 and len(set(said)) == 2


def test_pause_and_stop(tmp_path):
    (tmp_path / "PAUSE").touch()
    done = []
    worker = threading.Thread(target=lambda: done.append(render_shards(tmp_path, JOBS, buzz, spell)))
    worker.start()
    worker.join(0.5)
    assert worker.is_alive() and not list(tmp_path.glob("*.json"))
    (tmp_path / "PAUSE").unlink()
    worker.join(20)
    assert len(done[0]) == 100
    (tmp_path / "STOP").touch()
    (tmp_path / "shard-00002.json").unlink()
    assert len(render_shards(tmp_path, JOBS, buzz, spell)) < 100 and not list(tmp_path.glob("*.lock"))


def test_fields_of_other_versions_are_ignored(tmp_path):
    render_shards(tmp_path, JOBS[:3], buzz, spell)
    path = tmp_path / "shard-00000.json"
    described = json.loads(path.read_text())
    described["utterances"][0] |= dict(peak=0.5, seconds=1.0)
    path.write_text(json.dumps(described))
    assert len(ShardCorpus(tmp_path)) == 2


def test_corpus(tmp_path):
    shards = render_shards(tmp_path / "shards", JOBS, buzz, spell)
    corpus = to_corpus(shards, tmp_path / "corpus")
    assert len(corpus) == len(shards) and corpus.hours == pytest.approx(shards.hours)
    assert corpus.phones == ["pau", *"abc"]
    utterance = corpus.utterances[1]
    assert utterance.text == "A cab." and len(utterance.words) == 2
    assert utterance.phones[-1][1] == pytest.approx(utterance.length / 24000)


GOOD = dict(text="Abc.", speaker="af_heart", phonemes="abc.", durations=[2, 3, 4, 5, 2, 2])


@pytest.mark.parametrize("content, words", [
    ("[" * 100_000, "its JSON is nested too deeply"),
    ("{", "it isn't JSON"),
    ("[]", "it has no list of utterances"),
    ('{"utterances": 5}', "it has no list of utterances"),
    ('{"utterances": [1]}', "utterance 0: it is no JSON object"),
    ('{"utterances": [{"text": "a"}]}', "utterance 0: there is no speaker"),
    (GOOD | dict(durations="abc"), "utterance 0: durations is 'abc'; use a list"),
    (GOOD | dict(durations=["abc"]), "utterance 0: durations should be numbers of frames"),
    (GOOD | dict(durations=[float("nan")]), "utterance 0: durations should be numbers of frames"),
    (GOOD | dict(text=5), "utterance 0: text is '5'; use a string"),
])
def test_descriptions_of_strangers(tmp_path, content, words):
    text = content if isinstance(content, str) else json.dumps(dict(left_out=[], utterances=[content]))
    (tmp_path / "shard-00000.json").write_text(text)
    np.savez(tmp_path / "shard-00000.npz", samples=np.zeros(100, np.int16), offsets=[0, 100])
    for read in (ShardCorpus, lambda folder: read_shard(folder / "shard-00000.json")):
        with pytest.raises(OptionError) as e:
            read(tmp_path)
        assert words in str(e.value) and "shard-00000.json" in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize("sound", [b"", b"PK\3\4 broken", b"text", "floats", "names", "objects", "short", None])
def test_sound_of_strangers(tmp_path, sound):
    path = tmp_path / "shard-00000.npz"
    (tmp_path / "shard-00000.json").write_text(json.dumps(dict(utterances=[GOOD])))
    samples = np.zeros(100, np.int16)
    arrays = dict(floats=dict(samples=samples / 2, offsets=[0, 100]), names=dict(a=samples),
                  objects=dict(samples=np.array([{}]), offsets=[0, 1]), short=dict(samples=samples, offsets=[0]))
    if isinstance(sound, str):
        np.savez(path, **arrays[sound])
    elif sound is not None:
        path.write_bytes(sound)
    with pytest.raises(OptionError, match="can't read .*shard-00000.npz"):
        ShardCorpus(tmp_path).samples(0)
    assert shard_hours(tmp_path) < 1


def test_a_shard_reads_what_it_wrote(tmp_path):
    utterance = TeacherUtterance("caf\udce9 \u2028", "af_heart", "abc.", [2, 3, 4, 5, 2, 2])
    write_shard(tmp_path / "shard-00000", [(utterance, np.arange(100, dtype=np.int16))], [[1, "\ud800", "no"]])
    corpus = ShardCorpus(tmp_path)
    assert corpus.utterances == [utterance] and corpus.left_out == [[1, "\ud800", "no"]]
    assert corpus.samples(0).tolist() == list(range(100))
