"Quantised and packed layers compared with exact products, in whole models, while loading, and with other CPUs."
import builtins
import os
import subprocess
import sys
import timeit

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from metavoice.bundle.load import load_bundle
from metavoice.bundle.write import write_random_bundle
from metavoice.core.devices import has_onednn_bfloat16, int8_backend, prefers_fbgemm
from metavoice.core.errors import OptionError
from metavoice.core.layout import TokenLayout
from metavoice.generate.decoding import generate
from metavoice.models.gpt import GPT, GPTConfig
from metavoice.models.quantise import (
    FBGEMM_MAX_ROWS,
    INT4_GROUP_SIZE,
    PACKED,
    QUANTISE_METHODS,
    Int4Linear,
    Int8Linear,
    PackedLinear,
    check_quantise_method,
    match_unit,
    quantise,
    quantise_activations,
    quantise_linear,
    repack,
)

pytest.importorskip("torchao")

needs_fbgemm = pytest.mark.skipif(not prefers_fbgemm(), reason="this CPU has AMX or no FBGEMM")
needs_int8 = pytest.mark.skipif(not int8_backend(), reason="this CPU has no VNNI")


def relative_error(a, b):
    return ((a.double()-b.double()).norm()/b.double().norm()).item()


def seeded(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_random_bundle(tmp_path_factory.mktemp("random") / "nano", "nano", "float32")


@pytest.fixture(scope="module")
def inputs():
    "Ids of nano's five input streams, and a speaker, for the first stage."
    ids = torch.randint(0, 49, (1, 5, 20), generator=torch.Generator().manual_seed(0))
    return ids, torch.zeros(1, 256)


@pytest.mark.parametrize("scale", [1e-6, 1, 1e6])
def test_two_integers_represent_an_activation(scale):
    x = scale*seeded(5, 300)
    x[1] = 0
    q, s = quantise_activations(x)
    assert q.dtype == torch.float32 and q.shape == (10, 300)
    assert torch.equal(q, q.round()) and q.abs().max() <= 127
    a, b = q.double().chunk(2)
    error = ((a + b/254)*s - x).abs()
    assert (error <= x.abs().amax(1, keepdim=True)/127/254*.51 + 1e-20).all() and (q[1] == 0).all()


def test_nan_activations_give_no_finite_output():
    linear = Int8Linear(seeded(32, 64))
    assert not linear(torch.full((1, 64), torch.nan)).isfinite().any()


@pytest.mark.parametrize("backend", [
    "", pytest.param("fbgemm", marks=needs_int8), pytest.param("onednn", marks=needs_int8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_equals_the_product_with_rounded_weights(backend, dtype):
    from torchao.quantization import Int8Tensor, PerRow
    w, x, bias = seeded(96, 128), seeded(3, 2, 128, seed=1).to(dtype), seeded(96, seed=2).to(dtype)
    stored = Int8Tensor.from_hp(w, granularity=PerRow())
    assert ((stored.qdata*stored.scale-w).abs() <= w.abs().amax(1, keepdim=True)/127.5*.51).all()
    linear = Int8Linear(w, bias, backend)
    got = linear(x)
    assert got.dtype == dtype and got.shape == (3, 2, 96) and linear.nbytes == 96*128 + 4*96
    exact = x.double() @ (stored.qdata.double()*stored.scale.double()).mT + bias.double()
    assert relative_error(got, exact) < (1e-4 if dtype == torch.float32 else 1e-2)


@needs_int8
def test_integer_units_are_used():
    "oneDNN's reference code, its silent fallback, takes thousands of times as long."
    linear, x = Int8Linear(seeded(1024, 1024)), seeded(2, 1024, seed=1)
    best = min(timeit.repeat(lambda: linear(x), number=1, repeat=5))
    assert best < .1, f"{1e3*best:.0f} ms for a million weights; about 0.1 ms is right"


def test_int4_error_and_size():
    w, x = seeded(96, 128), seeded(2, 1, 128, seed=1)
    linear = Int4Linear(w)
    assert relative_error(linear(x), x @ w.mT) < .12 and linear(x).shape == (2, 1, 96)
    assert linear.nbytes == 96*64 + 128//INT4_GROUP_SIZE*96*4
    with pytest.raises(OptionError, match="multiples of 32"):
        Int4Linear(seeded(96, 100))


def test_parameters_that_are_quantised():
    with torch.device("meta"):
        names = [n for n, _ in GPT(GPTConfig(n_layer=2)).named_parameters()]
    assert sum(match_unit(n) is not None for n in names) == 2*5
    assert not any(match_unit(n) for n in names if "transformer.h" not in n or "ln_" in n)


@pytest.mark.parametrize("method", QUANTISE_METHODS)
def test_quantised_model_generates(method):
    torch.manual_seed(0)
    layout = TokenLayout(codebook_size=8, text_ranks=4)
    config = GPTConfig(n_layer=2, n_head=4, n_embd=64, block_size=96, vocab_sizes=[layout.first_vocab],
                       swiglu_multiple_of=64)
    model = GPT(config).eval().requires_grad_(False)
    ids, speakers = torch.randint(0, 22, (2, 1, 40)), torch.randn(2, 256)
    with torch.inference_mode():
        plain, = model(ids, speakers)
        assert quantise(model, method) is model
        assert not any(isinstance(m, nn.Linear) for m in model.transformer.h.modules())
        assert relative_error(model(ids, speakers)[0], plain) < (.02 if method == "int8" else .3)
    prompts = [torch.tensor([17, 18, 21]), torch.tensor([20, 21])]
    options = dict(layout=layout, constrain=True)
    together = generate(model, prompts, speakers, seeds=[1, 2], **options)
    alone, = generate(model, prompts[1:], speakers[1:], seeds=[2], **options)
    assert torch.equal(together[1].ids, alone.ids)


@pytest.mark.parametrize("kind", ["swiglu", "gelu"])
@torch.inference_mode()
def test_models_with_biases(kind):
    torch.manual_seed(0)
    config = GPTConfig(n_layer=1, n_head=2, n_embd=64, block_size=32, swiglu_multiple_of=64, bias=True,
                       norm_type="layernorm", nonlinearity_type=kind)
    model = GPT(config).eval().requires_grad_(False)
    for p in model.parameters():
        p.normal_(0, .1)
    ids = torch.randint(0, 2562, (2, 1, 20))
    plain, = model(ids)
    assert relative_error(quantise(model, "int8")(ids)[0], plain) < .02


@pytest.mark.parametrize("method", QUANTISE_METHODS)
@torch.inference_mode()
def test_quantised_while_loading(bundle, inputs, method):
    loaded = load_bundle(bundle, "cpu", quantise=method, engine="torch")
    afterwards = quantise(load_bundle(bundle, "cpu").first, method)
    assert torch.equal(loaded.first(*inputs)[0], afterwards(*inputs)[0])
    assert not any(p.is_meta for p in loaded.first.parameters()) and method in repr(loaded)
    assert isinstance(loaded.second.transformer.h[0].attn.c_attn, nn.Linear), "only the first stage is quantised"
    with pytest.raises(OptionError, match="can't be saved; load it without"):
        loaded.save(bundle.parent / "again")


def test_unsupported_quantisation_is_rejected(monkeypatch):
    with pytest.raises(OptionError, match="unknown quantisation 'int2'; use int8 or int4"):
        load_bundle(device="cpu", quantise="int2")
    with pytest.raises(OptionError, match="has no kernel on mps"):
        check_quantise_method("int8", torch.device("mps"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.raises(OptionError, match="8.0 or newer, this one has 7.5; use int8"):
        check_quantise_method("int4", torch.device("cuda"))


def test_missing_torchao_is_an_option_error(monkeypatch):
    real = builtins.__import__

    def import_without_torchao(name, *args, **kwargs):
        if name.startswith("torchao"):
            raise ImportError("no torchao")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", import_without_torchao)
    with pytest.raises(OptionError, match=r"metavoice\[quantise\]"):
        load_bundle(device="cpu", quantise="int8", engine="torch")
    with pytest.raises(OptionError, match=r"metavoice\[quantise\]"):
        load_bundle(device="cpu", quantise="int4")
    load_bundle(device="cpu")
    assert load_bundle(device="cpu", quantise="int8").step_engine == "onnx", "a graph quantises by itself"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("method", QUANTISE_METHODS)
def test_quantised_linear_on_a_gpu(method):
    if method == "int4" and torch.cuda.get_device_capability()[0] < 8:
        pytest.skip("needs compute capability 8.0")
    w, x = (o.to("cuda", torch.bfloat16) for o in (seeded(1024, 1024), seeded(2, 1, 1024, seed=1)))
    assert relative_error(quantise_linear(w, None, method)(x), F.linear(x, w)) < (.02 if method == "int8" else .15)


@needs_fbgemm
@pytest.mark.parametrize("rows", [1, 2, 4, 5, 16])
def test_packed_layouts(rows):
    w, x, bias = seeded(96, 128).bfloat16(), seeded(rows, 1, 128, seed=1).bfloat16(), seeded(96, seed=2).bfloat16()
    linear, exact = PackedLinear(w, bias), x.double() @ w.double().mT + bias.double()
    for batch in (2, 16, 4, 5):
        repack(linear, batch)
        assert linear.small_batch == (batch <= FBGEMM_MAX_ROWS or not has_onednn_bfloat16())
        assert linear(x).dtype == torch.bfloat16 and linear(x).shape == (rows, 1, 96)
        assert relative_error(linear(x), exact) < 1e-2


@needs_fbgemm
def test_float32_is_packed_only_without_loss():
    w, x = seeded(96, 128), seeded(3, 128, seed=1)
    assert isinstance(quantise_linear(w, None, PACKED), nn.Linear)
    packed = quantise_linear(w.half().float(), None, PACKED)
    assert isinstance(packed, PackedLinear)
    assert relative_error(packed(x), x.double() @ w.half().double().mT) < 1e-6
    repack(packed, 16)
    assert packed.small_batch
    with pytest.raises(OptionError, match="too large for float16"):
        PackedLinear(torch.full((16, 32), 1e6))


@needs_fbgemm
@torch.no_grad()
def test_packed_while_loading(bundle, inputs, tmp_path):
    half = load_bundle(bundle, "cpu").save(tmp_path / "half", "float16")
    plain, packed = (load_bundle(half, "cpu", pack=pack, engine="torch") for pack in (False, True))
    assert packed.packed and not plain.packed
    n_packed = sum(isinstance(m, PackedLinear) for m in packed.first.modules())
    assert n_packed == 4*packed.first.config.n_layer + 1
    assert relative_error(packed.first(*inputs)[0], plain.first(*inputs)[0]) < 1e-5
    again = load_bundle(packed.save(tmp_path / "again"), "cpu").first.state_dict()
    assert all(torch.equal(t, again[n]) for n, t in plain.first.state_dict().items())
    in_bfloat16 = load_bundle(half, "cpu", "bfloat16", pack=True)
    prompt, (_, speaker) = torch.tensor([2060, 2061]), inputs
    generate(in_bfloat16.first, [prompt], speaker, layout=in_bfloat16.layout, seeds=[1], max_new_tokens=3)
    assert all(m.small_batch for m in in_bfloat16.first.modules() if isinstance(m, PackedLinear))
    assert not load_bundle(half, "cpu", pack=True, compile=True).packed


ON_AVX2 = """
import torch
from metavoice.core.devices import int8_backend, prefers_fbgemm
from metavoice.models.quantise import Int4Linear, Int8Linear, PackedLinear, repack
w, x = torch.randn(64, 128), torch.randn(3, 128)
errors = [Int8Linear(w)(x) - x @ w.T, Int4Linear(w)(x) - x @ w.T]
if prefers_fbgemm():
    packed = PackedLinear(w.bfloat16())
    for rows in (2, 16):
        repack(packed, rows)
        errors.append(packed(x.bfloat16()).float() - x @ w.T)
print(int8_backend() or 'plain', *[float(e.norm()/(x @ w.T).norm()) for e in errors])
"""


@pytest.mark.slow
def test_every_layer_works_on_a_cpu_with_avx2_only():
    env = os.environ | dict(ONEDNN_MAX_CPU_ISA="AVX2", ATEN_CPU_CAPABILITY="avx2", OMP_NUM_THREADS="1")
    found = subprocess.run([sys.executable, "-c", ON_AVX2], env=env, capture_output=True, text=True, check=True)
    backend, int8, int4, *packed = found.stdout.split()
    assert backend == "plain" and float(int8) < .02 and float(int4) < .15
    assert all(float(error) < .02 for error in packed)
