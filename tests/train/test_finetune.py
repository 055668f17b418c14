"Finetuning runs: the three methods, stopping and resuming, several processes, invalid input."
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from tiny import write_tiny_bundle

from metavoice.bundle.load import load_bundle
from metavoice.core.errors import MetaVoiceError, OptionError
from metavoice.generate.tts import TTS
from metavoice.models.alignment import CONTEXT_SIZES, text_streams
from metavoice.text.spoken import TextOptions, prepare_text
from metavoice.text.tokeniser import Tokeniser
from metavoice.train.finetune import Finetuner
from metavoice.train.plots import read_log

pytest.importorskip("peft", reason='finetuning needs pip install "metavoice[finetune]"')
ROOT = Path(__file__).parents[2]
PROBE = text_streams(torch.tensor([[2100, 2330, 5, 1030, 7]]), 1 + len(CONTEXT_SIZES))
SPEAKER = torch.nn.functional.normalize(torch.arange(256.0)[None], dim=-1)


def read_tensors(path):
    "Return the metadata and the tensors of a safetensors file."
    with safe_open(path, "pt") as f:
        return f.metadata(), {name: f.get_tensor(name) for name in f.keys()}


def read_checkpoint(out):
    return torch.load(out / "first" / "state.pt", weights_only=True)


def same_tensors(a, b):
    return a.keys() == b.keys() and all(torch.equal(x, b[name]) for name, x in a.items())


@pytest.mark.parametrize("method", ["last", pytest.param("full", marks=pytest.mark.slow), "lora"])
def test_only_the_methods_weights_change_and_the_result_loads(finetuned, random_model, method):
    run, lines = finetuned(method)
    assert [line["step"] for line in lines] == [0, 2, 3, 4, 6] == [line["step"] for line in read_log(run.out)]
    assert {"loss", "rate", "tokens_per_second", "held_out_audio", "held_out_accuracy"} <= lines[-1].keys()
    before, after = load_bundle(random_model, "cpu", "float32"), load_bundle(run.out, "cpu", "float32")
    pairs = zip(before.first.named_parameters(), after.first.parameters())
    changed = {name for (name, a), b in pairs if not torch.equal(a, b)}
    if method == "last":
        assert changed and all(name.startswith(("transformer.h.5.", "transformer.ln_f")) for name in changed)
    if method == "lora":
        assert len(changed) == 6 * 5 and not any("wte" in name or "ln" in name for name in changed)
        assert sum(f.stat().st_size for f in (run.out / "bundle").glob("*.safetensors")) < 1_500_000
    best = min((line for line in lines if "held_out_audio" in line), key=lambda line: line["held_out_audio"])
    if best["step"] == 6:
        expected, found = run.bundle.first.eval()(PROBE, SPEAKER)[0], after.first(PROBE, SPEAKER)[0]
        torch.testing.assert_close(expected, found, atol=1e-4, rtol=1e-4)
    codes = torch.zeros(1, 2, 4, dtype=torch.long)
    assert list(after.voices) and torch.equal(before.second(codes)[0], after.second(codes)[0])


@pytest.mark.slow
def test_few_recordings_without_any_held_out(tmp_path, settings):
    run = Finetuner(out=str(tmp_path / "run"), method="lora", **settings | dict(val=None, decoder=True, steps=2))
    run.run()
    assert not run.recordings.val and load_bundle(tmp_path / "run", "cpu").codec is not None


