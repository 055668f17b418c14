"Finetuning: by each method, interrupted and killed, on two processes, in a new language, at the command line."
import io, json, os, random, signal, subprocess, sys, threading, time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch.nn.functional import normalize

from metavoice.bundle.load import load_bundle
from metavoice.bundle.write import write_random_bundle
from metavoice.cli.main import main
from metavoice.core.settings import make_config
from metavoice.train.settings import FinetuneConfig
from metavoice.core.errors import BundleError, MetaVoiceError, OptionError
from metavoice.train.plots import LivePlot, plot_losses, read_log
from metavoice.train.finetune import Finetuner
from metavoice.train.publish import make_model_card, merge_adapter, push_to_hub

pytest.importorskip("peft", reason='finetuning needs pip install "metavoice[finetune]"')
ROOT = Path(__file__).parents[1]
ENV = {**os.environ, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
SAID = {"1": "The kettle sings softly while rain taps on the window.", "2": "Nine small boats came home before the evening tide."}
PROBE, WHO = torch.tensor([[[2100, 2561, 5, 1030, 7]]]), normalize(torch.arange(256.)[None], dim=-1)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    "One for all tests here, so that clips are encoded once."
    patch = pytest.MonkeyPatch()
    ENV["METAVOICE_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    patch.setenv("METAVOICE_CACHE", ENV["METAVOICE_CACHE"]); patch.setenv("ACCELERATE_USE_CPU", "true")
    yield
    patch.undo()

@pytest.fixture(scope="module")
def data(tmp_path_factory):
    "Six clips in the released format, one of them to validate on."
    folder = tmp_path_factory.mktemp("data")
    rows = [f"{f}|{SAID[f.stem[-1]]}\n" for f in sorted((ROOT/"nbs"/"samples").glob("*_[12].ogg"))]
    for name,part in (("train", rows[1:]), ("val", rows[:1])): (folder/f"{name}.csv").write_text("audio_files|captions\n"+"".join(part))
    return folder

@pytest.fixture(scope="module")
def model(tmp_path_factory): return write_random_bundle(tmp_path_factory.mktemp("model")/"speechless")

@pytest.fixture
def settings(data, model):
    return dict(train=str(data/"train.csv"), val=str(data/"val.csv"), model=str(model), decoder=False, steps=6, batch=2, rate=1e-3, log_steps=2, evaluate_steps=3, samples=0, track="none", bf16=False)

def contents(path):
    "What is said in a file of weights and the weights, whatever the order in which its header names them."
    with safe_open(path, "pt") as f: return f.metadata(), {k: f.get_tensor(k) for k in f.keys()}

def logits(path): return load_bundle(path, "cpu", "float32").first(PROBE, WHO)[0]


@pytest.mark.parametrize("method", ["last", "full", "lora"])
def test_what_is_learnt_is_what_loads(tmp_path, settings, method):
    "Only the weights that the method names have moved, and the result computes what the trained model did."
    heard = []
    run = Finetuner(out=str(tmp_path/"run"), method=method, dtype="float32", on_log=heard.append, **settings)
    assert run.run() == tmp_path/"run"/"bundle"
    assert [l["step"] for l in heard] == [0, 2, 3, 4, 6] == [l["step"] for l in read_log(tmp_path/"run")]
    assert {"loss", "rate", "tokens_per_second", "held_out_audio", "held_out_accuracy"} <= heard[-1].keys()
    before, after = load_bundle(settings["model"], "cpu", "float32"), load_bundle(tmp_path/"run", "cpu", "float32")
    moved = {n for (n, a), b in zip(before.first.named_parameters(), after.first.parameters()) if not torch.equal(a, b)}
    if method == "last": assert moved and all(n.startswith(("transformer.h.4.", "transformer.ln_f")) for n in moved)
    if method == "lora": assert len(moved) == 5*5 and not any("wte" in n or "ln" in n for n in moved)
    best = min((l for l in heard if "held_out_audio" in l), key=lambda l: l["held_out_audio"])
    if best["step"] == 6: torch.testing.assert_close(run.bundle.first.eval()(PROBE, WHO)[0], after.first(PROBE, WHO)[0], atol=1e-4, rtol=1e-4)
    assert list(after.voices) and torch.equal(before.second(torch.zeros(1, 2, 4, dtype=torch.long))[0], after.second(torch.zeros(1, 2, 4, dtype=torch.long))[0])
    if method == "lora":
        assert sum(f.stat().st_size for f in (tmp_path/"run"/"bundle").glob("*.safetensors")) < 1_500_000
        torch.testing.assert_close(logits(merge_adapter(tmp_path/"run", tmp_path/"merged", "float32")), logits(tmp_path/"run"))

def test_an_adapter_speaks_without_peft(tmp_path, settings):
    Finetuner(out=str(tmp_path/"run"), method="lora", **settings).run()
    code = f"import sys; sys.modules['peft'] = None; from metavoice.tts import TTS; t = TTS.from_pretrained({str(tmp_path/'run')!r}); print(t.codes(['Good morning.'], seed=1)[0][0].shape)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENV)
    assert done.returncode == 0 and "torch.Size([8," in done.stdout, done.stderr[-1000:]

def test_an_adapter_is_added_before_its_weights_are_quantised(tmp_path, settings):
    pytest.importorskip("torchao")
    Finetuner(out=str(tmp_path/"run"), method="lora", **settings).run()
    eight = load_bundle(tmp_path/"run", "cpu", "float32", quantise="int8").first(PROBE, WHO)[0]
    whole, base = logits(tmp_path/"run"), logits(settings["model"])
    assert (eight-whole).abs().mean() < .3*(whole-base).abs().mean()

def test_an_adapter_is_not_added_to_another_base(tmp_path, settings):
    base = write_random_bundle(tmp_path/"base", seed=1)
    Finetuner(out=str(tmp_path/"run"), method="lora", **settings | dict(model=str(base))).run()
    write_random_bundle(tmp_path/"base", seed=2)
    with pytest.raises(BundleError, match="was trained on another"): load_bundle(tmp_path/"run", "cpu")
    manifest = json.loads((tmp_path/"run"/"bundle"/"bundle.json").read_text())
    (tmp_path/"run"/"bundle"/"bundle.json").write_text(json.dumps(manifest | dict(base=manifest["base"] | dict(model=str(tmp_path/"gone")))))
    with pytest.raises(BundleError, match="base of 'run' can't be found"): load_bundle(tmp_path/"run", "cpu")

def test_a_few_recordings_are_learnt_from_with_none_held_out(tmp_path, settings):
    run = Finetuner(out=str(tmp_path/"run"), method="lora", **settings | dict(val=None, decoder=True, steps=2))
    run.run()
    assert not run.val and load_bundle(tmp_path/"run", "cpu").codec is not None

@pytest.mark.parametrize("method", ["last", "lora"])
def test_stopped_from_another_thread_and_resumed_it_ends_with_the_same_bits(tmp_path, settings, method):
    settings |= dict(method=method, evaluate_steps=20)
    Finetuner(out=str(tmp_path/"whole"), **settings).run()
    def on_log(line):
        if line["step"] == 2: run.stop()
    run = Finetuner(out=str(tmp_path/"halves"), on_log=on_log, **settings)
    thread = threading.Thread(target=run.run)
    thread.start(); thread.join(120)
    assert run.trainer.step < 6 and (tmp_path/"halves"/"bundle"/"bundle.json").exists()  # what there is can be heard
    assert Finetuner(out=str(tmp_path/"halves"), resume=True, **settings).run() == tmp_path/"halves"/"bundle"
    whole, halves = (torch.load(tmp_path/o/"first"/"state.pt", weights_only=True) for o in ("whole", "halves"))
    assert whole["step"] == halves["step"] == 6 and whole["model"].keys() == halves["model"].keys()
    assert all(torch.equal(v, halves["model"][k]) for k,v in whole["model"].items())
    assert [l.get("loss") for l in read_log(tmp_path/"whole")] == [l.get("loss") for l in read_log(tmp_path/"halves")]

def command(out, settings, *more): return ["finetune", *(x for k,v in settings.items() for x in ([f"--{'' if v else 'no-'}{k}"] if isinstance(v, bool) else [f"--{k.replace('_','-')}", str(v)])), "--out", str(out), "-q", *more]

def test_killed_at_a_random_moment_it_ends_with_the_same_weights(tmp_path, settings):
    "kill -9, twice, wherever it is, and --resume."
    settings |= dict(steps=40, save_steps=3, log_steps=4, evaluate_steps=10, method="lora")
    start = lambda out, *more: subprocess.Popen([sys.executable, "-m", "metavoice.cli", *command(tmp_path/out, settings, *more)], cwd=ROOT, env=ENV, stderr=subprocess.PIPE)
    assert start("whole").wait(300) == 0
    rng = random.Random(os.urandom(4))
    for _ in range(2):
        process, deadline = start("killed", "--resume"), time.monotonic()+120
        while not (tmp_path/"killed"/"first"/"state.pt").exists() and process.poll() is None and time.monotonic() < deadline: time.sleep(.02)
        time.sleep(rng.random()*2)
        process.kill(); process.wait()
    process = start("killed", "--resume")
    assert process.wait(300) == 0, process.stderr.read().decode()[-2000:]
    whole, killed = (torch.load(tmp_path/o/"first"/"state.pt", weights_only=True) for o in ("whole", "killed"))
    assert whole["step"] == killed["step"] == 40 and all(torch.equal(v, killed["model"][k]) for k,v in whole["model"].items())
    (about, learnt), (about_again, learnt_again) = (contents(tmp_path/o/"bundle"/"adapter.safetensors") for o in ("whole", "killed"))
    assert about == about_again and learnt.keys() == learnt_again.keys() and learnt and all(torch.equal(v, learnt_again[k]) for k,v in learnt.items())

def test_sigterm_keeps_what_was_learnt(tmp_path, settings):
    process = subprocess.Popen([sys.executable, "-m", "metavoice.cli", *command(tmp_path/"run", settings | dict(steps=100_000, save_steps=100_000))], cwd=ROOT, env=ENV)
    deadline = time.monotonic()+120
    log = tmp_path/"run"/"first"/"log.jsonl"
    while not (log.exists() and '"loss"' in log.read_text()) and time.monotonic() < deadline: time.sleep(.05) # the first line is of before the first step
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128+signal.SIGTERM
    assert torch.load(tmp_path/"run"/"first"/"state.pt", weights_only=True)["step"] > 0

def test_two_processes_learn_what_one_learns_from_twice_the_batches(tmp_path, settings):
    "By `accelerate launch`, unchanged, with gloo."
    def launch(out, processes, accumulate):
        done = subprocess.run([sys.executable, "-m", "accelerate.commands.launch", *(["--multi_gpu"] if processes > 1 else []), "--num_processes", str(processes), "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
                               "--main_process_port", "0", "-m", "metavoice.cli", *command(tmp_path/out, settings | dict(accumulate=accumulate, steps=10, dropout=0, batch=1))], capture_output=True, text=True, cwd=ROOT, env=ENV, timeout=400)
        assert done.returncode == 0, done.stderr[-2000:]
        return read_log(tmp_path/out)
    one, two = launch("one", 1, 2), launch("two", 2, 1)
    for key in ("loss", "held_out_audio"):
        a, b = ([l[key] for l in log if key in l] for log in (one, two))
        assert len(a) >= 3 and b == pytest.approx(a, abs=1e-3)

def test_a_new_language(tmp_path, settings):
    "The vocabulary changes, what is known of sound stays, and the result speaks its text."
    (tmp_path/"text.txt").write_text("\n".join([*SAID.values(), "Größere Füße, schöne Bären."]*30))
    run = Finetuner(out=str(tmp_path/"run"), method="last", second=True, tokeniser=str(tmp_path/"text.txt"), dtype="float32", **settings)
    old = load_bundle(settings["model"], "cpu", "float32")
    with pytest.raises(MetaVoiceError): run.run()  # 512 ranks can't be learnt from so little
    from metavoice.text.tokeniser import Tokeniser
    (tmp_path/"own.json").write_text(Tokeniser.train((tmp_path/"text.txt").read_text().splitlines(), n_ranks=300).to_json())
    Finetuner(out=str(tmp_path/"run"), method="last", second=True, tokeniser=str(tmp_path/"own.json"), dtype="float32", **settings).run()
    new = load_bundle(tmp_path/"run", "cpu", "float32")
    assert new.layout.text_ranks == 300 and new.first.config.vocab_sizes == [2049+301] and new.second.config.vocab_sizes[0] == 1025+301
    assert new.tokeniser.check_text("Größere Füße.") == "Größere Füße." and not torch.equal(new.second.transformer.h[0].attn.c_attn.weight, old.second.transformer.h[0].attn.c_attn.weight)
    from metavoice.generate.tts import TTS
    assert TTS(new).codes(["Größere Füße."], seed=0)[0][0].shape[0] == 8

def test_samples_and_curves_go_to_the_tracker(tmp_path, settings):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    run = Finetuner(out=str(tmp_path/"run"), **settings | dict(model="nano", track="tensorboard", samples=1, say=["The dog slept."], steps=2, evaluate_steps=2))
    run.run()
    assert sorted(f.name for f in (tmp_path/"run"/"samples").iterdir()) == ["step-000000-1.ogg", "step-000002-1.ogg"] and read_log(tmp_path/"run")[-1]["samples"] == ["samples/step-000002-1.ogg"]
    events = EventAccumulator(str(next(p.parent for p in tmp_path.rglob("events.out*") if p.parent.name == "metavoice"))).Reload().Tags()
    assert "sample_1" in events["audio"] and "sample_1_spectrogram" in events["images"] and {"loss", "held_out_audio", "rate", "tokens_per_second"} <= set(events["scalars"])

def test_wandb_gets_samples_and_curves_too(tmp_path, settings, monkeypatch):
    pytest.importorskip("wandb", reason="pip install wandb")
    for name,value in dict(WANDB_MODE="offline", WANDB_SILENT="true", WANDB_DIR=str(tmp_path)).items(): monkeypatch.setenv(name, value)
    (tmp_path/"say.json").write_text(json.dumps(settings | dict(model="nano", track="wandb", samples=1, say=["The dog slept."], steps=2, evaluate_steps=2)))
    assert main(["finetune", "--config", str(tmp_path/"say.json"), "--out", str(tmp_path/"run"), "-q"]) == 0
    kept = [f for f in tmp_path.rglob("offline-run-*/**/*") if f.is_file()]
    assert [f.suffix for f in kept if f.stat().st_size > 1000].count(".wandb") == 1
    assert any("sample_1" in f.name and f.suffix == ".wav" for f in kept) and any("sample_1_spectrogram" in f.name and f.suffix == ".png" for f in kept)

def test_the_command_says_what_to_do_next(tmp_path, settings, capsys):
    assert main([a for a in command(tmp_path/"my voice", settings) if a != "-q"]) == 0
    said = capsys.readouterr().out
    assert "hear it: metavoice synthesise" in said and "5 recordings" in said
    assert main(["info", "--model", str(tmp_path/"my voice")]) == 0 and "my-voice" in capsys.readouterr().out
    assert main(command(tmp_path/"my voice", settings)) == 2 and "there is a run in" in capsys.readouterr().err
    assert main(["merge", str(tmp_path/"my voice"), "--out", str(tmp_path/"whole")]) == 0

def test_checking_only(tmp_path, data, model, capsys):
    (tmp_path/"bad.csv").write_text((data/"train.csv").read_text()+"missing.wav|Yes.\n")
    assert main(["finetune", "--train", str(tmp_path/"bad.csv"), "--val", str(data/"val.csv"), "--model", str(model), "--check", "-q", "--out", str(tmp_path/"run")]) == 1
    assert "bad.csv:7" in capsys.readouterr().out and not (tmp_path/"run").exists()
    assert main(["finetune", "--train", str(tmp_path/"bad.csv"), "--model", str(model), "-q", "--out", str(tmp_path/"run")]) == 2
    assert "bad.csv:7" in capsys.readouterr().err

@pytest.mark.parametrize("more, error", [(dict(method="full"), "has method 'last'"), (dict(batch=1), "has batch 2"), (dict(train="val.csv", val=None, hold_out=0.), "hold_out")])
def test_another_run_is_not_gone_on_with(tmp_path, settings, data, more, error):
    Finetuner(out=str(tmp_path/"run"), **settings).run()
    if "train" in more: more = more | dict(train=str(data/more["train"]))
    with pytest.raises(OptionError, match=error): Finetuner(out=str(tmp_path/"run"), resume=True, **settings | more).run()

@pytest.mark.parametrize("wrong, error", [(dict(train=""), "nothing to learn from"), (dict(last=9), "has 5 blocks"), (dict(say=["日本"]), "outside the tokeniser"), (dict(tokeniser="nowhere.json"), "can't read the tokeniser"), (dict(model="nobody"), "there is no model")])
def test_what_cant_be_done_is_told_before_training(tmp_path, settings, wrong, error):
    with pytest.raises(MetaVoiceError, match=error): Finetuner(out=str(tmp_path/"run"), **settings | wrong).run()
    assert not (tmp_path/"run"/"first"/"state.pt").exists()

@pytest.mark.parametrize("text, error", [("train: x\nlearning_rate: 1", "unknown setting 'learning_rate'.*there are train"), ("- 1", "names and values"), ("method: qlora", "use last, full or lora"), ("batch: many", "whole number")])
def test_a_file_of_settings_that_cant_be(tmp_path, text, error):
    (tmp_path/"x.yaml").write_text(text)
    with pytest.raises(OptionError, match=error): make_config(FinetuneConfig, tmp_path/"x.yaml")

def test_card_and_push(tmp_path, settings):
    class Hub:
        sent = []
        def create_repo(self, repo, **options): self.private = options["private"]; return f"https://huggingface.co/{repo}"
        def upload_folder(self, repo_id, folder_path, path_in_repo="", **options): self.sent += [str(Path(path_in_repo)/f.relative_to(folder_path)) for f in Path(folder_path).rglob("*") if f.is_file()]
    class Broken(Hub):
        def create_repo(self, *args, **options): raise ConnectionError("no network")
    Finetuner(out=str(tmp_path/"run"), **settings | dict(model="nano", method="lora", samples=1, steps=2, evaluate_steps=2, say=["The dog slept."])).run()
    hub = Hub()
    assert push_to_hub(tmp_path/"run", "me/voice", api=hub) == "https://huggingface.co/me/voice" and hub.private
    assert {"README.md", "bundle.json", "adapter.safetensors", "samples/step-000002-1.ogg"} <= set(hub.sent)
    card = (tmp_path/"run"/"bundle"/"README.md").read_text()
    assert card.startswith("---\n") and "5 recordings" in card and "validation loss" in card and "samples/step-000002-1.ogg" in card and str(tmp_path) not in card
    load_bundle(tmp_path/"run", "cpu")  # the card is in nobody's way
    with pytest.raises(BundleError, match="ConnectionError"): push_to_hub(tmp_path/"run", "me/voice", api=Broken())
    with pytest.raises(BundleError, match="no finished run"): make_model_card(tmp_path)

def test_plots(tmp_path):
    lines = [dict(step=s, loss=3/s) | (dict(held_out_audio=4/s) if s % 2 else {}) for s in range(1, 9)]
    assert len(plot_losses(lines).axes[0].lines) == 2 and plot_losses([])
    LivePlot()(lines[0])
