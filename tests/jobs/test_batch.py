"Batches: tables, options of rows, results that survive a killed process, and what is spoken again."
import json
import os
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
import soundfile
import torch
from tiny import write_tiny_bundle

import metavoice.jobs.batch as batch
from metavoice.audio.encode import to_int16
from metavoice.core.errors import AudioError, OptionError, OutputError, TextError
from metavoice.generate.options import SpeechOptions
from metavoice.generate.tts import TTS
from metavoice.jobs.batch import (
    BatchRow,
    ResultsLog,
    check_ids,
    lock_folder,
    read_batch_rows,
    remove_partial_files,
    run_batch,
    speak_rows,
)

TEXTS = ["The dog slept.", "Where is the red book?", "The cat slept.", "He went home.", "She sat down.", "It rained."]


# tables

def test_tables(tmp_path, write_table):
    (tmp_path / "me.wav").touch()
    csv = "\ufefftext,voice,id,seed,top_p\nHello.,me.wav,a,3,0.8\n\"Yes, no.\",af_heart,,,\nMulti,,c.1,x,\n"
    assert read_batch_rows(write_table(tmp_path, csv)) == [
        BatchRow("a", "Hello.", cells=dict(voice=tmp_path / "me.wav", seed="3", top_p="0.8")),
        BatchRow("00002", "Yes, no.", cells=dict(voice="af_heart")), BatchRow("c.1", "Multi", cells=dict(seed="x"))]
    lines = '{"text": "Hello.", "id": 1}\n\n{"text": null, "seed": 5, "voice": ""}\n'
    assert read_batch_rows(write_table(tmp_path, lines, "m.jsonl")) == [
        BatchRow("1", "Hello."), BatchRow("00002", None, cells=dict(seed=5))]


@pytest.mark.parametrize("text,words", [
    ("id\na\n", "no column text"), ("text,tempo\na,2\n", "unknown column 'tempo'"),
    ("text,vocoder\na,mbd\n", "unknown column 'vocoder'"), ("text\na,b\n", "more fields"), ("", "has no rows"),
    ("text\n", "has no rows"), ("id,text\n../a,x\n", "can't be the name of a file"),
    ("id,text\n/a,x\n", "name of a file"), ("id,text\na/b,x\n", "name of a file"),
    ("id,text\na\\b,x\n", "name of a file"), ("id,text\n..,x\n", "name of a file"),
    ("id,text\n-a,x\n", "name of a file"), ("id,text\na.,x\n", "name of a file"), ("id,text\nä,x\n", "name of a file"),
    ("id,text\n" + "a" * 101 + ",x\n", "name of a file"),
    ("id,text\na,x\nb,x\nA,x\n", "row 3: the id 'A' was used in row 1"), ("id,text\n,x\n00001,x\n", "used in row 1"),
    ('text\n"a\n', "line 2: the quote"), ("text,text\na,b\n", "column 'text' 2 times"),
])
def test_tables_refused_before_any_work(tts, tmp_path, write_table, text, words):
    with pytest.raises(OptionError, match=words):
        run_batch(tts, write_table(tmp_path, text), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text,words", [
    ("[]\n", "has no rows"), ("[1]\n", "line 1: it isn't a JSON object"),
    ("{\n", "isn't JSON"), ('{"txt": ""}\n', "unknown column"),
])
def test_json_tables_refused(tmp_path, write_table, text, words):
    with pytest.raises(OptionError, match=words):
        read_batch_rows(write_table(tmp_path, text, "m.jsonl"))


def test_tables_that_can_not_be_read(tmp_path):
    with pytest.raises(OptionError, match="No such file"):
        read_batch_rows(tmp_path / "no.csv")
    with pytest.raises(OptionError, match="unknown ending '.xlsx'"):
        read_batch_rows(tmp_path / "no.xlsx")
    (tmp_path / "m.csv").write_bytes(b"text\nSch\xf6n\n")
    with pytest.raises(OptionError, match="line 2 isn't UTF-8"):
        read_batch_rows(tmp_path / "m.csv")


