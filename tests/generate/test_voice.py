"Voices: their files, and where they come from."
import hashlib
import io
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import soundfile
import torch

import metavoice
from metavoice.audio.encode import read_provenance
from metavoice.audio.level import speech_level
from metavoice.audio.sound import Audio, load_audio
from metavoice.bundle.voice import MOST_KEPT_PARTS, VoiceOrigin, blend_voices
from metavoice.bundle.voice_store import user_voices
from metavoice.core.errors import AudioError, OptionError, OutputError
from metavoice.generate.tts import TTS
from metavoice.generate.voice import Voice, embed_voice
from metavoice.train.tokens import REFERENCE_LEVEL

NANO = Path(metavoice.__file__).parent / "nano"


def write_wav(path, samples, rate, **kind):
    soundfile.write(path, samples, rate, **kind)
    return path


@pytest.fixture
def changed_nano(tmp_path):
    "A function that copies nano with other entries in its manifest."

    def copy(**entries):
        folder = tmp_path / "changed"
        shutil.copytree(NANO, folder)
        manifest = json.loads((NANO / "bundle.json").read_text()) | entries
        (folder / "bundle.json").write_text(json.dumps(manifest))
        return folder

    return copy


def test_a_voice_from_any_kind_of_source(tts, speaking, tmp_path):
    path = speaking.save(tmp_path / "me.wav")
    sources = (path, str(path), path.read_bytes(), io.BytesIO(path.read_bytes()), load_audio(path))
    voices = [tts.voice(source) for source in sources]
    assert all(torch.equal(v.embedding, voices[0].embedding) for v in voices)
    assert [v.name for v in voices] == ["me", "me", "voice", "voice", "voice"]
    assert voices[0].seconds == pytest.approx(5, abs=.01)
    assert tts.voice(voices[0]) is voices[0]
    assert voices[0].embedding.norm() == pytest.approx(1, abs=1e-4)


def test_the_model_has_named_voices(tts):
    name = next(iter(tts.bundle.voices))
    assert tts.voice(name).name == name and torch.equal(tts.voice(name).embedding, tts.voice().embedding)


def test_voices_are_cached_by_their_sound_and_not_by_their_file(tts, speaking, tmp_path):
    path = speaking.save(tmp_path / "v.wav")
    first = tts.voice(path)
    Audio(speaking.samples.flip(0), speaking.sample_rate).save(path)
    assert not torch.equal(tts.voice(path).embedding, first.embedding)


def test_every_format_and_channel_count(tts, speaking, tmp_path):
    plain = tts.voice(speaking).embedding
    for suffix in ("flac", "ogg", "mp3"):
        assert plain @ tts.voice(speaking.save(tmp_path / f"a.{suffix}")).embedding > .97, suffix
    six = write_wav(tmp_path / "six.wav", torch.stack([speaking.samples] * 6, 1).numpy(), speaking.sample_rate)
    assert plain @ tts.voice(six).embedding > .99
    phone = speaking.resample(8000)
    stereo = write_wav(tmp_path / "phone.wav", torch.stack([phone.samples, .5 * phone.samples], 1).numpy(), 8000)
    narrow = tts.voice(stereo).embedding
    assert narrow.isfinite().all() and plain @ narrow > .5


def test_saved_and_loaded(tts, speaking, tmp_path):
    voice = tts.voice(speaking)
    path = voice.save(tmp_path / "me.safetensors")
    for again in (Voice.load(path), tts.voice(path), tts.voice(str(path))):
        assert torch.equal(again.embedding, voice.embedding) and again.seconds == 5
    with pytest.raises(OutputError, match=".safetensors"):
        voice.save(tmp_path / "me.wav")
    with pytest.raises(OutputError, match="No such file"):
        voice.save(tmp_path / "no" / "me.safetensors")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(AudioError, match="can't read the voice"):
        tts.voice(path)


