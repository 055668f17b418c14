"Fixtures of the command-line tests: every test runs in an empty folder."
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

import metavoice
from metavoice.cli import main

ROOT, NANO = Path(__file__).parents[2], Path(metavoice.__file__).parent/"nano"


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    "Start each test in an empty folder."
    (tmp_path/"cwd").mkdir()
    monkeypatch.chdir(tmp_path/"cwd")


@pytest.fixture
def run(capsys):
    "Return a function that runs a command and returns its exit code, standard output and standard error."
    return lambda *argv: (main([str(a) for a in argv]), *capsys.readouterr())


@pytest.fixture
def refused(run):
    "Return a function that checks what bad input gives: code 2, one line with the words, and nothing written."

    def check(*argv, words=()):
        before = sorted(Path.cwd().rglob("*"))
        code, out, err = run(*argv)
        assert (code, out, err.count("\n")) == (2, "", 1), err
        assert err.startswith("metavoice: ") and err.endswith("\n")
        for word in words:
            assert word in err, err
        assert sorted(Path.cwd().rglob("*")) == before

    return check


@pytest.fixture
def make_nano():
    "Return a function that makes a copy of nano from links, without some files or with changes of its manifest."

    def make(folder, without=(), **changes):
        for path in [p for p in NANO.rglob("*") if p.is_file()]:
            target = folder/path.relative_to(NANO)
            target.parent.mkdir(parents=True, exist_ok=True)
            if path.name not in without:
                target.symlink_to(path)
        manifest = json.loads((NANO/"bundle.json").read_text(encoding="utf-8")) | changes
        (folder/"bundle.json").unlink()
        (folder/"bundle.json").write_text(json.dumps(manifest), encoding="utf-8")
        return folder

    return make


@pytest.fixture(scope="session")
def tone():
    "Return a function that makes a sine of some seconds at 16 kHz."
    return lambda seconds: .2*np.sin(np.arange(int(seconds*16000))/20).astype("float32")


@pytest.fixture(scope="session")
def command():
    "Return the beginning of a command line that runs metavoice in another process."
    return [sys.executable, "-m", "metavoice.cli"]


@pytest.fixture
def clean_environment(tmp_path):
    "Return the environment of a process whose home, cache and temporary folders are empty and in `tmp_path`."
    caches = ("XDG_", "HF_", "TORCH", "METAVOICE_CACHE")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(caches)}
    for name, folder in dict(HOME="home", METAVOICE_CACHE="cache", TMPDIR="tmp").items():
        (tmp_path/folder).mkdir()
        environment[name] = str(tmp_path/folder)
    return environment | dict(PYTHONDONTWRITEBYTECODE="1", PYTHONPATH=str(ROOT))
