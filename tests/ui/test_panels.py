"The panels for text, voice, settings and uploads, without a browser."
from dataclasses import replace

import pytest
import torch
from tiny import write_tiny_bundle

pytest.importorskip("anywidget", reason="anywidget isn't installed, which metavoice[ui] needs")

import traitlets

from metavoice.audio.sound import Audio, load_audio
from metavoice.bundle.voice import VoiceOrigin
from metavoice.bundle.voice_store import user_voices
from metavoice.core.errors import AudioError
from metavoice.generate.tts import TTS
from metavoice.ui.panels import ADD_VOICE, SettingsPanel, TextPanel, UploadWidget, VoicePanel


def cut(audio, seconds):
    "Return the beginning of an audio."
    return Audio(audio.samples[:seconds*audio.sample_rate], audio.sample_rate)


# text


def test_text_panel_describes_the_text(tts):
    panel = TextPanel(tts)
    panel.field.value = "The old man walked to the river. "*20
    segments = len(tts.segments([panel.value]))
    assert f"in {segments} segments" in panel.about.text and panel.about.kind == ""
    panel.field.value = "日本"
    assert panel.about.kind == "bad"
    panel.field.value = "It cost $5 in 日本."
    assert panel.about.kind == "note" and "日 本" in panel.about.text and "1 segment" in panel.about.text
    panel.field.value = "  "
    assert "Any length" in panel.about.text


# settings


def test_accents_are_offered_by_models_that_read_phonemes(tts, tmp_path):
    assert "accent" not in SettingsPanel(tts).value
    reader = TTS.from_pretrained(write_tiny_bundle(tmp_path / "tiny", phonemes=True), "cpu")
    panel = SettingsPanel(reader)
    assert panel.accent.options == (("The voice's own", ""), ("American", "american"), ("British", "british"))
    own = panel.value
    panel.accent.value = "british"
    british = panel.value
    assert "accent" not in own and british["accent"] == "british"
    panel.restore(own)
    assert (panel.accent.value, panel.accent.index) == ("", 0)  # a browser shows nothing for the index None
    panel.restore(british)
    assert panel.value["accent"] == "british"


def test_vocoders_are_offered_if_the_model_has_them(tmp_path):
    plain, diffusing = (
        SettingsPanel(TTS.from_pretrained(write_tiny_bundle(tmp_path / str(mbd), mbd=mbd), "cpu"))
        for mbd in (False, True)
    )
    assert [kind for _, kind in plain.vocoder.options] == ["codec"] and plain.value["vocoder"] == "codec"
    assert [kind for _, kind in diffusing.vocoder.options] == ["mbd", "codec"]
    assert len(diffusing.make_controls()) == len(plain.make_controls()) + 1
    own = diffusing.value
    diffusing.vocoder.value = "mbd"
    assert (own["vocoder"], diffusing.value["vocoder"]) == ("codec", "mbd")
    diffusing.restore(own)
    assert diffusing.value["vocoder"] == "codec"


def test_slider_ranges_are_those_of_the_release(tts):
    sliders = SettingsPanel(tts).sliders
    ranges = {name: (s.min, s.max) for name, s in sliders.items() if name not in ("temperature", "takes")}
    assert ranges == dict(guidance=(1, 3), prompt_guidance=(1, 3), top_p=(.9, 1), speed=(.5, 2))
    sliders["guidance"].value = 99
    assert sliders["guidance"].value == 3


def test_settings_are_options_of_synthesis(tts):
    panel = SettingsPanel(tts)
    assert "top_k" not in panel.value
    panel.top_k.value, panel.sliders["prompt_guidance"].value, panel.new_seed.value = 40, 1.5, False
    value = panel.value
    assert (value["top_k"], value["prompt_guidance"], value["seed"]) == (40, 1.5, panel.seed.value)
    assert "spoken" not in value
    panel.as_written.value = True
    value = panel.value
    assert value["spoken"] is False
    other = SettingsPanel(tts)
    other.restore(value)
    assert other.value == value and other.as_written.value


# voices


def test_a_long_upload_needs_no_advice(tts, bella):
    panel = VoicePanel(tts)
    panel.receive("long.wav", Audio(bella.samples.repeat(2), bella.sample_rate).to_bytes("wav"))
    assert panel.choice.value == "long" and not panel.notice.text


def test_an_upload_of_the_same_name_replaces_the_first(tts, bella):
    panel = VoicePanel(tts)
    panel.receive("a.wav", cut(bella, 5).to_bytes("wav"))
    panel.receive("a.wav", cut(bella, 9).to_bytes("wav"))
    assert list(panel.voice_options) == [*tts.bundle.voices, "a"] and panel.player.duration > 6
    panel.receive("af_bella.wav", bella.to_bytes("wav"))
    assert panel.choice.value == "af_bella (yours)" and panel.voice_options["af_bella"].source == "af_bella"