def test_references_refused(tts, speaking, tmp_path):
    rate = speaking.sample_rate
    (tmp_path / "text.wav").write_text("This is no sound.")
    half = write_wav(tmp_path / "half.wav", speaking.samples[:rate//2].numpy(), rate)
    two = write_wav(tmp_path / "two.wav", speaking.samples[:2*rate].numpy(), rate)
    silent = write_wav(tmp_path / "silent.wav", 0 * speaking.samples.numpy(), rate)
    nan = write_wav(tmp_path / "nan.wav", torch.full((5 * rate,), torch.nan).numpy(), rate, subtype="FLOAT")
    cases = [("nobody.wav", ["no such file", "the model's own voices are"]), (tmp_path, ["it is a directory"]),
             (tmp_path / "text.wav", ["isn't audio"]), (half, ["0.50 s long; at least 2.5 s"]),
             (two, ["2.00 s long; at least 2.5 s"]), (silent, ["silent"]), (nan, ["NaN"]),
             (7, ["can't read audio from int"])]
    for source, words in cases:
        with pytest.raises(AudioError) as e:
            tts.synthesise("The dog slept.", source)
        assert all(word in str(e.value) for word in words) and "\n" not in str(e.value)


def test_a_model_may_ask_for_half_a_minute(speaking, changed_nano):
    strict = TTS.from_pretrained(changed_nano(minimum_reference=30.), device="cpu")
    with pytest.raises(AudioError, match="5.00 s long; at least 30 s"):
        strict.voice(speaking)
    assert strict.voice().seconds >= 30


def test_own_voices_may_be_shorter(speaking, changed_nano):
    "A model finetuned on few seconds speaks in its own voice; the same recording from elsewhere is too short."
    strict = TTS.from_pretrained(changed_nano(minimum_reference=31.), device="cpu")
    path = strict.bundle.voices["af_bella"]
    for source in (None, "af_bella", path, str(path)):
        assert strict.voice(source).seconds < 31
    for source in (path.read_bytes(), load_audio(path), speaking):
        with pytest.raises(AudioError, match="at least 31 s"):
            strict.voice(source)


def test_a_model_without_a_voice(changed_nano):
    with pytest.raises(AudioError, match="has no voice of its own"):
        TTS.from_pretrained(changed_nano(voices={})).synthesise("The dog slept.")


# level, pauses and faults of a reference


def cosine(a, b):
    return float(a.embedding @ b.embedding)


@pytest.mark.parametrize("name", ("af_heart", "am_michael", "bf_emma"))
def test_a_voice_does_not_depend_on_the_level(tts, name, tmp_path):
    "quiet.wav of the cases: 32 dB quieter, and with 16 bits."
    audio = load_audio(tts.bundle.voices[name])
    x, rate = audio.samples[:15 * audio.sample_rate], audio.sample_rate
    plain = tts.voice(Audio(x, rate))
    for decibels in (-40, -32, -20, -10, 10, 20, 40):
        assert cosine(tts.voice(Audio(10**(decibels / 20) * x, rate)), plain) > .98
    quiet = tts.voice(write_wav(tmp_path / "quiet.wav", (10**(-32 / 20) * x).numpy(), rate))
    assert cosine(quiet, plain) > .98
    others = [tts.voice(other) for other in tts.bundle.voices if other != name]
    assert max(cosine(quiet, other) for other in others) < .9 < cosine(quiet, tts.voice(name))


def test_a_voice_does_not_depend_on_pauses_or_an_offset(tts):
    audio = load_audio(tts.bundle.voices["af_bella"])
    x, rate = audio.samples, audio.sample_rate
    parts = [o for part in x.split(len(x) // 3) for o in (part, torch.zeros(2 * rate))]
    assert cosine(tts.voice(Audio(torch.cat(parts), rate)), tts.voice("af_bella")) > .98
    assert cosine(tts.voice(Audio(x + .05, rate)), tts.voice("af_bella")) > .98


def test_a_voice_from_inverted_channels(tts, tmp_path):
    "anti.wav of the cases: the mean of the channels is silent."
    audio = load_audio(tts.bundle.voices["af_heart"])
    x = audio.samples[:15 * audio.sample_rate]
    path = write_wav(tmp_path / "anti.wav", torch.stack([x, -x], 1).numpy(), audio.sample_rate)
    assert cosine(tts.voice(path), tts.voice(Audio(x, audio.sample_rate))) > .98


def test_the_release_levels_only_what_is_outside_a_normal_range(full_golden, golden, speech):
    bundle = TTS.from_pretrained(full_golden, device="cpu").bundle
    assert bundle.defaults["reference_level"] == [-32., -16.]
    for n in range(4):
        audio = load_audio(golden / f"voice{n}.wav")
        assert torch.equal(embed_voice(bundle, audio).embedding, bundle.speaker_encoder.embed_audio(audio))
    bria = load_audio(speech / "bria.mp3")
    tts = TTS(bundle)
    plain = tts.voice(bria)
    assert plain.warnings == ()
    assert plain.embedding @ bundle.speaker_encoder.embed_audio(bria) > .999
    quiet = tts.voice(Audio(.01 * bria.samples, bria.sample_rate)).embedding
    at_edge = 10**((-32 - speech_level(bria.samples, bria.sample_rate)) / 20) * bria.samples
    assert quiet @ bundle.speaker_encoder.embed_audio(Audio(at_edge, bria.sample_rate)) > .99


def test_a_bundle_without_a_level_has_that_of_the_release(changed_nano):
    defaults = json.loads((NANO / "bundle.json").read_text())["defaults"]
    assert defaults.pop("reference_level") == REFERENCE_LEVEL
    plain = TTS.from_pretrained(changed_nano(defaults=defaults), device="cpu")
    audio = load_audio(plain.bundle.voices["af_bella"])
    assert torch.equal(plain.voice("af_bella").embedding, plain.bundle.speaker_encoder.embed_audio(audio))


def test_faults_are_logged_once_and_kept(tts, tmp_path, caplog):
    samples = {name: load_audio(path).samples for name, path in tts.bundle.voices.items()}
    assert all(tts.voice(name).warnings == () for name in samples)
    both = Audio(torch.cat([samples["am_michael"][:240_000], samples["af_bella"][:240_000]]), 24000)
    path = both.save(tmp_path / "us.wav")
    voices = [tts.voice(path) for _ in range(2)]
    assert [record.getMessage() for record in caplog.records] == [f"the recording of us: {voices[0].warnings[0]}"]
    assert "two people seem to speak in it; cut it" in voices[0].warnings[0]
    assert voices[1].warnings == voices[0].warnings
    assert Voice.load(voices[0].save(tmp_path / "us.safetensors")).warnings == voices[0].warnings
    noisy = samples["af_bella"][:3 * 24000] + .05 * torch.randn(3 * 24000, generator=torch.Generator().manual_seed(0))
    words = ("clipped", "noise", "of speech; give 5 s")
    warnings = tts.voice(Audio((9 * noisy).clamp(-1, 1), 24000)).warnings
    assert len(warnings) == 3 and all(word in warning for word, warning in zip(words, warnings))


def test_a_voice_from_the_web(tts, speaking, monkeypatch):
    asked, data = [], speaking.to_bytes("flac")

    def fetch(url):
        asked.append(url)
        return data, "me too.flac"

    monkeypatch.setattr("metavoice.generate.voice.fetch_recording", fetch)
    for url in ("https://voices.example.com/a", "HTTP://voices.example.com/a", "https://voices.example.com/a"):
        voice = tts.voice(url)
        assert voice.name == "me too" and torch.allclose(voice.embedding, tts.voice(speaking).embedding, atol=1e-3)
    assert len(asked) == 2  # the same address is fetched once in five minutes
    data = Audio(torch.zeros(130 * 16000), 16000).to_bytes("flac")
    with pytest.raises(AudioError, match="longer than 120 s"):
        tts.voice("https://voices.example.com/long")
    data = b"<html>not found</html>"
    with pytest.raises(AudioError, match="https://voices.example.com/page"):
        tts.voice("https://voices.example.com/page")


@pytest.mark.parametrize("url, words", [
    ("http://127.0.0.1/me.wav", "isn't public"), ("http://localhost:8000/me.wav", "isn't public"),
    ("https://user@example.com/me.wav", "no valid URL"), ("https://", "no valid URL"),
])
def test_addresses_that_are_refused(tts, url, words):
    with pytest.raises(AudioError, match=words):
        tts.voice(url)


# origin, blends and the user's voices


def test_a_voice_says_where_it_comes_from(tts, speaking, tmp_path):
    path = speaking.save(tmp_path / "secret name.wav")
    voice = tts.voice(path)
    assert voice.origin.source == "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()
    assert voice.origin.model == "nano" and voice.origin.created and not voice.origin.agreed()
    assert tts.voice(path.read_bytes()).origin == voice.origin and not tts.voice(speaking).origin.source
    agreed = replace(voice, name="me", origin=replace(voice.origin, consent="I agreed."))
    again = tts.voice(agreed.save(tmp_path / "me.safetensors"))
    assert again.origin == agreed.origin and again.origin.agreed()
    assert b"secret" not in (tmp_path / "me.safetensors").read_bytes()


def test_a_voice_of_another_speaker_encoder_is_refused(tts, tmp_path):
    other = replace(tts.voice(), origin=VoiceOrigin(model="giant", encoder="0123"))
    path = other.save(tmp_path / "other.safetensors")
    with pytest.raises(AudioError, match="doesn't fit model 'nano': the speaker encoder of model 'giant' made it"):
        tts.voice(path)
    with pytest.raises(AudioError, match="can't blend"):
        blend_voices([(tts.voice(), 1), (other, 1)])


def test_the_speech_of_a_blend_lies_between_its_voices(tts):
    heart, michael = tts.voice("af_heart").embedding, tts.voice("am_michael").embedding
    for text in ("af_heart+am_michael", "am_michael(2) + af_heart(2)", "af_heart*0.5+am_michael*0.5"):
        blend = tts.voice(text)
        assert torch.allclose(blend.embedding, torch.nn.functional.normalize(heart + michael, dim=0), atol=1e-6)
    long = "The old man walked to the river, and the little dog ran after him. Where is the red book?"
    spoken = tts.synthesise([long] * 3, ["af_heart", blend, "am_michael"], seed=1, takes=1, denoise=False)
    first, between, last = (tts.voice(audio).embedding for audio in spoken)
    assert first @ heart > between @ heart + .1 > last @ heart + .1
    assert last @ michael > between @ michael + .1 > first @ michael + .1
    assert [audio.origin.voice for audio in spoken] == ["af_heart", text, "am_michael"]


def test_blends_in_streams_and_with_files(tts, speaking, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    speaking.save("me.wav")
    mixed = tts.voice("me.wav*0.25+bf_emma*0.75")
    assert mixed.accent == "british" and mixed.origin.parts[0].source.startswith("sha256:")
    chunks = list(tts.stream("The dog slept.", "me.wav+bf_emma", seed=1))
    assert {chunk.origin.voice for chunk in chunks} == {"me.wav+bf_emma"}
    for name in ("af_heart*0.5+bf_emma.wav", "af_heart(2).wav"):  # a path that exists comes first
        speaking.save(name)
        voice = tts.voice(name)
        assert torch.equal(voice.embedding, tts.voice("me.wav").embedding) and not voice.origin.parts


@pytest.mark.parametrize("text, words", [
    ("af_heart*-1+bf_emma", "'-1'; use a number above 0 and at most 1000"),
    ("af_heart*0+bf_emma*0", "'0'; use a number above 0"),
    ("af_heart*nan+bf_emma", "'nan'; use"), ("af_heart(inf)+bf_emma", "'inf'; use"), ("af_heart*1e9", "'1e9'; use"),
    ("af_heart*+bf_emma", "''; use a number"), ("af_heart++bf_emma", "has no name"), ("+", "has no name"),
    ("af_heart+" * 10_000, "has 10001 voices; use up to 8"), ("af_heart+nobody", "can't read nobody"),
    ("nobody*0.5+af_heart*0.5", "the model's own voices are af_heart"),
])
def test_bad_blends(tts, text, words):
    with pytest.raises((AudioError, OptionError)) as e:
        tts.voice(text)
    assert words in str(e.value) and "\n" not in str(e.value) and len(str(e.value)) < 400


def test_a_blend_of_blends_is_bounded(tts):
    voice = tts.voice("+".join(["af_heart", "bf_emma"] * 4))
    voice = blend_voices([(voice, 1)] * 8)
    assert len(voice.origin.parts) == MOST_KEPT_PARTS and sum(p.share for p in voice.origin.parts) == pytest.approx(1)
    with pytest.raises(OptionError, match="has 65 voices, with those of its parts; use up to 64"):
        blend_voices([(voice, 1), (tts.voice(), 1)])


def test_the_users_voices_are_found_by_name(tts, speaking, tmp_path, monkeypatch):
    monkeypatch.setenv("METAVOICE_VOICES", str(tmp_path / "voices"))
    monkeypatch.chdir(tmp_path)
    voice = tts.voice(speaking)
    stored = user_voices().add("Grandmother", voice)
    (tmp_path / "Grandmother").mkdir()  # a folder of the same name is no recording
    for name in ("Grandmother", "grandmother", stored.id):
        assert torch.equal(tts.voice(name).embedding, voice.embedding)
    assert tts.voice("grandmother*0.5+af_heart*0.5").origin.parts[0].name == "Grandmother"
    user_voices().add("af_bella", voice)
    assert not torch.equal(tts.voice("af_bella").embedding, voice.embedding)  # the model's own come first
    with pytest.raises(AudioError, match="; yours are Grandmother, af_bella"):
        tts.voice("nobody")
    assert len(user_voices().list()) == 2
    user_voices().delete("Grandmother")
    with pytest.raises(AudioError, match="there is no such file"):
        tts.voice(stored.id)
    (tmp_path / "Grandmother").rmdir()


def test_saved_speech_carries_its_origin(tts, tmp_path):
    audio = tts.synthesise("The dog slept.", "bf_emma", seed=1, takes=1, denoise=False)
    for saved in (audio, audio.resample(48000)):
        found = read_provenance(saved.save(tmp_path / "a.ogg"))
        assert (found.model, found.voice) == ("nano", "bf_emma")
    assert read_provenance(load_audio(tmp_path / "a.ogg").save(tmp_path / "b.ogg")) is None


# files from strangers


def header_of(path, size=None, **about):
    "Write a file of tensors with a header of our own: a size that isn't its own, and facts about a voice."
    tensor = dict(dtype="F32", shape=[256], data_offsets=[0, 1024])
    header = json.dumps(dict(__metadata__=about, embedding=tensor)).encode()
    path.write_bytes((size or len(header)).to_bytes(8, "little") + header + bytes(1024))


@pytest.mark.parametrize("about, words", [
    (dict(size=60 << 20), "has a header of 62914560 bytes"),
    (dict(size=2**63), "has a header of 9223372036854775808 bytes"),
    (dict(warnings="[" * 100_000), "nested too deeply"),
    (dict(warnings="{}"), "its warnings are {}"),
    (dict(warnings="[[1]]"), "it says [1]"),
    (dict(warnings=json.dumps(["a"] * 101)), "its warnings are ['a', 'a', 'a', ...]"),
    (dict(name="n" * 10_000), "a text of up to 1000 characters"),
    (dict(seconds="nan"), "a recording of nan s"), (dict(seconds="inf"), "a recording of inf s"),
    (dict(seconds="-1"), "-1.0 s"), (dict(accent="martian\x1b[2J"), r"martian\x1b[2J"),
])  # fmt: skip
def test_hostile_voice_files(tmp_path, about, words):
    header_of(tmp_path / "v.safetensors", **about)
    with pytest.raises(AudioError) as error:
        Voice.load(tmp_path / "v.safetensors")
    message = str(error.value)
    assert words in message and message.isprintable() and len(message) < 400


def test_a_voice_is_not_read_if_it_is_large(tmp_path):
    "A header of 40 MB, a sparse file of 4 GB, and a named pipe end in one line."
    shapes = dict(embedding=[10**9])
    header = json.dumps(dict(embedding=dict(dtype="F32", shape=shapes["embedding"], data_offsets=[0, 4 * 10**9])))
    path = tmp_path / "sparse.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode())
    os.truncate(path, 8 + len(header) + 4 * 10**9)
    with pytest.raises(AudioError, match=r"has the shape \(1000000000,\); expected \(256,\)"):
        Voice.load(path)
    with pytest.raises(AudioError, match=r"not \(8, 256\)"):
        Voice(torch.zeros(8, 256, dtype=torch.float16))
    large = json.dumps({f"t{n}": dict(dtype="F32", shape=[0], data_offsets=[0, 0]) for n in range(100_000)})
    (tmp_path / "large.safetensors").write_bytes(len(large).to_bytes(8, "little") + large.encode())
    with pytest.raises(AudioError, match="at most 4194304 are read"):
        Voice.load(tmp_path / "large.safetensors")
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(AudioError, match="pipe or a device"):
        Voice.load(tmp_path / "pipe.safetensors")
