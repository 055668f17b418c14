"The parser, its errors, and the command as a process."
import os
import signal
import subprocess
from pathlib import Path

import pytest
import soundfile

import metavoice
from metavoice.cli.commands import make_parser

ROOT = Path(__file__).parents[2]
QUICK = ["--vocoder", "codec", "--no-denoise", "--takes", "1"]
SHORT = "The dog slept."
LONG = "The old man walked to the river. "*200


def test_help_and_version(run):
    assert run("--version") == (0, f"metavoice {metavoice.__version__}\n", "")
    commands = "synthesise batch info finetune merge push pretrain evaluate serve benchmark random ui".split()
    for argv in ([], ["--help"], *([command, "--help"] for command in commands)):
        code, out, err = run(*argv)
        assert (code, err) == (0, "") and "usage: metavoice" in out
    assert "examples:" in run("--help")[1]


def test_every_option_has_a_help_text():
    for name, parser in make_parser()._subparsers._group_actions[0].choices.items():
        assert parser.description and parser.description.endswith("."), name
        missing = [action.dest for action in parser._actions if not action.help]
        assert not missing, (name, missing)


def test_help_and_wrong_options_need_no_torch(command):
    code = ("import sys; from metavoice.cli import main\n"
            "for argv in (['--help'], ['synthesise', '--help'], ['batch', '--help'], ['evaluate', '--help'],\n"
            "             ['serve', '--help'], ['finetune', '--help'], ['ui', '--help']): assert main(argv) == 0\n"
            "assert main(['synthesise', 'a', '--top-p', '2']) == 2\n"
            "assert 'torch' not in sys.modules")
    environment = os.environ | dict(PYTHONPATH=str(ROOT))
    done = subprocess.run([command[0], "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("argv,words", [
    (["sing"], ["'sing'", "synthesise"]),
    (["synthesise"], ["required: TEXT"]),
    (["synthesise", "a", "--speed", "2"], ["--speed 2"]),
    (["synthesise", "a", "--seed", "x"], ["--seed is 'x'", "use a whole number from 0"]),
    (["synthesise", "a", "--seed", "-1"], ["--seed"]),
    (["synthesise", "a", "--top-p", "2"], ["--top-p is '2'; use a number above 0 and at most 1"]),
    (["synthesise", "a", "--top-k", "0"], ["--top-k is '0'; use a whole number of 1 or more"]),
    (["synthesise", "a", "--guidance", "nan"], ["from 1 to 20"]),
    (["synthesise", "a", "--prompt-guidance", "0.5"], ["from 1 to 20"]),
    (["synthesise", "a", "--temperature", "hot"], ["'hot'", "from 0 to 10"]),
    (["synthesise", "a", "--vocoder", "organ"], ["'organ'", "mbd"]),
    (["synthesise", "a", "--dtype", "int8"], ["'int8'"]),
    (["synthesise", "a", "--temp", "1"], ["--temp"]),
    (["info", "--voice", "x"], ["--voice x"]),
])
def test_wrong_options(refused, argv, words):
    refused(*argv, words=[*words, "--help"])


# the process


def tree(folder):
    "Return the paths below a folder."
    return {str(p.relative_to(folder)) for p in folder.rglob("*")}


def test_nothing_is_written_but_the_output(command, clean_environment, tmp_path):
    installed, before = tree(ROOT/"metavoice"), tree(tmp_path)
    argv = [*command, "synthesise", SHORT, "-o", "a.flac", "--seed", "1"]
    done = subprocess.run(argv, env=clean_environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert {p for p in tree(tmp_path) - before if not p.startswith("cache")} == {"cwd/a.flac"}
    assert tree(ROOT/"metavoice") == installed
    assert done.stdout.count(b"\n") == 2 and b"\n" not in done.stderr and b"first stage" in done.stderr, done.stderr


@pytest.mark.slow
def test_a_closed_standard_output(command, clean_environment):
    reading, writing = os.pipe()
    os.close(reading)
    argv = [*command, "synthesise", SHORT, *QUICK]
    done = subprocess.run(argv, env=clean_environment, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert done.returncode == 0 and "Broken" not in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert soundfile.info("speech.wav").frames


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for processes")
def test_ctrl_c_leaves_nothing(command, clean_environment, tmp_path):
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process = subprocess.Popen([*command, "synthesise", LONG, "-o", "a.wav"], env=clean_environment, **pipes)
    seen = b""
    while b"first stage" not in seen and process.poll() is None:
        seen += os.read(process.stderr.fileno(), 1000)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 130 and out == b"", err
    assert err.split(b"\r")[-1].strip() == b"metavoice: interrupted; nothing was written" and b"Traceback" not in err
    assert not os.listdir() and not os.listdir(tmp_path/"tmp")
