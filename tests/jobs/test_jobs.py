"Books and manifests: resumed, killed, spoiled, and still whole; with a quick stand-in for the models where they don't matter."
import json, os, signal, subprocess, sys, time
from pathlib import Path

import pytest
import soundfile
import torch

import metavoice.corpora as corpora
from metavoice.core.errors import AudioError, MetaVoiceError, OptionError, OutputError, TextError
from metavoice.audio.encode import open_sound_file, to_int16
from metavoice.jobs.longform import Journal, read_aloud
from metavoice.jobs.batch import (
    BatchRow, ResultsLog, check_ids, lock_folder, read_batch_rows, remove_partial_files, run_batch, speak_rows
)
from metavoice.jobs.ray_backend import speak_on_ray
from metavoice.generate.segments import SEGMENTS_PER_SECTION
from metavoice.generate.tts import TTS

ROOT = Path(__file__).parents[1]
COMMAND = [sys.executable, "-c", "import sys; from metavoice.cli import main; sys.exit(main())"]
ENV = os.environ | dict(PYTHONPATH=str(ROOT))
BOOK = "\n\n".join(f"The dog number {word} slept." for word in "one two three four five six seven eight nine ten".split()*4)


@pytest.fixture(scope="module")
def tts(): return TTS.from_pretrained(device="cpu")

@pytest.fixture
def quick(monkeypatch):
    "Pieces sound like noise of their own seed, at once; what was asked for is noted, texts with the word silence stay silent, those with endless come to no end."
    asked = []
    def sounds(self, pieces, options, vocoder, batch_size=16, on_progress=None, timings=None, refuse=True, steps=None):
        for piece in pieces:
            asked.append(piece)
            piece.cut = "endless" in piece.text
            if "silence" in piece.text:
                piece.error = MetaVoiceError(f"nothing was said for {piece.text!r}")
                if refuse: raise piece.error
                yield piece, None
            else: yield piece, .1*torch.randn(1000+piece.number, generator=torch.Generator().manual_seed(piece.seed))
    monkeypatch.setattr(TTS, "sounds", sounds)
    return asked

def manifest(folder, text, name="m.csv"):
    folder.mkdir(exist_ok=True, parents=True)
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name

def results(folder): return [json.loads(line) for line in (folder / "results.jsonl").read_text(encoding="utf-8").splitlines()]


# files that grow

@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_a_file_that_grows(tmp_path, suffix):
    x = to_int16(.5*torch.sin(torch.arange(100_000)/9))
    with open_sound_file(tmp_path / f"a.{suffix}", 24000, "a") as write:
        for part in x.split(33_333): write(part)
    got, rate = soundfile.read(tmp_path / f"a.{suffix}", dtype="int16")
    assert rate == 24000 and len(got) == pytest.approx(100_000, rel=.02)
    if suffix in ("wav", "flac"): assert torch.equal(torch.from_numpy(got), x)

def test_sixteen_bits_round_and_do_not_wrap():
    assert to_int16(torch.tensor([0, 1, -1, 2, -2, .6/32767, -.6/32767])).tolist() == [0, 32767, -32767, 32767, -32767, 1, -1]

FULL = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
import torch
from metavoice.corpora import sound_file
from metavoice.core import OutputError, written_whole
for path in sys.argv[1:]:
    try:
        with written_whole(path) as t, sound_file(t, 24000, path) as write:
            for _ in range(20): write(torch.randint(-9000, 9000, (65536,), dtype=torch.int16))
    except OutputError as e: print(e)
