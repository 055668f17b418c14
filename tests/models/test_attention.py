"Attention, split and merged, against the plain equation; the cache against the whole sequence."
import pytest
import torch
import torch.nn.functional as F

from metavoice.core.errors import OptionError
from metavoice.models.attention import (
    KEY_TILE, attention, attention_mask, flash_attention, from_key_tiles, merge_splits, partial_attention,
    pick_attention_kernel, pick_cache_dtype, plain_attention, single_query_attention, split_attention,
    to_key_tiles
)
from metavoice.models.kv_cache import KVCache


@pytest.fixture
def generator(): return torch.Generator().manual_seed(0)

def qkv(generator, batch=5, heads=4, T=1, S=50, d=16):
    return [torch.randn(batch, heads, n, d, generator=generator) for n in (T,S,S)]

LENGTHS = torch.tensor([50, 3, 17, 0, 26])

def plain(q, k, v, lengths, causal):
    "The same once more, in float64 and with torch's own softmax over each row's keys alone."
    out = torch.zeros_like(q, dtype=torch.float64)
    for b in range(len(q)):
        n = k.shape[2] if lengths is None else int(lengths[b])
        for t in range(q.shape[2]):
            end = n-q.shape[2]+t+1 if causal else n
            if end<=0: continue
            scores = q[b,:,t:t+1].double() @ k[b,:,:end].double().transpose(-1,-2) / q.shape[-1]**.5
            out[b,:,t:t+1] = scores.softmax(-1) @ v[b,:,:end].double()
    return out.float()

@pytest.mark.parametrize("T", [1, 3, 50])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("lengths", [None, LENGTHS])
def test_every_way_is_the_same(generator, T, causal, lengths):
    q,k,v = qkv(generator, T=T)
    right = plain(q, k, v, lengths, causal)
    torch.testing.assert_close(plain_attention(q, k, v, lengths, causal), right, atol=1e-5, rtol=0)
    torch.testing.assert_close(attention(q, k, v, lengths, causal), right, atol=1e-5, rtol=0)
    for splits in (1, 2, 4, 7, 50, 99):
        torch.testing.assert_close(split_attention(q, k, v, lengths, splits, causal), right, atol=1e-5, rtol=0)

def test_one_number_for_all_rows(generator):
    q,k,v = qkv(generator, T=3)
    for causal in (False, True):
        torch.testing.assert_close(attention(q, k, v, 26, causal), plain(q, k[:,:,:26], v[:,:,:26], None, causal), atol=1e-5, rtol=0)

def test_a_mask_made_before(generator):
    q,k,v = qkv(generator, T=3)
    mask = attention_mask(LENGTHS, 3, 50, True)
    torch.testing.assert_close(attention(q, k, v, LENGTHS, True, mask), attention(q, k, v, LENGTHS, True), atol=0, rtol=0)

def test_an_empty_split_weighs_nothing(generator):
    q,k,v = qkv(generator)
    out,lse = partial_attention(q, k, v, torch.zeros(1, 1, 1, 50, dtype=torch.bool))
    assert (out==0).all() and lse.isneginf().all()
    full = partial_attention(q, k, v)
    merged = merge_splits(torch.stack([out, full[0]]), torch.stack([lse, full[1]]))
    torch.testing.assert_close(merged, full[0], atol=1e-6, rtol=0)
    with pytest.raises(OptionError, match="splits is 0"): split_attention(q, k, v, splits=0)

def test_gradients_flow(generator):
    q,k,v = (o.requires_grad_() for o in qkv(generator, T=50))
    attention(q, k, v, causal=True).sum().backward()
    assert all(o.grad.isfinite().all() for o in (q,k,v))

def test_flash_attn_is_called_the_right_way_round(generator):
    q,k,v = qkv(generator, T=3)
    def kernel(q, k_cache, v_cache, cache_seqlens, causal): # the signature of flash_attn_with_kvcache, heads after time
        assert q.shape==(5,3,4,16) and k_cache.shape==v_cache.shape==(5,50,4,16) and cache_seqlens.dtype==torch.int32
        return plain(*(o.transpose(1,2) for o in (q, k_cache, v_cache)), cache_seqlens, causal).transpose(1,2)
    for lengths in (None, LENGTHS):
        torch.testing.assert_close(flash_attention(q, k, v, lengths, True, kernel), plain(q, k, v, lengths, True), atol=0, rtol=0)

