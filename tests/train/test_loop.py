"The loop under pretraining and finetuning: interruption by every means, to the same bits; many processes; checkpoints of before; what can't be used."
import json, os, random, signal, subprocess, sys, threading, time
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from metavoice.core.errors import MetaVoiceError, OptionError
from metavoice.train.batches import LengthBatches, TokenizedUtterance
from metavoice.train.optim import TrainingConfig
from metavoice.train.loop import Trainer

ROOT = Path(__file__).parents[1]
ENV = {**os.environ, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def line(t):
    x = torch.rand(32, 1, generator=t.rng)
    return dict(loss=(F.dropout(t.model(x)-2*x-1, .1)).square().mean())

def new_line(out, **recipe):
    torch.manual_seed(0)
    return Trainer(nn.Linear(1, 1), out, TrainingConfig(**dict(steps=60, rate=.1, warmup=.05) | recipe))

def script(folder, code):
    "A script beside the run, and how to start it."
    path = folder/"train.py"
    path.write_text("import json, os, sys, time, torch\nfrom torch import nn\nfrom torch.nn import functional as F\nfrom metavoice.training import *\n" + code)
    return path

GOODBYE = """
t.accelerator.end_training()
os._exit(0) # gloo's threads may still run, and taking the interpreter down beside them has aborted once
"""

def launch(path, *arguments, processes=2):
    "Run a script by `accelerate launch`; its name for several processes is multi_gpu, on CPUs too (it then takes gloo)."
    return subprocess.run([sys.executable, "-m", "accelerate.commands.launch", *(["--multi_gpu"] if processes > 1 else []), "--num_processes", str(processes), "--num_machines", "1",
                           "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0", str(path), *map(str, arguments)],
                          capture_output=True, text=True, cwd=ROOT, timeout=300, env=ENV)


def test_an_error_in_the_loss_keeps_what_was_learnt_and_training_goes_on_to_the_same_bits(tmp_path):
    whole = new_line(tmp_path/"whole"); whole.run(line)
    def stop_message(t):
        if t.step == 25: raise KeyboardInterrupt
        return line(t)
    with pytest.raises(KeyboardInterrupt): new_line(tmp_path/"halves").run(stop_message)
    rest = new_line(tmp_path/"halves")
    assert rest.step == 25
    rest.run(line)
    assert torch.equal(rest.model.weight, whole.model.weight)

def test_the_order_of_batches_survives_an_interruption(tmp_path):
    data = [TokenizedUtterance([1,2], torch.zeros(8, n, dtype=torch.int16), [], torch.zeros(n), 'a', n) for n in range(10, 40)]
    def run(out, stop=None):
        t, drawn = new_line(out, steps=20), []
        batches = t.keep("batches", LengthBatches(data, 200, t.rng))
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

@pytest.mark.parametrize("number, raised", [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_signals_end_a_run_after_the_step_at_hand(tmp_path, number, raised):
    whole = new_line(tmp_path/"whole"); whole.run(line)
    def interrupted(t):
        if t.step == 25: os.kill(os.getpid(), number)
        return line(t)
    before = signal.getsignal(number)
    with pytest.raises(raised): new_line(tmp_path/"halves").run(interrupted)
    assert signal.getsignal(number) is before
    rest = new_line(tmp_path/"halves")
    assert rest.step == 26
    rest.run(line)
    assert torch.equal(rest.model.weight, whole.model.weight) and torch.equal(rest.model.bias, whole.model.bias)

def test_another_thread_stops_a_run_that_another_thread_runs(tmp_path):
    "As a widget does: neither is the main thread's, signals aren't touched."
    training = new_line(tmp_path, steps=10**9)
    thread = threading.Thread(target=training.run, args=(line,))
    thread.start()
    while thread.is_alive() and not training.step: time.sleep(.01)
    training.stop(); thread.join(20)
    assert not thread.is_alive() and 0 < new_line(tmp_path, steps=10**9).step == training.step < 10**9

def test_torchs_own_chance_is_left_alone(tmp_path):
    training = new_line(tmp_path)
    before = torch.get_rng_state()
    training.run(line)
    assert torch.equal(torch.get_rng_state(), before)

def test_killed_at_a_random_moment_it_ends_with_the_same_weights(tmp_path):
    path = script(tmp_path, """
torch.manual_seed(0)
t = Training(nn.Sequential(nn.Linear(1,8), nn.Dropout(.2), nn.Linear(8,1)), sys.argv[1], Recipe(steps=60, rate=.05, save_steps=7))
batches = t.keep('batches', ByLength([Spoken([1,2], torch.zeros(8, n), [], torch.zeros(n), 'a', n) for n in range(10, 40)], 200, t.common))
def loss(t):
    time.sleep(float(sys.argv[2]))
    x = torch.rand(32, 1, generator=t.rng)*len(batches())
    return dict(loss=(t.model(x)-x.sin()).square().mean())
t.run(loss, every=5)
""")
    start = lambda out, pause: subprocess.Popen([sys.executable, str(path), str(tmp_path/out), str(pause)], cwd=ROOT, env=ENV)
    assert start("whole", 0).wait(120) == 0
    rng, kills = random.Random(os.urandom(4)), 0
    while kills < 2:
        process = start("killed", .02)
        deadline = time.monotonic()+60
        while not (tmp_path/"killed"/"state.pt").exists() and process.poll() is None and time.monotonic() < deadline: time.sleep(.01)
        time.sleep(rng.random()*.5)
        process.kill(); kills += process.wait() == -signal.SIGKILL
        if process.returncode == 0: break
    assert start("killed", 0).wait(120) == 0
    whole, killed = (torch.load(tmp_path/o/"state.pt", weights_only=True) for o in ("whole", "killed"))
    assert whole["step"] == killed["step"] == 60
    assert all(torch.equal(whole["model"][k], v) for k,v in killed["model"].items())
    curve = lambda o: [(l["step"], l["loss"]) for l in map(json.loads, open(tmp_path/o/"log.jsonl"))]
    assert curve("whole") == curve("killed"), "the log has each step once, with the same loss"

def test_two_processes_learn_as_one_with_twice_the_batches(tmp_path):
    "They share the order of batches; the first one writes; what both say is averaged."
    path = script(tmp_path, """
torch.manual_seed(0)
t = Training(nn.Sequential(nn.Linear(1,8), nn.Tanh(), nn.Linear(8,1)), sys.argv[1], Recipe(steps=40, rate=.05, accumulate=int(sys.argv[2])))
def loss(t):
    x = [torch.rand(32, 1, generator=t.common) for _ in range(t.processes)][t.rank]
    return dict(loss=(t.model(x)-(3*x).sin()).square().mean(), tokens=len(x))
t.run(loss, every=4)
open(f'{sys.argv[1]}/rank{t.rank}.json', 'w').write(json.dumps([t.processes, t.model[0].weight.flatten().tolist()]))
""" + GOODBYE)
    for out,processes,accumulate in (("one", 1, 4), ("two", 2, 2)):
        done = launch(path, tmp_path/out, accumulate, processes=processes)
        assert done.returncode == 0, done.stderr[-2000:]
    (n, a), (m, b), (k, c) = (json.loads((tmp_path/name).read_text()) for name in ("two/rank0.json", "two/rank1.json", "one/rank0.json"))
    assert (n, m, k) == (2, 2, 1) and a == b and a == pytest.approx(c, abs=1e-5)
    one, two = ([json.loads(l)["loss"] for l in open(tmp_path/o/"log.jsonl")] for o in ("one", "two"))
    assert len(one) == 10 and one[-1] < one[0] and two == pytest.approx(one, abs=1e-3)

def test_two_processes_have_chances_of_their_own_and_stop_together(tmp_path):
    "Only one of them is told to stop; both do, at the same step, and go on with the chance each had."
    path = script(tmp_path, """
torch.manual_seed(0); seen = []
t = Training(nn.Linear(1,1), sys.argv[1], Recipe(steps=20, rate=.1))
def loss(t):
    if t.step == int(sys.argv[2]) and t.rank == 1: t.stop()
    x = torch.rand(32, 1, generator=t.rng); seen.append(x[0].item())
    return dict(loss=(t.model(x)-2*x-1).square().mean())
t.run(loss)
open(f'{sys.argv[1]}/{sys.argv[3]}{t.rank}.json', 'w').write(json.dumps([t.step, seen, t.model.weight.item()]))
""" + GOODBYE)
    for out,stop,name in (("whole", -1, "all"), ("halves", 8, "first"), ("halves", -1, "rest")):
        done = launch(path, tmp_path/out, stop, name)
        assert done.returncode == 0, done.stderr[-2000:]
    read = lambda out, name: [json.loads((tmp_path/out/f"{name}{i}.json").read_text()) for i in (0, 1)]
    whole, first, rest = read("whole", "all"), read("halves", "first"), read("halves", "rest")
    assert whole[0][1] != whole[1][1] and first[0][0] == first[1][0] == 9
    for rank in (0, 1): assert first[rank][1]+rest[rank][1] == whole[rank][1] and rest[rank][2] == whole[rank][2]

def test_a_checkpoint_of_before_goes_on(tmp_path):
    "With the keys that a checkpoint had when only pretraining wrote them."
    t = new_line(tmp_path); t.run(lambda t: t.stop() or line(t))
    old = {k: v for k,v in torch.load(tmp_path/"state.pt", weights_only=True).items() if k in ("model","optimizers","rng","step","spent","kept")}
    torch.save(old, tmp_path/"state.pt")
    again = new_line(tmp_path)
    assert again.step == 1 and torch.equal(again.rng.get_state(), old["rng"])
    assert again.run(line) is again.model and again.step == 60

def test_a_checkpoint_that_would_run_code_is_refused(tmp_path):
    class Trap:
        def __reduce__(self): return os.mkdir, (str(tmp_path/"sprung"),)
    torch.save(dict(model=Trap()), tmp_path/"state.pt")
    with pytest.raises(MetaVoiceError, match="can't go on"): new_line(tmp_path)
    assert not (tmp_path/"sprung").exists()

def test_only_what_learns_is_kept_and_others_are_told_apart(tmp_path):
    def new(frozen):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(1,1), nn.Linear(1,1))
        model[frozen].requires_grad_(False)
        return Trainer(model, tmp_path, TrainingConfig(steps=3), only_trainable=True)
    new(0).run(lambda t: dict(loss=t.model(torch.ones(1,1)).square().sum()))
    assert new(0).step == 3
    with pytest.raises(MetaVoiceError, match="holds other weights"): new(1)

def test_a_tracker_is_told(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    torch.manual_seed(0)
    Trainer(nn.Linear(1,1), tmp_path, TrainingConfig(steps=10), track="tensorboard", about=dict(rate=.1)).run(line, every=5)
    events = next(p.parent for p in tmp_path.rglob("events.out*") if p.parent.name == "metavoice")
    found = EventAccumulator(str(events)).Reload()
    assert {"loss", "rate"} <= set(found.Tags()["scalars"]) and [e.step for e in found.Scalars("loss")] == [5, 10]

def test_unknown_schedule_and_tracker(tmp_path):
    with pytest.raises(OptionError, match="unknown schedule"): TrainingConfig(schedule="step")
    with pytest.raises(OptionError, match="can't track"): Trainer(nn.Linear(1,1), tmp_path, track="pigeons")

def test_sharded_by_fsdp_it_learns_the_same_and_goes_on(tmp_path):
    "accelerate shards only on GPUs; here its state is told otherwise, so that two CPUs do."
    path = script(tmp_path, """
from accelerate import Accelerator
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
if sys.argv[2] == 'sharded':
    state = Accelerator().state
    state.distributed_type, state.fsdp_plugin = DistributedType.FSDP, FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy='transformer_based_wrap', cpu_ram_efficient_loading=False)
from metavoice.gpt import GPT, GPTConfig
torch.manual_seed(0)
model = GPT(GPTConfig(n_layer=2, n_head=2, n_embd=16, block_size=32, vocab_sizes=[40], swiglu_multiple_of=8, speaker_emb_size=None))
model.transformer.wpe.requires_grad_(False)
t = Training(model, sys.argv[1], Recipe(steps=int(sys.argv[3]), rate=1e-2, schedule='constant'), only_learnt=True)
def logits(t, ids): return model.lm_heads[0](model.transformer.ln_f(blocks(model.embed(ids))))
def blocks(x):
    for block in model.transformer.h: x = block(x)
    return x
def loss(t):
    ids = [torch.randint(40, (4, 1, 12), generator=t.common) for _ in range(t.processes)][t.rank]
    return dict(loss=F.cross_entropy(logits(t, ids).flatten(0, 1), (ids[:,0]*3 % 40).flatten()))
held = torch.arange(12)[None, None]
def evaluate(t): return dict(held_out=float(t.measure(lambda: F.cross_entropy(logits(t, held)[0], held[0,0]*3 % 40))))
t.run(loss, every=4, evaluate=evaluate, best='held_out')
""" + GOODBYE)
    for how,steps in (("plain", 16), ("sharded", 8), ("sharded", 16)):
        done = launch(path, tmp_path/how, how, steps)
        assert done.returncode == 0, done.stderr[-3000:]
    read = lambda how: [json.loads(l) for l in open(tmp_path/how/"log.jsonl")]
    for key in ("loss", "held_out"): assert [l[key] for l in read("sharded")] == pytest.approx([l[key] for l in read("plain")], abs=1e-3)
    plain, sharded = (torch.load(tmp_path/o/"state.pt", weights_only=True)["model"] for o in ("plain", "sharded"))
    assert plain.keys() == sharded.keys() and "transformer.wpe.weight" not in plain and "transformer.wtes.0.weight" in plain
    for k,v in plain.items(): torch.testing.assert_close(sharded[k], v, atol=1e-4, rtol=1e-3)
    from safetensors.torch import load_file
    assert load_file(tmp_path/"sharded"/"best.safetensors").keys() == plain.keys()
