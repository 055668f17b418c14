"The commands: what they print and write, and what they say to bad input."
import io, json, os, signal, subprocess, sys, time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import metavoice
from metavoice.cli.main import main

ROOT, NANO = Path(__file__).parents[1], Path(metavoice.__file__).parent / "nano"
QUICK = ["--vocoder", "codec", "--no-denoise"]
SHORT = "The dog slept."
COMMAND = [sys.executable, "-c", "import sys; from metavoice.cli import main; sys.exit(main())"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    "Each test starts in an empty folder."
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")

def run(capsys, *argv):
    "Exit code, standard output, standard error."
    try: code = main([str(a) for a in argv])
    except SystemExit as e: code = e.code
    return (code, *capsys.readouterr())

def refused(capsys, *argv, words=()):
    "Bad input: code 2, one line that holds the words, nothing on standard output, and nothing written."
    before = sorted(Path.cwd().rglob("*"))
    code, out, err = run(capsys, *argv)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert err.startswith("metavoice: ") and err.endswith("\n")
    for word in words: assert word in err, err
    assert sorted(Path.cwd().rglob("*")) == before

def nano(folder, without=(), **changes):
    "A nano to spoil: linked files, and a manifest with changes."
    for path in [p for p in NANO.rglob("*") if p.is_file()]:
        target = folder / path.relative_to(NANO)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.name not in without: target.symlink_to(path)
    manifest = json.loads((NANO / "bundle.json").read_text(encoding="utf-8")) | changes
    (folder / "bundle.json").unlink()
    (folder / "bundle.json").write_text(json.dumps(manifest), encoding="utf-8")
    return folder

def tone(seconds, rate=16000): return .2*np.sin(np.arange(int(seconds*rate))/20).astype("float32")


# speaking

def test_speaks_and_says_how_fast(capsys):
    code, out, err = run(capsys, "synthesise", SHORT, "-o", "a.wav", "--seed", 3, *QUICK)
    assert code == 0, err
    assert soundfile.info("a.wav").samplerate == 24000 and os.listdir() == ["a.wav"]
    assert f"a.wav: {soundfile.info('a.wav').duration:.2f} s of speech" in out and "seed 3" in out and "nano" in out
    assert "tokens/s" in out and "for a second of speech" in out
    assert "first stage" in err and "tokens" in err and "Warning" not in err

def test_one_seed_one_file_from_text_file_and_standard_input(capsys, monkeypatch):
    Path("text.txt").write_text("\ufeff" + SHORT + "\n", encoding="utf-8")
    assert run(capsys, "synthesise", "@text.txt", "-o", "a.wav", "--seed", 3, "-q", *QUICK) == (0, "", "")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(SHORT.encode())))
    assert run(capsys, "synthesize", "-", "-o", "b.wav", "--seed", 3, "-q", *QUICK) == (0, "", "")
    assert Path("a.wav").read_bytes() == Path("b.wav").read_bytes()

def test_default_output_other_options_and_formats(capsys):
    options = ["--guidance", 2, "--top-p", .8, "--temperature", .5, "--device", "cpu", "--dtype", "float32", "--voice", next((NANO / "voices").iterdir()).stem]
    code, out, err = run(capsys, "synthesise", SHORT, *options)
    assert code == 0 and soundfile.info("speech.wav").samplerate == 48000, err
    assert "denoiser" in out and "seed" in out

@pytest.mark.parametrize("suffix", ["flac", "ogg", "mp3"])
def test_formats(capsys, suffix):
    assert run(capsys, "synthesise", SHORT, "-o", f"a.{suffix}", "--seed", 1, "-q", *QUICK)[0] == 0
    assert soundfile.info(f"a.{suffix}").frames > 1000

def test_a_real_recording(capsys, speech):
    code, out, err = run(capsys, "synthesise", SHORT, "--voice", speech / "bria.mp3", "-o", "a.wav", "--seed", 1, *QUICK)
    assert code == 0 and soundfile.info("a.wav").duration > .2, err
    assert "bria.mp3" in out

def test_diffusion(capsys):
    if "mbd" not in json.loads((NANO / "bundle.json").read_text(encoding="utf-8"))["parts"]: pytest.skip("this nano comes without multi-band diffusion")
    assert run(capsys, "synthesise", SHORT, "--vocoder", "mbd", "--no-denoise", "-o", "a.wav", "--seed", 3, "-q")[0] == 0