def test_tables_as_people_write_them(tmp_path):
    long, line = "x" * 200_000, "One\u2028two\x85three."
    cells = f'text;id\r\n"Yes; no.\r\nNo.";a\r\n"Come in," she said.;b\r\n{line};c\r\n{long};d\r\nShort.\r\n'
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        (tmp_path / "m.csv").write_bytes(cells.encode(encoding))
        rows = read_batch_rows(tmp_path / "m.csv")
        assert [row.text for row in rows] == ["Yes; no.\nNo.", '"Come in," she said.', line, long, "Short."]
        assert [row.id for row in rows] == ["a", "b", "c", "d", "00005"]
    (tmp_path / "m.jsonl").write_text(json.dumps(dict(text=line), ensure_ascii=False) + "\n", encoding="utf-8")
    assert [row.text for row in read_batch_rows(tmp_path / "m.jsonl")] == [line]


def test_voices_that_no_file_can_have_fail_their_row(tts, quick, tmp_path, write_table):
    voices = ("x" * 5000, "a\0b", 5, "\ud800")
    lines = [json.dumps(dict(text="Hello.", voice=voice)) for voice in voices] + [json.dumps(dict(text="\ud800 One."))]
    done = run_batch(tts, write_table(tmp_path, "\n".join(lines), "m.jsonl"), tmp_path / "out", denoise=False)
    assert [row["id"] for row in done["failed"]][:4] == ["00001", "00002", "00003", "00004"]


def test_ids():
    check_ids(["a", "b.c", "_", "0"], "t")
    with pytest.raises(OptionError, match="row 2: the id 'A' was used in row 1 already"):
        check_ids(["a", "A"], "t")


# batches

MIXED = """id,text,voice,seed,top_p,takes
good,The dog slept.,,4,,
smile,😀!,,,,
empty,,,,,
voice,Hello.,nobody.wav,,,
seed,Hello.,,x,,
nucleus,Hello.,,,2,
takes,Hello.,,,,1.5
last,The cat slept.,,,,
long,"Hello.

silence

More.",,,,
end,The end.,,,,
"""


def test_bad_rows_are_reported_and_the_rest_is_done(tts, quick, tmp_path, write_table, read_results):
    seen, out = [], tmp_path / "out"
    done = run_batch(tts, write_table(tmp_path, MIXED), out, denoise=False, on_progress=lambda *p: seen.append(p))
    assert (done["rows"], done["spoken"], done["skipped"]) == (10, 3, 0)
    errors = {row["id"]: row["error"] for row in done["failed"]}
    expected = dict(smile="nothing to say", empty="empty", voice="no such file", seed="seed is 'x'",
                    nucleus="top_p is '2'; use a number above 0 and at most 1", takes="takes is '1.5'; use a whole",
                    long="nothing was said for 'silence'")
    for row_id, words in expected.items():
        assert words in errors.pop(row_id)
    assert not errors and seen == [("rows", n, 10) for n in range(11)]
    assert sorted(os.listdir(out)) == ["end.wav", "good.wav", "last.wav", "results.jsonl"]
    good, = (row for row in read_results(out) if row["id"] == "good")
    assert good["status"] == "done" and good["seed"] == 4 and good["file"] == "good.wav"
    assert good["duration"] == pytest.approx(soundfile.info(out / "good.wav").duration, abs=1e-3)
    assert good["rtf"] > 0 and good["sample_rate"] == 24000


def test_speech_that_was_cut_is_marked(tts, quick, tmp_path, write_table, read_results):
    table = write_table(tmp_path, "id,text\na,One.\nb,endless.\nc,\"endless.\n\nMore.\"\nd,Four.\n")
    run_batch(tts, table, tmp_path / "out", denoise=False)
    cut = {row["id"]: row["cut"] for row in read_results(tmp_path / "out")}
    assert cut == dict(a=False, b=True, c=True, d=False)


