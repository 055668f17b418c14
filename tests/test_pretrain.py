"Pretraining: a dry run of every stage at the command line, interruption, two processes, and input that can't be used."
import json, os, subprocess, sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from metavoice.audio import load
from metavoice.cli import main
from metavoice.core import MetaVoiceError, OptionError
from metavoice.pretrain import Pretraining, Recipe, Training
from metavoice.teacher import Corpus, KEPT_OUT, SPEAKERS, render, sentences, write_corpus

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    "Six clips with evenly dealt times, in place of hours of speech."
    said = {"1": "The kettle sings softly while rain taps on the window.", "2": "Nine small boats came home before the evening tide."}
    def clips():
        for f in sorted((ROOT/"nbs"/"samples").glob("*.ogg")):
            text, x = said[f.stem[-1]], load(f, 24_000).samples
            ends = np.linspace(0, len(x)/24_000, len(text.split())+1).round(3).tolist()
            yield text, f.stem[:3], x, list(map(list, zip(ends, ends[1:]))), [["pau", ends[1]], ["dh", ends[-1]]]
    return write_corpus(tmp_path_factory.mktemp("corpus"), clips())

def line(t):
    x = torch.rand(32, 1, generator=t.rng)
    return dict(loss=(t.model(x)-2*x-1).square().mean())

def new_line(out, **recipe):
    torch.manual_seed(0)
    return Training(nn.Linear(1, 1), out, Recipe(**dict(steps=60, rate=.1, warmup=.05) | recipe))


def test_a_dry_run_makes_a_bundle_that_speaks_its_own_shape(corpus, tmp_path, capsys):
    assert main(["pretrain", "--size", "tiny", "--steps", "2", "--corpus", str(corpus.path), "--out", str(tmp_path/"run"), "-q"]) == 0
    assert "bundle" in capsys.readouterr().out
    from metavoice.bundle import load_bundle
    bundle = load_bundle(tmp_path/"run"/"bundle")
    assert set(bundle.parts) == {"tokeniser", "first", "second", "codec", "speaker_encoder", "mbd"}
    codes = bundle.codec.encode(corpus.audio(0)[None])
    assert codes.shape[1] == 8 and bundle.codec.decode(codes).isfinite().all()
    # again: every stage is finished, nothing is trained twice
    before = (tmp_path/"run"/"first"/"state.pt").read_bytes()
    assert main(["pretrain", "--stage", "first", "--size", "tiny", "--steps", "2", "--corpus", str(corpus.path), "--out", str(tmp_path/"run"), "-q"]) == 0
    assert torch.load(tmp_path/"run"/"first"/"state.pt", weights_only=True)["step"] == 2 and len(before)

def test_interrupted_training_goes_on_to_the_same_bits(tmp_path):
    whole = new_line(tmp_path/"whole"); whole.run(line)
    def stopped(t):
        if t.step == 25: raise KeyboardInterrupt
        return line(t)
    with pytest.raises(KeyboardInterrupt): new_line(tmp_path/"halves").run(stopped)
    rest = new_line(tmp_path/"halves")
    assert rest.step == 25
    rest.run(line)
    assert torch.equal(rest.model.weight, whole.model.weight)

def test_the_order_of_batches_survives_an_interruption(tmp_path):
    from metavoice.pretrain import ByLength, Spoken
    data = [Spoken([1,2], torch.zeros(8, n, dtype=torch.int16), [], torch.zeros(n), 'a', n) for n in range(10, 40)]
    def run(out, stop=None):
        t, drawn = new_line(out, steps=20), []
        batches = t.keep("batches", ByLength(data, 200, t.rng))
        def loss(t):
            if t.step == stop: raise KeyboardInterrupt
            drawn.append([u.index for u in batches()])
            return line(t)
        try: t.run(loss)
        except KeyboardInterrupt: pass
        return drawn
    assert run(tmp_path/"halves", stop=7) + run(tmp_path/"halves") == run(tmp_path/"whole")

def test_a_loss_that_explodes_keeps_the_checkpoint(tmp_path):
    training = new_line(tmp_path, save_every=0.)
    def loss(t): return line(t) if t.step < 5 else dict(loss=t.model.weight.sum()*float("nan"))
    with pytest.raises(MetaVoiceError, match="nan after 5 steps"): training.run(loss)
    kept = torch.load(tmp_path/"state.pt", weights_only=True)
    assert kept["step"] == 5 and all(v.isfinite().all() for v in kept["model"].values())

def test_a_broken_checkpoint_is_told(tmp_path):
    (tmp_path/"state.pt").write_bytes(b"PK broken")
    with pytest.raises(MetaVoiceError, match="move it away"): new_line(tmp_path)

def test_two_processes_share_the_work(tmp_path):
    "Each draws batches of its own, both end with the same weights; only the first writes."
    code = ("import sys, json, torch; from torch import nn; from metavoice.pretrain import Training, Recipe\n"
            "torch.manual_seed(0); t = Training(nn.Linear(1,1), sys.argv[1], Recipe(steps=160, rate=.1, warmup=.05)); seen = []\n"
            "def loss(t):\n"
            "    x = torch.rand(32,1, generator=t.rng); seen.append(x[0].item()); return dict(loss=(t.model(x)-2*x-1).square().mean())\n"
            "t.run(loss, every=40)\n"
            "open(f'{sys.argv[1]}/rank{t.accelerator.process_index}.json','w').write(json.dumps([t.accelerator.num_processes, seen[0], t.model.weight.item()]))\n")
    (tmp_path/"train.py").write_text(code)
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(tmp_path/"train.py"), str(tmp_path)],
                          capture_output=True, text=True, cwd=ROOT, timeout=300, env={**os.environ, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    (n, x0, w0), (m, x1, w1) = (json.loads((tmp_path/f"rank{i}.json").read_text()) for i in (0, 1))
    assert n == m == 2 and x0 != x1 and w0 == w1 and abs(w0-2) < .2
    assert len((tmp_path/"log.jsonl").read_text().splitlines()) == 4

@pytest.mark.parametrize("options, error", [(dict(stage="third"), "unknown stage 'third'"), (dict(stage="mbd"), "run the stages before this one")])
def test_what_cant_be_run_is_told(corpus, tmp_path, options, error):
    with pytest.raises(OptionError, match=error): Pretraining(tmp_path, size="tiny", corpus=corpus.path).run(**options)

def test_unknown_size_and_missing_corpus(tmp_path, capsys):
    with pytest.raises(OptionError, match="unknown size 'huge'"): Pretraining(tmp_path, size="huge")
    with pytest.raises(OptionError, match="manifest.jsonl is missing"): Corpus(tmp_path/"nothing")
    with pytest.raises(SystemExit): main(["pretrain", "--hours", "0"])
    assert "isn't allowed" in capsys.readouterr().err

def test_sentences_and_speakers():
    assert sentences(50, seed=3) == sentences(50, seed=3) and len(set(sentences(50, seed=3))) == 50
    assert len({s.name for s in SPEAKERS}) >= 40 and len(KEPT_OUT) >= 4 and not set(SPEAKERS) & set(KEPT_OUT)

def test_without_flite_it_says_what_to_install(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(MetaVoiceError, match="apt-get install flite"): render("Hello.")