"""

@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the disk is made small by a limit of Linux")
def test_a_full_disk_leaves_no_half_file(tmp_path):
    paths = [str(tmp_path / f"a.{suffix}") for suffix in ("wav", "flac", "ogg", "mp3")]
    done = subprocess.run([sys.executable, "-c", FULL, *paths], env=ENV, capture_output=True, text=True)
    assert done.stdout.count("can't write") == 4 and "Traceback" not in done.stderr, done
    assert not os.listdir(tmp_path)


# a book

def test_a_book_sounds_as_synthesise_does(tts, tmp_path):
    text = "The dog slept.\n\nWhere is the red book?"
    done = read_aloud(tts, text, tmp_path / "a.flac", seed=3)
    audio = tts.synthesise(text, seed=3)
    got, rate = soundfile.read(tmp_path / "a.flac", dtype="int16")
    assert rate == audio.sample_rate == done["sample_rate"] and torch.equal(torch.from_numpy(got), to_int16(audio.samples))
    assert done["duration"] == pytest.approx(audio.duration) and done["pieces"] >= 2 and os.listdir(tmp_path) == ["a.flac"]

@pytest.mark.parametrize("after", [1, SEGMENTS_PER_SECTION-1, SEGMENTS_PER_SECTION, SEGMENTS_PER_SECTION+1, 2*SEGMENTS_PER_SECTION+5, 39])
def test_resumed_after_any_piece_it_is_the_same_file(tts, quick, tmp_path, after):
    def leave(stage, done, of):
        if stage == "speech" and done == after: raise KeyboardInterrupt
    denoise = after == SEGMENTS_PER_SECTION+1 # one is enough, it takes most of the time
    whole = read_aloud(tts, BOOK, tmp_path / "whole.wav", seed=5, denoise=denoise)
    with pytest.raises(KeyboardInterrupt): read_aloud(tts, BOOK, tmp_path / "a.wav", seed=5, resume=True, denoise=denoise, on_progress=leave)
    assert sorted(os.listdir(tmp_path)) == ["a.wav.parts", "whole.wav"]
    quick.clear()
    done = read_aloud(tts, BOOK, tmp_path / "a.wav", resume=True, denoise=denoise)
    assert whole["pieces"] == 40 and done["resumed"] == after and [p.number for p in quick] == list(range(after, 40)) and done["seed"] == 5
    assert (tmp_path / "a.wav").read_bytes() == (tmp_path / "whole.wav").read_bytes() and sorted(os.listdir(tmp_path)) == ["a.wav", "whole.wav"]

def test_the_journal_stays_small(tts, quick, tmp_path):
    most = []
    read_aloud(tts, BOOK, tmp_path / "a.wav", seed=5, resume=True, denoise=False,
               on_progress=lambda stage, done, of: most.append(len(list((tmp_path / "a.wav.parts").glob("piece-*")))) if stage == "speech" else None)
    assert max(most) == SEGMENTS_PER_SECTION-1 and most[SEGMENTS_PER_SECTION-1] == 0

def test_a_journal_of_another_job(tts, quick, tmp_path):
    def leave(*_): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): read_aloud(tts, BOOK, tmp_path / "a.wav", seed=5, resume=True, denoise=False, on_progress=leave)
    for other in (dict(text=BOOK+"."), dict(seed=6), dict(temperature=.123), dict(denoise=True), dict(voice="other")):
        voice = tts.voice()
        other["voice"] = type(voice)(voice.embedding.flip(0)) if "voice" in other else None
        with pytest.raises(OptionError, match="is from another job"): read_aloud(tts, **(dict(text=BOOK, denoise=False, path=tmp_path / "a.wav", resume=True) | other))
    (tmp_path / "a.wav.parts" / "job.json").write_text("{")
    with pytest.raises(OptionError, match="can't read the journal"): read_aloud(tts, BOOK, tmp_path / "a.wav", resume=True)

def test_what_goes_wrong_leaves_nothing(tts, quick, tmp_path, monkeypatch):
    (tmp_path / "old.wav").write_text("precious")
    for text, path, error, words in [("Hello. \n\nsilence", "old.wav", MetaVoiceError, "nothing was said"), ("😀", "old.wav", TextError, "position 0"), ("Hello.", "a.docx", OutputError, "'.docx'"),
                                     ("Hello.", "no/a.wav", OutputError, "No such file")]:
        with pytest.raises(error, match=words): read_aloud(tts, text, tmp_path / path, denoise=False)
    with pytest.raises(OutputError, match="No such file"): read_aloud(tts, "Hello.", tmp_path / "no" / "a.wav", resume=True, denoise=False)
    monkeypatch.setattr(corpora, "written_whole", lambda path: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"): read_aloud(tts, "Hello.", tmp_path / "old.wav", denoise=False)
    assert os.listdir(tmp_path) == ["old.wav"] and (tmp_path / "old.wav").read_text() == "precious"

def test_memory_stays_flat(tts, quick, tmp_path):
    held = []
    class Writer:
        def __enter__(self): return lambda samples: held.append(len(samples))
        def __exit__(self, *_): pass
    corpora_sound_file, corpora.sound_file = corpora.sound_file, lambda *a: Writer()
    try: read_aloud(tts, "The dog slept.\n\n"*100, tmp_path / "a.wav", seed=1, denoise=False)
    finally: corpora.sound_file = corpora_sound_file
    assert len(held) == 100 and max(held) < 1400 + round(.6*24000)+1

def test_strange_texts(tts, quick, tmp_path):
    for text, most in (("Hello", 1), ("word "*5000, 5000), ("."*300 + "a" + "?!"*300, 99), ("a "*100, 100)):
        done = read_aloud(tts, text, tmp_path / "a.wav", seed=1, denoise=False)
        assert 1 <= done["pieces"] <= most and done["duration"] > 0
    assert all(any(c.isalnum() for c in p.text) for p in quick)
    with pytest.raises(TextError, match="nothing to say"): read_aloud(tts, "?! ..."*100, tmp_path / "b.wav", denoise=False)
    with pytest.raises(TextError, match="'2'.*at position 0.*outside the tokeniser"): read_aloud(tts, "2048 "*500, tmp_path / "b.wav", denoise=False)
    assert os.listdir(tmp_path) == ["a.wav"]


# manifests

def test_manifests(tmp_path):
    (tmp_path / "me.wav").touch()
    path = manifest(tmp_path, "\ufefftext,voice,id,seed\nHello.,me.wav,a,3\n\"Yes, no.\",rms,,\nMulti,,c.1,x\n")
    assert read_batch_rows(path) == [BatchRow("a", "Hello.", tmp_path / "me.wav", "3"), BatchRow("00002", "Yes, no.", "rms", None), BatchRow("c.1", "Multi", None, "x")]
    path = manifest(tmp_path, '{"text": "Hello.", "id": 1}\n\n{"text": null, "seed": 5, "voice": ""}\n', "m.jsonl")
    assert read_batch_rows(path) == [BatchRow("1", "Hello."), BatchRow("00002", None, None, 5)]

@pytest.mark.parametrize("text,words", [("id\na\n", "no column text"), ("text,speed\na,2\n", "unknown column 'speed'"), ("text\na,b\n", "more fields"), ("", "has no rows"), ("text\n", "has no rows"),
    ("id,text\n../a,x\n", "can't be the name of a file"), ("id,text\n/a,x\n", "name of a file"), ("id,text\na/b,x\n", "name of a file"), ("id,text\na\\b,x\n", "name of a file"),
    ("id,text\n..,x\n", "name of a file"), ("id,text\n-a,x\n", "name of a file"), ("id,text\na.,x\n", "name of a file"), ("id,text\nä,x\n", "name of a file"), ("id,text\n" + "a"*101 + ",x\n", "name of a file"),
    ("id,text\na,x\nb,x\nA,x\n", "row 3: the id 'A' was used in row 1"), ("id,text\n,x\n00001,x\n", "used in row 1"), ('text\n"a\n', "unexpected end")])
def test_manifests_refused_before_any_work(tts, tmp_path, text, words):
    with pytest.raises(OptionError, match=words): run_batch(tts, manifest(tmp_path, text), tmp_path / "out")
    assert not (tmp_path / "out").exists()

@pytest.mark.parametrize("text,words", [("[]\n", "isn't a JSON object"), ("{\n", "isn't JSON"), ('{"txt": ""}\n', "unknown column")])
def test_json_manifests_refused(tmp_path, text, words):
    with pytest.raises(OptionError, match=words): read_batch_rows(manifest(tmp_path, text, "m.jsonl"))

def test_manifests_that_can_not_be_read(tmp_path):
    with pytest.raises(OptionError, match="No such file"): read_batch_rows(tmp_path / "no.csv")
    with pytest.raises(OptionError, match="unknown ending '.xlsx'"): read_batch_rows(tmp_path / "no.xlsx")
    (tmp_path / "m.csv").write_bytes(b"text\nSch\xf6n\n")
    with pytest.raises(OptionError, match="isn't UTF-8"): read_batch_rows(tmp_path / "m.csv")


# batches

MIXED = "id,text,voice,seed\ngood,The dog slept.,,4\nsmile,I smile 😀.,,\nempty,,,\nvoice,Hello.,nobody.wav,\nseed,Hello.,,x\nlast,The cat slept.,,\nlong,\"Hello.\n\nsilence\n\nMore.\",,\nend,The end.,,\n"

def test_bad_rows_are_reported_and_the_rest_is_done(tts, quick, tmp_path):
    seen = []
    done = run_batch(tts, manifest(tmp_path, MIXED), tmp_path / "out", denoise=False, on_progress=lambda *p: seen.append(p))
    assert (done["rows"], done["spoken"], done["skipped"]) == (8, 3, 0)
    errors = {row["id"]: row["error"] for row in done["failed"]}
    for one, words in dict(smile="position 8", empty="empty", voice="no such file", seed="seed is 'x'", long="nothing was said for 'silence'").items(): assert words in errors.pop(one)
    assert not errors and seen == [("rows", n, 8) for n in range(9)]
    assert sorted(os.listdir(tmp_path / "out")) == ["end.wav", "good.wav", "last.wav", "results.jsonl"]
    good, = (row for row in results(tmp_path / "out") if row["id"] == "good")
    assert good["status"] == "done" and good["seed"] == 4 and good["file"] == "good.wav" and good["duration"] == pytest.approx(soundfile.info(tmp_path / "out" / "good.wav").duration, abs=1e-3)
    assert good["rtf"] > 0 and good["sample_rate"] == 24000

def test_what_came_to_no_end_is_marked(tts, quick, tmp_path):
    run_batch(tts, manifest(tmp_path, "id,text\na,One.\nb,endless.\nc,\"endless.\n\nMore.\"\nd,Four.\n"), tmp_path / "out", denoise=False)
    assert {row["id"]: row["cut"] for row in results(tmp_path / "out")} == dict(a=False, b=True, c=True, d=False)

def test_again_only_what_is_missing_failed_or_changed(tts, quick, tmp_path):
    path, out = manifest(tmp_path, "id,text\na,One.\nb,Two.\nc,Three.\nd,silence\n"), tmp_path / "out"
    run_batch(tts, path, out, denoise=False)
    before = {p.name: p.stat().st_mtime_ns for p in out.glob("*.wav")}
    (out / "a.wav").unlink()
    manifest(tmp_path, "id,text\na,One.\nb,Zwei.\nc,Three.\nd,Four.\n")
    quick.clear()
    done = run_batch(tts, path, out, denoise=False)
    assert sorted(p.text for p in quick) == ["Four.", "One.", "Zwei."] and (done["spoken"], done["skipped"], done["failed"]) == (3, 1, [])
    assert (out / "c.wav").stat().st_mtime_ns == before["c.wav"]
    quick.clear()
    assert run_batch(tts, path, out, denoise=False)["skipped"] == 4 and not quick
    assert len(results(out)) == 4
    assert run_batch(tts, path, out, denoise=False, temperature=.1)["spoken"] == 4, "other options are another job"

def test_seeds_follow_from_ids_and_not_from_places(tts, quick, tmp_path):
    run_batch(tts, manifest(tmp_path, "id,text\na,One.\nb,One.\n"), tmp_path / "1", denoise=False)
    run_batch(tts, manifest(tmp_path, "id,text\nb,One.\nc,Two.\na,One.\n"), tmp_path / "2", denoise=False)
    one = lambda folder, name: (tmp_path / folder / f"{name}.wav").read_bytes()
    assert one("1", "a") == one("2", "a") and one("1", "b") == one("2", "b") and one("1", "a") != one("1", "b")
    run_batch(tts, tmp_path / "m.csv", tmp_path / "3", denoise=False, seed=1)
    assert one("3", "a") != one("1", "a")

def test_a_full_disk_stops_the_batch(tts, quick, tmp_path, monkeypatch):
    class Full:
        def __enter__(self): return self
        def __exit__(self, *_): pass
        def __call__(self, samples): raise OutputError("can't write b.wav: No space left on device")
    plain = corpora.sound_file
    monkeypatch.setattr(corpora, "sound_file", lambda path, rate, name: Full() if Path(name).stem == "b" else plain(path, rate, name))
    with pytest.raises(OutputError, match="No space"): run_batch(tts, manifest(tmp_path, "id,text\na,One.\nb,Two.\nc,Three.\n"), tmp_path / "out", denoise=False)
    assert sorted(os.listdir(tmp_path / "out")) == ["a.wav", "results.jsonl"] and [row["id"] for row in results(tmp_path / "out")] == ["a"]

def test_two_runs_at_once(tts, quick, tmp_path):
    pytest.importorskip("fcntl")
    (tmp_path / "out").mkdir()
    with lock_folder(tmp_path / "out"):
        with pytest.raises(OptionError, match="another process is writing"): run_batch(tts, manifest(tmp_path, "text\nOne.\n"), tmp_path / "out", denoise=False)
    assert run_batch(tts, tmp_path / "m.csv", tmp_path / "out", denoise=False)["spoken"] == 1

def test_refused_before_any_work(tts, tmp_path):
    path = manifest(tmp_path, "text\nOne.\n")
    for options, words in ((dict(format="aiff"), "unknown format 'aiff'"), (dict(top_p=3), "top_p is 3"), (dict(vocoder="organ"), "unknown vocoder"), (dict(seed="x"), "seed is 'x'"), (dict(vocoder="codec", steps=5), "steps are for the vocoder mbd")):
        with pytest.raises(OptionError, match=words): run_batch(tts, path, tmp_path / "out", **options)
    with pytest.raises(AudioError, match="no such file"): run_batch(tts, path, tmp_path / "out", voice="nobody.wav")
    with pytest.raises(OutputError, match="m.csv"): run_batch(tts, path, path, denoise=False)
    assert not (tmp_path / "out").exists()

def test_only_own_litter_is_swept(tmp_path):
    for name in (".a-abcd1234.wav", ".results-abcd1234.jsonl", ".a-abcd1234.txt", ".b-abcd1234.wav", "a-abcd1234.wav", ".a-ABC.wav"): (tmp_path / name).touch()
    remove_partial_files(tmp_path, ["a"])
    assert sorted(os.listdir(tmp_path)) == [".a-ABC.wav", ".a-abcd1234.txt", ".b-abcd1234.wav", "a-abcd1234.wav"]

def test_the_record_survives_a_torn_line(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text('{"id": "a", "status": "failed"}\n{"id": "a", "status": "done"}\n{"id": "b"')
    assert ResultsLog(path).rows == {"a": dict(id="a", status="done")} and results(tmp_path) == [dict(id="a", status="done")]
    path.write_text('{"id": "a"}')
    ResultsLog(path).add(dict(id="b"))
    assert [row["id"] for row in results(tmp_path)] == ["a", "b"], "a last line without its end is whole, but the next must not be glued to it"


# real processes, real models

TEXTS = ["The dog slept.", "Where is the red book?", "The cat slept.", "He went home.", "She sat down.", "It rained."]

@pytest.mark.skipif(os.name == "nt", reason="Windows has no kill -9")
def test_kill_9_loses_nothing_and_says_nothing_twice(tts, tmp_path):
    path, out = manifest(tmp_path, "id,text\n" + "".join(f"r{n},{text}\n" for n, text in enumerate(TEXTS))), tmp_path / "out"
    process = subprocess.Popen([*COMMAND, "batch", str(path), "--out", str(out), "--no-denoise", "--vocoder", "codec", "--batch-size", "2", "-q"], env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    said = out / "results.jsonl"
    while not (said.exists() and said.stat().st_size) and process.poll() is None: time.sleep(.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL, process.stderr.read()
    for row in results(out): assert row["status"] == "done" and soundfile.info(out / row["file"]).duration == pytest.approx(row["duration"], abs=1e-3)
    before = len(results(out))
    assert 1 <= before < len(TEXTS)
    done = run_batch(tts, path, out, denoise=False, vocoder="codec")
    assert done["skipped"] == before and done["spoken"] == len(TEXTS)-before and not done["failed"]
    assert sorted(os.listdir(out)) == sorted([f"r{n}.wav" for n in range(len(TEXTS))] + ["results.jsonl"])
    assert sorted(row["id"] for row in results(out)) == [f"r{n}" for n in range(len(TEXTS))]
    alone = tts.synthesise(TEXTS[0], seed=results(out)[0]["seed"], denoise=False, vocoder="codec")
    assert torch.equal(torch.from_numpy(soundfile.read(out / "r0.wav", dtype="int16")[0]), to_int16(alone.samples))

@pytest.mark.skipif(os.name == "nt", reason="Windows has no kill -9")
def test_a_book_survives_kill_9(tts, tmp_path):
    text = "\n\n".join(TEXTS)
    command = [*COMMAND, "synthesise", text, "--resume", "-o", str(tmp_path / "a.flac"), "--seed", "9", "--no-denoise", "--vocoder", "codec", "--batch-size", "1", "-q"]
    process = subprocess.Popen(command, env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while not list(tmp_path.glob("a.flac.parts/piece-*")) and process.poll() is None: time.sleep(.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL, process.stderr.read()
    assert os.listdir(tmp_path) == ["a.flac.parts"]
    done = read_aloud(tts, text, tmp_path / "a.flac", resume=True, denoise=False, vocoder="codec")
    read_aloud(tts, text, tmp_path / "b.flac", seed=9, denoise=False, vocoder="codec")
    assert 1 <= done["resumed"] < done["pieces"] and (tmp_path / "a.flac").read_bytes() == (tmp_path / "b.flac").read_bytes()

def test_rows_of_one_batch_do_not_disturb_each_other(tts):
    rows = [BatchRow("a", TEXTS[0], tts.voice(), 1), BatchRow("bad", "", tts.voice(), 1), BatchRow("b", TEXTS[1], tts.voice(), 2)]
    out = {row.id: samples for row, samples, ends in speak_rows(tts, rows, corpora.drawing_options(tts.bundle), "codec", False, 2)}
    assert isinstance(out["bad"], TextError) and torch.equal(out["b"], to_int16(tts.synthesise(TEXTS[1], seed=2, denoise=False, vocoder="codec").samples))

def test_ray(tts, tmp_path, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", str(ROOT)); monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    path = manifest(tmp_path, f"id,text\na,{TEXTS[0]}\nb,😀\nc,{TEXTS[1]}\n")
    speak = lambda rows, *how: speak_on_ray("nano", dict(device="cpu"), rows, *how, workers=1, group=1)
    done = run_batch(tts, path, tmp_path / "out", denoise=False, vocoder="codec", speak=speak)
    assert done["spoken"] == 2 and [row["id"] for row in done["failed"]] == ["b"], done
    run_batch(tts, path, tmp_path / "here", denoise=False, vocoder="codec")
    for name in "ac": assert (tmp_path / "out" / f"{name}.wav").read_bytes() == (tmp_path / "here" / f"{name}.wav").read_bytes()

def test_without_ray(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(OptionError, match=r'pip install "metavoice\[ray\]"'): next(speak_on_ray("nano", dict(device="cpu"), [BatchRow("a", "A.")], {}, "codec", False, 16))