def test_again_only_what_is_missing_failed_or_changed(tts, quick, tmp_path, write_table, read_results):
    table, out = write_table(tmp_path, "id,text\na,One.\nb,Two.\nc,Three.\nd,silence\n"), tmp_path / "out"
    run_batch(tts, table, out, denoise=False)
    before = {p.name: p.stat().st_mtime_ns for p in out.glob("*.wav")}
    (out / "a.wav").unlink()
    write_table(tmp_path, "id,text\na,One.\nb,Zwei.\nc,Three.\nd,Four.\n")
    quick.clear()
    done = run_batch(tts, table, out, denoise=False)
    assert sorted(segment.text for segment in quick) == ["Four.", "One.", "Zwei."]
    assert (done["spoken"], done["skipped"], done["failed"]) == (3, 1, [])
    assert (out / "c.wav").stat().st_mtime_ns == before["c.wav"]
    quick.clear()
    assert run_batch(tts, table, out, denoise=False)["skipped"] == 4 and not quick
    assert len(read_results(out)) == 4
    assert run_batch(tts, table, out, denoise=False, temperature=.1)["spoken"] == 4, "other options are another job"
    assert run_batch(tts, table, out, denoise=False, voice=tts.voice("af_heart"))["spoken"] == 4
    british = replace(tts.voice("af_heart"), accent="british")
    assert run_batch(tts, table, out, denoise=False, voice=british)["spoken"] == 4, "another pronunciation"


def test_rows_have_a_language_and_share_their_batches(tts, quick, tmp_path, write_table, read_results, caplog):
    table = write_table(tmp_path, "id,text,language\na,on 3/4/2026,\nb,on 3/4/2026,en-GB\nc,I smile 你.,\nd,Yes.,tlh\n")
    done = run_batch(tts, table, tmp_path / "out", denoise=False)
    said = [segment.text for segment in quick]
    assert len(batch.group_rows([BatchRow("a", "", SpeechOptions(language=name)) for name in ("en", "en-GB")])) == 1
    assert len(set(said)) == 3 and "March" in said[0] and "April" in said[1] and said[2] == "I smile."
    assert [row["id"] for row in done["failed"]] == ["d"] and "'tlh'" in done["failed"][0]["error"]
    assert [record.getMessage().count("你") for record in caplog.records] == [1]
    quick.clear()
    assert run_batch(tts, table, tmp_path / "out", denoise=False)["skipped"] == 3 and not quick
    assert run_batch(tts, table, tmp_path / "out", denoise=False, lexicon=dict(a="b"))["spoken"] == 3


def test_rows_have_an_accent_and_share_their_batches(quick, tmp_path, write_table):
    pytest.importorskip("hibari")
    tts = TTS.from_pretrained(write_tiny_bundle(tmp_path / "tiny", phonemes=True), "cpu")
    rows = "a,The dance.,american\nb,The dance.,british\nc,The dance.,\nd,X,welsh\n"
    table = write_table(tmp_path, f"id,text,accent\n{rows}")
    done = run_batch(tts, table, tmp_path / "out", denoise=False)
    assert len(batch.group_rows([BatchRow("a", "", SpeechOptions(accent=a)) for a in (None, "british")])) == 1
    american, british, own = (segment.ids for segment in quick)
    assert american != british == own and [row["id"] for row in done["failed"]] == ["d"]
    assert "use american or british" in done["failed"][0]["error"]


def test_seeds_follow_from_ids_and_not_from_places(tts, quick, tmp_path, write_table):
    def read(folder, name):
        return (tmp_path / folder / f"{name}.wav").read_bytes()

    run_batch(tts, write_table(tmp_path, "id,text\na,One.\nb,One.\n"), tmp_path / "1", denoise=False)
    table = write_table(tmp_path, "id,text\nb,One.\nc,Two.\na,One.\n")
    run_batch(tts, table, tmp_path / "2", denoise=False)
    assert read("1", "a") == read("2", "a") and read("1", "b") == read("2", "b") and read("1", "a") != read("1", "b")
    run_batch(tts, table, tmp_path / "3", denoise=False, seed=1)
    assert read("3", "a") != read("1", "a")


