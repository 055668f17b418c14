"Long texts: the same file after any interruption, errors that leave nothing behind, and flat memory."
import os
import signal
import subprocess
import threading
import time
from dataclasses import replace

import pytest
import soundfile
import torch

import metavoice.jobs.longform as longform
from metavoice.audio.encode import is_generated, to_int16
from metavoice.core.errors import MetaVoiceError, OptionError, OutputError, TextError
from metavoice.generate.segments import SEGMENTS_PER_SECTION
from metavoice.generate.voice import Voice
from metavoice.jobs.longform import read_aloud

NUMBERS = "one two three four five six seven eight nine ten".split()
BOOK = "\n\n".join(f"The dog number {word} slept." for word in NUMBERS * 4)
TEXTS = ["The dog slept.", "Where is the red book?", "The cat slept.", "He went home.", "She sat down.", "It rained."]


def interrupt_after(segments):
    "A callback that interrupts a job after so many segments."

    def on_progress(stage, done, of):
        if stage == "speech" and done == segments:
            raise KeyboardInterrupt

    return on_progress


def test_a_book_equals_synthesise(tts, tmp_path):
    text = "The dog slept.\n\nWhere is the red book?"
    done = read_aloud(tts, text, tmp_path / "a.flac", seed=3, takes=2)
    audio = tts.synthesise(text, seed=3, takes=2)
    got, rate = soundfile.read(tmp_path / "a.flac", dtype="int16")
    assert rate == audio.sample_rate == done["sample_rate"]
    assert torch.equal(torch.from_numpy(got), to_int16(audio.samples))
    assert done["duration"] == pytest.approx(audio.duration) and done["segments"] >= 2
    assert os.listdir(tmp_path) == ["a.flac"]


def test_captions_and_speed_of_a_resumed_text(tts, tmp_path):
    how, book = dict(denoise=False, takes=1, speed=1.5), "\n\n".join(f"{n}." for n in range(1, 21))
    whole = read_aloud(tts, book, tmp_path / "whole.wav", seed=5, captions=tmp_path / "whole.srt", **how)
    assert [word.text for word in whole["words"]] == book.split()
    assert len(whole["words"]) == 20 > SEGMENTS_PER_SECTION + 3
    assert 0 <= whole["words"][-1].end <= whole["duration"]
    for after in (SEGMENTS_PER_SECTION - 1, SEGMENTS_PER_SECTION + 3):
        options = dict(resume=True, captions=tmp_path / "a.srt", **how)
        with pytest.raises(KeyboardInterrupt):
            read_aloud(tts, book, tmp_path / "a.wav", seed=5, on_progress=interrupt_after(after), **options)
        with pytest.raises(OptionError, match="another job"):
            read_aloud(tts, book, tmp_path / "a.wav", seed=5, resume=True, **how)
        assert read_aloud(tts, book, tmp_path / "a.wav", **options)["resumed"] == after
        for name in ("wav", "srt"):
            assert (tmp_path / f"a.{name}").read_bytes() == (tmp_path / f"whole.{name}").read_bytes()


@pytest.mark.parametrize("after", [
    1, SEGMENTS_PER_SECTION - 1, SEGMENTS_PER_SECTION, SEGMENTS_PER_SECTION + 1, 2 * SEGMENTS_PER_SECTION + 5, 39,
])
def test_resumed_after_any_segment_it_is_the_same_file(tts, quick, tmp_path, after):
    options = dict(denoise=after == SEGMENTS_PER_SECTION + 1)  # once is enough; it takes most of the time
    whole = read_aloud(tts, BOOK, tmp_path / "whole.wav", seed=5, **options)
    with pytest.raises(KeyboardInterrupt):
        read_aloud(tts, BOOK, tmp_path / "a.wav", seed=5, resume=True, on_progress=interrupt_after(after), **options)
    assert sorted(os.listdir(tmp_path)) == ["a.wav.parts", "whole.wav"]
    quick.clear()
    done = read_aloud(tts, BOOK, tmp_path / "a.wav", resume=True, **options)
    assert whole["segments"] == 40 and done["resumed"] == after and done["seed"] == 5
    assert [segment.number for segment in quick] == list(range(after, 40))
    assert (tmp_path / "a.wav").read_bytes() == (tmp_path / "whole.wav").read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["a.wav", "whole.wav"]


