"`metavoice synthesise`: what it prints and writes, and its errors."
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from tiny import write_tiny_bundle

import metavoice
from metavoice.audio.encode import is_generated, read_provenance, wav_tags
from metavoice.audio.sound import Audio, load_audio
from metavoice.cli import main
from metavoice.cli.common import ProgressBar
from metavoice.core.provenance import Provenance
from metavoice.generate.tts import TTS

NANO = Path(metavoice.__file__).parent/"nano"
QUICK = ["--vocoder", "codec", "--no-denoise", "--takes", "1"]
SPOKEN = Provenance("nano", "af_heart")
SHORT = "The dog slept."
LONG = "The old man walked to the river. "*200


# files


def test_captions_beside_the_sound(run):
    how = ["--speed", 1.5, "--seed", 3, "-q", *QUICK]
    assert run("synthesise", "It cost $5. Yes.", "-o", "a.wav", "--captions", "a.json", *how)[0] == 0
    words = json.loads(Path("a.json").read_text(encoding="utf-8"))["words"]
    assert [word["word"] for word in words] == ["It", "cost", "$5.", "Yes."]
    assert 0 <= words[0]["start"] < words[-1]["end"] <= soundfile.info("a.wav").duration
    assert run("synthesise", "It cost $5. Yes.", "--stream", "-o", "b.wav", "--captions", "b.srt", *how)[0] == 0
    assert Path("b.srt").read_text(encoding="utf-8").endswith("Yes.\n")
    assert sorted(os.listdir()) == ["a.json", "a.wav", "b.srt", "b.wav"]


def test_captions_replace_captions_only(run):
    Path("notes.srt").write_text("My notes.")
    for name, words in (("notes.srt", "--force"), ("a.txt", "use .srt, .vtt, .json"), ("no/a.srt", "no folder")):
        code, _, err = run("synthesise", SHORT, "-o", "a.wav", "--captions", name, *QUICK)
        assert code == 2 and words in err
    assert os.listdir() == ["notes.srt"]


def test_prints_what_it_made_and_how_fast(run):
    code, out, err = run("synthesise", SHORT, "-o", "a.wav", "--seed", 3, *QUICK)
    assert code == 0, err
    assert soundfile.info("a.wav").samplerate == 24000 and os.listdir() == ["a.wav"]
    assert f"a.wav: {soundfile.info('a.wav').duration:.2f} s of speech" in out and "seed 3" in out and "nano" in out
    assert "tokens/s" in out and "for a second of speech" in out
    assert "first stage" in err and "tokens" in err and "Warning" not in err


def test_text_from_a_file_and_from_standard_input(run, monkeypatch):
    Path("text.txt").write_text("\ufeff" + SHORT + "\n", encoding="utf-8")
    assert run("synthesise", "@text.txt", "-o", "a.wav", "--seed", 3, "-q", *QUICK) == (0, "", "")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(SHORT.encode())))
    assert run("synthesize", "-", "-o", "b.wav", "--seed", 3, "-q", *QUICK) == (0, "", "")
    assert Path("a.wav").read_bytes() == Path("b.wav").read_bytes()


def test_default_output_and_other_options(run):
    voice = next((NANO/"voices").iterdir()).stem
    options = ["--guidance", 2, "--prompt-guidance", 1.5, "--top-p", .8, "--top-k", 100, "--temperature", .5]
    options += ["--device", "cpu", "--dtype", "float32", "--voice", voice]
    code, out, err = run("synthesise", SHORT, *options)
    assert code == 0 and soundfile.info("speech.wav").samplerate == 48000, err
    assert "denoiser" in out and "seed" in out


@pytest.mark.parametrize("suffix", ["flac", "ogg", "mp3"])
def test_formats(run, suffix):
    assert run("synthesise", SHORT, "-o", f"a.{suffix}", "--seed", 1, "-q", *QUICK)[0] == 0
    assert soundfile.info(f"a.{suffix}").frames > 1000


