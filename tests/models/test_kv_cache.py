"The key-value cache compared with attention to whole sequences: lengths, tiles, views, packed prompts and errors."
import pytest
import torch
import torch.nn.functional as F

from metavoice.core.errors import OptionError
from metavoice.models.attention import KEY_TILE, from_key_tiles
from metavoice.models.kv_cache import KVCache, StaticKVCache


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def assert_close(got, expected, atol=1e-5):
    torch.testing.assert_close(got, expected, atol=atol, rtol=0)


def round_to(x, dtype):
    "The values that a number format represents, in float32."
    return x.to(dtype).float()


class Decoding:
    "A prefill and decoding steps in a cache of several layers, with the history of each row."

    def __init__(self, cache, layers, lengths, generator, dtype=torch.float32):
        prompts = [round_to(torch.randn(4, n, 8, generator=generator), dtype) for n in lengths]
        self.cache, self.generator = cache, generator
        self.history = [list(prompts) for _ in range(layers)]  # (heads, time, d) of each layer and row

    def prefill(self, reference):
        "Yield (output, expected) of each layer and row."
        prompts = self.history[0]
        T = max(p.shape[1] for p in prompts)
        x = torch.stack([F.pad(p, (0, 0, 0, T-p.shape[1]), value=7.) for p in prompts])
        for layer in range(len(self.history)):
            out = self.cache.attend(layer, x, x, x)
            for row, p in enumerate(prompts):
                yield out[row, :, :p.shape[1]], reference(p[None], p[None], p[None], None, True)[0]
        self.cache.advance([p.shape[1] for p in prompts])

    def select(self, rows):
        self.cache.select(rows)
        self.history = [[h[i] for i in rows] for h in self.history]

    def step(self, T, reference):
        "Yield (output, expected) of each layer and row after T more tokens."
        for layer, rows in enumerate(self.history):
            x = torch.randn(self.cache.batch, 4, T, 8, generator=self.generator)
            rows = self.history[layer] = [torch.cat([h, o], 1) for h, o in zip(rows, x)]
            out = self.cache.attend(layer, x, x, x)
            for row, h in enumerate(rows):
                yield out[row], reference(h[None, :, -T:], h[None], h[None], None, True)[0]
        self.cache.advance(T)


def check_decoding(decoding, reference, atol):
    "A prefill, 15 steps of which the last has three tokens, and a row that leaves on the way."
    for got, expected in decoding.prefill(reference):
        assert_close(got, expected, atol)
    for step in range(15):
        if step == 9:
            decoding.select([2, 0])
        for got, expected in decoding.step(3 if step == 14 else 1, reference):
            assert_close(got, expected, atol)


@pytest.mark.parametrize("lengths", [(7, 2, 11), (6, 6, 6), (1, 1, 9)])
def test_cached_attention_equals_whole_sequences(generator, reference_attention, lengths):
    cache = KVCache(2, 3, 4, 40, 8)
    address = cache.keys[0].data_ptr()
    check_decoding(Decoding(cache, 2, lengths, generator), reference_attention, 1e-5)
    assert cache.keys[0].data_ptr() == address and cache.counts == [lengths[2]+17, lengths[0]+17]


def test_float16_cache_of_a_bfloat16_model(generator, reference_attention):
    cache = KVCache(2, 3, 4, 40, 8, dtype=torch.float16)
    check_decoding(Decoding(cache, 2, (7, 2, 11), generator, torch.bfloat16), reference_attention, 5e-3)
    x = torch.randn(2, 4, 1, 8).bfloat16()
    assert cache.attend(0, x, x, x).dtype == torch.bfloat16