@pytest.mark.slow
@pytest.mark.parametrize("method", ["last", "lora"])
def test_stopped_from_another_thread_and_resumed_gives_the_same_weights(tmp_path, settings, method):
    settings |= dict(method=method, evaluate_steps=20)
    Finetuner(out=str(tmp_path / "whole"), **settings).run()

    def on_log(line):
        if line["step"] == 2:
            run.stop()

    run = Finetuner(out=str(tmp_path / "halves"), on_log=on_log, **settings)
    thread = threading.Thread(target=run.run)
    thread.start()
    thread.join(400)
    assert run.trainer.step < 6 and (tmp_path / "halves" / "bundle" / "bundle.json").exists()
    assert Finetuner(out=str(tmp_path / "halves"), resume=True, **settings).run() == tmp_path / "halves" / "bundle"
    whole, halves = (read_checkpoint(tmp_path / name) for name in ("whole", "halves"))
    assert whole["step"] == halves["step"] == 6 and same_tensors(whole["model"], halves["model"])
    losses = [[line.get("loss") for line in read_log(tmp_path / name)] for name in ("whole", "halves")]
    assert losses[0] == losses[1]


def command(out, settings, *more):
    "Return the arguments of `metavoice finetune` with the settings as flags."
    flags = []
    for name, value in settings.items():
        flag = name.replace("_", "-")
        flags += [f"--{'' if value else 'no-'}{flag}"] if isinstance(value, bool) else [f"--{flag}", str(value)]
    return ["finetune", *flags, "--out", str(out), "-q", *more]


@pytest.mark.slow
def test_killed_at_random_moments_and_resumed_gives_the_same_weights(tmp_path, settings, finetune_environment):
    "The process is killed twice by SIGKILL and continued with --resume."
    settings |= dict(steps=40, save_steps=3, log_steps=4, evaluate_steps=10, method="lora")

    def start(name, *more):
        arguments = [sys.executable, "-m", "metavoice.cli", *command(tmp_path / name, settings, *more)]
        return subprocess.Popen(arguments, cwd=ROOT, env=finetune_environment, stderr=subprocess.PIPE)

    assert start("whole").wait(600) == 0
    rng, state = random.Random(os.urandom(4)), tmp_path / "killed" / "first" / "state.pt"
    for _ in range(2):
        process, deadline = start("killed", "--resume"), time.monotonic() + 400
        while not state.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(rng.random() * 2)
        process.kill()
        process.wait()
    process = start("killed", "--resume")
    assert process.wait(600) == 0, process.stderr.read().decode()[-2000:]
    whole, killed = (read_checkpoint(tmp_path / name) for name in ("whole", "killed"))
    assert whole["step"] == killed["step"] == 40 and same_tensors(whole["model"], killed["model"])
    files = (tmp_path / name / "bundle" / "adapter.safetensors" for name in ("whole", "killed"))
    (metadata, weights), (other_metadata, other_weights) = map(read_tensors, files)
    assert metadata == other_metadata and weights and same_tensors(weights, other_weights)


@pytest.mark.slow
def test_sigterm_saves_a_checkpoint(tmp_path, settings, finetune_environment):
    settings |= dict(steps=100_000, save_steps=100_000)
    arguments = [sys.executable, "-m", "metavoice.cli", *command(tmp_path / "run", settings)]
    process = subprocess.Popen(arguments, cwd=ROOT, env=finetune_environment)
    log, deadline = tmp_path / "run" / "first" / "log.jsonl", time.monotonic() + 400
    while not (log.exists() and '"loss"' in log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)  # the log's first line is written before the first step
    process.send_signal(signal.SIGTERM)
    assert process.wait(600) == 128 + signal.SIGTERM
    assert read_checkpoint(tmp_path / "run")["step"] > 0