def test_faults_of_a_recording_are_printed(run):
    audio = load_audio(NANO / "voices" / "af_bella.ogg")
    Audio(10**-1.6 * audio.samples[:96000], audio.sample_rate).save("me.wav")
    code, out, err = run("synthesise", SHORT, "-o", "a.wav", "--voice", "me.wav", "-q", *QUICK)
    assert (code, out) == (0, "")
    lines = err.splitlines()
    assert len(lines) == 2 and lines[0].startswith("metavoice: the recording of me: its speech is very quiet")
    assert "it has only" in lines[1] and "s of speech; give 5 s or more" in lines[1]


@pytest.mark.parametrize("url, words", [
    ("http://192.168.0.1/me.wav", "has an address that isn't public"),
    ("https://user:secret@example.com/me.wav", "the reference is no valid URL"),
])
def test_a_voice_from_the_web_has_to_be_public(run, url, words):
    code, out, err = run("synthesise", SHORT, "-o", "a.wav", "--voice", url, *QUICK)
    assert code == 2 and out == "" and words in err and err.count("\n") == 1 and not os.listdir()


def test_a_real_recording(run, speech):
    code, out, err = run("synthesise", SHORT, "--voice", speech/"bria.mp3", "-o", "a.wav", "--seed", 1, *QUICK)
    assert code == 0 and soundfile.info("a.wav").duration > .2, err
    assert "bria.mp3" in out


def test_diffusion(run, tmp_path):
    folder = write_tiny_bundle(tmp_path/"tiny", mbd=True)
    for vocoder in ("mbd", "codec"):
        argv = ["--model", folder, "--vocoder", vocoder, "--no-denoise", "-o", f"{vocoder}.wav", "--seed", 3, "-q"]
        assert run("synthesise", SHORT, *argv) == (0, "", "")
    made, decoded = (soundfile.read(f"{vocoder}.wav")[0] for vocoder in ("mbd", "codec"))
    assert len(made) == len(decoded) and (made != decoded).any()


def test_resume_gives_the_same_file(run):
    same = ["--seed", 3, "-q", *QUICK]
    assert run("synthesise", SHORT, "-o", "a.wav", *same)[0] == 0
    assert run("synthesise", SHORT, "-o", "b.wav", "--resume", *same)[0] == 0
    assert Path("a.wav").read_bytes() == Path("b.wav").read_bytes() and sorted(os.listdir()) == ["a.wav", "b.wav"]


# streams


class Pipe(io.TextIOWrapper):
    "Standard output that is a pipe."

    def __init__(self):
        super().__init__(io.BytesIO())


def test_streams_into_files_and_a_pipe(run, monkeypatch):
    options = [SHORT, "--seed", 3, "--no-denoise", "--vocoder", "codec", "-q"]
    for path in ("a.wav", "a.pcm"):
        assert run("synthesise", *options, "--stream", "-o", path) == (0, "", "")
    samples, rate = soundfile.read("a.wav", dtype="int16")
    assert rate == 24000 and len(samples) > 5000
    assert Path("a.pcm").read_bytes() == samples.astype("<i2").tobytes()
    monkeypatch.setattr(sys, "stdout", Pipe())
    assert main([str(o) for o in ["synthesise", *options, "--stream", "--chunk", .2]]) == 0
    written = sys.stdout.buffer.getvalue()
    header = 44+len(wav_tags(SPOKEN))
    assert written[:4] == b"RIFF" and written[header-4:header] == b"\xff"*4, "a wav of unknown length"
    assert len(written) == header+2*len(samples)
    assert read_provenance("a.wav") == read_provenance(io.BytesIO(written)) == SPOKEN
    assert soundfile.read(io.BytesIO(written))[1] == 24000


def test_a_stream_reports_the_time_to_first_audio(run):
    code, out, err = run("synthesise", SHORT, "--stream", "--format", "pcm", "-o", "sound", *QUICK)
    assert code == 0 and "the first sound came" in out and "tokens/s" in out and not err
    assert Path("sound").stat().st_size > 10000