def test_rows_with_equal_options_share_batches(tts, tmp_path, write_table, monkeypatch, read_results):
    groups, real = [], batch.LocalSource

    class Watched(real):
        def codes(self, segments, on_tokens=None):
            groups.append((self.options.temperature, self.options.takes, len(segments)))
            return super().codes(segments, on_tokens)

    monkeypatch.setattr(batch, "LocalSource", Watched)
    cells = ["a,Yes.,,", "b,No.,0.5,", "c,Yes.,,", "d,No.,0.5,", "e,No.,0,2"]
    table = write_table(tmp_path, "id,text,temperature,takes\n" + "\n".join(cells))
    run_batch(tts, table, tmp_path / "out", denoise=False, takes=1)
    own = tts.bundle.defaults["temperature"]
    assert groups == [(own, 1, 2), (.5, 1, 2), (0, 1, 1)], "temperature 0 needs one take only"
    assert [row["id"] for row in read_results(tmp_path / "out")] == ["a", "c", "b", "d", "e"]
    seed = next(row["seed"] for row in read_results(tmp_path / "out") if row["id"] == "b")
    alone = tts.synthesise("No.", seed=seed, temperature=.5, takes=1, denoise=False)
    spoken, _ = soundfile.read(tmp_path / "out" / "b.wav", dtype="int16")
    assert torch.equal(torch.from_numpy(spoken), to_int16(alone.samples))


def test_a_full_disk_stops_the_batch(tts, quick, tmp_path, monkeypatch, write_table, read_results):
    class Full:
        def __enter__(self):
            return self

        def __exit__(self, *exception):
            pass

        def __call__(self, samples):
            raise OutputError("can't write b.wav: No space left on device")

    real = batch.open_sound_file

    def open_sound_file(path, rate, name, tag):
        return Full() if Path(name).stem == "b" else real(path, rate, name, tag)

    monkeypatch.setattr(batch, "open_sound_file", open_sound_file)
    table, out = write_table(tmp_path, "id,text\na,One.\nb,Two.\nc,Three.\n"), tmp_path / "out"
    with pytest.raises(OutputError, match="No space"):
        run_batch(tts, table, out, denoise=False)
    assert sorted(os.listdir(out)) == ["a.wav", "results.jsonl"] and [row["id"] for row in read_results(out)] == ["a"]


def test_two_runs_at_once(tts, quick, tmp_path, write_table):
    pytest.importorskip("fcntl")
    (tmp_path / "out").mkdir()
    with lock_folder(tmp_path / "out"):
        with pytest.raises(OptionError, match="another process is writing"):
            run_batch(tts, write_table(tmp_path, "text\nOne.\n"), tmp_path / "out", denoise=False)
    assert run_batch(tts, tmp_path / "m.csv", tmp_path / "out", denoise=False)["spoken"] == 1


def test_refused_before_any_work(tts, tmp_path, write_table):
    table = write_table(tmp_path, "text\nOne.\n")
    cases = ((dict(format="aiff"), "unknown format 'aiff'"), (dict(top_p=3), "top_p is 3"),
             (dict(vocoder="organ"), "vocoder is 'organ'"), (dict(seed="x"), "seed is 'x'"),
             (dict(vocoder="codec", steps=5), "steps are for the vocoder mbd"))
    for options, words in cases:
        with pytest.raises(OptionError, match=words):
            run_batch(tts, table, tmp_path / "out", **options)
    with pytest.raises(AudioError, match="no such file"):
        run_batch(tts, table, tmp_path / "out", voice="nobody.wav")
    with pytest.raises(OutputError, match="m.csv"):
        run_batch(tts, table, table, denoise=False)
    assert not (tmp_path / "out").exists()


def test_only_unfinished_files_of_the_table_are_removed(tmp_path):
    names = (".a-abcd1234.wav", ".results-abcd1234.jsonl", ".a-abcd1234.txt", ".b-abcd1234.wav", "a-abcd1234.wav",
             ".a-ABC.wav")
    for name in names:
        (tmp_path / name).touch()
    remove_partial_files(tmp_path, ["a"])
    kept = [".a-ABC.wav", ".a-abcd1234.txt", ".b-abcd1234.wav", "a-abcd1234.wav"]
    assert sorted(os.listdir(tmp_path)) == kept


