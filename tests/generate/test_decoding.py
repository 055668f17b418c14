"Continuous batching against generation without cache and batch, alone and with other requests."
import copy
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from metavoice.core.errors import MetaVoiceError, OptionError
from metavoice.core.layout import TokenLayout
from metavoice.generate import decoding
from metavoice.generate.decoding import SYNC_EVERY, GenerationRequest, decode_steps, generate
from metavoice.generate.sampling import apply_prompt_guidance
from metavoice.models.onnx_runtime import Binding
from metavoice.models.static_step import StaticEngine

ROOT = Path(__file__).parents[2]
LAYOUT = TokenLayout(codebook_size=8, text_ranks=4)  # 0–7, 8–15, end of audio 16, text 17–20, end of text 21
LIVELY = dict(constrain=True, temperature=1.5)


def collect(model, requests, **options):
    "Decode requests; returns for each its tokens and whether it finished, in the order in which they ended."
    tokens, ended = {}, {}
    for step in decode_steps(model, requests, layout=LAYOUT, **options):
        for index, token, row in step:
            if token is not None:
                tokens.setdefault(index, []).append(token)
            if row is not None:
                made = tokens.get(index, [])
                ended[index] = made, bool(made) and made[-1] == LAYOUT.end_of_audio
    return ended


def alone(model, request, **options):
    "Decode one request; returns its tokens and whether it finished."
    prompts, speakers = [request.prompt], request.speaker[None]
    made, = generate(model, prompts, speakers, layout=LAYOUT, seeds=[request.seed], **options)
    return made.ids[len(request.prompt):].tolist(), made.finished


@torch.no_grad()
def plain_generate(model, prompt, speaker, n, guidance, prompt_guidance=1.):
    "Greedy generation without a cache, each branch by itself."
    ids, nobody = prompt, torch.zeros(1, 256)
    while len(ids) < len(prompt) + n and ids[-1] != LAYOUT.end_of_audio:
        wordless = torch.cat([torch.full_like(prompt, LAYOUT.end_of_text), ids[len(prompt):]])
        branches = (ids, speaker[None]), (ids, nobody), (wordless, speaker[None])
        logits = (model(i[None, None], s)[0][0, -1] for i, s in branches)
        ids = torch.cat([ids, apply_prompt_guidance(*logits, guidance, prompt_guidance).argmax()[None]])
    return ids


# a list of prompts

@pytest.mark.parametrize("guidance,prompt_guidance", [(1., None), (3., None), (1., 2.), (3., 2.)])
def test_a_cached_batch_equals_the_plain_algorithm(model, prompts, speakers, guidance, prompt_guidance):
    made = generate(model, prompts, speakers, layout=LAYOUT, guidance=guidance, prompt_guidance=prompt_guidance,
                    temperature=0, max_new_tokens=30)
    for o, prompt, speaker in zip(made, prompts, speakers):
        assert o.ids.tolist() == plain_generate(model, prompt, speaker, 30, guidance, prompt_guidance or 1.).tolist()
        assert o.finished == (o.ids[-1] == LAYOUT.end_of_audio)


@pytest.mark.parametrize("options", [
    dict(), dict(guidance=1.), dict(prompt_guidance=2.), dict(temperature=1.5, top_k=5, top_p=None),
    dict(constrain=True),
])
def test_a_seed_gives_the_same_tokens_alone_and_in_a_batch(model, prompts, speakers, options):
    options = dict(layout=LAYOUT, **options)
    together = generate(model, prompts, speakers, seeds=[1, 2, 3, 4, 5], **options)
    again = generate(model, prompts, speakers, seeds=[1, 2, 3, 4, 5], **options)
    turned = generate(model, prompts[::-1], speakers.flip(0), seeds=[5, 4, 3, 2, 1], **options)[::-1]
    for i in range(5):
        single, = generate(model, prompts[i:i+1], speakers[i:i+1], seeds=[i + 1], **options)
        for o in (together[i], again[i], turned[i]):
            assert torch.equal(o.ids, single.ids) and o.finished == single.finished