BAD_UPLOADS = {
    "noise.mp3": b"nothing of the kind",
    "empty.wav": b"",
    "quiet.wav": Audio(torch.zeros(96000), 24000).to_bytes("wav"),
    "short.wav": Audio(torch.rand(9600)-.5, 24000).to_bytes("wav"),
    "cut.wav": Audio(torch.rand(96000)-.5, 24000).to_bytes("wav")[:50_000],
    "page.html": b"<script>alert(1)</script>",
    "../../up.wav": b"RIFF",
}


@pytest.mark.parametrize("name", BAD_UPLOADS)
def test_bad_uploads_are_explained_and_change_nothing(tts, send, name):
    panel = VoicePanel(tts)
    panel.choice.value = ADD_VOICE
    send(panel.upload, name, BAD_UPLOADS[name])
    assert panel.notice.kind == "bad" and panel.notice.text and panel.choice.value == ADD_VOICE
    assert list(panel.voice_options) == list(tts.bundle.voices)
    assert "<script" not in panel.notice.value
    with pytest.raises(AudioError):
        panel.voice()


def test_an_upload_over_the_limit_is_dropped_before_it_is_stored(send):
    got = []
    upload = UploadWidget(lambda *file: got.append(file), limit=1000)
    send(upload, "a.wav", b"x"*1001)
    upload.receive(upload, dict(id=2, name="b.wav", size=10, at=0), [memoryview(b"x"*2000)])
    assert not got and not upload.pending_uploads


def test_faults_of_an_upload_are_shown(tts, bella):
    panel = VoicePanel(tts)
    panel.receive("quiet.flac", Audio(10**-1.6 * bella.samples, bella.sample_rate).to_bytes("flac"))
    assert panel.choice.value == "quiet" and panel.notice.kind == "note"
    assert "very quiet" in panel.notice.text and "closer to the microphone" in panel.notice.text
    panel.choice.value = "af_heart"
    assert not panel.notice.text
    panel.choice.value = "quiet"
    assert "very quiet" in panel.notice.text


def play_sample(panel, name, monkeypatch):
    "Ask for the sample of a card, as its button does, and return the message to the browser and the sounds with it."
    sent = []
    monkeypatch.setattr(panel.choice, "send", lambda content, buffers=None: sent.append((content, buffers)))
    panel.choice.handle_message(panel.choice, dict(play=name), [])
    panel.executor.shutdown()
    ((content, buffers),) = sent
    return content, buffers


def test_a_card_plays_a_sample_that_is_kept(tts, monkeypatch, tmp_path):
    monkeypatch.setenv("METAVOICE_CACHE", str(tmp_path))
    content, (sound,) = play_sample(VoicePanel(tts), "bf_emma", monkeypatch)
    assert content == dict(name="bf_emma", error="") and 2 < load_audio(bytes(sound)).duration < 8
    (path,) = (tmp_path/"samples").iterdir()
    monkeypatch.setattr(tts, "synthesise", lambda *args, **options: pytest.fail("it is in the cache"))
    again, (same,) = play_sample(VoicePanel(tts), "bf_emma", monkeypatch)
    assert again == content and load_audio(bytes(same)).samples.equal(load_audio(path).samples)
    with pytest.raises(traitlets.TraitError, match="there is no card 'nobody'"):
        VoicePanel(tts).choice.value = "nobody"


def test_why_there_is_no_sample(tts, monkeypatch, tmp_path):
    monkeypatch.setenv("METAVOICE_CACHE", str(tmp_path))

    def broken(*args, **options):
        raise AudioError("no sound")

    monkeypatch.setattr(tts, "synthesise", broken)
    assert play_sample(VoicePanel(tts), "af_heart", monkeypatch) == (dict(name="af_heart", error="no sound"), [])


def test_cards_of_the_users_voices(tts, bella, hidden, monkeypatch, tmp_path):
    monkeypatch.setenv("METAVOICE_VOICES", str(tmp_path))
    voice = tts.voice(bella)
    user_voices().add("Jane", replace(voice, origin=replace(voice.origin, consent="I agreed.")))
    user_voices().add("mix", tts.voice("af_heart*0.7+bm_george*0.3"))
    user_voices().add("strange", replace(voice, origin=VoiceOrigin(encoder="another")))
    user_voices().add("af_bella", tts.voice("af_heart"))  # the model's own voice of this name comes first
    panel = VoicePanel(tts)
    assert panel.choice.options == (*tts.bundle.voices, "Jane", "mix", ADD_VOICE)
    panel.choice.value = "Jane"
    assert "I agreed." in panel.notice.text and hidden(panel.player_box) and hidden(panel.upload_box)
    assert panel.voice().embedding.equal(voice.embedding) and panel.voice("af_bella").origin.source
    panel.choice.value = "mix"
    assert panel.notice.text == "A blend of af_heart (70%), bm_george (30%)."
    panel.receive("Jane.flac", cut(bella, 6).to_bytes("flac"))
    assert panel.choice.value == "Jane (yours)" and not hidden(panel.player_box)
