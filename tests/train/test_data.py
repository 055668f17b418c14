"Reading training data: layouts, encodings, quotes, names of recordings, malformed rows, and unused recordings."
import json
import shutil

import pytest

from metavoice.audio.sound import load_audio, load_span
from metavoice.core.errors import AudioError, OptionError
from metavoice.train.data import find_unused, read_dataset, read_examples

SAID = "The kettle sings softly while rain taps on the window."
FIRST, SECOND = "The dog slept near the table.", "She gave the cat some milk."


def texts(source):
    "The texts of a table or a folder without problems, whose recordings exist."
    examples, problems = read_examples(source)
    assert not problems, problems
    assert all(example.audio.is_file() for example in examples), examples
    return [example.text for example in examples]


@pytest.fixture
def folder(tmp_path, samples):
    "A folder with wavs/1.wav and wavs/2.wav."
    (tmp_path / "wavs").mkdir()
    for n, name in enumerate(("awb_1", "rms_2"), 1):
        load_audio(samples / f"{name}.ogg").save(tmp_path / "wavs" / f"{n}.wav")
    return tmp_path


@pytest.fixture
def read(folder):
    "A function that writes a table into the folder and reads its texts."

    def write_and_read(table, name="train.csv"):
        data = table if isinstance(table, bytes) else table.encode()
        (folder / name).write_bytes(data)
        return texts(folder / name)

    return write_and_read


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


LAYOUTS = {
    "released": "audio_files|captions\nwavs/1.wav|{}\nwavs/2.wav|{}\n",
    "LJSpeech": "1|{}\n2|{}\n",
    "LJSpeech, normalised": "1|Dr. X|{}\n2|Mr. Y|{}\n",
    "LJSpeech, paths": "wavs/1.wav|{}\nwavs/2.wav|{}\n",
    "LJSpeech, names": "1.wav|{}\n2.wav|{}\n",
    "Piper": "1|anna|{}\n2|anna|{}\n",
    "VITS": "wavs/1.wav|0|{}\nwavs/2.wav|1_b|{}\n",
    "AudioFolder": "file_name,transcription\nwavs/1.wav,{}\nwavs/2.wav,{}\n",
    "AudioFolder, quoted": 'file_name,text\nwavs/1.wav,"{}"\nwavs/2.wav,"{}"\n',
    "Common Voice": "client_id\tpath\tsentence\tage\nx\t1.wav\t{}\t\nx\t2.wav\t{}\t\n",
    "semicolons": "Datei;File Name;Text\n1;1.wav;{}\n2;2.wav;{}\n",
    "no header, tabs": "wavs/1.wav\t{}\nwavs/2.wav\t{}\n",
    "no header, commas": '1,"{}"\n2,"{}"\n',
    "trailing delimiters": "audio_files,captions\n1.wav,{},,\n2.wav,{},\n",
    "JSON Lines": '{{"audio": "1.wav", "text": "{}"}}\n\n{{"file_name": "wavs/2.wav", "transcription": "{}"}}\n',
    "JSON list": '[{{"id": 1, "text": "{}"}},\n {{"audio": {{"path": "wavs/2.wav"}}, "sentence": "{}"}}]',
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "crlf"])
def test_layouts(read, layout, encoding):
    table = LAYOUTS[layout].format(FIRST, "Zoë slept.")
    name = "metadata.json" if layout == "JSON list" else "metadata.csv"
    if encoding == "crlf":
        table, encoding = table.replace("\n", "\r\n"), "utf-8"
    assert read(table.encode(encoding), name) == [FIRST, "Zoë slept."]


@pytest.mark.parametrize("ending", [".flac", ".WAV", ".ogg", ".mp3"])
def test_names_without_ending_find_any_recording(folder, read, ending):
    (folder / "wavs" / "1.wav").rename(folder / "wavs" / f"1{ending}")
    assert read(f"1|{FIRST}\nwavs/2|{SECOND}\n", "metadata.csv") == [FIRST, SECOND]


