"Audiobooks: chapters, tags, pauses, speakers, resuming, memory."
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile
import torch
from epubs import CHAPTERS, write_epub
from helpers import raises_one_line

import metavoice.jobs.books as books
from metavoice.audio.chapters import read_book_file
from metavoice.audio.encode import is_generated
from metavoice.audio.sound import load_audio
from metavoice.core.errors import MetaVoiceError, OptionError, OutputError, TextError
from metavoice.jobs.books import read_cast, speak_book
from metavoice.jobs.ray_backend import BatchWorker
from metavoice.text.chapters import Chapter, Document
from metavoice.text.documents import read_document
from metavoice.text.markup import Block
from metavoice.text.passages import BookSettings

HOW = dict(denoise=False, takes=1)


@pytest.fixture
def book(tmp_path):
    return read_document(write_epub(tmp_path / "book.epub"))


def make_book(*texts):
    "A document with a chapter for each text."
    blocks = [[Block(line) for line in text.split("\n")] for text in texts]
    return Document([Chapter(f"Chapter {n}", one, n) for n, one in enumerate(blocks, 1)])


def stop_after(passages):
    "A progress function that stops after some passages."

    def progress(stage, done, of):
        if stage == "book" and done == passages:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize("ending", ["m4b", "mp3"])
