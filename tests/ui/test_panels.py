"The panels and the page without a browser: values are set and buttons are pressed in the process."
import io, threading, time
from pathlib import Path

import nbformat
import pytest
import torch

pytest.importorskip("anywidget", reason="no anywidget here, which is a part of metavoice[ui]")
from metavoice import widgets
from metavoice.audio.sound import Audio, load_audio
from metavoice.core.errors import AudioError, BundleError, OptionError
from metavoice.generate.tts import TTS
from metavoice.ui.look import Player, encode_to_bytes, spectrogram_png, waveform_peaks
from metavoice.ui.panels import ADD_VOICE, SettingsPanel, UploadWidget, VoicePanel
from metavoice.ui.clone import CloneApp

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def tts(): return TTS.from_pretrained("nano", device="cpu")

@pytest.fixture(scope="module")
def slt(tts): return load_audio(tts.bundle.voices["slt"])

@pytest.fixture
def app(tts):
    made = CloneApp(tts)
    made.settings.denoise.value = False
    yield made
    made.stop()
    made.executor.shutdown()

def hidden(widget): return "mv-none" in widget._dom_classes
def press(app, text, voice="rms"):
    app.text.field.value, app.voice.choice.value = text, voice
    app.start_button.click()
    return app.wait()


def test_a_sentence(app):
    press(app, "The dog slept.")
    take = app.take
    assert .3 < take.audio.duration < 5 and load_audio(app.player.sound).duration == pytest.approx(take.audio.duration)
    assert (app.player.heading, hidden(app.empty), hidden(app.hearing), app.end.disabled, app.start_button.disabled) == ("The dog slept.", True, False, True, False)
    assert hidden(app.progress) and app.player.picture.startswith(b"\x89PNG") and len(app.player.peaks) == 240

def test_a_seed_repeats_what_was_said(app):
    press(app, "The dog slept.")
    first = app.take
    press(app, "Where is the red book?", "slt")
    assert len(app.history.takes) == 2 and not hidden(app.past)
    app.history.children[1].click()
    assert app.take is first and app.player.heading == "The dog slept."
    app.player.handle_message(None, dict(again=True), [])
    assert (app.text.value, app.voice.choice.value, app.settings.new_seed.value) == ("The dog slept.", "rms", False)
    app.start_button.click()
    app.wait()
    assert app.take is not first and app.take.audio == first.audio and app.take.options == first.options

def test_settings_reach_the_model(app, tts, monkeypatch):
    seen = {}
    monkeypatch.setattr(tts, "synthesise", lambda text, voice, on_progress, **options: seen.update(options) or Audio(torch.ones(2400)/2, 24000))
    app.settings.sliders["guidance"].value, app.settings.sliders["top_p"].value, app.settings.sliders["temperature"].value = 2.5, .95, 1.1
    app.settings.vocoder.value, app.settings.denoise.value, app.settings.new_seed.value, app.settings.seed.value, app.settings.takes.value = "mbd", True, False, 7, 4
    press(app, "The dog slept.")
    assert seen == dict(guidance=2.5, top_p=.95, temperature=1.1, takes=4, seed=7, vocoder="mbd", denoise=True)

def test_released_ranges(tts):
    sliders = SettingsPanel(tts).sliders
    assert {k: (s.min, s.max) for k, s in sliders.items() if k != "temperature"} == dict(guidance=(1, 3), top_p=(.9, 1))
    sliders["guidance"].value = 99
    assert sliders["guidance"].value == 3

@pytest.mark.parametrize("text,voice,words", [("", "rms", "the text is empty"), ("…", "rms", "nothing to say"), ("I smile 😀.", "rms", "😀"), ("The dog slept.", ADD_VOICE, "there is no voice yet")])
def test_what_cannot_be_done_is_said(app, text, voice, words):
    press(app, text, voice)
    assert words in app.notice.text and app.notice.kind == "bad" and not app.start_button.disabled and app.take is None

