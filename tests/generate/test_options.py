"Options: ranges, the model's own values, and seeds."
import argparse
import json
import subprocess
import sys
from copy import copy
from dataclasses import fields

import pytest

from metavoice.core.errors import OptionError, TextError
from metavoice.core.settings import add_flags, field_comments, make_config
from metavoice.generate.options import (
    PER_TEXT,
    SamplingOptions,
    SpeechOptions,
    check_seed,
    derive_seed,
    diffusion_options,
    sliders,
)
from metavoice.text.spoken import TextOptions

BAD = [
    (dict(guidance=-1), "guidance is -1; use a number from 1 to 20"),
    (dict(guidance="3"), "guidance is '3'; use a number from 1 to 20"),
    (dict(prompt_guidance=.5), "prompt_guidance is 0.5; use a number from 1 to 20"),
    (dict(temperature=-.1), "temperature is -0.1; use a number from 0 to 10"),
    (dict(temperature=float("nan")), "temperature is nan"),
    (dict(top_p=0), "top_p is 0; use a number above 0 and at most 1"),
    (dict(top_p=1.5), "top_p is 1.5"),
    (dict(top_k=0), "top_k is 0; use a whole number of 1 or more"),
    (dict(top_k=2.5), "top_k is 2.5"),
    (dict(top_k=True), "top_k is True"),
]


@pytest.mark.parametrize("bad,message", [*BAD, (dict(max_new_tokens=0), "max_new_tokens is 0; use a whole number")])
def test_sampling_options_out_of_range(bad, message):
    with pytest.raises(OptionError) as e:
        SamplingOptions(**bad)
    assert message in str(e.value)


@pytest.mark.parametrize("bad,message", [
    *BAD, (dict(takes=0), "takes is 0; use a whole number from 1 to 16"), (dict(takes=17), "takes is 17"),
    (dict(takes=True), "takes is True"), (dict(takes=2.5), "takes is 2.5"), (dict(steps=0), "steps is 0"),
    (dict(steps=2.5), "steps is 2.5"), (dict(vocoder="organ"), "vocoder is 'organ'; use mbd or codec"),
    (dict(denoise="yes"), "denoise is 'yes'; use yes or no"), (dict(seed=-1), "seed is -1"),
])
def test_speech_options_out_of_range(bad, message):
    with pytest.raises(OptionError) as e:
        SpeechOptions(**bad)
    assert message in str(e.value)


def test_branches():
    assert [SamplingOptions(guidance=g, prompt_guidance=h).branches for g in (1, 3) for h in (None, 2)] == [1, 2, 2, 3]


def test_the_model_fills_in_what_is_not_given(tts, resolve):
    assert resolve().temperature == tts.bundle.defaults["temperature"]
    assert resolve(guidance=2, temperature=0).guidance == 2
    assert resolve().takes == tts.bundle.defaults["takes"] and resolve(temperature=0).takes == 1
    assert resolve().resolve(tts.bundle) == resolve()
    assert set(resolve().sampling()) == {f.name for f in fields(SamplingOptions)} - {"max_new_tokens"}
    diffusing = copy(tts.bundle)
    diffusing.defaults = tts.bundle.defaults | dict(mbd=dict(steps=4, start=299))
    assert diffusion_options(diffusing) == dict(steps=4, start=299)
    assert diffusion_options(diffusing, 7) == dict(steps=7, start=299)


def test_takes_need_a_listener(tts):
    deaf = copy(tts.bundle)
    parts = {k: v for k, v in tts.bundle.manifest["parts"].items() if k != "listener"}
    deaf.manifest = tts.bundle.manifest | dict(parts=parts)
    with pytest.raises(OptionError, match="has no listener to choose between 2 takes; use takes=1"):
        SpeechOptions(takes=2).resolve(deaf)


@pytest.mark.parametrize("parts, advice", [
    (("codec", "mbd"), "leave them out, or use vocoder='mbd'"), (("codec",), "leave them out")])
def test_steps_need_diffusion(tts, parts, advice):
    bundle = copy(tts.bundle)
    bundle.manifest = tts.bundle.manifest | dict(parts=dict.fromkeys(parts))
    with pytest.raises(OptionError) as e:
        SpeechOptions(vocoder="codec", steps=5, takes=1).resolve(bundle)
    assert str(e.value) == f"steps are for the vocoder mbd, not for codec; {advice}"


def test_text_options(tts, resolve, tmp_path):
    assert resolve().text_options() == TextOptions() and resolve(spoken=False).text_options().spoken is False
    (tmp_path / "names.tsv").write_text("Siobhan\tshiv awn\nNguyen\twin\n", encoding="utf-8")
    from_file, given = resolve(lexicon=tmp_path / "names.tsv"), resolve(lexicon=dict(Nguyen="win", Siobhan="shiv awn"))
    assert from_file == given and hash(from_file) == hash(given) and from_file.text_options().lexicon["Nguyen"] == "win"
    assert from_file.text_options() is given.text_options(), "the lexicon is made ready once"
    foreign = copy(tts.bundle)
    foreign.defaults = tts.bundle.defaults | dict(spoken=False, language="nl")
    assert SpeechOptions().resolve(foreign).text_options() == TextOptions(False, "nl")
    (tmp_path / "bad.tsv").write_text("Siobhan shiv awn\n", encoding="utf-8")
    for bad, error, words in [(dict(language="tlh"), OptionError, "'tlh'"), (dict(lexicon=5), OptionError, "lexicon"),
                              (dict(lexicon="no.tsv"), OptionError, "no.tsv"),
                              (dict(lexicon={1: "a"}), OptionError, "lexicon entry 1"),
                              (dict(lexicon=tmp_path / "bad.tsv"), TextError, "line 1")]:
        with pytest.raises(error, match=words):
            resolve(**bad)
    for bad in (dict(spoken="no"), dict(strict=1), dict(language=7)):
        with pytest.raises(OptionError, match=f"{next(iter(bad))} is"):
            SpeechOptions(**bad)


def test_stage_seeds_differ():
    assert len({derive_seed(s, what) for s in range(-50, 50) for what in ("first", "second", "mbd")}) == 300


def test_seeds_are_whole_numbers():
    assert check_seed(7) == 7 and check_seed(None) != check_seed(None)
    for bad in ("x", .5):
        with pytest.raises(OptionError, match=f"seed is {bad!r}; use a whole number, or None"):
            check_seed(bad)


def test_flags_and_help_texts_come_from_the_fields():
    assert set(field_comments(SpeechOptions)) == {f.name for f in fields(SpeechOptions)}
    parser = argparse.ArgumentParser()
    add_flags(parser, SpeechOptions, config_file=False)
    args = vars(parser.parse_args(["--prompt-guidance", "2", "--top-k", "9", "--no-denoise", "--seed", "3"]))
    made = make_config(SpeechOptions, flags=args)
    assert made.given() == dict(prompt_guidance=2., top_k=9, denoise=False, seed=3)
    with pytest.raises(OptionError, match="--top-p is '2'; use a number above 0 and at most 1"):
        make_config(SpeechOptions, flags=dict(top_p="2"))


def test_sliders_lie_within_the_ranges():
    assert list(sliders()) == ["guidance", "prompt_guidance", "top_p", "temperature", "takes", "speed"]
    for name, slider in sliders().items():
        for value in (slider.low, slider.high):
            SpeechOptions(**{name: int(value) if name == "takes" else value})
    assert set(PER_TEXT) <= {f.name for f in fields(SpeechOptions)}


def test_options_load_no_torch():
    code = "import sys, json, metavoice.generate.options; print(json.dumps('torch' in sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(run.stdout) is False
