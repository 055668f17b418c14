"Attention kernels: plain, split, single-query and flash-attn's, compared with attention computed in float64."
import pytest
import torch

from metavoice.core.errors import OptionError
from metavoice.models.attention import (
    attention,
    attention_mask,
    flash_attention,
    from_key_tiles,
    merge_splits,
    partial_attention,
    pick_attention_kernel,
    pick_cache_dtype,
    plain_attention,
    single_query_attention,
    split_attention,
    to_key_tiles,
)

LENGTHS = torch.tensor([50, 3, 17, 0, 26])


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def random_qkv(generator, batch=5, heads=4, T=1, S=50, d=16):
    return [torch.randn(batch, heads, n, d, generator=generator) for n in (T, S, S)]


def assert_close(got, expected, atol=1e-5):
    torch.testing.assert_close(got, expected, atol=atol, rtol=0)


@pytest.mark.parametrize("T", [1, 3, 50])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("lengths", [None, LENGTHS])
def test_all_implementations_agree(generator, reference_attention, T, causal, lengths):
    q, k, v = random_qkv(generator, T=T)
    expected = reference_attention(q, k, v, lengths, causal)
    assert_close(plain_attention(q, k, v, lengths, causal), expected)
    assert_close(attention(q, k, v, lengths, causal), expected)
    for splits in (1, 2, 4, 7, 50, 99):
        assert_close(split_attention(q, k, v, lengths, splits, causal), expected)


def test_one_length_for_all_rows(generator, reference_attention):
    q, k, v = random_qkv(generator, T=3)
    for causal in (False, True):
        expected = reference_attention(q, k[:, :, :26], v[:, :, :26], None, causal)
        assert_close(attention(q, k, v, 26, causal), expected)


def test_given_mask_changes_nothing(generator):
    q, k, v = random_qkv(generator, T=3)
    mask = attention_mask(LENGTHS, 3, 50, True)
    assert_close(attention(q, k, v, LENGTHS, True, mask), attention(q, k, v, LENGTHS, True), atol=0)


def test_empty_split_has_no_weight(generator):
    q, k, v = random_qkv(generator)
    out, lse = partial_attention(q, k, v, torch.zeros(1, 1, 1, 50, dtype=torch.bool))
    assert (out == 0).all() and lse.isneginf().all()
    full = partial_attention(q, k, v)
    merged = merge_splits(torch.stack([out, full[0]]), torch.stack([lse, full[1]]))
    assert_close(merged, full[0], atol=1e-6)


def test_split_count_below_one_is_rejected(generator):
    q, k, v = random_qkv(generator)
    with pytest.raises(OptionError, match="splits is 0"):
        split_attention(q, k, v, splits=0)


def test_gradients_are_finite(generator):
    q, k, v = (o.requires_grad_() for o in random_qkv(generator, T=50))
    attention(q, k, v, causal=True).sum().backward()
    assert all(o.grad.isfinite().all() for o in (q, k, v))


def test_flash_attn_arguments(generator, reference_attention):
    q, k, v = random_qkv(generator, T=3)

    def kernel(q, k_cache, v_cache, cache_seqlens, causal):  # the signature of flash_attn_with_kvcache
        assert q.shape == (5, 3, 4, 16) and k_cache.shape == v_cache.shape == (5, 50, 4, 16)
        assert cache_seqlens.dtype == torch.int32
        q, k, v = (o.transpose(1, 2) for o in (q, k_cache, v_cache))
        return reference_attention(q, k, v, cache_seqlens, causal).transpose(1, 2)

    for lengths in (None, LENGTHS):
        expected = reference_attention(q, k, v, lengths, True)
        assert_close(flash_attention(q, k, v, lengths, True, kernel), expected, atol=0)


def test_kernel_choice():
    assert pick_attention_kernel('mps', torch.float16) == pick_attention_kernel('cpu', torch.bfloat16) == 'sdpa'
    assert pick_attention_kernel('cpu') in ('sdpa', 'single_query')
    assert pick_cache_dtype('mps', torch.bfloat16) == torch.bfloat16
    assert pick_cache_dtype('cpu', torch.float32) == torch.float32


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_attention_on_a_gpu(generator, reference_attention):
    q, k, v = random_qkv(generator, T=3, d=64)
    for dtype in (torch.float32, torch.float16):
        for lengths in (None, LENGTHS):
            on_gpu = [o.to('cuda', dtype) for o in (q, k, v)]
            out = attention(*on_gpu, None if lengths is None else lengths.cuda(), True)
            assert_close(out.float().cpu(), reference_attention(q, k, v, lengths, True), atol=1e-2)


@pytest.mark.parametrize("dtype, atol", [(torch.float32, 1e-5), (torch.float16, 3e-3)])
def test_single_query_attention(generator, reference_attention, dtype, atol):
    q, k, v = random_qkv(generator)
    rows = [o.to(dtype) for o in (q, k, v)]
    mask = attention_mask(LENGTHS, 1, 50)
    expected = reference_attention(q, k, v, LENGTHS, False)
    assert_close(single_query_attention(*rows, mask).float(), expected, atol)
    # some rows and positions of larger buffers
    part = single_query_attention(rows[0][1:3], rows[1][1:3, :, :26], rows[2][1:3, :, :26])
    assert_close(part.float(), reference_attention(q[1:3], k[1:3, :, :26], v[1:3, :, :26], None, False), atol)
    # the same with keys in tiles
    tiles = to_key_tiles(rows[1])
    assert torch.equal(from_key_tiles(tiles, 50), rows[1])
    assert_close(single_query_attention(rows[0], tiles, rows[2], mask).float(), expected, atol)
    assert_close(single_query_attention(rows[0][1:3], tiles[1:3], rows[2][1:3, :, :26]), part, atol)
    # values whose heads aren't contiguous
    strided = rows[2].transpose(1, 2).contiguous().transpose(1, 2)
    out = single_query_attention(rows[0], rows[1], strided)
    assert_close(out.float(), reference_attention(q, k, v, None, False), atol)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_single_query_attention_keeps_nan(generator, dtype):
    rows = [o.to(dtype) for o in random_qkv(generator)]
    rows[0][0] = float('nan')
    assert single_query_attention(*rows, attention_mask(LENGTHS, 1, 50))[0].isnan().all()