def test_the_log_survives_an_incomplete_line(tmp_path, read_results):
    path = tmp_path / "results.jsonl"
    path.write_text('{"id": "a", "status": "failed"}\n{"id": "a", "status": "done"}\n{"id": "b"')
    assert ResultsLog(path).rows == {"a": dict(id="a", status="done")}
    assert read_results(tmp_path) == [dict(id="a", status="done")]
    ResultsLog(path).add(dict(id="a", error="one\u2028two\x85three"))
    assert ResultsLog(path).rows["a"]["error"] == "one\u2028two\x85three"
    path.write_text('{"id": "a"}')
    ResultsLog(path).add(dict(id="b"))
    ids = [row["id"] for row in read_results(tmp_path)]
    assert ids == ["a", "b"], "a last line without its line break is complete, but the next must start a new one"


RESULT = '{"id": "a", "status": "done"}\n'


@pytest.mark.parametrize("torn", [
    b'{"id": "b", "voice": "Zo\xc3', b"\0" * 5000, b"[" * 100_000, b'{"a":' * 900 + b"1" + b"}" * 900,
    b"[1]", b'{"id": 1}',
])
def test_the_log_survives_any_end(tmp_path, read_results, torn):
    path = tmp_path / "results.jsonl"
    path.write_bytes(RESULT.encode() + torn)
    assert list(ResultsLog(path).rows) == ["a"] and read_results(tmp_path) == [dict(id="a", status="done")]


@pytest.mark.parametrize("line", ["[1]", '"a"', "[" * 100_000, '{"id": [1]}', '{"id": 1}', "my notes", "{}", "\0\0"])
def test_a_file_that_is_no_log_is_kept(tmp_path, line):
    path = tmp_path / "results.jsonl"
    for content in (line + "\n" + RESULT, RESULT + line + "\n"):
        path.write_text(content)
        with pytest.raises(OptionError, match=r"it isn't a result; move the file away|isn't a text file"):
            ResultsLog(path)
        assert path.read_text() == content


def test_the_log_reads_whatever_it_wrote(tmp_path):
    path = tmp_path / "results.jsonl"
    results = [dict(id=f"{n}", status="done", voice=odd) for n, odd in enumerate(
        ["caf\udce9.wav", "a\nb\rc", "x\u2028\x85\0", '"', "long " * 50_000, "\ud800"]
    )]
    log = ResultsLog(path)
    for result in results:
        log.add(result)
    assert list(ResultsLog(path).rows.values()) == results
    ResultsLog(path).rewrite()
    assert list(ResultsLog(path).rows.values()) == results
    ResultsLog(path).add(dict(id="nan", rtf=float("nan")))
    assert ResultsLog(path).rows["nan"]["rtf"] is None


def test_a_result_without_its_fields(tts, quick, tmp_path, write_table):
    table, out = write_table(tmp_path, "id,text\na,One.\nb,Two.\n"), tmp_path / "out"
    out.mkdir()
    (out / "results.jsonl").write_text('{"id": "a"}\n{"id": "b", "status": "failed"}\n')
    assert run_batch(tts, table, out, denoise=False)["failed"] == []


def test_a_recording_in_the_folder_is_not_replaced(tts, quick, tmp_path, write_table):
    table, out = write_table(tmp_path, "id,text\na,One.\nb,Two.\n"), tmp_path / "out"
    out.mkdir()
    (out / "b.wav").write_text("my only recording")
    with pytest.raises(OutputError, match="b.wav is there already, and metavoice didn't make it"):
        run_batch(tts, table, out, denoise=False)
    assert (out / "b.wav").read_text() == "my only recording" and not (out / "a.wav").exists()
    (out / "b.wav").unlink()
    assert run_batch(tts, table, out, denoise=False)["spoken"] == 2
    (out / "results.jsonl").unlink()
    assert run_batch(tts, table, out, denoise=False)["spoken"] == 2, "its own files may be replaced"