def test_line_break_in_a_quoted_caption_is_a_space(read):
    table = f'audio_files,captions\nwavs/1.wav,"The dog slept\nnear the table."\nwavs/2.wav,{SECOND}\n'
    assert read(table, "nl.csv") == [FIRST, SECOND]
    assert read(table.replace("\n", "\r\n"), "nl.csv") == [FIRST, SECOND]
    assert read(table.replace("csv,", "csv|").replace(",", "|"), "nl.csv") == [FIRST, SECOND]


CAPTIONS = [
    *("=1+2 is three.", "#5 slept.", "- Yes.", "@home", '"Come in," she said.', 'She said "no".', '"', '""', "A", "x"),
    *("one\u2028two\x85three\x0bfour\x1cfive", "+1", "'tis", "NA", "null", '5" nail', "Open notes.txt", "wavs"),
    *("1.wav said", "long " * 30_000),
]


@pytest.mark.parametrize("caption", CAPTIONS, ids=lambda caption: ascii(caption)[:20])
def test_captions_of_any_first_character_and_length(read, caption):
    expected = [" ".join(caption.split()), SECOND]
    doubled = caption.replace('"', '""')
    assert read(f'file_name,text\n1.wav,"{doubled}"\n2.wav,{SECOND}\n') == expected
    if caption != '""':
        assert read(f"file_name|text\n1.wav|{caption}\n2.wav|{SECOND}\n") == expected
        assert read(f"1|{caption}\n2|{SECOND}\n", "metadata.csv") == expected
    line = json.dumps(dict(audio="1.wav", text=caption), ensure_ascii=False)
    assert read(f'{line}\n{{"audio": "2.wav", "text": "{SECOND}"}}\n', "train.jsonl") == expected


def test_speakers_of_three_columns(folder):
    for table, speakers in {
        "1|anna|Good morning.\n2|ben|Good evening.\n": ["anna", "ben"],
        "1|7|Good morning.\n2|7|Good evening.\n": ["7", "7"],
        "1|NASA|N A S A\n2|Hello|Hello there\n": ["", ""],
        "1|Dr. X slept.|Doctor X slept.\n2|Yes.|Yes.\n": ["", ""],
    }.items():
        (folder / "metadata.csv").write_text(table)
        assert [example.speaker for example in read_examples(folder)[0]] == speakers


BAD_ROWS = {
    'wavs/1.wav,"The dog slept.': "isn't closed",
    "wavs/1.wav": "expected 2 columns, found 1",
    "wavs/1.wav,Yes, I do": 'expected 2 columns, found 3; put quotes " around',
    "wavs/1.wav,a\0b": "NUL",
    ",Yes.": "there is no audio",
    "wavs/1.wav,": "there is no text",
    "wavs/1.wav,missing.txt": "there is no file missing.txt",
    "x" * 300 + ".wav,Yes.": "no file can have this name",
}


@pytest.mark.parametrize("row", BAD_ROWS, ids=lambda row: ascii(row)[:20])
def test_bad_rows_fail_alone(folder, row):
    (folder / "train.csv").write_text(f"file_name,text\n{row}\nwavs/2.wav,{SECOND}\n")
    examples, problems = read_examples(folder / "train.csv")
    assert [example.text for example in examples] == [SECOND]
    assert [problem.where for problem in problems] == ["train.csv:2"] and BAD_ROWS[row] in problems[0].what


