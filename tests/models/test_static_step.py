"What a step launches and moves, counted on tensors without memory and on the CPU."
from collections import Counter

import pytest
import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from metavoice.core.layout import TokenLayout
from metavoice.generate.engine import device_draw
from metavoice.models.gpt import GPT, GPTConfig, init_empty_weights
from metavoice.models.kv_cache import StaticKVCache
from metavoice.models.static_step import StaticEngine, join_products, run_layers, static_step

LAYOUT = TokenLayout()
WIDTH = LAYOUT.end_of_audio + 1
WITHOUT_KERNEL = (
    "view _unsafe_view _reshape_alias t transpose permute unsqueeze squeeze expand select slice split unbind alias "
    "detach as_strided empty empty_like new_empty lift_fresh"
).split()


class CountKernels(TorchDispatchMode):
    "Counts operations that launch a kernel on CUDA."

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name not in WITHOUT_KERNEL:
            self.found[name] += 1
        return function(*args, **(kwargs or {}))


class OneKernel(TorchFunctionMode):
    "Counts attention and RMSNorm, which CUDA has one kernel for, instead of the operations that other devices take."

    def __init__(self, counter):
        super().__init__()
        self.counter = counter

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in (F.scaled_dot_product_attention, F.rms_norm):
            self.counter.found[function.__name__] += 1
            return torch.empty_like(args[0])
        return function(*args, **(kwargs or {}))


def released_engine(rows):
    with init_empty_weights():
        model = GPT(GPTConfig()).bfloat16()
    join_products(model)
    draw = device_draw(LAYOUT, True, WIDTH, torch.device("meta"))
    return StaticEngine(model, draw, max_rows=rows, branches=2, width=WIDTH, steps=16)


@pytest.mark.parametrize("rows, positions", [(1, 256), (8, 2048)])
def test_kernels_of_a_step_at_the_released_shape(rows, positions):
    with torch.no_grad(), torch.device("meta"):
        engine = released_engine(8)
        state, layers, step = engine.view(rows, positions), CountKernels(), CountKernels()
        with layers, OneKernel(layers):
            x = F.embedding(state.at, engine.model.transformer.wpe.weight)
            run_layers(engine.model, x, StaticKVCache(state.pairs, state.at))
        with step, OneKernel(step):
            static_step(engine.model, engine.draw, state)
    assert layers.found["rms_norm"] == 49 and layers.found["scaled_dot_product_attention"] == 24
    assert sum(layers.found.values()) <= 247, layers.found
    assert sum(step.found.values()) <= 291, step.found


class NoHost(TorchDispatchMode):
    "Fails for an operation that makes the host wait for the device or copies between them."

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        assert name not in ("_local_scalar_dense", "item", "nonzero", "masked_select", "equal", "is_nonzero"), name
        out = function(*args, **(kwargs or {}))
        tensors = [o for o in (*args, *(kwargs or {}).values(), out) if isinstance(o, torch.Tensor) and o.ndim]
        assert len({o.device for o in tensors}) <= 1, name
        return out


def test_a_step_never_reaches_for_the_host():
    with torch.no_grad(), torch.device("meta"):
        engine = released_engine(1)
        with NoHost():
            static_step(engine.model, engine.draw, engine.view(1, 256))


def test_joined_weights_follow_their_layers():
    "After an adapter, another weight or a change of the weights, a step computes with what is there."
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=32, block_size=64, swiglu_multiple_of=32, vocab_sizes=[40]))
    model.eval().requires_grad_(False)
    gates, x = model.transformer.h[0].mlp.swiglu, torch.randn(2, 32)

    class Adapter(torch.nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base = base

        def forward(self, x):
            return self.base(x) + 1

    def both_ways():
        join_products(model)
        cache = model.cache(2, 256, static=True)
        out = run_layers(model, x.clone(), StaticKVCache(cache.pairs, torch.zeros(2, dtype=torch.int64)))
        h = model.transformer.h[0]
        attended = x + h.attn.c_proj(h.attn.c_attn(h.ln_1(x))[:, 64:])  # one position sees itself alone
        y = h.ln_2(attended)
        expected = attended + h.mlp.c_proj(F.silu(gates.w1(y)) * gates.w3(y))
        return out, model.lm_heads[0](model.transformer.ln_f(expected))

    torch.testing.assert_close(*both_ways())
    assert gates.joined_weight is not None
    gates.w3.weight.data = torch.randn_like(gates.w3.weight)
    torch.testing.assert_close(*both_ways())
    gates.w1.weight.mul_(2)  # in place: the joined weight is the same memory
    torch.testing.assert_close(*both_ways())
    gates.w3 = Adapter(gates.w3)
    torch.testing.assert_close(*both_ways())
    assert gates.joined_weight is None
