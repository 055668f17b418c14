"Eight and four bits: against exact products with the rounded weights, in whole models, while loading, and what is refused."
import builtins, timeit
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

pytest.importorskip("torchao")
from metavoice.bundle.load import load_bundle
from metavoice.bundle.write import write_random_bundle
from metavoice.core.errors import OptionError
from metavoice.core.layout import TokenLayout
from metavoice.core.devices import prefers_fbgemm
from metavoice.models.gpt import GPT, GPTConfig
from metavoice.core.devices import int8_backend
from metavoice.models.quantise import (
    FBGEMM_MAX_ROWS, INT4_GROUP_SIZE, Int4Linear, Int8Linear, PACKED, PackedLinear, QUANTISE_METHODS,
    check_quantise_method, match_unit, quantise, quantise_activations, quantise_linear, repack
)
from metavoice.generate.decoding import generate

CPU = torch.device("cpu")


def error(a, b): return ((a.double()-b.double()).norm()/b.double().norm()).item()

def seeded(*shape, seed=0): return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))

@pytest.mark.parametrize("scale", [1e-6, 1, 1e6])
def test_two_integers_hold_an_activation(scale):
    x = scale*seeded(5, 300)
    x[1] = 0
    q, s = quantise_activations(x)
    assert q.dtype == torch.float32 and q.shape == (10, 300) and torch.equal(q, q.round()) and q.abs().max() <= 127
    a, b = q.double().chunk(2)
    back = (a + b/254)*s
    assert ((back-x).abs() <= x.abs().amax(1, keepdim=True)/127/254*.51 + 1e-20).all() and (q[1] == 0).all()

def test_what_is_not_a_number_stays_none():
    linear = Int8Linear(seeded(32, 64))
    assert not linear(torch.full((1, 64), torch.nan)).isfinite().any()

@pytest.mark.parametrize("units", ["", "fbgemm", "onednn"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_is_the_product_with_rounded_weights(units, dtype):
    if units and not int8_backend(): pytest.skip("no integer units")
    w, x, bias = seeded(96, 128), seeded(3, 2, 128, seed=1).to(dtype), seeded(96, seed=2).to(dtype)
    from torchao.quantization import Int8Tensor, PerRow
    stored = Int8Tensor.from_hp(w, granularity=PerRow())
    assert ((stored.qdata*stored.scale-w).abs() <= w.abs().amax(1, keepdim=True)/127.5*.51).all()
    linear = Int8Linear(w, bias, units)
    got = linear(x)
    assert got.dtype == dtype and got.shape == (3, 2, 96) and linear.nbytes == 96*128 + 4*96
    exact = x.double() @ (stored.qdata.double()*stored.scale.double()).mT + bias.double()
    assert error(got, exact) < (1e-4 if dtype == torch.float32 else 1e-2)

def test_the_integer_units_are_really_used():
    "oneDNN says nothing where it falls back to its reference code, which is thousands of times slower."
    if not int8_backend(): pytest.skip("no integer units")
    linear, x = Int8Linear(seeded(1024, 1024)), seeded(2, 1024, seed=1)
    best = min(timeit.repeat(lambda: linear(x), number=1, repeat=5))
    assert best < .1, f"{1e3*best:.0f} ms for a million weights; 0.1 would be right"

def test_int4_is_near_and_small():
    w, x = seeded(96, 128), seeded(2, 1, 128, seed=1)
    linear = Int4Linear(w)
    assert error(linear(x), x @ w.mT) < .12 and linear(x).shape == (2, 1, 96) and linear.nbytes == 96*64 + 128//INT4_GROUP_SIZE*96*4
    with pytest.raises(OptionError, match="multiples of 32"): Int4Linear(seeded(96, 100))

def test_which_weights():
    with torch.device("meta"): names = [n for n, _ in GPT(GPTConfig(n_layer=2)).named_parameters()]
    assert sum(match_unit(n) is not None for n in names) == 2*5 and not any(match_unit(n) for n in names if "transformer.h" not in n or "ln_" in n)

@pytest.mark.parametrize("how", QUANTISE_METHODS)
def test_a_quantised_model_still_speaks(how):
    torch.manual_seed(0)
    layout = TokenLayout(codebook_size=8, text_ranks=4)
    model = GPT(GPTConfig(n_layer=2, n_head=4, n_embd=64, block_size=96, vocab_sizes=[layout.first_vocab], swiglu_multiple_of=64)).eval().requires_grad_(False)
    ids, who = torch.randint(0, 22, (2, 1, 40)), torch.randn(2, 256)
    with torch.inference_mode():
        plain, = model(ids, who)
        assert quantise(model, how) is model and not any(isinstance(m, nn.Linear) for m in model.transformer.h.modules())
        assert error(model(ids, who)[0], plain) < (.02 if how == "int8" else .3)
    prompts = [torch.tensor([17, 18, 21]), torch.tensor([20, 21])]
    together = generate(model, prompts, who, layout=layout, seeds=[1, 2], constrain=True)
    alone, = generate(model, prompts[1:], who[1:], layout=layout, seeds=[2], constrain=True)
    assert torch.equal(together[1].ids, alone.ids)

@pytest.mark.parametrize("kind", ["swiglu", "gelu"])
@torch.inference_mode()
def test_older_models_with_biases(kind):
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=64, block_size=32, swiglu_multiple_of=64, bias=True, norm_type="layernorm", nonlinearity_type=kind)).eval().requires_grad_(False)
    for p in model.parameters(): p.normal_(0, .1)
    ids = torch.randint(0, 2562, (2, 1, 20))
    plain, = model(ids)
    assert error(quantise(model, "int8")(ids)[0], plain) < .02

