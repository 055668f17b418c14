"Sampling against golden probabilities; generation in a batch against generation by hand and alone."
import json, os, shutil, subprocess, sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from metavoice.core.errors import MetaVoiceError, OptionError
from metavoice.core.layout import TokenLayout
from metavoice.models.gpt import GPT, GPTConfig
from metavoice.generate.sampling import (
    apply_guidance, apply_prompt_guidance, check_options, codebook_mask, make_generators, probabilities, sample,
    sorted_top_p, top_k_probabilities, top_p_probabilities
)
from metavoice.generate.decoding import (
    GenerationOutput, GenerationRequest, decode_steps, generate, generate_steps, generate_stream
)

LAYOUT = TokenLayout(codebook_size=8, text_ranks=4) # 0–7, 8–15, end of audio 16, text 17–20, end of text 21


def close(a, b, tolerance): torch.testing.assert_close(a, torch.as_tensor(b), atol=tolerance, rtol=0)

def test_golden_guidance(expected):
    close(apply_guidance(torch.tensor(expected['cfg_cond']), torch.tensor(expected['cfg_uncond']), float(expected['cfg_scale'])), expected['cfg_out'], 1e-5)

def test_golden_top_p(expected):
    logits = torch.tensor(expected['tp_logits'])
    for p,probs in zip(expected['tp_p'].tolist(), expected['tp_probs']):
        close(probabilities(logits, .8, top_p=p), probs, 1e-5)
        close(sorted_top_p(logits/.8, p), probs, 1e-5)

def test_golden_top_k(expected):
    close(top_k_probabilities(torch.tensor(expected['tp_logits']), 200), expected['tk_probs'], 1e-5)

def test_prompt_guidance_by_hand():
    close(apply_prompt_guidance(torch.tensor([1.,2]), torch.tensor([3.,4]), torch.tensor([5.,7]), 3., 2.), [4*1-2*3-5, 4*2-2*4-7.], 1e-6)

@pytest.mark.parametrize("p", [1e-6, .2, .9, .95, .999, 1.])
def test_top_p_is_the_sorted_one(p):
    generator = torch.Generator().manual_seed(0)
    for sharpness in (.01, 1, 5, 50):
        logits = sharpness*torch.randn(7, 3, 2562, generator=generator)
        close(top_p_probabilities(logits, p), sorted_top_p(logits, p), 1e-6)

def test_the_best_token_always_stays():
    logits = torch.tensor([[0.,5,1]])
    assert top_p_probabilities(logits, 1e-9).tolist()==[[0,1,0]]==probabilities(logits, 0).tolist()==top_k_probabilities(logits, 1).tolist()

@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    probs = probabilities(torch.randn(3, 2562).to(dtype), .9, 50, .9)
    assert probs.dtype==torch.float32; close(probs.sum(-1), torch.ones(3), 1e-5)

def test_draws_follow_the_probabilities():
    probs = torch.tensor([.5,.3,.15,.05,0])
    drawn = sample(probs.expand(1, 20000, 5), make_generators([3], 1))[0].bincount(minlength=5)
    assert drawn[4]==0 and ((drawn-20000*probs)[:4]**2/(20000*probs[:4])).sum() < 16.3 # chi-squared, one in a thousand

def test_a_row_draws_alone():
    probs = torch.randn(4, 6, 100).softmax(-1)
    together = sample(probs, make_generators([5,6,7,8], 4))
    for i in range(4): assert torch.equal(sample(probs[i:i+1], make_generators([5+i], 1))[0], together[i])

def test_what_is_not_finite_is_marked():
    assert sample(torch.tensor([[.5,.5],[torch.nan,1.]]), make_generators([1,1], 2))[1]==-1

@pytest.mark.parametrize("bad,message", [
    (dict(guidance=-1), "guidance is -1; use a number from 1 to 20"), (dict(guidance="3"), "guidance is '3'"),
    (dict(prompt_guidance=.5), "prompt_guidance is 0.5; use a number from 1 to 20"),
    (dict(temperature=-.1), "temperature is -0.1; use a number from 0 to 10"), (dict(temperature=float('nan')), "temperature is nan"),
    (dict(top_p=0), "top_p is 0; use a number above 0 and at most 1"), (dict(top_p=1.5), "top_p is 1.5"),
    (dict(top_k=0), "top_k is 0; use a whole number from 1 up"), (dict(top_k=2.5), "top_k is 2.5"), (dict(top_k=True), "top_k is True"),
    (dict(max_new_tokens=0), "max_new_tokens is 0; use a whole number from 1 up")])
