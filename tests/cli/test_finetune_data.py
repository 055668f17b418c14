"`metavoice finetune --check` on data as people have them, and on hundreds of broken ones."
import json
import random
import time
from pathlib import Path

import pytest

from metavoice.audio.sound import Audio, load_audio
from metavoice.bundle.load import load_bundle

from .conftest import ROOT

FIRST, SECOND = "The dog slept near the table.", "She gave the cat some milk."
SAMPLES = ROOT/"nbs"/"samples"


@pytest.fixture(scope="module")
def nano():
    return load_bundle("nano", "cpu", "float32")


@pytest.fixture
def check(nano, run, monkeypatch):
    "A function that runs `finetune --check` with nano in memory: exit code, lines of output, standard error."
    pytest.importorskip("accelerate", reason='finetuning needs pip install "metavoice[finetune]"')
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    import metavoice.train.finetune as module

    monkeypatch.setattr(module, "load_bundle", lambda *args, **options: nano)

    def run_check(source, *more):
        code, out, err = run("finetune", "--train", source, "--check", "-q", "--report-to", "none", *more)
        return code, out.split("\n")[:-1], err

    return run_check


@pytest.fixture
def folder(tmp_path):
    "A folder d with wavs/1.wav and wavs/2.wav, of two seconds each."
    (tmp_path/"d"/"wavs").mkdir(parents=True)
    for n, name in enumerate(("awb_1", "rms_2"), 1):
        audio = load_audio(SAMPLES/f"{name}.ogg")
        Audio(audio.samples[: 2*audio.sample_rate], audio.sample_rate).save(tmp_path/"d"/"wavs"/f"{n}.wav")
    return tmp_path/"d"


def test_line_break_in_a_caption(check, folder):
    table = f'audio_files,captions\nwavs/1.wav,"The dog slept\nnear the table."\nwavs/2.wav,{SECOND}\n'
    (folder/"nl.csv").write_text(table)
    code, out, err = check(folder/"nl.csv")
    assert (code, err) == (0, "") and "2 clips" in out[0] and "12 words" in out[0], out


def test_paths_in_an_ljspeech_table(check, folder):
    (folder/"metadata.csv").write_text(f"wavs/1.wav|{FIRST}\nwavs/2.wav|{SECOND}\n")
    code, out, err = check(folder)
    assert (code, out[-1], err) == (0, "no problems", "")


def test_warnings_name_unused_recordings_and_characters(check, folder):
    load_audio(SAMPLES/"slt_1.ogg").save(folder/"wavs"/"3.wav")
    (folder/"metadata.csv").write_text(f"1|{FIRST}\n2|She gave 日 milk.\n", encoding="utf-8")
    code, out, err = check(folder)
    assert code == 0 and "2 warnings:" in out[2] and not err
    assert "1 recording that no row names: wavs/3.wav" in out[3] and "'日' can't be said and is left out" in out[4]
    code, out, err = check(folder, "--strict")
    assert code == 1 and "metadata.csv:2: " in "\n".join(out) and "日" in "\n".join(out)


def test_captions_become_words(check, folder):
    (folder/"metadata.csv").write_text("1|Dr. Bry paid $2.\n2|Bry paid 50%.\n")
    (folder/"names.tsv").write_text("Bry\tthe woman\n")
    code, out, err = check(folder, "--lexicon", folder/"names.tsv", "--language", "en-GB")
    assert code == 0 and "11 words" in out[0] and out[-1] == "no problems", out
    code, out, err = check(folder, "--as-written")
    assert code == 0 and "2 warnings" in out[2] and "'$', '2' can't be said" in out[3], out


BAD_OPTIONS = [
    *((["--language", "tlh"], "'tlh'"), (["--lexicon", "none.tsv"], "none.tsv"), (["--lexicon", "a\0b"], "lexicon")),
    *((["--val", "none.csv"], "no none.csv"), (["--tokeniser", "a\0b"], "tokeniser"), (["--tokeniser", "~x"], "~x")),
    *((["--out", "x"*300], "folder of a run"), (["--out", "a\0b"], "folder of a run"), (["--voice", "\udcff"], "")),
    *((["--config", "x"*300 + ".json"], "can't read"), (["--config", "deep.json"], "can't read deep.json")),
]


@pytest.mark.parametrize("arguments, message", BAD_OPTIONS)
def test_bad_options_end_in_one_line(check, folder, arguments, message):
    (folder/"metadata.csv").write_text(f"1|{FIRST}\n2|{SECOND}\n")
    Path("deep.json").write_text("["*100_000)
    code, out, err = check(folder, *arguments)
    if message:
        assert (code, out, err.count("\n")) == (2, [], 1) and message in err
    else:
        assert code in (0, 2) and err.count("\n") == (code == 2)


