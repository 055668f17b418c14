"Sampling against golden probabilities, the plain algorithms and the frequencies of draws."
import pytest
import torch

from metavoice.core.errors import OptionError
from metavoice.core.layout import TokenLayout
from metavoice.generate.sampling import (
    apply_guidance,
    apply_prompt_guidance,
    codebook_mask,
    keep_top_k,
    make_generators,
    probabilities,
    sample,
    sorted_top_p,
    top_p_probabilities,
)

LAYOUT = TokenLayout(codebook_size=8, text_ranks=4)


def close(a, b, tolerance):
    torch.testing.assert_close(a, torch.as_tensor(b), atol=tolerance, rtol=0)


def test_golden_guidance(expected):
    cond, uncond = torch.tensor(expected["cfg_cond"]), torch.tensor(expected["cfg_uncond"])
    close(apply_guidance(cond, uncond, float(expected["cfg_scale"])), expected["cfg_out"], 1e-5)


def test_golden_top_p(expected):
    logits = torch.tensor(expected["tp_logits"])
    for p, probs in zip(expected["tp_p"].tolist(), expected["tp_probs"]):
        close(probabilities(logits, .8, top_p=p), probs, 1e-5)
        close(sorted_top_p(logits / .8, p), probs, 1e-5)


def test_golden_top_k(expected):
    logits = torch.tensor(expected["tp_logits"])
    close(probabilities(logits, top_k=200), expected["tk_probs"], 1e-5)
    close(keep_top_k(logits, 200).softmax(-1), expected["tk_probs"], 1e-5)


def test_prompt_guidance_by_hand():
    guided = apply_prompt_guidance(torch.tensor([1., 2]), torch.tensor([3., 4]), torch.tensor([5., 7]), 3., 2.)
    close(guided, [4*1 - 2*3 - 5, 4*2 - 2*4 - 7.], 1e-6)


@pytest.mark.parametrize("p", [1e-6, .2, .9, .95, .999, 1.])
def test_top_p_equals_the_sorted_version(p):
    generator = torch.Generator().manual_seed(0)
    for sharpness in (.01, 1, 5, 50):
        logits = sharpness * torch.randn(7, 3, 2562, generator=generator)
        close(top_p_probabilities(logits, p), sorted_top_p(logits, p), 1e-6)


def test_the_likeliest_token_always_stays():
    logits = torch.tensor([[0., 5, 1]])
    assert top_p_probabilities(logits, 1e-9).tolist() == [[0, 1, 0]]
    assert probabilities(logits, 0).tolist() == [[0, 1, 0]]
    assert probabilities(logits, top_k=1).tolist() == [[0, 1, 0]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits(dtype):
    probs = probabilities(torch.randn(3, 2562).to(dtype), .9, 50, .9)
    assert probs.dtype == torch.float32
    close(probs.sum(-1), torch.ones(3), 1e-5)


def test_draws_follow_the_probabilities():
    "By a chi-squared test that one seed in a thousand fails."
    probs = torch.tensor([.5, .3, .15, .05, 0])
    drawn = sample(probs.expand(1, 20000, 5), make_generators([3], 1))[0].bincount(minlength=5)
    assert drawn[4] == 0
    assert ((drawn - 20000 * probs)[:4]**2 / (20000 * probs[:4])).sum() < 16.3


def test_a_row_draws_the_same_alone():
    probs = torch.randn(4, 6, 100).softmax(-1)
    together = sample(probs, make_generators([5, 6, 7, 8], 4))
    for i in range(4):
        assert torch.equal(sample(probs[i:i+1], make_generators([5 + i], 1))[0], together[i])


def test_probabilities_that_are_not_finite_give_minus_one():
    assert sample(torch.tensor([[.5, .5], [torch.nan, 1.]]), make_generators([1, 1], 2))[1] == -1


@pytest.mark.parametrize("seeds,message", [
    ([1, 2], "2 seeds for 3 texts"), ([1, 2, -3], "seed is -3"), ([1, 2, 2**32], "seed is 4294967296"),
    (1.5, "seed is 1.5"),
])
def test_seeds_out_of_range(seeds, message):
    with pytest.raises(OptionError, match=message):
        make_generators(seeds, 3)


def test_codebook_mask_allows_one_codebook():
    assert codebook_mask(LAYOUT, 22).isfinite().sum(1).tolist() == [9, 8]