def test_which_kernel():
    assert pick_attention_kernel('mps', torch.float16)==pick_attention_kernel('cpu', torch.bfloat16)=='sdpa' and pick_attention_kernel('cpu') in ('sdpa','rows')
    assert pick_cache_dtype('mps', torch.bfloat16)==torch.bfloat16 and pick_cache_dtype('cpu', torch.float32)==torch.float32

@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu(generator):
    q,k,v = qkv(generator, T=3, d=64)
    for dtype in (torch.float32, torch.float16):
        for lengths in (None, LENGTHS):
            out = attention(*(o.to('cuda', dtype) for o in (q,k,v)), None if lengths is None else lengths.cuda(), True)
            torch.testing.assert_close(out.float().cpu(), plain(q, k, v, lengths, True), atol=1e-2, rtol=0)


def run(cache, layers, prompts, steps, leave_at, generator):
    "Attention of every layer over cached rows, beside the same over whole rows."
    history = [list(prompts) for _ in range(layers)] # (heads, time, d) for each layer and row
    T = max(p.shape[1] for p in prompts)
    for step in range(-1, steps):
        if step==leave_at: cache.select([2,0]); history = [[h[2],h[0]] for h in history]
        for layer in range(layers):
            if step<0: x = torch.stack([F.pad(p, (0,0,0,T-p.shape[1]), value=7.) for p in prompts])
            else:
                x = torch.randn(cache.batch, 4, 3 if step==steps-1 else 1, 8, generator=generator)
                history[layer] = [torch.cat([h,o], 1) for h,o in zip(history[layer], x)]
            out = cache.attend(layer, x, x, x)
            for row,h in enumerate(history[layer]):
                n = h.shape[1] if step<0 else x.shape[2]
                yield out[row,:,:n], plain(h[None,:,-n:], h[None], h[None], None, True)[0]
        cache.advance([p.shape[1] for p in prompts] if step<0 else x.shape[2])

@pytest.mark.parametrize("lengths", [(7,2,11), (6,6,6), (1,1,9)])
def test_cache_equals_whole_sequences(generator, lengths):
    cache = KVCache(2, 3, 4, 40, 8)
    address = cache.keys[0].data_ptr()
    for got,right in run(cache, 2, [torch.randn(4,n,8, generator=generator) for n in lengths], 15, 9, generator):
        torch.testing.assert_close(got, right, atol=1e-5, rtol=0)
    assert cache.keys[0].data_ptr()==address and cache.counts==[lengths[2]+17, lengths[0]+17]

def test_views_of_the_filled_part(generator):
    cache = KVCache(1, 2, 4, 12, 8)
    x = torch.randn(2, 4, 5, 8, generator=generator)
    k,v = cache.update(0, x, 2*x)
    assert k.shape==(2,4,5,8) and k.data_ptr()==cache.keys[0].data_ptr() and torch.equal(v, 2*x)
    cache.advance(torch.tensor([5,3]))
    assert cache.lengths.tolist()==[5,3] and cache.positions(2).tolist()==[[5,6],[3,4]] and cache.seen(2).tolist()==[7,5]
    new = torch.randn(2, 4, 1, 8, generator=generator)
    k,_ = cache.update(0, new, new)
    assert torch.equal(k[1,:,3], new[1,:,0]) and torch.equal(k[0,:,5], new[0,:,0]) and torch.equal(k[0,:,:5], x[0])

def test_no_mask_for_even_rows():
    cache = KVCache(1, 2, 4, 12, 8)
    cache.advance(4)
    assert cache.even and cache.seen(1) is None and cache.positions(2).tolist()==[[4,5]]
    cache.advance([1,2]); assert not cache.even
    cache.select([1]); assert cache.even and cache.counts==[6]

def test_what_does_not_fit():
    cache = KVCache(1, 2, 4, 6, 8)
    with pytest.raises(OptionError, match="7 positions don't fit into a cache of 6"): cache.update(0, torch.zeros(2,4,7,8), torch.zeros(2,4,7,8))
    with pytest.raises(OptionError, match="3 counts for a cache of 2 rows"): cache.advance([1,2,3])
    with pytest.raises(OptionError, match="3 rows wanted of a cache of 2"): cache.select([0,1,1])

