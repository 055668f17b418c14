"The clone app without a browser: values are set and buttons are pressed in the process."
import logging
import threading
import time

import pytest
import torch

pytest.importorskip("anywidget", reason="anywidget isn't installed, which metavoice[ui] needs")

from metavoice.audio.sound import Audio, load_audio
from metavoice.core.errors import AudioError
from metavoice.ui.clone import CloneApp
from metavoice.ui.panels import ADD_VOICE

LONG_TEXT = "The old man walked to the river. "*200


@pytest.fixture
def app(tts):
    "Return the app without denoiser and with one take, and stop it afterwards."
    app = CloneApp(tts)
    app.settings.denoise.value, app.settings.sliders["takes"].value = False, 1
    yield app
    app.stop()
    app.wait()
    app.executor.shutdown()


def press(app, text, voice="af_heart"):
    "Speak a text, and return the app when it is done."
    app.text.field.value, app.voice.choice.value = text, voice
    app.start_button.click()
    return app.wait()


def test_speaks_a_sentence(app, hidden):
    updates, main = [], threading.main_thread()

    def observe(change):
        updates.append((change["new"], threading.current_thread() is main))

    app.progress.observe(observe, "value")
    app.progress.min_interval = 0
    press(app, "The dog slept.")
    entry, player = app.current, app.player
    assert .3 < entry.audio.duration < 5 and load_audio(player.sound).duration == pytest.approx(entry.audio.duration)
    assert (player.heading, hidden(app.placeholder), hidden(app.player_box)) == ("The dog slept.", True, False)
    assert (app.stop_button.disabled, app.start_button.disabled) == (True, False)
    assert hidden(app.progress) and player.picture.startswith(b"\x89PNG") and len(player.peaks) == 240
    # progress is shown from the worker thread while it works
    assert len(updates) > 5 and not any(in_main for _, in_main in updates)
    for stage in ("first stage", "second stage", "vocoder"):
        assert any(stage in value for value, _ in updates)


def test_restored_options_repeat_the_audio(app, hidden):
    press(app, "The dog slept.")
    first = app.current
    press(app, "Where is the red book?", "af_bella")
    assert len(app.history.entries) == 2 and not hidden(app.history_card)
    app.history.children[1].click()
    assert app.current is first and app.player.heading == "The dog slept."
    app.player.handle_message(None, dict(repeat=True), [])
    found = (app.text.value, app.voice.choice.value, app.settings.new_seed.value)
    assert found == ("The dog slept.", "af_heart", False)
    app.start_button.click()
    app.wait()
    assert app.current is not first
    assert app.current.audio == first.audio and app.current.options == first.options


def test_settings_reach_the_model(app, tts, monkeypatch):
    seen = {}

    def synthesise(text, voice, on_progress, **options):
        seen.update(options)
        return Audio(torch.ones(2400)/2, 24000)

    monkeypatch.setattr(tts, "synthesise", synthesise)
    wanted = dict(guidance=2.5, prompt_guidance=1.5, top_p=.95, temperature=1.1, takes=4, speed=1.25)
    for name, value in wanted.items():
        app.settings.sliders[name].value = value
    app.settings.denoise.value, app.settings.top_k.value = True, 50
    app.settings.new_seed.value, app.settings.seed.value = False, 7
    press(app, "The dog slept.")
    assert seen == wanted | dict(top_k=50, seed=7, vocoder="codec", denoise=True, words=True)


def test_the_words_of_the_speech_are_shown_as_they_were_written(app):
    press(app, "It cost $5.\n\nWas <b>it</b> & 2 < 3?")
    assert "".join(before + word for before, word, _ in app.player.words).split("\n\n")[0] == "It cost $5."
    starts = [start for *_, start in app.player.words]
    assert starts == sorted(starts) and 0 <= starts[0] and starts[-1] < app.player.duration
    assert app.player.captions == ["srt", "vtt"]


def test_another_take_repeats_the_entry_in_the_player(app, hidden):
    assert app.take_button.disabled and app.take_button.description == "Another take"
    app.start_take()
    assert app.future is None  # there is nothing to repeat
    app.settings.seed.value, app.settings.new_seed.value = 17, False
    press(app, "The dog slept.")
    first = app.current
    assert not app.take_button.disabled and hidden(app.history_card)
    app.text.field.value, app.voice.choice.value = "Where is the red book?", "bf_emma"
    app.settings.sliders["speed"].value = 1.5
    app.take_button.click()
    app.wait()
    second = app.current
    assert (second.text, second.voice, second.options) == (first.text, first.voice, first.options | dict(seed=18))
    assert second.audio != first.audio and app.settings.seed.value == 17
    rows = [row.description for row in app.history.children]
    assert [row.split(" · ")[:2] for row in rows] == [["Take 2", "seed 18"], ["Take 1", "seed 17"]]
    app.history.children[1].click()
    assert app.current is first and load_audio(app.player.sound).duration == pytest.approx(first.audio.duration)
    app.take_button.click()
    app.wait()
    assert [entry.options["seed"] for entry in app.history.entries] == [19, 18, 17]