class Pipe(io.TextIOWrapper):
    "Standard output that is a pipe."
    def __init__(self): super().__init__(io.BytesIO())

def test_streams(capsys, monkeypatch):
    options = [SHORT, "--seed", 3, "--no-denoise", "--vocoder", "codec", "-q"]
    for path in ("a.wav", "a.pcm"): assert run(capsys, "synthesise", *options, "--stream", "-o", path) == (0, "", "")
    samples, rate = soundfile.read("a.wav", dtype="int16")
    assert rate == 24000 and len(samples) > 5000 and Path("a.pcm").read_bytes() == samples.astype("<i2").tobytes()
    monkeypatch.setattr(sys, "stdout", Pipe())
    assert main([str(o) for o in ["synthesise", *options, "--stream", "--chunk", .2]]) == 0
    heard = sys.stdout.buffer.getvalue()
    assert heard[:4] == b"RIFF" and heard[40:44] == b"\xff"*4 and len(heard) == 44+2*len(samples), "a wav whose length nobody knows yet"
    assert soundfile.read(io.BytesIO(heard))[1] == 24000

def test_a_stream_says_how_soon(capsys):
    code, out, err = run(capsys, "synthesise", SHORT, "--stream", "--format", "pcm", "-o", "sound", *QUICK)
    assert code == 0 and "the first sound came" in out and "tokens/s" in out and not err and Path("sound").stat().st_size > 10000

def test_resume_and_its_note(capsys):
    assert run(capsys, "synthesise", SHORT, "-o", "a.wav", "--seed", 3, "-q", *QUICK)[0] == run(capsys, "synthesise", SHORT, "-o", "b.wav", "--seed", 3, "--resume", "-q", *QUICK)[0] == 0
    assert Path("a.wav").read_bytes() == Path("b.wav").read_bytes() and sorted(os.listdir()) == ["a.wav", "b.wav"]

def test_batch(capsys):
    Path("m.csv").write_text("id,text\ndog,The dog slept.\nsmile,I smile 😀.\n", encoding="utf-8")
    code, out, err = run(capsys, "batch", "m.csv", "--out", "spoken", *QUICK)
    assert code == 1 and sorted(os.listdir("spoken")) == ["dog.wav", "results.jsonl"]
    assert "1 spoken, 0 done before, 1 failed, of 2 rows" in out and err.endswith("\n") and "metavoice: smile: character '😀'" in err
    Path("m.csv").write_text("id,text\ndog,The dog slept.\n")
    assert run(capsys, "batch", "m.csv", "--out", "spoken", *QUICK)[:2] == (0, "0 spoken, 1 done before, 0 failed, of 1 rows\n")

def test_info(capsys):
    code, out, err = run(capsys, "info")
    assert (code, err) == (0, "") and out.startswith("nano, from ") and "first_stage" not in out
    for word in ("tokeniser", "speaker_encoder", "Apache-2.0", "voices:", "3 s"): assert word in out, out
    about = json.loads(run(capsys, "info", "--json")[1])
    assert about["name"] == "nano" and about["parts"]["first"]["parameters"] > 1e5

def test_help_and_version(capsys):
    assert run(capsys, "--version") == (0, f"metavoice {metavoice.__version__}\n", "")
    for argv in ([], ["--help"], ["synthesise", "--help"], ["info", "--help"], ["batch", "--help"]):
        code, out, err = run(capsys, *argv)
        assert (code, err) == (0, "") and "usage: metavoice" in out
    assert "examples:" in run(capsys, "--help")[1]


# bad input

@pytest.mark.parametrize("text,words", [("", ["the text is empty"]), (" \n ", ["the text is empty"]), ("?!", ["nothing to say in '?!'"]), ("I smile 😀.", ["'😀' (U+1F600", "position 8"]),
    ("the Ω", ["'Ω' (U+03A9", "position 4"]), ("@nothing.txt", ["can't read the text nothing.txt: No such file"]), ("@.", ["can't read the text .: Is a directory"])])
def test_text(capsys, text, words): refused(capsys, "synthesise", text, *QUICK, words=words)

def test_text_that_is_not_utf8(capsys, monkeypatch):
    Path("a.txt").write_bytes("Schön".encode("latin-1"))
    refused(capsys, "synthesise", "@a.txt", words=["a.txt", "isn't UTF-8"])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe")))
    refused(capsys, "synthesise", "-", words=["standard input", "isn't UTF-8"])