@pytest.mark.parametrize("table, line", [
    ('id,text\na,"The dog slept.\nb,The cat ran."\nc,Yes.\n', 2),
    ('id,text,voice\na,Yes.,\nb,"The dog slept.,\nc,The cat ran.,"\n', 3),
    ('id;text\na;"The dog slept.\nb;The cat ran."\n', 2),
    ('text,seed\n"The dog slept.,1\nThe cat ran.,2"\n', 2),
    ('id,text\na,"The dog slept.\n' + "b,The cat ran.\n" * 1000, 2),
])
def test_an_unclosed_quote_is_no_long_text(tmp_path, write_table, table, line):
    with pytest.raises(OptionError, match=f'line {line}: the quote " that begins a cell isn\'t closed'):
        read_batch_rows(write_table(tmp_path, table))


@pytest.mark.parametrize("text", [
    "He slept.\nHowever, he woke.", "It cost\n1,250 dollars.", "One\n\ntwo", "a, b\nc, d", "x " * 100_000,
])
def test_texts_of_several_lines(tmp_path, write_table, text):
    rows = read_batch_rows(write_table(tmp_path, f'id,text\na,"{text}"\nb,Yes.\n'))
    assert [(row.id, row.text) for row in rows] == [("a", text), ("b", "Yes.")]


# real models, real processes

def test_rows_of_one_batch_do_not_disturb_each_other(tts):
    own = SpeechOptions(voice=tts.voice(), takes=1, denoise=False, vocoder="codec").resolve(tts.bundle)
    rows = [BatchRow("a", TEXTS[0], replace(own, seed=1)), BatchRow("bad", "", replace(own, seed=1)),
            BatchRow("b", TEXTS[1], replace(own, seed=2))]
    out = {row.id: samples for row, samples, ends in speak_rows(tts, rows, 2)}
    alone = tts.synthesise(TEXTS[1], seed=2, takes=1, denoise=False, vocoder="codec")
    assert isinstance(out["bad"], TextError) and torch.equal(out["b"], to_int16(alone.samples))


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no kill -9")
def test_kill_9_loses_no_row_and_repeats_none(tts, tmp_path, command, write_table, read_results):
    rows = [f"r{n},{text}\n" for n, text in enumerate(TEXTS)]
    table, out = write_table(tmp_path, "id,text\n" + "".join(rows)), tmp_path / "out"
    options = dict(denoise=False, vocoder="codec", takes=1)
    arguments = ["batch", str(table), "--out", str(out), "--no-denoise", "--vocoder", "codec", "--takes", "1",
                 "--batch-size", "1", "-q"]
    process = subprocess.Popen([*command.args, *arguments], env=command.env, stdout=subprocess.DEVNULL,
                               stderr=subprocess.PIPE)
    log = out / "results.jsonl"
    while not (log.exists() and log.stat().st_size) and process.poll() is None:
        time.sleep(.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL, process.stderr.read()
    for row in read_results(out):
        assert row["status"] == "done"
        assert soundfile.info(out / row["file"]).duration == pytest.approx(row["duration"], abs=1e-3)
    before = len(read_results(out))
    assert 1 <= before < len(TEXTS)
    done = run_batch(tts, table, out, **options)
    assert done["skipped"] == before and done["spoken"] == len(TEXTS) - before and not done["failed"]
    names = [f"r{n}" for n in range(len(TEXTS))]
    assert sorted(os.listdir(out)) == sorted([f"{name}.wav" for name in names] + ["results.jsonl"])
    assert sorted(row["id"] for row in read_results(out)) == names
    alone = tts.synthesise(TEXTS[0], seed=read_results(out)[0]["seed"], **options)
    spoken, _ = soundfile.read(out / "r0.wav", dtype="int16")
    assert torch.equal(torch.from_numpy(spoken), to_int16(alone.samples))