# Fuzz: tables, captions, paths, JSON and whole files, mutated.

TABLES = {
    "released.csv": f"audio_files|captions\nwavs/1.wav|{FIRST}\nwavs/2.wav|{SECOND}\n",
    "metadata.csv": f"wavs/1.wav|{FIRST}\n2|{SECOND}\n",
    "comma.csv": f'file_name,text,speaker\nwavs/1.wav,"{FIRST}",anna\nwavs/2.wav,"She said ""no"".",ben\n',
    "voice.tsv": f"client_id\tpath\tsentence\nx\t1.wav\t{FIRST}\nx\t2.wav\t{SECOND}\n",
    "lines.jsonl": '{"audio": "wavs/1.wav", "text": "Dr. X paid $5.", "start": 0, "duration": 1.5}\n'
    '{"audio": "2.wav", "text": "Yes, no.", "words": [[0, 0.5], {"start": 0.6, "end": 1}]}\n',
    "list.json": json.dumps([dict(audio="1", text=FIRST), dict(id=2, text="3, 2, 1: at 5:30 p.m.", offset=0.1, end=1)]),
}
PIECES = [
    *('"', '""', "'", "|", ",", ";", "\t", "\n", "\r", "\r\n", "\0", "\u2028", "\x85", "\x0b", "\x1c", "\ufeff"),
    *("=1", "#", "@x", "-", "~nobody/", "../", "/", "\\", "//", ".wav", "wavs/", ".txt", "|\n", '"\n', "NaN", "-1"),
    *("1e999", "Infinity", "null", "true", "{", "}", "[", "]", "["*5000, '{"a":'*3000, "\\u0000", "\\ud800", "9"*5000),
    *("x"*300, "/x"*3000, "€", "日本", "😀", "\u0301", "\u200b", "\u202e", "\ud800", "$12.50", "<b>", "&amp;", "```"),
    *("word "*300, "1/"*300, "("*500, "a."*300, "XIV ", "http://a.b/c?d=e ", "%s{}", "\x1b[31m", "wavs", "."),
    "[pause 9s]",
]


def mutate(text, rng):
    "Insert, delete, replace and repeat parts of a text, or of its bytes."
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(text) + 1)
        end = min(len(text), at + rng.choice((0, 0, 1, 1, 3, 20)))
        text = text[:at] + rng.choice((rng.choice(PIECES), rng.choice(PIECES), "", text[at:end]*3)) + text[end:]
    kind = rng.randrange(12)
    if kind < 2:
        return text.encode(("utf-16", "utf-8-sig")[kind], "replace")
    data = bytearray(text.encode("utf-8", "surrogatepass"))
    if kind == 2:
        for _ in range(3):
            data[rng.randrange(len(data)) if data else 0 : 1] = bytes([rng.randrange(256)])
    return bytes(data[: rng.randrange(len(data) + 1)] if kind == 3 else data)


def test_fuzzed_tables_end_in_a_report_or_in_one_line(check, folder):
    rng, codes, slowest = random.Random(16), [0, 0, 0], 0.0
    (folder/"said.txt").write_bytes(b"\xff")
    for n in range(400):
        name = rng.choice(list(TABLES))
        data = mutate(TABLES[name], rng)
        (folder/name).write_bytes(data)
        started = time.perf_counter()
        try:
            code, out, err = check(folder/name)
        except BaseException as error:
            raise AssertionError(f"{name}: {data[:3000]!r}") from error
        slowest = max(slowest, time.perf_counter() - started)
        assert code in (0, 1, 2) and (code == 2) == (err.count("\n") == 1 and not out), (n, data[:3000], code, out, err)
        assert code == 2 or len(out) > 2, (data[:3000], out)
        codes[code] += 1
        (folder/name).unlink()
    print(f"no problems {codes[0]}, reported {codes[1]}, refused {codes[2]}; the slowest took {slowest:.2f} s")
    assert min(codes) > 10


def test_fuzzed_folders_and_arguments(check, folder):
    rng = random.Random(17)
    for n in range(30):
        for number in (1, 2):
            (folder/"wavs"/f"{number}.txt").write_bytes(mutate(rng.choice((FIRST, SECOND)), rng))
        code, out, err = check(folder/"wavs")
        assert code in (0, 1) and len(out) > 2, (n, err)
    for n in range(70):
        name = "".join(rng.choices([*PIECES, "d", "wavs/1.wav"], k=rng.randint(1, 2)))[:9000] or "x"
        if not name.strip("/.\\"):
            continue  # the whole disk
        code, out, err = check(name.replace("\0", "") if n % 2 else name)
        assert code in (0, 1, 2) and (code < 2 or err.count("\n") == 1), (name, err)