def test_chapters_tags_and_cover(tts, book, tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    done = speak_book(tts, book, path, voice="bf_emma", **HOW)
    found = read_book_file(path)
    assert [title for title, *_ in found["chapters"]] == list(CHAPTERS)
    edges, at = [], 0
    for _, seconds in done["chapters"]:
        edges.append((at, at := at + seconds))
    assert np.allclose([chapter[1:] for chapter in found["chapters"]], edges, atol=.002)
    assert abs(found["duration"] - done["duration"]) < .1 and found["sample_rate"] == 24000
    tags = found["tags"]
    assert (tags["title"], tags["artist"], tags["composer"]) == ("Two Days", "Ann Reed", "bf_emma")
    assert tags["date"] == "2024-05-01" and "Elm Press" in tags.get("publisher", tags.get("description"))
    assert found["cover"] == ("png", 30, 40) and is_generated(path)
    assert sorted(os.listdir(tmp_path)) == [path.name, "book.epub"]


@pytest.mark.skipif(not shutil.which("ffprobe"), reason="needs ffprobe")
def test_ffprobe_sees_the_chapters(tts, quick, book, tmp_path):
    speak_book(tts, book, tmp_path / "a.m4b", **HOW)
    command = ["ffprobe", "-v", "error", "-show_chapters", "-show_streams", "-of", "json", str(tmp_path / "a.m4b")]
    found = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
    assert [chapter["tags"]["title"] for chapter in found["chapters"]] == list(CHAPTERS)
    ends = [float(chapter["end_time"]) for chapter in found["chapters"]]
    assert ends[:-1] == [float(chapter["start_time"]) for chapter in found["chapters"][1:]]
    sound, *_, cover = found["streams"]
    assert (sound["codec_name"], sound["tags"]["language"], cover["disposition"]["attached_pic"]) == ("aac", "eng", 1)


def test_pauses_are_exact(tts, quick, tmp_path):
    blocks = [Block("Title", "heading", level=1), Block("One."), Block("Two.", rule=True), Block("Three.")]
    settings = BookSettings(title_pause=1, paragraph_pause=.5, scene_pause=3, chapter_pause=4)
    book = Document([Chapter("A", blocks, 1)])
    done = speak_book(tts, book, tmp_path / "out", format="wav", settings=settings, **HOW)
    samples, rate = soundfile.read(tmp_path / "out" / "01 A.wav", dtype="int16")
    edges = np.flatnonzero(np.diff(np.concatenate([[0], samples == 0, [0]]).astype(int)))
    runs = [(b - a) / rate for a, b in zip(edges[::2], edges[1::2]) if b - a > 1000]
    assert np.allclose(runs, [1, .5, 3, 4], atol=.01)
    assert done["duration"] == len(samples) / rate


def test_the_speakers_of_a_script_have_their_voices(tts, quick, tmp_path):
    (tmp_path / "cast.tsv").write_text("name\tvoice\ttemperature\nAnn\tbf_emma\t0.3\nnarrator\tam_michael\t\nTom\t\t\n")
    book = make_book("It rained.\nAnn: Yes.\nTOM (softly): No.\nNote: it rained.\nAnn: No.")
    speak_book(tts, book, tmp_path / "a.mp3", cast=read_cast(tmp_path / "cast.tsv"), voice="af_bella", **HOW)
    found = {(segment.text, segment.voice.name) for segment in quick}
    assert found == {("It rained.", "am_michael"), ("Yes.", "bf_emma"), ("No.", "af_bella"),
                     ("Note: it rained.", "am_michael"), ("No.", "bf_emma")}
    with raises_one_line(MetaVoiceError, "chapter 1: ", "nobody"):
        speak_book(tts, book, tmp_path / "a.mp3", cast={"ann": dict(voice="nobody")}, **HOW)


def test_two_voices_sound_different(tts, tmp_path):
    book = make_book("Ann: The old man walked to the river.\nTom: The old man walked to the river.")
    cast = dict(ann=dict(voice="bf_emma"), tom=dict(voice="am_michael"))
    speak_book(tts, book, tmp_path / "out", format="flac", cast=cast, settings=BookSettings(paragraph_pause=2), **HOW)
    sound = load_audio(tmp_path / "out" / "01 Chapter 1.flac")
    silent = (sound.samples.unfold(0, 24000, 1000).abs().amax(1) == 0).nonzero()[0].item() * 1000
    parts = sound.samples[:silent], sound.samples[silent + 40000 :]
    embeddings = [tts.bundle.speaker_encoder.embed_audio(type(sound)(part, 24000)) for part in parts]
    voices = [tts.voice(name).embedding for name in ("bf_emma", "am_michael")]
    likeness = torch.stack([torch.stack([a @ b for b in voices]) for a in embeddings])
    assert likeness[0].argmax() == 0 and likeness[1].argmax() == 1, likeness


def test_an_interrupted_book_goes_on(tts, quick, book, tmp_path):
    speak_book(tts, book, tmp_path / "whole.m4b", **HOW)
    count = len(quick)
    with pytest.raises(KeyboardInterrupt):
        speak_book(tts, book, tmp_path / "a.m4b", on_progress=stop_after(2), **HOW)
    assert sorted(os.listdir(tmp_path / "a.m4b.parts"))[:2] == ["00001-00001.flac", "00002-00001.flac"]
    quick.clear()
    done = speak_book(tts, book, tmp_path / "a.m4b", **HOW)
    assert (done["passages"], done["spoken"]) == (3, 1) and 0 < len(quick) < count
    assert (tmp_path / "a.m4b").read_bytes() == (tmp_path / "whole.m4b").read_bytes()
    assert not (tmp_path / "a.m4b.parts").exists()


def test_only_what_changed_is_spoken_again(tts, quick, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        speak_book(tts, make_book("One.", "Two.", "Three."), tmp_path / "a.mp3", on_progress=stop_after(3), **HOW)
    quick.clear()
    done = speak_book(tts, make_book("One.", "Changed.", "Three."), tmp_path / "a.mp3", chapters=[1, 2], **HOW)
    assert [segment.text for segment in quick] == ["Changed."] and [title for title, _ in done["chapters"]] == [
        "Chapter 1", "Chapter 2"]


def test_a_failed_passage_keeps_the_others(tts, quick, tmp_path):
    with raises_one_line(MetaVoiceError, "chapter 2: nothing was said", "1 of 3 passages failed"):
        speak_book(tts, make_book("One.", "silence", "Three."), tmp_path / "a.m4b", **HOW)
    assert os.listdir(tmp_path) == ["a.m4b.parts"] and len(list(tmp_path.glob("*/*.flac"))) == 2
    with raises_one_line(TextError, "chapter 1: character '你'"):
        speak_book(tts, make_book("One 你."), tmp_path / "b.m4b", strict=True, **HOW)


def test_outputs(tts, quick, tmp_path):
    book = make_book("One.", "Two.")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "01 Chapter 1.mp3").write_text("mine")
    with raises_one_line(OutputError, "metavoice didn't make it"):
        speak_book(tts, book, tmp_path / "out", **HOW)
    (tmp_path / "out" / "01 Chapter 1.mp3").unlink()
    speak_book(tts, book, tmp_path / "out", **HOW)
    speak_book(tts, book, tmp_path / "out", **HOW)  # replaces its own files
    assert sorted(os.listdir(tmp_path / "out")) == ["01 Chapter 1.mp3", "02 Chapter 2.mp3"]
    with soundfile.SoundFile(tmp_path / "out" / "02 Chapter 2.mp3") as file:
        assert (file.title, file.tracknumber) == ("Chapter 2", "2")
    for path, options, words in (("a.ogg", {}, "unknown ending '.ogg'"), ("out", dict(format="m4b"), "unknown format"),
                                 ("no/no/a.m4b", {}, None)):
        if words:
            with raises_one_line(MetaVoiceError, words):
                speak_book(tts, book, tmp_path / path, **options, **HOW)
    with pytest.raises(OptionError, match="pip install"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(sys.modules, "av", None)
            speak_book(tts, book, tmp_path / "a.m4b", **HOW)


def test_samples_are_never_held(tts, quick, tmp_path, monkeypatch):
    written = []

    def open_nothing(*args, **options):
        class Output:
            samples_written = 0

            def __enter__(self):
                return self

            def __exit__(self, *error):
                args[0].write_bytes(b"written")

            def __call__(self, samples):
                written.append(len(samples))

        return Output()

    monkeypatch.setattr(books, "open_book_file", open_nothing)
    monkeypatch.setattr(books, "BLOCK", 4096)
    book = make_book(*["The dog slept well. " * 150] * 3)
    done = speak_book(tts, book, tmp_path / "a.m4b", **HOW)
    assert max(written) <= 4096 and sum(written) == round(done["duration"] * 24000) > 50 * 4096
    assert len(done["chapters"]) == 3 and done["passages"] > 9  # no passage is longer than about a minute


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no kill -9")
def test_a_book_survives_kill_9(tts, book, tmp_path, command):
    arguments = ["read", str(tmp_path / "book.epub"), "-o", str(tmp_path / "a.m4b"), "--no-denoise", "--takes", "1"]
    arguments += ["--batch-size", "1"]  # one passage after another
    process = subprocess.Popen([*command.args, *arguments], env=command.env, stderr=subprocess.PIPE)
    while not list(tmp_path.glob("a.m4b.parts/0*.flac")) and process.poll() is None:
        time.sleep(.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL, process.stderr.read()
    assert not (tmp_path / "a.m4b").exists()
    done = speak_book(tts, book, tmp_path / "a.m4b", **HOW)
    assert 1 <= done["spoken"] < done["passages"]
    speak_book(tts, book, tmp_path / "b.m4b", **HOW)
    assert (tmp_path / "a.m4b").read_bytes() == (tmp_path / "b.m4b").read_bytes()


def test_the_workers_of_a_cluster_give_the_same_book(tts, book, tmp_path):
    worker = BatchWorker("nano", device="cpu")  # test_ray_backend.py runs it in a cluster

    def speak(rows, batch_size):
        for row in reversed(rows):  # in the order in which they are ready
            for _, samples, _ in worker.speak(pickle.loads(pickle.dumps([row])), batch_size):
                yield row, torch.from_numpy(samples), True

    speak_book(tts, book, tmp_path / "a.m4b", speak=speak, **HOW)
    speak_book(tts, book, tmp_path / "b.m4b", **HOW)
    assert (tmp_path / "a.m4b").read_bytes() == (tmp_path / "b.m4b").read_bytes()
