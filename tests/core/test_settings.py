"Settings: what types allow, where values come from, and what is refused in which words."

import argparse
import json
import math
import subprocess
import sys
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytest

from metavoice.core.errors import OptionError
from metavoice.core.settings import (
    NO_FLAG,
    FieldSpec,
    PositiveFloat,
    PositiveInt,
    Proportion,
    Range,
    Settings,
    add_flags,
    check_value,
    field_comments,
    field_specs,
    make_config,
    parse_hint,
    read_config,
    save_config,
)
from metavoice.serve.config import ServerConfig
from metavoice.train.settings import FinetuneConfig

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Example(Settings):
    "Settings of each kind."

    name: str = ''  # what it is called
    steps: PositiveInt | None = None  # how many, 100 % if None
    # the peak # of the rate,
    # written on two lines
    rate: PositiveFloat = 1e-3
    share: Proportion = 0.5  # of something
    method: Literal['full', 'lora'] = 'full'  # what learns
    skip: bool = False  # leave out
    texts: list = field(default_factory=list)  # sentences
    hosts: tuple = ()  # names
    secret: Annotated[str, NO_FLAG] = 'key'  # in no command line
    anything: Any = None  # not checked


@dataclass(frozen=True)
class Longer(Example):
    "Settings that add one."

    more: int = 0  # one more


@pytest.mark.parametrize(
    "bounds, text, inside, outside",
    [
        (Range(1), "of 1 or more", (1, 2.5, 10**400), (0, math.inf, math.nan)),
        (Range(0, open="low"), "above 0", (1e-9, 5), (0, -1)),
        (Range(0, 1, "high"), "from 0 to below 1", (0, 0.5), (1, -0.1)),
        (Range(0, 1, "low"), "above 0 and at most 1", (0.1, 1), (0, 1.1)),
        (Range(0, 9), "from 0 to 9", (0, 9), (-1, 9.1, -math.inf)),
    ],
)
def test_range(bounds, text, inside, outside):
    assert str(bounds) == text
    assert all(bounds.holds(n) for n in inside) and not any(bounds.holds(n) for n in outside)


def test_equal_numbers_of_another_class_are_another_type():
    @dataclass(frozen=True)
    class Other:
        low: float
        high: float
        open: str

    assert parse_hint(Annotated[int, Other(0, 9, '')]).within is None
    assert parse_hint(Annotated[int, Range(0, 9)]).within == Range(0, 9)


def test_specs_of_fields():
    specs = field_specs(Example)
    assert specs['steps'] == FieldSpec(int, True, Range(1), (), True)
    assert specs['method'] == FieldSpec(str, False, None, ('full', 'lora'), True)
    assert not specs['secret'].flag and specs['anything'].type is Any and list(field_specs(Longer))[-1] == 'more'
    described = [specs[name].describe() for name in ('name', 'steps', 'share', 'method', 'skip', 'texts', 'hosts')]
    assert described == [
        "a string",
        "a whole number of 1 or more",
        "a number from 0 to below 1",
        "full or lora",
        "yes or no",
        "a list of strings",
        "a list of words",
    ]
    assert parse_hint(Literal['one']).describe() == 'one'


@pytest.mark.parametrize(
    "name, given, value",
    [
        ("rate", "3e-5", 3e-5),
        ("rate", 2, 2.0),
        ("rate", np.float64(0.5), 0.5),
        ("steps", 5.0, 5),
        ("steps", np.int64(5), 5),
        ("steps", "5", 5),
        ("steps", None, None),
        ("skip", "Yes", True),
        ("skip", "off", False),
        ("name", Path("a/b"), "a/b"),
        ("hosts", "a.org, b.org c.org", ("a.org", "b.org", "c.org")),
        ("hosts", ["a"], ("a",)),
        ("hosts", "", ()),
        ("texts", "Good morning, John.", ["Good morning, John."]),
        ("texts", ("a",), ["a"]),
        ("anything", {1: 2}, {1: 2}),
    ],
)
def test_values_are_converted(name, given, value):
    found = check_value(name, given, field_specs(Example)[name])
    assert found == value and type(found) is type(value)
    assert getattr(Example(**{name: given}), name) == value


@pytest.mark.parametrize(
    "name, given, allowed",
    [
        ("steps", True, "a whole number of 1 or more"),
        ("steps", 1.5, "a whole number"),
        ("steps", math.inf, "a whole number"),
        ("steps", math.nan, "a whole number"),
        ("steps", 0, "a whole number of 1 or more"),
        ("rate", "fast", "a number above 0"),
        ("rate", math.inf, "a number above 0"),
        ("rate", 10**400, "a number above 0"),
        ("rate", None, "a number above 0"),
        ("share", 1, "a number from 0 to below 1"),
        ("skip", "perhaps", "yes or no"),
        ("skip", 1, "yes or no"),
        ("method", "last", "full or lora"),
        ("method", 3, "full or lora"),
        ("name", None, "a string"),
        ("texts", 3, "a list of"),
    ],
)
def test_values_are_refused_with_what_is_allowed(name, given, allowed):
    with pytest.raises(OptionError) as e:
        Example(**{name: given})
    assert str(e.value).startswith(f"{name} is {given!r}; use {allowed}")