def test_half_precision():
    cache = KVCache(1, 2, 4, 6, 8, dtype=torch.bfloat16)
    x = torch.randn(2, 4, 3, 8).bfloat16()
    cache.attend(0, x, x, x); cache.advance([3,1])
    assert cache.attend(0, x[:,:,:1], x[:,:,:1], x[:,:,:1]).dtype==torch.bfloat16

@pytest.mark.parametrize("dtype,close", [(torch.float32, 1e-5), (torch.float16, 3e-3)])
def test_single_queries(generator, dtype, close):
    q,k,v = qkv(generator)
    rows = [o.to(dtype) for o in (q,k,v)]
    torch.testing.assert_close(single_query_attention(*rows, attention_mask(LENGTHS, 1, 50)).float(), plain(q, k, v, LENGTHS, False), atol=close, rtol=0)
    part = single_query_attention(rows[0][1:3], rows[1][1:3,:,:26], rows[2][1:3,:,:26]) # rows and positions out of larger buffers
    torch.testing.assert_close(part.float(), plain(q[1:3], k[1:3,:,:26], v[1:3,:,:26], None, False), atol=close, rtol=0)
    wide = to_key_tiles(rows[1])
    torch.testing.assert_close(single_query_attention(rows[0], wide, rows[2], attention_mask(LENGTHS, 1, 50)).float(), plain(q, k, v, LENGTHS, False), atol=close, rtol=0)
    torch.testing.assert_close(single_query_attention(rows[0][1:3], wide[1:3], rows[2][1:3,:,:26]), part, atol=close, rtol=0)
    odd = rows[2].transpose(1,2).contiguous().transpose(1,2) # values whose heads don't lie apart
    torch.testing.assert_close(single_query_attention(rows[0], rows[1], odd).float(), plain(q, k, v, None, False), atol=close, rtol=0)
    rows[0][0] = float('nan') # what isn't a number isn't hidden
    assert single_query_attention(*rows, attention_mask(LENGTHS, 1, 50))[0].isnan().all()

def test_cached_in_another_format(generator):
    cache = KVCache(2, 3, 4, 40, 8, dtype=torch.float16)
    half = lambda x: x.bfloat16().float()
    for got,right in run(cache, 2, [half(torch.randn(4,n,8, generator=generator)) for n in (7,2,11)], 15, 9, generator):
        torch.testing.assert_close(got, right, atol=5e-3, rtol=0)
    x = torch.randn(2, 4, 1, 8).bfloat16()
    assert cache.attend(0, x, x, x).dtype==torch.bfloat16

@pytest.mark.parametrize("lengths", [(7,2,11), (6,6,6), (120,127,1), (250,3,260)])
def test_keys_in_spans(generator, lengths):
    "Across the borders of spans and of what there is memory for, rows that leave, and several tokens at once."
    cache, half = KVCache(2, 3, 4, 290, 8, dtype=torch.float16, spans=True), lambda x: x.half().float()
    for got,right in run(cache, 2, [half(torch.randn(4,n,8, generator=generator)) for n in lengths], 15, 9, generator):
        torch.testing.assert_close(got, right, atol=5e-3, rtol=0)
    assert cache.keys[0].shape==(2, 4, -(-cache.size//KEY_TILE), 8, KEY_TILE) and cache.counts==[lengths[2]+17, lengths[0]+17]

def test_newcomers_and_packed_rows_in_spans(generator):
    caches = [KVCache(1, 3, 4, 600, 8, dtype=torch.float16, spans=o) for o in (True, False)]
    def both(cache, generator):
        x = lambda *shape: torch.randn(*shape, 8, generator=generator)
        cache.select([0]); first = x(1,4,130); cache.attend(0, first, first, first); cache.advance(130)
        new, packed = cache.behind(2), x(1,4,205)
        yield new.attend(0, packed, packed, packed, lengths=[200,5]); new.advance([200,5])
        more = x(1,4,63); yield new.attend(0, more, more, more, lengths=[60,3]); new.advance([60,3]) # behind what is there, over the memory's edge
        cache.take(new)
        for _ in range(3):
            qkv = x(cache.batch,3,4); yield cache.attend_token(0, qkv); cache.advance(1)
    for a,b in zip(*(both(cache, torch.Generator().manual_seed(1)) for cache in caches)): torch.testing.assert_close(a, b, atol=5e-3, rtol=0)
    spans, plain_keys = (o.keys[0] for o in caches)
    assert caches[0].counts==[133,263,11] and torch.equal(from_key_tiles(spans, 11), plain_keys[:,:,:11])