@pytest.mark.slow
def test_two_processes_compute_what_one_does_with_accumulation(tmp_path, settings, finetune_environment):
    "Both are started by `accelerate launch`, with gloo."
    options = "--num_machines 1 --mixed_precision no --dynamo_backend no --main_process_port 0".split()

    def launch(name, processes, grad_accum_steps):
        several = ["--multi_gpu"] if processes > 1 else []
        launcher = [sys.executable, "-m", "accelerate.commands.launch", *several, "--num_processes", str(processes)]
        changes = dict(grad_accum_steps=grad_accum_steps, steps=10, dropout=0, batch_size=1)
        arguments = [*launcher, *options, "-m", "metavoice.cli", *command(tmp_path / name, settings | changes)]
        done = subprocess.run(
            arguments, capture_output=True, text=True, cwd=ROOT, env=finetune_environment, timeout=900
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return read_log(tmp_path / name)

    one, two = launch("one", 1, 2), launch("two", 2, 1)
    for key in ("loss", "held_out_audio"):
        a, b = ([line[key] for line in log if key in line] for log in (one, two))
        assert len(a) >= 3 and b == pytest.approx(a, abs=1e-3)


def test_new_language(tmp_path, settings):
    "The text vocabulary changes, both stages are trained, and the result speaks the language."
    texts = ["The kettle sings softly while rain taps on the window.", "Nine small boats came home before the evening."]
    lines = [*texts, "Größere Füße, schöne Bären."] * 30
    (tmp_path / "text.txt").write_text("\n".join(lines))
    settings |= dict(out=str(tmp_path / "run"), method="last", second=True, dtype="float32")
    with pytest.raises(MetaVoiceError):  # the text is too short for 512 ranks
        Finetuner(tokeniser=str(tmp_path / "text.txt"), **settings).run()
    (tmp_path / "own.json").write_text(Tokeniser.train(lines, n_ranks=300).to_json())
    Finetuner(tokeniser=str(tmp_path / "own.json"), **settings).run()
    old, new = (load_bundle(path, "cpu", "float32") for path in (settings["model"], tmp_path / "run"))
    assert new.layout.text_ranks == 300 and new.first.config.vocab_sizes == [2049 + 301, *CONTEXT_SIZES]
    assert new.second.config.vocab_sizes[0] == 1025 + 301
    assert new.tokeniser.check_text("Größere Füße.") == "Größere Füße."
    weights = [bundle.second.transformer.h[0].attn.c_attn.weight for bundle in (old, new)]
    assert not torch.equal(*weights)
    assert TTS(new).codes(["Größere Füße."], seed=0)[0][0].shape[0] == 8
    kept = {name: value for name, value in old.defaults.items() if name != "piece_tokens"}  # of phonemes
    assert new.defaults == kept | dict(spoken=False)  # there are no rules for the language


def test_captions_become_words_that_are_stored_with_the_run(tmp_path, settings, samples, write_table, monkeypatch):
    rows = [(samples / "awb_1.ogg", "Dr. Bry paid $5 at 3 p.m."), (samples / "rms_2.ogg", "Nine boats came.")]
    (tmp_path / "names.tsv").write_text("Bry\tthe man\n")
    settings |= dict(val=None, hold_out=0.0, train=str(write_table(tmp_path, *rows)), samples=1)
    settings |= dict(lexicon=str(tmp_path / "names.tsv"), out=str(tmp_path / "run"))
    run = Finetuner(**settings)
    run.prepare()
    run.resolve_settings()
    said = prepare_text(rows[0][1], run.bundle.tokeniser, TextOptions(lexicon={"Bry": "the man"})).text
    clips = run.recordings.clips
    assert (clips[0].text, clips[0].written) == (said, rows[0][1]) and "five dollars" in said and "the man" in said
    assert run.recordings.train[0].text == run.bundle.tokeniser.encode(said)
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (stored["spoken"], stored["language"], stored["sample_texts"]) == (True, "en", [rows[0][1]])
    spoken = []
    monkeypatch.setattr(TTS, "synthesise", lambda self, *args, **options: spoken.append((args[0], options)) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run.generate_samples(run.bundle.first, 1)
    assert spoken[0][0] == rows[0][1] and spoken[0][1].items() >= {("spoken", True), ("lexicon", settings["lexicon"])}

    def resume(**changes):
        again = Finetuner(resume=True, **settings | changes)
        again.prepare()
        again.resolve_settings()

    resume()
    with pytest.raises(OptionError, match="has spoken True, not False"):
        resume(spoken=False)
    with pytest.raises(OptionError, match="has language 'en', not 'en-GB'"):
        resume(language="en-GB")
    (tmp_path / "names.tsv").write_text("Bry\tthe woman\n")
    with pytest.raises(OptionError, match="other recordings or words"):
        resume()
    (tmp_path / "other.tsv").write_text("Bry\tthe man\n")
    resume(lexicon=str(tmp_path / "other.tsv"))


def test_samples_and_losses_are_reported_to_tensorboard(spoken_run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    names = sorted(f.name for f in (spoken_run / "samples").iterdir())
    assert names == ["step-000000-1.ogg", "step-000002-1.ogg"]
    assert read_log(spoken_run)[-1]["samples"] == ["samples/step-000002-1.ogg"]
    folder = next(p.parent for p in spoken_run.rglob("events.out*") if p.parent.name == "metavoice")
    events = EventAccumulator(str(folder)).Reload().Tags()
    assert "sample_1" in events["audio"] and "sample_1_spectrogram" in events["images"]
    assert {"loss", "held_out_audio", "rate", "tokens_per_second"} <= set(events["scalars"])


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(method="full"), "has method 'last'"),
        (dict(batch_size=1), "has batch_size 2"),
        (dict(train="val.csv", val=None, hold_out=0.0), "hold_out"),
    ],
)
def test_a_run_with_other_settings_is_not_resumed(finetuned, settings, finetune_data, changes, message):
    run, _ = finetuned("last")
    if "train" in changes:
        changes = changes | dict(train=str(finetune_data / changes["train"]))
    with pytest.raises(OptionError, match=message):
        Finetuner(out=str(run.out), resume=True, **settings | changes).run()


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(train=""), "nothing to learn from"),
        (dict(last_blocks=9), "has 6 blocks"),
        (dict(sample_texts=["日本"]), "nothing to say"),
        (dict(language="tlh"), "language 'tlh'"),
        (dict(lexicon="nowhere.tsv"), "nowhere.tsv"),
        (dict(tokeniser="nowhere.json"), "can't read the tokeniser"),
        (dict(model="nobody"), "there is no model"),
    ],
)
def test_invalid_settings_are_reported_before_training(tmp_path, settings, wrong, message):
    with pytest.raises(MetaVoiceError, match=message):
        Finetuner(out=str(tmp_path / "run"), **settings | wrong).run()
    assert not (tmp_path / "run" / "first" / "state.pt").exists()