@pytest.mark.parametrize("argv,words", [(["sing"], ["'sing'", "synthesise"]), (["synthesise"], ["required: TEXT"]), (["synthesise", "a", "--speed", "2"], ["--speed 2"]),
    (["synthesise", "a", "--seed", "x"], ["--seed", "'x' isn't allowed", "whole number from 0"]), (["synthesise", "a", "--seed", "-1"], ["--seed"]),
    (["synthesise", "a", "--top-p", "2"], ["'2' isn't allowed; give a number from 0.001 to 1"]), (["synthesise", "a", "--guidance", "nan"], ["from 1 to 20"]),
    (["synthesise", "a", "--temperature", "hot"], ["'hot'", "from 0 to 10"]), (["synthesise", "a", "--vocoder", "organ"], ["'organ'", "mbd"]),
    (["synthesise", "a", "--dtype", "int8"], ["'int8'"]), (["synthesise", "a", "--temp", "1"], ["--temp"]), (["info", "--voice", "x"], ["--voice x"])])
def test_options(capsys, argv, words): refused(capsys, *argv, words=[*words, "--help"])

@pytest.mark.parametrize("argv,words", [(["--format", "pcm"], ["add --stream"]), (["--chunk", "1"], ["add --stream"]), (["--stream", "--resume"], ["can't be resumed"]), (["-o", "-"], ["add --stream"]),
    (["--stream", "-o", "a.mp3"], ["unknown ending '.mp3'; use .wav, .pcm, .raw"]), (["--stream", "-o", "no/a.wav"], ["there is no folder no"]), (["--stream", "-o", "."], ["it is a directory"]),
    (["--stream", "-o", "a.wav", "--voice", "nobody.wav"], ["no such file"])])
def test_streams_refused(capsys, argv, words): refused(capsys, "synthesise", SHORT, *argv, words=words)

def test_no_sound_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    refused(capsys, "synthesise", SHORT, "--stream", words=["isn't for a terminal", "| aplay"])

@pytest.mark.parametrize("argv,words", [(["no.csv", "--out", "d"], ["can't read the manifest no.csv: No such file"]), (["m.csv", "--out", "d", "--workers", "2"], ["add --ray"]),
    (["m.csv"], ["required: --out"]), (["m.csv", "--out", "m.csv"], ["m.csv"]), (["m.csv", "--out", "d", "--format", "aac"], ["'aac'"]), (["m.csv", "--out", "d", "--voice", "nobody.wav"], ["no such file"])])
def test_batches_refused(capsys, argv, words):
    Path("m.csv").write_text("text\nHello.\n")
    refused(capsys, "batch", *argv, words=words)

@pytest.mark.parametrize("device,words", [("abacus", ["unknown device 'abacus'"]), ("cuda:99", ["'cuda:99' isn't available here"])])
def test_devices(capsys, device, words): refused(capsys, "synthesise", SHORT, "--device", device, words=words)

REFERENCES = dict(
    half=(lambda p: soundfile.write(p, tone(.5), 16000), ["0.50 s long; at least 3 s"]),
    two=(lambda p: soundfile.write(p, tone(2), 16000), ["2.00 s long; at least 3 s"]),
    silent=(lambda p: soundfile.write(p, 0*tone(5), 16000), ["the reference is silent"]),
    nan=(lambda p: soundfile.write(p, np.full(80000, np.nan, "float32"), 16000, subtype="FLOAT"), ["NaN"]),
    text=(lambda p: p.write_text("This is no sound."), ["isn't audio"]),
    empty=(lambda p: p.touch(), ["it is empty"]),
    cut=(lambda p: (soundfile.write(p, tone(5), 16000), p.write_bytes(p.read_bytes()[:50000])), ["truncated"]),
    folder=(lambda p: p.mkdir(), ["it is a directory"]),
    missing=(lambda p: None, ["there is no such file"]))

@pytest.mark.parametrize("name", REFERENCES)
def test_references(capsys, name):
    make, words = REFERENCES[name]
    make(Path("ref.wav"))
    refused(capsys, "synthesise", SHORT, "--voice", "ref.wav", *QUICK, words=words)

def test_the_release_asks_for_30_seconds(capsys, tmp_path):
    soundfile.write("ref.wav", tone(29), 16000)
    refused(capsys, "synthesise", SHORT, "--voice", "ref.wav", "--model", nano(tmp_path / "strict", minimum_reference=30), words=["29.00 s long; at least 30 s"])