BAD_OBJECTS = {
    "[1]": "isn't a JSON object",
    '{"audio": "1.wav"': "isn't JSON",
    "[" * 9999: "nested too deeply",
    '{"audio": "1.wav", "audio": "2.wav", "text": "Yes."}': "'audio' is there twice",
    '{"audio": "1.wav", "text": 5}': "the text is '5', not a string",
    '{"audio": "1.wav", "text": "Yes.", "start": 0, "duration": "abc"}': "duration is 'abc'; give seconds",
    '{"audio": "1.wav", "text": "Yes.", "start": NaN}': "start is 'nan'",
    '{"audio": "1.wav", "text": "Yes.", "start": -1}': "start is '-1'",
    '{"audio": "1.wav", "text": "Yes.", "end": true}': "end is 'True'",
    '{"audio": "1.wav", "text": "Yes.", "start": 1%s}' % ("0" * 400): "give seconds",
    '{"audio": "1.wav", "text": "Yes.", "words": [[0]]}': "list of [start, end]",
    '{"audio": "1.wav", "text": "Yes.", "words": [[0, NaN]]}': "list of [start, end]",
    '{"audio": "a\\u0000b", "text": "Yes."}': "no file can have this name",
}


@pytest.mark.parametrize("row", BAD_OBJECTS, ids=lambda row: row[-30:])
def test_bad_objects_fail_alone(folder, row):
    (folder / "train.jsonl").write_text(f'{row}\n{{"audio": "2.wav", "text": "{SECOND}"}}\n')
    examples, problems = read_examples(folder / "train.jsonl")
    assert [example.text for example in examples] == [SECOND]
    assert [problem.where for problem in problems] == ["train.jsonl:1"] and BAD_OBJECTS[row] in problems[0].what


BAD_TABLES = {
    "name;age\n": "first line should be",
    "": "first line should be",
    "\n\n": "first line should be",
    "file_name,speaker\n1.wav,anna\n": "first line should be",
    "path,text,text\n1.wav,Yes.,No.\n": "column 'text' 2 times",
    "audio_files|captions\n": "no recordings",
    "audio_files|captions\n1.wav|Café\n".encode("latin-1"): "line 2 isn't UTF-8: byte 0xE9 is 'é' in Latin-1",
    b"RIFF\0\0\0\0WAVEfmt \0\0\0\0": "isn't a text file",
}


@pytest.mark.parametrize("table", BAD_TABLES, ids=lambda table: ascii(table)[:20])
def test_tables_that_cannot_be_read(folder, table):
    (folder / "x.csv").write_bytes(table if isinstance(table, bytes) else table.encode())
    with pytest.raises(OptionError, match=BAD_TABLES[table]):
        read_examples(folder / "x.csv")


@pytest.mark.parametrize("name", ["nothing", "~nobody/x", "x" * 300, "a\0b", "", "\udcff"])
def test_sources_that_do_not_exist(tmp_path, name):
    with pytest.raises(OptionError, match="there is no"):
        read_examples(tmp_path / "none" / name if name == "" else name)


def test_empty_folder_and_missing_span(tmp_path):
    with pytest.raises(OptionError, match="no recordings"):
        read_examples(tmp_path)
    (tmp_path / "a.txt").write_text("Nobody said this.")
    with pytest.raises(OptionError, match="no recordings"):
        read_examples(tmp_path)
    with pytest.raises(AudioError, match="no such file"):
        load_span(tmp_path / "x.wav", 1.)


def test_tables_of_a_folder(folder, samples):
    table = f"audio_files,captions\nwavs/1.wav,{FIRST}\n"
    (folder / "mine.csv").write_text(table)
    assert texts(folder) == [FIRST]
    (folder / "other.tsv").write_text(table)
    with pytest.raises(OptionError, match="several tables in .*: mine.csv, other.tsv; give one of them"):
        read_examples(folder)
    (folder / "train.csv").write_text(table.replace(FIRST, SECOND))
    assert texts(folder) == [SECOND]
    (folder / "wavs" / "2.lab").write_text(SAID)
    assert [example.text for example in read_examples(folder)[0]] == [SAID]
    (folder / "metadata.csv").write_text(table)
    assert texts(folder) == [FIRST]