@pytest.mark.parametrize("lengths", [(7, 2, 11), (6, 6, 6), (120, 127, 1), (250, 3, 260)])
def test_keys_in_tiles(generator, reference_attention, lengths):
    "Writes cross the borders of tiles and of allocated memory."
    cache = KVCache(2, 3, 4, 290, 8, dtype=torch.float16, key_tiles=True)
    check_decoding(Decoding(cache, 2, lengths, generator, torch.float16), reference_attention, 5e-3)
    assert cache.keys[0].shape == (2, 4, -(-cache.size//KEY_TILE), 8, KEY_TILE)
    assert cache.counts == [lengths[2]+17, lengths[0]+17]


def test_update_returns_views(generator):
    cache = KVCache(1, 2, 4, 12, 8)
    x = torch.randn(2, 4, 5, 8, generator=generator)
    k, v = cache.update(0, x, 2*x)
    assert k.shape == (2, 4, 5, 8) and k.data_ptr() == cache.keys[0].data_ptr() and torch.equal(v, 2*x)
    cache.advance(torch.tensor([5, 3]))
    assert cache.lengths.tolist() == [5, 3] and cache.positions(2).tolist() == [[5, 6], [3, 4]]
    assert cache.key_lengths(2).tolist() == [7, 5]
    new = torch.randn(2, 4, 1, 8, generator=generator)
    k, _ = cache.update(0, new, new)
    assert torch.equal(k[1, :, 3], new[1, :, 0]) and torch.equal(k[0, :, 5], new[0, :, 0])
    assert torch.equal(k[0, :, :5], x[0])


def test_rows_of_one_length_need_no_mask():
    cache = KVCache(1, 2, 4, 12, 8)
    cache.advance(4)
    assert cache.uniform and cache.key_lengths(1) is None and cache.positions(2).tolist() == [[4, 5]]
    cache.advance([1, 2])
    assert not cache.uniform
    cache.select([1])
    assert cache.uniform and cache.counts == [6]


def test_errors_name_the_values():
    cache, x = KVCache(1, 2, 4, 6, 8), torch.zeros(2, 4, 7, 8)
    with pytest.raises(OptionError, match="7 positions don't fit into a cache of 6"):
        cache.update(0, x, x)
    with pytest.raises(OptionError, match="3 counts for a cache of 2 rows"):
        cache.advance([1, 2, 3])
    with pytest.raises(OptionError, match="3 rows wanted of a cache of 2"):
        cache.select([0, 1, 1])


def test_bfloat16_cache():
    cache = KVCache(1, 2, 4, 6, 8, dtype=torch.bfloat16)
    x = torch.randn(2, 4, 3, 8).bfloat16()
    cache.attend(0, x, x, x)
    cache.advance([3, 1])
    assert cache.attend(0, x[:, :, :1], x[:, :, :1], x[:, :, :1]).dtype == torch.bfloat16


def prefill_newcomers_and_step(cache, generator):
    "Yield the attention of a first row, two packed prompts that join it, and steps of all three."
    def draw(*shape):
        return torch.randn(*shape, 8, generator=generator)

    cache.select([0])
    first = draw(1, 4, 130)
    cache.attend(0, first, first, first)
    cache.advance(130)
    new, packed = cache.empty_view(2), draw(1, 4, 205)
    yield new.attend(0, packed, packed, packed, lengths=[200, 5])
    new.advance([200, 5])
    more = draw(1, 4, 63)  # crosses the end of the allocated memory
    yield new.attend(0, more, more, more, lengths=[60, 3])
    new.advance([60, 3])
    cache.merge(new)
    for _ in range(3):
        yield cache.attend_token(0, draw(cache.batch, 3, 4))
        cache.advance(1)


def test_packed_newcomers_in_tiles():
    caches = [KVCache(1, 3, 4, 600, 8, dtype=torch.float16, key_tiles=o) for o in (True, False)]
    runs = [prefill_newcomers_and_step(cache, torch.Generator().manual_seed(1)) for cache in caches]
    for in_tiles, plain in zip(*runs):
        assert_close(in_tiles, plain, atol=5e-3)
    tiles, keys = (o.keys[0] for o in caches)
    assert caches[0].counts == [133, 263, 11] and torch.equal(from_key_tiles(tiles, 11), keys[:, :, :11])


def test_rows_far_apart_take_a_call_for_each_run(generator, monkeypatch):
    cache, masked = (KVCache(1, 3, 16, 600, 128) for _ in range(2))
    for o in (cache, masked):
        o.advance([300, 300, 5])
    monkeypatch.setattr(masked, "_equal_runs", lambda k: None)
    qkv = torch.randn(3, 3, 16, 128, generator=generator)
    assert cache._equal_runs(torch.zeros(3, 16, 1, 128)) == [(0, 2, 300), (2, 3, 5)]
    assert_close(cache.attend_token(0, qkv), masked.attend_token(0, qkv), atol=1e-5)


def test_static_view_equals_the_cache(generator):
    cache, plain = (KVCache(1, 3, 4, 40, 8, block=16, paired=paired) for paired in (True, False))
    for o in (cache, plain):
        o.advance([14, 3, 9])
    for _ in range(5):
        qkv = torch.randn(3, 3, 4, 8, generator=generator)
        got = StaticKVCache(cache.pairs, cache.lengths).attend_token(0, qkv)
        assert_close(got, plain.attend_token(0, qkv), atol=1e-6)
        cache.advance(1)
        plain.advance(1)
