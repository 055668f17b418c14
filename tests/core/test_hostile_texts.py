"Text files that have no end, are no files, or say what no text does: each ends in one line."
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from metavoice.core.errors import MetaVoiceError
from metavoice.core.files import MAX_TEXT_BYTES
from metavoice.core.settings import read_config
from metavoice.jobs.batch import read_batch_rows
from metavoice.measure.processes import subprocess_env
from metavoice.measure.recordings import read_texts
from metavoice.text.spoken import read_lexicon
from metavoice.train.data import read_dataset

READERS = (read_dataset, read_batch_rows, read_texts, read_lexicon, read_config)
HEAD = "audio_files|captions\n"


def sparse(path, begin=""):
    path.write_text(begin)
    os.truncate(path, MAX_TEXT_BYTES + 1)
    return path


@pytest.mark.parametrize("read", READERS, ids=lambda f: f.__name__)
def test_files_without_an_end(tmp_path, read):
    suffix = ".json" if read is read_config else ".csv"
    table = sparse(tmp_path / f"a{suffix}", HEAD)
    (tmp_path / f"link{suffix}").symlink_to("/dev/zero")
    (tmp_path / f"loop{suffix}").symlink_to(f"loop{suffix}")
    (tmp_path / f"folder{suffix}").mkdir()
    for path in (table, *(tmp_path / f"{name}{suffix}" for name in ("link", "loop", "folder"))):
        with pytest.raises(MetaVoiceError) as error:
            read(path)
        assert str(error.value).isprintable() and len(str(error.value)) < 500


def test_pipes_of_training_data(tmp_path):
    "A pipe would be read once, and waits for its writer; so would one that a folder or a table brings along."
    soundfile.write(tmp_path / "a.wav", np.zeros(16000), 16000)
    for name in ("t.csv", "a.txt", "z.txt"):
        os.mkfifo(tmp_path / name)
    with pytest.raises(MetaVoiceError, match="it is a pipe or a device, not a file"):
        read_dataset(tmp_path / "t.csv")
    assert "pipe or a device" in str(read_dataset(tmp_path).problems[0])
    (tmp_path / "u.csv").write_text(f"{HEAD}a.wav|z.txt\na.wav|Hello.\n")
    data = read_dataset(tmp_path / "u.csv")
    assert len(data.examples) == 1 and "z.txt" in str(data.problems[0])


def test_a_transcript_is_not_a_book(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(16000), 16000)
    (tmp_path / "a.txt").write_text("hello " * 200_000)
    assert "it has more than 1,048,576 bytes" in str(read_dataset(tmp_path).problems[0])


@pytest.mark.parametrize("row", [
    dict(audio_files="\ud800.wav", captions="x"), dict(audio_files="a\0b", captions="x"),
    dict(audio_files="a.wav", captions="\ud800.txt"), dict(audio_files=["a"], captions={}), [1], None, 5,
])  # fmt: skip
def test_rows_that_no_file_can_have(tmp_path, row):
    (tmp_path / "t.jsonl").write_text(json.dumps(row))
    (problem,) = read_dataset(tmp_path / "t.jsonl").problems
    assert str(problem).isprintable()


@pytest.mark.parametrize("text", [
    '{"start": ' + "9" * 10**6 + "}", '{"start": 1e999999}', "[" * 10**6, '{"a": 1, "a": 2}', '{"a": ' + "[" * 10**6,
])  # fmt: skip
def test_json_of_rows(tmp_path, text):
    (tmp_path / "t.jsonl").write_text(text)
    data = read_dataset(tmp_path / "t.jsonl")
    assert data.problems and not data.examples and all(len(str(p)) < 300 for p in data.problems)


def test_yaml_that_grows(tmp_path):
    "A billion laughs: a message shows a few."
    from metavoice.train.settings import FinetuneConfig

    lines = ["a0: &a0 [x, x]"] + [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 60)]
    (tmp_path / "c.yaml").write_text("\n".join(lines) + "\nepochs: *a59\n")
    found = read_config(tmp_path / "c.yaml")
    with pytest.raises(MetaVoiceError, match="epochs is") as error:
        FinetuneConfig(epochs=found["epochs"])
    assert len(str(error.value)) < 300


def test_an_endless_text_on_standard_input():
    code = (
        "import resource, sys\nfrom metavoice.core import files\n"
        "from metavoice.cli import common\ncommon.MAX_TEXT_BYTES = 1 << 20\n"
        "try: common.read_text_argument('-')\nexcept Exception as e: print(type(e).__name__, e)\n"
    )
    with open("/dev/zero", "rb") as zeros:
        run = subprocess.run(
            [sys.executable, "-c", code], stdin=zeros, capture_output=True, text=True, env=subprocess_env(), timeout=60
        )
    assert run.stdout.startswith("TextError can't read the text from standard input: it has more than"), run
    assert Path("/dev/zero").exists()
