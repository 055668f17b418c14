"Steps by a graph against steps by PyTorch: shapes, rows that come and go, and which models have a graph."
import copy
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from metavoice.models.decode_step import DecodeStep
from metavoice.models.gpt import GPT, GPTConfig
from metavoice.models.quantise import PACKED, quantise
from metavoice.models.step_graph import MAX_GRAPH_PARAMETERS, GraphDecodeStep, make_decode_step, pick_step_engine

ROOT = Path(__file__).parents[2]
PLAIN = dict(norm_type="rmsnorm", nonlinearity_type="swiglu", bias=False, speaker_emb_size=256)
SHAPES = [
    dict(n_layer=5, n_head=3, n_embd=192), dict(n_layer=2, n_head=4, n_embd=224), dict(n_head=1, n_embd=8),
    dict(n_head=4, n_embd=32, norm_type="layernorm", nonlinearity_type="gelu", bias=True),
    dict(n_head=2, n_embd=32, nonlinearity_type="gelu", speaker_emb_size=None),
    dict(n_head=5, n_embd=40, norm_type="layernorm"), dict(n_head=2, n_embd=32, bias=True),
    dict(n_head=2, n_embd=32, vocab_sizes=[300, 300, 310, 400], target_vocab_sizes=[300]),
]


def random_model(**shape):
    "A model whose logits have clear preferences."
    with torch.random.fork_rng():
        torch.manual_seed(0)
        shape = PLAIN | dict(n_layer=2) | shape
        model = GPT(GPTConfig(block_size=400, **dict(vocab_sizes=[300], swiglu_multiple_of=16) | shape))
        for p in model.parameters():
            p.data.normal_(0, .1) if p.ndim > 1 else p.data.add_(torch.randn_like(p), alpha=.1)
        return model.eval().requires_grad_(False)


class Pair:
    "The two kinds of steps, each with its cache, given the same rows and tokens."

    def __init__(self, model, rows=6, tokens=None):
        self.model, self.generator, self.largest = model, torch.Generator().manual_seed(1), 0.
        self.caches = [model.cache(rows, 400) for _ in range(2)]
        for cache in self.caches:
            cache.select([])
        self.steps = DecodeStep(model, self.caches[0]), GraphDecodeStep(model, self.caches[1], tokens)
        self.speakers, self.tokens, self.streams = torch.zeros(0, 256), tokens or 300, model.config.streams

    def both(self, run):
        a, b = (run(step, cache) for step, cache in zip(self.steps, self.caches))
        self.largest = max(self.largest, (a[:, :self.tokens] - b).abs().max().item())

    def join(self, *lengths):
        ids = torch.randint(300, (len(lengths), self.streams, max(lengths)), generator=self.generator)
        new = torch.randn(len(lengths), 256, generator=self.generator)
        self.speakers = torch.cat([self.speakers, new])

        def prefill(step, cache):
            view = cache.empty_view(len(lengths))
            logits = step.prefill(ids, new, view, list(lengths))
            cache.merge(view)
            step.set_speaker(self.speakers)
            return logits

        self.both(prefill)

    def keep(self, *rows):
        self.speakers = self.speakers[list(rows)]
        for step, cache in zip(self.steps, self.caches):
            cache.select(list(rows))
            step.set_speaker(self.speakers)

    def copy(self, row, length):
        self.speakers = torch.cat([self.speakers, self.speakers[row:row+1]])
        for step, cache in zip(self.steps, self.caches):
            cache.append_copies([row], [length])
            step.set_speaker(self.speakers)

    def go_on(self, n):
        for _ in range(n):
            ids = torch.randint(300, (self.caches[0].batch, self.streams), generator=self.generator)
            self.both(lambda step, cache: step(ids[:, 0], ids[:, 1:]))
        assert self.caches[0].counts == self.caches[1].counts


def walk(model):
    "The largest difference while rows join, leave and grow past the first block of the cache."
    with torch.inference_mode():
        pair = Pair(model)
        pair.join(7, 1)
        pair.go_on(4)
        pair.join(30, 12, 3)
        pair.go_on(250)
        pair.keep(4, 1)
        pair.copy(0, 3)
        pair.go_on(3)
        pair.join(9)
        pair.go_on(60)
    for a, b in zip(*[cache.keys + cache.values for cache in pair.caches]):
        for row, n in enumerate(pair.caches[0].counts):
            assert torch.allclose(a[row, :, :n], b[row, :, :n], atol=1e-4)
    return pair.largest


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_logits_equal_those_of_pytorch(shape):
    assert walk(random_model(**shape)) < 1e-4


