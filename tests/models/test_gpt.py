"Both stages against the released code's logits and loss, from the released files, with and without the speaker."
import pytest
import torch
from torch.nn import functional as F

from metavoice.models.gpt import GPT, GPTConfig, load_gpt


def read(path):
    "The model of a released checkpoint."
    checkpoint = torch.load(path, weights_only=True)
    config = GPTConfig.from_model_args(checkpoint["model_args"], checkpoint["meta"]["speaker_emb_size"])
    return load_gpt(checkpoint["model"], config, path.name)

@pytest.fixture(scope="module")
def first(golden): return read(golden / "first_stage.pt")

@pytest.fixture(scope="module")
def second(golden): return read(golden / "second_stage.pt")

@pytest.fixture(scope="module")
def want(expected): return {k: torch.from_numpy(expected[k]) for k in expected if k.startswith(("fs_", "ss_"))}

def close(got, wanted, tolerance):
    assert got.shape == wanted.shape
    error = ((got.float() - wanted.float()).abs().max() / wanted.float().abs().max()).item()
    assert error <= tolerance, f"off by {error:.1e} of the largest"


@pytest.mark.parametrize("key", ("fs_cond", "fs_uncond"))
@torch.inference_mode()
def test_first_stage(first, want, key):
    speaker = want["fs_spk"] if key == "fs_cond" else None
    logits, = first(want["fs_ids"][:, None].long(), speaker)
    close(logits[:, want["fs_prefix"].long() - 1], want[key], 1e-4)

@torch.inference_mode()
def test_a_speaker_of_zeros_is_the_unconditional_branch(first, want):
    logits, = first(want["fs_ids"][:, None].long(), torch.zeros(3, 256))
    close(logits[:, want["fs_prefix"].long() - 1], want["fs_uncond"], 1e-4)

@torch.inference_mode()
def test_both_branches_in_one_batch(first, want):
    ids, speaker = want["fs_ids"][:, None].long(), want["fs_spk"]
    logits, = first(torch.cat([ids, ids]), torch.cat([speaker, torch.zeros_like(speaker)]))
    close(logits[:, want["fs_prefix"].long() - 1], torch.cat([want["fs_cond"], want["fs_uncond"]]), 1e-4)

@pytest.mark.parametrize("i", range(4))
@torch.inference_mode()
def test_every_prefix_by_itself_and_from_the_cache(first, want, i):
    n, ids, speaker = int(want["fs_prefix"][i]), want["fs_ids"][:, None].long(), want["fs_spk"]
    logits, = first(ids[..., :n], speaker)
    close(logits[:, -1], want["fs_cond"][:, i], 1e-4)
    cache = first.cache(3, 64)
    if n > 1: first(ids[..., :n-1], speaker, cache)
    cache.advance(n - 1)
    logits, = first(ids[..., n-1:n], speaker, cache)
    close(logits[:, -1], want["fs_cond"][:, i], 1e-4)

@torch.inference_mode()
def test_first_stage_loss(first, want):
    ids = want["fs_ids"].long()
    logits, = first(ids[:, None], want["fs_spk"])
    loss = F.cross_entropy(logits.flatten(0, 1), ids.roll(-1, 1).flatten())
    close(loss, want["fs_loss"], 1e-4)

@torch.inference_mode()
def test_second_stage(second, want):
    logits = torch.stack(second(want["ss_in"].long(), want["fs_spk"]), 1)
    close(logits[:, :, ::int(want["ss_stride"])], want["ss_logits"], 2e-3)

def test_the_second_stage_is_recognised(first, second):
    assert first.config.causal and not second.config.causal
    assert first.config.target_vocab_sizes is None and second.config.heads == [1025]*6

def test_the_released_head_is_tied(first):
    assert isinstance(first, GPT)
    assert first.lm_heads[0].weight.data_ptr() == first.transformer.wtes[0].weight.data_ptr()