@pytest.mark.parametrize("argv,words", [
    (["--format", "pcm"], ["add --stream"]),
    (["--chunk", "1"], ["add --stream"]),
    (["--stream", "--resume"], ["can't be resumed"]),
    (["-o", "-"], ["add --stream"]),
    (["--stream", "-o", "a.mp3"], ["unknown ending '.mp3'; use .wav, .pcm, .raw"]),
    (["--stream", "-o", "no/a.wav"], ["there is no folder no"]),
    (["--stream", "-o", "."], ["it is a directory"]),
    (["--stream", "-o", "a.wav", "--voice", "nobody.wav"], ["no such file"]),
])
def test_bad_stream_options(refused, argv, words):
    refused("synthesise", SHORT, *argv, words=words)


def test_no_sound_on_a_terminal(refused, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    refused("synthesise", SHORT, "--stream", words=["a terminal can't play sound", "| aplay"])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_stream_onto_a_full_disk(run):
    Path("a.wav").symlink_to("/dev/full")
    code, out, err = run("synthesise", SHORT, "--stream", "-o", "a.wav", "-q", *QUICK)
    assert (code, out, err) == (2, "", "metavoice: can't write a.wav: No space left on device\n")


@pytest.mark.slow
def test_a_player_that_ends_early(command, clean_environment):
    argv = [*command, "synthesise", LONG, "--stream", *QUICK]
    process = subprocess.Popen(argv, env=clean_environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert len(process.stdout.read(5000)) == 5000
    process.stdout.close()
    err = process.stderr.read().decode()
    assert process.wait(600) == 0 and "Broken" not in err and "Traceback" not in err, err


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for processes")
def test_ctrl_c_in_a_stream_leaves_a_valid_file(command, clean_environment):
    argv, path = [*command, "synthesise", LONG, "--stream", "-o", "a.wav", *QUICK], Path("a.wav")
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process = subprocess.Popen(argv, env=clean_environment, **pipes)
    while (not path.exists() or path.stat().st_size < 30_000) and process.poll() is None:  # more than a chunk
        time.sleep(.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 130 and out == "", err
    assert err.startswith("metavoice: interrupted; a.wav holds the first ") and "Traceback" not in err, err
    assert soundfile.info("a.wav").frames*2 + 44 + len(wav_tags(SPOKEN)) == path.stat().st_size > 10_000


# bad texts


@pytest.mark.parametrize("text,words", [
    ("", ["the text is empty"]),
    (" \n ", ["the text is empty"]),
    ("?!", ["nothing to say in '?!'"]),
    ("😀!", ["nothing to say", "😀"]),
    ("@nothing.txt", ["can't read the text nothing.txt: No such file"]),
    ("@.", ["can't read the text .: Is a directory"]),
])
def test_bad_texts(refused, text, words):
    refused("synthesise", text, *QUICK, words=words)


def test_strict_refuses_what_is_left_out_otherwise(refused, run):
    refused("synthesise", "I smile 你.", "--strict", *QUICK, words=["'你' (U+4F60"])
    code, _, err = run("synthesise", "I smile 你.", "-q", "-o", "a.wav", *QUICK)
    assert (code, err.count("\n")) == (0, 1) and "are left out: '你' (U+4F60" in err


def test_bad_text_options(refused):
    Path("names.tsv").write_text("Siobhan shiv awn\n", encoding="utf-8")
    refused("synthesise", SHORT, "--language", "tlh", *QUICK, words=["'tlh'"])
    refused("synthesise", SHORT, "--lexicon", "no.tsv", *QUICK, words=["no.tsv"])
    refused("synthesise", SHORT, "--lexicon", "names.tsv", *QUICK, words=["names.tsv, line 1"])


def test_how_a_text_is_read(run, monkeypatch):
    said, real = [], TTS.segments
    monkeypatch.setattr(TTS, "segments", lambda *a, **k: [said.append(s.text) or s for s in real(*a, **k)])
    Path("names.tsv").write_text("Siobhan\tShiv awn\n", encoding="utf-8")
    text = "Siobhan paid $5."
    for flags in ([], ["--lexicon", "names.tsv"], ["--as-written"]):
        assert run("synthesise", text, "-q", "-o", "a.wav", *QUICK, *flags)[0] == 0
    assert said[:2] == ["Siobhan paid five dollars.", "Shiv awn paid five dollars."] and "five" not in said[2]


def test_texts_that_are_not_utf8(refused, monkeypatch):
    Path("a.txt").write_bytes("Schön".encode("latin-1"))
    refused("synthesise", "@a.txt", words=["a.txt", "isn't UTF-8"])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xfe\xfe")))
    refused("synthesise", "-", words=["standard input", "isn't UTF-8"])


@pytest.mark.parametrize("device,words", [
    ("abacus", ["unknown device 'abacus'"]),
    ("cuda:99", ["'cuda:99' isn't available here"]),
])
def test_bad_devices(refused, device, words):
    refused("synthesise", SHORT, "--device", device, words=words)


# references


def write_wav(seconds=None, samples=None, **options):
    "Return a function that writes a wav file at 16 kHz: a tone of some seconds, or the samples."

    def write(path, tone):
        soundfile.write(path, tone(seconds) if samples is None else samples, 16000, **options)

    return write


BAD_REFERENCES = dict(
    half=(write_wav(.5), "0.50 s long; at least 2.5 s"),
    two=(write_wav(2), "2.00 s long; at least 2.5 s"),
    silent=(write_wav(samples=np.zeros(80000, "float32")), "the reference is silent"),
    nan=(write_wav(samples=np.full(80000, np.nan, "float32"), subtype="FLOAT"), "NaN"),
    text=(lambda path, tone: path.write_text("This is no sound."), "isn't audio"),
    empty=(lambda path, tone: path.touch(), "it is empty"),
    folder=(lambda path, tone: path.mkdir(), "it is a directory"),
    missing=(lambda path, tone: None, "there is no such file"),
)


@pytest.mark.parametrize("name", BAD_REFERENCES)
def test_bad_references(refused, tone, name):
    write, words = BAD_REFERENCES[name]
    write(Path("ref.wav"), tone)
    refused("synthesise", SHORT, "--voice", "ref.wav", *QUICK, words=[words])


def test_the_released_model_requires_30_seconds(refused, make_nano, tone, tmp_path):
    soundfile.write("ref.wav", tone(29), 16000)
    model = make_nano(tmp_path/"strict", minimum_reference=30)
    refused("synthesise", SHORT, "--voice", "ref.wav", "--model", model, words=["29.00 s long; at least 30 s"])


def test_a_truncated_reference_is_used_with_a_warning(run, tone):
    soundfile.write("ref.wav", tone(5), 16000)
    Path("ref.wav").write_bytes(Path("ref.wav").read_bytes()[:150_000])
    code, _, err = run("synthesise", SHORT, "--voice", "ref.wav", *QUICK)
    assert code == 0 and err.count("ref.wav: it is truncated; 4.69 s were read") == 1


@pytest.mark.parametrize("kind", ["eight channels", "stereo 8 kHz", "mp3", "flac", "ogg"])
def test_good_references(run, tone, kind):
    noisy = tone(4)*np.random.default_rng(0).normal(1, .1, 64000).astype("float32")
    path = f"ref.{kind}" if len(kind) < 5 else "ref.wav"
    if kind == "eight channels":
        soundfile.write(path, np.stack([noisy]*8, 1), 16000)
    elif kind == "stereo 8 kHz":
        soundfile.write(path, np.stack([noisy[::2], noisy[::2]], 1), 8000)
    else:
        soundfile.write(path, noisy, 16000)
    code, _, err = run("synthesise", SHORT, "--voice", path, "-o", "a.wav", "--seed", 1, *QUICK)
    assert code == 0 and Path("a.wav").exists(), err


# outputs


@pytest.mark.parametrize("path,words", [
    ("no/a.wav", "there is no folder no"),
    (".", "it is a directory"),
    ("a.docx", "unknown ending '.docx'; use .wav, .flac, .ogg, .mp3"),
    ("a", "unknown ending ''"),
    ("file/a.wav", "there is no folder file"),
])
def test_bad_outputs(refused, path, words):
    Path("file").touch()
    refused("synthesise", SHORT, "-o", path, words=[words])


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="only Linux has a folder that nobody can write to")
def test_a_folder_that_nobody_can_write_to(refused):
    refused("synthesise", SHORT, "-o", "/proc/a.wav", words=["can't write /proc/a.wav: "])


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root can write everywhere")
def test_no_permission(refused):
    Path("folder").mkdir(0o500)
    refused("synthesise", SHORT, "-o", "folder/a.wav", words=["Permission denied"])
    Path("a.wav").touch(0o400)
    refused("synthesise", SHORT, "-o", "a.wav", words=["write-protected"])


def test_an_existing_file_survives_an_error(refused):
    Path("a.wav").write_text("precious")
    refused("synthesise", "😀", "-o", "a.wav")
    assert Path("a.wav").read_text() == "precious"


SAME = ["--seed", 3, *QUICK]


def test_the_default_name_gets_a_number(run):
    for n, name in enumerate(("speech.wav", "speech-2.wav", "speech-3.wav")):
        code, out, err = run("synthesise", SHORT, *SAME, "-q")
        assert (code, out) == (0, "") and (f"the sound goes to {name}" in err) == (n > 0), err
    code, out, err = run("synthesise", SHORT, *SAME)
    assert code == 0 and out.startswith("speech-4.wav: ")
    Path("speech-5.wav.parts").mkdir()
    Path("speech-6.wav").symlink_to("nowhere.wav")
    assert run("synthesise", SHORT, *SAME)[1].startswith("speech-7.wav: ")
    assert run("synthesise", SHORT, *SAME, "--resume")[1].startswith("speech-5.wav: "), "its own unfinished job"
    Path("speech.wav").write_text("precious")
    assert run("synthesise", SHORT, *SAME, "--force")[1].startswith("speech.wav: ")
    assert len({path.read_bytes() for path in Path().glob("speech*.wav") if path.exists()}) == 1


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_own_files_are_replaced_without_a_question(run, suffix):
    if suffix == "wav":
        Path("a.wav").touch()  # as mktemp makes it
    for more in (["--stream"], []) if suffix == "wav" else ([], []):
        assert run("synthesise", SHORT, "-o", f"a.{suffix}", *SAME, *more, "-q") == (0, "", "")


@pytest.mark.parametrize("more", [[], ["--stream"], ["--resume"]])
def test_a_foreign_file_is_not_replaced(run, refused, more):
    tone = .1*np.sin(np.arange(24000)/20)
    soundfile.write("me.wav", tone, 24000)
    Path("link.wav").symlink_to("me.wav")
    before = Path("me.wav").read_bytes()
    for name in ("me.wav", "link.wav"):
        words = [f"{name} is there already, and metavoice didn't make it; add --force to replace it, or name"]
        refused("synthesise", SHORT, "-o", name, *SAME, *more, words=words)
    assert Path("me.wav").read_bytes() == before
    assert run("synthesise", SHORT, "-o", "link.wav", "--force", *SAME, *more, "-q") == (0, "", "")
    assert is_generated("me.wav") and Path("link.wav").is_symlink()
    Path("a.pcm").write_bytes(bytes(10))
    refused("synthesise", SHORT, "-o", "a.pcm", "--stream", *SAME, words=["a.pcm is there already"])


@pytest.mark.parametrize("answer, replaced", [("y", True), ("Yes", True), ("n", False), ("", False)])
def test_the_question_at_a_terminal(run, monkeypatch, answer, replaced):
    Path("a.wav").write_text("precious")
    monkeypatch.setattr(sys, "stdin", io.StringIO(answer + "\n"))
    for stream in (sys.stdin, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    code, out, err = run("synthesise", SHORT, "-o", "a.wav", *SAME, "-q")
    assert err.startswith("metavoice: a.wav is there already, and metavoice didn't make it; replace it? [y/N] ")
    assert code == (0 if replaced else 2) and ("a.wav was kept" in err) != replaced
    assert is_generated("a.wav") == replaced and (replaced or Path("a.wav").read_text() == "precious")


def test_a_job_that_has_begun_is_resumed(run):
    "An earlier run was told to replace the file, and the same command continues without a terminal."
    Path("a.wav").write_text("precious")
    seen = []
    progress = ProgressBar.__call__

    def stop(self, stage, done, of):
        seen.append(stage)
        if stage == "speech" and done == 20:
            raise KeyboardInterrupt
        progress(self, stage, done, of)

    text = "\n\n".join(["The dog slept."]*30)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ProgressBar, "__call__", stop)
        assert run("synthesise", text, "-o", "a.wav", "--force", "--resume", *SAME)[0] == 130
    assert Path("a.wav").read_text() == "precious" and Path("a.wav.parts").is_dir()
    assert run("synthesise", text, "-o", "a.wav", "--resume", *SAME, "-q") == (0, "", "")
    assert is_generated("a.wav") and os.listdir() == ["a.wav"]


def test_a_failed_stream_leaves_an_earlier_file(run):
    assert run("synthesise", SHORT, "-o", "a.wav", "--stream", *SAME, "-q")[0] == 0
    before = Path("a.wav").read_bytes()
    assert run("synthesise", SHORT, "-o", "a.wav", "--stream", "--voice", "nobody.wav", *SAME, "-q")[0] == 2
    assert Path("a.wav").read_bytes() == before


posix = pytest.mark.skipif(os.name == "nt", reason="symlinks, pipes and devices of POSIX")


@posix
@pytest.mark.parametrize("more", [[], ["--stream"]])
def test_through_a_symlink(run, more):
    Path("store").mkdir()
    Path("a.wav").symlink_to("store/new.wav")
    for _ in range(2):
        assert run("synthesise", SHORT, "-o", "a.wav", *SAME, *more, "-q") == (0, "", "")
        assert Path("a.wav").is_symlink() and os.listdir("store") == ["new.wav"]
    Path("lost.wav").symlink_to("no/new.wav")
    code, out, err = run("synthesise", SHORT, "-o", "lost.wav", *SAME, *more)
    assert code == 2 and "there is no folder" in err and err.count("\n") == 1


@posix
@pytest.mark.parametrize("name, more", [
    ("pipe.wav", []), ("pipe.mp3", []), ("pipe", []), ("pipe", ["--stream"]), ("pipe.pcm", ["--stream"]),
])
def test_into_a_named_pipe(run, name, more):
    os.mkfifo(name)
    got = []
    reader = threading.Thread(target=lambda: got.append(Path(name).read_bytes()))
    reader.start()
    assert run("synthesise", SHORT, "-o", name, *SAME, *more, "-q") == (0, "", "")
    reader.join(60)
    assert Path(name).is_fifo() and os.listdir() == [name]
    raw = dict(format="RAW", channels=1, samplerate=24000, subtype="PCM_16") if name.endswith("pcm") else {}
    assert len(soundfile.read(io.BytesIO(got[0]), **raw)[0]) > 5000


@posix
def test_into_a_device(run, refused):
    before = os.stat("/dev/null")
    for more in ([], ["--stream"]):
        code, out, err = run("synthesise", SHORT, "-o", "/dev/null", *SAME, *more)
        assert code == 0 and out.startswith("/dev/null: ")
    assert os.path.samestat(before, os.stat("/dev/null"))
    refused("synthesise", SHORT, "-o", "/dev/null", "--resume", *SAME, words=["can't be resumed; name a file"])


@posix
@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--stream"]])
def test_into_standard_output(command, clean_environment, more):
    argv = [*command, "synthesise", SHORT, *map(str, SAME), *more, "-o", "/dev/stdout"]
    piped = subprocess.run(argv, env=clean_environment, capture_output=True)
    assert piped.returncode == 0 and len(soundfile.read(io.BytesIO(piped.stdout))[0]) > 5000, piped.stderr
    assert b"s of speech at 24 kHz" in piped.stderr, "the report goes to standard error"
    with open("a.wav", "wb") as out:
        subprocess.run(argv, env=clean_environment, stdout=out, stderr=subprocess.DEVNULL, check=True)
    assert Path("a.wav").read_bytes() == piped.stdout


# models


@pytest.mark.parametrize("model,words", [
    ("/nowhere", "there is no model '/nowhere'"),
    ("some/body", "neither a folder here nor a pinned model"),
    (".", "is no model"),
])
def test_models_that_do_not_exist(refused, model, words):
    refused("synthesise", SHORT, "--model", model, words=[words])
    refused("info", "--model", model, words=[words])


PARTS = ["tokeniser.json", "first_stage.safetensors", "second_stage.safetensors", "codec.safetensors"]


@pytest.mark.parametrize("file", [*PARTS, "speaker_encoder.safetensors"])
def test_a_missing_or_truncated_file(refused, make_nano, tmp_path, file):
    folder = make_nano(tmp_path/"gone", without=[file])
    refused("synthesise", SHORT, *QUICK, "--model", folder, words=[file, "is missing"])
    folder = make_nano(tmp_path/"torn", without=[file])
    (folder/file).write_bytes((NANO/file).read_bytes()[:1000])
    refused("synthesise", SHORT, *QUICK, "--model", folder, words=[file])


@pytest.mark.parametrize("file", ["first_stage.safetensors", "codec.safetensors"])
def test_a_weight_of_the_wrong_shape(refused, make_nano, tmp_path, file):
    from safetensors.torch import load_file, save_file

    state = load_file(NANO/file)
    name = max(state, key=lambda k: state[k].numel())
    folder = make_nano(tmp_path/"odd", without=[file])
    save_file(state | {name: state[name][..., :-1].contiguous()}, folder/file)
    words = [file, name, "doesn't fit its configuration"]
    refused("synthesise", SHORT, *QUICK, "--model", folder, words=words)


def test_a_model_without_diffusion(refused, tmp_path):
    folder = write_tiny_bundle(tmp_path/"plain")
    words = ["'tiny' has no mbd", "use vocoder 'codec'"]
    refused("synthesise", SHORT, "--vocoder", "mbd", "--model", folder, words=words)
    words = ["steps are for the vocoder mbd", "leave them out"]
    refused("synthesise", SHORT, "--steps", 3, "--model", folder, words=words)


class Wicked:
    "An object whose pickle opens a file."

    def __reduce__(self):
        return open, ("it-ran.txt", "w")


@pytest.mark.parametrize("file", ["first_stage.pt", "second_stage.pt", "speaker_encoder.pt"])
def test_a_pickle_is_not_executed(run, refused, tmp_path, file):
    folder = tmp_path/"wicked"
    folder.mkdir()
    content = dict(model={}, model_args={}, meta=dict(tokenizer=Wicked()), config=Wicked(), model_state=Wicked())
    torch.save(content, folder/"first_stage.pt")
    if file != "first_stage.pt":
        (folder/"first_stage.pt").rename(folder/file)
    words = "first_stage.pt" if file != "speaker_encoder.pt" else "is no model"
    refused("synthesise", SHORT, "--model", folder, words=[words])
    run("info", "--model", folder)
    assert not list(tmp_path.rglob("it-ran.txt"))
