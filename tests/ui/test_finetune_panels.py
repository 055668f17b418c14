"The panels for recordings and method, and the loss chart, without a browser."
from pathlib import Path

import pytest

pytest.importorskip("anywidget", reason="anywidget isn't installed, which metavoice[ui] needs")

from metavoice.audio.sound import load_audio
from metavoice.core.errors import OptionError
from metavoice.ui.finetune_panels import READING_PROMPTS, MethodPanel, RecordingsPanel, draw_loss_chart


@pytest.fixture
def panel(tmp_path):
    "Return an empty panel."
    return RecordingsPanel(tmp_path/"recordings")


def test_sentences_read_aloud_come_with_their_text(panel, recordings):
    wav = load_audio(recordings[0][1]).to_bytes("wav")
    for n in range(len(READING_PROMPTS)+1):
        assert panel.upload.script == READING_PROMPTS[n % len(READING_PROMPTS)]
        panel.receive("recording.wav", wav)
    assert list(panel.rows) == [f"read-{n+1:03}" for n in range(len(READING_PROMPTS)+1)]
    assert [entry.text.value for entry in panel.rows.values()][:2] == list(READING_PROMPTS[:2])


def test_a_text_may_come_before_its_recording(panel, recordings):
    panel.receive("0.txt", b"\xef\xbb\xbfThe dog slept.\n")
    panel.receive(*recordings[0][:2])
    assert panel.rows["0"].text.value == "The dog slept."
    assert panel.value == str(panel.folder) and (panel.folder/"0.txt").read_text() == "The dog slept."


def test_a_table_overrides_typed_texts(panel, recordings):
    panel.receive(*recordings[0][:2])
    panel.receive("train.csv", b"audio_files|captions\n0.flac|The dog slept.\n")
    assert panel.value == str(panel.folder/"train.csv")


def test_a_table_can_be_removed_and_replaced(panel, recordings):
    panel.receive(*recordings[0][:2])
    panel.rows["0"].text.value = "The dog slept."
    for name in ("train.csv", "texts.csv"):
        panel.receive(name, b"audio_files|captions\n0.flac|The dog slept.\n")
    assert sorted(p.name for p in panel.folder.iterdir()) == ["0.flac", "texts.csv"]
    panel.list.children[0].children[-1].click()
    assert panel.table is None and panel.value == str(panel.folder) and panel.notice.text == "1 recording"
    assert sorted(p.name for p in panel.folder.iterdir()) == ["0.flac", "0.txt"]


def test_errors_of_an_upload_stay_until_the_next(panel, recordings):
    changes = []
    panel.on_change = lambda: changes.append(1)
    panel.upload.receive(None, dict(begin=True), [])
    panel.receive("odd.wav", b"nothing")
    panel.receive(*recordings[0][:2])
    panel.receive("latin.txt", "Zoë".encode("latin-1"))
    assert panel.notice.kind == "bad"
    assert panel.notice.text.count("odd.wav") == panel.notice.text.count("latin.txt") == 1
    panel.receive("odd.wav", recordings[1][1])  # repaired
    assert "odd.wav" not in panel.notice.text and "latin.txt" in panel.notice.text
    panel.upload.receive(None, dict(begin=True), [])
    assert (panel.notice.text, panel.notice.kind) == ("2 recordings", "good") and len(changes) >= 4
    for stem in list(panel.rows):
        panel.remove(stem)
    assert panel.notice.text == ""


def test_removing_a_recording_removes_its_files(panel, recordings):
    for name, data, _ in recordings[:2]:
        panel.receive(name, data)
    assert panel.value == str(panel.folder)  # writes the texts
    panel.rows["0"].row.children[-1].click()
    assert list(panel.rows) == ["1"] and sorted(p.name for p in panel.folder.iterdir()) == ["1.flac", "1.txt"]


@pytest.mark.parametrize("name,data,words", [
    ("a.wav", b"nothing", "isn't audio"),
    ("a.wav", b"", "empty"),
    ("a.txt", b"\xff\xfe\x00", "isn't UTF-8"),
    ("a.exe", b"MZ", "isn't audio"),
])
def test_bad_files_are_explained_and_not_kept(panel, name, data, words):
    panel.receive(name, data)
    assert words in panel.notice.text and panel.notice.kind == "bad"
    assert not panel.rows and not panel.folder.exists()
    with pytest.raises(OptionError):
        panel.value  # noqa: B018


def test_method_settings():
    panel = MethodPanel("runs")
    panel.method.value, panel.unit.value, panel.length.value = "full", "epochs", 2.5
    panel.learning_rate.value, panel.sample_texts.value = "1e-4", "One.\n\n Two. "
    value = panel.value
    wanted = dict(method="full", epochs=2.5, learning_rate=1e-4, sample_texts=["One.", "Two."])
    assert {name: value[name] for name in wanted} == wanted and value["out"] == str(Path("runs")/"my-voice")
    assert not {"minutes", "steps"} & set(value)


def test_charts_of_few_points():
    assert draw_loss_chart([]) == "" and draw_loss_chart([dict(step=0, held_out_audio=3.)]).count("<circle") == 1
    assert "nan" not in draw_loss_chart([dict(step=1, loss=2.), dict(step=2, loss=2.)])


def test_a_recording_with_an_unknown_ending_is_found_by_the_training(panel, recordings):
    panel.receive("note.dat", recordings[0][1])
    assert [path.name for path in panel.folder.iterdir()] == ["note.dat.wav"]
    assert list(panel.rows) == ["note.dat"]
