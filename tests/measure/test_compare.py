"Peers and the comparison of systems, with systems that play noise."
import json
import os
import shutil
import sys

import pytest
import torch

from metavoice.audio.sound import Audio
from metavoice.cli import main
from metavoice.core.errors import BundleError, MetaVoiceError, OptionError, TextError
from metavoice.generate.options import SpeechOptions
from metavoice.measure.compare import compare_systems, speak_in_turns, system_reference
from metavoice.measure.peers import find_peers, make_peers, model_peers
from metavoice.measure.report import save_evaluation

TEXTS = ["The dog slept.", "Where is the red book?", "My brother left."]


class Noise:
    "A system whose voices are noise of different colours; it has no sound for some texts."

    licence = "CC0"

    def __init__(self, name, voices=("white",), mute=(), calls=None):
        self.name, self.voices, self.mute, self.calls = name, list(voices), mute, [] if calls is None else calls

    def speak(self, text, voice, seed):
        self.calls.append((self.name, text, voice))
        if text in self.mute:
            raise MetaVoiceError("no sound")
        noise = torch.randn(24000, generator=torch.Generator().manual_seed(len(text) + len(voice)))
        yield Audio(.1 * noise[:12000], 24000)
        yield Audio(.1 * noise[12000:], 24000)

    def reference(self, voice):
        return None

    def megabytes(self):
        return None


def length_as_words(audio):
    return " ".join(["the"] * round(audio.duration))


@pytest.fixture(scope="module")
def encoder(tts):
    return tts.bundle.speaker_encoder


def test_systems_and_voices_take_turns():
    calls = []
    systems = [Noise("a", ("x", "y"), calls=calls), Noise("b", calls=calls)]
    found = speak_in_turns(systems, TEXTS)
    assert [name for name, *_ in calls] == ["a", "b"] + ["a", "b", "b", "a", "a", "b"], "first a warm-up of each"
    assert list(found) == [(name, text) for name in "ab" for text in TEXTS]
    assert [voice for voice, *_ in found.values()] == ["x", "y", "x", "white", "white", "white"]
    assert found["a", TEXTS[0]][1] == found["b", TEXTS[0]][1], "one seed for a text"


def test_comparison(encoder, tmp_path):
    kept, seen = [], []
    systems = [Noise("a", ("x", "y")), Noise("b", mute=TEXTS[1:2])]
    found = compare_systems(
        systems, TEXTS, encoder=encoder, recogniser=length_as_words, mos=False, short=["Dog."],
        keep=lambda *clip: kept.append(clip[:3]), on_progress=lambda *progress: seen.append(progress),
    )
    assert seen == [("comparison", n, 16) for n in range(1, 17)]
    assert len(kept) == 7 and kept[0] == ("a", "x", TEXTS[0])
    silent = next(r for r in found.rows if (r.source, r.text) == ("b", TEXTS[1]))
    assert (silent.seconds, silent.errors["length_as_words"], silent.cosine) == (0, 5, 0.)
    summary = found.summary()
    assert summary["a"]["cosine"]["value"] > .3 and summary["a"]["cpu"]["value"] > 0
    assert summary["a"]["short"]["missed"]["length_as_words"]["value"] == 1.
    table = found.table()
    assert table[0].split()[:2] == ["system", "WER"] and [line.split()[0] for line in table] == ["system", "a", "b"]
    assert "CC0" in found.report()[-1] and len(found.plot().axes) == 1
    content = json.loads(save_evaluation(found, tmp_path / "a.json").read_text())
    assert content["about"]["systems"]["b"] == dict(voices=["white"], licence="CC0", megabytes=None)
    assert len(content["rows"]) == 6 and len(content["short"]) == 2 and content["rows"][0]["wall"] > 0


def test_other_errors_are_raised(encoder):
    class Broken(Noise):
        def speak(self, text, voice, seed):
            raise OptionError("wrong")

    with pytest.raises(OptionError, match="wrong"):
        compare_systems([Broken("a")], TEXTS, encoder=encoder, recogniser=None, mos=False)