@pytest.mark.parametrize("make", ["eight channels", "stereo 8 kHz", "mp3", "flac", "ogg"])
def test_references_that_will_do(capsys, make):
    x, suffix = tone(4) * np.random.default_rng(0).normal(1, .1, 64000).astype("float32"), make if len(make) < 5 else "wav"
    if make == "eight channels": soundfile.write("ref.wav", np.stack([x]*8, 1), 16000)
    elif make == "stereo 8 kHz": soundfile.write("ref.wav", np.stack([x[::2], x[::2]], 1), 8000)
    else: soundfile.write(f"ref.{suffix}", x, 16000)
    code, _, err = run(capsys, "synthesise", SHORT, "--voice", f"ref.{suffix}", "-o", "a.wav", "--seed", 1, *QUICK)
    assert code == 0 and Path("a.wav").exists(), err

@pytest.mark.parametrize("path,words", [("no/a.wav", ["there is no folder no"]), (".", ["it is a directory"]), ("a.docx", ["unknown ending '.docx'; use .wav, .flac, .ogg, .mp3"]),
    ("a", ["unknown ending ''"]), ("file/a.wav", ["there is no folder file"])])
def test_outputs(capsys, path, words):
    Path("file").touch()
    refused(capsys, "synthesise", SHORT, "-o", path, words=words)

@pytest.mark.skipif(not Path("/proc/self").exists(), reason="a folder that nobody can write to is known only on Linux")
def test_a_folder_that_refuses(capsys): refused(capsys, "synthesise", SHORT, "-o", "/proc/a.wav", words=["can't write /proc/a.wav: "])

@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_no_permission(capsys):
    Path("folder").mkdir(0o500)
    refused(capsys, "synthesise", SHORT, "-o", "folder/a.wav", words=["Permission denied"])
    Path("a.wav").touch(0o400)
    refused(capsys, "synthesise", SHORT, "-o", "a.wav", words=["write-protected"])

def test_an_old_output_survives_a_mistake(capsys):
    Path("a.wav").write_text("precious")
    refused(capsys, "synthesise", "😀", "-o", "a.wav")
    assert Path("a.wav").read_text() == "precious"


# bad models

@pytest.mark.parametrize("argv,words", [(["/nowhere"], ["there is no model '/nowhere'"]), (["some/body"], ["neither a folder here nor a pinned model"]), (["."], ["is no model"])])
def test_models(capsys, argv, words):
    refused(capsys, "synthesise", SHORT, "--model", *argv, words=words)
    refused(capsys, "info", "--model", *argv, words=words)

@pytest.mark.parametrize("file", ["tokeniser.json", "first_stage.safetensors", "second_stage.safetensors", "codec.safetensors", "speaker_encoder.safetensors"])
def test_a_missing_or_truncated_file(capsys, tmp_path, file):
    refused(capsys, "synthesise", SHORT, *QUICK, "--model", nano(tmp_path / "gone", without=[file]), words=[file, "is missing"])
    folder = nano(tmp_path / "torn", without=[file])
    (folder / file).write_bytes((NANO / file).read_bytes()[:1000])
    refused(capsys, "synthesise", SHORT, *QUICK, "--model", folder, words=[file])

@pytest.mark.parametrize("file", ["first_stage.safetensors", "codec.safetensors"])
def test_a_weight_of_the_wrong_shape(capsys, tmp_path, file):
    from safetensors.torch import load_file, save_file
    state = load_file(NANO / file)
    name = max(state, key=lambda k: state[k].numel())
    folder = nano(tmp_path / "odd", without=[file])
    save_file(state | {name: state[name][..., :-1].contiguous()}, folder / file)
    refused(capsys, "synthesise", SHORT, *QUICK, "--model", folder, words=[file, name, "doesn't fit its configuration"])

def test_diffusion_that_is_not_there(capsys, tmp_path):
    manifest = json.loads((NANO / "bundle.json").read_text(encoding="utf-8"))
    folder = nano(tmp_path / "plain", parts={k: v for k, v in manifest["parts"].items() if k != "mbd"})
    refused(capsys, "synthesise", SHORT, "--vocoder", "mbd", "--model", folder, words=["has no mbd", "use vocoder 'codec'"])

class Wicked:
    def __reduce__(self): return (open, ("it-ran.txt", "w"))