def test_options_out_of_range(bad, message):
    with pytest.raises(OptionError) as e: check_options(**bad)
    assert message in str(e.value)

@pytest.mark.parametrize("seeds,message", [([1,2], "2 seeds for 3 texts"), ([1,2,-3], "seed is -3"), ([1,2,2**32], "seed is 4294967296"), (1.5, "seed is 1.5")])
def test_seeds_out_of_range(seeds, message):
    with pytest.raises(OptionError, match=message): make_generators(seeds, 3)


@pytest.fixture(scope="module")
def model():
    model = GPT(GPTConfig(n_layer=2, n_head=4, n_embd=64, block_size=96, vocab_sizes=[LAYOUT.first_vocab], swiglu_multiple_of=32)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for o in model.parameters():
            if o.ndim>1: o.normal_(0, .15, generator=generator)
    return model

@pytest.fixture(scope="module")
def prompts():
    generator = torch.Generator().manual_seed(1)
    return [torch.cat([torch.randint(17, 21, (n,), generator=generator), torch.tensor([21])]) for n in (3, 11, 6, 1, 8)]

@pytest.fixture(scope="module")
def speakers(): return F.normalize(torch.randn(5, 256, generator=torch.Generator().manual_seed(2)), dim=-1)

@torch.no_grad()
def by_hand(model, prompt, speaker, n, guidance, prompt_guidance=1.):
    "Greedy, without a cache, each branch by itself."
    ids,nobody = prompt, torch.zeros(1,256)
    while len(ids)<len(prompt)+n and ids[-1]!=LAYOUT.end_of_audio:
        silent = torch.cat([torch.full_like(prompt, LAYOUT.end_of_text), ids[len(prompt):]])
        cond,no_speaker,no_prompt = (model(i[None,None], s)[0][0,-1] for i,s in ((ids,speaker[None]), (ids,nobody), (silent,speaker[None])))
        ids = torch.cat([ids, apply_prompt_guidance(cond, no_speaker, no_prompt, guidance, prompt_guidance).argmax()[None]])
    return ids

@pytest.mark.parametrize("guidance,prompt_guidance", [(1.,None), (3.,None), (1.,2.), (3.,2.)])
def test_cached_batch_equals_generation_by_hand(model, prompts, speakers, guidance, prompt_guidance):
    made = generate(model, prompts, speakers, layout=LAYOUT, guidance=guidance, prompt_guidance=prompt_guidance, temperature=0, max_new_tokens=30)
    for o,prompt,speaker in zip(made, prompts, speakers):
        assert o.ids.tolist()==by_hand(model, prompt, speaker, 30, guidance, prompt_guidance or 1.).tolist()
        assert o.finished==(o.ids[-1]==LAYOUT.end_of_audio)

@pytest.mark.parametrize("options", [dict(), dict(guidance=1.), dict(prompt_guidance=2.), dict(temperature=1.5, top_k=5, top_p=None), dict(constrain=True)])
def test_a_seed_gives_the_same_tokens_alone_or_in_a_batch(model, prompts, speakers, options):
    together = generate(model, prompts, speakers, layout=LAYOUT, seeds=[1,2,3,4,5], **options)
    again = generate(model, prompts, speakers, layout=LAYOUT, seeds=[1,2,3,4,5], **options)
    turned = generate(model, prompts[::-1], speakers.flip(0), layout=LAYOUT, seeds=[5,4,3,2,1], **options)[::-1]
    for i in range(5):
        alone, = generate(model, prompts[i:i+1], speakers[i:i+1], layout=LAYOUT, seeds=[i+1], **options)
        for o in (together[i], again[i], turned[i]): assert torch.equal(o.ids, alone.ids) and o.finished==alone.finished

def test_fresh_seeds_differ(model, prompts, speakers):
    a,b = (generate(model, prompts[:1], speakers[:1], layout=LAYOUT, constrain=True, temperature=2., top_p=None, seeds=[None])[0].ids for _ in range(2))
    assert a.tolist()!=b.tolist() or len(a)<12

def test_unconditional_is_a_speaker_of_zeros(model, prompts):
    nobody = torch.zeros(1,256)
    a,b = (generate(model, prompts[:1], nobody, layout=LAYOUT, seeds=[4], guidance=g)[0].ids for g in (1.,5.))
    assert torch.equal(a,b)

@pytest.fixture
def work(model, monkeypatch):
    "Positions that each pass of the model works on, in the order of the passes."
    seen,plain = [],type(model.transformer.h[0].attn.c_attn).forward
    def watched(self, x):
        if self is model.transformer.h[0].attn.c_attn: seen.append(x.numel()//x.shape[-1])
        return plain(self, x)
    monkeypatch.setattr(type(model.transformer.h[0].attn.c_attn), "forward", watched)
    return seen

def test_no_branch_without_guidance(model, prompts, speakers, work):
    for guidance,prompt_guidance,branches in ((1,None,1), (3.,None,2), (1.,2.,2), (3.,2.,3), (1,1,1)):
        work.clear()
        generate(model, prompts[:2], speakers[:2], layout=LAYOUT, guidance=guidance, prompt_guidance=prompt_guidance, seeds=[1,2], max_new_tokens=2)
        assert work[0]==branches*(len(prompts[0])+len(prompts[1])) and work[1]==2*branches

def test_no_work_on_padding_and_finished_rows_leave_the_batch(model, prompts, speakers, work):
    made = generate(model, prompts, speakers, layout=LAYOUT, guidance=1., seeds=[1,2,3,4,5], constrain=True)
    lengths = [len(o.ids)-len(p) for o,p in zip(made, prompts)]
    assert any(o.finished for o in made)
    assert work==[sum(map(len, prompts))] + [sum(n>step for n in lengths) for step in range(1, max(lengths))]

def test_constrained_tokens_take_turns(model, prompts, speakers):
    for o,prompt in zip(generate(model, prompts, speakers, layout=LAYOUT, seeds=[1,2,3,4,5], constrain=True, temperature=3., top_p=None), prompts):
        made = o.ids[len(prompt):].tolist()
        for i,token in enumerate(made): assert token//8==i%2 or (i%2==0 and i==len(made)-1 and token==16)

def test_constrain_goes_on_where_the_prompt_stops(model, speakers):
    made, = generate(model, [torch.tensor([17,21,3])], speakers[:1], layout=LAYOUT, seeds=[1], constrain=True, max_new_tokens=1)
    assert 8<=made.ids[-1]<16
    assert codebook_mask(LAYOUT, 22).isfinite().sum(1).tolist()==[9,8]

def test_never_past_the_context(model, speakers):
    prompts = [torch.full((90,), 17), torch.full((20,), 18), torch.full((95,), 19)]
    lively = dict(layout=LAYOUT, seeds=[1,2,3], temperature=5., top_p=None)
    for o in generate(model, prompts, speakers[:3], **lively): assert len(o.ids)<=96 and (o.finished or len(o.ids)==96)
    steps = list(generate_steps(model, prompts[:1], speakers[:1], max_new_tokens=1000, layout=LAYOUT, seeds=1, constrain=True))
    assert len(steps)<=6

def test_max_new_tokens_marks_the_row(model, prompts, speakers):
    for o,p in zip(generate(model, prompts, speakers, layout=LAYOUT, seeds=[1,2,3,4,5], max_new_tokens=3, constrain=True), prompts):
        assert len(o.ids)-len(p)<=3 and o.finished==(o.ids[-1]==16)

def test_progress(model, prompts, speakers):
    calls = []
    made = generate(model, prompts, speakers, layout=LAYOUT, seeds=[1,2,3,4,5], on_progress=lambda *o: calls.append(o))
    assert [o[0] for o in calls]==list(range(1, max(len(o.ids)-len(p) for o,p in zip(made, prompts))+1)) and calls[0][1]==5

def test_what_the_model_cannot_take(model, prompts, speakers):
    for bad,who,message in (([torch.full((96,), 17)], speakers[:1], "use 1 to 95 tokens"), ([torch.tensor([], dtype=torch.long)], speakers[:1], "use 1 to 95 tokens"),
            (prompts, speakers[:2], "2 speakers for 5 texts"), ([], speakers[:0], "there are no prompts"), ([torch.tensor([17,22])], speakers[:1], "token 22")):
        with pytest.raises(OptionError, match=message): generate(model, bad, who, layout=LAYOUT)

def test_logits_that_are_not_finite(model, prompts, speakers):
    with pytest.raises(MetaVoiceError, match="aren't finite"): generate(model, prompts[:1], speakers[:1]*torch.nan, layout=LAYOUT)

def test_nothing_global_changes(model, prompts, speakers):
    before = torch.get_rng_state()
    generate(model, prompts, speakers, layout=LAYOUT, seeds=[1,None,3,4,5], max_new_tokens=5)
    assert torch.equal(before, torch.get_rng_state()) and torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


# requests that come and go

@pytest.fixture(scope="module")
def many(prompts, speakers):
    "Twelve requests and what each gives alone."
    return [GenerationRequest(prompts[i%5], speakers[(i*3)%5], seed=i) for i in range(12)]

def alone(model, request, **options):
    made, = generate(model, [request.prompt], request.speaker[None], layout=LAYOUT, seeds=[request.seed], **options)
    return made

LIVELY = dict(constrain=True, temperature=1.5)

@pytest.mark.parametrize("max_rows,options", [(1, dict()), (3, dict(prompt_guidance=2., sync_every=7)), (5, dict(guidance=1.)), (40, dict(sync_every=16, guidance=1.))])
def test_a_request_gives_the_same_whoever_comes_and_goes(model, many, max_rows, options):
    found = dict(generate_stream(model, iter(many), layout=LAYOUT, max_rows=max_rows, **LIVELY, **options))
    assert sorted(found)==list(range(12))
    options.pop("look", None)
    for i,made in found.items():
        right = alone(model, many[i], **LIVELY, **options)
        assert torch.equal(made.ids, right.ids) and made.finished==right.finished

def test_a_freed_place_is_taken_at_once(model, many, work):
    made = dict(generate_stream(model, many, layout=LAYOUT, max_rows=4, guidance=1., **LIVELY))
    lengths = [len(made[i].ids)-len(many[i].prompt) for i in range(12)]
    assert len(set(lengths))>3
    prefilled = [n for n in work if n>4]
    assert sum(work) == sum(len(o.prompt) for o in many) + sum(n-1 for n in lengths), "every position is worked on once"
    assert len(work)-len(prefilled) < sum(lengths)/4 + max(lengths), "the places stay filled"

def test_requests_are_asked_for_when_there_is_a_place(model, many):
    asked,ended = [],[]
    def requests():
        for i,o in enumerate(many): asked.append((i, len(ended))); yield o
    for index,made in generate_stream(model, requests(), layout=LAYOUT, max_rows=3, **LIVELY): ended.append(index)
    assert all(i-done<3 for i,done in asked) and [i for i,_ in asked]==list(range(12))

def test_nothing_waits_at_the_moment(model, many):
    queue,late = [many[0]],[many[3], many[4]]
    def requests():
        while queue or late or len(ended)<3:
            if len(seen)>=4 and late: queue.append(late.pop(0)) # they come while the first one is being spoken
            yield queue.pop(0) if queue else None
    seen,ended = [],{}
    for index,made in generate_stream(model, requests(), layout=LAYOUT, on_tokens=lambda i,t: seen.append((i, *t)), **LIVELY): ended[index] = made
    for i,request in zip(range(3), (many[0], many[3], many[4])):
        assert torch.equal(ended[i].ids, alone(model, request, **LIVELY).ids)
        assert [t for n,t in seen if n==i]==ended[i].ids[len(request.prompt):].tolist(), "every token is told of, in order"

def test_no_requests(model): assert list(generate_stream(model, [], layout=LAYOUT))==list(generate_stream(model, iter([None, None]), layout=LAYOUT))==[]

@pytest.mark.parametrize("look", [1, 5])
def test_cancelled_rows_give_up_their_places(model, many, sync_every):
    calls = [0]
    def gone(): calls[0] += 1; return calls[0]>3
    stop_message = GenerationRequest(many[0].prompt, many[0].speaker, 1000, cancelled=gone)
    options = dict(layout=LAYOUT, sync_every=sync_every, temperature=3., top_p=None, constrain=True)
    order = list(generate_stream(model, [stop_message, many[1], many[2]], max_rows=2, **options))
    found = dict(order)
    assert order[0][0]==0 and not found[0].finished and len(found[0].ids)-len(many[0].prompt)<=3*sync_every
    for i in (1,2): assert torch.equal(found[i].ids, alone(model, many[i], **{k: v for k,v in options.items() if k not in ('layout','look')}).ids)

def test_cancelled_before_it_began(model, many):
    never = GenerationRequest(many[0].prompt, many[0].speaker, 1, cancelled=lambda: True)
    assert [i for i,o in generate_stream(model, [never, never], layout=LAYOUT, max_rows=1)]==[0,1]

@pytest.mark.parametrize("bad,message", [(dict(max_rows=0), "max_rows is 0"), (dict(guidance=0), "guidance is 0")])
def test_streams_refused(model, many, bad, message):
    with pytest.raises(OptionError, match=message): list(generate_stream(model, many, layout=LAYOUT, **bad))

def test_a_bad_request_is_refused(model, many):
    with pytest.raises(OptionError, match="token 22"): list(generate_stream(model, [many[0], GenerationRequest(torch.tensor([17,22]), many[0].speaker)], layout=LAYOUT))
    with pytest.raises(OptionError, match="seed is -1"): list(generate_stream(model, [GenerationRequest(many[0].prompt, many[0].speaker, -1)], layout=LAYOUT))


# compiled steps

def test_a_compiled_step_gives_the_same(model, many, monkeypatch, tmp_path):
    "As one graph without branches, made once for rows that come and go and buffers that grow; run by torch's own operations, so that no compiler is needed."
    import torch._dynamo
    graphs, real = [], torch.compile
    def backend(graph, inputs): graphs.append(graph); return graph.forward
    monkeypatch.setattr(torch, "compile", lambda f, *, fullgraph, mode: real(f, fullgraph=fullgraph, backend=backend))
    monkeypatch.setenv("METAVOICE_CACHE", str(tmp_path)); monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setattr(model, "compiled", None); monkeypatch.setattr(model, "compiling", True)
    cache = model.cache
    def small_blocks(*args): made = cache(*args); made.block = 16; made._keys,made._values = ([o[:,:,:16].clone() for o in b] for b in (made._keys, made._values)); made.size = 16; return made
    monkeypatch.setattr(model, "cache", small_blocks)
    try:
        found = dict(generate_stream(model, many[:5], layout=LAYOUT, max_rows=3, **LIVELY))
        again = dict(generate_stream(model, many[:5], layout=LAYOUT, max_rows=3, **LIVELY))
    finally: torch._dynamo.reset()
    assert len(graphs)==1 and max(len(o.ids) for o in found.values())>33
    assert all(torch.equal(found[i].ids, again[i].ids) for i in found)
    monkeypatch.setattr(model, "compiling", False)
    for i,o in found.items(): assert torch.equal(o.ids, alone(model, many[i], **LIVELY).ids)

def test_what_cannot_be_compiled_is_said(model, many, monkeypatch, tmp_path):
    import torch._dynamo
    real = torch.compile
    def backend(graph, inputs): raise RuntimeError("no compiler here")
    monkeypatch.setattr(torch, "compile", lambda f, *, fullgraph, mode: real(f, fullgraph=fullgraph, backend=backend))
    monkeypatch.setenv("METAVOICE_CACHE", str(tmp_path))
    monkeypatch.setattr(model, "compiled", None); monkeypatch.setattr(model, "compiling", True)
    try:
        with pytest.raises(OptionError, match="can't compile here .*; use compile=False"): list(generate_stream(model, many[:1], layout=LAYOUT, **LIVELY))
    finally: torch._dynamo.reset()

def test_compiled_where_it_pays(model, monkeypatch):
    from metavoice.models.decode_step import COMPILE_AFTER, should_compile
    for wish in (True, False): monkeypatch.setattr(model, "compiling", wish); assert should_compile(model) is wish
    monkeypatch.setattr(model, "compiling", None); monkeypatch.setattr(model, "steps_taken", COMPILE_AFTER)
    assert should_compile(model) is False, "never on a CPU"


COMPILED = """
import json, torch
from metavoice.core import TokenLayout
from metavoice.gpt import GPT, GPTConfig
from metavoice.sampling import generate
torch.manual_seed(0)
layout = TokenLayout(codebook_size=8, text_ranks=4)
model = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=32, block_size=64, vocab_sizes=[layout.first_vocab], swiglu_multiple_of=32)).eval().requires_grad_(False)
model.compiling = True
made, = generate(model, [torch.tensor([17, 18, 21])], torch.zeros(1, 256), layout=layout, seeds=[1], constrain=True, max_new_tokens=8)
from torch._dynamo.utils import counters
print(json.dumps([counters["inductor"]["fxgraph_cache_hit"], made.ids.tolist()]))
"""

@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")
def test_the_next_process_need_not_compile_again(tmp_path):
    env = {k: v for k, v in os.environ.items() if not k.startswith("TORCHINDUCTOR")} | dict(METAVOICE_CACHE=str(tmp_path), PYTHONPATH=str(Path(__file__).parents[1]))
    def run(): return json.loads(subprocess.run([sys.executable, "-c", COMPILED], env=env, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
    (hits, made), (later, again) = run(), run()
    assert (hits, later > 0) == (0, True) and made == again and os.listdir(tmp_path) == ["compiled"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("compiling", [False, True])
def test_looking_seldom_on_a_gpu(model, many, compiling, monkeypatch, tmp_path):
    import copy
    monkeypatch.setenv("METAVOICE_CACHE", str(tmp_path))
    there = copy.deepcopy(model).cuda().requires_grad_(False)
    there.compiling = compiling
    for i,o in generate_stream(there, many[:6], layout=LAYOUT, max_rows=4, **LIVELY): assert torch.equal(o.ids, alone(model, many[i], **LIVELY).ids)
