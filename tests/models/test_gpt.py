"Both stages compared with the logits and the loss of the released code, from released files."
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from metavoice.core.errors import BundleError
from metavoice.models.gpt import GPT, GPTConfig, assign_state_dict, init_empty_weights, load_gpt


def read_released(path):
    "The model of a released checkpoint."
    checkpoint = torch.load(path, weights_only=True)
    config = GPTConfig.from_model_args(checkpoint["model_args"], checkpoint["meta"]["speaker_emb_size"])
    return load_gpt(checkpoint["model"], config, path.name)


@pytest.fixture(scope="module")
def first(golden):
    return read_released(golden / "first_stage.pt")


@pytest.fixture(scope="module")
def second(golden):
    return read_released(golden / "second_stage.pt")


@pytest.fixture(scope="module")
def want(expected):
    return {k: torch.from_numpy(expected[k]) for k in expected if k.startswith(("fs_", "ss_"))}


def assert_close(got, wanted, tolerance):
    assert got.shape == wanted.shape
    error = ((got.float() - wanted.float()).abs().max() / wanted.float().abs().max()).item()
    assert error <= tolerance, f"relative error {error:.1e}"


@pytest.mark.parametrize("key", ("fs_cond", "fs_uncond"))
@torch.inference_mode()
def test_first_stage_logits(first, want, key):
    speaker = want["fs_spk"] if key == "fs_cond" else None
    logits, = first(want["fs_ids"][:, None].long(), speaker)
    assert_close(logits[:, want["fs_prefix"].long() - 1], want[key], 1e-4)


@torch.inference_mode()
def test_zero_speaker_is_unconditional(first, want):
    logits, = first(want["fs_ids"][:, None].long(), torch.zeros(3, 256))
    assert_close(logits[:, want["fs_prefix"].long() - 1], want["fs_uncond"], 1e-4)


@torch.inference_mode()
def test_conditional_and_unconditional_rows_in_one_batch(first, want):
    ids, speaker = want["fs_ids"][:, None].long(), want["fs_spk"]
    logits, = first(torch.cat([ids, ids]), torch.cat([speaker, torch.zeros_like(speaker)]))
    wanted = torch.cat([want["fs_cond"], want["fs_uncond"]])
    assert_close(logits[:, want["fs_prefix"].long() - 1], wanted, 1e-4)


@pytest.mark.parametrize("i", range(4))
@torch.inference_mode()
def test_prefixes_with_and_without_a_cache(first, want, i):
    n, ids, speaker = int(want["fs_prefix"][i]), want["fs_ids"][:, None].long(), want["fs_spk"]
    logits, = first(ids[..., :n], speaker)
    assert_close(logits[:, -1], want["fs_cond"][:, i], 1e-4)
    cache = first.cache(3, 64)
    if n > 1:
        first(ids[..., :n-1], speaker, cache)
    cache.advance(n - 1)
    logits, = first(ids[..., n-1:n], speaker, cache)
    assert_close(logits[:, -1], want["fs_cond"][:, i], 1e-4)


@torch.inference_mode()
def test_first_stage_loss(first, want):
    ids = want["fs_ids"].long()
    logits, = first(ids[:, None], want["fs_spk"])
    loss = F.cross_entropy(logits.flatten(0, 1), ids.roll(-1, 1).flatten())
    assert_close(loss, want["fs_loss"], 1e-4)


@torch.inference_mode()
def test_second_stage_logits(second, want):
    logits = torch.stack(second(want["ss_in"].long(), want["fs_spk"]), 1)
    assert_close(logits[:, :, ::int(want["ss_stride"])], want["ss_logits"], 2e-3)


def test_stages_are_distinguished(first, second):
    assert first.config.causal and not second.config.causal
    assert first.config.target_vocab_sizes is None and second.config.heads in ([1025] * 6, [1025])


def test_head_is_tied(first):
    assert isinstance(first, GPT)
    assert first.lm_heads[0].weight.data_ptr() == first.transformer.wtes[0].weight.data_ptr()


def test_assign_state_dict_names_what_does_not_fit():
    with init_empty_weights():
        linear = nn.Linear(3, 2)
    message = r"linear doesn't fit its configuration: missing bias; unknown scale; weight is \(2,\), not \(2, 3\)"
    with pytest.raises(BundleError, match=message):
        assign_state_dict(linear, dict(weight=torch.ones(2), scale=torch.ones(1)), "linear")
    state = dict(weight=torch.ones(2, 3), bias=torch.zeros(2))
    assert assign_state_dict(linear, state, "linear").weight.data_ptr() == state["weight"].data_ptr()
    assert not linear.weight.requires_grad and not linear.training
