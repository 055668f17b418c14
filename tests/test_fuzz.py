"Random texts and mutated audio files through library, command and server; tests/fuzz.py runs more of them."

import os
from importlib.util import find_spec

import fuzz
import pytest
from scribble import Text
from tiny import write_tiny_bundle

from metavoice.generate.tts import TTS
from metavoice.text.tokeniser import Tokeniser

WAYS = fuzz.WAYS if find_spec("fastapi") and find_spec("httpx") else fuzz.WAYS[:2]


@pytest.fixture(scope="module")
def tts(tmp_path_factory):
    return TTS.from_pretrained(write_tiny_bundle(tmp_path_factory.mktemp("tiny") / "tiny"), device="cpu")


def check(texts, files, **options):
    "Fuzz, and check that all went well and that enough was spoken."
    report = fuzz.fuzz(texts, files, ways=WAYS, with_ffmpeg=bool(find_spec("av")), **options)
    assert not report.faults, report.faults[:5]
    for outcome, share in {"library: said": 0.3, "command: spoken": 0.3, "server: 200": 0.3 * (len(WAYS) > 2)}.items():
        assert report.outcomes[outcome] >= share * texts, report.figures()
    return report


def test_some_texts_and_files():
    report = check(60, 15, longest=100)
    assert sum(n for outcome, n in report.outcomes.items() if outcome.startswith("command: file")) == 15


@pytest.mark.slow
def test_more_texts_and_files():
    texts = int(os.environ.get("METAVOICE_FUZZ_TEXTS", 120))  # 500 take five minutes
    check(texts, texts // 5, seed=2)


@pytest.mark.parametrize(
    "text, drop, kind",
    [
        (Text("The garden ☃ 你 window", "words", {}, ["garden", "window"]), "你", "unnamed"),
        (Text("garden 12 window", "figures", {}, ["garden", "window"], True), "twelve", "unsaid"),
        (Text("river garden window", "words", {}, ["river", "garden", "window"]), "garden ", "unsaid"),
    ],
)
def test_losses_are_seen(tts, monkeypatch, text, drop, kind):
    "What is left out without a word is a fault."
    tokeniser = fuzz.HashableTokeniser(tts.bundle.tokeniser)
    assert fuzz.find_problem(text, tts.bundle, tokeniser)[0] is None
    fit = Tokeniser.fit
    monkeypatch.setattr(Tokeniser, "fit", lambda self, text, **options: fit(self, text.replace(drop, ""), **options))
    assert kind in fuzz.find_problem(text, tts.bundle, fuzz.HashableTokeniser(tts.bundle.tokeniser))[0]
