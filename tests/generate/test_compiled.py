"Steps compiled by PyTorch's own compiler: graphs, recompilations and tokens, also with quantised weights."
import shutil

import pytest
import torch

from metavoice.core.layout import TokenLayout
from metavoice.generate.decoding import GenerationRequest, decode_steps
from metavoice.generate.engine import prepare_engines
from metavoice.models.gpt import GPT, GPTConfig
from metavoice.models.quantise import INT8_TRACEABLE, quantise

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")]

LAYOUT = TokenLayout(codebook_size=30, text_ranks=4)
SHAPE = dict(n_layer=2, n_head=2, n_embd=64, block_size=600, swiglu_multiple_of=32, vocab_sizes=[LAYOUT.first_vocab])
OPTIONS = dict(constrain=True, guidance=2.0)


def quantise_by_torchao(model):
    "As on CUDA: layers of PyTorch, with weights that are a torchao tensor."
    pytest.importorskip("torchao.quantization", exc_type=ImportError)
    from torch import nn
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    for block in model.transformer.h:
        for parent in (block.attn, block.mlp, block.mlp.swiglu):
            for name, layer in list(parent.named_children()):
                if isinstance(layer, nn.Linear):
                    plain = nn.Linear(layer.in_features, layer.out_features, bias=False).requires_grad_(False)
                    plain.weight = layer.weight
                    setattr(parent, name, plain)
        quantize_(block, Int8WeightOnlyConfig())
    return model


WEIGHTS = {
    "float32": lambda model: model,
    "bfloat16": lambda model: model.bfloat16(),
    "int8": lambda model: quantise(model.bfloat16(), INT8_TRACEABLE),
    "int4": lambda model: quantise(model, "int4"),
    "int8 of torchao": lambda model: quantise_by_torchao(model),
}


def make_model(weights):
    torch.manual_seed(0)
    model = GPT(GPTConfig(**SHAPE)).eval().requires_grad_(False)
    for p in model.parameters():
        p.mul_(4)  # distributions that aren't flat
    return WEIGHTS[weights](model)


def make_requests(count, longest):
    generator, requests = torch.Generator().manual_seed(1), []
    for seed in range(count):
        length = int(torch.randint(1, longest, (1,), generator=generator))
        text = torch.randint(LAYOUT.text_offset, LAYOUT.end_of_text, (length,), generator=generator)
        prompt = torch.cat([text, torch.tensor([LAYOUT.end_of_text])])
        speaker = torch.randn(256, generator=generator)
        requests.append(GenerationRequest(prompt, speaker, seed, max_new_tokens=4 + 3 * seed % 23))
    return requests


def tokens_of(model, requests, rows, **options):
    made = {}
    for step in decode_steps(model, requests, layout=LAYOUT, max_rows=rows, **OPTIONS | options):
        for index, token, _ in step:
            if token is not None:
                made.setdefault(index, []).append(token)
    return made


def share_of_equal(found, expected):
    "Share of equal tokens among those with the same past: up to and including a request's first difference."
    pairs = [list(zip(found[i], expected[i])) for i in expected]
    firsts = [next((n for n, (a, b) in enumerate(pair) if a != b), None) for pair in pairs]
    equal = sum(len(pair) if first is None else first for pair, first in zip(pairs, firsts))
    return equal / (equal + sum(first is not None for first in firsts))


@pytest.fixture
def counters(monkeypatch, tmp_path):
    import torch._dynamo.utils

    monkeypatch.setenv("METAVOICE_CACHE", str(tmp_path))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    torch._dynamo.reset()
    yield torch._dynamo.utils.counters
    torch._dynamo.reset()


@pytest.mark.parametrize("weights", WEIGHTS)
def test_nothing_is_compiled_again(counters, weights):
    """One graph for one row and one for more, without breaks, and none later, for fifty requests of all lengths.

    The tokens are those of a step without compiler; with less than float32, nearly always, given the same past."""
    if weights.startswith("int"):
        pytest.importorskip("torchao.quantization", exc_type=ImportError)
    eager, model = make_model(weights), make_model(weights)
    model.compiling = True
    counters.clear()
    assert prepare_engines(model, 20, LAYOUT, **OPTIONS)
    requests, likeliest = make_requests(50, 500), dict(temperature=0.0)
    for rows, part in ((1, requests[:4]), (20, requests[4:40]), (3, requests[40:])):
        drawn = tokens_of(model, part, rows)
        assert weights != "float32" or drawn == tokens_of(eager, part, rows)
    found, expected = (tokens_of(o, requests[:20], 3, **likeliest) for o in (model, eager))
    assert counters["stats"]["unique_graphs"] == 2 and not counters["graph_break"]
    assert len(model.engines.idle) == 1
    if weights == "float32":
        assert found == expected
    assert share_of_equal(found, expected) > (0.999 if weights in ("float32", "int8 of torchao") else 0.9)


def test_many_models_in_one_process(counters, monkeypatch):
    "PyTorch limits the graphs of a function to eight; each engine has its own function."
    requests, real = make_requests(3, 20), torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, *, fullgraph: real(f, fullgraph=fullgraph, backend="eager"))
    for layers in range(1, 6):
        torch.manual_seed(0)
        model = GPT(GPTConfig(**SHAPE | dict(n_layer=1, n_embd=32 * layers))).eval().requires_grad_(False)
        model.compiling = True
        assert len(tokens_of(model, requests, 2, temperature=0.0)) == 3