@pytest.mark.parametrize("file", ["first_stage.pt", "second_stage.pt", "speaker_encoder.pt"])
def test_a_pickle_that_would_run_code(capsys, tmp_path, file):
    folder = tmp_path / "wicked"
    folder.mkdir()
    torch.save(dict(model={}, model_args={}, meta=dict(tokenizer=Wicked()), config=Wicked(), model_state=Wicked()), folder / "first_stage.pt")
    if file != "first_stage.pt": (folder / "first_stage.pt").rename(folder / file)
    refused(capsys, "synthesise", SHORT, "--model", folder, words=["first_stage.pt" if file != "speaker_encoder.pt" else "is no model"])
    run(capsys, "info", "--model", folder)
    assert not list(tmp_path.rglob("it-ran.txt"))


# the process

def clean_room(tmp_path):
    "An environment whose home, cache and temporary folder are empty."
    env = {k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "HF_", "TORCH", "METAVOICE_CACHE"))}
    for name in ("home", "cache", "tmp"): (tmp_path / name).mkdir()
    return env | dict(HOME=str(tmp_path / "home"), METAVOICE_CACHE=str(tmp_path / "cache"), TMPDIR=str(tmp_path / "tmp"), PYTHONDONTWRITEBYTECODE="1", PYTHONPATH=str(ROOT))

def tree(folder): return {str(p.relative_to(folder)) for p in folder.rglob("*")}

def test_nothing_is_written_but_the_output(tmp_path):
    env, installed = clean_room(tmp_path), tree(ROOT / "metavoice")
    before = tree(tmp_path)
    done = subprocess.run([*COMMAND, "synthesise", SHORT, "-o", "a.flac", "--seed", "1"], env=env, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert {p for p in tree(tmp_path) - before if not p.startswith("cache")} == {"cwd/a.flac"}
    assert tree(ROOT / "metavoice") == installed
    assert done.stdout.count(b"\n") == 2 and b"\n" not in done.stderr and b"first stage" in done.stderr, done.stderr

def test_a_reader_that_went_away(tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([*COMMAND, "synthesise", SHORT, *QUICK], env=clean_room(tmp_path), stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert done.returncode == 0 and "Broken" not in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert soundfile.info("speech.wav").frames

@pytest.mark.skipif(os.name == "nt", reason="Windows interrupts in another way")
def test_ctrl_c_leaves_nothing(tmp_path):
    process = subprocess.Popen([*COMMAND, "synthesise", "The old man walked to the river. "*200, "-o", "a.wav"], env=clean_room(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    seen = b""
    while b"first stage" not in seen and process.poll() is None: seen += os.read(process.stderr.fileno(), 1000)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and out == b"", err
    assert err.split(b"\r")[-1].strip() == b"metavoice: interrupted; nothing was written" and b"Traceback" not in err
    assert not os.listdir() and not os.listdir(tmp_path / "tmp")

@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no disk that is full")
def test_a_stream_onto_a_full_disk(capsys):
    Path("a.wav").symlink_to("/dev/full")
    code, out, err = run(capsys, "synthesise", SHORT, "--stream", "-o", "a.wav", "-q", *QUICK)
    assert (code, out, err) == (2, "", "metavoice: can't write a.wav: No space left on device\n")

def test_a_player_that_went_away(tmp_path):
    process = subprocess.Popen([*COMMAND, "synthesise", "The old man walked to the river. "*200, "--stream", *QUICK], env=clean_room(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert len(process.stdout.read(5000)) == 5000
    process.stdout.close()
    err = process.stderr.read().decode()
    assert process.wait(60) == 0 and "Broken" not in err and "Traceback" not in err, err

@pytest.mark.skipif(os.name == "nt", reason="Windows interrupts in another way")
def test_ctrl_c_in_a_stream_leaves_a_valid_file(tmp_path):
    process = subprocess.Popen([*COMMAND, "synthesise", "The old man walked to the river. "*200, "--stream", "-o", "a.wav", *QUICK], env=clean_room(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while (not Path("a.wav").exists() or Path("a.wav").stat().st_size < 30_000) and process.poll() is None: time.sleep(.01) # more than one chunk
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and out == "" and err.startswith("metavoice: interrupted; a.wav holds the ") and "Traceback" not in err, err
    assert soundfile.info("a.wav").frames*2 + 44 == Path("a.wav").stat().st_size > 10_000