def test_another_take_waits_for_a_running_job_and_survives_an_error(app, tts, monkeypatch):
    press(app, "The dog slept.")
    first, started, go = app.current, threading.Event(), threading.Event()

    def waits(*args, **options):
        started.set()
        assert go.wait(60)
        raise AudioError("no sound")

    monkeypatch.setattr(tts, "synthesise", waits)
    app.take_button.click()
    assert started.wait(60) and app.take_button.disabled and app.start_button.disabled
    future = app.future
    app.start_take()
    app.start()
    assert app.future is future
    go.set()
    app.wait()
    assert app.notice.text == "no sound" and app.current is first
    assert not app.take_button.disabled and not app.start_button.disabled


@pytest.mark.parametrize("text,voice,words", [
    ("", "af_heart", "the text is empty"),
    ("…", "af_heart", "nothing to say"),
    ("😀!", "af_heart", "😀"),
    ("The dog slept.", ADD_VOICE, "there is no voice yet"),
])
def test_bad_input_is_explained(app, text, voice, words):
    press(app, text, voice)
    assert words in app.notice.text and app.notice.kind == "bad"
    assert not app.start_button.disabled and app.current is None


@pytest.mark.parametrize("text,voice", [("", "af_heart"), ("日本", "af_heart"), ("The dog slept.", ADD_VOICE)])
def test_an_error_is_said_once_and_disappears_with_its_cause(app, text, voice):
    press(app, text, voice)
    notices = app.notice, app.text.about, app.voice.notice
    assert [notice.kind for notice in notices if notice.text].count("bad") == 1 and app.notice.kind == "bad"
    app.text.field.value, app.voice.choice.value = "The cat slept.", "af_bella"
    assert not app.notice.text and not any(notice.kind == "bad" for notice in notices)


def test_a_notice_that_is_no_error_stays(app):
    app.notice.show("Stopped.")
    app.text.field.value = "The cat slept."
    assert app.notice.text == "Stopped."


def test_a_bug_is_named_and_logged(app, tts, monkeypatch, caplog):
    def broken(*args, **options):
        raise ZeroDivisionError("by <b>zero</b>")

    monkeypatch.setattr(tts, "synthesise", broken)
    press(app, "The dog slept.")
    assert "ZeroDivisionError: by <b>zero</b>" in app.notice.text and "&lt;b&gt;" in app.notice.value
    assert not app.start_button.disabled
    assert any(r.exc_info and r.exc_info[0] is ZeroDivisionError for r in caplog.records)


def test_stop_ends_the_work_soon_and_the_app_works_on(app):
    app.text.field.value = LONG_TEXT
    app.start_button.click()
    future = app.future
    while not app.progress.value or "generated" not in app.progress.value:
        time.sleep(.02)
    app.start()  # a second press while it speaks does nothing
    assert app.future is future
    began = time.monotonic()
    app.stop_button.click()
    app.wait()
    assert time.monotonic() - began < 60 and app.notice.text == "Stopped." and not app.history.entries
    assert press(app, "The dog slept.").current is not None


def test_warnings_appear_beside_the_audio(app, tts, monkeypatch):
    def warns(*args, **options):
        logging.getLogger("metavoice.generate").warning("'a' didn't end")
        return Audio(torch.ones(2400)/2, 24000)

    monkeypatch.setattr(tts, "synthesise", warns)
    press(app, "The dog slept.")
    assert app.notice.kind == "note" and "didn't end" in app.notice.text


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_an_uploaded_voice_speaks(app, tts, bella, send, hidden, suffix):
    silence = torch.zeros(2*bella.sample_rate)
    samples = torch.cat([silence, bella.samples[:10*bella.sample_rate], silence])
    send(app.voice.upload, f"my voice.{suffix}", Audio(samples, bella.sample_rate).to_bytes(suffix), 100_000)
    assert app.voice.choice.value == "my voice" and hidden(app.voice.upload_box) and not hidden(app.voice.player_box)
    assert app.voice.player.duration < 10.3 and "cut off" in app.voice.player.about
    assert "30 s or more" in app.voice.notice.text
    assert torch.dot(app.voice.voice().embedding, tts.voice("af_bella").embedding) > .9
    press(app, "The dog slept.", "my voice")
    assert app.current.voice == "my voice" and "my voice" in app.player.about
