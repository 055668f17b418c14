"`metavoice evaluate`: its report and files, a grid, errors, and an interruption."
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from metavoice.audio.sound import Audio, load_audio
from metavoice.cli import main
from metavoice.measure.processes import cli_command, subprocess_env
from metavoice.measure.recordings import write_recordings

TEXTS = ["The dog slept.", "Where is the red book?"]
SAMPLE = Path(__file__).parents[2] / "nbs" / "samples" / "slt_1.ogg"


def run(capsys, *argv):
    "Return the exit status, stdout and stderr of `metavoice evaluate`."
    try:
        code = main(["evaluate", *map(str, argv)])
    except SystemExit as e:
        code = e.code
    return (code, *capsys.readouterr())


def test_report_and_files(capsys, tts, own, tmp_path):
    audio = load_audio(tts.bundle.voices[own])
    clip = Audio(audio.samples[:2 * audio.sample_rate], audio.sample_rate)
    teacher = write_recordings(tmp_path / "teacher", ((own, text, clip) for text in TEXTS))
    code, out, err = run(
        capsys, "--voices", own, "--teacher", teacher, "--recogniser", "none", "--no-mos", "--no-denoise",
        "--timed", 1, "--json", tmp_path / "a.json", "--plot", tmp_path / "a.png", "--out", tmp_path / "said",
        "--temperature", .5, "--takes", 1, "--gallery", SAMPLE, "--device", "cpu",
    )
    assert code == 0 and "evaluation:" in err, err
    for word in ("2 sentences × 1 voice × 1 seed", "temperature 0.5", "model", "teacher", "real-time factor",
                 "tokens/s", "CPU seconds for a second of speech", "first audio of a stream", "clips without sound: 0"):
        assert word in out, out
    assert json.loads((tmp_path / "a.json").read_text())["about"]["settings"]["temperature"] == .5
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    assert len(list((tmp_path / "said").iterdir())) == 3


def test_grid(capsys, own, tmp_path):
    (tmp_path / "texts.txt").write_text(TEXTS[0] + "\n")
    code, out, err = run(
        capsys, "--texts", tmp_path / "texts.txt", "--voices", own, "--recogniser", "none", "--no-mos",
        "--no-denoise", "-q", "--grid", "temperature=0.2,1", "--takes", 1, "--gallery", SAMPLE,
        "--json", tmp_path / "g.json",
    )
    assert code == 0 and all("it has only 3.3 s of speech" in line for line in err.splitlines())  # the gallery's clip
    assert [line.split()[0] for line in out.splitlines()[2:]] == ["temperature", "0.2", "1"]
    assert len(json.loads((tmp_path / "g.json").read_text())["grid"]) == 2


@pytest.mark.parametrize("argv, message", [
    (["--texts", "nowhere.txt"], "can't read the texts nowhere.txt: No such file"),
    (["--json", "a.txt"], "use .json"),
    (["--plot", "no/a.png"], "there is no folder no"),
    (["--grid", "temperature"], "as in temperature=0.5,0.7,1.0"),
    (["--grid", "temperature=1", "--grid", "temperature=2"], "one setting twice"),
    (["--grid", "tempo=1"], "unknown setting 'tempo'"),
    (["--grid", "temperature=1", "--out", "x"], "--out"),
    (["--seeds", "0"], "'0' isn't allowed"),
    (["--voices", "nobody.wav"], "no such file"),
    (["--recogniser", "parrot"], "unknown recogniser"),
    (["--short-texts", "--recogniser", "none"], "need a recogniser"),
    (["--peers", "parrot"], "unknown peer 'parrot'"),
    (["--peers", "kokoro:nowhere"], "nowhere is neither a folder"),
    (["--peers", "flite", "--teacher", "x"], "--teacher is not used"),
    (["--peers", "flite", "--seeds", "2"], "--seeds is not used"),
])
def test_errors(capsys, argv, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *argv)
    assert (code, out, err.count("\n")) == (2, "", 1) and message in err, err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals are sent differently there")
def test_interruption_leaves_nothing(own, tmp_path):
    arguments = ["evaluate", "--voices", own, "--seeds", "200", "--batch-size", "1", "--workers", "2", "--no-mos",
                 "--no-denoise", "--timed", "0", "--json", str(tmp_path / "a.json"), "--out", str(tmp_path / "said")]
    pipes = dict(stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    process = subprocess.Popen(
        cli_command(*arguments), **pipes, cwd=tmp_path, env=subprocess_env(), start_new_session=True
    )
    try:
        until = time.monotonic() + 300
        while process.poll() is None and len(list(tmp_path.glob(".said-*/new/*.wav"))) < 2:
            assert time.monotonic() < until, "nothing was said in five minutes"
            time.sleep(.1)
        time.sleep(.3)  # in Python 3.10 a pool hangs if it is interrupted while it is handed a clip
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=600)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130, err
    assert "Traceback" not in err and "interrupted; nothing was written" in err and not out
    assert not list(tmp_path.iterdir())