def test_copies_are_checked_too():
    assert replace(Example(), steps='7').steps == 7
    with pytest.raises(OptionError, match="steps is 0"):
        replace(Example(), steps=0)


@pytest.mark.parametrize(
    "suffix, text",
    [
        (".json", '{"name": "a", "rate": 0.5, "texts": ["x"]}'),
        (".yaml", "name: a\nrate: 5e-1\ntexts:\n- x\n"),
        (".yml", "{name: a, rate: 0.5, texts: [x]}"),
    ],
)
def test_files_of_settings(tmp_path, suffix, text):
    path = tmp_path / f"a{suffix}"
    path.write_text(text)
    config = make_config(Example, path)
    assert config == Example(name='a', rate=0.5, texts=['x'])
    save_config(config, tmp_path / "b.json")
    assert make_config(Example, tmp_path / "b.json") == config


def test_precedence_of_sources(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(dict(name="file", rate=1, steps=1, share=0.1)))
    environ = dict(METAVOICE_NAME="variable", METAVOICE_RATE="2", METAVOICE_STEPS="2", METAVOICE_METHOD="", OTHER="x")
    config = make_config(
        Example, path, environ=environ, flags=dict(name="flag", rate=None, steps=3, verbose=True), name="argument"
    )
    assert (config.name, config.rate, config.steps, config.share, config.method) == ("argument", 2, 3, 0.1, "full")


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("a.json", '{"nmae": 1}', "unknown setting 'nmae' in .*a.json; there are name, steps"),
        ("a.json", "[1]", "names and values, not a list"),
        ("a.json", "{", "can't read .*a.json: Expecting"),
        ("a.yaml", "a: [", "can't read .*a.yaml: while parsing"),
        ("a.yaml", "just words", "names and values, not a str"),
        ("a.toml", "a = 1", "can't read .*a.toml: use .yaml or .json"),
        ("a.json", b"\xff\xfe", "can't read .*a.json"),
        ("a.json", '{"rate": "fast"}', "rate is 'fast'"),
    ],
)
def test_bad_files_are_refused(tmp_path, name, text, message):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(OptionError, match=message) as e:
        make_config(Example, path)
    assert "\n" not in str(e.value)


def test_other_sources_are_refused():
    with pytest.raises(OptionError, match="No such file"):
        read_config("nowhere.json")
    with pytest.raises(OptionError, match="METAVOICE_STEPS is 'x'; use a whole number of 1 or more"):
        make_config(Example, environ=dict(METAVOICE_STEPS="x"))
    with pytest.raises(OptionError, match="--steps is '0'; use a whole number of 1 or more"):
        make_config(Example, flags=dict(steps="0"))
    with pytest.raises(OptionError, match="unknown setting 'stepz'; there are"):
        make_config(Example, stepz=1)


def test_comments_are_the_help_texts():
    comments = field_comments(Longer)
    assert list(comments) == [f.name for f in fields(Longer)] and comments["more"] == "one more"
    assert comments["rate"] == "the peak # of the rate, written on two lines" and comments["hosts"] == "names"


def test_flags_are_made_from_the_fields():
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_flags(parser, Example, omit=("share",))
    text = ' '.join(parser.format_help().split())
    assert "--config FILE" in text and "how many, 100 % if None" in text and "--method full|lora" in text
    assert "written on two lines (default: 0.001)" in text and "--no-skip" in text
    assert "--share" not in text and "--secret" not in text
    args = parser.parse_args(["--steps", "5", "--no-skip", "--hosts", "a", "b", "--texts", "One two.", "--rate", "0"])
    with pytest.raises(OptionError, match="--rate is '0'; use a number above 0"):
        make_config(Example, flags=vars(args))
    config = make_config(Example, flags=vars(args) | dict(rate=None))
    assert config == Example(steps=5, hosts=("a", "b"), texts=["One two."])
    plain = argparse.ArgumentParser()
    add_flags(plain, Example, config_file=False)
    assert "--config" not in plain.format_help()


@pytest.mark.parametrize("cls", [FinetuneConfig, ServerConfig])
def test_each_field_of_the_commands_is_explained(cls):
    assert list(field_comments(cls)) == [f.name for f in fields(cls)]
    parser = argparse.ArgumentParser()
    add_flags(parser, cls)
    assert all(
        f"--{f.name.replace('_', '-')}" in parser.format_help() for f in fields(cls) if field_specs(cls)[f.name].flag
    )


def test_server_keys_from_a_file(tmp_path):
    (tmp_path / "keys").write_text("first-key-of-sixteen\nsecond-key-of-sixteen\n")
    config = make_config(ServerConfig, environ=dict(METAVOICE_API_KEYS_FILE=str(tmp_path / "keys")))
    assert config.api_keys == ("first-key-of-sixteen", "second-key-of-sixteen")


def test_light_modules_import_no_torch():
    script = (
        "import sys, metavoice.core.devices, metavoice.core.files, metavoice.core.settings, metavoice.train.settings\n"
        "import metavoice.serve.config\nassert not {'torch', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)