def test_a_mistake_of_ours_is_named_and_logged(app, tts, monkeypatch, caplog):
    def broken(*args, **options): raise ZeroDivisionError("by <b>zero</b>")
    monkeypatch.setattr(tts, "synthesise", broken)
    press(app, "The dog slept.")
    assert "ZeroDivisionError: by <b>zero</b>" in app.notice.text and "&lt;b&gt;" in app.notice.value and not app.start_button.disabled
    assert any(r.exc_info and r.exc_info[0] is ZeroDivisionError for r in caplog.records)

def test_stop_ends_soon_and_leaves_the_app_alive(app):
    app.text.field.value = "The old man walked to the river. "*200
    app.start_button.click()
    while not app.progress.value or "drawn" not in app.progress.value: time.sleep(.02)
    began = time.monotonic()
    app.end.click()
    app.wait()
    assert time.monotonic() - began < 5 and app.notice.text == "Stopped." and not app.history.takes
    assert press(app, "The dog slept.").take is not None

def test_a_second_press_while_it_speaks_does_nothing(app):
    app.text.field.value = "The old man walked to the river. "*200
    app.start_button.click()
    job = app.job
    app.start()
    assert app.job is job
    app.end.click(); app.wait()

def test_progress_is_told_while_it_speaks(app):
    seen = []
    app.progress.observe(lambda change: seen.append((change["new"], threading.current_thread() is threading.main_thread())), "value")
    app.progress.every = 0
    press(app, "The dog slept.")
    assert len(seen) > 5 and not any(main for _, main in seen)
    assert all(any(stage in value for value, _ in seen) for stage in ("first stage", "second stage", "vocoder"))

def test_warnings_come_along(app, tts, monkeypatch):
    import logging
    def warns(*args, **options):
        logging.getLogger("metavoice.tts").warning("'a' came to no end")
        return Audio(torch.ones(2400)/2, 24000)
    monkeypatch.setattr(tts, "synthesise", warns)
    press(app, "The dog slept.")
    assert app.notice.kind == "note" and "came to no end" in app.notice.text

def test_typing_is_answered(app):
    app.text.field.value = "The old man walked to the river. "*20
    assert f"in {len(app.tts.pieces([app.text.value]))} pieces" in app.text.about.text and app.text.about.kind == ""
    app.text.field.value = "日本"
    assert app.text.about.kind == "bad"
    app.text.field.value = "  "
    assert "Any length" in app.text.about.text


# voices

def send(intake, name, data, part=1000):
    for at in range(0, max(len(data), 1), part): intake.receive(intake, dict(id=1, name=name, size=len(data), at=at), [memoryview(data[at:at+part])])

@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_an_uploaded_voice_is_spoken_with(app, tts, slt, suffix):
    silence = torch.zeros(2*slt.sample_rate)
    send(app.voice.intake, f"my voice.{suffix}", encode_to_bytes(Audio(torch.cat([silence, slt.samples[:10*slt.sample_rate], silence]), slt.sample_rate), suffix), 100_000)
    assert app.voice.choice.value == "my voice" and hidden(app.voice.upload_box) and not hidden(app.voice.hearing)
    assert app.voice.player.duration < 10.3 and "cut off" in app.voice.player.about and "30 s or more" in app.voice.notice.text
    assert torch.dot(app.voice.voice().embedding, tts.voice("slt").embedding) > .9
    press(app, "The dog slept.", "my voice")
    assert app.take.voice == "my voice" and "my voice" in app.player.about

def test_a_long_upload_needs_no_advice(tts, slt):
    panel = VoicePanel(tts)
    panel.receive("long.wav", encode_to_bytes(Audio(slt.samples.repeat(2), slt.sample_rate), "wav"))
    assert panel.choice.value == "long" and not panel.notice.text

def test_a_file_of_the_same_name_replaces_the_first(tts, slt):
    panel = VoicePanel(tts)
    panel.receive("a.wav", encode_to_bytes(Audio(slt.samples[:5*slt.sample_rate], slt.sample_rate), "wav"))
    panel.receive("a.wav", encode_to_bytes(Audio(slt.samples[:9*slt.sample_rate], slt.sample_rate), "wav"))
    assert list(panel.voice_options) == [*tts.bundle.voices, "a"] and panel.player.duration > 6
    panel.receive("slt.wav", encode_to_bytes(slt, "wav"))
    assert panel.choice.value == "slt (yours)" and panel.voice_options["slt"].source == "slt"

