"The parser, its errors, and the command as a process."
import argparse
import dataclasses
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
import soundfile

import metavoice
from metavoice.cli.commands import make_parser
from metavoice.generate.options import SpeechOptions
from metavoice.serve.config import ServerConfig
from metavoice.train.settings import FinetuneConfig

ROOT = Path(__file__).parents[2]
QUICK = ["--vocoder", "codec", "--no-denoise", "--takes", "1"]
SHORT = "The dog slept."
LONG = "The old man walked to the river. "*200


def test_help_and_version(run):
    assert run("--version") == (0, f"metavoice {metavoice.__version__}\n", "")
    commands = "synthesise batch voices info finetune merge push pretrain evaluate serve benchmark random ui".split()
    for argv in ([], ["--help"], *([command, "--help"] for command in commands)):
        code, out, err = run(*argv)
        assert (code, err) == (0, "") and "usage: metavoice" in out
    assert "examples:" in run("--help")[1]


def subcommands(parser):
    "Yield the names and the parsers of a parser's commands, and of theirs."
    for name, command in parser._subparsers._group_actions[0].choices.items() if parser._subparsers else ():
        yield name, command
        yield from ((f"{name} {action}", inner) for action, inner in subcommands(command))


def test_every_option_has_a_help_text():
    assert {"voices list", "voices add", "voices blend", "voices remove"} <= dict(subcommands(make_parser())).keys()
    for name, parser in subcommands(make_parser()):
        assert parser.description and parser.description.endswith("."), name
        missing = [action.dest for action in parser._actions if not action.help]
        assert not missing, (name, missing)


def test_help_and_wrong_options_need_no_torch(command):
    code = ("import sys; from metavoice.cli import main\n"
            "for argv in (['--help'], ['synthesise', '--help'], ['batch', '--help'], ['evaluate', '--help'],\n"
            "             ['voices', 'add', '--help'],\n"
            "             ['serve', '--help'], ['finetune', '--help'], ['ui', '--help']): assert main(argv) == 0\n"
            "assert main(['synthesise', 'a', '--top-p', '2']) == 2\n"
            "assert 'torch' not in sys.modules")
    environment = os.environ | dict(PYTHONPATH=str(ROOT))
    done = subprocess.run([command[0], "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("argv,words", [
    (["sing"], ["'sing'", "synthesise"]),
    (["synthesise"], ["required: TEXT"]),
    (["synthesise", "a", "--speed", "2.5"], ["--speed is '2.5'", "from 0.5 to 2"]),
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
    (["info", "--voice=x"], ["--voice=x"]),
])
def test_wrong_options(refused, argv, words):
    refused(*argv, words=[*words, "--help"])


@pytest.mark.parametrize("argv, words", [
    (["sythesise", "a"], "(did you mean synthesise?); see metavoice --help"),
    (["Finetune"], "(did you mean finetune?); see metavoice --help"),
    (["synthesise", "a", "--sede", "3"], "arguments: --sede 3 (did you mean --seed?); see metavoice synthesise --help"),
    (["synthesise", "a", "--temp=1"], "(did you mean --temperature?); see metavoice synthesise --help"),
    (["synthesize", "a", "--ouput", "b.wav"], "(did you mean --output?); see metavoice synthesise --help"),
    (["synthesise", "a", "--dtype", "float23"], "(did you mean float32?); see metavoice synthesise --help"),
    (["batch", "a.csv", "--out", "b", "--quite"], "(did you mean --quiet?); see metavoice batch --help"),
    (["pretrain", "--stage", "frist"], "(did you mean first?); see metavoice pretrain --help"),
    (["benchmark", "--prat", "mbd"], "(did you mean --part?); see metavoice benchmark --help"),
    (["finetune", "--learnign-rate", "1"], "(did you mean --learning-rate?); see metavoice finetune --help"),
    (["voices", "remvoe", "x"], "(did you mean remove?); see metavoice voices --help"),
    (["voices", "add", "x", "y", "--consnet", "z"], "(did you mean --consent?); see metavoice voices add --help"),
    (["serve", "--prot", "1"], "(did you mean --port?); see metavoice serve --help"),
])
def test_did_you_mean(refused, argv, words):
    refused(*argv, words=[words])


def test_no_suggestion_without_likeness(run):
    for argv in (["xyzzy"], ["info", "--xyzzy"], ["info", "xyzzy"], ["info", "--" + "z" * 100_000], ["info", "--"]):
        code, out, err = run(*argv)
        assert argv == ["info", "--"] or (code, err.count("\n")) == (2, 1) and "did you mean" not in err


def options():
    "Yield each command with its parser and its actions, without --help and --version."
    parser = make_parser()
    for name, command in [*subcommands(parser), ("metavoice", parser)]:
        for action in command._actions:
            if not isinstance(action, (argparse._HelpAction, argparse._VersionAction, argparse._SubParsersAction)):
                yield name, command, action


def test_help_shows_every_default():
    seen = 0
    for name, command, action in options():
        text = command._get_formatter()._expand_help(action)
        if action.required:
            assert "(default" not in text, (name, action.dest)
            continue
        seen += 1
        assert len(re.findall(r"\(default[:)]", text)) == (1 if action.dest != "output" else 2), (name, text)
        if isinstance(action, argparse._StoreTrueAction) and action.dest != "public":
            assert text.endswith("(default: off)"), (name, text)
        if action.default not in (None, False, True, argparse.SUPPRESS) and not isinstance(action.default, list):
            assert str(action.default) in text, (name, text)
    assert seen > 200


def test_shown_defaults_are_those_of_the_settings():
    for cls, name in ((FinetuneConfig, "finetune"), (ServerConfig, "serve"), (SpeechOptions, "synthesise")):
        fields = {field.name: field.default for field in dataclasses.fields(cls)}
        actions = {action.dest: (command, action) for found, command, action in options() if found == name}
        for field in fields.keys() & actions.keys():
            command, action = actions[field]
            text, default = command._get_formatter()._expand_help(action), fields[field]
            if isinstance(default, bool) and action.nargs == 0 and field != "spoken":
                assert text.endswith(f"(default: {'on' if default else 'off'})"), (name, text)
            elif isinstance(default, (int, float)):
                assert text.endswith(f"(default: {default})"), (name, text)


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
