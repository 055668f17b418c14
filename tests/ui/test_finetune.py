"The finetuning app without a browser: recordings are uploaded, buttons are pressed, and nano trains for a few steps."
import time

import pytest

for package in ("anywidget", "peft", "accelerate"):
    pytest.importorskip(package, reason=f"{package} isn't installed, which metavoice[ui,finetune] needs")

from metavoice.train.plots import read_log
from metavoice.ui.finetune import FinetuneApp
from metavoice.ui.finetune_panels import LOCAL_SOURCE


@pytest.fixture
def app(recordings, tmp_path, monkeypatch):
    "Return the app with ten recordings and a training of four steps, and stop it afterwards."
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    app = FinetuneApp("nano", tmp_path)
    for name, data, text in recordings:
        app.recordings.receive(name, data)
        app.recordings.receive(name.replace("flac", "txt"), text.encode())
    app.method.unit.value, app.method.length.value, app.method.evaluate_steps.value = "steps", 4, 2
    yield app
    app.stop()
    app.wait()
    app.executor.shutdown()


def press(button, app):
    "Press a button and wait until the work is done."
    button.click()
    app.wait()


def test_check_stop_and_problems(app, tmp_path):
    press(app.check_button, app)
    assert app.notice.text == "The recordings can be used for training." and "10 clips" in app.report.value
    assert not (tmp_path/"my-voice").exists()
    # Stop before the training begins
    app.start_button.click()
    press(app.stop_button, app)
    assert app.notice.text.startswith("Stopped") and not app.start_button.disabled
    # a problem
    app.recordings.rows["3"].text.value = ""
    press(app.check_button, app)
    assert app.notice.kind == "bad" and "3.flac" in app.report.value and "the text is empty" in app.report.value
    assert not app.start_button.disabled and not app.check_button.disabled and app.stop_button.disabled
    press(app.start_button, app)
    assert app.notice.kind == "bad" and "1 problem" in app.notice.text


def test_an_error_disappears_with_its_cause(app):
    app.method.learning_rate.value = "fast"
    app.start_button.click()
    assert "the learning rate is 'fast'" in app.notice.text and app.notice.kind == "bad"
    app.method.learning_rate.value = "1e-4"
    assert not app.notice.text
    app.recordings.source.value = LOCAL_SOURCE
    app.start_button.click()
    assert "name a folder" in app.notice.text
    app.recordings.path.value = "somewhere"
    assert not app.notice.text
    app.recordings.path.value = ""
    app.start_button.click()
    app.recordings.receive("more.txt", b"The dog slept.")
    assert not app.notice.text


@pytest.mark.slow
def test_training_gives_a_voice(app, tmp_path, hidden):
    app.start_button.click()
    assert app.start_button.disabled and not app.stop_button.disabled
    app.wait()
    assert app.notice.text.startswith("Finished") and (tmp_path/"my-voice"/"bundle").is_dir()
    assert "<circle" in app.loss_chart.value and not hidden(app.loss_card) and len(app.samples.children) >= 2
    app.samples.children[0].click()
    assert app.player.duration > .1 and "after 4 steps" in app.player.about
    preview = app.preview.children[0]
    assert preview.voice.choice.options[0] == "my-voice"
    preview.settings.denoise.value, preview.text.field.value = False, "The dog slept."
    press(preview.start_button, preview)
    assert preview.current.audio.duration > .3


@pytest.mark.slow
def test_a_stopped_run_is_kept_and_continues(app, tmp_path):
    app.method.length.value = 100_000
    app.start_button.click()
    while not any("loss" in line for line in app.lines.get("first", [])):
        time.sleep(.05)
    began = time.monotonic()
    press(app.stop_button, app)
    assert time.monotonic() - began < 600 and app.notice.text.startswith("Stopped; the training so far is kept")
    assert app.start_button.description == "Continue this run"
    reached = read_log(tmp_path/"my-voice")[-1]["step"]
    other = FinetuneApp("nano", tmp_path)  # a later session
    assert other.start_button.description == "Continue this run"
    other.recordings.source.value, other.recordings.path.value = LOCAL_SOURCE, str(tmp_path/"recordings")
    other.method.unit.value, other.method.length.value = "steps", reached+3
    other.method.evaluate_steps.value = 2
    press(other.start_button, other)
    assert other.notice.text.startswith("Finished"), other.notice.text
    steps = [line["step"] for line in other.lines["first"]]  # with those of the first session
    assert steps[::len(steps)-1] == [0, reached+3]


@pytest.mark.slow
def test_problems_can_be_left_out(app):
    app.recordings.rows["3"].text.value, app.method.skip.value = "", True
    press(app.start_button, app)
    assert app.notice.text.startswith("Finished"), app.notice.text


@pytest.mark.parametrize("change,words", [
    (lambda a: setattr(a.method.learning_rate, "value", "fast"), "learning rate is 'fast'"),
    (lambda a: setattr(a.method.length, "value", 0), "the length of the training is 0"),
    (lambda a: setattr(a.recordings.source, "value", LOCAL_SOURCE), "name a folder"),
    (lambda a: setattr(a.method.batch_size, "value", 0), "batch_size is 0"),
])
def test_bad_settings_are_explained(app, change, words):
    change(app)
    press(app.start_button, app)
    assert words in app.notice.text and app.notice.kind == "bad" and not app.start_button.disabled


def test_a_folder_without_recordings(app, tmp_path):
    (tmp_path/"none").mkdir()
    for path, words in ((tmp_path/"nowhere", "there is no"), (tmp_path/"none", "there are no recordings")):
        app.recordings.source.value, app.recordings.path.value = LOCAL_SOURCE, str(path)
        press(app.check_button, app)
        assert words in app.notice.text and app.notice.kind == "bad"
