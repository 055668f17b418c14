"The finetuning page without a browser: recordings are given, buttons are pressed, and nano learns for a few steps."
import time
from pathlib import Path

import nbformat
import pytest


for part in ("anywidget", "peft", "accelerate"): pytest.importorskip(part, reason=f"no {part} here, which is a part of metavoice[ui,finetune]")
from metavoice.audio.sound import load_audio
from metavoice.core.errors import OptionError
from metavoice.train.plots import read_log
from metavoice.ui.finetune_panels import LOCAL_SOURCE, MethodPanel, READING_PROMPTS, RecordingsPanel, draw_loss_chart
from metavoice.ui.finetune import FinetuneApp
from metavoice.generate.tts import TTS
from metavoice.ui.look import encode_to_bytes
from metavoice.ui.pages import make_app_notebook

ROOT = Path(__file__).parents[1]
TEXTS = ["The dog slept.", "Where is the red book?", "The old man walked to the river.", "The cat slept quietly.", "The dog and the cat slept.", "Where is the dog?",
         "The old man slept.", "The cat walked to the river.", "Where is the old man?", "The red book is here."]


@pytest.fixture(scope="module")
def recordings():
    "Sentences said by nano, which stand in for recordings: (name, data, text)."
    audios = TTS.from_pretrained("nano", device="cpu").synthesise(TEXTS, "slt", seed=1, denoise=False)
    return [(f"{n}.flac", encode_to_bytes(audio, "flac"), text) for n, (audio, text) in enumerate(zip(audios, TEXTS))]