@pytest.mark.parametrize("name", ["file", "x" * 300, "a\0b", "file/run"])
def test_folders_that_cannot_hold_a_run(tmp_path, settings, name):
    (tmp_path / "file").touch()
    with pytest.raises(MetaVoiceError, match="folder of a run|can't write to"):
        run = Finetuner(out=str(tmp_path / name), **settings)
        run.prepare()
        run.resolve_settings()


def test_a_model_that_reads_phonemes_is_finetuned_with_an_accent(tmp_path, settings):
    pytest.importorskip("hibari")
    model = write_tiny_bundle(tmp_path / "tiny", phonemes=True)
    settings |= dict(model=str(model), method="lora", steps=2, samples=1, sample_texts=["The dance."])
    run = Finetuner(out=str(tmp_path / "run"), accent="british", **settings)
    run.run()
    tokeniser = run.bundle.tokeniser
    assert tokeniser.accent == "british" and (run.out / "samples").iterdir()
    clip = run.recordings.clips[0]
    assert clip.ids == tokeniser.encode(clip.text, "british") != tokeniser.encode(clip.text, "american")
    assert set(load_bundle(run.out, "cpu").voice_accents.values()) == {"british"}


def test_letters_have_no_accent(tmp_path, settings):
    settings |= dict(model=str(write_tiny_bundle(tmp_path / "tiny")))
    with pytest.raises(OptionError, match="'british' is unknown: the model reads letters"):
        Finetuner(out=str(tmp_path / "run"), accent="british", **settings).run()