@pytest.mark.parametrize("bad, error, message", [
    (dict(texts=[]), TextError, "is empty"),
    (dict(recogniser="parrot"), OptionError, "unknown recogniser"),
    (dict(recogniser=None, short=True), OptionError, "need a recogniser"),
])
def test_refused_before_any_work(encoder, bad, error, message):
    calls = []
    with pytest.raises(error, match=message):
        compare_systems([Noise("a", calls=calls)], **dict(texts=TEXTS, encoder=encoder) | bad)
    assert not calls


def test_model_in_three_ways(tts, own, encoder):
    whole, one, streamed = model_peers(tts, [own], SpeechOptions(denoise=False))
    takes = tts.bundle.defaults["takes"]
    assert [p.name for p in (whole, one, streamed)] == [f"nano, {takes} takes", "nano, one take", "nano, streamed"]
    assert len(list(one.speak(TEXTS[1], own, 0))) == 1 < len(list(streamed.speak(TEXTS[1], own, 0)))
    assert one.megabytes() < whole.megabytes() and "Apache-2.0" in whole.licence
    assert system_reference(one, own, encoder) is one.speakers[own], "the recording that was cloned"
    names = [p.name for p in model_peers(tts, [own], SpeechOptions(takes=1))]
    assert names == ["nano, one take", "nano, streamed"]


@pytest.mark.parametrize("names, error, message", [
    ("parrot", OptionError, "unknown peer 'parrot'; use hibari, kokoro, flite"),
    ("kokoro:", OptionError, "unknown peer"),
    ("flite:folder", OptionError, "unknown peer"),
    ("kokoro:no-such-folder", BundleError, "no-such-folder is neither a folder"),
])
def test_unknown_peers(names, error, message):
    with pytest.raises(error, match=message):
        make_peers(names)


def test_peers_that_are_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "hibari", None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(OptionError, match="pip install hibari-tts"):
        make_peers("hibari")
    with pytest.raises(OptionError, match="apt-get install flite"):
        make_peers(["flite"])
    found, missing = find_peers(["hibari", "flite"])
    assert not found and [line.split()[0] for line in missing] == ["hibari", "flite"]


def check_peer(peer):
    chunks = [chunk for chunk in peer.speak("Hello there.", peer.voices[0], 0)]
    assert sum(chunk.duration for chunk in chunks) > .3 and any(chunk.samples.any() for chunk in chunks)
    assert peer.reference(peer.voices[0]) is None and peer.megabytes() > 1 and peer.licence


def test_hibari():
    pytest.importorskip("hibari")
    (peer,) = make_peers("hibari")
    check_peer(peer)


@pytest.mark.skipif(not shutil.which("flite"), reason="Flite is not installed")
def test_flite():
    (peer,) = make_peers("flite")
    check_peer(peer)
    with pytest.raises(OptionError, match="named twice"):
        make_peers("flite,flite")


@pytest.mark.slow
@pytest.mark.skipif("METAVOICE_TEACHER" not in os.environ, reason="METAVOICE_TEACHER can name a folder with Kokoro")
def test_kokoro():
    (peer,) = make_peers(f"kokoro:{os.environ['METAVOICE_TEACHER']}")
    check_peer(peer)


@pytest.mark.skipif(not shutil.which("flite"), reason="Flite is not installed")
def test_command(capsys, own, tmp_path):
    (tmp_path / "texts.txt").write_text(TEXTS[0] + "\n")
    arguments = ["--texts", tmp_path / "texts.txt", "--voices", own, "--recogniser", "none", "--no-mos", "--takes", "1",
                 "--no-denoise", "--peers", "flite", "--json", tmp_path / "a.json", "--plot", tmp_path / "a.png",
                 "--out", tmp_path / "said", "-q"]
    assert main(["evaluate", *map(str, arguments)]) == 0
    out, err = capsys.readouterr()
    assert not err and "1 sentence, each once by each system" in out
    lines = [line for line in out.splitlines() if line.startswith(("nano", "Flite"))]
    assert [line.split("  ")[0] for line in lines[:3]] == ["nano, one take", "nano, streamed", "Flite"]
    assert set(json.loads((tmp_path / "a.json").read_text())["about"]["systems"]) == {
        "nano, one take", "nano, streamed", "Flite"
    }
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG" and len(list((tmp_path / "said").iterdir())) == 4