def test_how_the_text_is_read_belongs_to_the_job(tts, quick, tmp_path):
    text, path = "It cost $5.\n\nThe dog slept.", tmp_path / "a.wav"
    with pytest.raises(KeyboardInterrupt):
        read_aloud(tts, text, path, seed=5, resume=True, denoise=False, on_progress=interrupt_after(1))
    for change in (dict(spoken=False), dict(language="en-GB"), dict(lexicon=dict(dog="hound")), dict(emoji=True)):
        with pytest.raises(OptionError, match="is from another job"):
            read_aloud(tts, text, path, resume=True, denoise=False, **change)
    quick.clear()
    assert read_aloud(tts, text, path, resume=True, denoise=False)["resumed"] == 1
    assert [segment.text for segment in quick] == ["The dog slept."]


def test_the_journal_stays_small(tts, quick, tmp_path):
    most = []

    def count(stage, done, of):
        if stage == "speech":
            most.append(len(list((tmp_path / "a.wav.parts").glob("segment-*"))))

    read_aloud(tts, BOOK, tmp_path / "a.wav", seed=5, resume=True, denoise=False, on_progress=count)
    assert max(most) == SEGMENTS_PER_SECTION - 1 and most[SEGMENTS_PER_SECTION-1] == 0


def test_the_journal_of_another_job(tts, quick, tmp_path):
    path, own = tmp_path / "a.wav", dict(text=BOOK, denoise=False, resume=True)
    with pytest.raises(KeyboardInterrupt):
        read_aloud(tts, path=path, seed=5, on_progress=interrupt_after(1), **own)
    other_voice, british = Voice(tts.voice().embedding.flip(0)), replace(tts.voice(), accent="british")
    changes = (dict(text=BOOK + " Yes."), dict(seed=6), dict(temperature=.123), dict(top_k=7), dict(denoise=True),
               dict(voice=other_voice), dict(voice=british))
    for change in changes:
        with pytest.raises(OptionError, match="is from another job"):
            read_aloud(tts, path=path, **(own | change))
    (tmp_path / "a.wav.parts" / "job.json").write_text("{")
    with pytest.raises(OptionError, match="can't read the journal"):
        read_aloud(tts, BOOK, path, resume=True)