@pytest.fixture
def app(recordings, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    made = FinetuneApp("nano", tmp_path)
    for name, data, text in recordings:
        made.recordings.receive(name, data)
        made.recordings.receive(name.replace("flac", "txt"), text.encode())
    made.method.unit.value, made.method.length.value, made.method.every.value = "steps", 4, 2
    yield made
    made.stop()
    made.wait()
    made.executor.shutdown()

def hidden(widget): return "mv-none" in widget._dom_classes


def test_from_recordings_to_a_voice(app, tmp_path):
    app.check.click(); app.wait()
    assert app.notice.text == "The recordings can be learnt from." and "10 clips" in app.report.value and not (tmp_path/"my-voice").exists()
    app.start_button.click()
    assert app.start_button.disabled and not app.end.disabled
    app.wait()
    assert app.notice.text.startswith("Finished") and (tmp_path/"my-voice"/"bundle").is_dir()
    assert "<circle" in app.loss_chart.value and not hidden(app.hearing) and len(app.samples.children) >= 2
    app.samples.children[0].click()
    assert app.player.duration > .1 and "after 4 steps" in app.player.about
    voice = app.preview.children[0]
    assert voice.voice.choice.options[0] == "my-voice"
    voice.settings.denoise.value, voice.text.field.value = False, "The dog slept."
    voice.start_button.click(); voice.wait()
    assert voice.take.audio.duration > .3

def test_stop_keeps_what_was_learnt_and_the_button_goes_on(app, tmp_path):
    app.method.length.value = 100_000
    app.start_button.click()
    while not any("loss" in line for line in app.lines.get("first", [])): time.sleep(.05)
    began = time.monotonic()
    app.end.click(); app.wait()
    assert time.monotonic()-began < 60 and app.notice.text.startswith("Stopped; what was learnt is kept") and app.start_button.description == "Go on with this run"
    reached = read_log(tmp_path/"my-voice")[-1]["step"]
    other = FinetuneApp("nano", tmp_path) # another day
    assert other.start_button.description == "Go on with this run"
    other.recordings.source.value, other.recordings.path.value = LOCAL_SOURCE, str(tmp_path/"recordings")
    other.method.unit.value, other.method.length.value, other.method.every.value = "steps", reached+3, 2
    other.start_button.click(); other.wait()
    assert other.notice.text.startswith("Finished"), other.notice.text
    assert [line["step"] for line in other.lines["first"]][::len(other.lines["first"])-1] == [0, reached+3] # with what was told before

def test_stop_before_the_training_begins(app):
    app.start_button.click()
    app.end.click(); app.wait()
    assert app.notice.text.startswith("Stopped") and not app.start_button.disabled

def test_problems_are_shown_and_can_be_left_out(app):
    app.recordings.rows["3"][1].value = ""
    app.check.click(); app.wait()
    assert app.notice.kind == "bad" and "3.flac" in app.report.value and "the text is empty" in app.report.value
    assert not app.start_button.disabled and not app.check.disabled and app.end.disabled
    app.start_button.click(); app.wait()
    assert app.notice.kind == "bad" and "1 problem" in app.notice.text
    app.method.skip.value = True
    app.start_button.click(); app.wait()
    assert app.notice.text.startswith("Finished"), app.notice.text

@pytest.mark.parametrize("change,words", [(lambda a: setattr(a.method.rate, "value", "fast"), "learning rate is 'fast'"), (lambda a: setattr(a.method.length, "value", 0), "how long is 0"),
                                          (lambda a: setattr(a.recordings.source, "value", LOCAL_SOURCE), "name a folder"), (lambda a: setattr(a.method.batch, "value", 0), "batch is 0")])
def test_what_cannot_be_done_is_said(app, change, words):
    change(app)
    app.start_button.click(); app.wait()
    assert words in app.notice.text and app.notice.kind == "bad" and not app.start_button.disabled

def test_a_place_without_recordings(app, tmp_path):
    (tmp_path/"none").mkdir()
    for path, words in ((tmp_path/"nowhere", "there is no"), (tmp_path/"none", "there are no recordings")):
        app.recordings.source.value, app.recordings.path.value = LOCAL_SOURCE, str(path)
        app.check.click(); app.wait()
        assert words in app.notice.text and app.notice.kind == "bad"


# recordings

@pytest.fixture
def panel(tmp_path): return RecordingsPanel(tmp_path/"recordings")

def test_sentences_read_aloud_bring_their_text(panel, recordings):
    spoken = encode_to_bytes(load_audio(recordings[0][1]), "wav")
    for n in range(len(READING_PROMPTS)+1):
        assert panel.intake.script == READING_PROMPTS[n % len(READING_PROMPTS)]
        panel.receive("recording.wav", spoken)
    assert list(panel.rows) == [f"read-{n+1:03}" for n in range(len(READING_PROMPTS)+1)]
    assert [field.value for _, field, _ in panel.rows.values()][:2] == list(READING_PROMPTS[:2])

def test_texts_may_come_before_their_recordings(panel, recordings):
    panel.receive("0.txt", b"\xef\xbb\xbfThe dog slept.\n")
    panel.receive(*recordings[0][:2])
    assert panel.rows["0"][1].value == "The dog slept."
    assert panel.value == str(panel.folder) and (panel.folder/"0.txt").read_text() == "The dog slept."

def test_a_table_counts_more_than_what_is_typed(panel, recordings):
    panel.receive(*recordings[0][:2])
    panel.receive("train.csv", b"audio_files|captions\n0.flac|The dog slept.\n")
    assert panel.value == str(panel.folder/"train.csv")

def test_removed_recordings_are_gone(panel, recordings):
    for name, data, _ in recordings[:2]: panel.receive(name, data)
    panel.value
    panel.rows["0"][2].children[-1].click()
    assert list(panel.rows) == ["1"] and sorted(p.name for p in panel.folder.iterdir()) == ["1.flac", "1.txt"]

@pytest.mark.parametrize("name,data,words", [("a.wav", b"nothing", "in no supported format"), ("a.wav", b"", "empty"), ("a.txt", b"\xff\xfe\x00", "isn't UTF-8"), ("a.exe", b"MZ", "in no supported format")])
def test_bad_files_say_why_and_are_not_kept(panel, name, data, words):
    panel.receive(name, data)
    assert words in panel.notice.text and panel.notice.kind == "bad" and not panel.rows and not panel.folder.exists()
    with pytest.raises(OptionError): panel.value


# the rest

def test_method_settings():
    panel = MethodPanel("runs")
    panel.method.value, panel.unit.value, panel.length.value, panel.rate.value, panel.say.value = "full", "epochs", 2.5, "1e-4", "One.\n\n Two. "
    value = panel.value
    assert (value["method"], value["epochs"], value["rate"], value["say"], value["out"]) == ("full", 2.5, 1e-4, ["One.", "Two."], str(Path("runs")/"my-voice"))
    assert not {"minutes", "steps"} & set(value)

def test_charts_of_little():
    assert draw_loss_chart([]) == "" and draw_loss_chart([dict(step=0, held_out_audio=3.)]).count("<circle") == 1
    assert "nan" not in draw_loss_chart([dict(step=1, loss=2.), dict(step=2, loss=2.)])

def test_the_notebook_in_the_repository_is_what_the_command_serves():
    cells = nbformat.read(ROOT/"nbs"/"apps"/"finetune.ipynb", 4).cells
    assert [c.source for c in cells if c.cell_type == "code"] == [c.source for c in make_app_notebook("finetune", "nano").cells]
    assert "FinetuneApp('nano', '/a')" in make_app_notebook("finetune", "nano", "/a").cells[0].source and "/a" not in make_app_notebook("clone", "nano", "/a").cells[0].source
