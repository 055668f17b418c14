"The denoiser in onnxruntime: equal to PyTorch, in chunks, after silence, for several streams and threads."
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from metavoice.models.deepfilter import DfState
from metavoice.models.denoiser import Denoiser
from metavoice.models.denoiser_graph import OnnxDeepFilterNet, load_denoiser_network
from metavoice.serve.denoise_pool import BatchedDenoiser, Slots

pytest.importorskip("onnxruntime")


def make_frames(n, seed=0):
    "Noise whose level rises and falls, with silence in the middle."
    frames = torch.randn(n, 480, generator=torch.Generator().manual_seed(seed))
    frames *= .2 * torch.linspace(0, 9, n).sin()[:, None].abs()
    frames[n // 2:n // 2 + n // 10] = 0
    return frames


@pytest.mark.parametrize("keep", [0., .25])
@torch.inference_mode()
def test_equal_to_torch(keep):
    plain, fast = load_denoiser_network("torch"), load_denoiser_network("onnx")
    assert isinstance(fast, OnnxDeepFilterNet)
    frames, states = make_frames(230), [DfState(), DfState()]
    expected = plain(frames, states[0], keep)
    assert (fast(frames, states[1], keep) - expected).abs().max() < 1e-5 * expected.abs().max()
    for name, value in vars(states[0]).items():
        torch.testing.assert_close(getattr(states[1], name), value, atol=2e-5, rtol=1e-4)
    state = DfState()
    parts = [fast(part, state, keep) for part in frames.split([1, 0, 3, 99, 127])]
    assert (torch.cat(parts) - expected).abs().max() < 1e-5 * expected.abs().max()


def test_several_streams_and_threads():
    "Each stream has the samples that it has alone, also in the server's pool."
    fast = load_denoiser_network("onnx")
    streams = [make_frames(40 + n, n) for n in range(4)]
    alone = [fast(frames, DfState(), .1) for frames in streams]
    batch = fast.forward_batch([(frames, DfState()) for frames in streams], [.1] * 4)
    shared = BatchedDenoiser(Slots(2))

    def denoise(frames):
        with shared.slots:
            return shared(frames, DfState(), .1)

    with ThreadPoolExecutor(4) as pool:
        pooled = list(pool.map(denoise, streams))
    for a, b, c in zip(alone, batch, pooled):
        assert torch.equal(a, b) and torch.equal(a, c)


def test_engine_of_a_denoiser():
    samples = make_frames(30).flatten()
    networks = [load_denoiser_network(engine) for engine in ("torch", "onnx", None)]
    a, b, c = (Denoiser(network=network)(samples) for network in networks)
    assert torch.equal(b, c) and (a - b).abs().max() < 1e-5
