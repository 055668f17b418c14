"""Trainings that `test_loop.py` runs in processes of their own: python loop_jobs.py JOB ARGUMENT …

Several processes are started by `accelerate launch`."""
import json
import os
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from metavoice.train.batches import LengthBatches, TokenizedUtterance
from metavoice.train.loop import Trainer
from metavoice.train.optim import TrainingConfig


def utterances():
    "Return thirty utterances of 10 to 39 frames."
    return [
        TokenizedUtterance([1, 2], torch.zeros(8, n, dtype=torch.int16), [], torch.zeros(n), "a", n)
        for n in range(10, 40)
    ]


def resumable(out, pause):
    "Sixty steps with dropout and an order of batches; each step waits for `pause` seconds."
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 8), nn.Dropout(.2), nn.Linear(8, 1))
    t = Trainer(model, out, TrainingConfig(steps=60, learning_rate=.05, save_steps=7))
    batches = t.register_state("batches", LengthBatches(utterances(), 200, t.shared_rng))

    def loss(t):
        time.sleep(float(pause))
        x = torch.rand(32, 1, generator=t.rng) * len(batches())
        return dict(loss=(t.model(x) - x.sin()).square().mean())

    t.run(loss, log_every=5)


def shared_batches(out, grad_accum_steps):
    "Fit a sine; every process draws the batches of all processes and takes its own."
    torch.manual_seed(0)
    config = TrainingConfig(steps=40, learning_rate=.05, grad_accum_steps=int(grad_accum_steps))
    t = Trainer(nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1)), out, config)

    def loss(t):
        x = [torch.rand(32, 1, generator=t.shared_rng) for _ in range(t.processes)][t.rank]
        return dict(loss=(t.model(x) - (3 * x).sin()).square().mean(), tokens=len(x))

    t.run(loss, log_every=4)
    result = [t.processes, t.model[0].weight.flatten().tolist()]
    Path(out, f"rank{t.rank}.json").write_text(json.dumps(result))


def own_batches(out, stop_at, name):
    "Fit a line on batches of each process's own; process 1 stops at a step."
    torch.manual_seed(0)
    t, seen = Trainer(nn.Linear(1, 1), out, TrainingConfig(steps=20, learning_rate=.1)), []

    def loss(t):
        if t.step == int(stop_at) and t.rank == 1:
            t.stop()
        x = torch.rand(32, 1, generator=t.rng)
        seen.append(x[0].item())
        return dict(loss=(t.model(x) - 2 * x - 1).square().mean())

    t.run(loss)
    Path(out, f"{name}{t.rank}.json").write_text(json.dumps([t.step, seen, t.model.weight.item()]))


def two_processes(folder):
    "All trainings that need two processes and no FSDP, in one launch."
    folder = Path(folder)
    shared_batches(folder / "two", 2)
    own_batches(folder / "whole", -1, "all")
    own_batches(folder / "halves", 8, "first")
    own_batches(folder / "halves", -1, "rest")
    language_model(folder / "plain", 16)


def language_model(out, steps):
    "A GPT with a frozen table, evaluated on a held-out sequence."
    from metavoice.models.gpt import GPT, GPTConfig

    torch.manual_seed(0)
    shape = dict(n_layer=2, n_head=2, n_embd=16, block_size=32, swiglu_multiple_of=8, speaker_emb_size=None)
    model = GPT(GPTConfig(vocab_sizes=[40], **shape))
    model.transformer.wpe.requires_grad_(False)
    config = TrainingConfig(steps=int(steps), learning_rate=1e-2, schedule="constant")
    t, held_out = Trainer(model, out, config, only_trainable=True), torch.arange(12)[None, None]

    def logits(ids):
        x = model.embed(ids)
        for block in model.transformer.h:
            x = block(x)
        return model.lm_heads[0](model.transformer.ln_f(x))

    def loss(t):
        ids = [torch.randint(40, (4, 1, 12), generator=t.shared_rng) for _ in range(t.processes)][t.rank]
        return dict(loss=F.cross_entropy(logits(ids).flatten(0, 1), (ids[:, 0] * 3 % 40).flatten()))

    def held_out_loss():
        return F.cross_entropy(logits(held_out)[0], held_out[0, 0] * 3 % 40)

    def evaluate(t):
        return dict(held_out=float(t.evaluate_no_grad(held_out_loss)))

    t.run(loss, log_every=4, evaluate=evaluate, best_metric="held_out")


def sharded(out, steps):
    "`language_model` with FSDP. accelerate shards only on GPUs; its state is changed so that two CPUs do."
    from accelerate import Accelerator
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    state = Accelerator().state
    state.distributed_type = DistributedType.FSDP
    state.fsdp_plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", cpu_ram_efficient_loading=False
    )
    language_model(out, steps)


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
    if "RANK" in os.environ:
        torch.distributed.destroy_process_group()
        sys.stdout.flush()
        os._exit(0)  # gloo's threads may still run, and ending the interpreter beside them has aborted once