def test_one_bad_text_in_a_folder_is_a_problem_of_its_recording(folder):
    wavs = folder / "wavs"
    (wavs / "1.txt").write_bytes("Café".encode("latin-1"))
    (wavs / "2.txt").write_bytes(f"{SECOND}\r\n".encode("utf-16"))
    (wavs / "._2.wav").write_bytes(b"\0")
    (wavs / "silent.txt").write_text("Nobody said this.")
    (wavs / "mute.wav").touch()
    examples, problems = read_examples(wavs)
    assert [example.text for example in examples] == [SECOND]
    found = {problem.where: (problem.fatal, problem.what) for problem in problems}
    assert found.keys() == {"1.wav", "mute.wav", "wavs"}
    assert found["1.wav"][0] and "isn't UTF-8" in found["1.wav"][1]
    assert found["mute.wav"][0] and "there is no mute.txt" in found["mute.wav"][1]
    assert not found["wavs"][0] and found["wavs"][1].endswith("silent.txt")


def test_unused_recordings_are_named(folder, samples):
    for name in ("wavs/3.wav", "wavs/4.flac", "5.wav", "old/6.wav", "wavs/.hidden.wav"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(folder / "wavs" / "1.wav", folder / name)
    (folder / "train.csv").write_text(f"file_name,text\n1.wav,{FIRST}\n2.wav,\nwavs/9.wav,No.\n")
    (folder / "val.csv").write_text(f"file_name,text\n{folder}/wavs/3.wav,{FIRST}\n")
    train, val = read_dataset(folder / "train.csv"), read_dataset(folder / "val.csv")
    assert [str(p) for p in find_unused([train, val])] == [
        "train.csv: 2 recordings that no row names: 5.wav, wavs/4.flac"
    ]
    whole = read_dataset(folder)
    (problem,) = find_unused([whole])
    assert "4 recordings" in problem.what and "old/6.wav" in problem.what and not problem.fatal
    for n in range(20):
        shutil.copy(folder / "wavs" / "1.wav", folder / f"more-{n:02}.wav")
    (problem,) = find_unused([whole])
    assert "24 recordings" in problem.what and problem.what.endswith("more-03.wav, …")


@pytest.mark.parametrize("value", ["abc", [1], {}, True, -1, "1e999", float("nan")])
def test_times_that_are_none(folder, value):
    (folder / "a.jsonl").write_text(json.dumps(dict(audio="1", text=FIRST, duration=value)) + "\n")
    (problem,) = read_examples(folder / "a.jsonl")[1]
    assert problem.fatal and str(problem) == f"a.jsonl:1: duration is '{value}'; give seconds"


@pytest.mark.parametrize("field", ["text", "speaker", "words", "duration", "audio"])
@pytest.mark.parametrize("depth", [40, 990, 100_000])
def test_deep_json_is_one_problem(folder, field, depth):
    row = '{"audio": "1", "text": "a", "%s": %s}' % (field, "[" * depth + "]" * depth)
    row = row.replace(f'"{field}": "', '"other": "')
    (folder / "a.jsonl").write_text(row + "\n")
    assert [str(p) for p in read_examples(folder / "a.jsonl")[1]] == ["a.jsonl:1: its JSON is nested too deeply"]


@pytest.mark.parametrize("delimiter", [",", ";"])
def test_an_unclosed_quote_before_a_row_without_ending(folder, delimiter):
    "The names 1 and 2 are recordings, so the second line isn't a part of the first caption."
    table = 'audio_files,captions\n1,"The dog slept.\n2,The cat ran."\n'.replace(",", delimiter)
    (folder / "a.csv").write_text(table)
    examples, problems = read_examples(folder / "a.csv")
    assert [example.text for example in examples] == ['The cat ran."']
    assert len(problems) == 1 and "the quote \" that begins a cell isn't closed" in str(problems[0])


def test_long_captions(folder):
    long = "word " * 60_000
    (folder / "a.csv").write_text(f'audio_files,captions\n1,"{long}"\n2,{long}\n')
    assert texts(folder / "a.csv") == [long.strip()] * 2
