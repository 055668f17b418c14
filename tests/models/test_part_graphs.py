"Graphs of the second stage, the codec and the CTC scorer: equal to PyTorch for other shapes than nano's."
import copy

import pytest
import torch

from metavoice.generate.fine_codes import predict_fine_codes
from metavoice.models.gpt import GPT, GPTConfig
from metavoice.models.listener import CTCScorer, CTCScorerConfig
from metavoice.models.nano_codec import NanoCodec, NanoCodecConfig
from metavoice.models.onnx_runtime import OnnxSession
from metavoice.models.part_graphs import CodecGraph, SecondStageGraph, use_onnxruntime

pytest.importorskip("onnxruntime")
CODEC = dict(n_fft=160, hop=240, n_mels=20, width=16, hidden=32, encoder_blocks=2, decoder_blocks=3, latent_dim=8,
             n_codebooks=4, codebook_size=16)
SECOND = dict(n_layer=2, n_head=2, n_embd=24, block_size=40, vocab_sizes=[30, 17], target_vocab_sizes=[17] * 3,
              causal=False, swiglu_multiple_of=8)


def frozen(make):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make().eval().requires_grad_(False)


def make_codec(**options):
    codec = frozen(lambda: NanoCodec(NanoCodecConfig(**CODEC, **options)))
    codec.quantiser.codebooks.copy_(torch.randn(4, 16, 8, generator=torch.Generator().manual_seed(1)))
    return codec


def assert_close(ours, theirs):
    "The largest difference is less than 1e-4 of the range."
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() < 1e-4 * theirs.abs().max()


THREE = dict(finest_blocks=1, finest_split=3, synthesis_window=80)


@pytest.mark.parametrize("options", [{}, dict(finest_blocks=2), THREE])
@torch.inference_mode()
def test_codec(options):
    codec = make_codec(**options)
    codes = torch.randint(16, (2, 4, 7), generator=torch.Generator().manual_seed(2))
    pitch, voice, breath = codec.predict_filters(codec.latent(codes))
    for graph, inputs in ((CodecGraph(codec), dict(latent=codec.latent(codes))),
                          (CodecGraph(codec, from_codes=True), dict(codes=codes))):
        for ours, theirs in zip(OnnxSession(graph)(**inputs), (pitch, torch.cat([voice, breath], 1).mT)):
            assert_close(ours, theirs)
    samples = codec.decode(codes)
    assert (use_onnxruntime(codec).decode(codes) - samples).abs().max() < 1e-3 * samples.abs().max()
    assert torch.equal(codec.decode(codes[:, :2]), codec.decode(codes[:, :2]))


def test_a_codec_that_is_trained_has_gradients():
    codec = use_onnxruntime(make_codec())
    for trained in (copy.deepcopy(codec), codec):
        trained.requires_grad_(True)
        trained.predict_filters(torch.randn(1, 8, 5))[1].sum().backward()
        assert trained.filters.weight.grad.abs().sum() > 0
    assert copy.deepcopy(codec).session is None


@torch.inference_mode()
def test_listener():
    scorer = frozen(lambda: CTCScorer(CTCScorerConfig(phones=5, width=24, wide=32, hidden=48, blocks=2)))
    for frames in (2, 3, 40):
        samples = torch.randn(2, 240 * frames, generator=torch.Generator().manual_seed(frames))
        expected = scorer.letters(scorer.layers(samples))
        assert_close(use_onnxruntime(scorer).letter_logits(samples), expected)


@pytest.mark.parametrize("options", [
    {}, dict(norm_type="layernorm", bias=True, nonlinearity_type="gelu"), dict(speaker_emb_size=None)])
@torch.inference_mode()
def test_second_stage(options):
    model = frozen(lambda: GPT(GPTConfig(**SECOND, **options)))
    ids = torch.randint(17, (2, 2, 25), generator=torch.Generator().manual_seed(3))
    speaker = torch.randn(2, 256) if model.config.speaker_emb_size else None
    expected = torch.stack([head[:, 5:, :16] for head in model(ids, speaker)], 2)
    inputs = dict(ids=ids, start=torch.tensor([5])) | ({} if speaker is None else dict(speaker=speaker))
    assert_close(OnnxSession(SecondStageGraph(model))(**inputs)[0], expected)


def test_fine_codes_are_equal_with_both_engines():
    "Also where rows of different lengths are padded, and drawn with a seed."
    shape = SECOND | dict(vocab_sizes=[1538, 1025], target_vocab_sizes=[1025] * 6)
    model = frozen(lambda: GPT(GPTConfig(**shape)))
    texts, codes = [[1, 2, 512], [3, 512]], [torch.randint(1024, (2, n)) for n in (20, 9)]
    speakers = torch.randn(2, 256)
    for options in (dict(temperature=0), dict(padded=False, temperature=0), dict(padded=False, top_k=50)):
        found = []
        for model.engine in ("torch", "onnx"):
            seeds = [torch.Generator().manual_seed(n) for n in range(2)]
            found.append(predict_fine_codes(model, texts, codes, speakers, seeds, **options))
        for slow, fast in zip(*found):
            assert slow.shape == fast.shape and (slow == fast).float().mean() > .99
