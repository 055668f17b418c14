"The training loop: interruption and resuming to the same bits, several processes, checkpoints, and trackers."
import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from metavoice.core.errors import MetaVoiceError, OptionError
from metavoice.train.batches import LengthBatches
from metavoice.train.checkpoints import load_trained, read_best_weights
from metavoice.train.loop import Trainer, draw_sharded_batch
from metavoice.train.optim import TrainingConfig

ROOT = Path(__file__).parents[2]
JOBS = Path(__file__).with_name("loop_jobs.py")
ENV = {**os.environ, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def jobs():
    "The module `loop_jobs`."
    spec = importlib.util.spec_from_file_location("loop_jobs", JOBS)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def line_loss(t):
    x = torch.rand(32, 1, generator=t.rng)
    return dict(loss=(F.dropout(t.model(x) - 2 * x - 1, .1)).square().mean())


def new_trainer(out, **settings):
    torch.manual_seed(0)
    config = TrainingConfig(**dict(steps=60, learning_rate=.1, warmup=.05) | settings)
    return Trainer(nn.Linear(1, 1), out, config)


def read_log(folder):
    return [json.loads(line) for line in open(folder / "log.jsonl")]


def read_weights(folder):
    return torch.load(folder / "state.pt", weights_only=True)["model"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    "A line, fitted without interruption."
    trainer = new_trainer(tmp_path_factory.mktemp("whole"))
    trainer.run(line_loss)
    return trainer.model


def test_an_error_in_the_loss_keeps_what_was_learnt(tmp_path, whole):
    "The resumed run ends with the same bits."

    def interrupted(t):
        if t.step == 25:
            raise KeyboardInterrupt
        return line_loss(t)

    with pytest.raises(KeyboardInterrupt):
        new_trainer(tmp_path).run(interrupted)
    rest = new_trainer(tmp_path)
    assert rest.step == 25
    rest.run(line_loss)
    assert torch.equal(rest.model.weight, whole.weight)


def test_the_order_of_batches_survives_an_interruption(tmp_path, jobs):
    def run(out, stop_at=None):
        t, drawn = new_trainer(out, steps=20), []
        batches = t.register_state("batches", LengthBatches(jobs.utterances(), 200, t.rng))

        def loss(t):
            if t.step == stop_at:
                raise KeyboardInterrupt
            drawn.append([u.index for u in batches()])
            return line_loss(t)

        try:
            t.run(loss)
        except KeyboardInterrupt:
            pass
        return drawn

    first = run(tmp_path / "halves", stop_at=7)
    assert first + run(tmp_path / "halves") == run(tmp_path / "whole")


def test_a_loss_that_explodes_keeps_the_checkpoint(tmp_path):
    trainer = new_trainer(tmp_path, save_seconds=0.)

    def loss(t):
        return line_loss(t) if t.step < 5 else dict(loss=t.model.weight.sum() * float("nan"))

    with pytest.raises(MetaVoiceError, match="nan after 5 steps"):
        trainer.run(loss)
    kept = torch.load(tmp_path / "state.pt", weights_only=True)
    assert kept["step"] == 5 and all(v.isfinite().all() for v in kept["model"].values())


def test_a_broken_checkpoint_is_reported(tmp_path):
    (tmp_path / "state.pt").write_bytes(b"PK broken")
    with pytest.raises(MetaVoiceError, match="move it away"):
        new_trainer(tmp_path)


@pytest.mark.parametrize("number, raised", [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_signals_end_a_run_after_the_current_step(tmp_path, whole, number, raised):
    def interrupted(t):
        if t.step == 25:
            os.kill(os.getpid(), number)
        return line_loss(t)

    before = signal.getsignal(number)
    with pytest.raises(raised):
        new_trainer(tmp_path).run(interrupted)
    assert signal.getsignal(number) is before
    rest = new_trainer(tmp_path)
    assert rest.step == 26
    rest.run(line_loss)
    assert torch.equal(rest.model.weight, whole.weight) and torch.equal(rest.model.bias, whole.bias)


def test_a_run_outside_the_main_thread_is_stopped_from_another_thread(tmp_path):
    "As a widget does; signal handlers aren't touched."
    trainer = new_trainer(tmp_path, steps=10**9)
    thread = threading.Thread(target=trainer.run, args=(line_loss,))
    thread.start()
    while thread.is_alive() and not trainer.step:
        time.sleep(.01)
    trainer.stop()
    thread.join(60)
    assert not thread.is_alive()
    assert 0 < new_trainer(tmp_path, steps=10**9).step == trainer.step < 10**9


def test_the_global_generator_is_left_alone(tmp_path):
    trainer = new_trainer(tmp_path)
    before = torch.get_rng_state()
    trainer.run(line_loss)
    assert torch.equal(torch.get_rng_state(), before)


def test_old_checkpoints_are_resumed(tmp_path):
    "A checkpoint with the keys that the first version wrote."
    t = new_trainer(tmp_path)
    t.run(lambda t: t.stop() or line_loss(t))
    keys = ("model", "optimizers", "rng", "step", "spent", "kept")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    old = {key: state[key] for key in keys}
    torch.save(old, tmp_path / "state.pt")
    again = new_trainer(tmp_path)
    assert again.step == 1 and torch.equal(again.rng.get_state(), old["rng"])
    assert again.run(line_loss) is again.model and again.step == 60


def test_a_checkpoint_cannot_run_code(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    torch.save(dict(model=Trap()), tmp_path / "state.pt")
    with pytest.raises(MetaVoiceError, match="can't go on"):
        new_trainer(tmp_path)
    assert not (tmp_path / "sprung").exists()


def test_only_trainable_weights_are_stored(tmp_path):
    "A run with other trainable weights is not resumed."

    def new(frozen):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
        model[frozen].requires_grad_(False)
        return Trainer(model, tmp_path, TrainingConfig(steps=3), only_trainable=True)

    new(0).run(lambda t: dict(loss=t.model(torch.ones(1, 1)).square().sum()))
    assert new(0).step == 3 and sorted(read_weights(tmp_path)) == ["1.bias", "1.weight"]
    with pytest.raises(MetaVoiceError, match="holds other weights"):
        new(1)


def test_a_tracker_receives_the_log(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    torch.manual_seed(0)
    trainer = Trainer(
        nn.Linear(1, 1), tmp_path, TrainingConfig(steps=10), report_to="tensorboard", tracker_config=dict(rate=.1)
    )
    trainer.run(line_loss, log_every=5)
    events = next(p.parent for p in tmp_path.rglob("events.out*") if p.parent.name == "metavoice")
    found = EventAccumulator(str(events)).Reload()
    assert {"loss", "rate"} <= set(found.Tags()["scalars"])
    assert [e.step for e in found.Scalars("loss")] == [5, 10]


def test_unknown_schedule_and_tracker(tmp_path):
    with pytest.raises(OptionError, match="unknown schedule"):
        TrainingConfig(schedule="step")
    with pytest.raises(OptionError, match="can't track"):
        Trainer(nn.Linear(1, 1), tmp_path, report_to="pigeons")


def test_processes_share_the_order_of_batches(jobs):
    "Each of two processes draws half of the batches that a single process draws, with the same generators."

    def draw(rank, processes, steps):
        rng = torch.Generator().manual_seed(0)
        trainer = SimpleNamespace(rank=rank, processes=processes, shared_rng=rng)
        batches = LengthBatches(jobs.utterances(), 200, rng)
        drawn = [draw_sharded_batch(trainer, batches) for _ in range(steps)]
        return [([u.index for u in batch], generator.initial_seed()) for batch, generator in drawn]

    assert draw(0, 1, 8) == [pair for both in zip(draw(0, 2, 4), draw(1, 2, 4)) for pair in both]


# Processes of their own.


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_weights(tmp_path):
    def start(out, pause):
        return subprocess.Popen([sys.executable, JOBS, "resumable", tmp_path / out, str(pause)], cwd=ROOT, env=ENV)

    assert start("whole", 0).wait(600) == 0
    rng, kills = random.Random(os.urandom(4)), 0
    while kills < 2:
        process, deadline = start("killed", .02), time.monotonic() + 180
        while not (tmp_path / "killed" / "state.pt").exists():
            if process.poll() is not None or time.monotonic() > deadline:
                break
            time.sleep(.01)
        time.sleep(rng.random() * .5)
        process.kill()
        kills += process.wait() == -signal.SIGKILL
        if process.returncode == 0:
            break
    assert start("killed", 0).wait(600) == 0
    whole, killed = (torch.load(tmp_path / out / "state.pt", weights_only=True) for out in ("whole", "killed"))
    assert whole["step"] == killed["step"] == 60
    assert all(torch.equal(whole["model"][name], weight) for name, weight in killed["model"].items())
    whole, killed = ([(x["step"], x["loss"]) for x in read_log(tmp_path / out)] for out in ("whole", "killed"))
    assert whole == killed, "the log has each step once, with the same loss"


def launch(*arguments):
    "Run a job on two processes by `accelerate launch`; `--multi_gpu` takes gloo on CPUs."
    options = "--multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no"
    command = [sys.executable, "-m", "accelerate.commands.launch", *options.split(), "--main_process_port", "0"]
    done = subprocess.run(
        [*command, str(JOBS), *map(str, arguments)], capture_output=True, text=True, cwd=ROOT, timeout=600, env=ENV
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    "The folders of all trainings on two processes without FSDP."
    folder = tmp_path_factory.mktemp("two_processes")
    launch("two_processes", folder)
    return folder


@pytest.mark.slow
def test_two_processes_learn_as_one_with_twice_the_batches(tmp_path, two_processes, jobs):
    "They share the order of batches; the first one writes the log, with the mean of both."
    jobs.shared_batches(tmp_path / "one", 4)
    two = two_processes / "two"
    paths = (two / "rank0.json", two / "rank1.json", tmp_path / "one" / "rank0.json")
    (n, a), (m, b), (k, c) = (json.loads(path.read_text()) for path in paths)
    assert (n, m, k) == (2, 2, 1) and a == b and a == pytest.approx(c, abs=1e-5)
    one, two = ([line["loss"] for line in read_log(path)] for path in (tmp_path / "one", two_processes / "two"))
    assert len(one) == 10 and one[-1] < one[0] and two == pytest.approx(one, abs=1e-3)


@pytest.mark.slow
def test_two_processes_have_generators_of_their_own_and_stop_together(two_processes):
    "Only one of them is stopped; both stop at the same step, and continue with the generator each had."

    def read(out, name):
        return [json.loads((two_processes / out / f"{name}{rank}.json").read_text()) for rank in (0, 1)]

    whole, first, rest = read("whole", "all"), read("halves", "first"), read("halves", "rest")
    assert whole[0][1] != whole[1][1] and first[0][0] == first[1][0] == 9
    for rank in (0, 1):
        assert first[rank][1] + rest[rank][1] == whole[rank][1] and rest[rank][2] == whole[rank][2]


@pytest.mark.slow
def test_fsdp_learns_the_same_and_resumes(tmp_path, two_processes):
    plain, sharded = two_processes / "plain", tmp_path / "sharded"
    for steps in (8, 16):
        launch("sharded", sharded, steps)
    for key in ("loss", "held_out"):
        expected = [line[key] for line in read_log(plain)]
        assert [line[key] for line in read_log(sharded)] == pytest.approx(expected, abs=1e-3)
    weights, sharded_weights = read_weights(plain), read_weights(sharded)
    assert weights.keys() == sharded_weights.keys()
    assert "transformer.wpe.weight" not in weights and "transformer.wtes.0.weight" in weights
    for name, weight in weights.items():
        torch.testing.assert_close(sharded_weights[name], weight, atol=1e-4, rtol=1e-3)
    assert load_file(sharded / "best.safetensors").keys() == weights.keys()


@pytest.fixture
def hostile_checkpoints(tmp_path):
    "Checkpoints that take a second and more, or memory, if they are read without bounds."
    from metavoice.measure import hostile_checkpoints as made

    folder = tmp_path / "hostile"
    folder.mkdir()

    def write(name):
        getattr(made, name)(folder)
        (folder / "first_stage.pt").replace(tmp_path / "state.pt")

    return write


@pytest.mark.parametrize("name, words", [
    ("bomb", "compressed"), ("flood", "its pickle has"), ("copies", "500,000 steps"), ("hash_bomb", "as a key"),
    ("reserve", "bytes of encoding"), ("legacy_flood", "500,000 steps"), ("entries", "its directory"),
])  # fmt: skip
def test_a_hostile_checkpoint_is_not_resumed(tmp_path, hostile_checkpoints, name, words):
    "A folder of a run that somebody sent ends in one line."
    hostile_checkpoints(name)
    with pytest.raises(MetaVoiceError, match=f"can't go on from .*({words})") as error:
        new_trainer(tmp_path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500
    with pytest.raises(MetaVoiceError):
        read_best_weights(tmp_path)
    with pytest.raises(MetaVoiceError):
        load_trained(nn.Linear(1, 1), tmp_path / "state.pt")


@pytest.mark.parametrize("changes", [
    dict(step="5"), dict(step=-1), dict(step=10**30), dict(spent="long"), dict(spent=float("nan")), dict(best=[1]),
    dict(sums=[1]), dict(sums=dict(loss="high")), dict(kept=5), dict(optimizers=[]), dict(optimizers=[dict(a=1)]),
    dict(chances=[dict(rng=torch.zeros(3))]), dict(chances=5), dict(model=5), dict(model=dict(a=torch.ones(1))),
    dict(chances=[dict(rng=torch.get_rng_state(), torch=dict(cpu=torch.zeros(3)))]), dict(common="a"),
])  # fmt: skip
def test_a_checkpoint_of_wrong_values_is_not_resumed(tmp_path, changes):
    t = new_trainer(tmp_path)
    t.run(lambda t: t.stop() or line_loss(t))
    torch.save(torch.load(tmp_path / "state.pt", weights_only=True) | changes, tmp_path / "state.pt")
    with pytest.raises(MetaVoiceError, match="move it away") as error:
        new_trainer(tmp_path)
    assert str(error.value).isprintable()


def test_a_registered_part_of_wrong_values_is_not_resumed(tmp_path, jobs):
    t = new_trainer(tmp_path)
    t.register_state("batches", LengthBatches(jobs.utterances(), 200, t.rng))
    t.run(lambda t: t.stop() or line_loss(t))
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    for wrong in (dict(queue=[[10**6]]), dict(queue=5), dict(), dict(indices=torch.ones(2), sizes=torch.tensor([7]))):
        torch.save(state | dict(kept=dict(batches=wrong)), tmp_path / "state.pt")
        again = new_trainer(tmp_path)
        with pytest.raises(MetaVoiceError, match="move it away"):
            again.register_state("batches", LengthBatches(jobs.utterances(), 200, t.rng))


def test_a_resumed_run_does_not_hold_its_checkpoint_open(tmp_path):
    "The state of the optimizer is a copy: changing the file in place changes nothing."
    t = new_trainer(tmp_path)
    t.run(lambda t: t.stop() or line_loss(t))
    again = new_trainer(tmp_path)
    states = [s for o in again.optimizers for s in o.state.values()]
    before = [v.clone() for s in states for v in s.values()]
    with open(tmp_path / "state.pt", "r+b") as file:
        file.write(bytes(os.path.getsize(tmp_path / "state.pt")))
    assert before and all(torch.equal(a, b) for a, b in zip(before, [v for s in states for v in s.values()]))


def test_a_large_corpus_is_resumed(tmp_path):
    "A pass over a million utterances is a checkpoint of a few instructions."
    utterance = SimpleNamespace(copies=1, codes=torch.zeros(8, 9), text=[1])
    t = new_trainer(tmp_path)
    batches = t.register_state("batches", LengthBatches([utterance] * 10, 50, t.rng))
    batches.data = [utterance] * 1_000_000
    batches.queue = [list(range(n, n + 10)) for n in range(0, 1_000_000, 10)]
    t.save()
    again = new_trainer(tmp_path)
    other = LengthBatches([utterance] * 10, 50, t.rng)
    other.data = batches.data
    assert again.register_state("batches", other).queue == batches.queue
