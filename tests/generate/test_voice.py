"Voices: their files, and where they come from."
import io
import json
import shutil
from pathlib import Path

import pytest
import soundfile
import torch

import metavoice
from metavoice.audio.sound import Audio, load_audio
from metavoice.core.errors import AudioError, OutputError
from metavoice.generate.tts import TTS
from metavoice.generate.voice import Voice

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
             (tmp_path / "text.wav", ["isn't audio"]), (half, ["0.50 s long; at least 3 s"]),
             (two, ["2.00 s long; at least 3 s"]), (silent, ["silent"]), (nan, ["NaN"]),
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


def test_a_model_without_a_voice(changed_nano):
    with pytest.raises(AudioError, match="has no voice of its own"):
        TTS.from_pretrained(changed_nano(voices={})).synthesise("The dog slept.")