@pytest.fixture(scope="module")
def bundle(tmp_path_factory): return write_random_bundle(tmp_path_factory.mktemp("random") / "nano", "nano", "float32")

@pytest.mark.parametrize("how", QUANTISE_METHODS)
@torch.inference_mode()
def test_quantised_while_it_is_read(bundle, how):
    read = load_bundle(bundle, "cpu", quantise=how)
    afterwards = quantise(load_bundle(bundle, "cpu").first, how)
    ids, who = torch.randint(0, 2000, (1, 1, 20), generator=torch.Generator().manual_seed(0)), torch.zeros(1, 256)
    assert torch.equal(read.first(ids, who)[0], afterwards(ids, who)[0])
    assert not any(p.is_meta for p in read.first.parameters()) and how in repr(read)
    assert isinstance(read.second.transformer.h[0].attn.c_attn, nn.Linear), "only the first stage is quantised"
    with pytest.raises(OptionError, match="can't be saved; load it without"): read.save(bundle.parent / "again")

def test_refused(monkeypatch):
    with pytest.raises(OptionError, match="unknown quantisation 'int2'; use int8 or int4"): load_bundle(device="cpu", quantise="int2")
    with pytest.raises(OptionError, match="has no kernel on mps"): check_quantise_method("int8", torch.device("mps"))
    with pytest.raises(OptionError, match="don't go together"): load_bundle(device="cpu", quantise="int8", compile=True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.raises(OptionError, match="8.0 or newer, this one has 7.5; use int8"): check_quantise_method("int4", torch.device("cuda"))
    real = builtins.__import__
    def without(name, *args, **kwargs):
        if name.startswith("torchao"): raise ImportError("no torchao")
        return real(name, *args, **kwargs)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(OptionError, match=r"metavoice\[quantise\]"): load_bundle(device="cpu", quantise="int8")
    load_bundle(device="cpu")

@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("how", QUANTISE_METHODS)
def test_on_a_gpu(how):
    if how == "int4" and torch.cuda.get_device_capability()[0] < 8: pytest.skip("needs compute capability 8.0")
    w, x = seeded(1024, 1024).to("cuda", torch.bfloat16), seeded(2, 1, 1024, seed=1).to("cuda", torch.bfloat16)
    assert error(quantise_linear(w, None, how)(x), F.linear(x, w)) < (.02 if how == "int8" else .15)

needs_fbgemm = pytest.mark.skipif(not prefers_fbgemm(), reason="no FBGEMM, or AMX")

@needs_fbgemm
@pytest.mark.parametrize("rows", [1, 2, 4, 5, 16])
def test_half_in_either_order(rows):
    w, x, bias = seeded(96, 128).bfloat16(), seeded(rows, 1, 128, seed=1).bfloat16(), seeded(96, seed=2).bfloat16()
    linear, exact = PackedLinear(w, bias), x.double() @ w.double().mT + bias.double()
    for batch in (2, 16, 4, 5):
        repack(linear, batch)
        assert linear.small_batch == (batch <= FBGEMM_MAX_ROWS) and linear(x).dtype == torch.bfloat16 and linear(x).shape == (rows, 1, 96)
        assert error(linear(x), exact) < 1e-2

@needs_fbgemm
def test_half_of_float32_only_where_nothing_is_lost():
    w, x = seeded(96, 128), seeded(3, 128, seed=1)
    assert isinstance(quantise_linear(w, None, PACKED), nn.Linear)
    stored = quantise_linear(w.half().float(), None, PACKED)
    assert isinstance(stored, PackedLinear) and error(stored(x), x.double() @ w.half().double().mT) < 1e-6
    repack(stored, 16); assert stored.small_batch
    with pytest.raises(OptionError, match="too large for float16"): PackedLinear(torch.full((16, 32), 1e6))

@needs_fbgemm
@torch.no_grad()
def test_packed_while_it_is_read(bundle, tmp_path):
    ids, who = torch.randint(0, 2000, (1, 1, 20), generator=torch.Generator().manual_seed(0)), torch.zeros(1, 256)
    half = load_bundle(bundle, "cpu").save(tmp_path/"half", "float16")
    plain, packed = load_bundle(half, "cpu"), load_bundle(half, "cpu", pack=True)
    assert packed.packed and not plain.packed and sum(isinstance(m, PackedLinear) for m in packed.first.modules()) == 4*packed.first.config.n_layer + 1
    assert error(packed.first(ids, who)[0], plain.first(ids, who)[0]) < 1e-5
    again = load_bundle(packed.save(tmp_path/"again"), "cpu").first.state_dict()
    assert all(torch.equal(t, again[n]) for n, t in plain.first.state_dict().items())
    wide = load_bundle(half, "cpu", "bfloat16", pack=True)
    generate(wide.first, [torch.tensor([2060, 2061])], who, layout=wide.layout, seeds=[1], max_new_tokens=3)
    assert all(m.small_batch for m in wide.first.modules() if isinstance(m, PackedLinear))
    assert not load_bundle(half, "cpu", pack=True, compile=True).packed
