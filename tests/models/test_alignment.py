"Aligning phones with frames, and encoding recordings by their text."
import itertools

import numpy as np
import pytest
import torch

from metavoice.models.alignment import (
    align_phones,
    cheapest_path,
    code_context,
    encode_said,
    speech_streams,
    state_phones,
)
from metavoice.models.nano_codec import NanoCodec, NanoCodecConfig
from metavoice.text.phonemes import phone_states

NAMES = ["pau", *"bɪt"]


def all_paths(frames, optional):
    "Every path that visits the states from left to right and leaves out only optional ones."
    count = len(optional)
    for path in itertools.product(range(count), repeat=frames):
        if list(path) == sorted(path) and all(state in path or optional[state] for state in range(count)):
            yield path


@pytest.mark.parametrize("optional", [[True, False, True, False, True], [False, False, False], [True, False, False]])
@pytest.mark.parametrize("frames", [3, 5, 6])
def test_the_path_is_the_cheapest_of_all(optional, frames):
    costs = np.random.default_rng(frames).random((frames, len(optional)))
    best = min(all_paths(frames, optional), key=lambda path: costs[range(frames), path].sum())
    assert tuple(cheapest_path(costs, optional)) == best


def test_too_few_frames_have_no_path():
    assert cheapest_path(np.zeros((1, 3)), [True, False, False]) is None
    assert cheapest_path(np.full((4, 2), np.inf), [False, False]) is None
    assert cheapest_path(np.zeros((1, 2)), [True, False]).tolist() == [1]


def test_phones_of_a_text_are_all_found():
    states = phone_states("bɪ ɪt")
    log_probs = torch.full((10, 4), -5.0)
    log_probs[range(10), [0, 1, 1, 2, 2, 2, 2, 2, 3, 0]] = 0.0
    labels = align_phones(log_probs, states, NAMES)
    assert labels[[0, 1, 2, 8, 9]].tolist() == [0, 1, 1, 4, 5] and set(labels[3:8].tolist()) == {2, 3}
    assert align_phones(log_probs[:3], states, NAMES) is None
    unknown = align_phones(log_probs, phone_states("bɪʒt"), NAMES)
    assert sorted(set(unknown.tolist())) == [0, 1, 2, 4, 5]
    assert state_phones(phone_states("bʒ"), NAMES).tolist() == [0, 1, -1, 0]


def test_codes_follow_the_text():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = dict(n_fft=160, hop=80, n_mels=20, width=16, hidden=32, encoder_blocks=2, decoder_blocks=2)
        codec = NanoCodec(NanoCodecConfig(**sizes, latent_dim=8, codebook_size=16, phones=NAMES)).eval()
        codec.quantiser.codebooks.normal_()
        codec.entry_phones.copy_(torch.arange(16) % 4)
        samples = torch.randn(20 * 80) * 0.1
    phones = codec.entry_phones[encode_said(codec, samples, phone_states("tɪb"))[0]]
    spoken = [NAMES[phone] for phone in phones.unique_consecutive() if phone]
    assert spoken == [*"tɪb"]
    free = codec.encode(samples[None])[0]
    short = samples[:160]
    assert torch.equal(encode_said(codec, short, phone_states("tɪb" * 9)), codec.encode(short[None])[0])
    likeliest = codec.phone_log_probs(codec.encode_latent(samples[None]))[0].argmax(-1)
    assert torch.equal(codec.entry_phones[free[0]].long(), likeliest)


def test_both_tokens_of_a_frame_have_its_context():
    tokens, codec = "bɪt", NanoCodec(NanoCodecConfig(phones=NAMES, width=16, hidden=16))  # a token for each symbol
    codec.entry_phones.copy_(torch.arange(1024) % 4)
    codes = torch.tensor([0, 1, 1, 2, 3, 3])  # the entries of pau, b, b, ɪ, t, t
    context = code_context(codes, phone_states(tokens), len(tokens), codec)
    assert context[:, 0].tolist() == [0, 1, 1, 2, 3, 3]
    assert code_context(codes[:2], phone_states(tokens), len(tokens), codec) is None
    ids = torch.arange(100, 104 + 2 * len(codes))  # the text, its end, and two codes a frame
    streams = speech_streams(ids, context)
    assert torch.equal(streams[0], ids) and streams[1, :4].tolist() == [1, 2, 3, 4] and not streams[2:, :4].any()
    assert torch.equal(streams[1:, 4::2].T, context) and torch.equal(streams[1:, 5::2].T, context)