BAD = {"noise.mp3": b"nothing of the kind", "empty.wav": b"", "quiet.wav": encode_to_bytes(Audio(torch.zeros(96000), 24000), "wav"), "short.wav": encode_to_bytes(Audio(torch.rand(9600)-.5, 24000), "wav"),
       "cut.wav": encode_to_bytes(Audio(torch.rand(96000)-.5, 24000), "wav")[:50_000], "page.html": b"<script>alert(1)</script>", "../../up.wav": b"RIFF"}

@pytest.mark.parametrize("name", BAD)
def test_bad_uploads_say_why_and_change_nothing(tts, name):
    panel = VoicePanel(tts)
    panel.choice.value = ADD_VOICE
    send(panel.intake, name, BAD[name])
    assert panel.notice.kind == "bad" and panel.notice.text and panel.choice.value == ADD_VOICE and list(panel.voice_options) == list(tts.bundle.voices)
    assert "<script" not in panel.notice.value
    with pytest.raises(AudioError): panel.voice()

def test_an_upload_over_the_limit_is_dropped_before_it_is_kept():
    got = []
    intake = UploadWidget(lambda *file: got.append(file), limit=1000)
    send(intake, "a.wav", b"x"*1001)
    intake.receive(intake, dict(id=2, name="b.wav", size=10, at=0), [memoryview(b"x"*2000)])
    assert not got and not intake.pending_uploads


# the player

def test_downloads(slt):
    player, sent = Player(), []
    player.send = lambda about, buffers: sent.append((about["name"], about["type"], load_audio(io.BytesIO(buffers[0])).duration))
    player.show(slt, "x", name="rms-7")
    for format in ("wav", "flac", "ogg", "mp3", "exe", None): player.handle_message(player, dict(format=format), [])
    assert [s[0] for s in sent] == ["rms-7.wav", "rms-7.flac", "rms-7.ogg", "rms-7.mp3"] and sent[3][1] == "audio/mpeg"
    assert all(s[2] == pytest.approx(slt.duration, abs=.1) for s in sent)

@pytest.mark.parametrize("samples", [0, 1, 5, 100])
def test_the_shortest_sounds(samples):
    audio = Audio(torch.ones(samples)/2, 24000)
    assert len(waveform_peaks(audio)) in (0, 240) and (not samples or spectrogram_png(audio)[:4] == b"\x89PNG")


# the page

def test_the_notebook_in_the_repository_is_what_the_command_serves():
    cells = nbformat.read(ROOT/"nbs"/"apps"/"clone.ipynb", 4).cells
    assert [c.source for c in cells if c.cell_type == "code"] == [c.source for c in widgets.app_notebook("clone", "nano").cells]

def test_a_model_with_odd_characters_stays_a_string():
    source = widgets.app_notebook(model="a'); import os; os.abort() #\\").cells[0].source
    assert compile(source, "cell", "exec") and "CloneApp(\"a'); import os; os.abort() #\\\\\")" in source

def test_the_page_is_refused_before_it_opens():
    with pytest.raises(OptionError, match="needs a token"): widgets.serve_page(host="0.0.0.0", token="")
    with pytest.raises(BundleError, match="there is no model"): widgets.serve_page(model="/nowhere")
    with pytest.raises(OptionError, match="no app"): widgets.app_notebook("sing")

def test_what_the_page_needs_is_a_part_of_the_package():
    import setuptools
    from unittest import mock
    with mock.patch.object(setuptools, "setup") as setup, mock.patch("os.getcwd", return_value=str(ROOT)):
        exec(compile((ROOT/"setup.py").read_text(), str(ROOT/"setup.py"), "exec"), dict(__file__=str(ROOT/"setup.py"), __name__="setup"))
    patterns = setup.call_args.kwargs["package_data"]["metavoice"]
    packed = {p for pattern in patterns for p in (ROOT/"metavoice").glob(pattern)}
    assert {p for p in (ROOT/"metavoice"/"web").rglob("*") if p.is_file()} <= packed
    assert {"player.js", "intake.js", "look.css", "index.html.j2"} <= {p.name for p in packed}
