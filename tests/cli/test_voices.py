"`metavoice voices`: the voices of a user, found by name in every command."
import json
from pathlib import Path

import pytest
import soundfile
import torch

from metavoice.audio.encode import read_provenance
from metavoice.bundle.load import load_bundle
from metavoice.bundle.voice import Voice
from metavoice.generate.tts import TTS

SHORT, QUICK = "The dog slept.", ["--no-denoise", "--takes", "1", "-q", "--seed", "1"]
AGREED = "I, Jane Doe, agreed on 2026-11-01"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    "Return the empty folder of the user's voices."
    monkeypatch.setenv("METAVOICE_VOICES", str(tmp_path / "voices"))
    return tmp_path / "voices"


@pytest.fixture(scope="module")
def recording():
    return load_bundle("nano", "cpu").voices["af_bella"]


def test_a_voice_is_added_found_and_removed(run, refused, recording, folder):
    assert run("voices", "list")[0] == 0 and not folder.exists()
    code, out, err = run("voices", "add", "Jane Doe", recording, "--consent", AGREED, "--accent", "british")
    assert (code, err) == (0, "") and f"consent {AGREED}" in out and '--voice "Jane Doe"' in out
    (path,) = folder.iterdir()
    assert path.stat().st_mode & 0o777 == 0o600 and path.stat().st_size < 3000
    assert str(recording) not in path.read_text(errors="replace") and "af_bella" not in path.read_text(errors="replace")
    voice = Voice.load(path)
    assert (voice.name, voice.accent, voice.origin.consent) == ("Jane Doe", "british", AGREED)
    assert len(voice.origin.source) == len("sha256:") + 64 and voice.origin.program.startswith("metavoice ")
    assert AGREED in run("voices", "list")[1] and AGREED in run("info", path)[1]
    assert run("synthesise", SHORT, "--voice", "jane doe", "-o", "a.flac", *QUICK)[0] == 0
    spoken = TTS.from_pretrained("nano", device="cpu").synthesise(
        SHORT, recording, accent="british", seed=1, takes=1, denoise=False)
    assert (torch.from_numpy(soundfile.read("a.flac", dtype="float32")[0]) - spoken.samples).abs().max() < 1e-4
    assert read_provenance("a.flac").voice == "Jane Doe"
    rows = ["id,text,voice", "a,Hello.,Jane Doe", "b,Hello.,Jane Doe*0.5+am_michael", "c,Hello.,me+you"]
    Path("rows.csv").write_text("\n".join(rows))
    code, out, err = run("batch", "rows.csv", "--out", "rows", *QUICK)
    assert code == 1 and {p.name for p in Path("rows").glob("*.wav")} == {"a.wav", "b.wav"}, out + err
    assert read_provenance("rows/b.wav").voice == "Jane Doe*0.5+am_michael"
    assert run("voices", "remove", "jane doe") == (0, "removed the voice Jane Doe\n", "")
    refused("synthesise", SHORT, "--voice", "Jane Doe", "-o", "b.wav", *QUICK, words=["no such file", "af_heart"])


def test_a_blend_keeps_its_parts(run, recording):
    run("voices", "add", "jane", recording, "--consent", AGREED)
    code, out, err = run("voices", "blend", "jane(3) + bm_george", "mix")
    assert (code, err) == (0, "") and "stated for 1 of 2 voices" in out
    run("voices", "blend", "mix*0.5+am_michael*0.5", "more", "--accent", "british")
    found = {voice["name"]: voice for voice in json.loads(run("voices", "list", "--json")[1])}
    assert [found[name]["kind"] for name in ("bm_george", "jane", "mix")] == ["model", "recording", "blend"]
    assert all(voice["fits"] for voice in found.values()) and found["bm_george"]["language"] == "en-GB"
    assert [(p["name"], p["share"], p["consent"]) for p in found["more"]["parts"]] == [
        ("jane", .375, AGREED), ("bm_george", .125, ""), ("am_michael", .5, "")]
    assert (found["mix"]["accent"], found["more"]["accent"]) == ("american", "british")


def test_voices_of_another_model(run, refused, recording, folder):
    run("voices", "add", "jane", recording)
    (path,) = folder.iterdir()
    data = path.read_bytes()
    encoder = Voice.load(path).origin.encoder
    path.write_bytes(data.replace(encoder.encode(), b"0" * 16))
    assert "nano, not this one" in run("voices", "list")[1]
    refused("synthesise", SHORT, "--voice", "jane", "-o", "a.wav", *QUICK, words=["doesn't fit model 'nano'"])
    path.write_bytes(data.replace(b"encoder", b"unknown"))  # as before there was a key
    assert run("synthesise", SHORT, "--voice", "jane", "-o", "a.wav", *QUICK)[0] == 0


@pytest.mark.parametrize("argv, words", [
    (["add", "a/b", "RECORDING"], ["use up to 64 letters"]),
    (["add", "af_heart", "RECORDING"], ["belongs to a voice of the model"]),
    (["add", "me", "nowhere.wav"], ["no such file"]),
    (["add", "me", "RECORDING", "--consent", " "], ["write up to 500 characters on one line"]),
    (["add", "me", "RECORDING", "--consent", "a\nb"], ["write up to 500 characters on one line"]),
    (["add", "me", "RECORDING", "--accent", "welsh"], ["'welsh'", "american"]),
    (["blend", "af_heart", "me"], ["is no blend; write one as"]),
    (["blend", "af_heart*nan+bf_emma", "me"], ["'nan'; use a number above 0 and at most 1000"]),
    (["blend", "+".join(["af_heart"] * 9), "me"], ["has 9 voices; use up to 8"]),
    (["blend", "af_heart+nobody", "me"], ["can't read nobody"]),
    (["remove", "af_heart"], ["voice of model 'nano' and can't be removed"]),
    (["remove", "nobody"], ["there is no voice 'nobody'"]),
    ([], ["required: ACTION"]),
])
def test_bad_input(refused, recording, argv, words, folder):
    refused("voices", *[recording if o == "RECORDING" else o for o in argv], words=words)
    assert not folder.exists()


def test_a_folder_that_cannot_be_made(run, recording, folder):
    folder.write_text("a file")
    code, out, err = run("voices", "add", "jane", recording)
    assert code == 2 and "can't create the folder for voices" in err and err.count("\n") == 1