def test_without_avx512():
    code = "from tests.models.test_step_graph import SHAPES, random_model, walk; print(walk(random_model(**SHAPES[0])))"
    own = dict(ONEDNN_MAX_CPU_ISA="AVX2", ATEN_CPU_CAPABILITY="avx2", OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT))
    run = subprocess.run([sys.executable, "-c", code], env=os.environ | own, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) < 1e-4


def test_only_the_wanted_tokens_have_logits():
    model = random_model(n_head=2, n_embd=32)
    with torch.inference_mode():
        pair = Pair(model, tokens=33)
        pair.join(4, 2)
        pair.go_on(3)
    assert pair.largest < 1e-5 and pair.steps[1](torch.zeros(2, dtype=torch.long)).shape == (2, 33)


def test_a_result_stays_when_the_next_step_runs():
    model = random_model(n_head=2, n_embd=32)
    step = GraphDecodeStep(model, model.cache(1, 400))
    step.set_speaker(torch.randn(1, 256))
    first = step(torch.tensor([5]))
    kept = first.clone()
    step(torch.tensor([6]))
    assert torch.equal(first, kept)


def engine(**options):
    options = dict(engine="onnx", config=GPTConfig(n_layer=2, n_head=2, n_embd=32), dtype=torch.float32) | options
    return pick_step_engine(**options)


def test_which_models_have_a_graph():
    assert engine() == engine(compile=False) == "onnx"
    wide = GPTConfig(n_layer=8, n_head=8, n_embd=512)
    odd, second = GPTConfig(n_layer=2, n_head=2, n_embd=24), GPTConfig(n_layer=2, n_head=2, n_embd=32, causal=False)
    for options in (dict(engine="torch"), dict(config=None), dict(dtype=torch.bfloat16), dict(quantise="int4"),
                    dict(compile=True), dict(config=wide), dict(config=odd), dict(config=second)):
        assert engine(**options) == "torch", options
    fits = GPTConfig(n_layer=2, n_head=2, n_embd=32, swiglu_multiple_of=32)
    for config in (fits, replace(fits, swiglu_multiple_of=8), replace(fits, n_embd=48, swiglu_multiple_of=32)):
        assert engine(config=config) == "onnx"
        assert engine(config=config, quantise="int8") == ("onnx" if config is fits else "torch")
    assert GPT(wide).num_parameters > MAX_GRAPH_PARAMETERS


def test_the_fallback_is_pytorch():
    plain = random_model(n_head=2, n_embd=32)
    odd = random_model(n_head=2, n_embd=24)
    trained, half = copy.deepcopy(plain).train(), copy.deepcopy(plain).bfloat16()
    packed = quantise(copy.deepcopy(plain), PACKED)
    swapped = copy.deepcopy(plain)
    swapped.transformer.h[0].mlp.c_proj = torch.nn.Sequential(swapped.transformer.h[0].mlp.c_proj)
    for model, kind in ((plain, GraphDecodeStep), (odd, DecodeStep), (trained, DecodeStep), (half, DecodeStep),
                        (packed, DecodeStep), (swapped, DecodeStep)):
        model.engine = "onnx"
        assert type(make_decode_step(model, model.cache(1, 64))) is kind
    plain.engine = "torch"
    assert type(make_decode_step(plain, plain.cache(1, 64))) is DecodeStep


@torch.inference_mode()
def test_8_bit_weights():
    model = random_model(n_head=2, n_embd=64, bias=True, swiglu_multiple_of=32)
    speaker, ids, made = torch.randn(2, 256), torch.randint(300, (2, 1, 9)), []
    for method in (None, "int8"):
        model.engine, model.quantise = "onnx", method
        cache = model.cache(2, 64)
        step = make_decode_step(model, cache)
        assert type(step) is GraphDecodeStep
        first = step.prefill(ids, speaker, cache, [9, 4])
        step.set_speaker(speaker)
        made.append(torch.cat([first, step(ids[:, 0, 0])]))
    assert 0 < (made[0] - made[1]).norm() < .05*made[0].norm()
    model.quantise = "int4"
    assert type(make_decode_step(model, model.cache(1, 64))) is DecodeStep


def test_a_copied_model_has_its_own_graph():
    model = random_model(n_head=2, n_embd=32)
    model.engine = "onnx"
    first = make_decode_step(model, model.cache(1, 64)).session
    assert make_decode_step(model, model.cache(1, 64)).session is first
    other = copy.deepcopy(model)
    assert make_decode_step(other, other.cache(1, 64)).session is not first