def test_fresh_seeds_differ(model, prompts, speakers):
    options = dict(layout=LAYOUT, constrain=True, temperature=2., top_p=None, seeds=[None])
    a, b = (generate(model, prompts[:1], speakers[:1], **options)[0].ids for _ in range(2))
    assert a.tolist() != b.tolist() or len(a) < 12


def test_unconditional_is_a_speaker_of_zeros(model, prompts):
    nobody = torch.zeros(1, 256)
    options = dict(layout=LAYOUT, seeds=[4])
    a, b = (generate(model, prompts[:1], nobody, guidance=g, **options)[0].ids for g in (1., 5.))
    assert torch.equal(a, b)


@pytest.fixture
def work(model, monkeypatch):
    "The number of positions that each pass of the model works on, in the order of the passes."
    seen, layer = [], model.transformer.h[0].attn.c_attn
    plain = type(layer).forward

    def watched(self, x):
        if self is layer:
            seen.append(x.numel() // x.shape[-1])
        return plain(self, x)

    monkeypatch.setattr(type(layer), "forward", watched)
    return seen


def test_no_branch_without_guidance(model, prompts, speakers, work):
    for guidance, prompt_guidance, branches in ((1, None, 1), (3., None, 2), (1., 2., 2), (3., 2., 3), (1, 1, 1)):
        work.clear()
        generate(model, prompts[:2], speakers[:2], layout=LAYOUT, guidance=guidance, prompt_guidance=prompt_guidance,
                 seeds=[1, 2], max_new_tokens=2)
        assert work[0] == branches * (len(prompts[0]) + len(prompts[1])) and work[1] == 2 * branches


def test_no_work_on_padding_and_finished_rows_leave_the_batch(model, prompts, speakers, work):
    made = generate(model, prompts, speakers, layout=LAYOUT, guidance=1., seeds=[1, 2, 3, 4, 5], constrain=True)
    lengths = [len(o.ids) - len(p) for o, p in zip(made, prompts)]
    assert any(o.finished for o in made)
    assert work == [sum(map(len, prompts))] + [sum(n > step for n in lengths) for step in range(1, max(lengths))]


def test_constrained_tokens_alternate(model, prompts, speakers):
    made = generate(model, prompts, speakers, layout=LAYOUT, seeds=[1, 2, 3, 4, 5], constrain=True, temperature=3.,
                    top_p=None)
    for o, prompt in zip(made, prompts):
        tokens = o.ids[len(prompt):].tolist()
        for i, token in enumerate(tokens):
            at_the_end = i % 2 == 0 and i == len(tokens) - 1 and token == 16
            assert token // 8 == i % 2 or at_the_end


def test_constrain_goes_on_where_the_prompt_stops(model, speakers):
    prompt = torch.tensor([17, 21, 3])
    made, = generate(model, [prompt], speakers[:1], layout=LAYOUT, seeds=[1], constrain=True, max_new_tokens=1)
    assert 8 <= made.ids[-1] < 16


def test_never_past_the_context(model, prompts, speakers):
    full = [torch.full((90,), 17), torch.full((20,), 18), torch.full((95,), 19)]
    lively = dict(layout=LAYOUT, temperature=5., top_p=None)
    for o in generate(model, full, speakers[:3], seeds=[1, 2, 3], **lively):
        assert len(o.ids) <= 96 and (o.finished or len(o.ids) == 96)
    made, = generate(model, full[:1], speakers[:1], max_new_tokens=1000, layout=LAYOUT, seeds=1, constrain=True)
    assert len(made.ids) - 90 <= 6


def test_max_new_tokens_marks_the_row(model, prompts, speakers):
    made = generate(model, prompts, speakers, layout=LAYOUT, seeds=[1, 2, 3, 4, 5], max_new_tokens=3, constrain=True)
    for o, p in zip(made, prompts):
        assert len(o.ids) - len(p) <= 3 and o.finished == (o.ids[-1] == 16)


def test_progress(model, prompts, speakers):
    calls = []
    made = generate(model, prompts, speakers, layout=LAYOUT, seeds=[1, 2, 3, 4, 5],
                    on_progress=lambda *o: calls.append(o))
    steps = max(len(o.ids) - len(p) for o, p in zip(made, prompts))
    assert [o[0] for o in calls] == list(range(1, steps + 1)) and calls[0][1] == 5


def test_prompts_that_the_model_cannot_take(model, prompts, speakers):
    long, empty = [torch.full((96,), 17)], [torch.tensor([], dtype=torch.long)]
    cases = [(long, speakers[:1], "use 1 to 95 tokens"), (empty, speakers[:1], "use 1 to 95 tokens"),
             (prompts, speakers[:2], "2 speakers for 5 texts"), ([], speakers[:0], "there are no prompts"),
             ([torch.tensor([17, 22])], speakers[:1], "token 22")]
    for bad, who, message in cases:
        with pytest.raises(OptionError, match=message):
            generate(model, bad, who, layout=LAYOUT)


def test_logits_that_are_not_finite(model, prompts, speakers):
    with pytest.raises(MetaVoiceError, match="aren't finite"):
        generate(model, prompts[:1], speakers[:1] * torch.nan, layout=LAYOUT)


def test_no_global_state_changes(model, prompts, speakers):
    before = torch.get_rng_state()
    generate(model, prompts, speakers, layout=LAYOUT, seeds=[1, None, 3, 4, 5], max_new_tokens=5)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


# requests that come and go

@pytest.fixture(scope="module")
def many(prompts, speakers):
    "Twelve requests."
    return [GenerationRequest(prompts[i % 5], speakers[(i * 3) % 5], seed=i) for i in range(12)]


@pytest.mark.parametrize("max_rows,options", [
    (1, dict()), (3, dict(prompt_guidance=2., sync_every=7)), (5, dict(guidance=1.)),
    (40, dict(sync_every=16, guidance=1.)),
])
def test_a_request_gives_the_same_whatever_comes_and_goes(model, many, max_rows, options):
    found = collect(model, iter(many), max_rows=max_rows, **LIVELY, **options)
    assert sorted(found) == list(range(12))
    plain = {k: v for k, v in options.items() if k != "sync_every"}
    for i, made in found.items():
        assert made == alone(model, many[i], **LIVELY, **plain)


def test_a_freed_row_is_taken_at_once(model, many, work):
    different = [replace(o, speaker=o.speaker.roll(i)) for i, o in enumerate(many)]
    made = collect(model, different, max_rows=4, guidance=1., **LIVELY)
    lengths = [len(made[i][0]) for i in range(12)]
    assert len(set(lengths)) > 3
    prefilled = [n for n in work if n > 4]
    positions = sum(len(o.prompt) for o in many) + sum(n - 1 for n in lengths)
    assert sum(work) == positions, "every position is worked on once"
    assert len(work) - len(prefilled) < sum(lengths) / 4 + max(lengths), "the rows stay filled"


@pytest.mark.parametrize("guidance,branches", [(1., 1), (2., 2)])
@pytest.mark.parametrize("max_rows", [6, 3])
def test_takes_share_their_prompt(model, prompts, speakers, work, guidance, branches, max_rows):
    "Rows with the same prompt and speaker cost one prefill, also those that join while another is active."
    options = dict(guidance=guidance, **LIVELY)
    takes = [GenerationRequest(prompts[n], speakers[0], seed) for n in (0, 1) for seed in range(3)]
    takes.append(GenerationRequest(prompts[0], speakers[1], 7))
    plain = [alone(model, o, **options) for o in takes]
    work.clear()
    made = collect(model, takes, max_rows=max_rows, **options)
    assert [made[i] for i in range(len(takes))] == plain
    prefilled = sum(work) // branches - sum(len(tokens) - 1 for tokens, _ in plain)
    once = len(prompts[0]) * 2 + len(prompts[1])
    assert prefilled == once if max_rows == 6 else once <= prefilled < sum(len(o.prompt) for o in takes)


# engines

@pytest.fixture(scope="module")
def onnx_model(model):
    "The tiny first stage, whose steps run as a graph."
    other = copy.deepcopy(model)
    other.engine = "onnx"
    return other


@pytest.mark.parametrize("options", [
    dict(), dict(guidance=1., temperature=0), dict(prompt_guidance=2.), dict(temperature=1.5, top_k=5, top_p=None),
    dict(LIVELY), dict(LIVELY, guidance=1., max_rows=2), dict(LIVELY, sync_every=5),
])
def test_both_engines_draw_the_same_tokens(model, onnx_model, many, options):
    options = dict(max_rows=4) | options
    assert collect(onnx_model, many, **options) == collect(model, many, **options)


def test_the_graph_is_used(onnx_model, many, monkeypatch):
    calls, plain = [], Binding.run
    monkeypatch.setattr(Binding, "run", lambda self: (calls.append(self), plain(self)))
    made = collect(onnx_model, many[:1], max_rows=1, guidance=1., **LIVELY)
    assert len(calls) == len(made[0][0])


def test_a_graph_follows_its_weights(model, onnx_model, many):
    changed, plain = copy.deepcopy(onnx_model), copy.deepcopy(model)
    before = collect(changed, many[:2], max_rows=2, **LIVELY)
    with torch.no_grad():
        for one in (changed, plain):
            one.transformer.wpe.weight.neg_()
    after = collect(changed, many[:2], max_rows=2, **LIVELY)
    assert after == collect(plain, many[:2], max_rows=2, **LIVELY) != before


def test_logits_of_a_graph_that_are_not_finite(onnx_model, prompts, speakers):
    with pytest.raises(MetaVoiceError, match="aren't finite"):
        generate(onnx_model, prompts[:1], speakers[:1] * torch.nan, layout=LAYOUT)


def test_a_graph_never_passes_the_context(onnx_model, speakers):
    made, = generate(onnx_model, [torch.full((90,), 17)], speakers[:1], max_new_tokens=1000, layout=LAYOUT, seeds=1,
                     constrain=True)
    assert len(made.ids) <= 96


def test_requests_are_asked_for_when_a_row_is_free(model, many):
    asked, ended = [], []

    def requests():
        for i, o in enumerate(many):
            asked.append((i, len(ended)))
            yield o

    for step in decode_steps(model, requests(), layout=LAYOUT, max_rows=3, **LIVELY):
        ended += [index for index, _, row in step if row is not None]
    assert all(i - done < 3 for i, done in asked) and [i for i, _ in asked] == list(range(12))


def test_requests_that_come_later(model, many):
    "The generator yields None while nothing waits; two requests come while the first is at work."
    queue, late, seen, ended = [many[0]], [many[3], many[4]], [], []

    def requests():
        while queue or late or len(ended) < 3:
            if len(seen) >= 4 and late:
                queue.append(late.pop(0))
            yield queue.pop(0) if queue else None

    for step in decode_steps(model, requests(), layout=LAYOUT, **LIVELY):
        for index, token, row in step:
            seen.append((index, token))
            if row is not None:
                ended.append(index)
    for i, request in zip(range(3), (many[0], many[3], many[4])):
        assert [token for n, token in seen if n == i] == alone(model, request, **LIVELY)[0]


def test_no_requests(model):
    assert collect(model, []) == collect(model, iter([None, None])) == {}


@pytest.mark.parametrize("sync_every", [1, 5])
def test_cancelled_rows_give_up_their_places(model, many, sync_every):
    calls = [0]

    def cancelled():
        calls[0] += 1
        return calls[0] > 3

    endless = GenerationRequest(many[0].prompt, many[0].speaker, 1000, cancelled=cancelled)
    options = dict(temperature=3., top_p=None, constrain=True)
    found = collect(model, [endless, many[1], many[2]], max_rows=2, sync_every=sync_every, **options)
    tokens, finished = found[0]
    assert next(iter(found)) == 0 and not finished and len(tokens) <= 3 * sync_every
    for i in (1, 2):
        assert found[i] == alone(model, many[i], **options)


def test_cancelled_before_the_first_token(model, many):
    never = GenerationRequest(many[0].prompt, many[0].speaker, 1, cancelled=lambda: True)
    assert list(collect(model, [never, never], max_rows=1)) == [0, 1]


@pytest.mark.parametrize("bad,message", [(dict(max_rows=0), "max_rows is 0"), (dict(guidance=0), "guidance is 0")])
def test_options_refused(model, many, bad, message):
    with pytest.raises(OptionError, match=message):
        collect(model, many, **bad)


def test_bad_requests_are_refused(model, many):
    speaker = many[0].speaker
    cases = [(GenerationRequest(torch.tensor([17, 22]), speaker), "token 22"),
             (GenerationRequest(many[0].prompt, speaker, -1), "seed is -1"),
             (GenerationRequest(many[0].prompt, speaker, 1, max_new_tokens=0), "max_new_tokens is 0")]
    for bad, message in cases:
        with pytest.raises(OptionError, match=message):
            collect(model, [many[0], bad])


# the engine

@pytest.fixture
def static(model, monkeypatch):
    "The model decodes by an engine, which isn't ready."
    monkeypatch.setattr(decoding, "is_static", lambda model: True)
    monkeypatch.setattr(model, "engines", None)


@pytest.fixture
def compiling(model, monkeypatch, tmp_path):
    "A function that has the model's steps compiled by a backend."
    import torch._dynamo

    real = torch.compile

    def use(backend):
        monkeypatch.setattr(torch, "compile", lambda f, *, fullgraph: real(f, fullgraph=fullgraph, backend=backend))
        monkeypatch.setenv("METAVOICE_CACHE", str(tmp_path))
        monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
        monkeypatch.setattr(model, "engines", None)
        monkeypatch.setattr(model, "compiling", True)

    yield use
    torch._dynamo.reset()


VARIETY = [
    LIVELY, dict(guidance=3., top_p=.9), dict(guidance=2., prompt_guidance=1.5), dict(temperature=0), dict(top_k=3),
    dict(temperature=2., constrain=True, top_p=None),
]


@pytest.mark.parametrize("options", VARIETY, ids=str)
def test_an_engine_draws_the_same_tokens(model, many, static, options, monkeypatch):
    options = dict(max_new_tokens=30) | options
    found = collect(model, many, max_rows=3, **options)
    assert model.engines.idle and not model.engines.idle[0].ready
    once = collect(model, many, max_rows=3, sync_every=3, **options)
    monkeypatch.undo()
    assert found == once == {i: alone(model, request, **options) for i, request in enumerate(many)}


def test_an_engine_holds_the_end_back(model, many, static):
    "Until the seventh token no row ends, also where that is the likeliest token."
    held = [replace(o, no_end=range(7)) for o in many[:3]]
    options = dict(temperature=3., top_p=None)
    assert all(len(tokens) > 7 for tokens, _ in collect(model, held, **options).values())
    free = collect(model, [replace(o, seed=s) for s in range(40) for o in many[:1]], **options)
    assert min(len(tokens) for tokens, _ in free.values()) <= 7


def test_an_engine_is_used_again(model, many, static):
    for rows, size in ((3, 3), (2, 3), (4, 4)):
        collect(model, many, max_rows=rows, **LIVELY)
        engine, = model.engines.idle
        assert engine.max_rows == size
    collect(model, many, max_rows=1, **LIVELY | dict(guidance=4.))
    assert model.engines.idle == [engine]
    collect(model, many, max_rows=1, **LIVELY | dict(guidance=1.))
    other, = model.engines.idle
    assert other is not engine, "guidance has another number of branches"
    assert copy.deepcopy(model).engines.idle == []
    with torch.no_grad():
        model.transformer.wpe.weight.data = model.transformer.wpe.weight.clone()
    collect(model, many, max_rows=1, **LIVELY | dict(guidance=1.))
    assert model.engines.idle != [other], "an engine belongs to the weights that it was made for"


def test_an_engine_reads_seldom(model, many, static, monkeypatch):
    "The host waits for the device once in SYNC_EVERY steps."
    read, steps, run = [0], [0], StaticEngine.run

    def counted(self, rows, n):
        read[0], steps[0] = read[0] + 1, steps[0] + n
        return run(self, rows, n)

    monkeypatch.setattr(StaticEngine, "run", counted)
    endless = replace(many[0], max_new_tokens=30, no_end=range(99))
    collect(model, [endless], **LIVELY)
    assert (read[0], steps[0]) == (2, 30) and SYNC_EVERY == 16


def test_an_engine_refuses_a_phone_track(model, many, static):
    with pytest.raises(OptionError, match="needs each token on the CPU"):
        collect(model, [replace(many[0], track=object())], **LIVELY)


@pytest.mark.slow
def test_a_compiled_step_gives_the_same(model, many, monkeypatch, compiling):
    """Two graphs without branches, for one row and for more, however many rows and options there are.

    PyTorch's own operations run them, so that no compiler is needed."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiling(backend)
    lively = dict(max_new_tokens=30) | LIVELY
    found = [collect(model, many[:5], max_rows=3, **lively) for _ in range(2)]
    made = len(graphs)
    warm = collect(model, many[:5], max_rows=2, **lively | dict(temperature=.7, top_p=.8, top_k=9))
    assert made == len(graphs) == 2 and found[0] == found[1]
    monkeypatch.setattr(model, "compiling", False)
    assert found[0] == {i: alone(model, many[i], **lively) for i in range(5)}
    assert warm == {i: alone(model, many[i], **lively | dict(temperature=.7, top_p=.8, top_k=9)) for i in range(5)}


@pytest.mark.slow
def test_a_failing_compiler_is_an_error(model, many, compiling):
    def backend(graph, inputs):
        raise RuntimeError("no compiler here")

    compiling(backend)
    with pytest.raises(OptionError, match="can't compile here .*; use compile=False"):
        collect(model, many[:1], **LIVELY)


COMPILED = """
import json, torch
from metavoice.core.layout import TokenLayout
from metavoice.generate.decoding import generate
from metavoice.models.gpt import GPT, GPTConfig
torch.manual_seed(0)
layout = TokenLayout(codebook_size=8, text_ranks=4)
config = GPTConfig(n_layer=1, n_head=2, n_embd=32, block_size=64, vocab_sizes=[layout.first_vocab],
                   swiglu_multiple_of=32)
model = GPT(config).eval().requires_grad_(False)
model.compiling = True
made, = generate(model, [torch.tensor([17, 18, 21])], torch.zeros(1, 256), layout=layout, seeds=[1], constrain=True,
                 max_new_tokens=8)
from torch._dynamo.utils import counters
print(json.dumps([counters["inductor"]["fxgraph_cache_hit"], made.ids.tolist()]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")
def test_the_next_process_need_not_compile_again(tmp_path):
    env = {k: v for k, v in os.environ.items() if not k.startswith("TORCHINDUCTOR")}
    env |= dict(METAVOICE_CACHE=str(tmp_path), PYTHONPATH=str(ROOT))

    def run():
        command = [sys.executable, "-c", COMPILED]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
        return json.loads(done.stdout.splitlines()[-1])

    (hits, made), (later, again) = run(), run()
    assert (hits, later > 0) == (0, True) and made == again and os.listdir(tmp_path) == ["compiled"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("compiled", [False, True])
def test_tokens_read_seldom_on_a_gpu(model, many, compiled, monkeypatch, tmp_path):
    monkeypatch.setenv("METAVOICE_CACHE", str(tmp_path))
    on_gpu = copy.deepcopy(model).cuda().requires_grad_(False)
    on_gpu.compiling = compiled
    for i, made in collect(on_gpu, many[:6], max_rows=4, **LIVELY).items():
        assert made == alone(model, many[i], **LIVELY)