def test_errors_leave_nothing_behind(tts, quick, tmp_path, monkeypatch):
    (tmp_path / "old.wav").write_text("precious")
    cases = [("Hello. \n\nsilence", "old.wav", MetaVoiceError, "nothing was said"),
             ("😀", "old.wav", TextError, "nothing to say"), ("Hello.", "a.docx", OutputError, "'.docx'"),
             ("Hello.", "no/a.wav", OutputError, "No such file")]
    for text, path, error, words in cases:
        with pytest.raises(error, match=words):
            read_aloud(tts, text, tmp_path / path, denoise=False)
    with pytest.raises(OutputError, match="No such file"):
        read_aloud(tts, "Hello.", tmp_path / "no" / "a.wav", resume=True, denoise=False)

    def full_disk(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(longform, "atomic_write", full_disk)
    with pytest.raises(OSError, match="No space left"):
        read_aloud(tts, "Hello.", tmp_path / "old.wav", denoise=False)
    assert os.listdir(tmp_path) == ["old.wav"] and (tmp_path / "old.wav").read_text() == "precious"


def test_memory_stays_flat(tts, quick, tmp_path, monkeypatch):
    written = []

    class Writer:
        def __enter__(self):
            return lambda samples: written.append(len(samples))

        def __exit__(self, *exception):
            pass

    monkeypatch.setattr(longform, "open_sound_file", lambda *args: Writer())
    read_aloud(tts, "The dog slept.\n\n" * 100, tmp_path / "a.wav", seed=1, denoise=False)
    assert len(written) == 100 and max(written) < 1400 + round(.6 * 24000) + 1


def test_strange_texts(tts, quick, tmp_path):
    for text, most in (("Hello", 1), ("word " * 1000, 1000), ("." * 300 + "a" + "?!" * 300, 99), ("a " * 100, 100)):
        done = read_aloud(tts, text, tmp_path / "a.wav", seed=1, denoise=False)
        assert 1 <= done["segments"] <= most and done["duration"] > 0
    assert all(any(c.isalnum() for c in segment.text) for segment in quick)
    with pytest.raises(TextError, match="nothing to say"):
        read_aloud(tts, "?! ..." * 100, tmp_path / "b.wav", denoise=False)
    assert os.listdir(tmp_path) == ["a.wav"]
    assert read_aloud(tts, "2048 " * 100, tmp_path / "b.wav", seed=1, denoise=False)["segments"] > 10


@pytest.mark.skipif(os.name == "nt", reason="symlinks and pipes of POSIX")
def test_a_resumable_job_writes_through_a_symlink(tts, quick, tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "a.wav").symlink_to("store/a.wav")
    read_aloud(tts, BOOK, tmp_path / "b.wav", seed=1, denoise=False)
    with pytest.raises(KeyboardInterrupt):
        read_aloud(tts, BOOK, tmp_path / "a.wav", seed=1, denoise=False, resume=True, on_progress=interrupt_after(9))
    done = read_aloud(tts, BOOK, tmp_path / "a.wav", denoise=False, resume=True)
    assert done["resumed"] and (tmp_path / "a.wav").is_symlink() and os.listdir(tmp_path / "store") == ["a.wav"]
    assert (tmp_path / "a.wav").read_bytes() == (tmp_path / "b.wav").read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["a.wav", "b.wav", "store"] and is_generated(tmp_path / "a.wav")


@pytest.mark.skipif(os.name == "nt", reason="symlinks and pipes of POSIX")
def test_a_pipe_is_written_and_cannot_be_resumed(tts, quick, tmp_path):
    os.mkfifo(tmp_path / "pipe.flac")
    got = []
    reader = threading.Thread(target=lambda: got.append((tmp_path / "pipe.flac").read_bytes()))
    reader.start()
    read_aloud(tts, "One. Two.", tmp_path / "pipe.flac", seed=1, denoise=False)
    reader.join(60)
    read_aloud(tts, "One. Two.", tmp_path / "a.flac", seed=1, denoise=False)
    assert got == [(tmp_path / "a.flac").read_bytes()]
    read_aloud(tts, "One.", "/dev/null", seed=1, denoise=False)
    for path in (tmp_path / "pipe.flac", "/dev/null"):
        with pytest.raises(OptionError, match="is a pipe or a device, where a job can't be resumed"):
            read_aloud(tts, "One.", path, denoise=False, resume=True)
    assert sorted(os.listdir(tmp_path)) == ["a.flac", "pipe.flac"]


@pytest.mark.parametrize("job", ["[" * 99_999, "[1]", '"a"', "{}", '{"key": "a", "seed": "x"}', '{"key": "a"', "\0"])
def test_a_journal_that_cannot_be_read(tts, tmp_path, job):
    (tmp_path / "a.wav.parts").mkdir()
    (tmp_path / "a.wav.parts" / "job.json").write_text(job)
    with pytest.raises(OptionError, match="can't read the journal .*; remove the folder to begin anew"):
        read_aloud(tts, "One.", tmp_path / "a.wav", denoise=False, resume=True)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no kill -9")
def test_a_book_survives_kill_9(tts, tmp_path, command):
    text, options = "\n\n".join(TEXTS), dict(denoise=False, vocoder="codec", takes=1)
    arguments = ["synthesise", text, "--resume", "-o", str(tmp_path / "a.flac"), "--seed", "9", "--no-denoise",
                 "--vocoder", "codec", "--takes", "1", "--batch-size", "1", "-q"]
    process = subprocess.Popen([*command.args, *arguments], env=command.env, stdout=subprocess.DEVNULL,
                               stderr=subprocess.PIPE)
    while not list(tmp_path.glob("a.flac.parts/segment-*")) and process.poll() is None:
        time.sleep(.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL, process.stderr.read()
    assert os.listdir(tmp_path) == ["a.flac.parts"]
    done = read_aloud(tts, text, tmp_path / "a.flac", resume=True, **options)
    read_aloud(tts, text, tmp_path / "b.flac", seed=9, **options)
    assert 1 <= done["resumed"] < done["segments"]
    assert (tmp_path / "a.flac").read_bytes() == (tmp_path / "b.flac").read_bytes()
